/*
 * The kernels of a GPU, each against its floor: gpu [--device cuda:N] [--quick]
 *
 *     figure NAME TIME us FLOOR RATIO
 *
 * FLOOR is the larger of bytes / bandwidth and operations / peak, both measured in this run: a copy
 * inside the GPU's memory, and a product of 8192 x 8192 in bf16 (8-bit products are held to twice
 * that). RATIO is FLOOR / TIME: 1 is the limit. Times are the best of five runs of many launches
 * one after the other, without graphs.
 *
 * Shapes are those of DeepSeek-V2-Lite and V3 (of 32 of its 256 experts, the part of one rank of
 * eight). --quick: one launch each of small shapes, whose figures say nothing; it shows that all of
 * this runs. Exit 77: no GPU, with the reason.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/bench/device_bench.h"

#define PAGE BT_PAGE_TOKENS

struct shape {
    const char *name;
    uint32_t hidden, heads, dense, moe, experts, picks, vocab;
    struct bt_mla_shape mla;
    struct bt_route_shape route;
};

static const struct shape lite = {
    .name = "v2-lite",
    .hidden = 2048,
    .dense = 10944,
    .moe = 1408,
    .experts = 64,
    .picks = 6,
    .vocab = 102400,
    .mla = {16, 128, 64, 128, 512, 0.1147f},
    .route = {64, 6, 1, 1, BT_SCORING_SOFTMAX, BT_TOPK_GREEDY, false, 1.0f},
};
static const struct shape v3 = {
    .name = "v3",
    .hidden = 7168,
    .dense = 18432,
    .moe = 2048,
    .experts = 32,
    .picks = 8,
    .vocab = 129280,
    .mla = {128, 128, 64, 128, 512, 0.1352f},
    .route = {32, 8, 8, 4, BT_SCORING_SIGMOID, BT_TOPK_NOAUX_TC, true, 2.5f},
};
static const struct shape small = {
    .name = "small",
    .hidden = 128,
    .dense = 192,
    .moe = 128,
    .experts = 8,
    .picks = 2,
    .vocab = 512,
    .mla = {2, 32, 16, 32, 64, 0.14f},
    .route = {8, 2, 1, 1, BT_SCORING_SOFTMAX, BT_TOPK_GREEDY, false, 1.0f},
};

struct bench {
    struct bt_device *device;
    const struct bt_kernels *k;
    struct bt_stream *stream;
    const struct shape *shape;
    bool quick;
    uint32_t max_rows;
    double read, ops;  /* bytes, operations a second */
    float *x, *y, *z;  /* [max_rows][widest] */
    void *blocks[512]; /* of this shape */
    unsigned block_count;
};

static void *take(struct bench *b, size_t bytes)
{
    b->blocks[b->block_count] = device_take(b->device, bytes);
    return b->blocks[b->block_count++];
}

static void wait_for(struct bench *b)
{
    device_wait(b->device, b->stream);
}

static float *floats(struct bench *b, size_t count)
{
    float *result = take(b, count * sizeof(float));
    device_fill(b->device, b->stream, result, count);
    return result;
}

/* ---- weights ---- */

static size_t scales_of(enum bt_dtype dtype, uint32_t rows, uint32_t cols)
{
    return dtype == BT_F8_E4M3 ? (size_t)((rows + 127) / 128) * ((cols + 127) / 128) : rows;
}

/* Packed; its rows are made on the host and forgotten. */
static struct bt_matrix weight(struct bench *b, uint32_t rows, uint32_t cols, enum bt_dtype dtype,
                               enum bt_use use)
{
    size_t bytes = (size_t)rows * cols * bt_dtype_bits(dtype) / 8;
    unsigned char *data = malloc(bytes), *groups = NULL;
    float *scales = malloc(scales_of(dtype, rows, cols) * sizeof(*scales));
    struct bt_matrix source = {.data = data, .rows = rows, .cols = cols, .dtype = dtype}, packed;
    for (size_t i = 0; i < bytes; i++)
        data[i] = dtype == BT_BF16 ? (i % 2 ? 0x3c : (unsigned char)(i * 37)) /* about 0.01 */
                                   : (unsigned char)(0x11 + i % 7 * 0x11);
    for (size_t i = 0; i < scales_of(dtype, rows, cols); i++)
        scales[i] = 0.01f;
    if (dtype != BT_BF16)
        source.scales = scales;
    if (dtype == BT_I4) {
        groups = malloc((size_t)rows * cols / 128);
        memset(groups, 3, (size_t)rows * cols / 128);
        source.group_scales = groups;
    }
    void *out = take(b, b->k->packed_bytes(&source, use, &b->shape->mla));
    b->k->pack(b->stream, &source, use, &b->shape->mla, out, &packed);
    wait_for(b);
    free(data);
    free(scales);
    free(groups);
    return packed;
}

