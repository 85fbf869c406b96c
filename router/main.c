/* baton-router: options, life and death of the process. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/option.h"
#include "common/base/process.h"
#include "common/messaging/security.h"
#include "router/handover.h"
#include "router/http_front.h"
#include "router/openai_request.h"
#include "router/service.h"

#define SILENT_AFTER_BEATS 3
#define LOST_AFTER_BEATS   30
#define RESERVE_RETRY_NS   (50 * BT_NS_PER_MS)
#define STOP_LINGER_NS     (100 * BT_NS_PER_MS)
#define HANDOVER_NS        (10 * BT_NS_PER_S)
#define LOOK_NS            (20 * BT_NS_PER_MS)
/* Bodies of the largest size that wait for their tokens at a time. */
#define TOKENIZER_BODIES 16
/* What a prefill takes before a worker has reported one. */
#define PREFILL_BASE_NS  (2 * BT_NS_PER_MS)
#define PREFILL_TOKEN_NS 50000

struct arguments {
    const char *model, *served_model_name, *host, *worker_endpoint, *ready_file, *handover;
    int64_t port, queue_capacity, max_attempts, expected_output_tokens, prefill_depth_ns;
    int64_t request_timeout_ns, max_model_len, heartbeat_ms, max_connections, max_body_bytes;
    int64_t tokenizer_threads, tokenizer_cache_bytes, tokenizer_queue, drain_timeout_ns;
    int64_t trace_keep;
    double trace_sample;
    const char *api_keys, *api_key, *tls_cert, *tls_key;
    int64_t slo_ttft_ns, promote_after_ns, max_connections_per_address, max_header_bytes;
    int64_t breaker_failures, breaker_window_ns, breaker_open_ns, breaker_open_max_ns;
    int64_t flap_lives, flap_life_ns, poison_deaths, retry_budget;
    double patience;
    int log_level, decode_policy, local_prefill, keys_for;
    bool die_with_parent;
    struct bt_security_values security;
};

static const char usage[] =
    "usage: baton-router --model DIR [options]\n"
    "\n"
    "Serves the OpenAI-compatible HTTP API and the ZeroMQ API, and gives requests to the prefill\n"
    "and decode workers that register with it.";

/* Flags that need or exclude each other. */
static enum bt_status check_together(const struct arguments *a, struct bt_error *error)
{
    if (a->api_keys && a->api_key) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--api-keys and --api-key exclude each other");
    }
    if (!a->tls_cert != !a->tls_key) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "--tls-cert and --tls-key go together");
    }
    return bt_security_values_check(&a->security, error);
}

