/*
 * Dense products with weights in tiles at the shapes of the family, against the reading of the
 * weights or the peak of the instruction, whichever binds. Weights of a call come from memory, as
 * in a model: there are as many copies of a matrix as no cache holds.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/base/clock.h"
#include "common/kernels/tiles.h"
#include "tests/bench/limits.h"
#include "tests/checkkern/check.h"

#define POOL_BYTES ((size_t)448 << 20)
#define MAX_ROWS   2048
#define MAX_COLS   18432
#define MAX_OUTS   102400
#define SHAPE_NS   (60 * BT_NS_PER_MS)
/* What would take longer at best is left out. */
#define MOST_SECONDS 0.3

struct shape {
    const char *name;
    uint32_t cols, outs;
};

static const struct shape shapes[] = {
    {"lite_q", 2048, 3072},         {"lite_kv_a", 2048, 576},  {"lite_o", 2048, 2048},
    {"lite_expert", 2048, 1408},    {"lite_mlp", 2048, 10944}, {"lite_mlp_down", 10944, 2048},
    {"lite_vocab", 2048, MAX_OUTS}, {"v3_q_a", 7168, 1536},    {"v3_q_b", 1536, 24576},
    {"v3_kv_a", 7168, 576},         {"v3_o", 16384, 7168},     {"v3_mlp", 7168, 18432},
    {"v3_mlp_down", 18432, 7168},   {"v3_expert", 7168, 2048}, {"v3_expert_down", 2048, 7168},
};
static const uint32_t row_counts[] = {1, 4, 16, 32, 512, 2048};
static const enum bt_dtype dtypes[] = {BT_BF16, BT_I8, BT_I4, BT_F8_E4M3};

/* Weights that no reader looks at closely: any bits that are small numbers. */
struct pool {
    char *data;
    float *scales;
    uint8_t *group_scales;
    float *x, *out;
    struct bt_stream *stream;
};

static void *map(size_t bytes, int fill)
{
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    BT_ASSERT(data != MAP_FAILED);
    madvise(data, bytes, MADV_HUGEPAGE);
    memset(data, fill, bytes);
    return data;
}

static struct pool pool_create(void)
{
    struct bt_stream_limits limits = {.max_rows = MAX_ROWS, .max_cols = MAX_COLS};
    size_t groups = (size_t)MAX_OUTS * MAX_COLS / 128 / 4;
    struct pool pool = {.data = map(POOL_BYTES, 0x33),
                        .scales = map(MAX_OUTS * sizeof(float), 0),
                        .group_scales = map(groups, 3),
                        .x = map((size_t)MAX_ROWS * MAX_COLS * sizeof(float), 0x33),
                        .out = map((size_t)MAX_ROWS * 24576 * sizeof(float), 0),
                        .stream = check_stream(&limits)};
    for (size_t i = 0; i < MAX_OUTS; i++)
        pool.scales[i] = 1;
    return pool;
}

static void pool_destroy(struct pool *pool)
{
    munmap(pool->data, POOL_BYTES);
    munmap(pool->scales, MAX_OUTS * sizeof(float));
    munmap(pool->group_scales, (size_t)MAX_OUTS * MAX_COLS / 128 / 4);
    munmap(pool->x, (size_t)MAX_ROWS * MAX_COLS * sizeof(float));
    munmap(pool->out, (size_t)MAX_ROWS * 24576 * sizeof(float));
    bt_stream_destroy(pool->stream);
}

/* Best times of one call and of its limits, in turns. */
static void time_shape(const struct bt_kernels *kernels, const struct pool *pool,
                       const struct shape *shape, uint32_t rows, enum bt_dtype dtype)
{
    struct bt_matrix w = {.data = pool->data,
                          .rows = shape->outs,
                          .cols = shape->cols,
                          .dtype = dtype,
                          .layout = BT_LAYOUT_TILES,
                          .scales = pool->scales,
                          .group_scales = pool->group_scales};
    bool int8 = dtype == BT_I8 || dtype == BT_I4;
    size_t bytes = bt_tiles_of(w.rows, BT_TILE_OUTS) * bt_panel_tiles(&w) * bt_tile_bytes(dtype);
    size_t copies = POOL_BYTES / bytes, copy = 0;
    struct bt_linear linear = {&w, pool->out};
    double read = 0, ops = 0;
    int64_t best = INT64_MAX, begin = bt_clock_now_ns();
    double amount = 2.0 * rows * w.rows * w.cols;
    BT_ASSERT(copies > 0);
    if (amount > MOST_SECONDS * limit_ops(kernels->name, int8 ? LIMIT_INT8 : LIMIT_BF16, NULL))
        return;
    for (int runs = 0; runs < 3 || bt_clock_now_ns() - begin < SHAPE_NS; runs++) {
        w.data = pool->data + copy * bytes;
        copy = (copy + 1) % copies;
        int64_t start = limit_clock_ns();
        kernels->linear(pool->stream, pool->x, rows, &linear, 1);
        int64_t took = limit_clock_ns() - start;
        best = took < best ? took : best;
        if (runs % 16 == 0) {
            double now = rows <= 32 ? limit_read(NULL) : read;
            read = now > read ? now : read;
            now = limit_ops(kernels->name, int8 ? LIMIT_INT8 : LIMIT_BF16, NULL);
            ops = now > ops ? now : ops;
        }
    }
    double seconds = (double)best * 1e-9;
    bool reads = rows <= 32 && (double)bytes / read > amount / ops;
    double value = (reads ? (double)bytes : amount) / seconds, limit = reads ? read : ops;
    printf("figure %s/linear/%s/%s/%u %.2f %s %.2f %.3f\n", kernels->name, shape->name,
           bt_dtype_name(dtype), rows, value * 1e-9, reads ? "GB/s" : "GFLOP/s", limit * 1e-9,
           value / limit);
}

void check_bench_linear(const struct bt_kernels *kernels)
{
    struct pool pool = pool_create();
    for (size_t d = 0; d < sizeof(dtypes) / sizeof(dtypes[0]); d++) {
        for (size_t r = 0; r < sizeof(row_counts) / sizeof(row_counts[0]); r++) {
            for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
                if (shapes[s].outs < MAX_OUTS || row_counts[r] <= 32)
                    time_shape(kernels, &pool, &shapes[s], row_counts[r], dtypes[d]);
            }
        }
    }
    pool_destroy(&pool);
}
