/* The verb that puts a load on a cluster and tells how it bears it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "deploy/batonctl/api_key.h"
#include "deploy/batonctl/bench_report.h"
#include "deploy/batonctl/bench_setup.h"
#include "deploy/batonctl/verbs.h"

#define DEFAULT_REQUESTS    100
#define DEFAULT_CONCURRENCY 8
#define A_CLIENT            256 /* open calls of a closed loop, beyond which it takes another */
#define SEED_MASK           ((UINT64_C(1) << 53) - 1) /* what --seed takes */

static const char usage[] =
    "batonctl bench [OPTIONS]\n\n"
    "Puts a load on a cluster and prints latencies, throughput and goodput.\n\n"
    "  batonctl bench --concurrency 8 --num-requests 200      a closed loop\n"
    "  batonctl bench --rate 20 --duration 60s --warmup 50 \\\n"
    "      --ttft 500ms --tpot 50ms --svg load.svg            Poisson arrivals, goodput, charts\n"
    "  batonctl bench --sweep 5,10,20,40 --ttft 500ms         goodput by rate\n"
    "  batonctl bench --trace trace.jsonl --time-scale 0.5    a recorded load, twice as fast\n\n"
    "An open loop (--rate, --burst, --trace, --sweep) never waits for the cluster: latencies "
    "count\n"
    "from when a request was due. Prompts are tokens drawn by the seed; answers have the length\n"
    "asked for. TTFT is the time to the first token, TPOT the mean time between the others of a\n"
    "request, ITL that between all tokens (those that come together share their gap), E2E the "
    "whole\n"
    "request. Exit code 1: a request failed (warm-up left out), or none ended well.";

enum prompt_form { FORM_IDS, FORM_TEXT };
static const char *const form_names[] = {"ids", "text", NULL};

struct bench {
    struct ctl_target target;
    struct ctl_api_key api_key;
    int output, form;
    const char *model, *rate, *sweep, *trace_path, *dataset_path, *input_len, *output_len;
    const char *save_path, *svg_path, *request_path;
    int64_t requests, warmup, concurrency, burst, prefix_tokens, prefix_count, seed;

    char key[CTL_API_KEY_SIZE];
    struct ctl_bench_load load; /* duration, limits, scales: as options; the rest of `plan` */
    struct ctl_bench_trace trace;
    struct ctl_bench_dataset dataset;
    double rates[CTL_BENCH_RATES_MAX];
    uint32_t rate_count;
    struct ctl_bench_served served;
    struct ctl_bench_clients clients;
    struct ctl_bench_result *results;
    FILE *request_file;
    bool request_failed;
    double current_rate; /* of a sweep */
};

