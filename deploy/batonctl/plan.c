/* batonctl plan: reads the options into the planner's question. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "common/kernels/kernels.h"
#include "deploy/batonctl/plan_report.h"
#include "deploy/batonctl/verbs.h"

static const char usage[] =
    "batonctl plan: which cards, layouts and how many workers a load takes\n\n"
    "  batonctl plan --model DIR --hardware h20 --rate 20 --input-tokens 4096 --output-tokens 512\n"
    "  batonctl plan --model config.json --prefill-hardware h100 --decode-hardware h20 --svg "
    "a.svg\n"
    "  batonctl plan --model DIR --hardware cpu --cores 2 --calibration measured.json --explain\n\n"
    "Nothing is started: what a model needs of compute, memory, memory traffic and network is\n"
    "computed from its config.json, against what the cards have. Exit code 1: the limits can't be\n"
    "met, and the output says what stands in the way.";

static struct {
    const char *model, *hardware, *prefill_hardware, *decode_hardware, *catalogue, *calibration;
    const char *prefill_layout, *decode_layout, *svg;
    int weights, kv, output;
    int64_t cores, ttft_ns, tpot_ns, gap_ns, drafts;
    int64_t chunk, layerwise_from, max_cards, max_instance_cards, max_batch, curve_cards;
    int64_t prefill_instances, decode_instances;
    double rate, input, tokens_out, cached, variation, quantile, utilisation, acceptance;
    bool explain;
} values;

static const char *const weights_names[] = {"auto", "bf16", "fp8", "int8", "w4a8", NULL};
static const char *const kv_names[] = {"bf16", "fp8", NULL};

static const struct bt_option options[] = {
    {"model", BT_OPTION_STRING, &values.model, NULL, .metavar = "DIR", .required = true,
     .help = "the model's directory, or its config.json"},
    {"hardware", BT_OPTION_STRING, &values.hardware, NULL, .metavar = "NAME",
     .help = "cards of both phases: a name of the catalogue, or cpu for this machine"},
    {"prefill-hardware", BT_OPTION_STRING, &values.prefill_hardware, NULL, .metavar = "NAME",
     .help = "cards of prefill alone"},
    {"decode-hardware", BT_OPTION_STRING, &values.decode_hardware, NULL, .metavar = "NAME",
     .help = "cards of decode alone"},
    {"catalogue", BT_OPTION_STRING, &values.catalogue, NULL, .metavar = "FILE",
     .help = "more cards, or other figures of known ones"},
    {"cores", BT_OPTION_INT, &values.cores, "0", 0, 4096,
     .help = "of cpu: cores of one worker; 0: all of this machine"},
    {"calibration", BT_OPTION_STRING, &values.calibration, NULL, .metavar = "FILE",
     .help = "measured efficiencies; published: peaks as in the published tables"},
    {"rate", BT_OPTION_DOUBLE, &values.rate, "10", 1e-9, 1e6, .help = "requests a second"},
    {"input-tokens", BT_OPTION_DOUBLE, &values.input, "2048", 1, 4194304,
     .help = "tokens of a prompt, on average"},
    {"output-tokens", BT_OPTION_DOUBLE, &values.tokens_out, "512", 1, 4194304,
     .help = "tokens of an answer, on average"},
    {"cached", BT_OPTION_DOUBLE, &values.cached, "0", 0, 0.999,
     .help = "share of prompts that the prefix cache has"},
    {"variation", BT_OPTION_DOUBLE, &values.variation, "0", 0, 100,
     .help = "of prompts' times: standard deviation over the mean"},
    {"ttft", BT_OPTION_DURATION, &values.ttft_ns, "2s", 1e-6, 86400,
     .help = "longest time to the first token, at the quantile"},
    {"tpot", BT_OPTION_DURATION, &values.tpot_ns, "50ms", 1e-6, 86400,
     .help = "longest mean time between tokens"},
    {"quantile", BT_OPTION_DOUBLE, &values.quantile, "0.9", 0, 0.9999,
     .help = "of TTFT: 0.9 for the p90, 0 for the mean"},
    {"gap", BT_OPTION_DURATION, &values.gap_ns, "0", 0, 86400,
     .help = "longest time between any two tokens; 0: any"},
    {"weights", BT_OPTION_CHOICE, &values.weights, "auto", .choices = weights_names,
     .help = "what the weights are kept in; auto: as config.json says"},
    {"kv", BT_OPTION_CHOICE, &values.kv, "bf16", .choices = kv_names,
     .help = "what the KV cache is kept in"},
    {"chunk", BT_OPTION_INT, &values.chunk, "8192", 0, 4194304,
     .help = "tokens of a prefill step; 0: whole prompts"},
    {"layerwise-from", BT_OPTION_INT, &values.layerwise_from, "8192", 0, 4194304,
     .help = "prompts from this length are handed over layer by layer"},
    {"mtp-drafts", BT_OPTION_INT, &values.drafts, "0", 0, 16,
     .help = "tokens that the MTP module proposes each step"},
    {"acceptance", BT_OPTION_DOUBLE, &values.acceptance, "0.85", 0, 1,
     .help = "share of drafts that are right"},
    {"prefill-layout", BT_OPTION_STRING, &values.prefill_layout, NULL, .metavar = "LAYOUT",
     .help = "as in tp8,dp1,ep8; not given: searched"},
    {"decode-layout", BT_OPTION_STRING, &values.decode_layout, NULL, .metavar = "LAYOUT",
     .help = "as in tp1,dp32,ep32; not given: searched"},
    {"prefill-instances", BT_OPTION_INT, &values.prefill_instances, "0", 0, 65536,
     .help = "with both layouts and --decode-instances: judge this deployment"},
    {"decode-instances", BT_OPTION_INT, &values.decode_instances, "0", 0, 65536,
     .help = "with both layouts and --prefill-instances: judge this deployment"},
    {"max-cards", BT_OPTION_INT, &values.max_cards, "1024", 1, 65536, .help = "in all"},
    {"max-instance-cards", BT_OPTION_INT, &values.max_instance_cards, "64", 1, 1024,
     .help = "of one worker"},
    {"max-batch", BT_OPTION_INT, &values.max_batch, "512", 1, 1 << 20,
     .help = "sequences of one decode rank"},
    {"max-utilisation", BT_OPTION_DOUBLE, &values.utilisation, "0.9", 0.01, 1,
     .help = "share of prefill's time and of decode's batch that is planned with"},
    {"curve-cards", BT_OPTION_INT, &values.curve_cards, "0", 0, 65536,
     .help = "cards that goodput is shown for at each ratio; 0: as many as make a curve"},
    {"svg", BT_OPTION_STRING, &values.svg, NULL, .metavar = "FILE",
     .help = "charts: a roofline a phase, and goodput against the ratio"},
    {"explain", BT_OPTION_BOOL, &values.explain, "false",
     .help = "the formula and the numbers behind each figure"},
    CTL_OUTPUT_OPTION(values.output),
    {NULL},
};

/* "tp8,dp4,ep32" in any order; what is left out is 1, ep all cards where there are experts. */
static enum bt_status parse_layout(const char *option, const char *text,
                                   const struct bt_plan_model *model, struct bt_error *error,
                                   struct bt_plan_layout *ret_layout)
{
    uint32_t tp = 0, dp = 0, ep = 0;
    for (const char *at = text; *at;) {
        uint32_t *number = !strncmp(at, "tp", 2)   ? &tp
                           : !strncmp(at, "dp", 2) ? &dp
                           : !strncmp(at, "ep", 2) ? &ep
                                                   : NULL;
        char *end = NULL;
        bool digit = number && at[2] >= '1' && at[2] <= '9';
        unsigned long value = digit ? strtoul(at + 2, &end, 10) : 0;
        if (!digit || *number || value > 65536 || (*end && *end != ',') || (*end && !end[1]))
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "--%s %.100s: not of the form tp8,dp1,ep8", option, text);
        *number = (uint32_t)value;
        at = *end ? end + 1 : end;
    }
    tp = tp ? tp : 1;
    dp = dp ? dp : 1;
    if (!*text || (uint64_t)tp * dp > 65536)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--%s %.100s: not of the form tp8,dp1,ep8", option, text);
    *ret_layout = (struct bt_plan_layout){tp, dp, ep ? ep : model->routed_experts ? tp * dp : 1};
    return BT_OK;
}