/* In rows of f32. */
static struct bt_matrix rows_of(struct bench *b, uint32_t rows, uint32_t cols)
{
    return (struct bt_matrix){
        .data = floats(b, (size_t)rows * cols), .rows = rows, .cols = cols, .dtype = BT_F32};
}

/* ---- time ---- */

struct run {
    void (*op)(struct bench *b, const void *arguments);
    const void *arguments;
};

struct timed {
    struct bench *bench;
    struct run run;
};

static void run_timed(void *context)
{
    const struct timed *timed = context;
    timed->run.op(timed->bench, timed->run.arguments);
}

/* Seconds of one, the best. */
static double time_of(struct bench *b, struct run run)
{
    struct timed timed = {b, run};
    return device_seconds(b->device, b->stream, b->quick, run_timed, &timed);
}

static void figure(struct bench *b, const char *name, double bytes, double ops, struct run run)
{
    double seconds = time_of(b, run), floor = bytes / b->read;
    floor = ops / b->ops > floor ? ops / b->ops : floor;
    printf("figure %s/%s %.2f us %.2f %.3f\n", b->shape->name, name, seconds * 1e6, floor * 1e6,
           floor / seconds);
    fflush(stdout);
}

struct products {
    const struct bt_linear *linears;
    uint32_t count, rows;
};

static void linear_op(struct bench *b, const void *arguments)
{
    const struct products *p = arguments;
    b->k->linear(b->stream, b->x, p->rows, p->linears, p->count);
}

/* ---- what is timed ---- */

struct attention {
    const struct bt_matrix *kv_b;
    struct bt_kv_layer kv;
    struct bt_sequence_rows *sequences;
    uint32_t count;
    bool decode;
};

static void attention_op(struct bench *b, const void *arguments)
{
    const struct attention *a = arguments;
    (a->decode ? b->k->mla_decode : b->k->mla_prefill)(b->stream, b->x, &b->shape->mla, a->kv_b,
                                                       a->sequences, a->count, &a->kv, b->y);
}

struct attention_case {
    bool decode;
    enum bt_dtype dtype;
    uint32_t rows, context; /* tokens before the rows */
};

static void time_attention(struct bench *b, const struct attention_case *c)
{
    const struct bt_mla_shape *m = &b->shape->mla;
    char name[96];
    uint32_t sequences = c->decode ? c->rows : 1, each = c->rows / sequences;
    uint32_t pages = (c->context + each + PAGE - 1) / PAGE, token_bytes;
    struct bt_matrix kv_b = weight(b, m->heads * (m->qk_nope_head_dim + m->v_head_dim),
                                   m->kv_lora_rank, BT_BF16, BT_USE_KV_B);
    token_bytes = c->dtype == BT_F8_E4M3 ? m->kv_lora_rank + (m->kv_lora_rank + 127) / 128 * 4 +
                                               m->qk_rope_head_dim * 2
                                         : (m->kv_lora_rank + m->qk_rope_head_dim) * 2;
    uint32_t *numbers = calloc((size_t)sequences * pages, sizeof(*numbers));
    struct bt_sequence_rows *rows = calloc(sequences, sizeof(*rows));
    for (uint32_t i = 0; i < sequences * pages; i++)
        numbers[i] = i;
    for (uint32_t i = 0; i < sequences; i++)
        rows[i] =
            (struct bt_sequence_rows){numbers + (size_t)i * pages, c->context, i * each, each};
    struct attention a = {
        .kv_b = &kv_b,
        .kv = {take(b, (size_t)sequences * pages * PAGE * token_bytes), c->dtype, m->kv_lora_rank,
               m->qk_rope_head_dim},
        .sequences = rows,
        .count = sequences,
        .decode = c->decode,
    };
    double seen = (double)each * c->context + (double)each * (each + 1) / 2; /* of a sequence */
    double width = c->decode ? 2.0 * m->kv_lora_rank + m->qk_rope_head_dim
                             : m->qk_nope_head_dim + m->qk_rope_head_dim + m->v_head_dim;
    double ops = 2 * sequences * seen * m->heads * width;
    double bytes =
        (double)sequences * (c->context + each) * token_bytes + 2.0 * kv_b.rows * kv_b.cols;
    snprintf(name, sizeof(name), "mla_%s/%s/%ux%u", c->decode ? "decode" : "prefill",
             bt_dtype_name(c->dtype), c->rows, c->context);
    figure(b, name, bytes, ops, (struct run){attention_op, &a});
    free(numbers);
    free(rows);
}

