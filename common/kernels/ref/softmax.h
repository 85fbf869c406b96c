/*
 * A softmax over pages that come one after the other: running maximum, sum of exponentials, and the
 * weighted sum of vectors, all relative to the maximum so far.
 */
#ifndef BATON_COMMON_KERNELS_REF_SOFTMAX_H
#define BATON_COMMON_KERNELS_REF_SOFTMAX_H

#include <stdint.h>

struct bt_ref_softmax {
    double max;
    double sum;
};

void bt_ref_softmax_begin(struct bt_ref_softmax *state, double *acc, uint32_t dim);

/*
 * Turns scores [count] (count >= 1) into weights relative to the new maximum, and rescales acc
 * [dim] to it. The caller then adds weight * vector for each.
 */
void bt_ref_softmax_page(struct bt_ref_softmax *state, double *scores, uint32_t count, double *acc,
                         uint32_t dim);

#endif