/* This machine: figures of a core of its kind, as many as a worker gets. */
static enum bt_status find_cpu(const struct bt_plan_catalogue *catalogue, struct bt_error *error,
                               struct bt_plan_hardware *ret_hardware)
{
    const struct bt_kernels *kernels;
    const struct bt_plan_hardware *found;
    enum bt_status status = bt_kernels_select("auto", error, &kernels);
    if (status == BT_OK)
        status = bt_plan_catalogue_find(
            catalogue, strcmp(kernels->name, "amx") ? "cpu-avx512" : "cpu-amx", error, &found);
    if (status != BT_OK)
        return status;
    struct sysinfo info;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t all = cpus > 0 ? (uint32_t)cpus : 1,
             cores = values.cores ? (uint32_t)values.cores : all;
    *ret_hardware = *found;
    bt_plan_hardware_set_cores(ret_hardware, cores);
    ret_hardware->figure[BT_PLAN_NODE_CARDS] = cores < all ? all / cores : 1;
    if (sysinfo(&info) == 0)
        ret_hardware->figure[BT_PLAN_MEMORY] =
            (double)info.totalram * info.mem_unit / ret_hardware->figure[BT_PLAN_NODE_CARDS];
    snprintf(ret_hardware->title, sizeof(ret_hardware->title), "this machine, %u core%s a worker",
             cores, cores == 1 ? "" : "s");
    return BT_OK;
}