static int parse(struct bench *b, int argc, char **argv)
{
    struct ctl_bench_load *load = &b->load;
    const struct bt_option options[] = {
        {"rate", BT_OPTION_STRING, &b->rate, NULL, .metavar = "R",
         .help = "requests/s that come by chance (Poisson), or inf: all at once, with "
                 "--concurrency one after the other"},
        {"burstiness", BT_OPTION_DOUBLE, &load->arrivals.burstiness, "1", .min = 0.01, .max = 1000,
         .help = "shape of the gamma distribution of gaps: 1 is Poisson, less comes in bursts, "
                 "more is even"},
        {"concurrency", BT_OPTION_INT, &b->concurrency, "0", .min = 0, .max = CTL_BENCH_OPEN_MAX,
         .help = "requests that are open at a time, the next when one ends; 8 where nothing else "
                 "is said"},
        {"burst", BT_OPTION_INT, &b->burst, "0", .min = 0, .max = CTL_BENCH_OPEN_MAX,
         .help = "requests that come at once, each --every"},
        {"every", BT_OPTION_DURATION, &load->arrivals.every_ns, "0", .min = 0, .max = 86400,
         .help = "time between bursts"},
        {"trace", BT_OPTION_STRING, &b->trace_path, NULL, .metavar = "FILE",
         .help = "times and lengths of a file: JSONL with timestamp (ms), input_length, "
                 "output_length and hash_ids, or CSV with a header as of BurstGPT and Azure"},
        {"time-scale", BT_OPTION_DOUBLE, &load->time_scale, "1", .min = 0, .max = 1e6,
         .help = "factor of a trace's times: 0.5 is twice as fast"},
        {"length-scale", BT_OPTION_DOUBLE, &load->length_scale, "1", .min = 1e-4, .max = 1e4,
         .help = "factor of a trace's lengths, and of what a hash id stands for"},
        {"sweep", BT_OPTION_STRING, &b->sweep, NULL, .metavar = "R1,R2,…",
         .help = "one run for each of these rates, and goodput by rate"},
        {"num-requests", BT_OPTION_INT, &b->requests, "0", .min = 0, .max = 1e15,
         .help = "of a run, beside --warmup; 0: 100, with --duration no limit, of a trace all"},
        {"duration", BT_OPTION_DURATION, &load->duration_ns, "0", .min = 0,
         .max = CTL_BENCH_LONGEST_S, .help = "no request is due later; what is open is waited for"},
        {"warmup", BT_OPTION_INT, &b->warmup, "0", .min = 0, .max = 1e15,
         .help = "so many requests first that do not count"},
        {"request-timeout", BT_OPTION_DURATION, &load->request_timeout_ns, "10m", .min = 0.001,
         .max = 86400, .help = "a request that takes longer has failed"},
        {"input-len", BT_OPTION_STRING, &b->input_len, "512", .metavar = "N",
         .help = "tokens of a prompt: N, MIN:MAX or lognormal:MEAN:SIGMA; what is drawn and does "
                 "not fit the context is cut"},
        {"output-len", BT_OPTION_STRING, &b->output_len, "128", .metavar = "N",
         .help = "tokens of an answer, in the same way"},
        {"prefix-len", BT_OPTION_INT, &b->prefix_tokens, "0", .min = 0, .max = CTL_BENCH_LENGTH_MAX,
         .help = "tokens that prompts share, before those of --input-len"},
        {"prefix-count", BT_OPTION_INT, &b->prefix_count, "1", .min = 1, .max = 1 << 20,
         .help = "different prefixes, taken in turn"},
        {"prompts", BT_OPTION_CHOICE, &b->form, "ids", .choices = form_names,
         .help = "as token ids, or as text, whose tokens the router counts"},
        {"dataset", BT_OPTION_STRING, &b->dataset_path, NULL, .metavar = "FILE",
         .help = "prompts of a file in its order: JSONL with prompt or messages, and "
                 "output_tokens, else --output-len"},
        {"natural-end", BT_OPTION_BOOL, &load->natural_end, "false",
         .help = "answers may end before their length is reached"},
        {"temperature", BT_OPTION_DOUBLE, &load->temperature, "0", .min = 0, .max = 100,
         .help = "0: greedy"},
        {"model", BT_OPTION_STRING, &b->model, NULL, .metavar = "NAME", .help = "the served one"},
        {"seed", BT_OPTION_INT, &b->seed, "-1", .min = -1, .max = 9007199254740992.0,
         .help = "of arrivals, lengths and prompts; -1: a new one, which is printed"},
        {"ttft", BT_OPTION_DURATION, &load->slo.ttft_ns, "0", .min = 0, .max = 86400,
         .help = "a request is good with no longer a time to its first token; 0: any"},
        {"tpot", BT_OPTION_DURATION, &load->slo.tpot_ns, "0", .min = 0, .max = 86400,
         .help = "and no longer a mean time between its other tokens"},
        {"e2e", BT_OPTION_DURATION, &load->slo.e2e_ns, "0", .min = 0, .max = 86400,
         .help = "and no longer in all"},
        {"save", BT_OPTION_STRING, &b->save_path, NULL, .metavar = "FILE",
         .help = "the JSON of --output json, into a file too"},
        {"svg", BT_OPTION_STRING, &b->svg_path, NULL, .metavar = "FILE",
         .help = "charts: latencies and throughput, or of a sweep goodput by rate"},
        {"per-request", BT_OPTION_STRING, &b->request_path, NULL, .metavar = "FILE",
         .help = "a line of JSON for each request"},
        CTL_OUTPUT_OPTION(b->output),
        CTL_API_KEY_OPTIONS(b->api_key),
        CTL_TARGET_OPTIONS(b->target),
        CTL_ENDPOINT_OPTIONS(b->target),
        {0},
    };
    return ctl_parse(options, usage, argc, argv, NULL);
}

