/*
 * Routing and routed experts on the emulated grid: the choice of common/kernels/route.c from the
 * same scores, bit for bit, odd ones among them; rows of padding; many rows against few; runs of
 * any length against one, of dense networks too; silu and sums of picks by their definitions.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "common/kernels/cuda/permute.h"
#include "common/kernels/cuda/silu.h"
#include "common/kernels/cuda/table.h"
#include "common/kernels/cuda/weights.h"
#include "common/kernels/route.h"
#include "tests/seed.h"

#define MOST_ROWS    300
#define MOST_EXPERTS 256
#define MOST_PICKS   32

static uint64_t seed, drawn;
static struct bt_cuda_device device = {.multiprocessors = 4};
static struct bt_cuda_stream stream;

/* ---- what stream.c and rows.c do ---- */

static uint32_t *live_rows; /* of the device; NULL: all are */

const uint32_t *bt_cuda_live_rows(struct bt_cuda_stream *of, uint32_t rows)
{
    (void)of;
    (void)rows;
    return live_rows;
}

bool bt_cuda_ok(struct bt_cuda_stream *of, cudaError_t result)
{
    of->fault = of->fault ? of->fault : result;
    return of->fault == cudaSuccess;
}

static void set_limits(struct bt_stream_limits limits)
{
    cudaFree(stream.scratch);
    stream.base.limits = limits;
    size_t needs[] = {bt_cuda_route_scratch(&stream), bt_cuda_moe_scratch(&stream),
                      bt_cuda_mlp_scratch(&stream)};
    stream.scratch_bytes = 0;
    for (int i = 0; i < 3; i++)
        stream.scratch_bytes = needs[i] > stream.scratch_bytes ? needs[i] : stream.scratch_bytes;
    assert_int_equal(cudaMalloc((void **)&stream.scratch, stream.scratch_bytes), cudaSuccess);
}

static void *room(size_t bytes)
{
    void *memory = NULL;
    assert_int_equal(cudaMalloc(&memory, bytes), cudaSuccess);
    return memory;
}

