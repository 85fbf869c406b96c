#include "tests/solo/job.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_MAX_TOKENS 16

static double number_of(const json_t *object, const char *key, double fallback)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : fallback;
}

static json_int_t integer_of(const json_t *object, const char *key, json_int_t fallback)
{
    const json_t *value = json_object_get(object, key);
    return json_is_integer(value) ? json_integer_value(value) : fallback;
}

/* Two arrays, as in the message. */
static void bias_of(const json_t *object, Baton__V1__SamplingParams *message)
{
    const json_t *tokens = json_object_get(object, "logit_bias_token");
    const json_t *values = json_object_get(object, "logit_bias_value");
    size_t count = json_array_size(tokens);
    if (count == 0 || json_array_size(values) != count) {
        return;
    }
    message->n_logit_bias_token = message->n_logit_bias_value = count;
    message->logit_bias_token = calloc(count, sizeof(uint32_t));
    message->logit_bias_value = calloc(count, sizeof(float));
    for (size_t i = 0; i < count; i++) {
        message->logit_bias_token[i] = (uint32_t)json_integer_value(json_array_get(tokens, i));
        message->logit_bias_value[i] = (float)json_number_value(json_array_get(values, i));
    }
}

/* Through the wire's message, as a worker gets it. */
static enum bt_status parse_sampling(const json_t *object, uint32_t vocab_size,
                                     struct bt_error *error, struct bt_sampling *ret_sampling)
{
    Baton__V1__SamplingParams message = BATON__V1__SAMPLING_PARAMS__INIT;
    message.seed = (uint64_t)integer_of(object, "seed", 0);
    message.temperature = (float)number_of(object, "temperature", 1);
    message.top_p = (float)number_of(object, "top_p", 1);
    message.top_k = (int32_t)integer_of(object, "top_k", 0);
    message.min_p = (float)number_of(object, "min_p", 0);
    message.repetition_penalty = (float)number_of(object, "repetition_penalty", 1);
    message.presence_penalty = (float)number_of(object, "presence_penalty", 0);
    message.frequency_penalty = (float)number_of(object, "frequency_penalty", 0);
    message.logprobs = (int32_t)integer_of(object, "logprobs", -1);
    message.ignore_eos = json_is_true(json_object_get(object, "ignore_eos"));
    message.min_tokens = (uint32_t)integer_of(object, "min_tokens", 0);
    message.max_tokens = (uint32_t)integer_of(object, "max_tokens", DEFAULT_MAX_TOKENS);
    bias_of(object, &message);
    enum bt_status status = bt_sampling_from_message(&message, vocab_size, error, ret_sampling);
    free(message.logit_bias_token);
    free(message.logit_bias_value);
    return status;
}

static enum bt_status parse_prompt(const json_t *array, const struct bt_model_config *config,
                                   struct bt_error *error, struct solo_job *job)
{
    size_t count = json_array_size(array);
    if (count == 0 || count >= config->max_position_embeddings) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "prompt: %zu tokens, 1 to %" PRIu32,
                            count, config->max_position_embeddings - 1);
    }
    job->prompt = calloc(count, sizeof(uint32_t));
    if (!job->prompt) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "prompt: no memory");
    }
    job->prompt_tokens = (uint32_t)count;
    for (size_t i = 0; i < count; i++) {
        json_int_t token = json_integer_value(json_array_get(array, i));
        if (token < 0 || token >= config->vocab_size) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "prompt[%zu] %" JSON_INTEGER_FORMAT " is not in the vocabulary", i,
                                token);
        }
        job->prompt[i] = (uint32_t)token;
    }
    return BT_OK;
}

static enum bt_status parse_history(struct solo_job *job, struct bt_error *error)
{
    if (!bt_sampling_needs_history(&job->sampling)) {
        return BT_OK;
    }
    job->history = bt_sampler_history_create();
    if (!job->history ||
        !bt_sampler_history_add_prompt(job->history, job->prompt, job->prompt_tokens)) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "history: no memory");
    }
    return BT_OK;
}

enum bt_status solo_job_parse(const char *line, const struct bt_model_config *config,
                              struct bt_error *error, struct solo_job **ret_job)
{
    json_error_t fault;
    json_t *root = json_loads(line, 0, &fault);
    struct solo_job *job = calloc(1, sizeof(*job));
    enum bt_status status;
    if (!root || !job) {
        status =
            bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s", root ? "no memory" : fault.text);
        goto out;
    }
    job->id = json_incref(json_object_get(root, "id"));
    status = parse_prompt(json_object_get(root, "prompt"), config, error, job);
    if (status == BT_OK) {
        status = parse_sampling(json_object_get(root, "sampling"), config->vocab_size, error,
                                &job->sampling);
    }
    if (status == BT_OK) {
        status = parse_history(job, error);
    }
    if (status == BT_OK) {
        job->samples = calloc(job->sampling.max_tokens, sizeof(*job->samples));
        *ret_job = job;
        job = NULL;
    }
out:
    solo_job_destroy(job);
    json_decref(root);
    return status;
}

void solo_job_destroy(struct solo_job *job)
{
    if (!job) {
        return;
    }
    json_decref(job->id);
    bt_sampling_finish(&job->sampling);
    bt_sampler_history_destroy(job->history);
    free(job->prompt);
    free(job->source_pages);
    free(job->pages);
    free(job->samples);
    free(job);
}

static void print_logprobs(const struct solo_job *job, FILE *out)
{
    fputs(",\"logprobs\":[", out);
    for (uint32_t i = 0; i < job->sample_count; i++) {
        fprintf(out, "%s%.9g", i ? "," : "", (double)job->samples[i].logprob);
    }
    fputs("],\"top\":[", out);
    for (uint32_t i = 0; i < job->sample_count; i++) {
        const struct bt_sample *sample = &job->samples[i];
        fputs(i ? ",[" : "[", out);
        for (uint32_t k = 0; k < sample->top_count; k++) {
            fprintf(out, "%s[%" PRIu32 ",%.9g]", k ? "," : "", sample->top[k].token,
                    (double)sample->top[k].logprob);
        }
        fputc(']', out);
    }
    fputc(']', out);
}

void solo_job_print(const struct solo_job *job, FILE *out)
{
    char *id = json_dumps(job->id, JSON_ENCODE_ANY | JSON_COMPACT);
    fprintf(out, "{\"id\":%s,\"tokens\":[", id ? id : "null");
    free(id);
    for (uint32_t i = 0; i < job->sample_count; i++) {
        fprintf(out, "%s%" PRIu32, i ? "," : "", job->samples[i].token);
    }
    fputc(']', out);
    if (job->sampling.logprobs >= 0) {
        print_logprobs(job, out);
    }
    fprintf(out, ",\"finish\":\"%s\"}\n", job->finish);
    fflush(out);
}