/* ------------------------------------------------------------------ what was asked for */

static enum bt_status wrong(struct bt_error *error, const char *text)
{
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s", text);
}

static enum bt_status plan_rate(struct bench *b, struct bt_error *error)
{
    struct ctl_bench_arrivals *arrivals = &b->load.arrivals;
    enum bt_status status = ctl_bench_rate_parse(b->rate, error, &arrivals->rate);
    if (status != BT_OK)
        return status;
    if (arrivals->rate > 0) {
        arrivals->kind = CTL_BENCH_GAMMA;
        return b->concurrency ? wrong(error, "--rate R never waits: --concurrency goes with "
                                             "--rate inf only")
                              : BT_OK;
    }
    arrivals->kind = b->concurrency ? CTL_BENCH_CLOSED : CTL_BENCH_AT_ONCE;
    if (arrivals->kind == CTL_BENCH_AT_ONCE && b->load.duration_ns && !b->requests)
        return wrong(error, "--rate inf needs --num-requests or --concurrency");
    return BT_OK;
}

static enum bt_status plan_arrivals(struct bench *b, struct bt_error *error)
{
    struct ctl_bench_arrivals *arrivals = &b->load.arrivals;
    int ways = (b->rate != NULL) + (b->burst > 0) + (b->trace_path != NULL) + (b->sweep != NULL);
    if (ways > 1 || (b->concurrency && ways && !b->rate))
        return wrong(error, "one of --rate, --concurrency, --burst, --trace and --sweep says when "
                            "requests come");
    if ((b->burst > 0) != (arrivals->every_ns > 0))
        return wrong(error, "--burst and --every go together");
    if (b->trace_path && b->dataset_path)
        return wrong(error, "--trace and --dataset both say what the prompts are");
    arrivals->burst = (uint32_t)b->burst;
    arrivals->kind = b->burst        ? CTL_BENCH_BURST
                     : b->trace_path ? CTL_BENCH_TRACE
                                     : CTL_BENCH_CLOSED;
    b->rate_count = 1;
    if (b->rate)
        return plan_rate(b, error);
    if (b->sweep) {
        arrivals->kind = CTL_BENCH_GAMMA;
        return ctl_bench_rates_parse(b->sweep, error, b->rates, &b->rate_count);
    }
    if (arrivals->kind == CTL_BENCH_CLOSED && !b->concurrency)
        b->concurrency = DEFAULT_CONCURRENCY;
    return BT_OK;
}

static void plan_numbers(struct bench *b)
{
    struct ctl_bench_load *load = &b->load;
    uint64_t seed = b->seed < 0 ? bt_random_entropy() & SEED_MASK : (uint64_t)b->seed;
    b->seed = (int64_t)seed;
    load->arrivals.seed = bt_random_u64(seed, 0, 1);
    load->prompts.seed = bt_random_u64(seed, 0, 2);
    load->prompts.prefix_tokens = (uint32_t)b->prefix_tokens;
    load->prompts.prefix_count = (uint32_t)b->prefix_count;
    load->prompts.block_tokens =
        (uint32_t)fmax(round(CTL_BENCH_TRACE_BLOCK * load->length_scale), 1);
    load->concurrency = (uint32_t)b->concurrency;
    load->warmup = (uint64_t)b->warmup;
    load->requests = (uint64_t)b->requests;
    if (!load->requests && !load->duration_ns && !b->trace_path)
        load->requests = DEFAULT_REQUESTS;
    load->text = b->form == FORM_TEXT;
    load->model = b->model;
    load->api_key = b->key[0] ? b->key : NULL;
}

