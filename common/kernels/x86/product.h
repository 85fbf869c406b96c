/*
 * Products of rows with weight rows, the core of the x86 backends. Each output is a sum in sixteen
 * lanes, lane l over k ≡ l (mod 16) in ascending order by fused multiply-add, the lanes summed by
 * the tree of lanes.h: the same bits whichever function, tile or panel computed it.
 */
#ifndef BATON_COMMON_KERNELS_X86_PRODUCT_H
#define BATON_COMMON_KERNELS_X86_PRODUCT_H

#include "common/kernels/kernels.h"
#include "common/kernels/x86/lanes.h"
#include "common/kernels/x86/x86.h"

/* Weight rows: `outs` of `cols` elements, `stride` elements apart. */
struct bt_x86_weights {
    const void *data;
    enum bt_dtype dtype;
    size_t outs, cols, stride;
};

/* Rows of f32 in or out, `stride` floats apart. */
struct bt_x86_rows {
    const float *data;
    size_t count, stride;
};

/* out[row * out_stride + n] = sum_k x[row][k] * w[n][k]. panel: BT_X86_PRODUCT_FLOATS. */
void BT_X86_NAME(product)(struct bt_x86_rows x, struct bt_x86_weights w, float *panel, float *out,
                          size_t out_stride);

/* All outputs of a matrix in ROWS, shared out over the team; panels: of each thread, taken by
 * product_panels. out [row][weight->rows]. */
void BT_X86_NAME(product_shared)(struct bt_stream *stream, struct bt_x86_rows x,
                                 const struct bt_matrix *weight, float *panels, float *out);
float *BT_X86_NAME(product_panels)(struct bt_stream *stream);

/* The same without a panel: for few rows, or weights that are f32 already. */
void BT_X86_NAME(product_direct)(struct bt_x86_rows x, struct bt_x86_weights w, float *out,
                                 size_t out_stride);

/* Converts weights to f32, rows `bt_x86_padded(cols)` apart, padded with zeros. */
void BT_X86_NAME(widen)(struct bt_x86_weights w, float *out);

/*
 * acc[row][i] += sum over t of p[row][t] * values[t][i], t ascending by fused multiply-add.
 */
void BT_X86_NAME(accumulate)(struct bt_x86_rows p, size_t tokens, const void *values,
                             enum bt_dtype dtype, size_t values_stride, size_t dim, float *acc,
                             size_t acc_stride);

static inline struct bt_x86_weights bt_x86_weights_of(const struct bt_matrix *matrix, size_t row,
                                                      size_t count)
{
    size_t offset = row * matrix->cols * bt_dtype_bytes(matrix->dtype);
    return (struct bt_x86_weights){(const char *)matrix->data + offset, matrix->dtype, count,
                                   matrix->cols, matrix->cols};
}

#endif
