#include "common/model/draws.h"

bool bt_sampling_draw(const struct bt_sampling *sampling, uint32_t position,
                      struct bt_draw *ret_draw)
{
    bool plain = sampling->logprobs < 0 && sampling->bias_count == 0 &&
                 position >= sampling->min_tokens && !bt_sampling_needs_history(sampling);
    *ret_draw = plain ? (struct bt_draw){sampling->seed,  position,        sampling->temperature,
                                         sampling->top_p, sampling->min_p, sampling->top_k}
                      : (struct bt_draw){0};
    return plain;
}
