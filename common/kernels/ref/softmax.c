#include "common/kernels/ref/softmax.h"

#include <math.h>
#include <string.h>

void bt_ref_softmax_begin(struct bt_ref_softmax *state, double *acc, uint32_t dim)
{
    state->max = -INFINITY;
    state->sum = 0;
    memset(acc, 0, dim * sizeof(*acc));
}

void bt_ref_softmax_page(struct bt_ref_softmax *state, double *scores, uint32_t count, double *acc,
                         uint32_t dim)
{
    double max = state->max;
    for (uint32_t i = 0; i < count; i++)
        max = scores[i] > max ? scores[i] : max;
    double keep = state->max == max ? 1.0 : exp(state->max - max);
    state->max = max;
    state->sum *= keep;
    for (uint32_t j = 0; j < dim; j++)
        acc[j] *= keep;
    for (uint32_t i = 0; i < count; i++) {
        scores[i] = exp(scores[i] - max);
        state->sum += scores[i];
    }
}
