/* RMSNorm, residual sum, SwiGLU, movement of rows. */
#include <math.h>
#include <string.h>

#include "common/kernels/stream.h"
#include "common/kernels/weight.h"
#include "common/kernels/x86/tables.h"

static float rms_scale(const float *x, size_t dim, float eps)
{
    struct bt_v16 sum = bt_v16_zero();
    size_t i = 0;
    for (; i + BT_LANES <= dim; i += BT_LANES) {
        struct bt_v16 in = bt_v16_load(x + i);
        sum = bt_v16_fma(in, in, sum);
    }
    if (i < dim) {
        struct bt_v16 in = bt_v16_load_part(x + i, dim - i);
        sum = bt_v16_fma(in, in, sum);
    }
    return 1.0f / sqrtf(bt_v16_sum(sum) / (float)dim + eps);
}

/* x += y; the same as rms_scale of the sum. */
static float add_rms_scale(float *x, const float *y, size_t dim, float eps)
{
    struct bt_v16 sum = bt_v16_zero();
    size_t i = 0;
    for (; i + BT_LANES <= dim; i += BT_LANES) {
        struct bt_v16 in = bt_v16_add(bt_v16_load(x + i), bt_v16_load(y + i));
        bt_v16_store(x + i, in);
        sum = bt_v16_fma(in, in, sum);
    }
    if (i < dim) {
        struct bt_v16 in =
            bt_v16_add(bt_v16_load_part(x + i, dim - i), bt_v16_load_part(y + i, dim - i));
        bt_v16_store_part(x + i, in, dim - i);
        sum = bt_v16_fma(in, in, sum);
    }
    return 1.0f / sqrtf(bt_v16_sum(sum) / (float)dim + eps);
}

/* dtype is a constant where this is inlined. */
BT_INLINE void scale_row(const float *x, size_t dim, const struct bt_matrix *weight,
                         enum bt_dtype dtype, float factor_of_row, float *out)
{
    struct bt_v16 scale = bt_v16_set(factor_of_row);
    size_t i = 0;
    for (; i + BT_LANES <= dim; i += BT_LANES) {
        struct bt_v16 factor =
            bt_v16_load_dtype((const char *)weight->data + i * bt_dtype_bytes(dtype), dtype);
        bt_v16_store(out + i, bt_v16_mul(factor, bt_v16_mul(bt_v16_load(x + i), scale)));
    }
    if (i < dim) {
        struct bt_v16 factor = bt_v16_load_dtype_part(
            (const char *)weight->data + i * bt_dtype_bytes(dtype), dtype, dim - i);
        bt_v16_store_part(out + i,
                          bt_v16_mul(factor, bt_v16_mul(bt_v16_load_part(x + i, dim - i), scale)),
                          dim - i);
    }
}

void BT_X86_NAME(swiglu)(const float *gate, const float *up, size_t count, float *out)
{
    size_t i = 0;
    for (; i + BT_LANES <= count; i += BT_LANES)
        bt_v16_store(out + i, bt_v16_mul(bt_v16_silu(bt_v16_load(gate + i)), bt_v16_load(up + i)));
    if (i < count)
        bt_v16_store_part(out + i,
                          bt_v16_mul(bt_v16_silu(bt_v16_load_part(gate + i, count - i)),
                                     bt_v16_load_part(up + i, count - i)),
                          count - i);
}

static void norm_row(const float *x, size_t dim, const struct bt_matrix *weight, float scale,
                     float *out)
{
    if (weight->dtype == BT_F32)
        scale_row(x, dim, weight, BT_F32, scale, out);
    else if (weight->dtype == BT_BF16)
        scale_row(x, dim, weight, BT_BF16, scale, out);
    else
        scale_row(x, dim, weight, BT_F16, scale, out);
}

void BT_X86_NAME(rms_norm_row)(const float *x, size_t dim, const struct bt_matrix *weight,
                               float eps, float *out)
{
    norm_row(x, dim, weight, rms_scale(x, dim, eps), out);
}

/* ---- shared out over the team ---- */

/* A part is about so many floats: less is done before another thread is awake. */
#define PART_FLOATS ((size_t)64 * 1024)

/* Rows of `dim` floats: of most operations all arguments, of others some. */
struct call {
    const float *x;
    float *sum, *out;
    const float *y;
    size_t rows, dim, stride, each;
    const struct bt_matrix *weight;
    float eps;
    const uint32_t *wanted;
};

