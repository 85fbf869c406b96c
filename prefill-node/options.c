#include "prefill-node/options.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/option.h"
#include "common/model/device_options.h"
#include "prefill-node/budget.h"

#define MAX_WORKER_ID 63

static const char usage[] = "baton-prefill --model DIR [options]\n"
                            "Computes prompts and passes their KV cache on to decode workers.";

static const char *const kernels[] = {"auto", "ref", "avx2", "avx512", "avx512_bf16", "amx", NULL};
static const char *const transports[] = {"auto", "shm", "cuda_ipc", "rdma", "tcp", NULL};
static const char *const log_levels[] = {"error", "warn", "info", "debug", NULL};

static struct {
    const char *model, *router, *worker_id, *listen, *advertise_host, *transport_host,
        *served_model_name;
    const char *transport_devices;
    const char *ready_file, *device;
    int64_t chunked_prefill_size, max_num_seqs, kv_pages, max_queued, max_model_len;
    int64_t layerwise_threshold;
    int64_t threads;
    const char *cpus, *cache_dir;
    int dtype, kv_cache_dtype, kv_staging, kernels, transport, log_level;
    int64_t tensor_parallel_size;
    bool checksum, die_with_parent, forbid_fallback, expert_parallel, prefix_caching;
    struct bt_rank_values rank;
    struct bt_security_values security;
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
     .help = "Letters, digits, '.', '_', '-'; default: prefill-<pid>."},
    {"listen", BT_OPTION_STRING, &values.listen, "tcp://127.0.0.1:*", .metavar = "ENDPOINT",
     .help = "ZeroMQ endpoint to serve on; * takes a free port."},
    {"advertise-host", BT_OPTION_STRING, &values.advertise_host, NULL, .metavar = "ADDRESS",
     .help = "By which others reach --listen, where that is of all interfaces; a pod's address."},
    {"chunked-prefill-size", BT_OPTION_INT, &values.chunked_prefill_size, "0", 0, 65536,
     .help = "Prompt tokens of one iteration, over all requests in it; 0: the smallest that is "
             "within 5 % of the best throughput, measured at the first start on a CPU; in a group "
             "512 a rank."},
    {"cache-dir", BT_OPTION_STRING, &values.cache_dir, NULL, .metavar = "DIR",
     .help = "Where that measurement is kept; default: $XDG_CACHE_HOME/baton or ~/.cache/baton."},
    {"max-num-seqs", BT_OPTION_INT, &values.max_num_seqs, "16", 1, 1024,
     .help = "Requests that share an iteration."},
    {"max-queued", BT_OPTION_INT, &values.max_queued, "256", 1, 4096,
     .help = "Requests here at once; more are refused."},
    {"max-model-len", BT_OPTION_INT, &values.max_model_len, "0", 0, 1 << 24,
     .help = "Tokens of prompt and output; 0: as the model says."},
    {"kv-pages", BT_OPTION_INT, &values.kv_pages, "1024", 1, 1 << 24,
     .help = "KV pages of 64 tokens."},
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
    {"tensor-parallel-size", BT_OPTION_INT, &values.tensor_parallel_size, "1", 1,
     BT_GROUP_RANKS_MAX,
     .help =
         "Ranks, a process each, that are this worker together: attention heads and experts are "
         "shared out, and each pushes its share of the KV pages. Rank 0 registers."},
    {"expert-parallel", BT_OPTION_BOOL, &values.expert_parallel, "true",
     .help = "In a group: experts are shared out; else every rank holds all of them."},
    BT_RANK_OPTIONS(values.rank),
    BT_SECURITY_OPTIONS(values.security),
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
    {"layerwise-threshold", BT_OPTION_INT, &values.layerwise_threshold, "0", 0, 1 << 24,
     .help = "Prompts of more tokens are pushed layer by layer, shorter ones as a whole; 0: all "
             "layer by layer."},
    {"enable-prefix-caching", BT_OPTION_BOOL, &values.prefix_caching, "true",
     .help = "Keep the KV pages of prompts for later ones that begin with the same tokens."},
    {"checksum", BT_OPTION_BOOL, &values.checksum, "true", .help = "Checksum every handoff."},
    {"ready-file", BT_OPTION_STRING, &values.ready_file, NULL, .metavar = "PATH",
     .help = "Written when registered, with all links up: worker id, RPC endpoint, pid."},
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

/* What ranks have to know before they meet. */
static enum bt_status read_group(struct bt_error *error, struct bt_rank_options *ret_group)
{
    uint32_t size = (uint32_t)values.tensor_parallel_size;
    enum bt_status status = bt_rank_options_check(&values.rank, size, error, ret_group);
    if (status == BT_OK) {
        ret_group->tensor_parallel = size > 1;
        ret_group->expert_parallel = values.expert_parallel;
        ret_group->dispatch = BT_DISPATCH_THROUGHPUT;
    }
    return status;
}

/* A part of a model can't be measured alone. */
static uint32_t chunk_size(uint32_t ranks)
{
    uint32_t size = (uint32_t)values.chunked_prefill_size;
    return size == 0 && ranks > 1 ? PF_BUDGET_FALLBACK * ranks : size;
}

enum bt_status pf_options_parse(int argc, char **argv, struct bt_error *error,
                                struct pf_options *ret_options)
{
    static char default_id[32];
    enum bt_status status = bt_option_parse(table, usage, argc, argv, error, NULL);
    if (status != BT_OK) {
        return status;
    }
    snprintf(default_id, sizeof(default_id), "prefill-%jd", (intmax_t)getpid());
    const char *worker_id = values.worker_id ? values.worker_id : default_id;
    struct bt_rank_options group = {0};
    status = check_worker_id(worker_id, error);
    if (status == BT_OK) {
        status = read_group(error, &group);
    }
    if (status == BT_OK) {
        status = bt_security_values_check(&values.security, error);
    }
    if (status != BT_OK) {
        return status;
    }
    *ret_options = (struct pf_options){
        .model = values.model,
        .device = values.device,
        .kernels = kernels[values.kernels],
        .dtype = (enum bt_model_dtype)values.dtype,
        .kv_cache_dtype = bt_kv_dtype_names[values.kv_cache_dtype],
        .cache_dir = values.cache_dir,
        .team = {(uint32_t)values.threads, values.cpus},
        .log_level = (enum bt_log_level)values.log_level,
        .die_with_parent = values.die_with_parent,
        .security = values.security,
        .group = group,
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
                .chunked_prefill_size = chunk_size(group.size),
                .max_num_seqs = (uint32_t)values.max_num_seqs,
                .max_queued = (uint32_t)values.max_queued,
                .max_model_len = (uint32_t)values.max_model_len,
                .layerwise_threshold = (uint32_t)values.layerwise_threshold,
                .checksum = values.checksum,
                .prefix_caching = values.prefix_caching,
                .group_timeout_ns = group.wait_timeout_ns,
            },
    };
    return BT_OK;
}
