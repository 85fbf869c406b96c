/*
 * gemm_peer [--kernels NAME] [--runs N]
 *
 * Products in bf16 at the shapes of the family by Baton's kernels and by oneDNN's matmul (weights
 * in the format that it prefers, packed before; activations are f32, which both round to bf16), in
 * turns in one run on one thread. One line a shape: `figure NAME GFLOP/s unit oneDNN's ratio`; then
 * where the library is within 5 % or faster; then on how many batch sizes the bits of a row of the
 * library's are those of the row alone.
 */
#include <getopt.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/kernels/kernels.h"

#define MAX_ROWS 512

#define CHECK(call)                                                                                \
    do {                                                                                           \
        if ((call) != dnnl_success) {                                                              \
            fprintf(stderr, "gemm_peer: oneDNN refused: %s\n", #call);                             \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

struct shape {
    const char *name;
    uint32_t cols, outs;
};
static const struct shape shapes[] = {
    {"lite_q", 2048, 3072},    {"lite_kv_a", 2048, 576},       {"lite_o", 2048, 2048},
    {"lite_mlp", 2048, 10944}, {"lite_mlp_down", 10944, 2048}, {"lite_expert", 2048, 1408},
    {"v3_q_a", 7168, 1536},    {"v3_q_b", 1536, 24576},        {"v3_kv_a", 7168, 576},
    {"v3_o", 16384, 7168},     {"v3_expert", 7168, 2048},
};
static const uint32_t row_counts[] = {1, 4, 16, 32, 512};

/* Of this thread on a core: what others took of it does not count. */
static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void *allocate(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) {
        fprintf(stderr, "gemm_peer: out of memory\n");
        exit(1);
    }
    return memory;
}

static uint16_t random_bf16(void)
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    float value = (float)(int32_t)state * 0x1p-31f;
    return bt_f32_to_bf16(value);
}

/* ---- oneDNN: out [rows][outs] f32 = x [rows][cols] * w [outs][cols], both bf16 ---- */

struct peer {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t matmul, round;
    dnnl_memory_t x, x_bf16, weights, out;
};

static dnnl_memory_desc_t plain(uint32_t rows, uint32_t cols, dnnl_data_type_t type,
                                dnnl_format_tag_t tag)
{
    dnnl_memory_desc_t desc;
    dnnl_dims_t dims = {rows, cols};
    CHECK(dnnl_memory_desc_init_by_tag(&desc, 2, dims, type, tag));
    return desc;
}

static void run_one(dnnl_primitive_t primitive, dnnl_stream_t stream, int count,
                    const dnnl_exec_arg_t *args)
{
    CHECK(dnnl_primitive_execute(primitive, stream, count, args));
    CHECK(dnnl_stream_wait(stream));
}

static dnnl_primitive_t reorder_create(struct peer *peer, const dnnl_memory_desc_t *from,
                                       const dnnl_memory_desc_t *to)
{
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t reorder;
    CHECK(dnnl_reorder_primitive_desc_create(&desc, from, peer->engine, to, peer->engine, NULL));
    CHECK(dnnl_primitive_create(&reorder, desc));
    dnnl_primitive_desc_destroy(desc);
    return reorder;
}

/* Brings w [outs][cols] into the format of the matmul. */
static void peer_pack(struct peer *peer, const struct shape *shape, const uint16_t *w,
                      const dnnl_memory_desc_t *packed)
{
    dnnl_memory_desc_t desc = plain(shape->cols, shape->outs, dnnl_bf16, dnnl_ba);
    dnnl_memory_t source;
    CHECK(dnnl_memory_create(&source, &desc, peer->engine, (void *)(uintptr_t)w));
    CHECK(dnnl_memory_create(&peer->weights, packed, peer->engine, DNNL_MEMORY_ALLOCATE));
    dnnl_primitive_t reorder = reorder_create(peer, &desc, packed);
    run_one(reorder, peer->stream, 2,
            (dnnl_exec_arg_t[]){{DNNL_ARG_FROM, source}, {DNNL_ARG_TO, peer->weights}});
    dnnl_primitive_destroy(reorder);
    dnnl_memory_destroy(source);
}

static void peer_create(struct peer *peer, const struct shape *shape, uint32_t rows, float *x,
                        const uint16_t *w, float *out)
{
    dnnl_memory_desc_t x_f32 = plain(rows, shape->cols, dnnl_f32, dnnl_ab);
    dnnl_memory_desc_t x_desc = plain(rows, shape->cols, dnnl_bf16, dnnl_ab);
    dnnl_memory_desc_t w_desc = plain(shape->cols, shape->outs, dnnl_bf16, dnnl_format_tag_any);
    dnnl_memory_desc_t out_desc = plain(rows, shape->outs, dnnl_f32, dnnl_ab);
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_desc_t desc;
    CHECK(dnnl_engine_create(&peer->engine, dnnl_cpu, 0));
    CHECK(dnnl_stream_create(&peer->stream, peer->engine, dnnl_stream_default_flags));
    CHECK(dnnl_matmul_desc_init(&matmul, &x_desc, &w_desc, NULL, &out_desc));
    CHECK(dnnl_primitive_desc_create(&desc, &matmul, NULL, peer->engine, NULL));
    peer_pack(peer, shape, w, dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0));
    CHECK(dnnl_primitive_create(&peer->matmul, desc));
    dnnl_primitive_desc_destroy(desc);
    peer->round = reorder_create(peer, &x_f32, &x_desc);
    CHECK(dnnl_memory_create(&peer->x, &x_f32, peer->engine, x));
    CHECK(dnnl_memory_create(&peer->x_bf16, &x_desc, peer->engine, DNNL_MEMORY_ALLOCATE));
    CHECK(dnnl_memory_create(&peer->out, &out_desc, peer->engine, out));
}

