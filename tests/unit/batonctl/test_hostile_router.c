/*
 * batonctl against a router that lies: absurd times and counts, control characters in every text.
 * usage: test-batonctl-hostile_router PATH-OF-BATONCTL
 */
#include <jansson.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/messaging/rpc.h"
#include "proto/router.pb-c.h"

#define MANY_TRACKS 20000
#define MANY_TRACES 3000
#define PATIENCE_NS (60 * BT_NS_PER_S)

/* ESC, a line's end, DEL, CSI of two bytes, half a character, a surrogate; and what is good. */
#define EVIL                                                                                       \
    "a\x1b[2J\n\x7f\xc2\x9b\xe2\x82(\xed\xa0\x80\xff"                                              \
    "b \xc3\xa9\xf0\x9f\xa6\x8a"
#define EVIL_FLAT                                                                                  \
    "a?[2J?????"                                                                                   \
    "?(????"                                                                                       \
    "b \xc3\xa9\xf0\x9f\xa6\x8a"

extern char **environ;
static const char *batonctl;
static struct bt_loop *loop;
static struct bt_rpc_server *server;
static char evil[] = EVIL;
static bool many; /* tracks and traces */
static volatile double zero;

static void answer_status(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    (void)context;
    (void)request;
    Baton__V1__WorkerStatus worker = BATON__V1__WORKER_STATUS__INIT, *workers[] = {&worker};
    Baton__V1__RequestStatus one = BATON__V1__REQUEST_STATUS__INIT, *requests[] = {&one};
    Baton__V1__GroupMember group = BATON__V1__GROUP_MEMBER__INIT;
    Baton__V1__StatusResponse status = BATON__V1__STATUS_RESPONSE__INIT;
    group.name = worker.worker_id = worker.state = worker.transport = evil;
    worker.control_endpoint = one.state = one.prefill_worker = one.decode_worker = evil;
    worker.group = &group;
    worker.role = (Baton__V1__WorkerRole)77;
    status.model = status.http_endpoint = evil;
    status.n_workers = status.n_requests = 1;
    status.workers = workers;
    status.requests = requests;
    bt_rpc_call_end(call, BT_OK, NULL, &status.base);
}

