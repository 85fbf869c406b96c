/* Bodies of the OpenAI API: what is taken, and which field is named when not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "router/openai_request.h"

#define CHAT(rest)  "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]" rest "}"
#define COMPL(rest) "{\"prompt\":\"x\"" rest "}"

struct bad_body {
    enum rt_openai_kind kind;
    const char *body;
    const char *param; /* "": none */
    const char *word;  /* of the message */
};

static const struct bad_body bad_bodies[] = {
    /* no JSON, or not what JSON allows */
    {RT_OPENAI_CHAT, "", "", "empty"},
    {RT_OPENAI_CHAT, "{", "", "line 1 column 1"},
    {RT_OPENAI_CHAT, "{\n\"a\":1,\n\"b\" 2}", "", "line 3"},
    {RT_OPENAI_CHAT, "[]", "", "object"},
    {RT_OPENAI_CHAT, "null", "", "object"},
    {RT_OPENAI_CHAT, "5", "", "object"},
    {RT_OPENAI_CHAT, "\"x\"", "", "object"},
    {RT_OPENAI_CHAT, CHAT("") " trailing", "", "JSON"},
    {RT_OPENAI_CHAT, CHAT(",\"n\":1,\"n\":1"), "", "duplicate"},
    {RT_OPENAI_CHAT, CHAT(",\"n\":01"), "", "JSON"},
    {RT_OPENAI_CHAT, CHAT(",\"n\":NaN"), "", "JSON"},
    {RT_OPENAI_CHAT, CHAT(",\"temperature\":1e999"), "", "overflow"},
    {RT_OPENAI_CHAT, CHAT(",\"seed\":99999999999999999999"), "", "JSON"},
    {RT_OPENAI_CHAT, CHAT(",\"user\":\"\xff\""), "", "decode byte 0xff"},
    {RT_OPENAI_CHAT, CHAT(",\"user\":\"\xed\xa0\x80\""), "", "decode"},
    {RT_OPENAI_CHAT, CHAT(",\"user\":\"\xc0\x80\""), "", "decode"},
    {RT_OPENAI_CHAT, CHAT(",\"user\":\"\\ud800\""), "", "D800"},
    {RT_OPENAI_CHAT, CHAT(",\"user\":\"\\udc00\\ud800\""), "", "DC00"},
    {RT_OPENAI_CHAT, CHAT(",\"user\":\"a\\u0000b\""), "", "u0000"},
    {RT_OPENAI_CHAT, CHAT(",\"\\u0000\":1"), "", "u0000"},
    {RT_OPENAI_CHAT, CHAT(",\"user\":\"a\nb\""), "", "JSON"},
    /* messages */
    {RT_OPENAI_CHAT, "{}", "messages", "missing"},
    {RT_OPENAI_CHAT, "{\"messages\":null}", "messages", "missing"},
    {RT_OPENAI_CHAT, "{\"messages\":[]}", "messages", "empty"},
    {RT_OPENAI_CHAT, "{\"messages\":\"x\"}", "messages", "string"},
    {RT_OPENAI_CHAT, "{\"messages\":[5]}", "messages[0]", "object"},
    {RT_OPENAI_CHAT, "{\"messages\":[{\"content\":\"x\"}]}", "messages[0].role", "missing"},
    {RT_OPENAI_CHAT, "{\"messages\":[{\"role\":5,\"content\":\"x\"}]}", "messages[0].role",
     "integer"},
    {RT_OPENAI_CHAT, "{\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]}", "messages[0].role",
     "king"},
    {RT_OPENAI_CHAT, "{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}", "messages[0].role",
     "tool"},
    {RT_OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"user\"}]}",
     "messages[1].content", "missing"},
    {RT_OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":7}]}", "messages[0].content",
     "integer"},
    {RT_OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[]}]}", "messages[0].content",
     "empty"},
    {RT_OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[\"x\"]}]}",
     "messages[0].content[0]", "object"},
    {RT_OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"text\":\"x\"}]}]}",
     "messages[0].content[0]", "type"},
    {RT_OPENAI_CHAT,
     "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
     "{\"type\":\"image_url\",\"image_url\":{}}]}]}",
     "messages[0].content[1]", "image_url"},
    {RT_OPENAI_CHAT,
     "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":1}]}]}",
     "messages[0].content[0]", "text"},
    {RT_OPENAI_CHAT,
     "{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{}]}]}",
     "messages[0].tool_calls", "tools"},
    /* prompts */
    {RT_OPENAI_COMPLETION, "{}", "prompt", "missing"},
    {RT_OPENAI_COMPLETION, "{\"prompt\":null}", "prompt", "missing"},
    {RT_OPENAI_COMPLETION, "{\"prompt\":5}", "prompt", "integer"},
    {RT_OPENAI_COMPLETION, "{\"prompt\":\"\"}", "prompt", "empty"},
    {RT_OPENAI_COMPLETION, "{\"prompt\":[]}", "prompt", "empty"},
    {RT_OPENAI_COMPLETION, "{\"prompt\":[\"\"]}", "prompt[0]", "empty"},
    {RT_OPENAI_COMPLETION, "{\"prompt\":[null]}", "prompt", "null"},
    {RT_OPENAI_COMPLETION, "{\"prompt\":[1,\"x\"]}", "prompt[1]", "string"},
    {RT_OPENAI_COMPLETION, "{\"prompt\":[\"x\",1]}", "prompt[1]", "string"},
    {RT_OPENAI_COMPLETION, "{\"prompt\":[[1],2]}", "prompt[1]", "array"},
    {RT_OPENAI_COMPLETION, "{\"prompt\":[[1],[2,true]]}", "prompt[1][1]", "boolean"},
    {RT_OPENAI_COMPLETION, "{\"prompt\":[-1]}", "prompt[0]", "-1"},
    {RT_OPENAI_COMPLETION, "{\"prompt\":[4294967296]}", "prompt[0]", "4294967296"},
    {RT_OPENAI_COMPLETION, "{\"prompt\":[1.0]}", "prompt[0]", "integer"},
    {RT_OPENAI_COMPLETION, "{\"prompt\":{}}", "prompt", "object"},
    /* numbers */
    {RT_OPENAI_CHAT, CHAT(",\"max_tokens\":0"), "max_tokens", "between"},
    {RT_OPENAI_CHAT, CHAT(",\"max_tokens\":-1"), "max_tokens", "-1"},
    {RT_OPENAI_CHAT, CHAT(",\"max_tokens\":16.0"), "max_tokens", "integer"},
    {RT_OPENAI_CHAT, CHAT(",\"max_tokens\":\"16\""), "max_tokens", "string"},
    {RT_OPENAI_CHAT, CHAT(",\"max_tokens\":4294967296"), "max_tokens", "4294967296"},
    {RT_OPENAI_CHAT, CHAT(",\"max_completion_tokens\":0"), "max_completion_tokens", "between"},
    {RT_OPENAI_CHAT, CHAT(",\"max_completion_tokens\":1,\"max_tokens\":1"), "max_completion_tokens",
     "only one"},
    {RT_OPENAI_CHAT, CHAT(",\"temperature\":-0.1"), "temperature", "-0.1"},
    {RT_OPENAI_CHAT, CHAT(",\"temperature\":2.5"), "temperature", "2.5"},
    {RT_OPENAI_CHAT, CHAT(",\"temperature\":\"hot\""), "temperature", "string"},
    {RT_OPENAI_CHAT, CHAT(",\"temperature\":true"), "temperature", "boolean"},
    {RT_OPENAI_CHAT, CHAT(",\"temperature\":1e300"), "temperature", "1e+300"},
    {RT_OPENAI_CHAT, CHAT(",\"top_p\":0"), "top_p", "above 0"},
    {RT_OPENAI_CHAT, CHAT(",\"top_p\":1e-300"), "top_p", "above 0"},
    {RT_OPENAI_CHAT, CHAT(",\"top_p\":1.1"), "top_p", "1.1"},
    {RT_OPENAI_CHAT, CHAT(",\"top_k\":-2"), "top_k", "-2"},
    {RT_OPENAI_CHAT, CHAT(",\"top_k\":1.5"), "top_k", "integer"},
    {RT_OPENAI_CHAT, CHAT(",\"min_p\":3"), "min_p", "3"},
    {RT_OPENAI_CHAT, CHAT(",\"repetition_penalty\":0"), "repetition_penalty", "above 0"},
    {RT_OPENAI_CHAT, CHAT(",\"presence_penalty\":2.1"), "presence_penalty", "2.1"},
    {RT_OPENAI_CHAT, CHAT(",\"frequency_penalty\":-3"), "frequency_penalty", "-3"},
    {RT_OPENAI_CHAT, CHAT(",\"min_tokens\":-1"), "min_tokens", "-1"},
    {RT_OPENAI_CHAT, CHAT(",\"min_tokens\":5,\"max_tokens\":4"), "min_tokens", "max_tokens"},
    {RT_OPENAI_CHAT, CHAT(",\"n\":0"), "n", "0"},
    {RT_OPENAI_CHAT, CHAT(",\"n\":17"), "n", "17"},
    {RT_OPENAI_CHAT, CHAT(",\"n\":\"2\""), "n", "string"},
    {RT_OPENAI_CHAT, CHAT(",\"seed\":1.5"), "seed", "integer"},
    {RT_OPENAI_CHAT, CHAT(",\"logprobs\":5"), "logprobs", "boolean"},
    {RT_OPENAI_CHAT, CHAT(",\"top_logprobs\":5"), "top_logprobs", "logprobs"},
    {RT_OPENAI_CHAT, CHAT(",\"logprobs\":true,\"top_logprobs\":21"), "top_logprobs", "21"},
    {RT_OPENAI_COMPLETION, COMPL(",\"logprobs\":21"), "logprobs", "21"},
    {RT_OPENAI_COMPLETION, COMPL(",\"logprobs\":-1"), "logprobs", "-1"},
    {RT_OPENAI_COMPLETION, COMPL(",\"logprobs\":true"), "logprobs", "integer"},
    {RT_OPENAI_COMPLETION, COMPL(",\"best_of\":2"), "best_of", "not supported"},
    {RT_OPENAI_COMPLETION, COMPL(",\"n\":2,\"best_of\":1"), "best_of", "below"},
    /* others */
    {RT_OPENAI_CHAT, CHAT(",\"model\":5"), "model", "string"},
    {RT_OPENAI_CHAT, CHAT(",\"stream\":1"), "stream", "boolean"},
    {RT_OPENAI_CHAT, CHAT(",\"stream_options\":{}"), "stream_options", "stream"},
    {RT_OPENAI_CHAT, CHAT(",\"stream\":true,\"stream_options\":5"), "stream_options", "object"},
    {RT_OPENAI_CHAT, CHAT(",\"stream\":true,\"stream_options\":{\"include_usage\":1}"),
     "stream_options.include_usage", "boolean"},
    {RT_OPENAI_CHAT, CHAT(",\"stream\":true,\"stream_options\":{\"continuous_usage_stats\":0}"),
     "stream_options.continuous_usage_stats", "boolean"},
    {RT_OPENAI_CHAT, CHAT(",\"stop\":5"), "stop", "integer"},
    {RT_OPENAI_CHAT, CHAT(",\"stop\":\"\""), "stop", "0"},
    {RT_OPENAI_CHAT, CHAT(",\"stop\":[\"a\",1]"), "stop", "integer"},
    {RT_OPENAI_CHAT, CHAT(",\"stop\":[\"\",\"b\",0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]"), "stop",
     "19 strings"},
    {RT_OPENAI_CHAT, CHAT(",\"logit_bias\":[]"), "logit_bias", "array"},
    {RT_OPENAI_CHAT, CHAT(",\"logit_bias\":{\"x\":1}"), "logit_bias", "x"},
    {RT_OPENAI_CHAT, CHAT(",\"logit_bias\":{\"\":1}"), "logit_bias", "token id"},
    {RT_OPENAI_CHAT, CHAT(",\"logit_bias\":{\"-5\":1}"), "logit_bias", "-5"},
    {RT_OPENAI_CHAT, CHAT(",\"logit_bias\":{\"99999999999\":1}"), "logit_bias", "99999999999"},
    {RT_OPENAI_CHAT, CHAT(",\"logit_bias\":{\"5\":101}"), "logit_bias", "101"},
    {RT_OPENAI_CHAT, CHAT(",\"logit_bias\":{\"5\":\"1\"}"), "logit_bias", "string"},
    {RT_OPENAI_CHAT, CHAT(",\"ignore_eos\":0"), "ignore_eos", "boolean"},
    {RT_OPENAI_CHAT, CHAT(",\"skip_special_tokens\":\"no\""), "skip_special_tokens", "boolean"},
    {RT_OPENAI_CHAT, CHAT(",\"return_token_ids\":1"), "return_token_ids", "boolean"},
    {RT_OPENAI_CHAT, CHAT(",\"baton_timing\":1"), "baton_timing", "boolean"},
    /* refused by name */
    {RT_OPENAI_CHAT, CHAT(",\"tools\":[{}]"), "tools", "not supported"},
    {RT_OPENAI_CHAT, CHAT(",\"functions\":[{}]"), "functions", "not supported"},
    {RT_OPENAI_CHAT, CHAT(",\"tool_choice\":\"required\""), "tool_choice", "not supported"},
    {RT_OPENAI_CHAT, CHAT(",\"response_format\":{\"type\":\"json_object\"}"), "response_format",
     "json_object"},
    {RT_OPENAI_CHAT, CHAT(",\"response_format\":\"text\""), "response_format", "object"},
    {RT_OPENAI_CHAT, CHAT(",\"modalities\":[\"text\",\"audio\"]"), "modalities", "text"},
    {RT_OPENAI_CHAT, CHAT(",\"audio\":{\"voice\":\"x\"}"), "audio", "not supported"},
    {RT_OPENAI_CHAT, CHAT(",\"prediction\":{\"type\":\"content\"}"), "prediction", "not supported"},
    {RT_OPENAI_CHAT, CHAT(",\"guided_json\":{\"a\":1}"), "guided_json", "not supported"},
    {RT_OPENAI_CHAT, CHAT(",\"json_schema\":\"{}\""), "json_schema", "not supported"},
    {RT_OPENAI_CHAT, CHAT(",\"cache_salt\":\"mine\""), "cache_salt", "not supported"},
    {RT_OPENAI_COMPLETION, COMPL(",\"regex\":\"a+\""), "regex", "not supported"},
    {RT_OPENAI_COMPLETION, COMPL(",\"no_stop_trim\":true"), "no_stop_trim", "not supported"},
    {RT_OPENAI_COMPLETION, COMPL(",\"lora_path\":[\"x\"]"), "lora_path", "not supported"},
    {RT_OPENAI_CHAT, CHAT(",\"use_beam_search\":true"), "use_beam_search", "not supported"},
    {RT_OPENAI_CHAT, CHAT(",\"add_generation_prompt\":false"), "add_generation_prompt",
     "not supported"},
    {RT_OPENAI_COMPLETION, COMPL(",\"echo\":true"), "echo", "not supported"},
    {RT_OPENAI_COMPLETION, COMPL(",\"suffix\":\"x\""), "suffix", "not supported"},
    /* tokens */
    {RT_OPENAI_TOKENIZE, "{}", "prompt", "messages"},
    {RT_OPENAI_TOKENIZE, "{\"prompt\":[1]}", "prompt", "string"},
    {RT_OPENAI_DETOKENIZE, "{}", "tokens", "missing"},
    {RT_OPENAI_DETOKENIZE, "{\"tokens\":\"x\"}", "tokens", "token ids"},
    {RT_OPENAI_DETOKENIZE, "{\"tokens\":[\"x\"]}", "tokens", "token ids"},
};