static enum bt_status parse(int argc, char **argv, struct bt_error *error, struct arguments *a)
{
    static const char *const levels[] = {"error", "warn", "info", "debug", NULL};
    const struct bt_option options[] = {
        {"model", BT_OPTION_STRING, &a->model, NULL, .metavar = "DIR", .required = true,
         .help = "Checkpoint directory: config.json, tokenizer.json, tokenizer_config.json."},
        {"served-model-name", BT_OPTION_STRING, &a->served_model_name, NULL, .metavar = "NAME",
         .help = "The model's name in the API; by default the directory's name."},
        {"host", BT_OPTION_STRING, &a->host, "127.0.0.1", .metavar = "ADDRESS",
         .help = "Numeric address that the HTTP API listens on."},
        {"port", BT_OPTION_INT, &a->port, "8000", .max = 65535,
         .help = "Port of the HTTP API; 0 takes any free one."},
        {"worker-endpoint", BT_OPTION_STRING, &a->worker_endpoint, "tcp://127.0.0.1:5557",
         .metavar = "ENDPOINT",
         .help = "Where workers and RPC clients connect; port * takes any free one."},
        {"queue-capacity", BT_OPTION_INT, &a->queue_capacity, "1024", .min = 1, .max = 1 << 20,
         .help = "Requests that wait at most; more are refused."},
        {"max-attempts", BT_OPTION_INT, &a->max_attempts, "3", .min = 1, .max = 100,
         .help = "How often a request is tried when attempts fail; lost workers are not counted."},
        {"poison-deaths", BT_OPTION_INT, &a->poison_deaths, "2", .max = 100,
         .help = "A request that kills so many workers in a row is stopped; 0: never."},
        {"retry-budget", BT_OPTION_INT, &a->retry_budget, "100", .max = 1 << 30,
         .help = "Failed attempts that are repeated in 10 s at most, of all requests; 0: all."},
        {"breaker-failures", BT_OPTION_INT, &a->breaker_failures, "5", .max = 1 << 20,
         .help = "A worker with so many failures within --breaker-window gets nothing; 0: never."},
        {"breaker-window", BT_OPTION_DURATION, &a->breaker_window_ns, "10s", .min = 0.001,
         .max = 86400, .help = "Time in which failures of a worker are counted."},
        {"breaker-open", BT_OPTION_DURATION, &a->breaker_open_ns, "1s", .min = 0.001, .max = 86400,
         .help = "How long a worker is kept out at first; twice as long each time in a row."},
        {"breaker-open-max", BT_OPTION_DURATION, &a->breaker_open_max_ns, "60s", .min = 0.001,
         .max = 86400, .help = "The longest time that a worker is kept out."},
        {"flap-lives", BT_OPTION_INT, &a->flap_lives, "3", .max = 1 << 20,
         .help = "A worker that comes back after so many short lives is kept out; 0: never."},
        {"flap-life", BT_OPTION_DURATION, &a->flap_life_ns, "30s", .min = 0.001, .max = 86400,
         .help = "What a short life is."},
        {"patience", BT_OPTION_DOUBLE, &a->patience, "10", .max = 1e6,
         .help = "A prompt lets shorter ones pass for so many times its own prefill; 0: none."},
        {"promote-after", BT_OPTION_DURATION, &a->promote_after_ns, "10s", .max = 86400,
         .help = "Waiting for so long makes up for one class of priority; 0: never."},
        {"slo-ttft", BT_OPTION_DURATION, &a->slo_ttft_ns, "0", .max = 3600,
         .help = "Requests whose first token is expected later are refused at once; 0: none."},
        {"api-keys", BT_OPTION_STRING, &a->api_keys, NULL, .metavar = "FILE",
         .help = "Tenants and their keys in JSON (README); read again when it changes."},
        {"api-key", BT_OPTION_STRING, &a->api_key, NULL, .metavar = "KEY",
         .help = "One key for all. A flag shows in the list of processes: better BATON_API_KEY."},
        {"api-keys-for", BT_OPTION_CHOICE, &a->keys_for, "api", .choices = rt_access_scope_names,
         .help =
             "What asks for keys: the API, or all (metrics and pages too) but health and ready."},
        {"tls-cert", BT_OPTION_STRING, &a->tls_cert, NULL, .metavar = "FILE",
         .help = "PEM certificate chain: HTTP is served over TLS; read again when it changes."},
        {"tls-key", BT_OPTION_STRING, &a->tls_key, NULL, .metavar = "FILE",
         .help = "PEM key of it, that others can't read."},
        {"expected-output-tokens", BT_OPTION_INT, &a->expected_output_tokens, "256", .min = 1,
         .max = 1 << 20, .help = "Output that placement expects of a request, at most its limit."},
        {"decode-policy", BT_OPTION_CHOICE, &a->decode_policy, "kv-utilization",
         .choices = rt_decode_policy_names, .help = "Which decode rank gets a request."},
        {"local-prefill", BT_OPTION_CHOICE, &a->local_prefill, "never",
         .choices = rt_local_prefill_names,
         .help = "Whether decode ranks prefill prompts themselves; auto: where that is cheaper, or "
                 "no prefill worker is there."},
        {"prefill-depth", BT_OPTION_DURATION, &a->prefill_depth_ns, "1s", .min = 0.001, .max = 3600,
         .help = "A prefill worker gets work while it is expected to be busy for less than this."},
        {"request-timeout", BT_OPTION_DURATION, &a->request_timeout_ns, "10m", .min = 0.001,
         .max = 86400, .help = "Default and largest time a request may take."},
        {"max-model-len", BT_OPTION_INT, &a->max_model_len, "0", .max = 1 << 30,
         .help = "Context length; 0 takes the checkpoint's."},
        {"heartbeat", BT_OPTION_INT, &a->heartbeat_ms, "1000", .min = 50, .max = 60000,
         .metavar = "MS", .help = "Interval of the workers' heartbeats in milliseconds."},
        {"max-connections", BT_OPTION_INT, &a->max_connections, "1024", .min = 1, .max = 1000000,
         .help = "HTTP connections at a time."},
        {"max-connections-per-address", BT_OPTION_INT, &a->max_connections_per_address, "0",
         .max = 65535, .help = "HTTP connections of one client address at a time; 0: no limit."},
        {"max-header-bytes", BT_OPTION_INT, &a->max_header_bytes, "16k", .min = 4096,
         .max = 1 << 20, .help = "Largest headers of an HTTP request, about."},
        {"max-body-bytes", BT_OPTION_INT, &a->max_body_bytes, "16m", .min = 1024, .max = 1 << 30,
         .help = "Largest HTTP request body."},
        {"tokenizer-threads", BT_OPTION_INT, &a->tokenizer_threads, "2", .min = 1,
         .max = BT_TOKENIZE_POOL_MAX_THREADS, .help = "Threads that turn text to tokens."},
        {"tokenizer-cache", BT_OPTION_INT, &a->tokenizer_cache_bytes, "64m",
         .max = INT64_C(1) << 40, .metavar = "BYTES",
         .help = "Memory for the tokens of texts seen before; 0 keeps none."},
        {"tokenizer-queue", BT_OPTION_INT, &a->tokenizer_queue, "1024",
         .min = RT_OPENAI_MAX_PROMPTS, .max = 1 << 20, .metavar = "TEXTS",
         .help = "Texts that wait for their tokens at most; more are refused."},
        {"drain-timeout", BT_OPTION_DURATION, &a->drain_timeout_ns, "30s", .max = 86400,
         .help = "Time that requests have to end after SIGTERM; a second one ends them at once."},
        {"trace-sample", BT_OPTION_DOUBLE, &a->trace_sample, "0.01", .max = 1, .metavar = "RATIO",
         .help = "Share of requests that are traced layer by layer, of those without traceparent."},
        {"trace-keep", BT_OPTION_INT, &a->trace_keep, "1000", .max = 1 << 20,
         .help = "Requests whose times are remembered for batonctl trace."},
        BT_SECURITY_OPTIONS(a->security),
        {"log-level", BT_OPTION_CHOICE, &a->log_level, "info", .choices = levels,
         .help = "How much is logged to stderr."},
        {"handover", BT_OPTION_STRING, &a->handover, NULL, .metavar = "PATH",
         .help = "Unix socket at which the router that is started next with it, once workers of "
                 "both roles are ready for it, takes over this one's HTTP port, never closed."},
        {"ready-file", BT_OPTION_STRING, &a->ready_file, NULL, .metavar = "PATH",
         .help = "Written when listening: one JSON line with http, rpc and pid."},
        {"die-with-parent", BT_OPTION_BOOL, &a->die_with_parent, "false",
         .help = "End when the process that started this one ends."},
        {0},
    };
    enum bt_status status = bt_option_parse(options, usage, argc, argv, error, NULL);
    return status == BT_OK ? check_together(a, error) : status;
}

