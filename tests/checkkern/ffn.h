/*
 * down(silu(gate(x)) * up(x)) of one row in double, in the arithmetic of either layout, and how far
 * f32 may be from it. Written apart from every backend.
 */
#ifndef BATON_TESTS_CHECKKERN_FFN_H
#define BATON_TESTS_CHECKKERN_FFN_H

#include "tests/checkkern/check.h"

/* The weights as they are multiplied: [rows][cols]; freed with the shape. */
struct ffn_matrix {
    const float *values;
    const float *scales; /* [rows], of I8 and I4; else NULL */
    enum bt_dtype dtype;
    uint32_t rows, cols;
};

struct ffn_weights {
    struct ffn_matrix gate, up, down;
    bool tiles; /* inputs of products are rounded or quantised */
};

struct ffn_matrix ffn_matrix_of(struct check *check, const struct bt_matrix *rows, bool tiles);

/*
 * y [down.rows], and for each the largest error: that of the sums (of n terms about sqrt(n)
 * roundings of at most the sum of magnitudes), and where an inner element is so near to the middle
 * of two roundings that f32 may take either, the difference of the two. scratch: 3 * the larger of
 * gate's and down's cols. With y rounded to bf16, likewise.
 */
void ffn_row(const struct ffn_weights *w, const float *x, bool round_result, double *scratch,
             double *y, double *error);

/* x [row][gate.cols] by a dense network: want and error [row][down.rows]. */
void ffn_rows(struct check *check, const struct ffn_weights *w, const float *x, uint32_t rows,
              bool round_result, double *want, double *error);

#endif
