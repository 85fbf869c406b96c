/* Files of loads: what is in them, and files that are wrong in every way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "deploy/batonctl/bench_dataset.h"
#include "deploy/batonctl/bench_lengths.h"
#include "deploy/batonctl/bench_trace.h"

#define SEED 7

static const char mooncake[] =
    "{\"timestamp\": 27482, \"input_length\": 6955, \"output_length\": 52, \"hash_ids\": [46, "
    "47]}\n"
    "\n"
    "{\"timestamp\": 27000, \"input_length\": 10, \"output_length\": 0, \"hash_ids\": []}\r\n"
    "{\"timestamp\": 27482.5, \"input_length\": 1, \"output_length\": 3}";

/* Parses a copy that has nothing behind it, so that a read past its end is seen. */
static enum bt_status parse(const char *text, size_t size, struct bt_error *error,
                            struct ctl_bench_trace *trace)
{
    char *copy = malloc(size + (size == 0));
    memcpy(copy, text, size);
    enum bt_status status = ctl_bench_trace_parse(copy, size, error, trace);
    free(copy);
    return status;
}

static void check(const struct ctl_bench_trace *trace, size_t i, int64_t at_ns, uint32_t input,
                  uint32_t output)
{
    assert_true(i < trace->count);
    assert_int_equal(trace->entries[i].at_ns, at_ns);
    assert_int_equal(trace->entries[i].input_tokens, input);
    assert_int_equal(trace->entries[i].output_tokens, output);
}

static void test_mooncake(void **state)
{
    (void)state;
    struct bt_error error;
    struct ctl_bench_trace trace;
    assert_int_equal(parse(mooncake, sizeof mooncake - 1, &error, &trace), BT_OK);
    assert_int_equal(trace.count, 3);
    check(&trace, 0, 0, 10, 1);
    check(&trace, 1, 482000000, 6955, 52);
    check(&trace, 2, 482500000, 1, 3);
    assert_int_equal(trace.entries[0].hash_count, 0);
    assert_int_equal(trace.entries[2].hash_count, 0);
    assert_int_equal(trace.entries[1].hash_count, 2);
    const uint64_t *hashes = trace.hashes + trace.entries[1].hash_first;
    assert_true(hashes[0] == 46 && hashes[1] == 47);
    ctl_bench_trace_finish(&trace);
}

static void test_burst_gpt(void **state)
{
    (void)state;
    static const char text[] =
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45.25,\"Chat,GPT\",1087,230,1317,Conversation log\r\n"
        "5,GPT-4,417,0,417,API log\n";
    struct bt_error error;
    struct ctl_bench_trace trace;
    assert_int_equal(parse(text, sizeof text - 1, &error, &trace), BT_OK);
    assert_int_equal(trace.count, 3);
    check(&trace, 0, 0, 472, 18);
    check(&trace, 1, 0, 417, 1);
    check(&trace, 2, 40250000000, 1087, 230);
    ctl_bench_trace_finish(&trace);
}

/* Near enough: a date in seconds has no room for all its nanoseconds. */
static void check_time(const struct ctl_bench_trace *trace, size_t i, int64_t at_ns)
{
    int64_t off = trace->entries[i].at_ns - at_ns;
    assert_true(off > -2000 && off < 2000);
}

static void test_azure(void **state)
{
    (void)state;
    static const char text[] = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
                               "2023-11-16 23:59:59.9799600,374,44\n"
                               "2023-11-17 00:00:01.0319080,396,109\n"
                               "2023-11-17T02:00:01Z,1,2\n"
                               "2023-11-17 03:00:02.5+01:00,3,4\n"
                               "2023-11-16 23:00:03-03:30,5,6\n";
    struct bt_error error;
    struct ctl_bench_trace trace;
    assert_int_equal(parse(text, sizeof text - 1, &error, &trace), BT_OK);
    assert_int_equal(trace.count, 5);
    check(&trace, 0, 0, 374, 44);
    check_time(&trace, 1, 1051948000);
    check_time(&trace, 2, 7201020040000);
    check_time(&trace, 3, 7202520040000);
    check_time(&trace, 4, 9003020040000);
    ctl_bench_trace_finish(&trace);
}