static void peer_run(struct peer *peer)
{
    run_one(peer->round, peer->stream, 2,
            (dnnl_exec_arg_t[]){{DNNL_ARG_FROM, peer->x}, {DNNL_ARG_TO, peer->x_bf16}});
    run_one(peer->matmul, peer->stream, 3,
            (dnnl_exec_arg_t[]){{DNNL_ARG_SRC, peer->x_bf16},
                                {DNNL_ARG_WEIGHTS, peer->weights},
                                {DNNL_ARG_DST, peer->out}});
}

static void peer_destroy(struct peer *peer)
{
    dnnl_memory_destroy(peer->x);
    dnnl_memory_destroy(peer->x_bf16);
    dnnl_memory_destroy(peer->weights);
    dnnl_memory_destroy(peer->out);
    dnnl_primitive_destroy(peer->matmul);
    dnnl_primitive_destroy(peer->round);
    dnnl_stream_destroy(peer->stream);
    dnnl_engine_destroy(peer->engine);
}

/* ---- both ---- */

struct bench {
    const struct bt_kernels *kernels;
    struct bt_stream *stream;
    int runs;
    unsigned figures, library; /* of them, where the library is within 5 % or faster */
    float *x, *out;
    uint16_t *weights;
};

static void time_shape(struct bench *b, const struct shape *shape, const struct bt_matrix *packed,
                       uint32_t rows)
{
    struct peer peer;
    double ours = 1e9, theirs = 1e9, gflop = 2e-9 * rows * shape->cols * shape->outs;
    struct bt_linear linear = {packed, b->out};
    peer_create(&peer, shape, rows, b->x, b->weights, b->out);
    for (int i = 0; i < b->runs; i++) {
        double start = now_s();
        b->kernels->linear(b->stream, b->x, rows, &linear, 1);
        double middle = now_s();
        peer_run(&peer);
        double end = now_s();
        ours = middle - start < ours ? middle - start : ours;
        theirs = end - middle < theirs ? end - middle : theirs;
    }
    peer_destroy(&peer);
    printf("figure gemm_peer/%s/%s/%u %.1f GFLOP/s %.1f %.3f\n", b->kernels->name, shape->name,
           rows, gflop / ours, gflop / theirs, theirs / ours);
    b->figures++;
    if (theirs < 1.05 * ours) {
        b->library++;
        printf("the library is within 5 %% or faster: %s, %u rows\n", shape->name, rows);
    }
}

