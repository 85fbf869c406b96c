/* Which tokens a device draws (kernels.h): those that need the logits alone. */
#ifndef BATON_COMMON_MODEL_DRAWS_H
#define BATON_COMMON_MODEL_DRAWS_H

#include "common/kernels/kernels.h"
#include "common/model/sampler.h"

/*
 * `draw` for the token after `position` generated ones. False: it takes penalties, bias, a mask or
 * logprobs, so that bt_sampler_draw has to draw it on the host; *ret_draw is any that can be made.
 */
bool bt_sampling_draw(const struct bt_sampling *sampling, uint32_t position,
                      struct bt_draw *ret_draw);

#endif
