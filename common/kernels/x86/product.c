#include "common/kernels/x86/product.h"

#define MAX_TILE_ROWS 6
#define MAX_TILE_OUTS 8

/* The registers hold the sums of a tile, its weights and one vector of x: 32 and 16 registers. */
#ifdef __AVX512F__
#define TILE_ROWS   6
#define TILE_OUTS   4
#define STREAM_OUTS 8
#define BLOCK_ROWS  6
#define BLOCK_COLS  2048
#define COPY_ROWS   false
#else
#define TILE_ROWS   3
#define TILE_OUTS   2
#define STREAM_OUTS 4
#define BLOCK_ROWS  9
#define BLOCK_COLS  512
#define COPY_ROWS   true /* two loads an operation: one that crosses a cache line costs */
#endif

BT_INLINE size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

BT_INLINE const void *weight_at(const struct bt_x86_weights *w, size_t out, size_t k)
{
    return (const char *)w->data + (out * w->stride + k) * bt_dtype_bytes(w->dtype);
}

/* Sums the lanes of sums [rows * outs] into out. */
BT_INLINE void tile_store(const struct bt_v16 *sums, size_t rows, size_t outs, float *out,
                          size_t out_stride)
{
    float flat[MAX_TILE_ROWS * MAX_TILE_OUTS + 3];
    size_t count = rows * outs;
#pragma GCC unroll 12
    for (size_t i = 0; i < count; i += 4) {
        struct bt_v16 zero = bt_v16_zero();
        _mm_storeu_ps(flat + i, bt_v16_sum4(sums[i], i + 1 < count ? sums[i + 1] : zero,
                                            i + 2 < count ? sums[i + 2] : zero,
                                            i + 3 < count ? sums[i + 3] : zero));
    }
#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++)
        memcpy(out + r * out_stride, flat + r * outs, outs * sizeof(*out));
}

/*
 * A product may be done in blocks of columns: the lanes of the sums so far wait here. All blocks
 * but the last are whole vectors.
 */
struct carry {
    float *lanes; /* [output][BT_LANES] */
    bool first, last;
};

/* One tile of rows x outs, both constants where this is inlined. */
BT_INLINE void tile(const float *x, size_t x_stride, const struct bt_x86_weights *w, size_t out_at,
                    enum bt_dtype dtype, struct carry carry, size_t rows, size_t outs, float *out,
                    size_t out_stride)
{
    struct bt_v16 sums[MAX_TILE_ROWS * MAX_TILE_OUTS], weights[MAX_TILE_OUTS];
    const char *base = weight_at(w, out_at, 0);
    size_t bytes = bt_dtype_bytes(dtype), row_bytes = w->stride * bytes;
    size_t part = w->cols % BT_LANES, whole = w->cols - part;

#pragma GCC unroll 48
    for (size_t i = 0; i < rows * outs; i++)
        sums[i] = carry.first ? bt_v16_zero() : bt_v16_load(carry.lanes + i * BT_LANES);
    for (size_t k = 0; k < whole; k += BT_LANES) {
#pragma GCC unroll 8
        for (size_t n = 0; n < outs; n++)
            weights[n] = bt_v16_load_dtype(base + n * row_bytes + k * bytes, dtype);
#pragma GCC unroll 6
        for (size_t r = 0; r < rows; r++) {
            struct bt_v16 in = bt_v16_load(x + r * x_stride + k);
#pragma GCC unroll 8
            for (size_t n = 0; n < outs; n++)
                sums[r * outs + n] = bt_v16_fma(in, weights[n], sums[r * outs + n]);
        }
    }
    if (part) {
#pragma GCC unroll 8
        for (size_t n = 0; n < outs; n++)
            weights[n] = bt_v16_load_dtype_part(base + n * row_bytes + whole * bytes, dtype, part);
#pragma GCC unroll 6
        for (size_t r = 0; r < rows; r++) {
            struct bt_v16 in = bt_v16_load_part(x + r * x_stride + whole, part);
#pragma GCC unroll 8
            for (size_t n = 0; n < outs; n++)
                sums[r * outs + n] = bt_v16_fma(in, weights[n], sums[r * outs + n]);
        }
    }
    if (carry.last) {
        tile_store(sums, rows, outs, out + out_at, out_stride);
        return;
    }
#pragma GCC unroll 48
    for (size_t i = 0; i < rows * outs; i++)
        bt_v16_store(carry.lanes + i * BT_LANES, sums[i]);
}

