/* batonctl quantize: reads the options, prints the report. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "deploy/batonctl/quantize.h"
#include "deploy/batonctl/verbs.h"

static const char usage[] =
    "batonctl quantize --model DIR --out DIR [--format int8|w4a8] [--text FILE]\n\n"
    "  batonctl quantize --model tests/models/tiny --out tiny-w4a8 --format w4a8\n\n"
    "Rounds a checkpoint's weights to integers. "
    "int8: every product of the layers, a scale for each output. w4a8: the experts in int4, "
    "groups\n"
    "of 128 inputs, the attention in int8; activations are int8 when it runs. With --text the\n"
    "experts' inputs are scaled by what the model does on that text before they are rounded "
    "(AWQ);\n"
    "and for both formats the report says what each layer's rounding does to the next tokens.\n"
    "Embedding, norms, router, kv_b_proj and the MTP module stay as they are; so do the dense "
    "layers\n"
    "and lm_head unless told. Run the result like any checkpoint: --model OUT.";

static struct {
    const char *model, *out, *text, *cpus;
    int format, output;
    bool dense, head;
    int64_t tokens, threads;
} values;

static const char *const formats[] = {"int8", "w4a8", NULL};
static const char *const outputs[] = {"table", "json", NULL};

static const struct bt_option options[] = {
    {"model", BT_OPTION_STRING, &values.model, NULL, .metavar = "DIR", .required = true,
     .help = "the checkpoint to read (BF16, F16, F32 or FP8 with block scales)"},
    {"out", BT_OPTION_STRING, &values.out, NULL, .metavar = "DIR", .required = true,
     .help = "the checkpoint to write; must not exist, or be empty"},
    {"format", BT_OPTION_CHOICE, &values.format, "w4a8", .choices = formats,
     .help = "what to round to"},
    {"text", BT_OPTION_STRING, &values.text, NULL, .metavar = "FILE",
     .help = "calibration text, like what the model will be asked; none: no scaling, no KL"},
    {"tokens", BT_OPTION_INT, &values.tokens, "8192", 64, 1 << 20,
     .help = "calibration tokens at most"},
    {"quantize-dense", BT_OPTION_BOOL, &values.dense, "false",
     .help = "the dense layers in int8 too"},
    {"quantize-head", BT_OPTION_BOOL, &values.head, "false", .help = "lm_head in int8 too"},
    {"threads", BT_OPTION_INT, &values.threads, "0", 0, BT_TEAM_MAX_THREADS,
     .help = "0: one a cpu"},
    {"cpus", BT_OPTION_STRING, &values.cpus, NULL, .metavar = "LIST",
     .help = "pin the threads, as in 0-3,8"},
    {"output", BT_OPTION_CHOICE, &values.output, "table", .choices = outputs, .letter = 'o',
     .help = "form of the report"},
    {NULL},
};

static void print_layer(const struct ctl_quantize_layer *layer)
{
    printf("%-6u %-6s %10.3f%% %10.3f%%", layer->layer, layer->is_moe ? "moe" : "dense",
           100 * layer->attention_error, 100 * layer->ffn_error);
    if (layer->plain_error > 0)
        printf(" %13.3f%% %13.3f%% %6.1f", 100 * layer->plain_error, 100 * layer->scaled_error,
               layer->alpha);
    else
        printf(" %14s %14s %6s", "-", "-", "-");
    if (layer->divergence.rows)
        printf(" %12.3e %10.2f%%\n", bt_divergence_mean(&layer->divergence),
               100 * bt_divergence_agreement(&layer->divergence));
    else
        printf(" %12s %11s\n", "-", "-");
}

static void print_table(const struct ctl_quantize_report *report)
{
    printf("%-6s %-6s %11s %11s %14s %14s %6s %12s %11s\n", "LAYER", "KIND", "ATTENTION", "FFN",
           "OUTPUT PLAIN", "OUTPUT SCALED", "ALPHA", "KL", "SAME TOKEN");
    for (uint32_t i = 0; i < report->layer_count; i++)
        print_layer(&report->layers[i]);
    if (report->divergence.rows)
        printf("%-81s %12.3e %10.2f%%\n", "all", bt_divergence_mean(&report->divergence),
               100 * bt_divergence_agreement(&report->divergence));
    printf("\nATTENTION, FFN: error of the weights; OUTPUT: of what the experts give on the text;\n"
           "KL, SAME TOKEN: of next tokens on the text when this layer alone is rounded, in nats\n"
           "%.1f MB -> %.1f MB\n",
           (double)report->source_bytes / 1e6, (double)report->bytes / 1e6);
}

static void print_divergence(const struct bt_divergence *divergence)
{
    if (divergence->rows)
        printf(", \"divergence\": %.6g, \"same_token\": %.6g", bt_divergence_mean(divergence),
               bt_divergence_agreement(divergence));
}

static void print_json(const struct ctl_quantize_report *report)
{
    printf("{\"source_bytes\": %" PRIu64 ", \"bytes\": %" PRIu64, report->source_bytes,
           report->bytes);
    print_divergence(&report->divergence);
    printf(", \"layers\": [");
    for (uint32_t i = 0; i < report->layer_count; i++) {
        const struct ctl_quantize_layer *layer = &report->layers[i];
        printf("%s\n  {\"layer\": %u, \"kind\": \"%s\", \"attention_error\": %.6g, \"ffn_error\": "
               "%.6g, \"output_error_plain\": %.6g, \"output_error_scaled\": %.6g, \"alpha\": %.2g",
               i ? "," : "", layer->layer, layer->is_moe ? "moe" : "dense", layer->attention_error,
               layer->ffn_error, layer->plain_error, layer->scaled_error, layer->alpha);
        print_divergence(&layer->divergence);
        printf("}");
    }
    printf("\n]}\n");
}

int ctl_verb_quantize(int argc, char **argv)
{
    struct bt_error error;
    struct ctl_quantize_report report;
    struct bt_team *team = NULL;
    int code = ctl_parse(options, usage, argc, argv, NULL);
    if (code >= 0)
        return code;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    const struct bt_team_options team_options = {
        .threads = values.threads ? (uint32_t)values.threads
                   : values.cpus  ? 0
                                  : (uint32_t)(cpus > 0 ? cpus : 1),
        .cpus = values.cpus,
    };
    enum bt_status status = bt_team_create(&team_options, &error, &team);
    if (status == BT_OK) {
        const struct ctl_quantize_options quantize = {
            .model = values.model,
            .out = values.out,
            .text = values.text,
            .format = (enum ctl_quantize_format)values.format,
            .keep_dense = !values.dense,
            .keep_head = !values.head,
            .calibration_tokens = (uint32_t)values.tokens,
            .team = team,
            .progress = isatty(STDERR_FILENO) ? stderr : NULL,
        };
        status = ctl_quantize(&quantize, &error, &report);
    }
    bt_team_destroy(team);
    if (status != BT_OK)
        return ctl_fail("quantize", &error);
    if (values.output == 1)
        print_json(&report);
    else
        print_table(&report);
    if (report.unmeasured.text[0])
        fprintf(stderr, "no divergences: %s\n", report.unmeasured.text);
    ctl_quantize_report_finish(&report);
    return CTL_EXIT_OK;
}
