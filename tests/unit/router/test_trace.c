/* traceparent as W3C Trace Context says, the store of traces, and a record as spans. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "router/trace.h"

#define TRACE  "4bf92f3577b34da6a3ce929d0e0e4736"
#define PARENT "00f067aa0ba902b7"

static void test_header_goes_on(void **state)
{
    (void)state;
    static const char *const headers[] = {
        "00-" TRACE "-" PARENT "-01",
        "cc-" TRACE "-" PARENT "-01",
        "cc-" TRACE "-" PARENT "-01-more",
        "00-" TRACE "-" PARENT "-ff",
    };
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        struct rt_trace_context context;
        char text[RT_TRACEPARENT_SIZE], id[RT_TRACE_ID_SIZE];
        rt_trace_context_begin(headers[i], 0, &context);
        rt_trace_id_write(&context, id);
        assert_string_equal(id, TRACE);
        assert_true(context.parent == UINT64_C(0x00f067aa0ba902b7));
        assert_true(context.sampled);
        assert_true(context.span != 0 && context.span != context.parent);
        rt_trace_context_write(&context, text);
        assert_int_equal(strlen(text), 55);
        assert_memory_equal(text, "00-" TRACE "-", 36);
        assert_string_equal(&text[52], "-01");
    }
    struct rt_trace_context context;
    rt_trace_context_begin("00-" TRACE "-" PARENT "-00", 1, &context);
    assert_false(context.sampled); /* the client decided */
}

/* Ignored: a trace of its own begins. */
static void test_wrong_headers(void **state)
{
    (void)state;
    static const char *const headers[] = {
        "",
        "00",
        "00-" TRACE "-" PARENT,
        "00-" TRACE "-" PARENT "-0",
        "00-" TRACE "-" PARENT "-01-",
        "00-" TRACE "-" PARENT "-01-more",
        "cc-" TRACE "-" PARENT "-01more",
        "ff-" TRACE "-" PARENT "-01",
        "0g-" TRACE "-" PARENT "-01",
        "00-" TRACE "-" PARENT "-0x",
        "00-00000000000000000000000000000000-" PARENT "-01",
        "00-" TRACE "-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-" PARENT "-01",
        "00_" TRACE "-" PARENT "-01",
        "00-" TRACE "_" PARENT "-01",
        "00-" TRACE "-" PARENT "_01",
        " 00-" TRACE "-" PARENT "-01",
    };
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        struct rt_trace_context context, again;
        char id[RT_TRACE_ID_SIZE];
        rt_trace_context_begin(headers[i], 0, &context);
        rt_trace_id_write(&context, id);
        if (strcmp(id, TRACE) == 0 || context.parent != 0 || context.sampled) {
            fail_msg("'%s' was taken", headers[i]);
        }
        rt_trace_context_begin(headers[i], 1, &again);
        assert_true(again.sampled);
        assert_memory_not_equal(again.trace_id, context.trace_id, RT_TRACE_ID_BYTES);
    }
}

static void test_ratio(void **state)
{
    (void)state;
    const int draws = 4000;
    int sampled = 0;
    for (int i = 0; i < draws; i++) {
        struct rt_trace_context context;
        rt_trace_context_begin(NULL, 0.25, &context);
        sampled += context.sampled;
    }
    /* 1000 +- 27 by the binomial: eight of those */
    assert_in_range(sampled, 1000 - 220, 1000 + 220);
}

static struct rt_trace_record record_of(uint64_t request, const char *client)
{
    struct rt_trace_record record = {.request = request, .outcome = "stop"};
    rt_trace_context_begin(NULL, 0, &record.context);
    snprintf(record.client_id, sizeof record.client_id, "%s", client);
    return record;
}