static enum bt_status plan(struct bench *b, struct bt_error *error)
{
    struct ctl_bench_load *load = &b->load;
    enum bt_status status = plan_arrivals(b, error);
    if (status == BT_OK)
        status = ctl_bench_lengths_parse(b->input_len, error, &load->input);
    if (status == BT_OK)
        status = ctl_bench_lengths_parse(b->output_len, error, &load->output);
    if (status == BT_OK && ((!load->input.sigma && !load->input.low && !b->prefix_tokens) ||
                            (!load->output.sigma && !load->output.low)))
        status = wrong(error, "--input-len and --output-len are at least 1");
    if (status == BT_OK)
        status = ctl_api_key_read(&b->api_key, error, b->key);
    if (status == BT_OK && b->trace_path) {
        status = ctl_bench_read_trace(b->trace_path, error, &b->trace);
        load->trace = &b->trace;
    }
    if (status == BT_OK && b->dataset_path) {
        status = ctl_bench_read_dataset(b->dataset_path, error, &b->dataset);
        load->dataset = &b->dataset;
    }
    plan_numbers(b);
    return status;
}

/* ------------------------------------------------------------------ the runs */

static void on_request(void *context, const struct ctl_bench_outcome *outcome,
                       const struct ctl_bench_answer *answer)
{
    struct bench *b = context;
    if (!ctl_bench_print_request(outcome, answer, b->current_rate, b->request_file))
        b->request_failed = true;
}

static enum bt_status prepare(struct bench *b, struct ctl_connection *connection,
                              struct bt_error *error)
{
    struct ctl_bench_load *load = &b->load;
    uint32_t clients = CTL_BENCH_CLIENTS_MAX;
    if (load->arrivals.kind == CTL_BENCH_CLOSED && load->concurrency < clients * A_CLIENT)
        clients = (load->concurrency + A_CLIENT - 1) / A_CLIENT;
    enum bt_status status = bt_loop_stop_on_signals(connection->loop, error);
    if (status == BT_OK)
        status = ctl_bench_clients_open(connection, &b->target, clients, error, &b->clients);
    if (status == BT_OK)
        status = ctl_bench_ask(&b->clients, b->target.timeout_ns, b->model, load->api_key, error,
                               &b->served);
    if (status != BT_OK)
        return status;
    load->context = b->served.context;
    load->prompts.pool = b->served.pool;
    load->prompts.pool_count = b->served.pool_count;
    load->prompts.tokens_per_word = b->served.tokens_per_word;
    if (b->request_path && !(b->request_file = fopen(b->request_path, "we")))
        return bt_error_set(error, BT_ERR_IO, "%s can't be written", b->request_path);
    return BT_OK;
}

/* `ret_count`: of runs that began. */
static enum bt_status run_all(struct bench *b, struct bt_error *error, uint32_t *ret_count)
{
    bool terminal = isatty(STDERR_FILENO);
    enum bt_status status = BT_OK;
    uint32_t done = 0;
    bool stop = false;
    for (; done < b->rate_count && status == BT_OK && !stop; done++) {
        struct ctl_bench_load load = b->load;
        struct ctl_bench_result *result = &b->results[done];
        load.first_index = (uint64_t)done << 40;
        if (b->sweep)
            load.arrivals.rate = b->current_rate = b->rates[done];
        status = ctl_bench_run(&b->clients, &load, terminal, b->request_file ? on_request : NULL, b,
                               error, result);
        stop = result->interrupted;
    }
    *ret_count = done;
    return status;
}