static void bench_shape(struct bench *b, const struct shape *shape)
{
    size_t count = (size_t)shape->cols * shape->outs;
    b->weights = allocate(count * sizeof(*b->weights));
    for (size_t i = 0; i < count; i++)
        b->weights[i] = random_bf16();
    struct bt_matrix rows = {b->weights, shape->outs, shape->cols, BT_BF16}, packed;
    void *tiles = allocate(b->kernels->packed_bytes(&rows, BT_USE_LINEAR, NULL));
    b->kernels->pack(b->stream, &rows, BT_USE_LINEAR, NULL, tiles, &packed);
    for (size_t r = 0; r < sizeof(row_counts) / sizeof(row_counts[0]); r++)
        time_shape(b, shape, &packed, row_counts[r]);
    free(tiles);
    free(b->weights);
}

/* Row 0 in batches of 1 … 512: how often the library gives it the bits that it has alone. */
static void library_determinism(struct bench *b)
{
    static const struct shape shape = {"determinism", 16384, 576};
    float *alone = allocate(shape.outs * sizeof(*alone));
    unsigned same = 0, sizes = 0;
    b->weights = allocate((size_t)shape.cols * shape.outs * sizeof(*b->weights));
    for (size_t i = 0; i < (size_t)shape.cols * shape.outs; i++)
        b->weights[i] = random_bf16();
    for (uint32_t rows = 1; rows <= MAX_ROWS; rows += rows < 64 ? 1 : 64, sizes++) {
        struct peer peer;
        peer_create(&peer, &shape, rows, b->x, b->weights, b->out);
        peer_run(&peer);
        peer_destroy(&peer);
        if (rows == 1)
            memcpy(alone, b->out, shape.outs * sizeof(*alone));
        same += memcmp(alone, b->out, shape.outs * sizeof(*alone)) == 0;
    }
    printf("oneDNN: a row has the bits that it has alone in %u of %u batch sizes\n", same, sizes);
    free(b->weights);
    free(alone);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"kernels", required_argument, NULL, 'k'},
                                            {"runs", required_argument, NULL, 'r'},
                                            {NULL, 0, NULL, 0}};
    const char *name = "auto";
    struct bench b = {.runs = 7};
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'k')
            name = optarg;
        else if (c == 'r')
            b.runs = atoi(optarg);
        else
            return 2;
    }
    struct bt_error error;
    struct bt_stream_limits limits = {.max_rows = MAX_ROWS, .max_cols = 16384};
    if (bt_kernels_select(name, &error, &b.kernels) != BT_OK ||
        bt_stream_create(&limits, NULL, &error, &b.stream) != BT_OK) {
        fprintf(stderr, "gemm_peer: %s\n", error.text);
        return 1;
    }
    size_t inputs = (size_t)MAX_ROWS * limits.max_cols;
    b.x = allocate(inputs * sizeof(*b.x));
    b.out = allocate((size_t)MAX_ROWS * 24576 * sizeof(*b.out));
    for (size_t i = 0; i < inputs; i++) {
        b.x[i] = bt_bf16_to_f32(random_bf16());
    }
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
        bench_shape(&b, &shapes[s]);
    printf("%u of %u figures: the library is within 5 %% or faster\n", b.library, b.figures);
    library_determinism(&b);
    free(b.x);
    free(b.out);
    bt_stream_destroy(b.stream);
    return 0;
}