static enum bt_status find_hardware(const struct bt_plan_catalogue *catalogue, const char *name,
                                    struct bt_error *error, struct bt_plan_hardware *ret_hardware)
{
    const struct bt_plan_hardware *found;
    name = name ? name : values.hardware;
    if (name && !strcmp(name, "cpu"))
        return find_cpu(catalogue, error, ret_hardware);
    enum bt_status status = bt_plan_catalogue_find(catalogue, name ? name : "", error, &found);
    if (status != BT_OK) {
        bt_error_prefix(error, name ? "--hardware" : "which --hardware");
        size_t used = strlen(error->text);
        snprintf(error->text + used, sizeof(error->text) - used, ", and cpu for this machine");
        return status;
    }
    *ret_hardware = *found;
    if (values.cores && found->figure[BT_PLAN_CORES] > 0 && !strncmp(found->name, "cpu", 3))
        bt_plan_hardware_set_cores(ret_hardware, (uint32_t)values.cores);
    return BT_OK;
}

static enum bt_status read_hardware(struct bt_plan_question *question, struct bt_error *error)
{
    struct bt_plan_catalogue *catalogue = malloc(sizeof(*catalogue));
    if (!catalogue)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "the catalogue");
    enum bt_status status = bt_plan_catalogue_load(values.catalogue, error, catalogue);
    if (status == BT_OK)
        status =
            find_hardware(catalogue, values.prefill_hardware, error, &question->prefill_hardware);
    if (status == BT_OK)
        status =
            find_hardware(catalogue, values.decode_hardware, error, &question->decode_hardware);
    free(catalogue);
    return status;
}

static enum bt_status read_layouts(struct ctl_plan_report *report, struct bt_error *error)
{
    struct bt_plan_limits *limits = &report->question.limits;
    const struct bt_plan_model *model = &report->question.model;
    enum bt_status status = BT_OK;
    if (values.prefill_layout)
        status = parse_layout("prefill-layout", values.prefill_layout, model, error,
                              &limits->prefill_layout);
    if (status == BT_OK && values.decode_layout)
        status = parse_layout("decode-layout", values.decode_layout, model, error,
                              &limits->decode_layout);
    if (status != BT_OK || (!values.prefill_instances && !values.decode_instances))
        return status;
    if (!values.prefill_instances || !values.decode_instances || !values.prefill_layout ||
        !values.decode_layout)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "a deployment is named by --prefill-layout, --decode-layout, "
                            "--prefill-instances and --decode-instances together");
    report->given = true;
    report->prefill_pool =
        (struct bt_plan_pool){limits->prefill_layout, 0, (uint32_t)values.prefill_instances};
    report->decode_pool =
        (struct bt_plan_pool){limits->decode_layout, 0, (uint32_t)values.decode_instances};
    uint32_t experts = model->routed_experts;
    struct bt_plan_pool *pools[] = {&report->prefill_pool, &report->decode_pool};
    for (int i = 0; i < 2 && experts; i++)
        pools[i]->redundant =
            (pools[i]->layout.ep - experts % pools[i]->layout.ep) % pools[i]->layout.ep;
    return BT_OK;
}