BT_INLINE size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Runs fn for parts of `each` of `count` units of `floats` floats; one part where that is little.
 */
static void share(struct bt_stream *stream, bt_team_fn *fn, struct call *call, size_t count,
                  size_t floats)
{
    size_t each = PART_FLOATS / (floats ? floats : 1) + 1;
    bool alone = bt_team_threads(stream->team) == 1 || count <= each;
    call->each = alone ? count : each;
    if (count > 0)
        bt_team_run(alone ? NULL : stream->team, fn, call,
                    (uint32_t)((count + call->each - 1) / call->each));
}

static void rms_norm_part(void *context, uint32_t part, uint32_t thread)
{
    const struct call *c = context;
    size_t end = least(c->rows, (part + (size_t)1) * c->each);
    (void)thread;
    for (size_t row = part * c->each; row < end; row++)
        BT_X86_NAME(rms_norm_row)
    (c->x + row * c->stride, c->dim, c->weight, c->eps, c->out + row * c->dim);
}

void BT_X86_NAME(rms_norm)(struct bt_stream *stream, const float *x, uint32_t rows, uint32_t dim,
                           uint32_t stride, const struct bt_matrix *weight, float eps, float *out)
{
    struct call call = {.x = x,
                        .out = out,
                        .rows = rows,
                        .dim = dim,
                        .stride = stride,
                        .weight = weight,
                        .eps = eps};
    share(stream, rms_norm_part, &call, rows, dim);
}

static void add_rms_norm_part(void *context, uint32_t part, uint32_t thread)
{
    const struct call *c = context;
    size_t end = least(c->rows, (part + (size_t)1) * c->each);
    (void)thread;
    for (size_t at = part * c->each * c->dim; at < end * c->dim; at += c->dim) {
        float scale = add_rms_scale(c->sum + at, c->y + at, c->dim, c->eps);
        norm_row(c->sum + at, c->dim, c->weight, scale, c->out + at);
    }
}

void BT_X86_NAME(add_rms_norm)(struct bt_stream *stream, float *x, const float *y, uint32_t rows,
                               uint32_t dim, const struct bt_matrix *weight, float eps, float *out)
{
    struct call call = {
        .sum = x, .y = y, .out = out, .rows = rows, .dim = dim, .weight = weight, .eps = eps};
    share(stream, add_rms_norm_part, &call, rows, dim);
}

static void add_part(void *context, uint32_t part, uint32_t thread)
{
    const struct call *c = context;
    size_t first = part * c->each, count = least(c->dim - first, c->each);
    float *x = c->sum + first;
    const float *y = c->y + first;
    (void)thread;
    for (size_t i = 0; i < count; i++)
        x[i] += y[i];
}

void BT_X86_NAME(add)(struct bt_stream *stream, float *x, const float *y, size_t count)
{
    struct call call = {.sum = x, .y = y, .dim = count};
    share(stream, add_part, &call, count, 1);
}

static void zero_part(void *context, uint32_t part, uint32_t thread)
{
    const struct call *c = context;
    size_t first = part * c->each;
    (void)thread;
    memset(c->sum + first, 0, least(c->dim - first, c->each) * sizeof(float));
}

void BT_X86_NAME(zero)(struct bt_stream *stream, float *x, size_t count)
{
    struct call call = {.sum = x, .dim = count};
    share(stream, zero_part, &call, count, 1);
}

/* Some columns of all rows: a row may be where another one has to go. */
static void gather_part(void *context, uint32_t part, uint32_t thread)
{
    const struct call *c = context;
    size_t first = part * c->each, count = least(c->dim - first, c->each);
    (void)thread;
    for (size_t i = 0; i < c->rows; i++)
        if (c->wanted[i] != i)
            memcpy(c->sum + i * c->dim + first, c->sum + c->wanted[i] * c->dim + first,
                   count * sizeof(float));
}

void BT_X86_NAME(gather_rows)(struct bt_stream *stream, float *x, uint32_t dim,
                              const uint32_t *wanted, uint32_t count)
{
    struct call call = {.sum = x, .wanted = wanted, .rows = count, .dim = dim};
    share(stream, gather_part, &call, dim, count);
}