static void test_bad_bodies(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_bodies / sizeof *bad_bodies; i++) {
        const struct bad_body *bad = &bad_bodies[i];
        struct rt_openai_error error = {0};
        struct rt_openai_request request;
        enum bt_status status =
            rt_openai_request_parse(bad->kind, bad->body, strlen(bad->body), &error, &request);
        if (status == BT_OK || error.http_status != 400 || strcmp(error.param, bad->param) != 0 ||
            strstr(error.text, bad->word) == NULL)
            fail_msg("%s: status %d, http %d, param \"%s\", message \"%s\"", bad->body, status,
                     error.http_status, error.param, error.text);
        if (bad->param[0] != '\0' && strncmp(error.text, bad->param, strlen(bad->param)) != 0)
            fail_msg("%s: the message does not begin with the field: %s", bad->body, error.text);
    }
}

static struct rt_openai_request parsed(enum rt_openai_kind kind, const char *body)
{
    struct rt_openai_error error = {0};
    struct rt_openai_request request = {0};
    if (rt_openai_request_parse(kind, body, strlen(body), &error, &request) != BT_OK)
        fail_msg("%s: %s", body, error.text);
    return request;
}

static void test_defaults(void **state)
{
    (void)state;
    struct rt_openai_request chat = parsed(RT_OPENAI_CHAT, CHAT(""));
    assert_null(chat.model);
    assert_int_equal(chat.n, 1);
    assert_false(chat.stream || chat.has_seed || chat.return_token_ids || chat.timing);
    assert_false(chat.keep_special);
    assert_true(chat.sampling.temperature == 1 && chat.sampling.top_p == 1);
    assert_true(chat.sampling.repetition_penalty == 1 && chat.sampling.min_p == 0);
    assert_int_equal(chat.sampling.logprobs, -1);
    assert_int_equal(chat.sampling.max_tokens, 0);
    rt_openai_request_finish(&chat);
    struct rt_openai_request completion = parsed(RT_OPENAI_COMPLETION, COMPL(""));
    assert_int_equal(completion.sampling.max_tokens, 16);
    assert_true(completion.add_special_tokens);
    rt_openai_request_finish(&completion);
}