static enum bt_status create_service(struct bt_loop *loop, const struct arguments *a,
                                     struct bt_metrics *metrics, struct bt_error *error,
                                     struct rt_service **ret_service)
{
    int64_t heartbeat_ns = a->heartbeat_ms * BT_NS_PER_MS;
    struct rt_service_options options = {
        .core = {.queue_capacity = (uint32_t)a->queue_capacity,
                 .max_attempts = (uint32_t)a->max_attempts,
                 .expected_output_tokens = (uint32_t)a->expected_output_tokens,
                 .decode_policy = (enum rt_decode_policy)a->decode_policy,
                 .local_prefill = (enum rt_local_prefill)a->local_prefill,
                 .prefill_depth_ns = a->prefill_depth_ns,
                 .prefill_base_ns = PREFILL_BASE_NS,
                 .prefill_token_ns = PREFILL_TOKEN_NS,
                 .silent_after_ns = SILENT_AFTER_BEATS * heartbeat_ns,
                 .lost_after_ns = LOST_AFTER_BEATS * heartbeat_ns,
                 .reserve_retry_ns = RESERVE_RETRY_NS,
                 .patience = a->patience,
                 .promote_after_ns = a->promote_after_ns,
                 .breaker_failures = (uint32_t)a->breaker_failures,
                 .breaker_window_ns = a->breaker_window_ns,
                 .breaker_open_ns = a->breaker_open_ns,
                 .breaker_open_max_ns = a->breaker_open_max_ns,
                 .flap_lives = (uint32_t)a->flap_lives,
                 .flap_life_ns = a->flap_life_ns,
                 .poison_deaths = (uint32_t)a->poison_deaths,
                 .retry_budget = (uint32_t)a->retry_budget},
        .access = {.keys_file = a->api_keys,
                   .key = a->api_key,
                   .scope = (enum rt_access_scope)a->keys_for,
                   .slo_ttft_ns = a->slo_ttft_ns},
        .model_dir = a->model,
        .served_model_name = a->served_model_name,
        .worker_endpoint = a->worker_endpoint,
        .request_timeout_ns = a->request_timeout_ns,
        .max_model_len = (uint32_t)a->max_model_len,
        .heartbeat_ms = (uint32_t)a->heartbeat_ms,
        .trace_sample = a->trace_sample,
        .trace_keep = (uint32_t)a->trace_keep,
        .tokenizer_threads = (unsigned)a->tokenizer_threads,
        .tokenizer_max_jobs = (size_t)a->tokenizer_queue,
        .tokenizer_max_bytes = TOKENIZER_BODIES * (size_t)a->max_body_bytes,
        .tokenizer_cache_bytes = (size_t)a->tokenizer_cache_bytes,
    };
    return rt_service_create(loop, &options, metrics, error, ret_service);
}

