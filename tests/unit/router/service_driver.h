/*
 * Short forms for tests of the whole service: a client's sink on one side, workers that the test
 * plays on the other, all in one loop.
 */
#ifndef BATON_TESTS_UNIT_ROUTER_SERVICE_DRIVER_H
#define BATON_TESTS_UNIT_ROUTER_SERVICE_DRIVER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "router/service_state.h"
#include "tests/unit/router/fake_worker.h"

#define MANY_S 60

static struct bt_loop *loop;
static struct bt_metrics *metrics;
static struct rt_service *service;
static struct bt_rpc_client *client; /* the workers' to the registry */
static struct bt_token_buffer script;
static const char *const script_text = "the quick brown fox jumps over the lazy dog";

#define RUN_UNTIL(condition)                                                                       \
    do {                                                                                           \
        int64_t until_ns_ = bt_clock_now_ns() + MANY_S * BT_NS_PER_S;                              \
        while (!(condition) && bt_clock_now_ns() < until_ns_) {                                    \
            assert_int_equal(bt_loop_run_once(loop, until_ns_, NULL), BT_OK);                      \
        }                                                                                          \
        assert_true(condition);                                                                    \
    } while (0)

/* Everything that was sent so far was also read: the answer to a call made now comes after it. */
#define SETTLE() (void)heartbeat("nobody", 1)

/* ---- what a client sees */

struct seen {
    char text[1024];
    size_t size;
    uint32_t token_count, next_index;
    bool ended;
    struct rt_result result;
    char error[512];
    Baton__V1__Timing timing;
    char prefill_worker[64], decode_worker[64], transport[32];
    uint64_t request;
};

static inline void on_output(void *context, const char *text, size_t size,
                             const Baton__V1__Token *tokens, size_t token_count)
{
    struct seen *seen = context;
    assert_false(seen->ended);
    assert_true(seen->size + size < sizeof seen->text);
    memcpy(seen->text + seen->size, text, size);
    seen->size += size;
    for (size_t i = 0; i < token_count; i++) {
        assert_int_equal(tokens[i].index, seen->next_index);
        assert_int_equal(tokens[i].token, script.ids[seen->next_index]);
        assert_true(tokens[i].has_logprob);
        seen->next_index++;
    }
    seen->token_count += (uint32_t)token_count;
}

static inline void on_end(void *context, const struct rt_result *result)
{
    struct seen *seen = context;
    assert_false(seen->ended);
    seen->ended = true;
    seen->result = *result;
    seen->timing = *result->timing;
    snprintf(seen->error, sizeof seen->error, "%s", result->text ? result->text : "");
    snprintf(seen->prefill_worker, 64, "%s", result->timing->prefill_worker);
    snprintf(seen->decode_worker, 64, "%s", result->timing->decode_worker);
    snprintf(seen->transport, 32, "%s", result->timing->transport);
}

static const uint32_t prompt[] = {3, 4, 5, 6, 7};

static inline struct rt_generation generation(uint32_t max_tokens)
{
    struct rt_generation g = {.prompt = prompt, .prompt_tokens = 5, .deadline_ns = BT_NEVER_NS};
    baton__v1__sampling_params__init(&g.sampling);
    g.sampling.seed = 42;
    g.has_seed = true;
    g.sampling.top_p = 1;
    g.sampling.repetition_penalty = 1;
    g.sampling.logprobs = -1;
    g.sampling.max_tokens = max_tokens;
    return g;
}

static inline enum bt_status submit_to(struct seen *seen, const struct rt_generation *g,
                                       struct bt_error *error)
{
    struct rt_sink sink = {.context = seen, .on_output = on_output, .on_end = on_end};
    *seen = (struct seen){0};
    return rt_service_submit(service, g, &sink, error, &seen->request);
}

static inline void submit(struct seen *seen, uint32_t max_tokens)
{
    struct rt_generation g = generation(max_tokens);
    assert_int_equal(submit_to(seen, &g, NULL), BT_OK);
}

/* ---- what a worker sees of the registry */

struct answer {
    bool done;
    enum bt_status status;
    char text[512];
    uint32_t heartbeat_ms, announced;
    char first_announced[64];
};
static struct answer answer;

static inline void on_answer(void *context, enum bt_status status, const char *text,
                             const ProtobufCMessage *response)
{
    (void)context;
    answer = (struct answer){.done = true, .status = status};
    snprintf(answer.text, sizeof answer.text, "%s", text);
    Baton__V1__KvEndpoint **announced = NULL;
    if (response && response->descriptor == &baton__v1__register_response__descriptor) {
        const Baton__V1__RegisterResponse *r = (const Baton__V1__RegisterResponse *)response;
        answer.heartbeat_ms = r->heartbeat_ms;
        answer.announced = (uint32_t)r->n_decode;
        announced = r->decode;
    } else if (response && response->descriptor == &baton__v1__heartbeat_response__descriptor) {
        const Baton__V1__HeartbeatResponse *r = (const Baton__V1__HeartbeatResponse *)response;
        answer.announced = (uint32_t)r->n_decode;
        announced = r->decode;
    }
    if (answer.announced > 0) {
        snprintf(answer.first_announced, 64, "%s", announced[0]->worker_id);
    }
}