/* All rows against the weight rows out_at … out_at + outs - 1. */
BT_INLINE void strip(struct bt_x86_rows x, const struct bt_x86_weights *w, size_t out_at,
                     enum bt_dtype dtype, struct carry carry, size_t outs, float *out,
                     size_t out_stride)
{
    size_t row = 0;
    carry.lanes += x.count * out_at * BT_LANES;
    for (; row + TILE_ROWS <= x.count; row += TILE_ROWS) {
        tile(x.data + row * x.stride, x.stride, w, out_at, dtype, carry, TILE_ROWS, outs,
             out + row * out_stride, out_stride);
        carry.lanes += TILE_ROWS * outs * BT_LANES;
    }
    for (; row + 2 <= x.count; row += 2) {
        tile(x.data + row * x.stride, x.stride, w, out_at, dtype, carry, 2, outs,
             out + row * out_stride, out_stride);
        carry.lanes += 2 * outs * BT_LANES;
    }
    if (row < x.count)
        tile(x.data + row * x.stride, x.stride, w, out_at, dtype, carry, 1, outs,
             out + row * out_stride, out_stride);
}

/* carry: [x.count * w->outs][BT_LANES], not touched when this is the first block and the last. */
BT_INLINE void product_block(struct bt_x86_rows x, const struct bt_x86_weights *w,
                             enum bt_dtype dtype, struct carry carry, float *out, size_t out_stride)
{
    size_t n = 0;
    for (; n + TILE_OUTS <= w->outs; n += TILE_OUTS)
        strip(x, w, n, dtype, carry, TILE_OUTS, out, out_stride);
    for (; n < w->outs; n++)
        strip(x, w, n, dtype, carry, 1, out, out_stride);
}

BT_INLINE void product_dtype(struct bt_x86_rows x, struct bt_x86_weights w, enum bt_dtype dtype,
                             float *out, size_t out_stride)
{
    float none[BT_LANES];
    struct carry all = {none, true, true};
    if (x.count == 1) { /* bound by reading the weights: many streams in flight */
        size_t n = 0;
        for (; n + STREAM_OUTS <= w.outs; n += STREAM_OUTS)
            tile(x.data, x.stride, &w, n, dtype, all, 1, STREAM_OUTS, out, out_stride);
        w.data = weight_at(&w, n, 0);
        w.outs -= n;
        out += n;
    }
    product_block(x, &w, dtype, all, out, out_stride);
}

void BT_X86_NAME(product_direct)(struct bt_x86_rows x, struct bt_x86_weights w, float *out,
                                 size_t out_stride)
{
    if (w.dtype == BT_F32)
        product_dtype(x, w, BT_F32, out, out_stride);
    else if (w.dtype == BT_BF16)
        product_dtype(x, w, BT_BF16, out, out_stride);
    else
        product_dtype(x, w, BT_F16, out, out_stride);
}

void BT_X86_NAME(widen)(struct bt_x86_weights w, float *out)
{
    size_t padded = bt_x86_padded(w.cols), whole = w.cols / BT_LANES * BT_LANES;
    for (size_t n = 0; n < w.outs; n++) {
        for (size_t k = 0; k < whole; k += BT_LANES)
            bt_v16_store(out + n * padded + k, bt_v16_load_dtype(weight_at(&w, n, k), w.dtype));
        if (whole < padded)
            bt_v16_store(out + n * padded + whole,
                         bt_v16_load_dtype_part(weight_at(&w, n, whole), w.dtype, w.cols - whole));
    }
}

