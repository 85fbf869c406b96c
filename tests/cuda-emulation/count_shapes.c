/*
 * The operations of a GPU at modest shapes with the head sizes of DeepSeek-V2-Lite, once each:
 *
 *     count-shapes [attention|positions|rows|experts|draws]
 *
 * Run by count_kernels.py on the emulated GPU, with BATON_EMULATION_COUNTS=FILE. Before the account
 * of its launches, the file gets a line for each case, and what theory says that the kernels of it
 * must move and multiply at least:
 *
 *     case <TAB> NAME
 *     floor <TAB> KERNEL[|KERNEL…] <TAB> bytes of global memory <TAB> multiplications
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/kernels/weight.h"
#include "tests/bench/device_bench.h"

#define PAGE     BT_PAGE_TOKENS
#define MAX_ROWS 320

/* Heads, latents and vocabulary of V2-Lite; the rest small. */
static const struct bt_mla_shape mla = {16, 128, 64, 128, 512, 0.1147f};
static const uint32_t hidden = 512, moe = 256, vocab = 102400;
static const struct bt_route_shape route_shape = {
    8, 2, 1, 1, BT_SCORING_SOFTMAX, BT_TOPK_GREEDY, false, 1.0f};

struct shapes {
    struct bt_device *device;
    const struct bt_kernels *k;
    struct bt_stream *stream;
    FILE *file;
    float *x, *y, *z; /* [MAX_ROWS][widest] */
    void *blocks[256];
    unsigned block_count;
};

/* ---- notes ---- */

