#include "tests/unit/prefill/ranks.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "kvtransfer/landing.h"
#include "kvtransfer/target.h"

extern char **environ;

struct kv_landed kv_landed[KV_PROMPTS];
uint32_t kv_landed_count;
static struct bt_kv_layout layout;
static uint32_t pool_pages;

/* ---- what landed ---- */

void kv_forget(void)
{
    for (uint32_t i = 0; i < kv_landed_count; i++) {
        free(kv_landed[i].data);
    }
    memset(kv_landed, 0, sizeof(kv_landed));
    kv_landed_count = 0;
}

const struct kv_landed *kv_of(uint64_t request)
{
    for (uint32_t i = 0; i < kv_landed_count; i++) {
        if (kv_landed[i].request == request) {
            return &kv_landed[i];
        }
    }
    fail_msg("request %d never landed", (int)request);
    return NULL;
}

enum bt_status __real_kvt_target_checksum(struct kvt_target *target, uint64_t request,
                                          uint64_t epoch, const uint32_t *pages, uint32_t tokens);
enum bt_status __wrap_kvt_target_checksum(struct kvt_target *target, uint64_t request,
                                          uint64_t epoch, const uint32_t *pages, uint32_t tokens);
enum bt_status __wrap_kvt_target_checksum(struct kvt_target *target, uint64_t request,
                                          uint64_t epoch, const uint32_t *pages, uint32_t tokens)
{
    const char *pool = kvt_target_pool(target);
    size_t token_bytes = bt_kv_token_bytes(&layout);
    size_t at = 0;
    if (kv_landed_count < KV_PROMPTS) {
        struct kv_landed *landed = &kv_landed[kv_landed_count++];
        *landed =
            (struct kv_landed){request, tokens, layout.layer_count * tokens * token_bytes, NULL};
        landed->data = malloc(landed->bytes);
        for (uint32_t layer = 0; layer < layout.layer_count; layer++) {
            for (uint32_t token = 0; token < tokens; token++, at += token_bytes) {
                uint64_t offset =
                    bt_kv_offset(&layout, pool_pages, layer, pages[token / BT_PAGE_TOKENS],
                                 token % BT_PAGE_TOKENS);
                memcpy(landed->data + at, pool + offset, token_bytes);
            }
        }
    }
    return __real_kvt_target_checksum(target, request, epoch, pages, tokens);
}

/* ---- answers for leases ---- */

#define HELD_MAX 256

static struct held {
    struct bt_rpc_call *call;
    ProtobufCMessage *response;
} held[HELD_MAX];
static uint32_t held_count;
static bool holds;

void __real_bt_rpc_call_end(struct bt_rpc_call *call, enum bt_status status, const char *text,
                            const ProtobufCMessage *response);
void __wrap_bt_rpc_call_end(struct bt_rpc_call *call, enum bt_status status, const char *text,
                            const ProtobufCMessage *response);
void __wrap_bt_rpc_call_end(struct bt_rpc_call *call, enum bt_status status, const char *text,
                            const ProtobufCMessage *response)
{
    if (!holds || !response || response->descriptor != &baton__v1__lease_response__descriptor) {
        __real_bt_rpc_call_end(call, status, text, response);
        return;
    }
    size_t size = protobuf_c_message_get_packed_size(response);
    uint8_t *bytes = malloc(size + 1);
    assert_true(bytes && held_count < HELD_MAX);
    protobuf_c_message_pack(response, bytes);
    held[held_count++] =
        (struct held){call, protobuf_c_message_unpack(response->descriptor, NULL, size, bytes)};
    free(bytes);
}

static int64_t leased[RANKS_MAX]; /* the processes, the latest */
static uint32_t leased_count;

bool __real_kvt_landing_lease(struct kvt_landing_table *table, uint64_t request, uint64_t epoch,
                              uint64_t incarnation, const struct bt_process_id *process,
                              int64_t now_ns);
bool __wrap_kvt_landing_lease(struct kvt_landing_table *table, uint64_t request, uint64_t epoch,
                              uint64_t incarnation, const struct bt_process_id *process,
                              int64_t now_ns);