/* How many weight rows a panel takes; 0: not even one. */
static size_t panel_outs(size_t cols)
{
    size_t outs = cols ? BT_X86_PANEL_FLOATS / bt_x86_padded(cols) : BT_X86_PANEL_OUTS;
    if (outs > BT_X86_PANEL_OUTS)
        return BT_X86_PANEL_OUTS;
    return outs > TILE_OUTS ? outs / TILE_OUTS * TILE_OUTS : outs;
}

/*
 * Rows against a panel: a block of rows by a block of columns at a time, so that both it and the
 * weights of a strip stay in L1; with COPY_ROWS copied, so that no load crosses a cache line.
 * scratch: the part behind the panel.
 */
static void product_panel(struct bt_x86_rows x, const struct bt_x86_weights *panel, float *scratch,
                          float *out, size_t out_stride)
{
    float *lanes = scratch + BT_X86_BLOCK_FLOATS;
    for (size_t row = 0; row < x.count; row += BLOCK_ROWS) {
        size_t count = least(x.count - row, BLOCK_ROWS);
        size_t k = 0;
        do {
            struct bt_x86_weights part = *panel;
            part.cols = least(panel->cols - k, BLOCK_COLS);
            part.data = weight_at(panel, 0, k);
            struct carry carry = {lanes, k == 0, k + part.cols == panel->cols};
            struct bt_x86_rows block = {x.data + row * x.stride + k, count, x.stride};
            if (COPY_ROWS) {
                for (size_t r = 0; r < count; r++)
                    memcpy(scratch + r * BLOCK_COLS, block.data + r * x.stride,
                           part.cols * sizeof(*scratch));
                block = (struct bt_x86_rows){scratch, count, BLOCK_COLS};
            }
            product_block(block, &part, BT_F32, carry, out + row * out_stride, out_stride);
            k += part.cols;
        } while (k < panel->cols);
    }
}

void BT_X86_NAME(product)(struct bt_x86_rows x, struct bt_x86_weights w, float *panel, float *out,
                          size_t out_stride)
{
    size_t step = panel_outs(w.cols);
    if (x.count < BT_X86_PANEL_MIN_ROWS || step == 0) {
        BT_X86_NAME(product_direct)(x, w, out, out_stride);
        return;
    }
    for (size_t n = 0; n < w.outs; n += step) {
        struct bt_x86_weights part = w;
        part.data = weight_at(&w, n, 0);
        part.outs = least(w.outs - n, step);
        BT_X86_NAME(widen)(part, panel);
        part.data = panel;
        part.dtype = BT_F32;
        part.stride = bt_x86_padded(w.cols);
        product_panel(x, &part, panel + BT_X86_PANEL_FLOATS, out + n, out_stride);
    }
}

_Static_assert(BLOCK_ROWS <= BT_X86_BLOCK_ROWS && BLOCK_ROWS * BLOCK_COLS <= BT_X86_BLOCK_FLOATS,
               "a block has its place behind the panel");

/* Rows x (vectors * 16) sums in registers, over all tokens. */
BT_INLINE void accumulate_tile(const float *p, size_t p_stride, size_t tokens, const char *values,
                               enum bt_dtype dtype, size_t values_stride, size_t rows,
                               size_t vectors, float *acc, size_t acc_stride)
{
    struct bt_v16 sums[MAX_TILE_ROWS * MAX_TILE_OUTS];
    size_t bytes = bt_dtype_bytes(dtype);

#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 8
        for (size_t i = 0; i < vectors; i++)
            sums[r * vectors + i] = bt_v16_load(acc + r * acc_stride + i * BT_LANES);
    }
    for (size_t t = 0; t < tokens; t++) {
        struct bt_v16 in[MAX_TILE_OUTS];
#pragma GCC unroll 8
        for (size_t i = 0; i < vectors; i++)
            in[i] = bt_v16_load_dtype(values + (t * values_stride + i * BT_LANES) * bytes, dtype);
#pragma GCC unroll 6
        for (size_t r = 0; r < rows; r++) {
            struct bt_v16 weight = bt_v16_set(p[r * p_stride + t]);
#pragma GCC unroll 8
            for (size_t i = 0; i < vectors; i++)
                sums[r * vectors + i] = bt_v16_fma(weight, in[i], sums[r * vectors + i]);
        }
    }
