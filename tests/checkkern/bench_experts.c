/*
 * Experts, dense MLPs and routing at the shapes of Lite and V3, against the reading of the weights
 * that rows chose or the peak of the instruction, whichever binds. Rows choose other experts in
 * every call, so that weights of few rows come from memory.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/base/clock.h"
#include "common/kernels/tiles.h"
#include "tests/bench/limits.h"
#include "tests/checkkern/check.h"

#define MAX_ROWS    2048
#define MAX_EXPERTS 256
#define MAX_PICKS   8
#define SHAPE_NS    (60 * BT_NS_PER_MS)
/* What would take longer at best is left out. */
#define MOST_SECONDS 1.5

/* Lite's experts; its dense layer is 7.8 times as wide. */
#define HIDDEN  2048
#define INNER   1408
#define DENSE   10944
#define EXPERTS 64
#define PICKS   6

static const uint32_t row_counts[] = {1, 8, 32, 512, 2048};
static const enum bt_dtype dtypes[] = {BT_BF16, BT_I8, BT_I4, BT_F8_E4M3};

struct bench {
    const struct bt_kernels *kernels;
    struct bt_stream *stream;
    char *data; /* of all experts in bf16; the dense one is smaller */
    float *scales;
    uint8_t *group_scales;
    float *x, *out, *weights;
    uint32_t *experts, *order, begin[MAX_EXPERTS + 1];
};

static void *map(size_t bytes, int fill)
{
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    BT_ASSERT(data != MAP_FAILED);
    madvise(data, bytes, MADV_HUGEPAGE);
    memset(data, fill, bytes);
    return data;
}

#define DATA_BYTES  ((size_t)EXPERTS * 3 * HIDDEN * INNER * 2)
#define SCALE_BYTES ((size_t)DENSE * HIDDEN / 128)
#define ROW_BYTES   ((size_t)MAX_ROWS * 7168 * sizeof(float))
#define PICK_BYTES  ((size_t)MAX_ROWS * MAX_PICKS * sizeof(uint32_t))

static void bench_create(struct bench *b, const struct bt_kernels *kernels)
{
    struct bt_stream_limits limits = {.max_rows = MAX_ROWS,
                                      .max_cols = DENSE,
                                      .hidden = HIDDEN,
                                      .moe_intermediate = INNER,
                                      .experts = MAX_EXPERTS,
                                      .experts_per_token = MAX_PICKS};
    *b = (struct bench){.kernels = kernels,
                        .stream = check_stream(&limits),
                        .data = map(DATA_BYTES, 0x33),
                        .scales = map(SCALE_BYTES, 0),
                        .group_scales = map(SCALE_BYTES, 3),
                        .x = map(ROW_BYTES, 0x33),
                        .out = map(ROW_BYTES, 0),
                        .weights = map(PICK_BYTES, 0),
                        .experts = map(PICK_BYTES, 0),
                        .order = map(PICK_BYTES, 0)};
    for (size_t i = 0; i < SCALE_BYTES / sizeof(float); i++)
        b->scales[i] = 1e-3f;
}

static void bench_destroy(struct bench *b)
{
    munmap(b->data, DATA_BYTES);
    munmap(b->scales, SCALE_BYTES);
    munmap(b->group_scales, SCALE_BYTES);
    munmap(b->x, ROW_BYTES);
    munmap(b->out, ROW_BYTES);
    munmap(b->weights, PICK_BYTES);
    munmap(b->experts, PICK_BYTES);
    munmap(b->order, PICK_BYTES);
    bt_stream_destroy(b->stream);
}

static struct bt_matrix matrix_of(const struct bench *b, uint32_t rows, uint32_t cols,
                                  enum bt_dtype dtype, size_t *offset)
{
    struct bt_matrix w = {.data = b->data + *offset,
                          .rows = rows,
                          .cols = cols,
                          .dtype = dtype,
                          .layout = BT_LAYOUT_TILES,
                          .scales = b->scales,
                          .group_scales = b->group_scales};
    *offset += bt_tiles_of(rows, BT_TILE_OUTS) * bt_panel_tiles(&w) * bt_tile_bytes(dtype);
    return w;
}

/* The best of some calls, and of the limits beside them. */
struct timing {
    int64_t ns;
    double read, ops;
};

static void measure(struct timing *t, const struct bench *b, enum limit_unit unit, int64_t ns)
{
    double read = limit_read(NULL), ops = limit_ops(b->kernels->name, unit, NULL);
    t->ns = t->ns == 0 || ns < t->ns ? ns : t->ns;
    t->read = read > t->read ? read : t->read;
    t->ops = ops > t->ops ? ops : t->ops;
}

static void figure(const struct bench *b, const char *name, uint32_t rows, double bytes, double ops,
                   const struct timing *t)
{
    bool reads = bytes / t->read > ops / t->ops;
    double value = (reads ? bytes : ops) / (double)t->ns * 1e9, limit = reads ? t->read : t->ops;
    printf("figure %s/%s/%u %.2f %s %.2f %.3f\n", b->kernels->name, name, rows, value / 1e9,
           reads ? "GB/s" : "GFLOP/s", limit / 1e9, value / limit);
}

static enum limit_unit unit_of(enum bt_dtype dtype)
{
    return dtype == BT_I8 || dtype == BT_I4 ? LIMIT_INT8 : LIMIT_BF16;
}