static void read_numbers(struct bt_plan_question *question)
{
    question->load = (struct bt_plan_load){
        .requests_per_s = values.rate,
        .input_tokens = values.input,
        .output_tokens = values.tokens_out,
        .cached_share = values.cached,
        .variation = values.variation,
    };
    question->slo = (struct bt_plan_slo){
        .ttft_s = (double)values.ttft_ns / 1e9,
        .tpot_s = (double)values.tpot_ns / 1e9,
        .quantile = values.quantile,
        .gap_s = (double)values.gap_ns / 1e9,
    };
    question->policy = (struct bt_plan_policy){
        .chunk_tokens = (double)values.chunk,
        .layerwise_from_tokens = (double)values.layerwise_from,
        .max_utilisation = values.utilisation,
        .drafts = (uint32_t)values.drafts,
        .acceptance = values.acceptance,
    };
    question->limits = (struct bt_plan_limits){
        .max_cards = (uint32_t)values.max_cards,
        .max_instance_cards = (uint32_t)values.max_instance_cards,
        .max_batch = (uint32_t)values.max_batch,
    };
}

static enum bt_status read_question(struct ctl_plan_report *report, struct bt_error *error)
{
    struct bt_plan_question *question = &report->question;
    enum bt_status status = bt_plan_model_load(values.model, error, &report->file);
    bt_plan_question_init(question);
    read_numbers(question);
    if (status == BT_OK)
        status = read_hardware(question, error);
    if (status == BT_OK && values.calibration)
        status = !strcmp(values.calibration, "published")
                     ? (question->calibration = bt_plan_calibration_published(), BT_OK)
                     : bt_plan_calibration_load(values.calibration, error, &question->calibration);
    if (status != BT_OK)
        return status;
    report->path = values.model;
    report->curve_cards = (uint32_t)values.curve_cards;
    report->weights =
        values.weights ? (enum bt_plan_weights)(values.weights - 1) : report->file.weights;
    report->fp8_kv = values.kv == 1;
    question->model = report->file.model;
    question->dtypes = bt_plan_dtypes_of(&question->model, report->weights, report->fp8_kv);
    if (!strncmp(question->prefill_hardware.name, "cpu", 3) &&
        !strncmp(question->decode_hardware.name, "cpu", 3))
        bt_plan_dtypes_on_cpu(report->weights, &question->dtypes);
    return read_layouts(report, error);
}

static int print(const struct ctl_plan_report *report)
{
    if (values.output == CTL_OUTPUT_JSON)
        return ctl_print_json(ctl_plan_json(report));
    ctl_plan_print(report);
    return fflush(stdout) || ferror(stdout) ? CTL_EXIT_FAILED : CTL_EXIT_OK;
}

int ctl_verb_plan(int argc, char **argv)
{
    struct bt_error error;
    int code = ctl_parse(options, usage, argc, argv, NULL);
    if (code >= 0)
        return code;
    struct ctl_plan_report *report = calloc(1, sizeof(*report));
    enum bt_status status = report ? read_question(report, &error)
                                   : bt_error_set(&error, BT_ERR_NO_MEMORY,
                                                  "the report takes %zu bytes", sizeof(*report));
    if (status == BT_ERR_NOT_FOUND)
        error.status = BT_ERR_INVALID_ARGUMENT; /* a file or a card: no cluster is looked for */
    if (status == BT_OK)
        status = ctl_plan_compute(report, values.explain, &error);
    if (status == BT_OK && values.svg)
        status = ctl_plan_draw(report, values.svg, &error);
    if (status != BT_OK)
        code = ctl_fail("plan", &error);
    else
        code = print(report);
    if (status == BT_OK && code == CTL_EXIT_OK && !report->answer.found &&
        !(report->answer.aggregated_found && !report->given)) {
        bt_error_set(&error, BT_ERR_UNSUPPORTED, "%s", report->answer.why_not);
        code = ctl_fail("plan", &error);
    }
    free(report);
    return code;
}
