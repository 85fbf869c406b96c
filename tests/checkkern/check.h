/*
 * The harness of checkkern: seeded data, buffers with canaries, comparisons that say where. A case
 * runs one operation of one table over many shapes; the first fault of a shape is printed with
 * seed, operation and shape.
 */
#ifndef BATON_TESTS_CHECKKERN_CHECK_H
#define BATON_TESTS_CHECKKERN_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/kernels/kernels.h"

#define CHECK_MAX_BUFFERS 64

/* Half a unit in the last place of 1.0f: the largest relative error of one rounding. */
#define CHECK_EPS 0x1p-24

/* Of a function that computes what is expected: no sanitizer looks at it, as at none of check.c. */
#define CHECK_FORMULA __attribute__((no_sanitize("address", "undefined")))

struct check {
    const struct bt_kernels *kernels; /* under test */
    const struct bt_kernels *oracle;  /* ref; NULL when ref itself is under test: naive formulas */
    const struct bt_kernels *twin;    /* must give the same bits; may be NULL */
    uint64_t seed, random;
    const char *op;
    char shape[256];
    unsigned shapes, failures;
    bool is_emulated;     /* some thousand times slower: leave large shapes out */
    bool only_tiles;      /* weights in ROWS are another table's business */
    struct bt_team *team; /* of two threads, for `check_stream_team`; results must not change */
    void *buffers[CHECK_MAX_BUFFERS]; /* of this shape */
    size_t buffer_bytes[CHECK_MAX_BUFFERS];
    unsigned buffer_count;
};

/* A GPU's code on an emulated grid, to which each call is dear. */
static inline bool check_on_grid(const struct check *check)
{
    return check->is_emulated && !check->only_tiles;
}

enum check_kind { CHECK_NORMAL, CHECK_LARGE, CHECK_TINY, CHECK_DENORMAL, CHECK_ZERO, CHECK_KINDS };

/* Begins a shape: restarts the random numbers at (seed, shape), so that a shape can be re-run. */
void check_begin(struct check *check, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Ends it: checks all canaries, frees the buffers. */
void check_end(struct check *check);

void check_fail(struct check *check, const char *format, ...) __attribute__((format(printf, 2, 3)));

uint64_t check_random(struct check *check);
/* 0 … bound - 1 */
uint32_t check_below(struct check *check, uint32_t bound);
/* Uniform in -1 … 1. */
float check_uniform(struct check *check);

/*
 * A buffer of this shape, freed by check_end, with canaries on both sides. Filled with a pattern
 * that is a NaN as f32 and as bf16, so that reading what nobody wrote shows.
 */
void *check_buffer(struct check *check, size_t bytes);         /* aligned to 16 bytes and no more */
void *check_buffer_aligned(struct check *check, size_t bytes); /* to 64 */
float *check_floats(struct check *check, size_t count);
/* Filled by kind; LARGE is 1e15, TINY 1e-18, DENORMAL 1e-40, each times -1 … 1. */
float *check_floats_random(struct check *check, size_t count, enum check_kind kind);
/*
 * Random, in ROWS, of any dtype, aligned to the element and to no more. `scale` is the size of the
 * weights: floats are uniform in it, quantised ones have random scales that bring them there. I4
 * has cols rounded up to a multiple of 128.
 */
struct bt_matrix check_matrix(struct check *check, uint32_t rows, uint32_t cols,
                              enum bt_dtype dtype, float scale);
/* Rows first … first + count - 1 of it, which for F8_E4M3 begin at a multiple of 128. */
struct bt_matrix check_matrix_rows(const struct bt_matrix *matrix, uint32_t first, uint32_t count);
/* The weight by the definition of ROWS, scales and all. */
double check_matrix_at(const struct bt_matrix *matrix, size_t row, size_t col);

/* `rows` packed by the table under test into a buffer of this shape. `shape` for BT_USE_KV_B. */
struct bt_matrix check_packed(struct check *check, const struct bt_matrix *rows, enum bt_use use,
                              const struct bt_mla_shape *shape);

/*
 * What tile arithmetic multiplies, computed from ROWS apart from the code under test.
 *
 * check_tile_at: the weight: rounded to bf16 (F8_E4M3: the f32 product of value and scale is), or
 * exact for I8 and I4, the scale of the row in it.
 * check_tile_input: one row of activations for weights of `dtype`: rounded to bf16; or for I8 and
 * I4 to n * step, step = max |x| / 127, at least FLT_MIN, and n = x / step as an integer, both
 * quotients f32 and ties to even; then NaN if an x is NaN or infinite. With check_f8_inputs: of
 * each 128 to e4m3(x / scale) * scale, scale = max |x| / 448.
 */
/* Whether rows for weights of this dtype are quantised to e4m3 (bt_kernels.f8_inputs) by the table
 * under test: the weights then are exact, too, and ref's arithmetic is another one. */
void check_set_f8_inputs(bool is);
bool check_f8_inputs(enum bt_dtype dtype);
/* With eight significant bits, ties to even; exponents of f32. */
double check_nearest_bf16(double value);
double check_tile_at(const struct bt_matrix *rows, size_t row, size_t col);
void check_tile_input(const float *x, size_t cols, enum bt_dtype dtype, double *out);

struct bt_stream *check_stream(const struct bt_stream_limits *limits);
/* One that works with check->team. */
struct bt_stream *check_stream_team(struct check *check, const struct bt_stream_limits *limits);

/*
 * Every |got - want| <= factor * magnitude[i] + floor, and in the 2-norm at
 * three quarters of that: rounding errors are random, a lost term is not. magnitude NULL: |want|.
 */
void check_close(struct check *check, const char *what, const float *got, const double *want,
                 const double *magnitude, size_t count, double factor, double floor);
/* The same bits. */
void check_bits(struct check *check, const char *what, const void *got, const void *want,
                size_t count, size_t element_bytes);

/* The cases, by operation. */
void check_dtype(struct check *check); /* of no table */
void check_pack(struct check *check);
void check_expand(struct check *check);
void check_embed(struct check *check);
void check_rms_norm(struct check *check);
void check_gemm(struct check *check); /* x86 */
void check_linear(struct check *check);
void check_add(struct check *check);
void check_add_rms_norm(struct check *check);
void check_zero(struct check *check);
void check_gather_rows(struct check *check);
void check_rope_q(struct check *check);
void check_kv_write(struct check *check);
void check_mla_prefill(struct check *check);
void check_mla_decode(struct check *check);
void check_mla_needle(struct check *check);
void check_mla_finite(struct check *check);
void check_mlp(struct check *check);
void check_moe_route(struct check *check);
void check_moe_experts(struct check *check);
void check_draw(struct check *check);  /* of a device */
void check_stage(struct check *check); /* likewise */

/* Times the operations against what this machine can do; prints `figure` lines. */
void check_bench(const struct bt_kernels *kernels);
void check_bench_tiles(const struct bt_kernels *kernels);
void check_bench_linear(const struct bt_kernels *kernels);
void check_bench_experts(const struct bt_kernels *kernels);
void check_bench_mla(const struct bt_kernels *kernels);

#endif
