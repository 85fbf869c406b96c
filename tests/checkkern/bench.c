/*
 * Each operation against what bounds it, measured in the same run on the same core: the peak of
 * fused multiply-adds, or the bandwidth of reading memory.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "tests/bench/limits.h"
#include "tests/checkkern/check.h"

#define BENCH_NS (200 * BT_NS_PER_MS)

struct bench {
    const struct bt_kernels *kernels;
    struct bt_stream *stream;
    struct check data; /* random numbers and buffers only */
    double flops, bytes_per_s;
};

/* Runs `expression` for BENCH_NS, twice at least, and leaves its best time in ns. */
#define BEST_NS(result, expression)                                                                \
    do {                                                                                           \
        int64_t begin_ns_ = bt_clock_now_ns();                                                     \
        (result) = INT64_MAX;                                                                      \
        for (int runs_ = 0; runs_ < 2 || bt_clock_now_ns() - begin_ns_ < BENCH_NS; runs_++) {      \
            int64_t start_ns_ = limit_clock_ns();                                                  \
            expression;                                                                            \
            int64_t took_ns_ = limit_clock_ns() - start_ns_;                                       \
            (result) = took_ns_ < (result) ? took_ns_ : (result);                                  \
        }                                                                                          \
    } while (0)

static void figure(const struct bench *b, const char *name, double amount, int64_t ns, bool flops)
{
    double value = amount / (double)ns, limit = (flops ? b->flops : b->bytes_per_s) / 1e9;
    printf("figure %s/%s %.2f %s %.2f %.3f\n", b->kernels->name, name, value,
           flops ? "GFLOP/s" : "GB/s", limit, value / limit);
}

static float *zeros(struct bench *b, size_t count)
{
    return memset(check_floats(&b->data, count), 0, count * sizeof(float));
}

static void bench_linear(struct bench *b, const char *name, uint32_t rows, uint32_t cols,
                         uint32_t outs, enum bt_dtype dtype)
{
    struct bt_matrix w = check_matrix(&b->data, outs, cols, dtype, 1);
    float *x = check_floats_random(&b->data, (size_t)rows * cols, CHECK_NORMAL);
    float *out = zeros(b, (size_t)rows * outs);
    double weights = (double)cols * outs;
    int64_t ns;
    BEST_NS(ns, b->kernels->linear(b->stream, x, rows, &(struct bt_linear){&w, out}, 1));
    if (rows == 1)
        figure(b, name, weights * (double)bt_dtype_bytes(dtype), ns, false);
    else
        figure(b, name, 2 * weights * rows, ns, true);
    check_end(&b->data);
}

static void bench_elementwise(struct bench *b)
{
    size_t count = 16u << 20, dim = 2048;
    float *x = check_floats_random(&b->data, count, CHECK_NORMAL);
    float *y = check_floats_random(&b->data, count, CHECK_NORMAL), *out = zeros(b, count);
    struct bt_matrix weight = check_matrix(&b->data, 1, (uint32_t)dim, BT_BF16, 1);
    struct bt_matrix table = check_matrix(&b->data, 1024, (uint32_t)dim, BT_BF16, 1);
    uint32_t *tokens = check_buffer(&b->data, 4096 * sizeof(*tokens));
    for (size_t i = 0; i < 4096; i++)
        tokens[i] = check_below(&b->data, 1024);
    int64_t ns;
    BEST_NS(ns, b->kernels->add(b->stream, out, y, count));
    figure(b, "add", 8.0 * (double)count, ns, false);
    BEST_NS(ns, b->kernels->rms_norm(b->stream, x, (uint32_t)(count / dim), (uint32_t)dim,
                                     (uint32_t)dim, &weight, 1e-6f, out));
    figure(b, "rms_norm", 4.0 * (double)count, ns, false);
    BEST_NS(ns, b->kernels->embed(b->stream, &table, tokens, 4096, out));
    figure(b, "embed", 4096 * 2.0 * (double)dim, ns, false);
    check_end(&b->data);
}

/* One sequence of `start` tokens before `rows` rows; its pages in order, all KV zero but for some.
 */
