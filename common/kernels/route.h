/*
 * The choice of experts from their scores: the same scalar code for every CPU backend, so that two
 * backends with the same scores choose alike.
 */
#ifndef BATON_COMMON_KERNELS_ROUTE_H
#define BATON_COMMON_KERNELS_ROUTE_H

#include "common/kernels/kernels.h"

/*
 * scores [experts]: after softmax or sigmoid. work [2 * experts], allowed [experts]: work space.
 * bias as in moe_route. Gives experts_per_token distinct experts whatever the scores are, NaN
 * included: a NaN is worth as little as minus infinity.
 */
void bt_route_choose(const float *scores, const struct bt_matrix *bias,
                     const struct bt_route_shape *shape, float *work, bool *allowed,
                     uint32_t *out_experts, float *out_weights);

/* Fills order and begin of `routing` from its experts: a counting sort. */
void bt_route_group(const struct bt_route_shape *shape, uint32_t rows,
                    const struct bt_routing *routing);

#endif