static void test_wrong_traces(void **state)
{
    (void)state;
    static const struct {
        const char *text, *said;
    } cases[] = {
        {"", "empty"},
        {" \n\n", "header"},
        {"{}", "line 1: timestamp"},
        {"{\"timestamp\":1,\"input_length\":1,\"output_length\":1}\n[1]", "line 2"},
        {"{\"timestamp\":1,\"input_length\":1,\"output_length\":1}\n{\"timestamp\"", "line 2"},
        {"{\"timestamp\":\"1\",\"input_length\":1,\"output_length\":1}", "timestamp"},
        {"{\"timestamp\":1,\"input_length\":-1,\"output_length\":1}", "input length"},
        {"{\"timestamp\":1,\"input_length\":1.5,\"output_length\":1}", "input length"},
        {"{\"timestamp\":1,\"input_length\":1,\"output_length\":1e300}", "output length"},
        {"{\"timestamp\":1,\"input_length\":1,\"output_length\":999999999999}", "output length"},
        {"{\"timestamp\":1e300,\"input_length\":1,\"output_length\":1}", "timestamp"},
        {"{\"timestamp\":1e13,\"input_length\":1,\"output_length\":1}", "timestamp"},
        {"{\"timestamp\":1,\"timestamp\":2,\"input_length\":1,\"output_length\":1}", "line 1"},
        {"{\"timestamp\":1,\"input_length\":1,\"output_length\":1,\"hash_ids\":3}", "hash_ids"},
        {"{\"timestamp\":1,\"input_length\":1,\"output_length\":1,\"hash_ids\":[1,\"2\"]}",
         "hash_ids"},
        {"{\"timestamp\":0,\"input_length\":1,\"output_length\":1}\n"
         "{\"timestamp\":1e11,\"input_length\":1,\"output_length\":1}",
         "year"},
        {"timestamp,input,output\n1,2,3\n", "header"},
        {"Timestamp,Request tokens,Response tokens\n", "no request"},
        {"Timestamp,Request tokens,Response tokens\n1,2\n", "line 2"},
        {"Timestamp,Request tokens,Response tokens\n1,2,3\nx,2,3\n", "line 3: field 1"},
        {"Timestamp,Request tokens,Response tokens\n1,2,nan\n", "line 2: field 3"},
        {"Timestamp,Request tokens,Response tokens\n1,,3\n", "line 2: field 2"},
        {"Timestamp,Request tokens,Response tokens\n2023-99-99 99:99:99x,2,3\n", "field 1"},
        {"Timestamp,Request tokens,Response tokens\n2023-01-01 00:00:00+1,2,3\n", "field 1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bt_error error = {0};
        struct ctl_bench_trace trace = {0};
        enum bt_status status = parse(cases[i].text, strlen(cases[i].text), &error, &trace);
        bool as_said = status == BT_ERR_INVALID_ARGUMENT && strstr(error.text, cases[i].said);
        if (!as_said)
            fail_msg("case %zu: %d '%s', not '%s'", i, status, error.text, cases[i].said);
    }
}

/* Whatever it is, it is read or refused, and what is read keeps the bounds. */
static void test_broken_traces(void **state)
{
    (void)state;
    static const char csv[] = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
                              "2023-11-16 23:59:59.9799600+01:00,374,44\n7,\"1\",2\n";
    const char *const texts[] = {mooncake, csv};
    static const char bytes[] = "\"{}[],:\n\r\\ \0\xff\x80-+.e09TZ";
    size_t read = 0;
    for (uint64_t i = 0; i < 20000; i++) {
        char copy[512];
        const char *text = texts[i % 2];
        size_t size = strlen(text);
        memcpy(copy, text, size);
        for (uint32_t k = 0; k <= i % 3; k++) {
            uint64_t at = bt_random_u64(SEED, i, k);
            copy[at % size] = bytes[(at >> 32) % (sizeof bytes - 1)];
        }
        if (i % 5 == 0)
            size = (size_t)(bt_random_u64(SEED, i, 9) % (size + 1));
        struct bt_error error;
        struct ctl_bench_trace trace;
        if (parse(copy, size, &error, &trace) != BT_OK)
            continue;
        read++;
        assert_int_equal(trace.entries[0].at_ns, 0);
        for (size_t k = 0; k < trace.count; k++) {
            assert_true(k == 0 || trace.entries[k].at_ns >= trace.entries[k - 1].at_ns);
            assert_in_range(trace.entries[k].input_tokens, 1, CTL_BENCH_LENGTH_MAX);
            assert_in_range(trace.entries[k].output_tokens, 1, CTL_BENCH_LENGTH_MAX);
            assert_true(trace.entries[k].hash_first + trace.entries[k].hash_count <=
                        trace.hash_count);
        }
        ctl_bench_trace_finish(&trace);
    }
    assert_true(read > 100);
}

/* ------------------------------------------------------------------ datasets */

static void test_dataset(void **state)
{
    (void)state;
    static const char text[] = "{\"prompt\": \"Once\", \"output_tokens\": 7}\n"
                               "{\"messages\": [{\"role\": \"system\", \"content\": \"be brief\"},"
                               " {\"role\": \"user\", \"content\": \"hi\"}], \"max_tokens\": 9}\n"
                               "{\"prompt\": \"there\"}\n";
    struct bt_error error;
    struct ctl_bench_dataset set;
    assert_int_equal(ctl_bench_dataset_parse(text, sizeof text - 1, &error, &set), BT_OK);
    assert_int_equal(set.count, 3);
    assert_string_equal(set.samples[0].prompt, "Once");
    assert_int_equal(set.samples[0].output_tokens, 7);
    assert_null(set.samples[1].prompt);
    assert_int_equal(set.samples[1].message_count, 2);
    assert_string_equal(set.samples[1].messages[1].content, "hi");
    assert_string_equal(set.samples[1].messages[0].role, "system");
    assert_int_equal(set.samples[1].output_tokens, 9);
    assert_int_equal(set.samples[2].output_tokens, 0);
    ctl_bench_dataset_finish(&set);
}

static void test_wrong_datasets(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", "no prompt"},
        {"{}", "line 1"},
        {"{\"prompt\": \"\"}", "prompt"},
        {"{\"prompt\": [1, 2]}", "prompt"},
        {"{\"prompt\": \"a\\u0000b\"}", "line 1"},
        {"{\"prompt\": \"\xff\"}", "line 1"},
        {"{\"messages\": []}", "messages"},
        {"{\"messages\": [3]}", "role"},
        {"{\"messages\": [{\"role\": \"user\"}]}", "content"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}, {\"role\": 1}]}", "role"},
        {"{\"prompt\": \"a\", \"output_tokens\": 0}", "output_tokens"},
        {"{\"prompt\": \"a\", \"output_tokens\": 1.5}", "output_tokens"},
        {"{\"prompt\": \"a\", \"max_tokens\": 99999999999}", "output_tokens"},
        {"{\"prompt\": \"a\"}\nnothing", "line 2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bt_error error = {0};
        struct ctl_bench_dataset set;
        enum bt_status status =
            ctl_bench_dataset_parse(cases[i][0], strlen(cases[i][0]), &error, &set);
        if (status != BT_ERR_INVALID_ARGUMENT || !strstr(error.text, cases[i][1]))
            fail_msg("case %zu: %d '%s', not '%s'", i, status, error.text, cases[i][1]);
    }
}

int main(void)
{
    print_message("seed %d\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mooncake),       cmocka_unit_test(test_burst_gpt),
        cmocka_unit_test(test_azure),          cmocka_unit_test(test_wrong_traces),
        cmocka_unit_test(test_broken_traces),  cmocka_unit_test(test_dataset),
        cmocka_unit_test(test_wrong_datasets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