static void bench_mla(struct bench *b, const char *name, const struct bt_mla_shape *shape,
                      uint32_t start, uint32_t rows, bool decode)
{
    uint32_t page_count = (start + rows + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
    size_t width = (size_t)shape->kv_lora_rank + shape->qk_rope_head_dim;
    size_t dim = (size_t)shape->qk_nope_head_dim + shape->qk_rope_head_dim;
    uint32_t per_head = shape->qk_nope_head_dim + shape->v_head_dim;
    struct bt_matrix kv_b =
        check_matrix(&b->data, shape->heads * per_head, shape->kv_lora_rank, BT_BF16, 0.1f);
    struct bt_matrix pool =
        check_matrix(&b->data, page_count * BT_PAGE_TOKENS, (uint32_t)width, BT_BF16, 1);
    struct bt_kv_layer kv = {(void *)(uintptr_t)pool.data, BT_BF16, shape->kv_lora_rank,
                             shape->qk_rope_head_dim};
    uint32_t *pages = check_buffer(&b->data, page_count * sizeof(*pages));
    for (uint32_t i = 0; i < page_count; i++)
        pages[i] = i;
    float *q = check_floats_random(&b->data, rows * shape->heads * dim, CHECK_NORMAL);
    float *out = zeros(b, (size_t)rows * shape->heads * shape->v_head_dim);
    struct bt_sequence_rows sequence = {pages, start, 0, rows};
    double pairs = 0, tokens = (double)start + rows, heads = shape->heads, flops;
    for (uint32_t i = 0; i < rows; i++)
        pairs += start + i + 1;
    int64_t ns;
    if (decode) {
        BEST_NS(ns, b->kernels->mla_decode(b->stream, q, shape, &kv_b, &sequence, 1, &kv, out));
        flops = 2 * heads *
                (pairs * (double)(width + shape->kv_lora_rank) +
                 (double)rows * per_head * shape->kv_lora_rank);
    } else {
        BEST_NS(ns, b->kernels->mla_prefill(b->stream, q, shape, &kv_b, &sequence, 1, &kv, out));
        flops =
            2 * heads *
            (pairs * (double)(dim + shape->v_head_dim) + tokens * per_head * shape->kv_lora_rank);
    }
    figure(b, name, flops, ns, true);
    check_end(&b->data);
}

static void bench_positions(struct bench *b)
{
    struct bt_mla_shape shape = {16, 128, 64, 128, 512, 0.07f};
    uint32_t rows = 512, pages[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    size_t q_count = (size_t)rows * 16 * 192, kv_count = (size_t)rows * 576;
    float *q = check_floats_random(&b->data, q_count, CHECK_NORMAL);
    float *kv_a = check_floats_random(&b->data, kv_count, CHECK_NORMAL);
    float *angles = zeros(b, (size_t)rows * 32);
    struct bt_matrix norm = check_matrix(&b->data, 1, 512, BT_BF16, 1);
    struct bt_rope_table rope = {angles, angles, 32, rows};
    struct bt_kv_layer kv = {check_buffer(&b->data, kv_count * 2), BT_BF16, 512, 64};
    struct bt_sequence_rows sequence = {pages, 0, 0, rows};
    int64_t ns;
    BEST_NS(ns, b->kernels->rope_q(b->stream, q, &shape, &rope, &sequence, 1));
    figure(b, "rope_q", 4.0 * rows * 16 * 64, ns, false);
    BEST_NS(ns, b->kernels->kv_write(b->stream, kv_a, &norm, 1e-6f, &rope, &sequence, 1, &kv));
    figure(b, "kv_write", 4.0 * (double)kv_count, ns, false);
    check_end(&b->data);
}

void check_bench(const struct bt_kernels *kernels)
{
    static const struct bt_mla_shape tiny = {8, 32, 16, 32, 64, 0.15f};
    static const struct bt_mla_shape lite = {16, 128, 64, 128, 512, 0.07f};
    struct bt_stream_limits limits = {.max_rows = 2048, .mla = lite};
    struct bench b = {kernels, check_stream(&limits), .data = {.kernels = kernels, .op = "bench"}};
    b.flops = limit_ops(kernels->name, LIMIT_F32, NULL);
    b.bytes_per_s = limit_read(NULL);
    bench_elementwise(&b);
    bench_linear(&b, "linear/512x2048x2048/bf16", 512, 2048, 2048, BT_BF16);
    bench_linear(&b, "linear/512x7168x2048/bf16", 512, 7168, 2048, BT_BF16);
    bench_linear(&b, "linear/512x256x768/bf16", 512, 256, 768, BT_BF16);
    bench_linear(&b, "linear/512x2048x2048/f16", 512, 2048, 2048, BT_F16);
    bench_linear(&b, "linear/4x4096x4096/bf16", 4, 4096, 4096, BT_BF16);
    bench_linear(&b, "linear/1x8192x8192/bf16", 1, 8192, 8192, BT_BF16);
    bench_linear(&b, "linear/1x8192x8192/f32", 1, 8192, 8192, BT_F32);
    bench_linear(&b, "linear/1x8192x8192/f16", 1, 8192, 8192, BT_F16);
    bench_positions(&b);
    bench_mla(&b, "mla_prefill/8heads-2048", &tiny, 0, 2048, false);
    bench_mla(&b, "mla_prefill/16heads-1024", &lite, 0, 1024, false);
    bench_mla(&b, "mla_decode/8heads-2048", &tiny, 2047, 1, true);
    bench_mla(&b, "mla_decode/16heads-2048", &lite, 2047, 1, true);
    bt_stream_destroy(b.stream);
    check_bench_linear(kernels);
    check_bench_mla(kernels);
    check_bench_experts(kernels);
}