static void test_store_keeps_the_last(void **state)
{
    (void)state;
    struct rt_trace_store *store = rt_trace_store_create(3);
    for (uint64_t i = 1; i <= 5; i++) {
        struct rt_trace_record record = record_of(i, i == 4 ? "mine" : "");
        rt_trace_store_add(store, &record);
    }
    assert_int_equal(rt_trace_store_count(store), 3);
    assert_int_equal(rt_trace_store_get(store, 0)->request, 5);
    assert_int_equal(rt_trace_store_get(store, 2)->request, 3);
    assert_null(rt_trace_store_get(store, 3));
    const struct rt_trace_record *mine = rt_trace_store_get(store, 1);
    char id[RT_TRACE_ID_SIZE];
    rt_trace_id_write(&mine->context, id);
    assert_true(rt_trace_record_is(mine, "mine") && rt_trace_record_is(mine, id) &&
                rt_trace_record_is(mine, "0000000000000004"));
    assert_false(rt_trace_record_is(mine, "") || rt_trace_record_is(mine, "4"));
    assert_false(rt_trace_record_is(rt_trace_store_get(store, 0), ""));
    rt_trace_store_destroy(store);
    store = rt_trace_store_create(0);
    struct rt_trace_record record = record_of(1, "");
    record.detail = rt_trace_detail_create();
    rt_trace_store_add(store, &record); /* frees the detail */
    assert_int_equal(rt_trace_store_count(store), 0);
    rt_trace_store_destroy(store);
}

static void fill_layers(Baton__V1__PrefillDone *done, Baton__V1__LayerTime *times,
                        Baton__V1__LayerTime **list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        baton__v1__layer_time__init(&times[i]);
        times[i].layer = (uint32_t)i;
        times[i].compute_begin_ns = 100 * i;
        times[i].compute_end_ns = 100 * i + 100;
        times[i].push_begin_ns = 100 * i + 110;
        times[i].push_end_ns = 100 * i + 150;
        times[i].bytes = 64;
        list[i] = &times[i];
    }
    baton__v1__prefill_done__init(done);
    done->layers = list;
    done->n_layers = count;
}

/* The sum of all details is bounded: the oldest lose theirs first. */
static void test_details_are_bounded(void **state)
{
    (void)state;
    enum { LAYERS = 4096, RECORDS = 600 };
    static Baton__V1__LayerTime times[LAYERS + 1];
    static Baton__V1__LayerTime *list[LAYERS + 1];
    Baton__V1__PrefillDone done;
    fill_layers(&done, times, list, LAYERS + 1);
    struct rt_trace_store *store = rt_trace_store_create(RECORDS);
    for (uint64_t i = 1; i <= RECORDS; i++) {
        struct rt_trace_record record = record_of(i, "");
        record.detail = rt_trace_detail_create();
        rt_trace_detail_layers(record.detail, &done);
        assert_int_equal(record.detail->layer_count, LAYERS);
        rt_trace_store_add(store, &record);
    }
    size_t each = sizeof(struct rt_trace_detail) + LAYERS * sizeof(struct rt_trace_layer);
    uint32_t detailed = 0;
    while (detailed < RECORDS && rt_trace_store_get(store, detailed)->detail) {
        detailed++;
    }
    assert_int_equal(detailed, RT_TRACE_DETAIL_BYTES / each);
    for (uint32_t i = detailed; i < RECORDS; i++) {
        assert_null(rt_trace_store_get(store, i)->detail);
    }
    rt_trace_store_destroy(store);
}

static const Baton__V1__TraceSpan *find(const Baton__V1__RequestTrace *trace, const char *name)
{
    for (size_t i = 0; i < trace->n_spans; i++) {
        if (strcmp(trace->spans[i]->name, name) == 0) {
            return trace->spans[i];
        }
    }
    fail_msg("no span '%s'", name);
    return NULL;
}

static void check(const Baton__V1__RequestTrace *trace, const char *name, const char *process,
                  int64_t begin_ns, uint64_t duration_ns)
{
    const Baton__V1__TraceSpan *span = find(trace, name);
    assert_string_equal(span->process, process);
    assert_int_equal(span->begin_unix_ns, begin_ns);
    assert_int_equal(span->duration_ns, duration_ns);
}

