#include "router/generation_limits.h"

#include <math.h>

#define MAX_PENALTY    2.0
#define MAX_LOGIT_BIAS 100.0

static enum bt_status check_length(const struct rt_generation *generation, uint32_t max_model_len,
                                   struct bt_error *error, uint32_t *ret_max_tokens)
{
    uint32_t prompt = generation->prompt_tokens;
    uint32_t max_tokens = generation->sampling.max_tokens;
    if (prompt == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "prompt: it is empty");
    }
    if (prompt >= max_model_len) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "prompt: %u tokens leave nothing of the context of %u tokens", prompt,
                            max_model_len);
    }
    if (max_tokens > max_model_len - prompt) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "max_tokens: %u after a prompt of %u tokens is more than the context "
                            "of %u tokens",
                            max_tokens, prompt, max_model_len);
    }
    *ret_max_tokens = max_tokens > 0 ? max_tokens : max_model_len - prompt;
    if (generation->sampling.min_tokens > *ret_max_tokens) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "min_tokens: %u is more than max_tokens, which is %u",
                            generation->sampling.min_tokens, *ret_max_tokens);
    }
    return BT_OK;
}

/* NaN is in no range. */
static enum bt_status check_range(const char *name, double value, double low, double high,
                                  struct bt_error *error)
{
    if (value >= low && value <= high) {
        return BT_OK;
    }
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: %g is not in %g..%g", name, value, low,
                        high);
}

static enum bt_status check_numbers(const Baton__V1__SamplingParams *sampling,
                                    struct bt_error *error)
{
    const struct {
        const char *name;
        double value, low, high;
    } ranges[] = {
        {"temperature", sampling->temperature, 0, 1e6},
        {"top_p", sampling->top_p, nextafterf(0, 1), 1},
        {"top_k", sampling->top_k, -1, INT32_MAX},
        {"min_p", sampling->min_p, 0, 1},
        {"repetition_penalty", sampling->repetition_penalty, nextafterf(0, 1), 1e6},
        {"presence_penalty", sampling->presence_penalty, -MAX_PENALTY, MAX_PENALTY},
        {"frequency_penalty", sampling->frequency_penalty, -MAX_PENALTY, MAX_PENALTY},
        {"logprobs", sampling->logprobs, -1, RT_MAX_LOGPROBS},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        enum bt_status status =
            check_range(ranges[i].name, ranges[i].value, ranges[i].low, ranges[i].high, error);
        if (status != BT_OK) {
            return status;
        }
    }
    return BT_OK;
}

static enum bt_status check_bias(const Baton__V1__SamplingParams *sampling, uint32_t vocab_size,
                                 struct bt_error *error)
{
    if (sampling->n_logit_bias_token != sampling->n_logit_bias_value) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "logit_bias: %zu tokens and %zu values",
                            sampling->n_logit_bias_token, sampling->n_logit_bias_value);
    }
    if (sampling->n_logit_bias_token > RT_MAX_LOGIT_BIAS) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "logit_bias: more than %d tokens",
                            RT_MAX_LOGIT_BIAS);
    }
    for (size_t i = 0; i < sampling->n_logit_bias_token; i++) {
        if (sampling->logit_bias_token[i] >= vocab_size) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "logit_bias: token %u is outside the vocabulary of %u",
                                sampling->logit_bias_token[i], vocab_size);
        }
        enum bt_status status = check_range("logit_bias", sampling->logit_bias_value[i],
                                            -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS, error);
        if (status != BT_OK) {
            return status;
        }
    }
    return BT_OK;
}

static enum bt_status check_prompt(const struct rt_generation *generation, uint32_t vocab_size,
                                   struct bt_error *error)
{
    for (uint32_t i = 0; i < generation->prompt_tokens; i++) {
        if (generation->prompt[i] >= vocab_size) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "prompt: token %u is outside the vocabulary of %u",
                                generation->prompt[i], vocab_size);
        }
    }
    return BT_OK;
}

enum bt_status rt_generation_check(const struct rt_generation *generation, uint32_t max_model_len,
                                   uint32_t vocab_size, struct bt_error *error,
                                   uint32_t *ret_max_tokens)
{
    uint32_t max_tokens = 0;
    enum bt_status status = check_length(generation, max_model_len, error, &max_tokens);
    if (status == BT_OK) {
        status = check_prompt(generation, vocab_size, error);
    }
    if (status == BT_OK) {
        status = check_numbers(&generation->sampling, error);
    }
    if (status == BT_OK) {
        status = check_bias(&generation->sampling, vocab_size, error);
    }
    if (status == BT_OK) {
        *ret_max_tokens = max_tokens;
    }
    return status;
}