/* Under its name only when it is whole. */
static enum bt_status write_ready_file(const char *path, const char *http, const char *rpc,
                                       struct bt_error *error)
{
    char *temporary = NULL;
    json_t *root =
        json_pack("{s:s,s:s,s:I}", "http", http, "rpc", rpc, "pid", (json_int_t)getpid());
    char *line = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    FILE *file = NULL;
    if (line && asprintf(&temporary, "%s.%d", path, (int)getpid()) > 0) {
        file = fopen(temporary, "we");
    }
    bool written = file && fprintf(file, "%s\n", line) > 0;
    written = file && fclose(file) == 0 && written && rename(temporary, path) == 0;
    free(line);
    free(temporary);
    return written ? BT_OK : bt_error_set(error, BT_ERR_IO, "ready file %s: %m", path);
}

static bool is_loopback(const char *host)
{
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0;
}

static void http_endpoint(const struct arguments *a, uint16_t port, char ret_text[300])
{
    bool v6 = strchr(a->host, ':') != NULL;
    snprintf(ret_text, 300, "%s://%s%.200s%s:%u", a->tls_cert ? "https" : "http", v6 ? "[" : "",
             a->host, v6 ? "]" : "", port);
}

/* Where HTTP is served from now on. */
static void announce(struct rt_service *service, const struct rt_http_front *front,
                     const struct arguments *a)
{
    char http[300];
    http_endpoint(a, rt_http_front_port(front), http);
    rt_service_set_http_endpoint(service, http);
    if (!is_loopback(a->host) && !rt_access_asks(rt_service_access(service))) {
        bt_log_warn(0, "%s asks for no keys: whoever reaches it can use it", http);
    } else if (!is_loopback(a->host) && !a->tls_cert) {
        bt_log_warn(0, "%s is not encrypted: keys and prompts can be read on the way", http);
    }
    bt_log_info(0, "serving %s at %s, workers at %s", rt_service_model_name(service), http,
                rt_service_rpc_endpoint(service));
}