static void *copied(const void *from, size_t bytes)
{
    void *memory = room(bytes);
    assert_int_equal(cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return memory;
}

static void fetch(void *to, const void *from, size_t bytes)
{
    assert_int_equal(cudaStreamSynchronize(stream.stream), cudaSuccess);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(stream.fault, cudaSuccess);
    assert_int_equal(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
}

static uint32_t below(uint32_t limit)
{
    return (uint32_t)(bt_random_u64(seed, drawn++, 0) % limit);
}

static float uniform(void)
{
    return (float)below(1 << 20) * 0x1p-19f - 1;
}

/* ---- routing ---- */

struct choice {
    uint32_t experts[MOST_ROWS * MOST_PICKS], order[MOST_ROWS * MOST_PICKS];
    float weights[MOST_ROWS * MOST_PICKS];
    uint32_t begin[MOST_EXPERTS + 1];
};

static struct bt_routing routing_on_device(size_t picks, uint32_t experts)
{
    return (struct bt_routing){room(picks * 4), room(picks * 4), room(picks * 4),
                               room((experts + 1) * 4)};
}

static void free_routing(struct bt_routing *routing)
{
    cudaFree(routing->experts);
    cudaFree(routing->weights);
    cudaFree(routing->order);
    cudaFree(routing->begin);
}

static void route(const float *x, uint32_t rows, const struct bt_matrix *gate,
                  const struct bt_matrix *bias, const struct bt_route_shape *shape,
                  struct choice *choice)
{
    size_t picks = (size_t)rows * shape->experts_per_token;
    struct bt_routing routing = routing_on_device(picks, shape->experts);
    float *on_device = copied(x, (size_t)rows * gate->cols * sizeof(*x));
    struct bt_matrix gate_there = *gate, bias_there = *bias;
    gate_there.data = copied(gate->data, (size_t)gate->rows * gate->cols * sizeof(float));
    if (bias->data)
        bias_there.data = copied(bias->data, bias->cols * sizeof(float));
    bt_cuda_moe_route(&stream.base, on_device, rows, &gate_there, &bias_there, shape, &routing);
    fetch(choice->experts, routing.experts, picks * 4);
    fetch(choice->weights, routing.weights, picks * 4);
    fetch(choice->order, routing.order, picks * 4);
    fetch(choice->begin, routing.begin, (shape->experts + 1) * 4);
    free_routing(&routing);
    cudaFree(on_device);
    cudaFree((void *)(uintptr_t)gate_there.data);
    cudaFree((void *)(uintptr_t)bias_there.data);
}

/* Of logits, as moe_topk.cu's head says: sums of 32 lanes, then of pairs of them. */
static void fill_scores(const float *logits, const struct bt_route_shape *shape, float *scores)
{
    float most = -INFINITY, sums[32] = {0}, pairs[32];
    for (uint32_t e = 0; e < shape->experts; e++)
        most = logits[e] > most ? logits[e] : most;
    for (uint32_t e = 0; e < shape->experts; e++) {
        bool is_sigmoid = shape->scoring == BT_SCORING_SIGMOID;
        scores[e] = is_sigmoid ? 1 / (1 + expf(-logits[e])) : expf(logits[e] - most);
        sums[e % 32] += scores[e];
    }
    for (uint32_t mask = 16; mask > 0; mask /= 2) {
        for (uint32_t i = 0; i < 32; i++)
            pairs[i] = sums[i] + sums[i ^ mask];
        memcpy(sums, pairs, sizeof(sums));
    }
    for (uint32_t e = 0; e < shape->experts && shape->scoring == BT_SCORING_SOFTMAX; e++)
        scores[e] /= sums[e % 32];
}

static bool is_same(float x, float y)
{
    return isnan(x) ? isnan(y) : memcmp(&x, &y, sizeof(x)) == 0;
}

/* With a diagonal gate, of ones but for what is odd, logits are x itself, or infinite, or no
 * numbers where x is 0; ties, and biases that are none. */
static void check_choice(struct bt_route_shape shape, uint32_t rows, uint32_t live, bool odd)
{
    static float x[MOST_ROWS * MOST_EXPERTS], gate[MOST_EXPERTS * MOST_EXPERTS];
    static const float oddities[] = {NAN, INFINITY, -INFINITY, 1e30f, -0.0f};
    static struct choice got, want;
    uint32_t experts = shape.experts, k = shape.experts_per_token;
    float bias[MOST_EXPERTS], scores[MOST_EXPERTS], work[2 * MOST_EXPERTS], logits[MOST_EXPERTS];
    bool allowed[MOST_EXPERTS];
    for (uint32_t i = 0; i < experts * experts; i++)
        gate[i] = i % (experts + 1) == 0;
    for (uint32_t e = 0; odd && e < experts; e++)
        if (below(16) == 0)
            gate[e * experts + e] = oddities[1 + below(4)];
    for (uint32_t i = 0; i < rows * experts; i++)
        x[i] = i / experts % 2 ? uniform() * 4 : (float)below(5) - 2;
    for (uint32_t e = 0; e < experts; e++)
        bias[e] = odd && below(3) == 0 ? oddities[below(5)] : (float)below(4) * 0.25f;
    struct bt_matrix gate_rows = {gate, experts, experts, BT_F32, BT_LAYOUT_ROWS, NULL, NULL};
    struct bt_matrix bias_row = {bias, 1, experts, BT_F32, BT_LAYOUT_ROWS, NULL, NULL};
    set_limits((struct bt_stream_limits){
        .max_rows = rows, .hidden = experts, .experts = experts, .experts_per_token = k});
    live_rows = live < rows ? copied(&live, sizeof(live)) : NULL;
    route(x, rows, &gate_rows, &bias_row, &shape, &got);
    cudaFree(live_rows);
    live_rows = NULL;
    for (uint32_t row = 0; row < live; row++) {
        for (uint32_t e = 0; e < experts; e++)
            logits[e] = x[row * experts + e] * gate[e * experts + e];
        fill_scores(logits, &shape, scores);
        bt_route_choose(scores, &bias_row, &shape, work, allowed, want.experts + row * k,
                        want.weights + row * k);
    }
    struct bt_routing map = {want.experts, want.weights, want.order, want.begin};
    bt_route_group(&shape, live, &map);
    assert_memory_equal(got.experts, want.experts, live * k * 4);
    for (uint32_t i = 0; i < live * k; i++)
        assert_true(is_same(got.weights[i], want.weights[i]));
    assert_memory_equal(got.begin, want.begin, (experts + 1) * 4);
    assert_memory_equal(got.order, want.order, live * k * 4);
    for (uint32_t i = live * k; i < rows * k; i++)
        assert_true(got.weights[i] == 0 && got.experts[i] < experts);
}

static void test_choices(void **state)
{
    (void)state;
    /* experts, k, groups, groups per token, rows, live */
    static const uint32_t cases[][6] = {
        {256, 8, 8, 4, 20, 20},  {160, 6, 8, 3, 9, 5},   {64, 6, 1, 1, 17, 17},
        {64, 6, 1, 1, 300, 290}, {12, 6, 6, 3, 40, 40},  {8, 6, 4, 2, 33, 0},
        {8, 8, 4, 2, 33, 33},    {1, 1, 1, 1, 3, 2},     {17, 8, 1, 1, 257, 257},
        {96, 4, 48, 5, 30, 30},  {32, 32, 8, 1, 20, 19}, {33, 4, 33, 3, 20, 20},
        {64, 6, 2, 1, 20, 20},   {31, 31, 1, 1, 9, 9},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (unsigned method = 0; method < 3; method++) {
            const uint32_t *c = cases[i];
            struct bt_route_shape shape = {c[0],
                                           c[1],
                                           c[2],
                                           c[3],
                                           (i + method) % 3 ? BT_SCORING_SIGMOID
                                                            : BT_SCORING_SOFTMAX,
                                           (enum bt_topk_method)method,
                                           (i + method) % 2 != 0,
                                           2.5f};
            check_choice(shape, c[4], c[5], i % 2 != 0);
            if (c[4] < 100)
                check_choice(shape, c[4], c[5], i % 2 == 0);
        }
    }
}

/* A row among many has the bits that it has among few, and its scores are those of the product. */
static void test_many_rows(void **state)
{
    (void)state;
    enum { ROWS = 290, COLS = 601, EXPERTS = 70, K = 4 };
    static float x[ROWS * COLS], gate[EXPERTS * COLS];
    static struct choice all, some;
    struct bt_route_shape shape = {EXPERTS, K, 1, 1, BT_SCORING_SOFTMAX, BT_TOPK_GREEDY, false, 1};
    struct bt_matrix gate_rows = {gate, EXPERTS, COLS, BT_F32, BT_LAYOUT_ROWS, NULL, NULL};
    struct bt_matrix no_bias = {0};
    for (uint32_t i = 0; i < ROWS * COLS; i++)
        x[i] = uniform();
    for (uint32_t i = 0; i < EXPERTS * COLS; i++)
        gate[i] = uniform() * 0.2f;
    set_limits((struct bt_stream_limits){
        .max_rows = ROWS, .hidden = COLS, .experts = EXPERTS, .experts_per_token = K});
    route(x, ROWS, &gate_rows, &no_bias, &shape, &all);
    for (uint32_t row = 0, count = 1; row < ROWS; row += count, count = 19) {
        count = count < ROWS - row ? count : ROWS - row;
        route(x + row * COLS, count, &gate_rows, &no_bias, &shape, &some);
        assert_memory_equal(some.experts, all.experts + row * K, count * K * 4);
        assert_memory_equal(some.weights, all.weights + row * K, count * K * 4);
    }
    for (uint32_t row = 0; row < ROWS; row += 7) {
        double total = 0, logits[EXPERTS];
        for (uint32_t e = 0; e < EXPERTS; e++) {
            logits[e] = 0;
            for (uint32_t i = 0; i < COLS; i++)
                logits[e] += (double)x[row * COLS + i] * (double)gate[e * COLS + i];
            total += exp(logits[e]);
        }
        for (uint32_t i = 0; i < K; i++) {
            double want = exp(logits[all.experts[row * K + i]]) / total;
            assert_true(fabs((double)all.weights[row * K + i] - want) < 1e-5 * want);
        }
    }
}

/* ---- experts ---- */

enum { HIDDEN = 24, INNER = 12, EXPERTS = 40, PER_ROW = 7, EXPERT_ROWS = 1300 };

static struct bt_matrix small_matrix(uint32_t rows, uint32_t cols)
{
    float values[HIDDEN * HIDDEN];
    for (uint32_t i = 0; i < rows * cols; i++)
        values[i] = uniform();
    return (struct bt_matrix){copied(values, rows * cols * sizeof(float)),
                              rows,
                              cols,
                              BT_F32,
                              BT_LAYOUT_ROWS,
                              NULL,
                              NULL};
}

/* The experts of rows first … first + rows - 1, to out. */
static void run_experts(const float *x, const uint32_t *experts, const float *weights,
                        uint32_t rows, const struct bt_expert_weights *w, float *out)
{
    struct bt_route_shape shape = {.experts = EXPERTS, .experts_per_token = PER_ROW};
    size_t picks = (size_t)rows * PER_ROW;
    uint32_t *order = malloc(picks * 4), begin[EXPERTS + 1];
    uint32_t *copy = malloc(picks * 4);
    memcpy(copy, experts, picks * 4);
    struct bt_routing host = {copy, NULL, order, begin};
    bt_route_group(&shape, rows, &host);
    struct bt_routing routing = {copied(experts, picks * 4), copied(weights, picks * 4),
                                 copied(order, picks * 4), copied(begin, sizeof(begin))};
    float *x_there = copied(x, (size_t)rows * HIDDEN * 4);
    float *out_there = copied(out, (size_t)rows * HIDDEN * 4);
    bt_cuda_moe_experts(&stream.base, x_there, rows, &shape, &routing, w, out_there);
    fetch(out, out_there, (size_t)rows * HIDDEN * 4);
    free_routing(&routing);
    cudaFree(x_there);
    cudaFree(out_there);
    free(order);
    free(copy);
}

/* More picks than a run has: the bits are those of few rows at a time. */
static void test_runs(void **state)
{
    (void)state;
    static float x[EXPERT_ROWS * HIDDEN], out[EXPERT_ROWS * HIDDEN], other[EXPERT_ROWS * HIDDEN];
    static uint32_t experts[EXPERT_ROWS * PER_ROW];
    static float weights[EXPERT_ROWS * PER_ROW];
    struct bt_matrix matrices[3][EXPERTS] = {0};
    struct bt_expert_weights w = {matrices[0], matrices[1], matrices[2], EXPERTS};
    for (uint32_t e = 0; e < EXPERTS; e++) {
        if (e % 5 == 3)
            continue; /* another rank's */
        matrices[0][e] = small_matrix(INNER, HIDDEN);
        matrices[1][e] = small_matrix(INNER, HIDDEN);
        matrices[2][e] = small_matrix(HIDDEN, INNER);
    }
    for (uint32_t i = 0; i < EXPERT_ROWS * HIDDEN; i++) {
        x[i] = uniform();
        out[i] = other[i] = uniform();
    }
    for (uint32_t i = 0; i < EXPERT_ROWS * PER_ROW; i++) {
        weights[i] = uniform();
        experts[i] = (i / PER_ROW * 11 + i % PER_ROW * 13) % EXPERTS;
    }
    set_limits((struct bt_stream_limits){.max_rows = EXPERT_ROWS,
                                         .hidden = HIDDEN,
                                         .moe_intermediate = INNER,
                                         .experts = EXPERTS,
                                         .experts_per_token = PER_ROW});
    run_experts(x, experts, weights, EXPERT_ROWS, &w, out);
    for (uint32_t row = 0; row < EXPERT_ROWS; row += 325)
        run_experts(x + row * HIDDEN, experts + row * PER_ROW, weights + row * PER_ROW, 325, &w,
                    other + row * HIDDEN);
    assert_memory_equal(out, other, sizeof(out));
    for (uint32_t e = 0; e < EXPERTS; e++)
        for (int i = 0; i < 3; i++)
            cudaFree((void *)(uintptr_t)matrices[i][e].data);
}

/* ---- runs of any length ---- */

enum { WIDTH = 128, SOME_EXPERTS = 6, SOME_ROWS = 130, SOME_PICKS = 3 };

/* WIDTH x WIDTH, on the device; in TILES, but for F32. */
static struct bt_matrix square(enum bt_dtype dtype)
{
    static unsigned char data[WIDTH * WIDTH * sizeof(float)];
    static float scales[WIDTH];
    static uint8_t groups[WIDTH];
    struct bt_matrix w = {data, WIDTH, WIDTH, dtype, BT_LAYOUT_ROWS, scales, groups};
    for (size_t i = 0; i < WIDTH * WIDTH; i++) {
        float value = uniform();
        if (dtype == BT_F32)
            memcpy(data + i * sizeof(value), &value, sizeof(value));
        else if (dtype == BT_BF16)
            memcpy(data + i * 2, &(uint16_t){bt_f32_to_bf16(value)}, 2);
        else if (dtype == BT_F8_E4M3)
            data[i] = bt_f32_to_f8_e4m3(value);
        else
            data[i] = dtype == BT_I8 ? (unsigned char)below(255) : 0x17; /* two of I4 */
    }
    for (size_t i = 0; i < WIDTH; i++) {
        scales[i] = dtype == BT_F8_E4M3 ? 1 : (float)(1 + below(100)) * 0x1p-12f;
        groups[i] = (uint8_t)(1 + below(18));
    }
    if (dtype == BT_F32) {
        w.data = copied(data, sizeof(data));
        return w;
    }
    struct bt_cuda_layout layout = bt_cuda_layout_of(&w, BT_USE_LINEAR, NULL);
    unsigned char *bytes = malloc(layout.bytes);
    bt_cuda_pack_chunks(&w, BT_USE_LINEAR, NULL, 0, layout.chunks, bytes);
    if (layout.scales_offset < layout.bytes)
        bt_cuda_pack_scales(&w, BT_USE_LINEAR, NULL, bytes + layout.scales_offset);
    struct bt_matrix packed =
        bt_cuda_packed_at(&w, BT_USE_LINEAR, NULL, copied(bytes, layout.bytes));
    free(bytes);
    return packed;
}

struct some_experts {
    struct bt_matrix matrices[3][SOME_EXPERTS];
    struct bt_expert_weights w;
    struct bt_route_shape shape;
    struct bt_routing routing; /* of the device */
    float *x;
    size_t y_bytes;
};

/* The last expert has a pick of each row, the one before it of none, the first is another's. */
static void make_some(struct some_experts *some, enum bt_dtype dtype)
{
    static uint32_t experts[SOME_ROWS * SOME_PICKS], order[SOME_ROWS * SOME_PICKS];
    static float weights[SOME_ROWS * SOME_PICKS], x[SOME_ROWS * WIDTH];
    uint32_t begin[SOME_EXPERTS + 1];
    struct bt_routing host = {experts, weights, order, begin};
    *some = (struct some_experts){
        .shape = {.experts = SOME_EXPERTS, .experts_per_token = SOME_PICKS},
        .w = {some->matrices[0], some->matrices[1], some->matrices[2], SOME_EXPERTS},
        .y_bytes = sizeof(float) / (dtype == BT_F32 ? 1 : 2) * SOME_ROWS * SOME_PICKS * WIDTH};
    for (int i = 0; i < 3; i++)
        for (uint32_t e = 1; e < SOME_EXPERTS; e++)
            some->matrices[i][e] = square(dtype);
    for (uint32_t i = 0; i < SOME_ROWS * WIDTH; i++)
        x[i] = uniform();
    for (uint32_t i = 0; i < SOME_ROWS * SOME_PICKS; i++) {
        uint32_t place = i % SOME_PICKS;
        experts[i] = place == 1 ? SOME_EXPERTS - 1 : place * 2 % 3 + (i / SOME_PICKS % 7 == 0) * 2;
        weights[i] = uniform();
    }
    bt_route_group(&some->shape, SOME_ROWS, &host);
    some->routing =
        (struct bt_routing){copied(experts, sizeof(experts)), copied(weights, sizeof(weights)),
                            copied(order, sizeof(order)), copied(begin, sizeof(begin))};
    some->x = copied(x, sizeof(x));
}

static void free_some(struct some_experts *some)
{
    for (int i = 0; i < 3; i++)
        for (uint32_t e = 0; e < SOME_EXPERTS; e++)
            cudaFree((void *)(uintptr_t)some->matrices[i][e].data);
    free_routing(&some->routing);
    cudaFree(some->x);
}

/* out of zeros; y keeps its pattern where it is left. */
static void run_some(const struct some_experts *some, float *out, unsigned char *y)
{
    size_t out_bytes = SOME_ROWS * WIDTH * sizeof(*out);
    memset(out, 0, out_bytes);
    memset(y, 0x5a, some->y_bytes);
    float *out_there = copied(out, out_bytes);
    void *y_there = copied(y, some->y_bytes);
    bt_cuda_moe_experts(&stream.base, some->x, SOME_ROWS, &some->shape, &some->routing, &some->w,
                        out_there);
    bt_cuda_moe_expert_rows(&stream.base, some->x, SOME_ROWS, &some->shape, &some->routing,
                            &some->w, y_there);
    fetch(out, out_there, out_bytes);
    fetch(y, y_there, some->y_bytes);
    cudaFree(out_there);
    cudaFree(y_there);
}

static void check_lengths(enum bt_dtype dtype)
{
    enum { BYTES = SOME_ROWS * SOME_PICKS * WIDTH * sizeof(float) };
    static float out[2][SOME_ROWS * WIDTH];
    static unsigned char y[2][BYTES];
    struct some_experts some;
    make_some(&some, dtype);
    set_limits((struct bt_stream_limits){.max_rows = SOME_ROWS,
                                         .hidden = WIDTH,
                                         .moe_intermediate = WIDTH,
                                         .experts = SOME_EXPERTS,
                                         .experts_per_token = SOME_PICKS});
    run_some(&some, out[0], y[0]);
    size_t whole = stream.used_bytes, used = whole;
    const size_t rooms[] = {whole - 1, whole / 2, whole / 4}; /* for more and more runs */
    for (uint32_t i = 0; i < 3; i++) {
        stream.scratch_bytes = rooms[i];
        run_some(&some, out[1], y[1]);
        assert_memory_equal(out[0], out[1], sizeof(out[0]));
        assert_memory_equal(y[0], y[1], some.y_bytes);
        assert_true(stream.used_bytes < used);
        used = stream.used_bytes;
    }
    float sum = 0;
    for (uint32_t i = 0; i < SOME_ROWS * WIDTH; i++)
        sum += fabsf(out[0][i]);
    assert_true(isfinite(sum) && sum > 1);
    free_some(&some);
}

/* By the kernels of every architecture, and by those of Hopper. */
static void check_dtypes(void (*check)(enum bt_dtype dtype))
{
    static const enum bt_dtype dtypes[] = {BT_F32, BT_BF16, BT_F8_E4M3, BT_I8, BT_I4};
    for (device.arch = 80; device.arch <= 90; device.arch += 10)
        for (int i = 0; i < 5; i++)
            check(dtypes[i]);
    device.arch = 0;
}

static void test_lengths(void **state)
{
    (void)state;
    check_dtypes(check_lengths);
}

/* Dense networks likewise; of e4m3 the last row goes another way than the fours before it. */
static void check_mlp_lengths(enum bt_dtype dtype)
{
    enum { ROWS = 141, BYTES = ROWS * WIDTH * sizeof(float) };
    static float x[ROWS * WIDTH], out[2][ROWS * WIDTH];
    struct bt_mlp mlp = {square(dtype), square(dtype), square(dtype)};
    for (uint32_t i = 0; i < ROWS * WIDTH; i++)
        x[i] = uniform();
    set_limits((struct bt_stream_limits){.max_rows = ROWS, .max_cols = WIDTH, .hidden = WIDTH});
    float *x_there = copied(x, BYTES), *out_there = room(BYTES);
    bt_cuda_mlp(&stream.base, x_there, ROWS, &mlp, out_there);
    fetch(out[0], out_there, BYTES);
    size_t whole = stream.used_bytes;
    const size_t rooms[] = {whole - 1, whole * 2 / 3};
    for (uint32_t i = 0; i < 2; i++) {
        stream.scratch_bytes = rooms[i];
        assert_int_equal(cudaMemsetAsync(out_there, 0xff, BYTES, stream.stream), cudaSuccess);
        bt_cuda_mlp(&stream.base, x_there, ROWS, &mlp, out_there);
        fetch(out[1], out_there, BYTES);
        assert_memory_equal(out[0], out[1], BYTES);
        assert_true(stream.used_bytes < whole);
    }
    cudaFree(x_there);
    cudaFree(out_there);
    cudaFree((void *)(uintptr_t)mlp.gate.data);
    cudaFree((void *)(uintptr_t)mlp.up.data);
    cudaFree((void *)(uintptr_t)mlp.down.data);
}

static void test_mlp_lengths(void **state)
{
    (void)state;
    check_dtypes(check_mlp_lengths);
}

/* Scratch of many picks is a part of the device's memory, of few what they take. */
static void test_room(void **state)
{
    (void)state;
    const size_t memory = (size_t)80 << 30;
    struct bt_cuda_device large = {.multiprocessors = 132, .memory_bytes = memory};
    struct bt_cuda_device small = {.multiprocessors = 4, .memory_bytes = 1 << 20};
    struct bt_cuda_stream of = {.device = &large,
                                .base.limits = {.max_rows = 8192,
                                                .hidden = 7168,
                                                .moe_intermediate = 2048,
                                                .experts = 256,
                                                .experts_per_token = 8}};
    size_t x_bytes = bt_cuda_inputs_bytes(BT_BF16, 8192, 7168);
    size_t list_bytes = 8192 * 8 * 4 + 257 * 4 + 512;
    size_t most = bt_cuda_moe_scratch(&of);
    assert_true(most > memory / 128 && most <= memory / 128 + x_bytes + list_bytes);
    of.base.limits.max_rows = 64;
    size_t few = bt_cuda_moe_scratch(&of), row = 4 * 2048 * 2 + 2 * 2048;
    assert_true(few >= 64 * 8 * row && few < memory / 1024);
    of.device = &small; /* any: not less than of 1024 picks */
    of.base.limits.max_rows = 8192;
    assert_true(bt_cuda_moe_scratch(&of) - x_bytes - list_bytes > 1024 * row);
    assert_true(bt_cuda_moe_scratch(&of) < most);
}

/* ---- silu ---- */

static float silu_by_hand(float gate, float up)
{
    return gate / (1 + expf(-gate)) * up;
}

/* Rows are left from `live` on; those of e4m3 behind the last are zeros. Of long rows every other
 * one is finite, with its largest element at the end or 1000 before it. */
static void check_silu(enum bt_dtype dtype, uint32_t cols, uint32_t rows, uint32_t live)
{
    static const float oddities[] = {INFINITY, -INFINITY, 1e30f, -0.0f, -200, 200};
    size_t count = (size_t)rows * cols;
    float *gate = malloc(count * sizeof(*gate)), *up = malloc(count * sizeof(*up));
    for (size_t i = 0; i < count; i++) {
        bool may_be_odd = cols < 1000 || i / cols % 2 == 1;
        gate[i] = !may_be_odd || below(200) ? uniform() * 8 : oddities[below(6)];
        up[i] = !may_be_odd || below(300) ? uniform() * 3 : oddities[below(6)];
    }
    for (uint32_t row = 0; row < rows && cols >= 1000; row += 2) {
        size_t largest = (row + 1) * (size_t)cols - 1 - (row % 4 == 0 ? 1000 : 0);
        gate[largest] = 12;
        up[largest] = 4;
    }
    float *gate_there = copied(gate, count * sizeof(*gate));
    float *up_there = copied(up, count * sizeof(*up));
    uint32_t *live_there = copied(&live, sizeof(live));
    set_limits((struct bt_stream_limits){.max_rows = 400, .hidden = 512, .experts = 1});
    stream.used_bytes = 0;
    struct bt_cuda_inputs got = bt_cuda_inputs_take(&stream, dtype, rows, cols);
    struct bt_cuda_inputs want = bt_cuda_inputs_take(&stream, dtype, rows, cols);
    assert_int_equal(cudaMemsetAsync(stream.scratch, 0x5a, stream.scratch_bytes, stream.stream),
                     cudaSuccess);
    if (dtype == BT_F32)
        got.data = gate_there;
    bt_cuda_launch_silu(gate_there, up_there, rows, live_there, &got, 1, stream.stream);
    for (size_t i = 0; i < (size_t)live * cols; i++)
        gate[i] = silu_by_hand(gate[i], up[i]);
    if (dtype == BT_F32) {
        fetch(up, gate_there, count * sizeof(*up));
        for (size_t i = 0; i < count; i++)
            assert_true(is_same(up[i], gate[i]));
    } else { /* as the quantised rows of what it is (test_products.c) */
        size_t bytes = (size_t)(unsigned char *)want.data - (size_t)(unsigned char *)got.data;
        unsigned char *both = malloc(2 * bytes);
        float *values_there = copied(gate, count * sizeof(*gate));
        bt_cuda_launch_quantise_rows(values_there, NULL, 1, rows, NULL, &want, stream.stream);
        fetch(both, got.data, 2 * bytes);
        for (uint32_t row = 0; row < (rows + 3) / 4 * 4; row++) {
            bool is_left = row >= live && row < rows;
            size_t row_bytes = want.pitch * bt_dtype_bytes(dtype), at = row * row_bytes;
            for (size_t i = 0; i < row_bytes && (row < rows || dtype == BT_F8_E4M3); i++)
                assert_int_equal(both[at + i], is_left ? 0x5a : both[bytes + at + i]);
            uint32_t scales = dtype == BT_BF16 ? 0 : dtype == BT_I8 ? 1 : want.pitch / 128;
            for (uint32_t i = 0; i < scales && (row < rows || dtype == BT_F8_E4M3); i++) {
                float left, own, other;
                size_t scale = (size_t)(unsigned char *)got.scales - (size_t)got.data;
                scale +=
                    4 *
                    (dtype == BT_I8 ? row : bt_cuda_scale_at(want.head, want.pitch / 128, row, i));
                memset(&left, 0x5a, sizeof(left));
                memcpy(&own, both + scale, sizeof(own));
                memcpy(&other, both + bytes + scale, sizeof(other));
                assert_true(is_same(own, is_left ? left : other));
            }
        }
        free(both);
        cudaFree(values_there);
    }
    cudaFree(gate_there);
    cudaFree(up_there);
    cudaFree(live_there);
    free(gate);
    free(up);
}

static void test_silu(void **state)
{
    static const enum bt_dtype dtypes[] = {BT_F32, BT_BF16, BT_F8_E4M3, BT_I8};
    (void)state;
    for (int i = 0; i < 4; i++) {
        check_silu(dtypes[i], 516, 39, 30); /* more than blocks, which go round */
        check_silu(dtypes[i], 1028, 6, 5);
        check_silu(dtypes[i], 3101, 3, 3); /* more than what a thread of int8 keeps */
        check_silu(dtypes[i], 70, 6, 6);
        check_silu(dtypes[i], 1, 2, 0);
    }
}

/* ---- sums of picks ---- */

enum { SUM_ROWS = 5, SUM_LIVE = 4, SUM_PICKS = 6, SUM_EXPERTS = 40, SUM_FIRST = 4, SUM_COUNT = 20 };
#define NO_PICK 0xffffffffu

struct sums {
    uint32_t cols, experts[SUM_ROWS * SUM_PICKS], places[SUM_ROWS * SUM_PICKS];
    float weights[SUM_ROWS * SUM_PICKS];
    float *y, *out; /* [SUM_COUNT][cols], [SUM_ROWS][cols] */
};

/* Every fifth is another's. */
static bool is_here(uint32_t expert)
{
    return expert % 5 != 0;
}

/* The row's pick of an expert, if that is here and the pick in the run; else NO_PICK. */
static uint32_t pick_of(const struct sums *s, uint32_t row, uint32_t expert)
{
    for (uint32_t i = row * SUM_PICKS; i < (row + 1) * SUM_PICKS; i++)
        if (s->experts[i] == expert && is_here(expert) && s->places[i] >= SUM_FIRST &&
            s->places[i] < SUM_FIRST + SUM_COUNT)
            return i;
    return NO_PICK;
}

static void sum_by_hand(const struct sums *s)
{
    for (uint32_t row = 0; row < SUM_LIVE; row++)
        for (uint32_t e = 0; e < SUM_EXPERTS; e++) {
            uint32_t pick = pick_of(s, row, e);
            for (uint32_t i = 0; i < s->cols && pick != NO_PICK; i++) {
                size_t at = (size_t)(s->places[pick] - SUM_FIRST) * s->cols + i;
                float *sum = &s->out[(size_t)row * s->cols + i];
                *sum = fmaf(s->weights[pick], s->y[at], *sum);
            }
        }
}

/* `off` floats behind an aligned address. */
static void check_sums(bool is_bf16, uint32_t cols, uint32_t off)
{
    struct sums s = {.cols = cols};
    size_t y_count = (size_t)SUM_COUNT * cols, out_count = (size_t)SUM_ROWS * cols + off;
    float *got = calloc(out_count, sizeof(*got));
    uint16_t *half = calloc(y_count, sizeof(*half));
    uint32_t live = SUM_LIVE;
    s.y = calloc(y_count, sizeof(*s.y));
    for (uint32_t i = 0; i < SUM_ROWS * SUM_PICKS; i++) {
        s.experts[i] = (i / SUM_PICKS * 11 + i % SUM_PICKS * 13) % SUM_EXPERTS;
        s.places[i] = (i * 7 + 3) % (SUM_ROWS * SUM_PICKS);
        s.weights[i] = uniform();
    }
    for (size_t i = 0; i < y_count; i++) {
        half[i] = bt_f32_to_bf16(uniform());
        s.y[i] = is_bf16 ? bt_bf16_to_f32(half[i]) : uniform();
    }
    for (size_t i = 0; i < out_count; i++)
        got[i] = uniform();
    float *there = copied(got, out_count * sizeof(*got));
    void *y = is_bf16 ? copied(half, y_count * sizeof(*half)) : copied(s.y, y_count * sizeof(*s.y));
    struct bt_cuda_unpermute call = {.experts = copied(s.experts, sizeof(s.experts)),
                                     .places = copied(s.places, sizeof(s.places)),
                                     .weights = copied(s.weights, sizeof(s.weights)),
                                     .y = y,
                                     .out = there + off,
                                     .live = copied(&live, sizeof(live)),
                                     .rows = SUM_ROWS,
                                     .per_row = SUM_PICKS,
                                     .cols = cols,
                                     .first = SUM_FIRST,
                                     .count = SUM_COUNT,
                                     .is_bf16 = is_bf16};
    for (uint32_t e = 0; e < SUM_EXPERTS; e++)
        call.here[e / 32] |= (uint32_t)is_here(e) << e % 32;
    s.out = malloc(out_count * sizeof(*s.out));
    memcpy(s.out, got + off, (out_count - off) * sizeof(*s.out));
    sum_by_hand(&s);
    bt_cuda_launch_unpermute(&call, stream.stream);
    fetch(got, there, out_count * sizeof(*got));
    assert_memory_equal(got + off, s.out, (out_count - off) * sizeof(*got));
    cudaFree(there);
    cudaFree(y);
    cudaFree((void *)(uintptr_t)call.experts);
    cudaFree((void *)(uintptr_t)call.places);
    cudaFree((void *)(uintptr_t)call.weights);
    cudaFree((void *)(uintptr_t)call.live);
    free(s.out);
    free(s.y);
    free(half);
    free(got);
}

/* Less and more than a half of what a block takes, a whole, and more; in fours or not. */
static void test_sums(void **state)
{
    static const uint32_t cols[] = {1, 4, 33, 508, 512, 516, 1020, 1022, 1024, 1028, 1540, 2048};
    (void)state;
    for (size_t i = 0; i < sizeof(cols) / sizeof(cols[0]); i++)
        for (uint32_t off = 0; off < 2; off++) {
            check_sums(true, cols[i], off);
            check_sums(false, cols[i], off);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choices),     cmocka_unit_test(test_many_rows),
        cmocka_unit_test(test_runs),        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_mlp_lengths), cmocka_unit_test(test_room),
        cmocka_unit_test(test_silu),        cmocka_unit_test(test_sums),
    };
    seed = test_seed();
    stream.device = &device;
    if (cudaStreamCreateWithFlags(&stream.stream, cudaStreamNonBlocking) != cudaSuccess ||
        cudaMalloc(&stream.workspace, BT_CUDA_WORKSPACE) != cudaSuccess ||
        cublasLtCreate(&stream.cublas) != CUBLAS_STATUS_SUCCESS ||
        !bt_cuda_products_create(&stream))
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bt_cuda_products_destroy(&stream);
    cublasLtDestroy(stream.cublas);
    cudaFree(stream.workspace);
    cudaFree(stream.scratch);
    cudaStreamDestroy(stream.stream);
    return failed;
}
