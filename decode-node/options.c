#include "decode-node/options.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/option.h"
#include "common/model/device_options.h"
#include "decode-node/engine.h"

#define MAX_WORKER_ID 63

static const char usage[] =
    "baton-decode --model DIR [options]\n"
    "Takes KV caches from prefill workers and generates, all sequences in one batch.";

static const char *const kernels[] = {"auto", "ref", "avx2", "avx512", "avx512_bf16", "amx", NULL};
static const char *const transports[] = {"auto", "shm", "cuda_ipc", "rdma", "tcp", NULL};
static const char *const log_levels[] = {"error", "warn", "info", "debug", NULL};

static struct {
    const char *model, *router, *worker_id, *listen, *advertise_host, *transport_host,
        *served_model_name;
    const char *transport_devices;
    const char *ready_file, *device;
    int64_t max_num_seqs, kv_pages, max_reserved, max_model_len;
    int64_t local_prefill_tokens, local_prefill_chunk;
    int64_t expected_output_tokens, lease, router_grace;
    int64_t threads, data_parallel_size, heartbeat;
    struct bt_rank_values rank;
    struct bt_security_values security;
    const char *cpus;
    int dtype, kv_cache_dtype, kv_staging, kernels, transport, log_level;
    bool checksum, die_with_parent, forbid_fallback;
} values;

