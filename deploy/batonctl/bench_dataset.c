#include "deploy/batonctl/bench_dataset.h"

#include <stdlib.h>
#include <string.h>

#include "deploy/batonctl/bench_jsonl.h"
#include "deploy/batonctl/bench_lengths.h"

static void sample_finish(struct ctl_bench_sample *sample)
{
    free(sample->prompt);
    for (size_t i = 0; i < sample->message_count; i++) {
        free(sample->messages[i].role);
        free(sample->messages[i].content);
    }
    free(sample->messages);
}

void ctl_bench_dataset_finish(struct ctl_bench_dataset *dataset)
{
    for (size_t i = 0; i < dataset->count; i++)
        sample_finish(&dataset->samples[i]);
    free(dataset->samples);
    memset(dataset, 0, sizeof *dataset);
}

/* NUL has no place in the strings of a request; jansson refuses it. */
static enum bt_status read_text(const json_t *value, const char *name, struct bt_error *error,
                                char **ret_text)
{
    if (!json_is_string(value) || json_string_length(value) == 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s is missing, empty or no text",
                            name);
    *ret_text = strdup(json_string_value(value));
    return *ret_text ? BT_OK : bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a dataset");
}

static enum bt_status read_messages(const json_t *list, struct bt_error *error,
                                    struct ctl_bench_sample *sample)
{
    size_t count = json_array_size(list);
    if (count == 0 || count > CTL_BENCH_MESSAGES_MAX)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "neither a prompt nor a list of 1 to %d messages is there",
                            CTL_BENCH_MESSAGES_MAX);
    sample->messages = calloc(count, sizeof *sample->messages);
    if (!sample->messages)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a dataset");
    sample->message_count = count;
    enum bt_status status = BT_OK;
    for (size_t i = 0; i < count && status == BT_OK; i++) {
        const json_t *message = json_array_get(list, i);
        status = read_text(json_object_get(message, "role"), "a message's role", error,
                           &sample->messages[i].role);
        if (status == BT_OK)
            status = read_text(json_object_get(message, "content"), "a message's content", error,
                               &sample->messages[i].content);
    }
    return status;
}

static enum bt_status read_output(const json_t *object, struct bt_error *error,
                                  struct ctl_bench_sample *sample)
{
    const json_t *value = json_object_get(object, "output_tokens");
    value = value ? value : json_object_get(object, "max_tokens");
    if (!value)
        return BT_OK;
    if (!json_is_integer(value) || json_integer_value(value) < 1 ||
        json_integer_value(value) > CTL_BENCH_LENGTH_MAX)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "output_tokens is not a number of 1 to %u", CTL_BENCH_LENGTH_MAX);
    sample->output_tokens = (uint32_t)json_integer_value(value);
    return BT_OK;
}

static enum bt_status add_object(void *context, const json_t *object, struct bt_error *error)
{
    struct ctl_bench_dataset *dataset = context;
    if (dataset->count >= CTL_BENCH_DATASET_MAX)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "there are more than %u prompts",
                            CTL_BENCH_DATASET_MAX);
    if (dataset->count == dataset->capacity) {
        size_t capacity = dataset->capacity ? dataset->capacity * 2 : 64;
        void *grown = realloc(dataset->samples, capacity * sizeof *dataset->samples);
        if (!grown)
            return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a dataset");
        dataset->samples = grown;
        dataset->capacity = capacity;
    }
    struct ctl_bench_sample *sample = &dataset->samples[dataset->count++];
    memset(sample, 0, sizeof *sample);
    const json_t *prompt = json_object_get(object, "prompt");
    enum bt_status status = prompt
                                ? read_text(prompt, "prompt", error, &sample->prompt)
                                : read_messages(json_object_get(object, "messages"), error, sample);
    return status == BT_OK ? read_output(object, error, sample) : status;
}

enum bt_status ctl_bench_dataset_parse(const char *text, size_t size, struct bt_error *error,
                                       struct ctl_bench_dataset *ret_dataset)
{
    struct ctl_bench_dataset dataset = {0};
    enum bt_status status = ctl_bench_jsonl(text, size, add_object, &dataset, error);
    if (status == BT_OK && dataset.count == 0)
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "there is no prompt in it");
    if (status == BT_OK)
        *ret_dataset = dataset;
    else
        ctl_bench_dataset_finish(&dataset);
    return status;
}
