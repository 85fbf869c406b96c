/* What the sampler asks of a history, and draws of both. Inside common/model only. */
#ifndef BATON_COMMON_MODEL_HISTORY_H
#define BATON_COMMON_MODEL_HISTORY_H

#include "common/model/sampler.h"

/* Repetition, frequency and presence penalties, in place. */
void bt_sampler_history_apply(const struct bt_sampler_history *history,
                              const struct bt_sampling *sampling, float *logits,
                              uint32_t vocab_size);
/* The tokens whose logits that changes, and their outputs. False: there are more than `room`. */
bool bt_sampler_history_list(const struct bt_sampler_history *history,
                             const struct bt_sampling *sampling, uint32_t vocab_size,
                             struct bt_adjust *list, uint32_t room, uint32_t *ret_count);

/* Tokens that must not be drawn at this position, each once: how many. The sampler's. */
uint32_t bt_sampler_masked(const struct bt_sampler *sampler, const struct bt_sampling *sampling,
                           uint32_t position, const uint32_t **ret_tokens);
uint32_t bt_sampler_vocab_size(const struct bt_sampler *sampler);

#endif
