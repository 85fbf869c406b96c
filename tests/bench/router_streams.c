/*
 * What an open stream costs the router in memory: HTTP streams, as many as there are descriptors
 * for, and calls of the ZeroMQ API, of which thousands share a connection. All of them wait for
 * their next token, after a prompt of PROMPT_TOKENS.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/messaging/rpc.h"
#include "proto/router.pb-c.h"
#include "tests/bench/router_bench.h"

#define PROMPT_TOKENS  100
#define DECODE_WORKERS 8
#define WARM_STREAMS   256
#define OPEN_S         120
#define AIM_BYTES      4096
#define A_CLIENT       4000 /* calls; a peer may have BT_RPC_MAX_CALLS_PER_PEER */
#define SHORT_ANSWERS  4
#define AT_ONCE        200 /* that have not begun yet: as many as the queues of the workers hold */

static struct bench_router router;
static pid_t workers;

static void start(const struct bench_options *options)
{
    const char *arguments[] = {"--max-connections", "1000000", NULL};
    memset(bench_shared, 0, sizeof *bench_shared);
    bench_router_start(options, arguments, &router);
    struct bench_workers setup = {router.rpc, DECODE_WORKERS};
    workers = bench_fork();
    if (workers == 0) {
        bench_workers_run(&setup);
    }
    bench_wait_registered(setup.decode_workers + 1);
}

static void stop(void)
{
    bench_kill(workers);
    bench_kill(router.pid);
}

/* ---- HTTP */

static char *http_request(void)
{
    static char body[4096];
    size_t size = (size_t)snprintf(body, sizeof body, "{\"prompt\":[");
    for (uint32_t i = 0; i < PROMPT_TOKENS; i++) {
        size += (size_t)snprintf(body + size, sizeof body - size, i ? ",%u" : "%u", 300 + i);
    }
    snprintf(body + size, sizeof body - size,
             "],\"stream\":true,\"max_tokens\":5000,\"temperature\":0}");
    return body;
}

static void open_http(struct bench_clients **ret_clients, uint32_t count)
{
    *ret_clients = bench_clients_open(router.port, count, "/v1/completions", http_request());
    if (!bench_clients_wait(*ret_clients, OPEN_S)) {
        bench_die("%u streams do not begin", count);
    }
}

static uint32_t descriptors(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_max > 1000 ? (uint32_t)limit.rlim_max - 1000 : 0;
}

static double measure_http(const struct bench_options *options)
{
    uint32_t count = options->http_streams;
    count = count < descriptors() ? count : descriptors();
    start(options);
    struct bench_clients *warm, *clients;
    open_http(&warm, WARM_STREAMS);
    double before = bench_rss_bytes(router.pid);
    open_http(&clients, count);
    double bytes = (bench_rss_bytes(router.pid) - before) / count;
    fprintf(stderr, "%u HTTP streams: %.0f bytes each\n", count, bytes);
    bench_clients_close(warm);
    bench_clients_close(clients);
    stop();
    return bytes;
}

/* ---- RPC */

static uint32_t begun;

static void on_event(void *context, const ProtobufCMessage *message)
{
    (void)message;
    bool *has_begun = context;
    begun += !*has_begun;
    *has_begun = true;
}

static void on_end(void *context, enum bt_status status, const char *text,
                   const ProtobufCMessage *response)
{
    (void)context;
    (void)response;
    bench_die("a stream ended: %s: %s", bt_status_name(status), text);
}

static void open_calls(struct bt_loop *loop, struct bt_rpc_client *client, uint32_t count,
                       bool *has_begun)
{
    uint32_t prompt[PROMPT_TOKENS];
    for (uint32_t i = 0; i < PROMPT_TOKENS; i++) {
        prompt[i] = 300 + i;
    }
    Baton__V1__GenerateRequest request = BATON__V1__GENERATE_REQUEST__INIT;
    request.n_prompt_ids = PROMPT_TOKENS;
    request.prompt_ids = prompt;
    request.has_max_tokens = true;
    request.max_tokens = 5000;
    struct bt_rpc_call_spec spec = {.method = "baton.v1.Router/Generate",
                                    .request = &request.base,
                                    .data = &baton__v1__generate_event__descriptor,
                                    .deadline_ns = BT_NEVER_NS,
                                    .on_data = on_event,
                                    .on_end = on_end};
    uint32_t first = begun;
    double until = bench_now_s() + OPEN_S;
    for (uint32_t i = 0; i < count || begun < first + count;) {
        struct bt_error error;
        spec.context = &has_begun[i < count ? i : 0];
        if (i < count && i < begun - first + AT_ONCE) {
            if (bt_rpc_client_call(client, &spec, &error, NULL) != BT_OK) {
                bench_die("%s", error.text);
            }
            i++;
            continue;
        }
        bt_loop_run_once(loop, bt_clock_now_ns() + 10 * BT_NS_PER_MS, NULL);
        if (bench_now_s() > until) {
            bench_die("%u of %u streams do not begin", count - (begun - first), count);
        }
    }
}