#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 8
        for (size_t i = 0; i < vectors; i++)
            bt_v16_store(acc + r * acc_stride + i * BT_LANES, sums[r * vectors + i]);
    }
}

BT_INLINE void accumulate_strip(struct bt_x86_rows p, size_t tokens, const char *values,
                                enum bt_dtype dtype, size_t values_stride, size_t vectors,
                                float *acc, size_t acc_stride)
{
    size_t row = 0;
    for (; row + TILE_ROWS <= p.count; row += TILE_ROWS)
        accumulate_tile(p.data + row * p.stride, p.stride, tokens, values, dtype, values_stride,
                        TILE_ROWS, vectors, acc + row * acc_stride, acc_stride);
    for (; row < p.count; row++)
        accumulate_tile(p.data + row * p.stride, p.stride, tokens, values, dtype, values_stride, 1,
                        vectors, acc + row * acc_stride, acc_stride);
}

/* The last `part` (1 … 15) elements of each row. */
BT_INLINE void accumulate_part(struct bt_x86_rows p, size_t tokens, const char *values,
                               enum bt_dtype dtype, size_t values_stride, size_t part, float *acc,
                               size_t acc_stride)
{
    size_t bytes = bt_dtype_bytes(dtype);
    for (size_t row = 0; row < p.count; row++) {
        struct bt_v16 sum = bt_v16_load_part(acc + row * acc_stride, part);
        for (size_t t = 0; t < tokens; t++)
            sum = bt_v16_fma(
                bt_v16_set(p.data[row * p.stride + t]),
                bt_v16_load_dtype_part(values + t * values_stride * bytes, dtype, part), sum);
        bt_v16_store_part(acc + row * acc_stride, sum, part);
    }
}

BT_INLINE void accumulate_dtype(struct bt_x86_rows p, size_t tokens, const char *values,
                                enum bt_dtype dtype, size_t values_stride, size_t dim, float *acc,
                                size_t acc_stride)
{
    size_t i = 0, bytes = bt_dtype_bytes(dtype);
    for (; i + TILE_OUTS * BT_LANES <= dim; i += TILE_OUTS * BT_LANES)
        accumulate_strip(p, tokens, values + i * bytes, dtype, values_stride, TILE_OUTS, acc + i,
                         acc_stride);
    for (; i + BT_LANES <= dim; i += BT_LANES)
        accumulate_strip(p, tokens, values + i * bytes, dtype, values_stride, 1, acc + i,
                         acc_stride);
    if (i < dim)
        accumulate_part(p, tokens, values + i * bytes, dtype, values_stride, dim - i, acc + i,
                        acc_stride);
}

void BT_X86_NAME(accumulate)(struct bt_x86_rows p, size_t tokens, const void *values,
                             enum bt_dtype dtype, size_t values_stride, size_t dim, float *acc,
                             size_t acc_stride)
{
    if (dtype == BT_F32)
        accumulate_dtype(p, tokens, values, BT_F32, values_stride, dim, acc, acc_stride);
    else if (dtype == BT_BF16)
        accumulate_dtype(p, tokens, values, BT_BF16, values_stride, dim, acc, acc_stride);
    else
        accumulate_dtype(p, tokens, values, BT_F16, values_stride, dim, acc, acc_stride);
}
