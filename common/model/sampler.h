/*
 * From logits to a token: penalties, bias, temperature, top-k, top-p, min-p, logprobs.
 *
 * Pure: the token is a function of logits, parameters, history and (seed, position), where position
 * counts generated tokens from 0. Order, as vLLM has it: logit_bias, min_tokens (EOS masked),
 * repetition / presence / frequency penalties, temperature, min-p, top-k, top-p, draw. Greedy
 * (temperature 0) takes the best after penalties; ties: the lower id. Logprobs are log-softmax of
 * the raw logits, before any of that (OpenAI's and vLLM's default), and never below -9999, so that
 * they are always numbers. A NaN logit never wins; where none can, the lowest id that is not
 * masked.
 *
 * Weights, e^((logit - best) / temperature), are f32 and the same on every device (logits.h), each
 * a multiple of 2^-35, so that their sums are exact, in whatever order: the token that a GPU draws
 * (kernels.h) is this one, and logprobs that it gives the parts of have the same bits. Of equal
 * logits the lower id is better. A few passes over the vocabulary, nothing is sorted.
 */
#ifndef BATON_COMMON_MODEL_SAMPLER_H
#define BATON_COMMON_MODEL_SAMPLER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/kernels/kernels.h"
#include "proto/types.pb-c.h"

#define BT_SAMPLER_MAX_LOGPROBS BT_DRAW_MAX_TOP
#define BT_SAMPLER_MAX_BIAS     1024

struct bt_sampling {
    uint64_t seed;
    float temperature, top_p, min_p;
    int32_t top_k; /* <= 0: off */
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t logprobs; /* -1: none */
    bool ignore_eos;
    uint32_t min_tokens, max_tokens;
    uint32_t bias_count;
    struct bt_logit_bias {
        uint32_t token;
        float value;
    } * bias; /* owned */
};

/* Checks every field's range (non-finite floats included), naming the field. Copies. */
enum bt_status bt_sampling_from_message(const Baton__V1__SamplingParams *message,
                                        uint32_t vocab_size, struct bt_error *error,
                                        struct bt_sampling *ret_sampling);
void bt_sampling_finish(struct bt_sampling *sampling);

/* The tokens penalties look at: prompt (repetition only) and output so far, as counts per token.
 * Sparse: memory grows with distinct tokens. NULL-able where no penalty is set. */
struct bt_sampler_history;
struct bt_sampler_history *bt_sampler_history_create(void);
void bt_sampler_history_destroy(struct bt_sampler_history *history);
bool bt_sampler_history_add_prompt(struct bt_sampler_history *history, const uint32_t *tokens,
                                   uint32_t count);
/* Room for `outputs` more tokens: adding them allocates nothing. False: no memory. */
bool bt_sampler_history_reserve(struct bt_sampler_history *history, uint32_t outputs);
bool bt_sampler_history_add_output(struct bt_sampler_history *history, uint32_t token);
bool bt_sampling_needs_history(const struct bt_sampling *sampling);

struct bt_sample {
    uint32_t token;
    float logprob; /* valid with logprobs >= 0 */
    uint32_t top_count;
    struct {
        uint32_t token;
        float logprob;
    } top[BT_SAMPLER_MAX_LOGPROBS]; /* best first */
};

struct bt_sampler; /* scratch for one vocabulary; one thread */
struct bt_sampler *bt_sampler_create(uint32_t vocab_size, const uint32_t *eos, uint32_t eos_count);
void bt_sampler_destroy(struct bt_sampler *sampler);

/* `logits` [vocab_size] is left as it is. `position`: generated tokens before this one. */
void bt_sampler_draw(struct bt_sampler *sampler, const float *logits,
                     const struct bt_sampling *sampling, const struct bt_sampler_history *history,
                     uint32_t position, struct bt_sample *ret_sample);

/* Of these logits, with the `wanted` best. */
void bt_sampler_logprobs(struct bt_sampler *sampler, const float *logits, uint32_t token,
                         uint32_t wanted, struct bt_logprobs *ret_logprobs);
/* The token's and the best ones' of *sample. */
void bt_sample_logprobs(const struct bt_logprobs *logprobs, struct bt_sample *sample);

#endif