/* ---- answers that end at their first tokens */

static void on_short_event(void *context, const ProtobufCMessage *message)
{
    uint32_t *delivered = context;
    *delivered = ((const Baton__V1__GenerateEvent *)message)->delivered_tokens;
}

static uint32_t ended;

static void on_short_end(void *context, enum bt_status status, const char *text,
                         const ProtobufCMessage *response)
{
    (void)context;
    (void)response;
    if (status != BT_OK) {
        bench_die("a short answer failed: %s: %s", bt_status_name(status), text);
    }
    ended++;
}

static void check_short_answers(const struct bench_options *options)
{
    static const uint32_t lengths[SHORT_ANSWERS] = {1, 2, 3, 9};
    uint32_t delivered[SHORT_ANSWERS] = {0}, prompt[] = {300, 301, 302};
    struct bt_error error;
    struct bt_rpc_client *client;
    start(options);
    atomic_store(&bench_shared->window, UINT32_MAX);
    struct bt_loop *loop = bt_loop_create(&error);
    if (!loop || bt_rpc_client_create(loop, router.rpc, &error, &client) != BT_OK) {
        bench_die("%s", loop ? error.text : "no memory");
    }
    for (uint32_t i = 0; i < SHORT_ANSWERS; i++) {
        Baton__V1__GenerateRequest request = BATON__V1__GENERATE_REQUEST__INIT;
        request.n_prompt_ids = 3;
        request.prompt_ids = prompt;
        request.has_max_tokens = request.has_ignore_eos = request.ignore_eos = true;
        request.max_tokens = lengths[i];
        request.has_token_ids = request.token_ids = true;
        struct bt_rpc_call_spec spec = {.method = "baton.v1.Router/Generate",
                                        .request = &request.base,
                                        .data = &baton__v1__generate_event__descriptor,
                                        .deadline_ns = bt_clock_now_ns() + OPEN_S * BT_NS_PER_S,
                                        .on_data = on_short_event,
                                        .on_end = on_short_end,
                                        .context = &delivered[i]};
        if (bt_rpc_client_call(client, &spec, &error, NULL) != BT_OK) {
            bench_die("%s", error.text);
        }
    }
    while (ended < SHORT_ANSWERS) {
        bt_loop_run_once(loop, bt_clock_now_ns() + 10 * BT_NS_PER_MS, NULL);
    }
    for (uint32_t i = 0; i < SHORT_ANSWERS; i++) {
        if (delivered[i] != lengths[i]) {
            bench_die("an answer of %u tokens had %u", lengths[i], delivered[i]);
        }
    }
    bt_rpc_client_destroy(client);
    bt_loop_destroy(loop);
    stop();
}

static double measure_rpc(const struct bench_options *options)
{
    uint32_t count = options->rpc_streams, opened = 0;
    struct bt_error error;
    start(options);
    struct bt_loop *loop = bt_loop_create(&error);
    bool *has_begun = calloc(count + WARM_STREAMS, sizeof *has_begun);
    if (!loop || !has_begun) {
        bench_die("no memory");
    }
    double before = 0;
    begun = 0;
    for (uint32_t i = 0; opened < count; i++) {
        struct bt_rpc_client *client; /* another peer */
        if (bt_rpc_client_create(loop, router.rpc, &error, &client) != BT_OK) {
            bench_die("%s", error.text);
        }
        if (i == 0) {
            open_calls(loop, client, WARM_STREAMS, has_begun + count);
            before = bench_rss_bytes(router.pid);
            continue;
        }
        uint32_t some = count - opened < A_CLIENT ? count - opened : A_CLIENT;
        open_calls(loop, client, some, has_begun + opened);
        opened += some;
    }
    double bytes = (bench_rss_bytes(router.pid) - before) / count;
    fprintf(stderr, "%u RPC streams: %.0f bytes each\n", count, bytes);
    stop();
    return bytes;
}

static void in_child(const struct bench_options *options,
                     double (*measure)(const struct bench_options *), const char *name)
{
    int ends[2];
    double bytes = 0;
    if (pipe(ends) != 0) {
        bench_die("pipe: %m");
    }
    pid_t pid = bench_fork();
    if (pid == 0) {
        bytes = measure(options);
        _exit(write(ends[1], &bytes, sizeof bytes) != sizeof bytes);
    }
    close(ends[1]);
    if (read(ends[0], &bytes, sizeof bytes) != sizeof bytes) {
        bench_die("%s was not measured", name);
    }
    close(ends[0]);
    bench_kill(pid);
    bench_figure(name, bytes, "bytes", AIM_BYTES, AIM_BYTES / bytes);
}

void bench_streams(const struct bench_options *options)
{
    check_short_answers(options);
    in_child(options, measure_http, "bytes_per_http_stream");
    in_child(options, measure_rpc, "bytes_per_stream");
}