static const struct bt_option table[] = {
    {"model", BT_OPTION_STRING, &values.model, NULL, .metavar = "DIR", .required = true,
     .help = "Checkpoint directory in Hugging Face form."},
    {"served-model-name", BT_OPTION_STRING, &values.served_model_name, NULL, .metavar = "NAME",
     .help = "Name in metrics and messages; default: the last part of --model."},
    {"router", BT_OPTION_STRING, &values.router, "tcp://127.0.0.1:5557", .metavar = "ENDPOINTS",
     .help = "ZeroMQ endpoints of the routers to register with, separated by commas; "
             "dns+tcp://HOST:PORT stands for all that HOST resolves to, now and later."},
    {"worker-id", BT_OPTION_STRING, &values.worker_id, NULL, .metavar = "ID",
     .help = "Letters, digits, '.', '_', '-'; default: decode-<pid>."},
    {"listen", BT_OPTION_STRING, &values.listen, "tcp://127.0.0.1:*", .metavar = "ENDPOINT",
     .help = "ZeroMQ endpoint to serve on; * takes a free port."},
    {"advertise-host", BT_OPTION_STRING, &values.advertise_host, NULL, .metavar = "ADDRESS",
     .help = "By which others reach --listen, where that is of all interfaces; a pod's address."},
    {"max-num-seqs", BT_OPTION_INT, &values.max_num_seqs, "64", 1, 1024,
     .help = "Sequences in one step; of each rank, on all the same."},
    {"max-reserved", BT_OPTION_INT, &values.max_reserved, "256", 1, 4096,
     .help = "Requests here at once, running ones included; more are refused."},
    {"expected-output-tokens", BT_OPTION_INT, &values.expected_output_tokens, "512", 1, 1 << 24,
     .help = "Output to reserve pages for, where max_tokens is more; the rest is added page by "
             "page."},
    {"lease", BT_OPTION_DURATION, &values.lease, "5s", 0.1, 600,
     .help = "How long a prefill worker may write without renewing; longer survives longer "
             "stalls, shorter frees pages sooner."},
    {"router-grace", BT_OPTION_DURATION, &values.router_grace, "30s", 0, 3600,
     .help = "How long requests go on, or what they generated is kept, for another router when "
             "theirs is gone; 0: they end with it."},
    {"max-model-len", BT_OPTION_INT, &values.max_model_len, "0", 0, 1 << 24,
     .help = "Tokens of prompt and output; 0: as the model says."},
    {"kv-pages", BT_OPTION_INT, &values.kv_pages, "2048", 1, 1 << 24,
     .help = "KV pages of 64 tokens."},
    {"local-prefill-tokens", BT_OPTION_INT, &values.local_prefill_tokens, "1048576", 0, 1 << 24,
     .help = "Longest prompt that this rank computes itself, where the router says so; 0: none. Of "
             "each rank, on all the same; 0 with --data-parallel-size and a --dispatch-dtype that "
             "changes bits."},
    {"local-prefill-chunk", BT_OPTION_INT, &values.local_prefill_chunk, "64", 1, 4096,
     .help = "Rows of such prompts between two steps of the batch: a running request waits for so "
             "many at most between two tokens. Four times as many while none runs. Fewer cost more "
             "each, more only delay the batch longer. Of each rank, on all the same."},
    {"dtype", BT_OPTION_CHOICE, &values.dtype, "auto", .choices = bt_model_dtype_names,
     .help =
         "Arithmetic, the same for all workers of a cluster; auto is bfloat16 for a bfloat16 or "
         "quantised checkpoint of 256 MiB or more, else float32."},
    {"kv-cache-dtype", BT_OPTION_CHOICE, &values.kv_cache_dtype, "auto",
     .choices = bt_kv_dtype_names,
     .help = "auto is bf16 with bfloat16 arithmetic and f32 with float32; fewer bytes cost "
             "accuracy."},
    BT_DEVICE_OPTION(values.device),
    BT_KV_STAGING_OPTION(values.kv_staging),
    {"kernels", BT_OPTION_CHOICE, &values.kernels, "auto", .choices = kernels,
     .help = "Of a CPU; auto is the best this one has."},
    {"cpus", BT_OPTION_STRING, &values.cpus, NULL, .metavar = "LIST",
     .help = "Cpus of this worker, as 0-3,8: each computing thread is pinned to one of them; "
             "default: all, not pinned."},
    {"threads", BT_OPTION_INT, &values.threads, "0", 0, BT_TEAM_MAX_THREADS,
     .help = "Computing threads; 0: one for each of --cpus, 1 without."},
    {"data-parallel-size", BT_OPTION_INT, &values.data_parallel_size, "1", 1, BT_GROUP_RANKS_MAX,
     .help = "Ranks of this worker, a process each: requests are dealt out, experts are shared."},
    BT_RANK_OPTIONS(values.rank),
    BT_SECURITY_OPTIONS(values.security),
    {"group-heartbeat", BT_OPTION_DURATION, &values.heartbeat, "100ms", 0.001, 3600,
     .help = "How long a group without work sleeps at a time; at most a third of --group-timeout."},
    {"transport", BT_OPTION_CHOICE, &values.transport, "auto", .choices = transports,
     .help =
         "What carries the KV cache; auto is the best that both ends have, anything else is that "
         "or an error. KV of GPUs goes by cuda_ipc on one machine, by rdma elsewhere, and by shm "
         "and tcp with --kv-staging host alone."},
    {"forbid-fallback", BT_OPTION_BOOL, &values.forbid_fallback, "false",
     .help =
         "With auto: a peer that the best transport of both ends does not reach is an error, not "
         "a warning."},
    {"transport-devices", BT_OPTION_STRING, &values.transport_devices, NULL, .metavar = "LIST",
     .help = "RDMA ports to use, all of them: mlx5_0:1,mlx5_1:1; with --transport tcp a network "
             "device. Default: all that fit."},
    {"transport-host", BT_OPTION_STRING, &values.transport_host, NULL, .metavar = "ADDRESS",
     .help = "Address of this machine for the transport; default: loopback."},
    {"checksum", BT_OPTION_BOOL, &values.checksum, "true",
     .help = "Take no handoff without a checksum."},
    {"ready-file", BT_OPTION_STRING, &values.ready_file, NULL, .metavar = "PATH",
     .help = "Written when registered: worker id, RPC endpoint, pid."},
    {"log-level", BT_OPTION_CHOICE, &values.log_level, "info", .choices = log_levels,
     .help = "What is worth a line on stderr."},
    {"die-with-parent", BT_OPTION_BOOL, &values.die_with_parent, "false",
     .help = "End when the process that started this one ends."},
    {NULL},
};

