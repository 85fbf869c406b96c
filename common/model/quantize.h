/*
 * Weights to integers, a row (one output) at a time. Pure; any thread. Rows with nothing above
 * 1e-30 are taken for zeros.
 *
 *     int8   value = round(weight / scale), -127 … 127; scale = max |weight| / 127
 *     int4   weight = value * group_scale * scale with value -7 … 7; a group is 128 inputs, its
 *            scale an integer 1 … 18, so that value * group_scale is an int8: products are sums of
 *            int8 with one scale a row, as for int8
 */
#ifndef BATON_COMMON_MODEL_QUANTIZE_H
#define BATON_COMMON_MODEL_QUANTIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BT_QUANTIZE_GROUP           128
#define BT_QUANTIZE_MAX_GROUP_SCALE 18

/* Returns the scale; 1 for a row of zeros; NAN, and no values, where a weight is not finite. */
float bt_quantize_row_i8(const float *weights, size_t cols, int8_t *ret_values);

/*
 * Returns the scale, likewise. ret_values [cols] -7 … 7, ret_group_scales [ceil(cols / 128)].
 * `importance` [cols]: what the squared error of an input counts (the mean of its squared
 * activations); NULL: 1. `search`: clips each group where that makes the error smaller.
 */
float bt_quantize_row_i4(const float *weights, size_t cols, const float *importance, bool search,
                         int8_t *ret_values, uint8_t *ret_group_scales);

/* Two values a byte, the even column in the low four bits; cols even. */
void bt_quantize_pack_i4(const int8_t *values, size_t cols, uint8_t *ret_bytes);

#endif