/* Each row has six experts in turn; `call` moves where it begins. How many are used. */
static uint32_t choose(struct bench *b, uint32_t rows, uint32_t call)
{
    uint32_t used = 0, at = 0;
    for (uint32_t i = 0; i < rows * PICKS; i++)
        b->experts[i] = (call * rows * PICKS + i) % EXPERTS;
    for (uint32_t e = 0; e < EXPERTS; e++) {
        b->begin[e] = at;
        for (uint32_t i = 0; i < rows * PICKS; i++)
            if (b->experts[i] == e)
                b->order[at++] = i;
        used += at > b->begin[e];
    }
    b->begin[EXPERTS] = at;
    return used;
}

static void bench_experts(struct bench *b, enum bt_dtype dtype, uint32_t rows)
{
    struct bt_matrix gates[EXPERTS], ups[EXPERTS], downs[EXPERTS];
    struct bt_expert_weights w = {gates, ups, downs, EXPERTS};
    struct bt_route_shape shape = {.experts = EXPERTS, .experts_per_token = PICKS};
    struct bt_routing routing = {b->experts, b->weights, b->order, b->begin};
    struct timing t = {0};
    double ops = 6.0 * rows * PICKS * HIDDEN * INNER;
    size_t bytes = 0;
    uint32_t used = 0;
    char name[64];
    for (uint32_t e = 0; e < EXPERTS; e++) {
        gates[e] = matrix_of(b, INNER, HIDDEN, dtype, &bytes);
        ups[e] = matrix_of(b, INNER, HIDDEN, dtype, &bytes);
        downs[e] = matrix_of(b, HIDDEN, INNER, dtype, &bytes);
    }
    if (ops > MOST_SECONDS * limit_ops(b->kernels->name, unit_of(dtype), NULL))
        return;
    int64_t begin = bt_clock_now_ns();
    for (uint32_t call = 0; call < 3 || bt_clock_now_ns() - begin < SHAPE_NS; call++) {
        used = choose(b, rows, call);
        int64_t start = limit_clock_ns();
        b->kernels->moe_experts(b->stream, b->x, rows, &shape, &routing, &w, b->out);
        measure(&t, b, unit_of(dtype), limit_clock_ns() - start);
    }
    snprintf(name, sizeof(name), "moe_experts/lite/%s", bt_dtype_name(dtype));
    figure(b, name, rows, (double)bytes / EXPERTS * used, ops, &t);
}

static void bench_mlp(struct bench *b, enum bt_dtype dtype, uint32_t rows)
{
    struct timing t = {0};
    double ops = 6.0 * rows * HIDDEN * DENSE;
    char name[64];
    size_t bytes = 0;
    struct bt_mlp mlp = {.gate = matrix_of(b, DENSE, HIDDEN, dtype, &bytes)};
    mlp.up = matrix_of(b, DENSE, HIDDEN, dtype, &bytes);
    mlp.down = matrix_of(b, HIDDEN, DENSE, dtype, &bytes);
    if (ops > MOST_SECONDS * limit_ops(b->kernels->name, unit_of(dtype), NULL))
        return;
    int64_t begin = bt_clock_now_ns();
    for (int call = 0; call < 3 || bt_clock_now_ns() - begin < SHAPE_NS; call++) {
        int64_t start = limit_clock_ns();
        b->kernels->mlp(b->stream, b->x, rows, &mlp, b->out);
        measure(&t, b, unit_of(dtype), limit_clock_ns() - start);
    }
    snprintf(name, sizeof(name), "mlp/lite/%s", bt_dtype_name(dtype));
    figure(b, name, rows, (double)bytes, ops, &t);
}

static void bench_route(struct bench *b, const char *name, const struct bt_route_shape *shape,
                        uint32_t hidden, uint32_t rows)
{
    struct timing t = {0};
    struct bt_matrix gate = {b->data, shape->experts, hidden, BT_BF16, BT_LAYOUT_ROWS, NULL, NULL};
    struct bt_matrix bias = {0};
    struct bt_routing routing = {b->experts, b->weights, b->order, b->begin};
    size_t bytes = (size_t)shape->experts * hidden * 2;
    int64_t begin = bt_clock_now_ns();
    for (uint32_t call = 0; call < 3 || bt_clock_now_ns() - begin < SHAPE_NS; call++) {
        gate.data = b->data + call % 64 * bytes;
        int64_t start = limit_clock_ns();
        b->kernels->moe_route(b->stream, b->x, rows, &gate, &bias, shape, &routing);
        measure(&t, b, LIMIT_F32, limit_clock_ns() - start);
    }
    figure(b, name, rows, (double)bytes, 2.0 * rows * shape->experts * hidden, &t);
}

void check_bench_experts(const struct bt_kernels *kernels)
{
    static const struct bt_route_shape lite = {64,    6, 1, 1, BT_SCORING_SOFTMAX, BT_TOPK_GREEDY,
                                               false, 1};
    static const struct bt_route_shape v3 = {256,  8,   8, 4, BT_SCORING_SIGMOID, BT_TOPK_NOAUX_TC,
                                             true, 2.5f};
    struct bench b;
    bench_create(&b, kernels);
    for (size_t r = 0; r < sizeof(row_counts) / sizeof(row_counts[0]); r++) {
        bench_route(&b, "moe_route/lite", &lite, HIDDEN, row_counts[r]);
        bench_route(&b, "moe_route/v3", &v3, 7168, row_counts[r]);
    }
    for (size_t d = 0; d < sizeof(dtypes) / sizeof(dtypes[0]); d++) {
        for (size_t r = 0; r < sizeof(row_counts) / sizeof(row_counts[0]); r++) {
            bench_experts(&b, dtypes[d], row_counts[r]);
            bench_mlp(&b, dtypes[d], row_counts[r]);
        }
    }
    bench_destroy(&b);
}
