/*
 * Bodies of the OpenAI API: the first byte says of which kind, the rest is the body. What is taken
 * must hold its promises; what is refused must give an error that is JSON itself.
 */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/openai_request.h"
#include "tests/fuzz/driver.h"
#include "tests/unit/router/cut_check.h"

static void must(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static void check_refused(enum bt_status status, const struct rt_openai_error *error)
{
    must(error->status == status && error->http_status == 400, "a body gives status 400");
    struct rt_openai_json out = {0};
    rt_openai_error_write(error, &out);
    size_t size;
    const char *text = rt_openai_json_unread(&out, &size);
    json_error_t json_error;
    json_t *json = json_loadb(text, size, JSON_REJECT_DUPLICATES, &json_error);
    must(json != NULL, "the error is JSON");
    const json_t *message = json_object_get(json_object_get(json, "error"), "message");
    must(json_string_length(message) > 0, "the error says something");
    json_decref(json);
    rt_openai_json_finish(&out);
}

static void check_taken(const struct rt_openai_request *request)
{
    const Baton__V1__SamplingParams *sampling = &request->sampling;
    must((request->message_count > 0) != (request->prompt_count > 0), "messages or prompts");
    must(request->n >= 1 && request->n <= RT_OPENAI_MAX_N, "n");
    must(request->prompt_count <= RT_OPENAI_MAX_PROMPTS, "prompts");
    must(sampling->temperature >= 0 && sampling->temperature <= 2, "temperature");
    must(sampling->top_p > 0 && sampling->top_p <= 1, "top_p");
    must(sampling->min_p >= 0 && sampling->min_p <= 1, "min_p");
    must(sampling->top_k >= -1, "top_k");
    must(sampling->logprobs >= -1 && sampling->logprobs <= 20, "logprobs");
    must(sampling->repetition_penalty > 0 && isfinite(sampling->repetition_penalty), "repetition");
    must(sampling->n_logit_bias_token == sampling->n_logit_bias_value, "logit_bias");
    for (size_t i = 0; i < request->stop_count; i++)
        must(request->stop[i][0] != '\0', "stop");
    for (size_t i = 0; i < request->message_count; i++)
        must(strlen(request->messages[i].content) == request->messages[i].content_size, "content");
    for (size_t i = 0; i < request->prompt_count; i++)
        must((request->prompts[i].text != NULL) != (request->prompts[i].ids != NULL), "prompt");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t pieces;
    if (size == 0)
        return 0;
    struct rt_openai_error error = {0};
    struct rt_openai_request request;
    must(cut_check((const char *)data + 1, size - 1, &pieces) == NULL, "cut as it was whole");
    enum bt_status status = rt_openai_request_parse(
        (enum rt_openai_kind)(data[0] % 4), (const char *)data + 1, size - 1, &error, &request);
    if (status != BT_OK) {
        check_refused(status, &error);
        return 0;
    }
    check_taken(&request);
    rt_openai_request_finish(&request);
    return 0;
}

#define TEN "0, 1,22,333,4444,55555,666666,7777777,88888888,999999999,"

/* The kind as a digit, which has the same remainder by 4. */
static const char *const seeds[] = {
    "0{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"be\"},{\"role\":\"user\","
    "\"content\":[{\"type\":\"text\",\"text\":\"\\ud83e\\udd8a \\n\"}]}],\"max_tokens\":7,"
    "\"temperature\":0.5,\"top_p\":1e-1,\"top_k\":-1,\"seed\":-9223372036854775808,"
    "\"logprobs\":true,\"top_logprobs\":20,\"stop\":[\"x\",\"y\"],\"logit_bias\":{\"7\":-100}}",
    "0{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream\":true,\"n\":16,"
    "\"stream_options\":{\"include_usage\":true},\"tools\":[],\"response_format\":{\"type\":"
    "\"text\"},\"min_p\":0.25,\"repetition_penalty\":1.5,\"presence_penalty\":-2}",
    "1{\"prompt\":[[1,2],[4294967295]],\"logprobs\":5,\"best_of\":1,\"ignore_eos\":true}",
    "1{\"prompt\":[\"a\",\"\xE6\x97\xA5\"],\"stop\":\"z\",\"min_tokens\":1,\"echo\":false,"
    "\"skip_special_tokens\":false,\"return_token_ids\":true,\"baton_timing\":true}",
    "2{\"prompt\":\"\",\"add_special_tokens\":false}",
    "3{\"tokens\":[1,2,3]}",
    "3{\"tokens\":[" TEN TEN TEN TEN TEN TEN TEN "0]}",
    "1{\"prompt\":[[" TEN TEN TEN TEN TEN TEN TEN "4294967295],[-1]],\"prompt\":\"\\u00011\"}",
};

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    return fuzz_seed_text(seeds, sizeof seeds / sizeof *seeds, index, ret_data, capacity);
}