static void test_every_field(void **state)
{
    (void)state;
    struct rt_openai_request r = parsed(
        RT_OPENAI_CHAT,
        "{\"model\":\"m\",\"messages\":[{\"role\":\"developer\",\"content\":\"be\"},"
        "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
        "{\"type\":\"text\",\"text\":\"b\"}],\"name\":\"Bob\"},"
        "{\"role\":\"assistant\",\"content\":\"\\ud83e\\udd8a\",\"tool_calls\":null}],"
        "\"max_completion_tokens\":7,\"temperature\":0,\"top_p\":0.5,\"top_k\":-1,\"min_p\":0.25,"
        "\"repetition_penalty\":1.5,\"presence_penalty\":-2,\"frequency_penalty\":2,"
        "\"min_tokens\":7,\"n\":16,\"seed\":-1,\"stream\":true,"
        "\"stream_options\":{\"include_usage\":true,\"other\":1,\"continuous_usage_stats\":true},"
        "\"stop\":[\"x\",\"yz\"],"
        "\"logprobs\":true,\"top_logprobs\":20,\"logit_bias\":{\"7\":-100,\"8\":1.5},"
        "\"ignore_eos\":true,\"skip_special_tokens\":false,\"return_token_ids\":true,"
        "\"baton_timing\":true,\"user\":\"u\",\"metadata\":{\"a\":\"b\"},\"store\":false,"
        "\"response_format\":{\"type\":\"text\"},\"tools\":[],\"tool_choice\":\"none\","
        "\"modalities\":[\"text\"],\"echo\":false,\"suffix\":null,\"unknown\":[{}],"
        "\"regex\":null,\"no_stop_trim\":false,\"cache_salt\":\"\"}");
    assert_string_equal(r.model, "m");
    assert_int_equal(r.message_count, 3);
    assert_string_equal(r.messages[0].role, "system");
    assert_string_equal(r.messages[1].content, "a\nb");
    assert_int_equal(r.messages[1].content_size, 3);
    assert_string_equal(r.messages[2].content, "\xF0\x9F\xA6\x8A");
    assert_int_equal(r.sampling.max_tokens, 7);
    assert_true(r.sampling.temperature == 0 && r.sampling.top_p == 0.5f);
    assert_int_equal(r.sampling.top_k, -1);
    assert_true(r.sampling.min_p == 0.25f && r.sampling.repetition_penalty == 1.5f);
    assert_true(r.sampling.presence_penalty == -2 && r.sampling.frequency_penalty == 2);
    assert_int_equal(r.sampling.min_tokens, 7);
    assert_true(r.has_seed && r.sampling.seed == UINT64_MAX);
    assert_int_equal(r.n, 16);
    assert_true(r.stream && r.include_usage && r.continuous_usage && r.return_token_ids &&
                r.timing && r.keep_special);
    assert_true(r.sampling.ignore_eos);
    assert_int_equal(r.stop_count, 2);
    assert_string_equal(r.stop[1], "yz");
    assert_int_equal(r.sampling.logprobs, 20);
    assert_int_equal(r.sampling.n_logit_bias_token, 2);
    assert_true(r.sampling.logit_bias_token[0] == 7 || r.sampling.logit_bias_token[1] == 7);
    rt_openai_request_finish(&r);
}

