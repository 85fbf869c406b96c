/* Sampling parameters from the wire, and the history that penalties look at. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/model/history.h"
#include "common/model/sampler.h"

static enum bt_status check_real(const char *field, double value, double min, double max,
                                 struct bt_error *error)
{
    if (isfinite(value) && value >= min && value <= max)
        return BT_OK;
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s %g: not in %g … %g", field, value, min,
                        max);
}

static enum bt_status check_integer(const char *field, int64_t value, int64_t min, int64_t max,
                                    struct bt_error *error)
{
    if (value >= min && value <= max)
        return BT_OK;
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s %lld: not in %lld … %lld", field,
                        (long long)value, (long long)min, (long long)max);
}

static enum bt_status check_scalars(const Baton__V1__SamplingParams *message, uint32_t vocab_size,
                                    struct bt_error *error)
{
    const struct {
        const char *field;
        double value, min, max;
    } reals[] = {
        {"temperature", message->temperature, 0, 100},
        {"top_p", message->top_p, 1e-6f, 1},
        {"min_p", message->min_p, 0, 1},
        {"repetition_penalty", message->repetition_penalty, 1e-3f, 1000},
        {"presence_penalty", message->presence_penalty, -2, 2},
        {"frequency_penalty", message->frequency_penalty, -2, 2},
    };
    const struct {
        const char *field;
        int64_t value, min, max;
    } integers[] = {
        {"top_k", message->top_k, -1, INT32_MAX},
        {"logprobs", message->logprobs, -1,
         vocab_size < BT_SAMPLER_MAX_LOGPROBS ? vocab_size : BT_SAMPLER_MAX_LOGPROBS},
        {"max_tokens", message->max_tokens, 1, INT32_MAX},
        {"min_tokens", message->min_tokens, 0, message->max_tokens},
    };
    enum bt_status status = BT_OK;
    for (size_t i = 0; i < sizeof(reals) / sizeof(reals[0]) && status == BT_OK; i++)
        status = check_real(reals[i].field, reals[i].value, reals[i].min, reals[i].max, error);
    for (size_t i = 0; i < sizeof(integers) / sizeof(integers[0]) && status == BT_OK; i++)
        status = check_integer(integers[i].field, integers[i].value, integers[i].min,
                               integers[i].max, error);
    return status;
}

static int compare_bias(const void *left, const void *right)
{
    const struct bt_logit_bias *a = left, *b = right;
    return (a->token > b->token) - (a->token < b->token);
}

/* Sorted by token; a token twice is a fault, as its meaning would be a guess. */
static enum bt_status copy_bias(const Baton__V1__SamplingParams *message, uint32_t vocab_size,
                                struct bt_error *error, struct bt_logit_bias **ret_bias)
{
    size_t count = message->n_logit_bias_token;
    if (count != message->n_logit_bias_value)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "logit_bias: %zu tokens, %zu values",
                            count, message->n_logit_bias_value);
    enum bt_status status =
        check_integer("logit_bias entries", (int64_t)count, 0, BT_SAMPLER_MAX_BIAS, error);
    if (status != BT_OK || count == 0)
        return status;
    struct bt_logit_bias *bias = calloc(count, sizeof(*bias));
    if (!bias)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "logit_bias: no memory");
    for (size_t i = 0; i < count && status == BT_OK; i++) {
        bias[i].token = message->logit_bias_token[i];
        bias[i].value = message->logit_bias_value[i];
        status =
            check_integer("logit_bias token", bias[i].token, 0, (int64_t)vocab_size - 1, error);
        if (status == BT_OK)
            status = check_real("logit_bias value", bias[i].value, -100, 100, error);
    }
    qsort(bias, count, sizeof(*bias), compare_bias);
    for (size_t i = 1; i < count && status == BT_OK; i++)
        if (bias[i].token == bias[i - 1].token)
            status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "logit_bias: token %u twice",
                                  bias[i].token);
    if (status != BT_OK) {
        free(bias);
        return status;
    }
    *ret_bias = bias;
    return BT_OK;
}