static void time_linear(struct bench *b, const char *what, uint32_t rows, uint32_t cols,
                        uint32_t outs, enum bt_dtype dtype)
{
    char name[96];
    struct bt_matrix w = weight(b, outs, cols, dtype, BT_USE_LINEAR);
    struct bt_linear linear = {&w, b->y};
    struct products p = {&linear, 1, rows};
    double bytes = (double)outs * cols * bt_dtype_bits(dtype) / 8 + 4.0 * rows * (cols + outs);
    snprintf(name, sizeof(name), "linear/%s/%s/%u", what, bt_dtype_name(dtype), rows);
    figure(b, name, bytes, 2.0 * rows * cols * outs / (dtype == BT_BF16 ? 1 : 2),
           (struct run){linear_op, &p});
}

struct experts {
    uint32_t rows;
    struct bt_matrix gate, bias;
    struct bt_routing routing;
    struct bt_expert_weights weights;
};

static void route_op(struct bench *b, const void *arguments)
{
    const struct experts *e = arguments;
    b->k->moe_route(b->stream, b->x, e->rows, &e->gate, &e->bias, &b->shape->route, &e->routing);
}

static void experts_op(struct bench *b, const void *arguments)
{
    const struct experts *e = arguments;
    b->k->moe_experts(b->stream, b->x, e->rows, &b->shape->route, &e->routing, &e->weights, b->y);
}

static void time_experts(struct bench *b, uint32_t rows, enum bt_dtype dtype)
{
    const struct shape *s = b->shape;
    char name[96];
    uint32_t picks = rows * s->picks;
    struct bt_matrix *all = calloc((size_t)3 * s->experts, sizeof(*all));
    struct experts e = {
        .rows = rows,
        .gate = rows_of(b, s->experts, s->hidden),
        .bias = rows_of(b, 1, s->experts),
        .routing = {take(b, picks * 4), take(b, picks * 4), take(b, picks * 4),
                    take(b, (s->experts + 1) * 4)},
        .weights = {all, all + s->experts, all + (size_t)2 * s->experts, s->experts},
    };
    for (uint32_t i = 0; i < 3 * s->experts; i++)
        all[i] = i < 2 * s->experts ? weight(b, s->moe, s->hidden, dtype, BT_USE_LINEAR)
                                    : weight(b, s->hidden, s->moe, dtype, BT_USE_LINEAR);
    snprintf(name, sizeof(name), "moe_route/%u", rows);
    figure(b, name, 4.0 * s->hidden * (rows + s->experts), 0, (struct run){route_op, &e});
    /* All of them, where the picks are as many; else as many as are expected to be chosen. */
    double chosen = s->experts;
    for (uint32_t i = 0, left = picks; i == 0; i++) {
        double missed = 1;
        for (; left > 0 && missed > 1e-9; left--)
            missed *= 1 - 1.0 / s->experts;
        chosen *= 1 - missed;
    }
    double matrix = (double)s->hidden * s->moe;
    snprintf(name, sizeof(name), "moe_experts/%s/%u", bt_dtype_name(dtype), rows);
    figure(b, name, 3 * chosen * matrix * bt_dtype_bits(dtype) / 8 + 8.0 * rows * s->hidden,
           6.0 * picks * matrix / (dtype == BT_BF16 ? 1 : 2), (struct run){experts_op, &e});
    free(all);
}

struct norm {
    struct bt_matrix weight;
    uint32_t rows;
};

static void norm_op(struct bench *b, const void *arguments)
{
    const struct norm *n = arguments;
    b->k->add_rms_norm(b->stream, b->x, b->y, n->rows, b->shape->hidden, &n->weight, 1e-6f, b->z);
}

static void time_norm(struct bench *b, uint32_t rows)
{
    char name[64];
    struct norm n = {rows_of(b, 1, b->shape->hidden), rows};
    snprintf(name, sizeof(name), "add_rms_norm/%u", rows);
    figure(b, name, 16.0 * rows * b->shape->hidden, 0, (struct run){norm_op, &n});
}

struct drawing {
    struct bt_draw *draws;
    uint32_t rows;
    uint32_t *tokens;
};

static void draw_op(struct bench *b, const void *arguments)
{
    const struct drawing *d = arguments;
    b->k->draw(b->stream, b->x, d->rows, b->shape->vocab, d->draws, NULL, d->tokens, NULL);
}

static void time_draw(struct bench *b, uint32_t rows, float temperature)
{
    char name[64];
    struct bt_draw *draws = calloc(rows, sizeof(*draws));
    for (uint32_t i = 0; i < rows; i++)
        draws[i] = (struct bt_draw){.seed = i, .temperature = temperature, .top_p = 0.95f};
    struct drawing d = {draws, rows, take(b, rows * 4)};
    snprintf(name, sizeof(name), "draw/%s/%u", temperature > 0 ? "top_p" : "greedy", rows);
    figure(b, name, 4.0 * rows * b->shape->vocab, 0, (struct run){draw_op, &d});
    free(draws);
}