static void test_prompts(void **state)
{
    (void)state;
    struct rt_openai_request r = parsed(RT_OPENAI_COMPLETION, "{\"prompt\":[\"a\",\"bc\"]}");
    assert_int_equal(r.prompt_count, 2);
    assert_string_equal(r.prompts[1].text, "bc");
    rt_openai_request_finish(&r);
    r = parsed(RT_OPENAI_COMPLETION, "{\"prompt\":[3,4294967295],\"add_special_tokens\":false}");
    assert_int_equal(r.prompt_count, 1);
    assert_null(r.prompts[0].text);
    assert_int_equal(r.prompts[0].ids[1], UINT32_MAX);
    assert_false(r.add_special_tokens);
    rt_openai_request_finish(&r);
    r = parsed(RT_OPENAI_COMPLETION, "{\"prompt\":[[1],[2,3]],\"logprobs\":0,\"best_of\":1}");
    assert_int_equal(r.prompt_count, 2);
    assert_int_equal(r.prompts[1].count, 2);
    assert_int_equal(r.sampling.logprobs, 0);
    rt_openai_request_finish(&r);
}

/* {"prompt":…HEAD, `count` items, TAIL}: taken at the limit, refused on `param` one over it. */
static void check_limit(const char *head, const char *item, int limit, const char *tail,
                        const char *param)
{
    static char body[1 << 16];
    for (int over = 0; over < 2; over++) {
        struct rt_openai_error error = {0};
        struct rt_openai_request request;
        size_t used = (size_t)snprintf(body, sizeof body, "%s", head);
        for (int i = 0; i < limit + over; i++) {
            used += (size_t)snprintf(body + used, sizeof body - used, "%s", i > 0 ? "," : "");
            used += (size_t)snprintf(body + used, sizeof body - used, "\"%d\"%s", i, item);
        }
        used += (size_t)snprintf(body + used, sizeof body - used, "%s", tail);
        enum bt_status status =
            rt_openai_request_parse(RT_OPENAI_COMPLETION, body, used, &error, &request);
        assert_int_equal(status, over ? BT_ERR_INVALID_ARGUMENT : BT_OK);
        if (over)
            assert_string_equal(error.param, param);
        else
            rt_openai_request_finish(&request);
    }
}