static inline enum bt_status call(const char *method, const ProtobufCMessage *request,
                                  const ProtobufCMessageDescriptor *response)
{
    struct bt_rpc_call_spec spec = {.method = method,
                                    .request = request,
                                    .response = response,
                                    .deadline_ns = BT_NEVER_NS,
                                    .on_end = on_answer};
    answer.done = false;
    assert_int_equal(bt_rpc_client_call(client, &spec, NULL, NULL), BT_OK);
    RUN_UNTIL(answer.done);
    return answer.status;
}

static inline enum bt_status register_with(const Baton__V1__RegisterRequest *request)
{
    return call("baton.v1.Registry/Register", &request->base,
                &baton__v1__register_response__descriptor);
}

static inline enum bt_status heartbeat(const char *id, uint64_t incarnation)
{
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    load.pages_total = load.pages_free = 100;
    Baton__V1__HeartbeatRequest request = BATON__V1__HEARTBEAT_REQUEST__INIT;
    request.worker_id = (char *)id;
    request.incarnation = incarnation;
    request.load = &load;
    return call("baton.v1.Registry/Heartbeat", &request.base,
                &baton__v1__heartbeat_response__descriptor);
}

static inline bool worker_is(const char *id, const char *state)
{
    Baton__V1__StatusResponse *status = rt_service_status(service);
    bool found = false;
    for (size_t i = 0; i < status->n_workers; i++) {
        found |= strcmp(status->workers[i]->worker_id, id) == 0 &&
                 strcmp(status->workers[i]->state, state) == 0;
    }
    baton__v1__status_response__free_unpacked(status, NULL);
    return found;
}

static inline void join(struct fake_worker *worker, const char *id, bool decode)
{
    fake_worker_open(worker, loop, id, decode);
    assert_int_equal(register_with(fake_worker_registration(worker)), BT_OK);
    if (decode) {
        RUN_UNTIL(worker->steps);
        assert_true(worker_is(id, "connecting"));
        fake_decode_hello(worker);
    }
    RUN_UNTIL(worker_is(id, "ready"));
}

/* ---- the fixture */

static struct fake_worker p0, p1, d0, d1;

static inline int open_service(void **state)
{
    (void)state;
    memset(&p0, 0, sizeof p0);
    p1 = d0 = d1 = p0;
    struct bt_error error = {0};
    struct rt_service_options options = {
        .core = {.queue_capacity = 4,
                 .max_attempts = 3,
                 .expected_output_tokens = 64,
                 .prefill_depth_ns = 10 * BT_NS_PER_S,
                 .prefill_token_ns = BT_NS_PER_MS,
                 .silent_after_ns = 60 * BT_NS_PER_S,
                 .lost_after_ns = 120 * BT_NS_PER_S,
                 .reserve_retry_ns = 20 * BT_NS_PER_MS},
        .model_dir = MODEL_DIR,
        .worker_endpoint = "tcp://127.0.0.1:*",
        .request_timeout_ns = 60 * BT_NS_PER_S,
        .heartbeat_ms = 250,
        .tokenizer_threads = 1,
        .tokenizer_max_jobs = 4,
        .tokenizer_max_bytes = 1 << 20,
        .tokenizer_cache_bytes = 1 << 20,
    };
    loop = bt_loop_create(&error);
    metrics = bt_metrics_create();
    enum bt_status status = rt_service_create(loop, &options, metrics, &error, &service);
    if (status != BT_OK) {
        fprintf(stderr, "%s\n", error.text);
        return -1;
    }
    script.count = 0;
    if (bt_tokenizer_encode(rt_service_tokenizer(service), script_text, strlen(script_text), false,
                            &error, &script) != BT_OK) {
        return -1;
    }
    fake_script = script.ids;
    return bt_rpc_client_create(loop, rt_service_rpc_endpoint(service), &error, &client) == BT_OK
               ? 0
               : -1;
}

static inline int close_service(void **state)
{
    (void)state;
    rt_service_destroy(service);
    bt_rpc_client_destroy(client);
    struct fake_worker *workers[] = {&p0, &p1, &d0, &d1};
    for (int i = 0; i < 4; i++) {
        fake_worker_close(workers[i]);
    }
    bt_loop_destroy(loop);
    bt_metrics_destroy(metrics);
    free(script.ids);
    script = (struct bt_token_buffer){0};
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_service, close_service)

#endif
