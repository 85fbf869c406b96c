#include "router/openai_sampling.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/text/detokenizer.h"

#define FIELD(member) offsetof(Baton__V1__SamplingParams, member)

const struct rt_sampling_field rt_sampling_fields[] = {
    {"temperature", RT_SAMPLING_REAL, FIELD(temperature), 0, 2, false, true, 1},
    {"top_p", RT_SAMPLING_REAL, FIELD(top_p), 0, 1, true, true, 1},
    {"top_k", RT_SAMPLING_INT32, FIELD(top_k), -1, INT32_MAX, false, true, 0},
    {"min_p", RT_SAMPLING_REAL, FIELD(min_p), 0, 1, false, true, 0},
    {"repetition_penalty", RT_SAMPLING_REAL, FIELD(repetition_penalty), 0, 100, true, true, 1},
    {"presence_penalty", RT_SAMPLING_REAL, FIELD(presence_penalty), -2, 2, false, true, 0},
    {"frequency_penalty", RT_SAMPLING_REAL, FIELD(frequency_penalty), -2, 2, false, true, 0},
    {"min_tokens", RT_SAMPLING_UINT32, FIELD(min_tokens), 0, INT32_MAX, false, true, 0},
    {"max_tokens", RT_SAMPLING_UINT32, FIELD(max_tokens), 1, INT32_MAX, false, false, 0},
    {"max_completion_tokens", RT_SAMPLING_UINT32, FIELD(max_tokens), 1, INT32_MAX, false, false, 0},
    {"logprobs", RT_SAMPLING_INT32, FIELD(logprobs), 0, RT_MAX_LOGPROBS, false, false, -1},
    {"top_logprobs", RT_SAMPLING_INT32, FIELD(logprobs), 0, RT_MAX_LOGPROBS, false, false, -1},
    {NULL},
};

const struct rt_sampling_field *rt_sampling_field_find(const char *name)
{
    for (const struct rt_sampling_field *field = rt_sampling_fields; field->name != NULL; field++)
        if (strcmp(field->name, name) == 0)
            return field;
    BT_ASSERT(!"a name of the table");
    return NULL;
}

/* `value` is in the field's range. */
static void store(Baton__V1__SamplingParams *sampling, const struct rt_sampling_field *field,
                  double value)
{
    char *member = (char *)sampling + field->offset;
    if (field->type == RT_SAMPLING_REAL)
        *(float *)member = (float)value;
    else if (field->type == RT_SAMPLING_INT32)
        *(int32_t *)member = (int32_t)value;
    else
        *(uint32_t *)member = (uint32_t)value;
}

void rt_sampling_init(Baton__V1__SamplingParams *sampling)
{
    baton__v1__sampling_params__init(sampling);
    for (const struct rt_sampling_field *field = rt_sampling_fields; field->name != NULL; field++)
        store(sampling, field, field->default_value);
}

static enum bt_status refuse(const struct rt_sampling_field *field, const char *value,
                             struct rt_openai_error *error)
{
    if (field->above_min)
        return rt_openai_error_field(error, field->name,
                                     "must be above %.10g and at most %.10g, not %s", field->min,
                                     field->max, value);
    return rt_openai_error_field(error, field->name, "must be between %.10g and %.10g, not %s",
                                 field->min, field->max, value);
}

/* Written so that NaN is outside. */
static bool in_range(const struct rt_sampling_field *field, double value)
{
    return (field->above_min ? value > field->min : value >= field->min) && value <= field->max;
}

enum bt_status rt_sampling_set_real(Baton__V1__SamplingParams *sampling,
                                    const struct rt_sampling_field *field, double value,
                                    struct rt_openai_error *error)
{
    /* A positive double may be 0 as a float. */
    bool fits = in_range(field, value) && in_range(field, (double)(float)value);
    if (!fits) {
        char text[40];
        snprintf(text, sizeof text, "%.9g", value);
        return refuse(field, text, error);
    }
    store(sampling, field, value);
    return BT_OK;
}

enum bt_status rt_sampling_set_integer(Baton__V1__SamplingParams *sampling,
                                       const struct rt_sampling_field *field, int64_t value,
                                       struct rt_openai_error *error)
{
    if (value < (int64_t)field->min || value > (int64_t)field->max) {
        char text[24];
        snprintf(text, sizeof text, "%" PRId64, value);
        return refuse(field, text, error);
    }
    store(sampling, field, (double)value);
    return BT_OK;
}

enum bt_status rt_sampling_check_bias(int64_t token, double value, uint32_t vocab_size,
                                      struct rt_openai_error *error)
{
    if (token < 0 || token > UINT32_MAX || (vocab_size > 0 && token >= vocab_size))
        return rt_openai_error_field(
            error, "logit_bias", "names token %" PRId64 ", which is not in the vocabulary", token);
    if (!(value >= -100 && value <= 100))
        return rt_openai_error_field(error, "logit_bias",
                                     "of token %" PRId64 " must be between -100 and 100, not %.9g",
                                     token, value);
    return BT_OK;
}

enum bt_status rt_sampling_check_stop(size_t size, size_t count, struct rt_openai_error *error)
{
    if (count > BT_STOP_MAX_STRINGS)
        return rt_openai_error_field(error, "stop", "has %zu strings, more than %d", count,
                                     BT_STOP_MAX_STRINGS);
    if (size == 0 || size > BT_STOP_MAX_BYTES)
        return rt_openai_error_field(error, "stop", "strings must have 1 to %d bytes, not %zu",
                                     BT_STOP_MAX_BYTES, size);
    return BT_OK;
}

enum bt_status rt_sampling_check(const Baton__V1__SamplingParams *sampling,
                                 struct rt_openai_error *error)
{
    if (sampling->max_tokens > 0 && sampling->min_tokens > sampling->max_tokens)
        return rt_openai_error_field(error, "min_tokens",
                                     "must not be above max_tokens (%" PRIu32 "), but is %" PRIu32,
                                     sampling->max_tokens, sampling->min_tokens);
    return BT_OK;
}