/* ---- a shape ---- */

static void release(struct bench *b)
{
    wait_for(b);
    while (b->block_count > 0)
        bt_device_free(b->device, b->blocks[--b->block_count]);
}

static void open_shape(struct bench *b, const struct shape *shape, uint32_t max_rows)
{
    struct bt_error error;
    const struct bt_stream_limits limits = {
        .max_rows = max_rows,
        .max_cols = shape->dense > shape->hidden ? shape->dense : shape->hidden,
        .hidden = shape->hidden,
        .moe_intermediate = shape->moe,
        .experts = shape->experts,
        .experts_per_token = shape->picks,
        .mla = shape->mla,
        .vocab_size = shape->vocab,
    };
    b->shape = shape;
    b->max_rows = max_rows;
    device_must(bt_device_stream_create(b->device, &limits, NULL, &error, &b->stream), &error);
    const struct bt_mla_shape *m = &shape->mla;
    size_t widest = (size_t)m->heads * (m->qk_nope_head_dim + m->qk_rope_head_dim);
    widest = shape->dense > widest ? shape->dense : widest;
    size_t count = max_rows * widest, logits = (size_t)(b->quick ? 4 : 64) * shape->vocab;
    count = logits > count ? logits : count;
    b->x = floats(b, count);
    b->y = floats(b, count);
    b->z = floats(b, (size_t)max_rows * shape->hidden);
}

/* After the arrays, which stay. */
static void forget(struct bench *b)
{
    wait_for(b);
    while (b->block_count > 3)
        bt_device_free(b->device, b->blocks[--b->block_count]);
}

static void close_shape(struct bench *b)
{
    release(b);
    bt_device_stream_destroy(b->device, b->stream);
}

static void measure_limits(struct bench *b)
{
    struct device_rates rates = device_rates_measure(b->device, b->quick);
    b->read = rates.memory_bytes;
    b->ops = rates.bf16_ops;
    printf("limits: %.0f GB/s, %.1f TFLOP/s in bf16\n", b->read / 1e9, b->ops / 1e12);
}

static void time_shape(struct bench *b, const struct shape *shape)
{
    static const enum bt_dtype formats[] = {BT_BF16, BT_F8_E4M3, BT_I4};
    uint32_t few = b->quick ? 2 : 64, many = b->quick ? 8 : 2048, context = b->quick ? 70 : 4096;
    const struct attention_case attentions[] = {
        {true, BT_BF16, 1, context},      {true, BT_BF16, few, context},
        {true, BT_F8_E4M3, few, context}, {false, BT_BF16, many, 0},
        {false, BT_BF16, many, context},  {false, BT_F8_E4M3, many, context},
    };
    open_shape(b, shape, many);
    for (size_t i = 0; i < sizeof(attentions) / sizeof(attentions[0]); i++) {
        time_attention(b, &attentions[i]);
        forget(b);
    }
    for (size_t i = 0; i < 2; i++) {
        time_linear(b, "down", few, shape->dense, shape->hidden, formats[i]);
        time_linear(b, "down", many, shape->dense, shape->hidden, formats[i]);
        forget(b);
    }
    for (size_t i = 0; i < 3; i++) {
        time_experts(b, few, formats[i]);
        forget(b);
        time_experts(b, many, formats[i]);
        forget(b);
    }
    time_norm(b, few);
    time_norm(b, many);
    time_draw(b, b->quick ? 4 : 64, 0.0f);
    time_draw(b, b->quick ? 4 : 64, 0.7f);
    close_shape(b);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"device", required_argument, NULL, 'd'},
                                            {"quick", no_argument, NULL, 'q'},
                                            {NULL, 0, NULL, 0}};
    struct bench b = {0};
    struct bt_device_info info;
    const char *name = "cuda";
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option != 'd' && option != 'q') {
            fprintf(stderr, "usage: gpu [--device cuda:N] [--quick]\n");
            return 2;
        }
        name = option == 'd' ? optarg : name;
        b.quick = b.quick || option == 'q';
    }
    int refused = device_open("gpu", name, NULL, 0, &b.device);
    if (refused)
        return refused;
    if (b.device->memory == BT_MEMORY_HOST) {
        fprintf(stderr, "gpu: device %s is the cpu here, whose kernels tests/bench/engine times\n",
                name);
        return DEVICE_SKIPPED;
    }
    bt_device_info(b.device, &info);
    printf("%s: %s\n", b.device->name, info.description);
    b.k = b.device->kernels;
    measure_limits(&b);
    if (b.quick) {
        time_shape(&b, &small);
    } else {
        time_shape(&b, &lite);
        time_shape(&b, &v3);
    }
    bt_device_close(b.device);
    return 0;
}
