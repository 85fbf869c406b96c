/*
 * The part of a weight that falls to a rank, where a weight is shared out by its outputs or its
 * inputs. Inside common/model only.
 */
#ifndef BATON_COMMON_MODEL_SLICE_H
#define BATON_COMMON_MODEL_SLICE_H

#include "common/kernels/kernels.h"

enum bt_split { BT_SPLIT_NONE, BT_SPLIT_OUTPUTS, BT_SPLIT_INPUTS };

/* What the first element and the size of a part must be a multiple of: blocks and groups that
 * share a scale are not cut. */
uint32_t bt_slice_step(enum bt_dtype dtype, enum bt_split split);

/* Outputs first … first + count - 1 of a matrix in ROWS, where they are. */
struct bt_matrix bt_slice_outputs(const struct bt_matrix *whole, uint32_t first, uint32_t count);

/* Bytes that bt_slice_inputs needs, and the copy itself with all scales; `out` aligned to 4. */
size_t bt_slice_inputs_bytes(const struct bt_matrix *whole, uint32_t count);
struct bt_matrix bt_slice_inputs(const struct bt_matrix *whole, uint32_t first, uint32_t count,
                                 void *out);

#endif