/* Every span is of another track, and both ends of time are in it. */
static void answer_trace(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    (void)context;
    (void)request;
    static Baton__V1__TraceSpan spans[MANY_TRACKS], *span_list[MANY_TRACKS];
    static char tracks[MANY_TRACKS][16];
    static Baton__V1__RequestTrace traces[MANY_TRACES], *trace_list[MANY_TRACES];
    static char *arg[] = {evil, evil};
    for (int i = 0; i < MANY_TRACKS; i++) {
        baton__v1__trace_span__init(&spans[i]);
        snprintf(tracks[i], sizeof tracks[i], "t%d", i);
        spans[i].name = spans[i].process = evil;
        spans[i].track = tracks[i];
        spans[i].arg = arg;
        spans[i].n_arg = 2;
        spans[i].begin_unix_ns = i % 2 ? INT64_MAX - i : INT64_MIN + i;
        spans[i].duration_ns = UINT64_MAX;
        span_list[i] = &spans[i];
    }
    for (int i = 0; i < MANY_TRACES; i++) {
        baton__v1__request_trace__init(&traces[i]);
        traces[i].client_request_id = traces[i].trace_id = evil;
        traces[i].n_spans = i > 0 ? 1 : many ? MANY_TRACKS : 2;
        traces[i].spans = span_list;
        trace_list[i] = &traces[i];
    }
    Baton__V1__TraceResponse response = BATON__V1__TRACE_RESPONSE__INIT;
    response.n_traces = many ? MANY_TRACES : 1;
    response.traces = trace_list;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

/* Times and counts of nothing, and texts in every field. */
static void answer_stats(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    (void)context;
    (void)request;
    Baton__V1__StatsResponse stats = BATON__V1__STATS_RESPONSE__INIT;
    Baton__V1__StageTime stage = BATON__V1__STAGE_TIME__INIT, *stages[] = {&stage};
    stats.window_s = stats.kv_bytes_s = 0.0 / zero;
    stats.generated_tokens_s = 1 / zero;
    stats.prompt_tokens_s = -1 / zero;
    stats.failed_s = -1e308;
    stage.name = evil;
    stage.mean_s = -1 / zero;
    stats.stages = stages;
    stats.n_stages = 1;
    bt_rpc_call_end(call, BT_OK, NULL, &stats.base);
}

/* More than any router keeps, of any time. */
static void answer_events(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    (void)context;
    (void)request;
    Baton__V1__ClusterEvent event = BATON__V1__CLUSTER_EVENT__INIT;
    event.kind = event.worker_id = event.text = evil;
    for (int i = 0; i < 500; i++) {
        event.number = UINT64_MAX - (uint64_t)i;
        event.unix_ns = i % 2 ? INT64_MIN : INT64_MAX;
        if (bt_rpc_call_send(call, &event.base) != BT_OK)
            break;
    }
    bt_rpc_call_end(call, BT_OK, NULL, NULL);
}

/* Fewer pieces than ids, with zeros and halves of characters in them. */
static void answer_tokenize(void *context, struct bt_rpc_call *call,
                            const ProtobufCMessage *request)
{
    (void)context;
    (void)request;
    uint32_t ids[] = {0, UINT32_MAX, 7};
    static uint8_t bytes[] = {'a', 0, 0x1b, '[', 0xe2, '\n'};
    ProtobufCBinaryData pieces[] = {{sizeof bytes, bytes}, {0, NULL}};
    Baton__V1__TokenizeResponse response = BATON__V1__TOKENIZE_RESPONSE__INIT;
    response.ids = ids;
    response.n_ids = 3;
    response.pieces = pieces;
    response.n_pieces = 2;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void answer_generate(void *context, struct bt_rpc_call *call,
                            const ProtobufCMessage *request)
{
    (void)context;
    (void)request;
    Baton__V1__GenerateEvent event = BATON__V1__GENERATE_EVENT__INIT;
    Baton__V1__Timing timing = BATON__V1__TIMING__INIT;
    Baton__V1__Usage usage = BATON__V1__USAGE__INIT;
    timing.transport = timing.prefill_worker = timing.decode_worker = timing.trace_id = evil;
    timing.ttft_ms = 0.0 / zero;
    timing.kv_bytes = UINT64_MAX;
    event.text = event.finish_reason = evil;
    event.timing = &timing;
    event.usage = &usage;
    bt_rpc_call_send(call, &event.base);
    bt_rpc_call_end(call, BT_OK, NULL, NULL);
}

static void answer_models(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    (void)context;
    (void)request;
    Baton__V1__ModelInfo model = BATON__V1__MODEL_INFO__INIT, *models[] = {&model};
    Baton__V1__ModelsResponse response = BATON__V1__MODELS_RESPONSE__INIT;
    model.id = evil;
    model.max_model_len = 1;
    response.n_models = 1;
    response.models = models;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

/* Tokens that were never drawn, some of them taken back, and an end that comes twice. */
static void answer_too_much(void *context, struct bt_rpc_call *call,
                            const ProtobufCMessage *request)
{
    (void)context;
    (void)request;
    Baton__V1__GenerateEvent event = BATON__V1__GENERATE_EVENT__INIT;
    Baton__V1__Timing timing = BATON__V1__TIMING__INIT;
    Baton__V1__Usage usage = BATON__V1__USAGE__INIT;
    event.request_id = event.text = event.finish_reason = evil;
    const uint32_t delivered[] = {0, 1, UINT32_MAX, 7, 0};
    for (size_t i = 0; i < sizeof delivered / sizeof delivered[0]; i++) {
        event.delivered_tokens = delivered[i];
        bt_rpc_call_send(call, &event.base);
    }
    timing.prefill_worker = timing.decode_worker = evil;
    timing.ttft_ms = -1 / zero;
    usage.prompt_tokens = usage.completion_tokens = usage.cached_tokens = UINT32_MAX;
    event.timing = &timing;
    event.usage = &usage;
    bt_rpc_call_send(call, &event.base);
    usage.completion_tokens = 0;
    bt_rpc_call_send(call, &event.base);
    bt_rpc_call_end(call, BT_OK, NULL, NULL);
}

static void refuse(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    (void)context;
    (void)request;
    bt_rpc_call_end(call, BT_ERR_INTERNAL, evil, NULL);
}

static const struct bt_rpc_method lies[] = {
    {"baton.v1.Router/Status", &baton__v1__status_request__descriptor, answer_status},
    {"baton.v1.Router/Trace", &baton__v1__trace_request__descriptor, answer_trace},
    {"baton.v1.Router/Stats", &baton__v1__stats_request__descriptor, answer_stats},
    {"baton.v1.Router/Events", &baton__v1__events_request__descriptor, answer_events},
    {"baton.v1.Router/Tokenize", &baton__v1__tokenize_request__descriptor, answer_tokenize},
    {"baton.v1.Router/Generate", &baton__v1__generate_request__descriptor, answer_generate},
    {NULL, NULL, NULL},
};
static const struct bt_rpc_method refusals[] = {
    {"baton.v1.Router/Status", &baton__v1__status_request__descriptor, refuse},
    {"baton.v1.Router/Trace", &baton__v1__trace_request__descriptor, refuse},
    {"baton.v1.Router/Stats", &baton__v1__stats_request__descriptor, refuse},
    {"baton.v1.Router/Events", &baton__v1__events_request__descriptor, refuse},
    {"baton.v1.Router/Tokenize", &baton__v1__tokenize_request__descriptor, refuse},
    {"baton.v1.Router/Generate", &baton__v1__generate_request__descriptor, refuse},
    {NULL, NULL, NULL},
};

static const struct bt_rpc_method loads[] = {
    {"baton.v1.Router/Models", &baton__v1__models_request__descriptor, answer_models},
    {"baton.v1.Router/Tokenize", &baton__v1__tokenize_request__descriptor, answer_tokenize},
    {"baton.v1.Router/Generate", &baton__v1__generate_request__descriptor, answer_too_much},
    {NULL, NULL, NULL},
};
static const struct bt_rpc_method refused_loads[] = {
    {"baton.v1.Router/Models", &baton__v1__models_request__descriptor, answer_models},
    {"baton.v1.Router/Tokenize", &baton__v1__tokenize_request__descriptor, answer_tokenize},
    {"baton.v1.Router/Generate", &baton__v1__generate_request__descriptor, refuse},
    {NULL, NULL, NULL},
};
static const struct bt_rpc_method no_tokens[] = {
    {"baton.v1.Router/Models", &baton__v1__models_request__descriptor, answer_models},
    {"baton.v1.Router/Tokenize", &baton__v1__tokenize_request__descriptor, refuse},
    {NULL, NULL, NULL},
};

static const char *words[3]; /* after the options */

static pid_t start(const char *verb, const char *how, int out)
{
    posix_spawn_file_actions_t actions;
    const char *argv[12] = {batonctl,    verb,  "--rpc",    bt_rpc_server_endpoint(server),
                            "--timeout", "30s", "--output", how};
    for (int i = 0; i < 3; i++) {
        argv[8 + i] = words[i];
    }
    pid_t pid;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out, STDERR_FILENO);
    assert_int_equal(posix_spawn(&pid, batonctl, &actions, NULL, (char **)argv, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
}

/* What it printed, to be freed, and its exit code. */
static char *run(const struct bt_rpc_method *methods, const char *verb, const char *how,
                 int *ret_code)
{
    FILE *file = tmpfile();
    assert_non_null(file);
    loop = bt_loop_create(NULL);
    assert_int_equal(bt_rpc_server_create(loop, "tcp://127.0.0.1:*", methods, NULL, NULL, &server),
                     BT_OK);
    pid_t pid = start(verb, how, fileno(file));
    int64_t until_ns = bt_clock_now_ns() + PATIENCE_NS;
    int state;
    pid_t over = 0;
    while (over == 0 && bt_clock_now_ns() < until_ns) {
        bt_loop_run_once(loop, bt_clock_now_ns() + 5 * BT_NS_PER_MS, NULL);
        over = waitpid(pid, &state, WNOHANG);
    }
    if (over == 0) {
        kill(pid, SIGKILL);
        waitpid(pid, &state, 0);
    }
    bt_rpc_server_destroy(server);
    bt_loop_destroy(loop);
    assert_int_equal(over, pid);
    long size = (fseek(file, 0, SEEK_END), ftell(file));
    char *text = calloc(1, (size_t)size + 1);
    rewind(file);
    assert_int_equal(fread(text, 1, (size_t)size, file), size);
    fclose(file);
    if (!WIFEXITED(state)) {
        fail_msg("killed by %d: %s", WTERMSIG(state), text);
    }
    *ret_code = WEXITSTATUS(state);
    return text;
}

static void expect_flat(const struct bt_rpc_method *methods, const char *verb, int expected,
                        const char *shown)
{
    int code;
    char *text = run(methods, verb, "table", &code);
    const char *control = strcmp(verb, "generate") == 0 ? "\n\t" : "\n";
    assert_null(strstr(text, "runtime error"));
    assert_int_equal(code, expected);
    if (!strstr(text, shown)) {
        fail_msg("%s", text);
    }
    for (const char *at = text; *at; at++) {
        assert_true(strchr(control, *at) || (unsigned char)*at >= 0x20);
    }
    assert_null(strstr(text, "\xc2\x9b"));
    free(text);
}

static void test_tables_are_flat(void **state)
{
    (void)state;
    many = false;
    expect_flat(lies, "get", 0, EVIL_FLAT);
    expect_flat(lies, "status", 0, EVIL_FLAT);
    expect_flat(lies, "trace", 0, EVIL_FLAT);
}

static void with_words(const char *first, const char *second, const char *third)
{
    words[0] = first;
    words[1] = second;
    words[2] = third;
}

static void test_day_two_is_flat(void **state)
{
    (void)state;
    expect_flat(lies, "events", 0, EVIL_FLAT);
    with_words("--once", NULL, NULL);
    expect_flat(lies, "top", 0, EVIL_FLAT);
    with_words("cluster", NULL, NULL);
    expect_flat(lies, "describe", 0, EVIL_FLAT);
    with_words("routers", NULL, NULL);
    expect_flat(lies, "get", 0, EVIL_FLAT);
    with_words("text", NULL, NULL);
    expect_flat(lies, "tokenize", 0, "a\\x00\\x1b[\\xe2\\n");
    expect_flat(lies, "generate", 0, "a?[2J");
    expect_flat(refusals, "generate", 1, "a?[2J");
    expect_flat(refusals, "tokenize", 1, "a?[2J");
    with_words(NULL, NULL, NULL);
    expect_flat(refusals, "events", 1, "a?[2J");
}

static void test_refusals_are_flat(void **state)
{
    (void)state;
    expect_flat(refusals, "status", 1, "a?[2J ????");
    expect_flat(refusals, "trace", 1, "a?[2J ????");
}

static json_t *run_json_of(const struct bt_rpc_method *methods, const char *verb)
{
    int code;
    char *text = run(methods, verb, "json", &code);
    json_t *json = json_loads(text, 0, NULL);
    if (code != 0 || !json) {
        fail_msg("%d: %.500s", code, text);
    }
    free(text);
    return json;
}

static json_t *run_json(const char *verb)
{
    return run_json_of(lies, verb);
}

/* A router's counts are counted as they are; times are our own. */
static void test_bench(void **state)
{
    (void)state;
    with_words("--num-requests=3", "--concurrency=2", NULL);
    expect_flat(loads, "bench", 0, EVIL_FLAT);
    expect_flat(refused_loads, "bench", 1, "a?[2J");
    expect_flat(no_tokens, "bench", 1, "a?[2J");
    json_t *report = run_json_of(loads, "bench");
    json_t *bench = json_array_get(json_object_get(report, "runs"), 0);
    assert_string_equal(json_string_value(json_object_get(report, "model")), EVIL_FLAT);
    assert_int_equal(json_integer_value(json_object_get(bench, "succeeded")), 3);
    assert_int_equal(json_integer_value(json_object_get(bench, "output_tokens")), 3L * UINT32_MAX);
    double itl = json_number_value(json_object_get(json_object_get(bench, "itl_s"), "mean"));
    double e2e = json_number_value(json_object_get(json_object_get(bench, "e2e_s"), "max"));
    assert_true(itl >= 0 && itl <= e2e && e2e < (double)PATIENCE_NS / 1e9);
    json_decref(report);
    char path[] = "/tmp/test-hostile-XXXXXX", option[64];
    int fd = mkstemp(path), code;
    assert_true(fd >= 0);
    snprintf(option, sizeof option, "--per-request=%s", path);
    with_words("--num-requests=3", "--concurrency=2", option);
    free(run(loads, "bench", "table", &code));
    unlink(path);
    assert_int_equal(code, 0);
    FILE *file = fdopen(fd, "r");
    for (int i = 0; i < 3; i++) {
        json_t *one = json_loadf(file, JSON_DISABLE_EOF_CHECK, NULL);
        assert_string_equal(json_string_value(json_object_get(one, "request_id")), EVIL_FLAT);
        assert_true(json_number_value(json_object_get(one, "router_ttft_s")) == 0);
        json_decref(one);
    }
    fclose(file);
    with_words(NULL, NULL, NULL);
}

static void test_json_is_json(void **state)
{
    (void)state;
    many = false;
    json_t *status = run_json("status");
    assert_string_equal(json_string_value(json_object_get(status, "model")), EVIL_FLAT);
    assert_int_equal(json_array_size(json_object_get(status, "workers")), 1);
    json_decref(status);
    json_t *trace = run_json("trace");
    json_t *event;
    size_t i;
    json_array_foreach(json_object_get(trace, "traceEvents"), i, event)
    {
        assert_true(json_number_value(json_object_get(event, "ts")) >= 0);
    }
    assert_true(i >= 2);
    json_decref(trace);
    static const char *const verbs[][2] = {{"events", NULL},     {"top", NULL},
                                           {"tokenize", "text"}, {"generate", "text"},
                                           {"get", "routers"},   {"describe", "cluster"}};
    for (size_t k = 0; k < sizeof verbs / sizeof verbs[0]; k++) {
        with_words(verbs[k][1], NULL, NULL);
        json_decref(run_json(verbs[k][0]));
    }
    with_words(NULL, NULL, NULL);
}

/* No memory for each track, which would be over 300 MiB. */
static void test_traces_are_bounded(void **state)
{
    (void)state;
    many = true;
    struct rusage usage;
    json_t *trace = run_json("trace");
    size_t spans = 0, i;
    json_t *event;
    json_array_foreach(json_object_get(trace, "traceEvents"), i, event)
    {
        spans += json_string_value(json_object_get(event, "ph"))[0] == 'X';
    }
    assert_int_equal(spans, MANY_TRACKS + 999); /* of 1000 traces */
    json_decref(trace);
    getrusage(RUSAGE_CHILDREN, &usage);
    assert_true(usage.ru_maxrss < 250 << 10);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s PATH-OF-BATONCTL\n", argv[0]);
        return 2;
    }
    batonctl = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables_are_flat),
        cmocka_unit_test(test_day_two_is_flat),
        cmocka_unit_test(test_refusals_are_flat),
        cmocka_unit_test(test_json_is_json),
        cmocka_unit_test(test_bench),
        cmocka_unit_test(test_traces_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
