/* What the sampler asks of a history. Inside common/model only. */
#ifndef BATON_COMMON_MODEL_HISTORY_H
#define BATON_COMMON_MODEL_HISTORY_H

#include "common/model/sampler.h"

/* Repetition, frequency and presence penalties, in place. */
void bt_sampler_history_apply(const struct bt_sampler_history *history,
                              const struct bt_sampling *sampling, float *logits,
                              uint32_t vocab_size);

#endif