static enum bt_status tell_ready(const struct rt_service *service, const struct arguments *a,
                                 uint16_t port, struct bt_error *error)
{
    char http[300];
    if (!a->ready_file) {
        return BT_OK;
    }
    http_endpoint(a, port, http);
    return write_ready_file(a->ready_file, http, rt_service_rpc_endpoint(service), error);
}

/* Streams end with an error, and for a moment the loop carries that to clients and workers. */
static void stop(struct bt_loop *loop, struct rt_service *service)
{
    rt_service_stop(service);
    int64_t until_ns = bt_clock_now_ns() + STOP_LINGER_NS;
    while (bt_clock_now_ns() < until_ns && bt_loop_run_once(loop, until_ns, NULL) == BT_OK) {
    }
}

static bool finished(const struct rt_service *service, const struct rt_http_front *front)
{
    return rt_service_drained(service) && !rt_http_front_busy(front);
}

/* Requests under way go on, until the time is over or a signal comes again. */
static void drain(struct bt_loop *loop, struct rt_service *service,
                  const struct rt_http_front *front, int64_t timeout_ns)
{
    int64_t until_ns = bt_clock_now_ns() + timeout_ns;
    rt_service_drain(service);
    bt_log_info(0, "draining");
    while (!finished(service, front) && !bt_loop_stopping(loop) && bt_clock_now_ns() < until_ns) {
        if (bt_loop_run_once(loop, until_ns, NULL) != BT_OK) {
            break;
        }
    }
    if (bt_loop_stopping(loop)) {
        bt_loop_run(loop, NULL); /* takes the signal, so that later rounds sleep */
    }
}

/* What one life of the process is about. */
struct life {
    struct bt_loop *loop;
    const struct arguments *a;
    struct rt_service *service;
    struct rt_http_front *front;
    struct rt_handover *handover;
    struct rt_handover_claim claim;
    bool given_up; /* a successor has the port */
};

static void on_taken(void *context)
{
    struct life *life = context;
    bt_log_info(0, "another router has the HTTP port now");
    rt_http_front_close_listener(life->front);
    life->given_up = true;
    bt_loop_stop(life->loop);
}

/* Rounds of the loop until `done`, or a signal, or `until_ns`. */
static void rounds(struct life *life, bool (*done)(const struct life *), int64_t until_ns)
{
    while (!done(life) && !bt_loop_stopping(life->loop) && bt_clock_now_ns() < until_ns) {
        int64_t look_ns = bt_clock_now_ns() + LOOK_NS;
        if (bt_loop_run_once(life->loop, look_ns < until_ns ? look_ns : until_ns, NULL) != BT_OK) {
            return;
        }
    }
}

static bool can_serve(const struct life *life)
{
    return rt_service_ready(life->service, NULL);
}

static bool has_no_client(const struct life *life)
{
    return rt_http_front_connections(life->front) == 0 && rt_service_drained(life->service);
}

/* The port it has taken over, or one of its own. */
static enum bt_status open_front(struct life *life, struct rt_http_front_options *http,
                                 struct bt_error *error)
{
    http->has_listener = life->claim.listener >= 0;
    http->listener = life->claim.listener;
    enum bt_status status =
        rt_http_front_create(life->loop, life->service, http, error, &life->front);
    life->claim.listener = -1;
    if (status != BT_OK) {
        return status;
    }
    rt_handover_take(&life->claim);
    announce(life->service, life->front, life->a);
    if (!life->a->handover) {
        return BT_OK;
    }
    return rt_handover_offer(life->loop, life->a->handover, rt_http_front_listener(life->front),
                             on_taken, life, error, &life->handover);
}

