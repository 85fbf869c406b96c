/*
 * Routing and routed experts on the emulated grid: the choice of common/kernels/route.c from the
 * same scores, bit for bit; rows of padding; many rows against few; runs of picks against one.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "common/kernels/cuda/table.h"
#include "common/kernels/route.h"
#include "tests/seed.h"

#define MOST_ROWS    300
#define MOST_EXPERTS 256
#define MOST_PICKS   8

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
    size_t route = bt_cuda_route_scratch(&stream), moe = bt_cuda_moe_scratch(&stream);
    stream.scratch_bytes = route > moe ? route : moe;
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

/* With the identity for a gate, scores are those of x itself; ties, and biases that are none. */
static void check_choice(struct bt_route_shape shape, uint32_t rows, uint32_t live, bool odd)
{
    static float x[MOST_ROWS * MOST_EXPERTS], gate[MOST_EXPERTS * MOST_EXPERTS];
    static const float oddities[] = {NAN, INFINITY, -INFINITY, 1e30f, -0.0f};
    static struct choice got, want;
    uint32_t experts = shape.experts, k = shape.experts_per_token;
    float bias[MOST_EXPERTS], scores[MOST_EXPERTS], work[2 * MOST_EXPERTS];
    bool allowed[MOST_EXPERTS];
    for (uint32_t i = 0; i < experts * experts; i++)
        gate[i] = i % (experts + 1) == 0;
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
            scores[e] = 1 / (1 + expf(-x[row * experts + e]));
        bt_route_choose(scores, &bias_row, &shape, work, allowed, want.experts + row * k,
                        want.weights + row * k);
    }
    struct bt_routing map = {want.experts, want.weights, want.order, want.begin};
    bt_route_group(&shape, live, &map);
    assert_memory_equal(got.experts, want.experts, live * k * 4);
    assert_memory_equal(got.weights, want.weights, live * k * 4);
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
        {256, 8, 8, 4, 20, 20},  {160, 6, 8, 3, 9, 5},  {64, 6, 1, 1, 17, 17},
        {64, 6, 1, 1, 300, 290}, {12, 6, 6, 3, 40, 40}, {8, 6, 4, 2, 33, 0},
        {8, 8, 4, 2, 33, 33},    {1, 1, 1, 1, 3, 2},    {17, 8, 1, 1, 257, 257},
        {96, 4, 48, 5, 30, 30},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (unsigned method = 0; method < 3; method++) {
            const uint32_t *c = cases[i];
            struct bt_route_shape shape = {c[0],
                                           c[1],
                                           c[2],
                                           c[3],
                                           BT_SCORING_SIGMOID,
                                           (enum bt_topk_method)method,
                                           (i + method) % 2 != 0,
                                           2.5f};
            check_choice(shape, c[4], c[5], i % 2 != 0);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_many_rows),
        cmocka_unit_test(test_runs),
    };
    seed = test_seed();
    stream.device = &device;
    if (cudaStreamCreateWithFlags(&stream.stream, cudaStreamNonBlocking) != cudaSuccess)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cudaFree(stream.scratch);
    return failed;
}