static void test_spans(void **state)
{
    (void)state;
    struct rt_trace_record record = record_of(7, "seven");
    record.arrival_ns = 1000;
    record.submitted_ns = 1100;
    record.first_reserve_ns = 1300;
    record.reserve_ns = 1600;
    record.prefill_ns = 2000;
    record.first_token_ns = 5000;
    record.last_token_ns = 9000;
    record.end_ns = 9100;
    record.completion_tokens = 3;
    record.prefill_begin_unix_ns = 1002500;
    record.prefill_queue_ns = 400;
    record.prefill_compute_ns = 2000;
    record.visible_transfer_ns = 300;
    record.step_begin_unix_ns = 1005500;
    record.step_wait_ns = 200;
    record.step_ns = 800;
    snprintf(record.prefill_worker, sizeof record.prefill_worker, "p0");
    snprintf(record.decode_worker, sizeof record.decode_worker, "d0");
    Baton__V1__LayerTime times[2], *list[2];
    Baton__V1__PrefillDone done;
    fill_layers(&done, times, list, 2);
    times[1].push_begin_ns = UINT64_MAX; /* a worker may say anything */
    times[1].push_end_ns = UINT64_MAX;
    record.detail = rt_trace_detail_create();
    rt_trace_detail_layers(record.detail, &done);
    rt_trace_detail_output(record.detail, 5000, 0);
    rt_trace_detail_output(record.detail, 7000, 2);
    Baton__V1__RequestTrace *trace = rt_trace_message_create(&record, 1000000);
    assert_non_null(trace);
    assert_string_equal(trace->client_request_id, "seven");
    check(trace, "request", "router", 1001000, 8100);
    check(trace, "tokenize", "router", 1001000, 100);
    check(trace, "queue", "router", 1001100, 200);
    check(trace, "earlier attempts", "router", 1001300, 300);
    check(trace, "reserve", "router", 1001600, 400);
    check(trace, "prefill", "router", 1002000, 3000);
    check(trace, "decode", "router", 1005000, 4000);
    check(trace, "prefill queue", "p0", 1002100, 400);
    check(trace, "compute", "p0", 1002500, 2000);
    check(trace, "visible transfer", "p0", 1004500, 300);
    check(trace, "layer 1", "p0", 1002600, 100);
    check(trace, "push 0", "p0", 1002610, 40);
    check(trace, "step", "router", 1005000, 2000);
    check(trace, "decode queue", "d0", 1005300, 200);
    check(trace, "first step", "d0", 1005500, 800);
    for (size_t i = 1; i < trace->n_spans; i++) {
        assert_true(trace->spans[i - 1]->begin_unix_ns <= trace->spans[i]->begin_unix_ns);
    }
    baton__v1__request_trace__free_unpacked(trace, NULL);
    rt_trace_detail_destroy(record.detail);
}

/* One that never got further than the queue. */
static void test_spans_of_a_short_life(void **state)
{
    (void)state;
    struct rt_trace_record record = record_of(8, "");
    record.arrival_ns = 1000;
    record.submitted_ns = 1100;
    record.end_ns = 1500;
    Baton__V1__RequestTrace *trace = rt_trace_message_create(&record, 0);
    assert_non_null(trace);
    assert_int_equal(trace->n_spans, 3);
    check(trace, "queue", "router", 1100, 400);
    baton__v1__request_trace__free_unpacked(trace, NULL);
}

/* One whose first tokens came from where another router had left it. It was placed anew later, and
 * its client, which came a second time, has had no token again yet. */
static void test_spans_of_an_adopted_one(void **state)
{
    (void)state;
    struct rt_trace_record record = record_of(9, "nine");
    record.arrival_ns = 1000;
    record.submitted_ns = 1100;
    record.first_token_ns = 1400;
    record.last_token_ns = 4000;
    record.end_ns = 5000;
    for (int anew = 0; anew < 2; anew++) {
        record.first_reserve_ns = anew ? 2000 : 0;
        Baton__V1__RequestTrace *trace = rt_trace_message_create(&record, 0);
        assert_non_null(trace);
        assert_int_equal(trace->n_spans, 4); /* and no queue */
        check(trace, "request", "router", 1000, 4000);
        check(trace, "adoption", "router", 1100, 300);
        check(trace, "decode", "router", 1400, 2600);
        assert_string_equal(find(trace, "decode")->arg[0], "tokens=0");
        baton__v1__request_trace__free_unpacked(trace, NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header_goes_on),
        cmocka_unit_test(test_wrong_headers),
        cmocka_unit_test(test_ratio),
        cmocka_unit_test(test_store_keeps_the_last),
        cmocka_unit_test(test_details_are_bounded),
        cmocka_unit_test(test_spans),
        cmocka_unit_test(test_spans_of_a_short_life),
        cmocka_unit_test(test_spans_of_an_adopted_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