bool __wrap_kvt_landing_lease(struct kvt_landing_table *table, uint64_t request, uint64_t epoch,
                              uint64_t incarnation, const struct bt_process_id *process,
                              int64_t now_ns)
{
    bool live = __real_kvt_landing_lease(table, request, epoch, incarnation, process, now_ns);
    uint32_t place = 0;
    while (place < leased_count && leased[place] != process->pid) {
        place++;
    }
    if (live && place < RANKS_MAX) {
        leased[place] = process->pid;
        leased_count += place == leased_count;
    }
    return live;
}

static bool has_lease(const struct ranks *ranks, uint32_t rank)
{
    bool has = false;
    for (uint32_t i = 0; i < leased_count; i++) {
        has = has || leased[i] == ranks->pids[rank];
    }
    return has;
}

void ranks_await_lease(struct ranks *ranks, uint32_t rank)
{
    cluster_until(&ranks->cluster, has_lease(ranks, rank));
}

void ranks_hold_leases(bool held_now)
{
    holds = held_now;
    while (!holds && held_count > 0) {
        const struct held *answer = &held[--held_count];
        __real_bt_rpc_call_end(answer->call, BT_OK, NULL, answer->response);
        protobuf_c_message_free_unpacked(answer->response, NULL);
    }
}

/* ---- the registry ---- */