enum bt_status bt_sampling_from_message(const Baton__V1__SamplingParams *message,
                                        uint32_t vocab_size, struct bt_error *error,
                                        struct bt_sampling *ret_sampling)
{
    if (!message)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "sampling parameters: not there");
    struct bt_logit_bias *bias = NULL;
    enum bt_status status = check_scalars(message, vocab_size, error);
    if (status == BT_OK)
        status = copy_bias(message, vocab_size, error, &bias);
    if (status != BT_OK)
        return status;
    *ret_sampling = (struct bt_sampling){
        .seed = message->seed,
        .temperature = message->temperature,
        .top_p = message->top_p,
        .min_p = message->min_p,
        .top_k = message->top_k,
        .repetition_penalty = message->repetition_penalty,
        .presence_penalty = message->presence_penalty,
        .frequency_penalty = message->frequency_penalty,
        .logprobs = message->logprobs,
        .ignore_eos = message->ignore_eos,
        .min_tokens = message->min_tokens,
        .max_tokens = message->max_tokens,
        .bias_count = (uint32_t)message->n_logit_bias_token,
        .bias = bias,
    };
    return BT_OK;
}

void bt_sampling_finish(struct bt_sampling *sampling)
{
    free(sampling->bias);
    sampling->bias = NULL;
    sampling->bias_count = 0;
}

bool bt_sampling_needs_history(const struct bt_sampling *sampling)
{
    return sampling->repetition_penalty != 1 || sampling->presence_penalty != 0 ||
           sampling->frequency_penalty != 0;
}

/* The map says where in the list a token is, plus one; a step walks the list alone. */
struct bt_sampler_history {
    struct bt_map places;
    struct counted {
        uint32_t token, outputs;
    } * list;
    size_t count, capacity;
};

struct bt_sampler_history *bt_sampler_history_create(void)
{
    struct bt_sampler_history *history = calloc(1, sizeof(*history));
    if (history)
        bt_map_init(&history->places);
    return history;
}

void bt_sampler_history_destroy(struct bt_sampler_history *history)
{
    if (!history)
        return;
    bt_map_finish(&history->places);
    free(history->list);
    free(history);
}

static bool grow(struct bt_sampler_history *history, size_t more)
{
    size_t need = history->count + more, capacity = history->capacity;
    if (need <= capacity)
        return true;
    capacity = need > 2 * capacity ? need : 2 * capacity;
    struct counted *list = realloc(history->list, capacity * sizeof(*list));
    if (!list)
        return false;
    history->list = list;
    history->capacity = capacity;
    return true;
}

bool bt_sampler_history_reserve(struct bt_sampler_history *history, uint32_t outputs)
{
    return grow(history, outputs) && bt_map_reserve(&history->places, outputs);
}

static bool add(struct bt_sampler_history *history, uint32_t token, uint32_t outputs)
{
    uintptr_t place = (uintptr_t)bt_map_get(&history->places, token);
    if (!place) {
        if (!grow(history, 1) ||
            !bt_map_put(&history->places, token, (void *)(uintptr_t)(history->count + 1)))
            return false;
        history->list[history->count] = (struct counted){.token = token};
        place = ++history->count;
    }
    history->list[place - 1].outputs += outputs;
    return true;
}

bool bt_sampler_history_add_prompt(struct bt_sampler_history *history, const uint32_t *tokens,
                                   uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (!add(history, tokens[i], 0))
            return false;
    return true;
}

bool bt_sampler_history_add_output(struct bt_sampler_history *history, uint32_t token)
{
    return add(history, token, 1);
}

void bt_sampler_history_apply(const struct bt_sampler_history *history,
                              const struct bt_sampling *sampling, float *logits,
                              uint32_t vocab_size)
{
    for (size_t i = 0; i < history->count; i++) {
        const struct counted *seen = &history->list[i];
        if (seen->token >= vocab_size)
            continue;
        float *logit = &logits[seen->token];
        *logit = *logit > 0 ? *logit / sampling->repetition_penalty
                            : *logit * sampling->repetition_penalty;
        if (seen->outputs > 0)
            *logit -=
                (float)seen->outputs * sampling->frequency_penalty + sampling->presence_penalty;
    }
}

/* Without a repetition penalty only outputs change. */
bool bt_sampler_history_list(const struct bt_sampler_history *history,
                             const struct bt_sampling *sampling, uint32_t vocab_size,
                             struct bt_adjust *list, uint32_t room, uint32_t *ret_count)
{
    uint32_t count = 0;
    for (size_t i = 0; i < history->count; i++) {
        const struct counted *seen = &history->list[i];
        if (seen->token >= vocab_size || (seen->outputs == 0 && sampling->repetition_penalty == 1))
            continue;
        if (count == room)
            return false;
        list[count++] = (struct bt_adjust){.token = seen->token, .outputs = seen->outputs};
    }
    *ret_count = count;
    return true;
}