static enum bt_status save(const struct ctl_bench_report *report, const char *path,
                           struct bt_error *error)
{
    json_t *json = ctl_bench_json(report);
    bool saved = json && json_dump_file(json, path, JSON_INDENT(2)) == 0;
    json_decref(json);
    return saved ? BT_OK : bt_error_set(error, BT_ERR_IO, "%s can't be written", path);
}

/* All of it, whatever fails of it; the first error. */
static enum bt_status write_files(struct bench *b, const struct ctl_bench_report *report,
                                  struct bt_error *error)
{
    enum bt_status status = BT_OK, last;
    struct bt_error reason;
    if (b->save_path && (last = save(report, b->save_path, &reason)) != BT_OK)
        status = bt_error_set(error, last, "%s", reason.text);
    if (b->svg_path && (last = ctl_bench_chart(report, b->svg_path, &reason)) != BT_OK &&
        status == BT_OK)
        status = bt_error_set(error, last, "%s", reason.text);
    bool failed = b->request_failed;
    if (b->request_file && fclose(b->request_file) != 0)
        failed = true;
    b->request_file = NULL;
    if (failed && status == BT_OK)
        status = bt_error_set(error, BT_ERR_IO, "%s can't be written", b->request_path);
    return status;
}

static int tell(struct bench *b, uint32_t count, struct bt_error *error)
{
    const struct ctl_bench_report report = {.load = &b->load,
                                            .seed = (uint64_t)b->seed,
                                            .model = b->served.model,
                                            .sweep = b->sweep != NULL,
                                            .rates = b->rates,
                                            .results = b->results,
                                            .run_count = count};
    int code = CTL_EXIT_OK;
    if (b->output == CTL_OUTPUT_JSON)
        code = ctl_print_json(ctl_bench_json(&report));
    else
        ctl_bench_print(&report, stdout);
    if (write_files(b, &report, error) != BT_OK) {
        ctl_fail("bench", error);
        code = CTL_EXIT_FAILED;
    }
    for (uint32_t i = 0; i < count; i++)
        if (!ctl_bench_result_clean(&b->results[i]))
            code = CTL_EXIT_FAILED;
    return code;
}

static int run(struct bench *b)
{
    struct bt_error error;
    struct ctl_connection connection;
    enum bt_status status = plan(b, &error);
    if (status != BT_OK) {
        int code = ctl_fail("bench", &error);
        return code == CTL_EXIT_NO_CLUSTER ? CTL_EXIT_FAILED : code; /* a file that is not there */
    }
    status = ctl_connection_init(&connection, &b->target, &error);
    if (status != BT_OK)
        return ctl_fail("bench", &error);
    uint32_t count = 0;
    int code = CTL_EXIT_FAILED;
    b->results = calloc(b->rate_count, sizeof *b->results);
    status = b->results ? prepare(b, &connection, &error)
                        : bt_error_set(&error, BT_ERR_NO_MEMORY, "no memory for results");
    if (status == BT_OK)
        status = run_all(b, &error, &count);
    code = status == BT_OK ? tell(b, count, &error) : ctl_fail("bench", &error);
    ctl_bench_clients_close(&b->clients);
    ctl_connection_finish(&connection);
    for (uint32_t i = 0; i < count; i++)
        ctl_bench_result_finish(&b->results[i]);
    return code;
}

int ctl_verb_bench(int argc, char **argv)
{
    static struct bench bench;
    int code = parse(&bench, argc, argv);
    if (code >= 0)
        return code;
    code = run(&bench);
    if (bench.request_file)
        fclose(bench.request_file);
    ctl_bench_trace_finish(&bench.trace);
    ctl_bench_dataset_finish(&bench.dataset);
    free(bench.served.pool);
    free(bench.results);
    return code;
}