static void handle_register(void *context, struct bt_rpc_call *call,
                            const ProtobufCMessage *request)
{
    struct ranks *ranks = context;
    const Baton__V1__RegisterRequest *message = (const Baton__V1__RegisterRequest *)request;
    ranks->registrations++;
    ranks->incarnation = message->incarnation;
    snprintf(ranks->endpoint, sizeof(ranks->endpoint), "%s", message->control_endpoint);
    ranks->has_group = message->group != NULL;
    if (message->group) {
        ranks->group = *message->group;
    }
    Baton__V1__RegisterResponse response = BATON__V1__REGISTER_RESPONSE__INIT;
    response.heartbeat_ms = ranks->options.heartbeat_ms ? ranks->options.heartbeat_ms : 500;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void take_prefixes(struct ranks_prefixes *prefixes, const Baton__V1__PrefixSummary *summary)
{
    assert_true(summary->since == 0 || summary->since == prefixes->version);
    assert_true(summary->version >= summary->since);
    assert_int_equal(summary->n_parent, summary->n_page);
    assert_int_equal(summary->n_block, summary->n_page);
    if (summary->since == 0) {
        memset(prefixes->block, 0, sizeof(prefixes->block));
    }
    for (size_t i = 0; i < summary->n_page; i++) {
        assert_true(summary->page[i] < RANKS_PAGES_MAX);
        prefixes->block[summary->page[i]] = summary->block[i];
        prefixes->parent[summary->page[i]] = summary->parent[i];
    }
    prefixes->version = summary->version;
}

static void handle_heartbeat(void *context, struct bt_rpc_call *call,
                             const ProtobufCMessage *request)
{
    struct ranks *ranks = context;
    const Baton__V1__HeartbeatRequest *message = (const Baton__V1__HeartbeatRequest *)request;
    Baton__V1__HeartbeatResponse response = BATON__V1__HEARTBEAT_RESPONSE__INIT;
    if (ranks->prefixes) {
        if (message->prefix) {
            take_prefixes(ranks->prefixes, message->prefix);
        }
        response.prefix_version = ranks->prefixes->version;
    }
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_deregister(void *context, struct bt_rpc_call *call,
                              const ProtobufCMessage *request)
{
    struct ranks *ranks = context;
    (void)request;
    ranks->goodbyes++;
    Baton__V1__DeregisterResponse response = BATON__V1__DEREGISTER_RESPONSE__INIT;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static const struct bt_rpc_method methods[] = {
    {"baton.v1.Registry/Register", &baton__v1__register_request__descriptor, handle_register},
    {"baton.v1.Registry/Heartbeat", &baton__v1__heartbeat_request__descriptor, handle_heartbeat},
    {"baton.v1.Registry/Deregister", &baton__v1__deregister_request__descriptor, handle_deregister},
    {NULL, NULL, NULL},
};

/* ---- processes ---- */

static void spawn(struct ranks *ranks, uint32_t rank)
{
    const struct ranks_options *options = &ranks->options;
    char id[32], size[8], index[8], endpoint[96], secret[96], ready[96];
    snprintf(id, sizeof(id), rank ? "p0.%u" : "p0", rank);
    snprintf(size, sizeof(size), "%u", options->size);
    snprintf(index, sizeof(index), "%u", rank);
    snprintf(endpoint, sizeof(endpoint), "ipc://%s/meet", ranks->dir);
    snprintf(secret, sizeof(secret), "%s/secret", ranks->dir);
    snprintf(ready, sizeof(ready), "%s/ready.%u", ranks->dir, rank);
    const char *program = getenv("BATON_PREFILL");
    assert_non_null(program);
    const char *expert_parallel =
        options->no_expert_parallel ? "--expert-parallel=false" : "--expert-parallel";
    const char *arguments[] = {
        program,
        "--model",
        TINY_MODEL,
        "--worker-id",
        id,
        "--router",
        bt_rpc_server_endpoint(ranks->registry),
        "--served-model-name",
        "tiny",
        "--kv-cache-dtype",
        options->kv_dtype == BT_F8_E4M3 ? "fp8" : bt_dtype_name(options->kv_dtype),
        options->no_prefix_caching ? "--enable-prefix-caching=false" : "--enable-prefix-caching",
        "--kv-pages",
        options->pages ? options->pages : "64",
        "--chunked-prefill-size",
        options->chunk ? options->chunk : "128",
        "--max-queued",
        "32",
        "--max-num-seqs",
        "4",
        "--die-with-parent",
        "--ready-file",
        ready,
        "--rank",
        index,
        "--tensor-parallel-size",
        size,
        "--group-endpoint",
        endpoint,
        "--group-secret-file",
        secret,
        "--group-timeout",
        options->group_timeout ? options->group_timeout : "60s",
        expert_parallel,
        "--log-level",
        "warn",
        NULL};
    assert_int_equal(
        posix_spawn(&ranks->pids[rank], program, NULL, NULL, (char **)arguments, environ), 0);
}

bool ranks_ended(struct ranks *ranks, uint32_t rank)
{
    if (ranks->pids[rank] &&
        waitpid(ranks->pids[rank], &ranks->exits[rank], WNOHANG) == ranks->pids[rank]) {
        ranks->pids[rank] = 0;
    }
    return ranks->pids[rank] == 0;
}

bool ranks_all_ended(struct ranks *ranks)
{
    bool all = true;
    for (uint32_t rank = 0; rank < ranks->options.size; rank++) {
        all = ranks_ended(ranks, rank) && all;
    }
    return all;
}

bool ranks_exited(const struct ranks *ranks, uint32_t rank, int code)
{
    return WIFEXITED(ranks->exits[rank]) && WEXITSTATUS(ranks->exits[rank]) == code;
}

void ranks_signal(struct ranks *ranks, uint32_t rank, int signal)
{
    if (ranks->pids[rank]) {
        kill(ranks->pids[rank], signal);
    }
}

static struct ranks *running; /* for the end, whatever happens */

static void kill_all(void)
{
    for (uint32_t rank = 0; running && rank < RANKS_MAX; rank++) {
        if (running->pids[rank]) {
            kill(running->pids[rank], SIGKILL);
            waitpid(running->pids[rank], &running->exits[rank], 0);
            running->pids[rank] = 0;
        }
    }
}

/* ---- open, close ---- */

static bool read_ready(const struct ranks *ranks, uint32_t rank, char *ret_endpoint, size_t size)
{
    char path[96], text[512] = "";
    snprintf(path, sizeof(path), "%s/ready.%u", ranks->dir, rank);
    FILE *file = fopen(path, "r");
    if (!file) {
        return false;
    }
    size_t length = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[length] = '\0';
    const char *begin = strstr(text, "tcp://");
    assert_non_null(begin);
    snprintf(ret_endpoint, size, "%.*s", (int)strcspn(begin, "\""), begin);
    return true;
}

static void make_dir(struct ranks *ranks)
{
    char path[96];
    snprintf(ranks->dir, sizeof(ranks->dir), "/tmp/baton-ranks-XXXXXX");
    assert_non_null(mkdtemp(ranks->dir));
    snprintf(path, sizeof(path), "%s/secret", ranks->dir);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("a secret of the tests\n", file);
    fclose(file);
    assert_int_equal(chmod(path, 0600), 0);
}

static void open_decode(struct ranks *ranks)
{
    struct bt_error error = {0};
    struct cluster *cluster = &ranks->cluster;
    struct dc_worker_options decode = cluster_decode_options();
    const struct bt_model_options load = {.dir = TINY_MODEL};
    decode.lease_ms = ranks->options.lease_ms ? ranks->options.lease_ms : 20000;
    decode.kv_dtype = ranks->options.kv_dtype;
    cluster->loop = bt_loop_create(&error);
    cluster->decode_pages = decode.kv_pages;
    pool_pages = decode.kv_pages;
    if (bt_model_load(&load, &error, &cluster->model) != BT_OK ||
        dc_worker_create(cluster->loop, cluster->model, &decode, &error, &cluster->decode) !=
            BT_OK ||
        bt_rpc_client_create(cluster->loop, dc_worker_endpoint(cluster->decode), &error,
                             &cluster->to_decode) != BT_OK ||
        bt_rpc_server_create(cluster->loop, "tcp://127.0.0.1:*", methods, ranks, &error,
                             &ranks->registry) != BT_OK) {
        fail_msg("%s", error.text);
    }
    layout = bt_model_kv_layout(cluster->model, ranks->options.kv_dtype);
    cluster_subscribe(cluster);
}

static void wait_ready(struct ranks *ranks)
{
    struct bt_error error;
    struct cluster *cluster = &ranks->cluster;
    for (uint32_t rank = 0; rank < ranks->options.size; rank++) {
        char endpoint[256];
        cluster_until(cluster, read_ready(ranks, rank, endpoint, sizeof(endpoint)) ||
                                   ranks_ended(ranks, rank));
        assert_false(ranks_ended(ranks, rank));
        assert_int_equal(bt_rpc_client_create(cluster->loop, endpoint, &error,
                                              rank ? &ranks->to_rank[rank] : &cluster->to_prefill),
                         BT_OK);
    }
}

void ranks_open(struct ranks *ranks, const struct ranks_options *options)
{
    *ranks = (struct ranks){.options = *options};
    leased_count = 0;
    running = ranks;
    atexit(kill_all);
    make_dir(ranks);
    open_decode(ranks);
    for (uint32_t rank = 0; rank < options->size; rank++) {
        spawn(ranks, rank);
    }
    wait_ready(ranks);
}

static void remove_dir(const struct ranks *ranks)
{
    static const char *const names[] = {"secret",  "meet",    "ready.0",
                                        "ready.1", "ready.2", "ready.3"};
    char path[96];
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", ranks->dir, names[i]);
        unlink(path);
    }
    rmdir(ranks->dir);
}

void ranks_close(struct ranks *ranks)
{
    struct cluster *cluster = &ranks->cluster;
    ranks_hold_leases(false);
    kill_all();
    running = NULL;
    cluster_until(cluster, dc_worker_free_pages(cluster->decode) == cluster->decode_pages &&
                               dc_worker_requests(cluster->decode) == 0);
    dc_worker_stop(cluster->decode);
    cluster_until(cluster, dc_worker_quiet(cluster->decode));
    for (uint32_t rank = 0; rank < RANKS_MAX; rank++) {
        bt_rpc_client_destroy(ranks->to_rank[rank]);
    }
    bt_rpc_client_destroy(cluster->to_prefill);
    bt_rpc_client_destroy(cluster->to_decode);
    bt_rpc_server_destroy(ranks->registry);
    dc_worker_destroy(cluster->decode);
    for (uint32_t i = 0; i < cluster->attempt_count; i++) {
        attempt_finish(cluster->attempts[i]);
    }
    bt_model_destroy(cluster->model);
    bt_loop_destroy(cluster->loop);
    remove_dir(ranks);
}

double ranks_metric(struct ranks *ranks, uint32_t rank, const char *name)
{
    struct cluster *cluster = &ranks->cluster;
    Baton__V1__MetricsRequest request = BATON__V1__METRICS_REQUEST__INIT;
    Baton__V1__MetricsResponse *response = NULL;
    assert_int_equal(cluster_call(cluster, rank ? ranks->to_rank[rank] : cluster->to_prefill,
                                  "baton.v1.Worker/Metrics", &request.base,
                                  &baton__v1__metrics_response__descriptor,
                                  (ProtobufCMessage **)&response),
                     BT_OK);
    const char *line = response->text;
    while (line && strncmp(line, name, strlen(name)) != 0) {
        line = strchr(line, '\n');
        line = line ? line + 1 : NULL;
    }
    assert_non_null(line);
    const char *end = strchr(line, '\n');
    while (end[-1] != ' ') {
        end--;
    }
    double value = atof(end);
    protobuf_c_message_free_unpacked(&response->base, NULL);
    return value;
}