static void note(struct shapes *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note(struct shapes *s, const char *format, ...)
{
    va_list arguments;
    device_wait(s->device, s->stream); /* what was launched before is in the file */
    va_start(arguments, format);
    vfprintf(s->file, format, arguments);
    va_end(arguments);
    fflush(s->file);
}

static void note_floor(struct shapes *s, const char *kernels, double bytes, double products)
{
    note(s, "floor\t%s\t%.0f\t%.0f\n", kernels, bytes, products);
}

/* ---- memory ---- */

static void *take(struct shapes *s, size_t bytes)
{
    s->blocks[s->block_count] = device_take(s->device, bytes);
    return s->blocks[s->block_count++];
}

/* All but the first three, which stay. */
static void forget(struct shapes *s)
{
    device_wait(s->device, s->stream);
    while (s->block_count > 3)
        bt_device_free(s->device, s->blocks[--s->block_count]);
}

static float *floats(struct shapes *s, size_t count)
{
    float *result = take(s, count * sizeof(float));
    device_fill(s->device, s->stream, result, count);
    return result;
}

static struct bt_matrix rows_of(struct shapes *s, uint32_t rows, uint32_t cols)
{
    return (struct bt_matrix){
        .data = floats(s, (size_t)rows * cols), .rows = rows, .cols = cols, .dtype = BT_F32};
}

static void copy_in(struct shapes *s, void *to, const void *from, size_t bytes)
{
    struct bt_error error;
    void *pinned = NULL;
    device_must(bt_device_alloc_host(s->device, bytes, &error, &pinned), &error);
    memcpy(pinned, from, bytes);
    bt_device_copy(s->device, s->stream, to, pinned, bytes);
    device_wait(s->device, s->stream);
    bt_device_free_host(s->device, pinned);
}

/* Of one dtype; F32: in rows, else packed. */
static struct bt_matrix weight(struct shapes *s, uint32_t rows, uint32_t cols, enum bt_dtype dtype,
                               enum bt_use use)
{
    if (dtype == BT_F32)
        return rows_of(s, rows, cols);
    size_t bytes = (size_t)rows * cols * bt_dtype_bits(dtype) / 8;
    size_t scale_count =
        dtype == BT_F8_E4M3 ? (size_t)((rows + 127) / 128) * ((cols + 127) / 128) : rows;
    unsigned char *data = malloc(bytes), *groups = malloc((size_t)rows * cols / 128);
    float *scales = malloc(scale_count * sizeof(*scales));
    struct bt_matrix source = {.data = data, .rows = rows, .cols = cols, .dtype = dtype}, packed;
    for (size_t i = 0; i < bytes; i++)
        data[i] = dtype == BT_BF16 ? (i % 2 ? 0x3c : (unsigned char)(i * 37))
                                   : (unsigned char)(0x11 + i % 7 * 0x11);
    for (size_t i = 0; i < scale_count; i++)
        scales[i] = 0.01f;
    if (dtype != BT_BF16)
        source.scales = scales;
    memset(groups, 3, (size_t)rows * cols / 128);
    if (dtype == BT_I4)
        source.group_scales = groups;
    void *out = take(s, s->k->packed_bytes(&source, use, &mla));
    s->k->pack(s->stream, &source, use, &mla, out, &packed);
    device_wait(s->device, s->stream);
    free(data);
    free(scales);
    free(groups);
    return packed;
}

/* ---- attention ---- */

struct attention_case {
    bool decode;
    enum bt_dtype kv, weights;
    uint32_t sequences, rows, context; /* rows and tokens before them: of a sequence */
};

static struct bt_sequence_rows *sequences_of(const struct attention_case *c, uint32_t *ret_pages)
{
    uint32_t each = (c->context + c->rows + PAGE - 1) / PAGE;
    struct bt_sequence_rows *all = calloc(c->sequences, sizeof(*all));
    uint32_t *numbers = calloc((size_t)c->sequences * each, sizeof(*numbers));
    for (uint32_t i = 0; i < c->sequences * each; i++)
        numbers[i] = c->sequences * each - 1 - i;
    for (uint32_t i = 0; i < c->sequences; i++)
        all[i] =
            (struct bt_sequence_rows){numbers + (size_t)i * each, c->context, i * c->rows, c->rows};
    *ret_pages = c->sequences * each;
    return all;
}

static void count_attention(struct shapes *s, const struct attention_case *c)
{
    uint32_t pages, heads = mla.heads, lora = mla.kv_lora_rank, rope = mla.qk_rope_head_dim;
    uint32_t nope = mla.qk_nope_head_dim, v = mla.v_head_dim;
    struct bt_sequence_rows *all = sequences_of(c, &pages);
    struct bt_kv_layer kv = {NULL, c->kv, lora, rope};
    double token_bytes = (double)bt_kv_token_size(&kv);
    double rows = (double)c->sequences * c->rows, tokens = c->context + c->rows;
    /* pairs of a row and a token that it sees */
    double seen = c->sequences * ((double)c->rows * c->context + c->rows * (c->rows + 1) / 2.0);
    size_t pool_bytes = (size_t)(pages * PAGE * token_bytes);
    struct bt_matrix kv_b = weight(s, heads * (nope + v), lora, c->weights, BT_USE_KV_B);
    unsigned char *zeros = calloc(1, pool_bytes);
    kv.data = take(s, pool_bytes);
    copy_in(s, kv.data, zeros, pool_bytes);
    note(s, "case\tmla_%s %s, weights %s, %u x %u rows behind %u\n",
         c->decode ? "decode" : "prefill", bt_dtype_name(c->kv), bt_dtype_name(c->weights),
         c->sequences, c->rows, c->context);
    double element = c->weights == BT_F32 ? 4 : 2;
    double pieces = c->decode ? (double)((c->context + c->rows + 1023) / 1024) : 1;
    if (c->decode) {
        double queries = rows * heads * (lora + rope) * element;
        double results =
            pieces > 1 ? rows * pieces * heads * (lora + 2) * 4 : rows * heads * lora * element;
        note_floor(s, "mla_decode|mla_decode_wgmma|mla_decode_plain",
                   c->sequences * tokens * token_bytes + queries + results,
                   seen * heads * (2.0 * lora + rope));
        note_floor(s, "mla_queries", rows * heads * ((nope + rope) * 4.0 + (nope + rope) * 2.0), 0);
        note_floor(s, "mla_combine",
                   pieces > 1 ? rows * heads * (pieces * (lora + 2) * 4.0 + lora * element) : 0, 0);
        s->k->mla_decode(s->stream, s->x, &mla, &kv_b, all, c->sequences, &kv, s->y);
    } else {
        double expanded = c->sequences * tokens * (heads * (nope + v) + rope) * element;
        note_floor(s, "mla_prefill|mla_prefill_wgmma|mla_prefill_f32",
                   expanded + rows * heads * (nope + rope + v) * 4.0,
                   seen * heads * (nope + rope + v));
        note_floor(s, "gather_latents",
                   c->sequences * tokens * (token_bytes + (lora + rope) * element), 0);
        s->k->mla_prefill(s->stream, s->x, &mla, &kv_b, all, c->sequences, &kv, s->y);
    }
    device_wait(s->device, s->stream);
    free(zeros);
    free((void *)all[0].pages);
    free(all);
    forget(s);
}

static void count_all_attention(struct shapes *s)
{
    static const struct attention_case cases[] = {
        {true, BT_BF16, BT_BF16, 1, 1, 1087},    {true, BT_BF16, BT_BF16, 4, 1, 127},
        {true, BT_F8_E4M3, BT_BF16, 1, 1, 1087}, {true, BT_F8_E4M3, BT_BF16, 4, 1, 127},
        {true, BT_F32, BT_BF16, 1, 1, 127},      {true, BT_F32, BT_F32, 1, 1, 63},
        {false, BT_BF16, BT_BF16, 1, 128, 0},    {false, BT_BF16, BT_BF16, 1, 64, 64},
        {false, BT_F8_E4M3, BT_BF16, 1, 128, 0}, {false, BT_F32, BT_F32, 1, 16, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        count_attention(s, &cases[i]);
}

/* Positions, and the KV that rows leave. */
static void count_positions(struct shapes *s, enum bt_dtype dtype, uint32_t rows)
{
    const struct attention_case c = {true, dtype, dtype, 1, rows, 64};
    uint32_t pages, lora = mla.kv_lora_rank, turned = mla.qk_rope_head_dim;
    struct bt_sequence_rows *all = sequences_of(&c, &pages);
    struct bt_kv_layer kv = {NULL, dtype, lora, turned};
    size_t token_bytes = bt_kv_token_size(&kv);
    struct bt_rope_table table = {floats(s, 512 * turned / 2), floats(s, 512 * turned / 2),
                                  turned / 2, 512};
    struct bt_matrix norm = rows_of(s, 1, lora);
    kv.data = take(s, pages * PAGE * token_bytes);
    note(s, "case\tpositions %s, %u rows\n", bt_dtype_name(dtype), rows);
    note_floor(s, "kv_write", (double)rows * ((lora + turned) * 4 + token_bytes + turned * 4), 0);
    note_floor(s, "rope_q", (double)rows * (mla.heads * turned * 8 + turned * 4), 0);
    s->k->kv_write(s->stream, s->x, &norm, 1e-6f, &table, all, 1, &kv);
    s->k->rope_q(s->stream, s->x, &mla, &table, all, 1);
    struct bt_page_span spans[2] = {{0, 1, (uint32_t)(PAGE * token_bytes), 0},
                                    {PAGE * token_bytes, 2, (uint32_t)(PAGE * token_bytes), 0}};
    struct bt_page_span *there = take(s, sizeof(spans));
    copy_in(s, there, spans, sizeof(spans));
    note_floor(s, "page_hash", 2.0 * PAGE * token_bytes, 0);
    s->k->hash_pages(s->stream, kv.data, there, 2, take(s, 16));
    device_wait(s->device, s->stream);
    free((void *)all[0].pages);
    free(all);
    forget(s);
}

/* ---- rows ---- */

static void count_rows(struct shapes *s, uint32_t rows)
{
    struct bt_matrix norm = rows_of(s, 1, hidden), table = weight(s, 8, hidden, BT_F32, 0);
    uint32_t tokens[MAX_ROWS] = {0}, wanted[4] = {3, 5, 6, 7};
    double all = (double)rows * hidden * 4;
    struct bt_matrix half = table;
    half.dtype = BT_BF16;
    for (uint32_t i = 0; i < rows; i++)
        tokens[i] = i % 8;
    note(s, "case\trows, %u\n", rows);
    note_floor(s, "rms_norm", 2 * all + hidden * 4, 0);
    s->k->rms_norm(s->stream, s->x, rows, hidden, hidden, &norm, 1e-6f, s->z);
    note(s, "case\trows added, %u\n", rows);
    note_floor(s, "rms_norm", 4 * all + hidden * 4, 0);
    note_floor(s, "add", 3 * all, 0);
    note_floor(s, "zero", all, 0);
    s->k->add_rms_norm(s->stream, s->x, s->y, rows, hidden, &norm, 1e-6f, s->z);
    s->k->add(s->stream, s->x, s->y, (size_t)rows * hidden);
    s->k->zero(s->stream, s->z, (size_t)rows * hidden);
    double embedded = rows < 8 ? rows : 8;
    note(s, "case\trows embedded, %u\n", rows);
    note_floor(s, "embed", all + embedded * hidden * 4, 0);
    s->k->embed(s->stream, &table, tokens, rows, s->z);
    note(s, "case\trows embedded bf16, %u\n", rows);
    note_floor(s, "embed", all + embedded * hidden * 2, 0);
    s->k->embed(s->stream, &half, tokens, rows, s->z);
    note_floor(s, "gather_rows", 2.0 * 4 * hidden * 4, 0);
    s->k->gather_rows(s->stream, s->z, hidden, wanted, 4);
    forget(s);
}

/* The tokens of a batch: given, or those that were drawn last. */
static void count_tokens(struct shapes *s, bool is_drawn, uint32_t rows)
{
    uint32_t tokens[MAX_ROWS] = {0}, from[MAX_ROWS];
    struct bt_stage stage = {
        .tokens = tokens, .token_from = from, .rows = rows, .padded_rows = rows};
    for (uint32_t i = 0; i < rows; i++)
        from[i] = is_drawn ? rows - 1 - i : BT_TOKEN_GIVEN;
    note(s, "case\ttokens %s, %u rows\n", is_drawn ? "drawn" : "given", rows);
    note_floor(s, "resolve_tokens", 3.0 * 4 * rows, 0);
    s->k->stage(s->stream, &stage);
    s->k->stage(s->stream, &(struct bt_stage){0}); /* of none: its lists end here */
}

/* ---- experts ---- */

/* How many the routing chose. */
static uint32_t chosen_experts(struct shapes *s, const uint32_t *begin, uint32_t experts)
{
    struct bt_error error;
    void *pinned = NULL;
    uint32_t chosen = 0;
    device_must(bt_device_alloc_host(s->device, (experts + 1) * 4, &error, &pinned), &error);
    bt_device_copy(s->device, s->stream, pinned, begin, (experts + 1) * 4);
    device_wait(s->device, s->stream);
    for (uint32_t e = 0; e < experts; e++)
        chosen += ((uint32_t *)pinned)[e + 1] > ((uint32_t *)pinned)[e];
    bt_device_free_host(s->device, pinned);
    return chosen;
}

static void count_experts(struct shapes *s, uint32_t rows, enum bt_dtype dtype)
{
    uint32_t experts = route_shape.experts, each = route_shape.experts_per_token;
    uint32_t picks = rows * each;
    struct bt_matrix all[3][8], gate = rows_of(s, experts, hidden), bias = rows_of(s, 1, experts);
    struct bt_routing routing = {take(s, picks * 4), take(s, picks * 4), take(s, picks * 4),
                                 take(s, (experts + 1) * 4)};
    struct bt_expert_weights weights = {all[0], all[1], all[2], experts};
    for (uint32_t e = 0; e < experts; e++) {
        all[0][e] = weight(s, moe, hidden, dtype, BT_USE_LINEAR);
        all[1][e] = weight(s, moe, hidden, dtype, BT_USE_LINEAR);
        all[2][e] = weight(s, hidden, moe, dtype, BT_USE_LINEAR);
    }
    double input = dtype == BT_F32 ? 4 : dtype == BT_BF16 ? 2 : 1, output = dtype == BT_F32 ? 4 : 2;
    note(s, "case\texperts %s, %u rows\n", bt_dtype_name(dtype), rows);
    note_floor(s, "moe_scores", 4.0 * hidden * (rows + experts), (double)rows * hidden * experts);
    s->k->moe_route(s->stream, s->x, rows, &gate, &bias, &route_shape, &routing);
    uint32_t chosen = chosen_experts(s, routing.begin, experts);
    double weight_bytes = (double)chosen * hidden * moe * bt_dtype_bits(dtype) / 8;
    double used = rows;
    double grouped = 3 * weight_bytes + used * hidden * input + picks * moe * (2 * 4 + input) +
                     picks * hidden * output;
    char names[160];
    const char *kind = dtype == BT_F32       ? "f32"
                       : dtype == BT_BF16    ? "bf16"
                       : dtype == BT_F8_E4M3 ? "f8"
                       : dtype == BT_I8      ? "i8"
                                             : "i4";
    snprintf(names, sizeof(names),
             "grouped_gemm_%s|grouped_gemm_%s_few|grouped_gemm_%s_many|grouped_gemm_%s_wgmma", kind,
             kind, kind, kind);
    note_floor(s, names, grouped, 3.0 * picks * hidden * moe);
    note_floor(s, "quantise_wide|quantise_int8", used * hidden * (4 + input), 0);
    note_floor(s, "silu_wide|silu_int8", (double)picks * moe * (8 + input), 0);
    note_floor(s, "unpermute", picks * hidden * output + 8.0 * rows * hidden, 0);
    s->k->moe_experts(s->stream, s->x, rows, &route_shape, &routing, &weights, s->y);
    forget(s);
}

/* ---- draws ---- */

static void count_draws(struct shapes *s, const char *name, const struct bt_draw *like,
                        float spread)
{
    enum { rows = 2 };
    struct bt_draw draws[rows] = {*like, *like};
    static const uint32_t changed[4] = {7, 900, 5, 77777};
    struct bt_adjust adjusts[rows * 4];
    draws[1].adjust_begin = 4;
    for (uint32_t i = 0; i < rows * 4; i++)
        adjusts[i] = (struct bt_adjust){.token = changed[i % 4]};
    float *logits = malloc(rows * vocab * sizeof(*logits));
    for (uint32_t i = 0; i < rows * vocab; i++) /* a few far above the rest, as a model's are */
        logits[i] = i % 5003 == 11 ? spread : device_filler(i);
    copy_in(s, s->x, logits, rows * vocab * sizeof(*logits));
    free(logits);
    uint32_t *tokens = take(s, rows * 4);
    struct bt_logprobs *logprobs = take(s, rows * sizeof(*logprobs));
    note(s, "case\tdraw %s\n", name);
    double read = rows * vocab * (4 + 4.0 / 128), again = like->logprobs ? 2 : 1;
    note_floor(s, "sample_maxima", again * read, 0);
    note_floor(s, "sample_sums", like->temperature > 0 ? read : 0, 0);
    s->k->draw(s->stream, s->x, rows, vocab, draws, adjusts, tokens, logprobs);
    forget(s);
}

static void count_all_positions(struct shapes *s)
{
    count_positions(s, BT_BF16, 16);
    count_positions(s, BT_F8_E4M3, 64);
}

static void count_all_rows(struct shapes *s)
{
    count_rows(s, 8);
    count_rows(s, 64);
    count_tokens(s, false, 8);
    count_tokens(s, true, 64);
}

static void count_all_experts(struct shapes *s)
{
    static const enum bt_dtype formats[] = {BT_BF16, BT_F8_E4M3, BT_I8, BT_I4, BT_F32};
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
        count_experts(s, 8, formats[i]);
        count_experts(s, formats[i] == BT_F32 ? 64 : MAX_ROWS, formats[i]);
    }
}

static void count_all_draws(struct shapes *s)
{
    count_draws(s, "greedy", &(struct bt_draw){.temperature = 0}, 12);
    count_draws(s, "top-p", &(struct bt_draw){.temperature = 0.7f, .top_p = 0.95f}, 12);
    count_draws(s, "top-p, flat", &(struct bt_draw){.temperature = 1, .top_p = 0.95f}, 1);
    count_draws(s, "logprobs, adjusted",
                &(struct bt_draw){.temperature = 0.7f,
                                  .top_p = 1,
                                  .top_k = 20,
                                  .logprobs = 4,
                                  .bias_count = 1,
                                  .masked_count = 1,
                                  .seen_count = 2,
                                  .repetition = 1.1f},
                12);
}

static const struct {
    const char *name;
    void (*count)(struct shapes *s);
} groups[] = {
    {"attention", count_all_attention}, {"positions", count_all_positions},
    {"rows", count_all_rows},           {"experts", count_all_experts},
    {"draws", count_all_draws},
};
#define GROUPS (sizeof(groups) / sizeof(groups[0]))

int main(int argc, char **argv)
{
    struct shapes s = {0};
    struct bt_error error;
    const char *path = getenv("BATON_EMULATION_COUNTS");
    size_t known = 0;
    while (argc == 2 && known < GROUPS && strcmp(argv[1], groups[known].name) != 0)
        known++;
    if (argc > 2 || known == GROUPS || !path) {
        fprintf(stderr,
                "usage: BATON_EMULATION_COUNTS=FILE %s [attention|positions|rows|experts|draws]\n",
                argv[0]);
        return 2;
    }
    int refused = device_open("count-shapes", "cuda", NULL, 0, &s.device);
    if (refused)
        return refused;
    s.file = fopen(path, "a");
    if (!s.file) {
        perror(path);
        return 1;
    }
    s.k = s.device->kernels;
    const struct bt_stream_limits limits = {
        .max_rows = MAX_ROWS,
        .max_cols = hidden,
        .hidden = hidden,
        .moe_intermediate = moe,
        .experts = route_shape.experts,
        .experts_per_token = route_shape.experts_per_token,
        .mla = mla,
        .vocab_size = vocab,
        .max_adjusts = 8,
    };
    device_must(bt_device_stream_create(s.device, &limits, NULL, &error, &s.stream), &error);
    s.x = floats(&s, MAX_ROWS * 16 * 192);
    s.y = floats(&s, MAX_ROWS * 16 * 192);
    s.z = floats(&s, MAX_ROWS * hidden);
    for (size_t i = 0; i < GROUPS; i++)
        if (argc == 1 || strcmp(argv[1], groups[i].name) == 0) {
            device_fill(s.device, s.stream, s.x, MAX_ROWS * 16 * 192); /* whatever ran before */
            groups[i].count(&s);
        }
    device_wait(s.device, s.stream);
    fclose(s.file);
    while (s.block_count > 0)
        bt_device_free(s.device, s.blocks[--s.block_count]);
    bt_device_stream_destroy(s.device, s.stream);
    bt_device_close(s.device);
    return 0;
}