static enum bt_status begin(struct life *life, struct rt_http_front_options *http,
                            struct bt_error *error)
{
    enum bt_status status = BT_OK;
    if (life->a->handover) {
        status = rt_handover_claim(life->a->handover, HANDOVER_NS, error, &life->claim);
    }
    if (status != BT_OK || life->claim.listener < 0) {
        status = status == BT_OK ? open_front(life, http, error) : status;
        return status == BT_OK
                   ? tell_ready(life->service, life->a, rt_http_front_port(life->front), error)
                   : status;
    }
    /* Whom it will serve comes first: until then the other goes on. */
    status = tell_ready(life->service, life->a, rt_handover_port(&life->claim), error);
    if (status != BT_OK) {
        return status;
    }
    bt_log_info(0, "takes over the HTTP port when workers are ready");
    rounds(life, can_serve, BT_NEVER_NS);
    return bt_loop_stopping(life->loop) ? BT_OK : open_front(life, http, error);
}

/* Those who are connected here may ask until they leave; the time to drain is theirs. */
static void leave(struct life *life)
{
    rounds(life, has_no_client, bt_clock_now_ns() + life->a->drain_timeout_ns);
    if (bt_loop_stopping(life->loop)) {
        bt_loop_run(life->loop, NULL); /* takes the signal: from now on it drains */
    }
}

/* Until a signal, or until a successor serves and all is done. */
static enum bt_status go_on(struct life *life, struct bt_error *error)
{
    enum bt_status status = bt_loop_run(life->loop, error);
    if (status != BT_OK) {
        return status;
    }
    if (life->given_up) {
        leave(life);
    }
    drain(life->loop, life->service, life->front, life->a->drain_timeout_ns);
    return BT_OK;
}

static enum bt_status serve(struct bt_loop *loop, const struct arguments *a,
                            struct bt_metrics *metrics, struct bt_error *error)
{
    struct life life = {.loop = loop, .a = a, .claim = {-1, -1}};
    struct rt_http_front_options http = {.host = a->host,
                                         .port = (uint16_t)a->port,
                                         .max_connections = (uint32_t)a->max_connections,
                                         .max_connections_per_address =
                                             (uint32_t)a->max_connections_per_address,
                                         .max_header_bytes = (uint32_t)a->max_header_bytes,
                                         .tls_cert_file = a->tls_cert,
                                         .tls_key_file = a->tls_key,
                                         .max_body_bytes = (uint32_t)a->max_body_bytes,
                                         .metrics = metrics};
    enum bt_status status = create_service(loop, a, metrics, error, &life.service);
    if (status != BT_OK) {
        return status;
    }
    status = begin(&life, &http, error);
    if (status == BT_OK && life.front) {
        status = go_on(&life, error);
    }
    if (status == BT_OK) {
        bt_log_info(0, "stopping");
        stop(loop, life.service);
    }
    rt_handover_drop(&life.claim);
    rt_handover_destroy(life.handover);
    rt_http_front_destroy(life.front);
    rt_service_destroy(life.service);
    return status;
}

static enum bt_status run(const struct arguments *a, struct bt_error *error)
{
    struct bt_loop *loop = bt_loop_create(error);
    if (!loop) {
        return error->status;
    }
    bt_process_raise_file_limit();
    struct bt_metrics *metrics = bt_metrics_create();
    enum bt_status status = metrics ? bt_loop_stop_on_signals(loop, error)
                                    : bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    if (status == BT_OK) {
        bt_loop_export_refused(loop, metrics);
        status = bt_loop_secure(loop, &a->security, error);
    }
    if (status == BT_OK) {
        status = serve(loop, a, metrics, error);
    }
    bt_loop_destroy(loop);
    bt_metrics_destroy(metrics);
    return status;
}

int main(int argc, char **argv)
{
    struct arguments a = {0};
    struct bt_error error = {0};
    enum bt_status status = parse(argc, argv, &error, &a);
    if (status == BT_ERR_CANCELLED) {
        return EXIT_SUCCESS; /* --help */
    }
    if (status != BT_OK) {
        fprintf(stderr, "baton-router: %s\n", error.text);
        return BT_EXIT_USAGE;
    }
    bt_log_init("router", (enum bt_log_level)a.log_level);
    if (a.die_with_parent && bt_process_die_with_parent() != BT_OK) {
        return EXIT_FAILURE;
    }
    status = run(&a, &error);
    if (status != BT_OK) {
        bt_log_error(0, "%s", error.text);
    }
    return status == BT_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