static enum bt_status check_worker_id(const char *id, struct bt_error *error)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t length = strlen(id);
    if (length == 0 || length > MAX_WORKER_ID || strspn(id, allowed) != length) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--worker-id '%s': 1 to %d letters, digits, '.', '_', '-'", id,
                            MAX_WORKER_ID);
    }
    return BT_OK;
}

/* "models/tiny/" -> "tiny/": good enough for a name; a trailing slash is cut. */
static const char *model_name(const char *directory)
{
    static char name[BT_MODEL_NAME_SIZE];
    size_t length = strlen(directory);
    while (length > 1 && directory[length - 1] == '/') {
        length--;
    }
    size_t start = length;
    while (start > 0 && directory[start - 1] != '/') {
        start--;
    }
    snprintf(name, sizeof(name), "%.*s", (int)(length - start), directory + start);
    return name;
}

/* Well before the others give up who comes last. */
static int64_t heartbeat_ns(int64_t wait_timeout_ns)
{
    return values.heartbeat < wait_timeout_ns / 3 ? values.heartbeat : wait_timeout_ns / 3;
}

enum bt_status dc_options_parse(int argc, char **argv, struct bt_error *error,
                                struct dc_options *ret_options)
{
    static char default_id[32];
    enum bt_status status = bt_option_parse(table, usage, argc, argv, error, NULL);
    if (status != BT_OK) {
        return status;
    }
    snprintf(default_id, sizeof(default_id), "decode-%jd", (intmax_t)getpid());
    const char *worker_id = values.worker_id ? values.worker_id : default_id;
    status = check_worker_id(worker_id, error);
    if (status == BT_OK) {
        status = bt_security_values_check(&values.security, error);
    }
    if (status != BT_OK) {
        return status;
    }
    struct bt_rank_options rank;
    status = bt_rank_options_check(&values.rank, (uint32_t)values.data_parallel_size, error, &rank);
    if (status != BT_OK) {
        return status;
    }
    rank.expert_parallel = true;
    rank.dispatch = BT_DISPATCH_LATENCY;
    /* Rows that travel rounded would give prompts other bits than a prefill worker does. */
    uint32_t local_tokens = rank.size > 1 && rank.payload != BT_PAYLOAD_EXACT
                                ? 0
                                : (uint32_t)values.local_prefill_tokens;
    rank.max_rows = dc_engine_max_rows((uint32_t)values.max_num_seqs,
                                       local_tokens > 0 ? (uint32_t)values.local_prefill_chunk : 0);
    *ret_options = (struct dc_options){
        .rank = rank,
        .model = values.model,
        .device = values.device,
        .kernels = kernels[values.kernels],
        .dtype = (enum bt_model_dtype)values.dtype,
        .kv_cache_dtype = bt_kv_dtype_names[values.kv_cache_dtype],
        .team = {(uint32_t)values.threads, values.cpus},
        .log_level = (enum bt_log_level)values.log_level,
        .die_with_parent = values.die_with_parent,
        .security = values.security,
        .worker =
            {
                .worker_id = worker_id,
                .listen = values.listen,
                .advertise_host = values.advertise_host,
                .routers = values.router,
                .served_model_name =
                    values.served_model_name ? values.served_model_name : model_name(values.model),
                .transport = transports[values.transport],
                .transport_host = values.transport_host,
                .forbid_fallback = values.forbid_fallback,
                .kv_staging = values.kv_staging == 1,
                .transport_devices = values.transport_devices,
                .ready_file = values.ready_file,
                .kv_pages = (uint32_t)values.kv_pages,
                .max_num_seqs = (uint32_t)values.max_num_seqs,
                .max_reserved = (uint32_t)values.max_reserved,
                .expected_output_tokens = (uint32_t)values.expected_output_tokens,
                .local_prefill_tokens = local_tokens,
                .local_prefill_chunk = (uint32_t)values.local_prefill_chunk,
                .max_model_len = (uint32_t)values.max_model_len,
                .lease_ms = (uint32_t)(values.lease / BT_NS_PER_MS),
                .router_grace_ns = values.router_grace,
                .checksum = values.checksum,
                .heartbeat_ns = heartbeat_ns(rank.wait_timeout_ns),
            },
    };
    return BT_OK;
}
