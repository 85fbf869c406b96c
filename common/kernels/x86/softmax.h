/*
 * The softmax of one row over pages that come one after the other: maximum and sum so far, and the
 * row's weighted sum of values relative to that maximum. A function of the row's scores alone.
 */
#ifndef BATON_COMMON_KERNELS_X86_SOFTMAX_H
#define BATON_COMMON_KERNELS_X86_SOFTMAX_H

#include "common/kernels/kernels.h"
#include "common/kernels/x86/lanes.h"

/*
 * scores [BT_PAGE_TOKENS], the first `seen` (1 … 64) of them valid: become weights relative to the
 * new maximum, zeros behind. max, sum: the row's state (-infinity and 0 at first). acc [dim] is
 * brought to the new maximum.
 */
void BT_X86_NAME(softmax_page)(float *scores, size_t seen, float scale, float *max, float *sum,
                               float *acc, size_t dim);

/* out [dim] = acc / sum */
void BT_X86_NAME(softmax_end)(const float *acc, float sum, size_t dim, float *out);

#endif