static void test_limits(void **state)
{
    (void)state;
    check_limit("{\"prompt\":[", "", RT_OPENAI_MAX_PROMPTS, "]}", "prompt");
    check_limit("{\"prompt\":\"x\",\"stop\":[", "", 16, "]}", "stop");
    check_limit("{\"prompt\":\"x\",\"logit_bias\":{", ":1", 1024, "}}", "logit_bias");
}

static void test_stop_size(void **state)
{
    (void)state;
    for (int over = 0; over < 2; over++) {
        char body[2048], stop[1100];
        struct rt_openai_error error = {0};
        struct rt_openai_request request;
        memset(stop, 's', sizeof stop);
        int used =
            snprintf(body, sizeof body, "{\"prompt\":\"x\",\"stop\":\"%.*s\"}", 1024 + over, stop);
        enum bt_status status =
            rt_openai_request_parse(RT_OPENAI_COMPLETION, body, (size_t)used, &error, &request);
        assert_int_equal(status, over ? BT_ERR_INVALID_ARGUMENT : BT_OK);
        if (!over)
            rt_openai_request_finish(&request);
    }
}

static void test_depth(void **state)
{
    (void)state;
    static char body[1 << 20];
    struct rt_openai_error error = {0};
    struct rt_openai_request request;
    for (int over = 0; over < 2; over++) {
        size_t depth = (size_t)(RT_OPENAI_MAX_DEPTH - 1 + over);
        size_t used = (size_t)snprintf(body, sizeof body, "{\"prompt\":\"[[{\\\"[\",\"user\":");
        memset(body + used, '[', depth);
        memset(body + used + depth, ']', depth);
        used += 2 * depth;
        body[used++] = '}';
        enum bt_status status =
            rt_openai_request_parse(RT_OPENAI_COMPLETION, body, used, &error, &request);
        assert_int_equal(status, over ? BT_ERR_INVALID_ARGUMENT : BT_OK);
        if (over)
            assert_non_null(strstr(error.text, "deeper"));
        else
            rt_openai_request_finish(&request);
    }
    memset(body, '[', sizeof body);
    assert_int_equal(rt_openai_request_parse(RT_OPENAI_CHAT, body, sizeof body, &error, &request),
                     BT_ERR_INVALID_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_bodies),  cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_every_field), cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_limits),      cmocka_unit_test(test_stop_size),
        cmocka_unit_test(test_depth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
