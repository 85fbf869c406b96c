#include "common/model/rank.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sys/stat.h>
#include <unistd.h>

#include "common/base/log.h"
#include "common/base/random.h"
#include "common/model/loading.h"
#include "common/model/rank_metrics.h"
#include "common/model/rebalance.h"

#define SECRET_MAX 1024

#define LOADS_SPAN      4096 /* rows */
#define BROADCAST_BYTES ((size_t)64 << 10)

_Static_assert(BT_RANK_WORDS == BT_REBALANCE_WORDS, "the words are all for the experts");

struct bt_rank {
    struct bt_rank_options options;
    struct bt_model_config config;
    uint32_t layers;            /* MoE layers */
    struct bt_group *group;     /* NULL: alone */
    struct bt_loading *loading; /* from join to start; NULL: alone */
    uint64_t incarnation;
    struct bt_placement *placement; /* at the start; NULL: this rank has all experts */
    struct bt_expert_loads *loads;  /* NULL: no experts */
    uint64_t *earlier_loads;        /* [layers][experts] of the file; NULL: there was none */
    struct bt_rebalance *rebalance; /* NULL: no experts */
    struct bt_rank_traffic traffic;
    struct bt_rank_metrics *metrics; /* NULL: none */
};

/* ---- joining ---- */

static enum bt_status read_secret(const char *path, struct bt_error *error,
                                  char ret_secret[SECRET_MAX])
{
    FILE *file = fopen(path, "re");
    if (!file) {
        return bt_error_set(error, BT_ERR_IO, "--group-secret-file %s: %s", path, strerror(errno));
    }
    struct stat about;
    bool known = fstat(fileno(file), &about) == 0;
    bool for_group = known && about.st_uid == 0 && geteuid() != 0; /* as secrets are mounted */
    if (known && (about.st_mode & (for_group ? S_IROTH : S_IRGRP | S_IROTH)) != 0) {
        bt_log_warn(0, "--group-secret-file %s: other users may read it (mode %04o)", path,
                    (unsigned)about.st_mode & 07777);
    }
    size_t size = fread(ret_secret, 1, SECRET_MAX, file);
    bool failed = ferror(file) != 0;
    fclose(file);
    if (failed) {
        return bt_error_set(error, BT_ERR_IO, "--group-secret-file %s: can't be read", path);
    }
    while (size > 0 && isspace((unsigned char)ret_secret[size - 1])) {
        size--;
    }
    if (size < BT_GROUP_SECRET_MIN || size == SECRET_MAX || memchr(ret_secret, '\0', size)) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--group-secret-file %s: %d to %d characters are wanted", path,
                            BT_GROUP_SECRET_MIN, SECRET_MAX - 1);
    }
    ret_secret[size] = '\0';
    return BT_OK;
}

static uint32_t tp_size(const struct bt_rank *rank)
{
    return rank->options.tensor_parallel ? rank->options.size : 1;
}

static bool is_on_gpu(const struct bt_rank *rank)
{
    return rank->options.device && rank->options.device->memory == BT_MEMORY_CUDA;
}

static enum bt_status meet(struct bt_rank *rank, struct bt_error *error)
{
    const struct bt_rank_options *options = &rank->options;
    char secret[SECRET_MAX];
    enum bt_status status = read_secret(options->secret_file, error, secret);
    if (status != BT_OK) {
        return status;
    }
    struct bt_group_options group = {
        .transport = is_on_gpu(rank) ? "nccl" : "auto",
        .rank = options->rank,
        .size = options->size,
        .endpoint = options->endpoint,
        .host = options->host,
        .secret = secret,
        .connect_timeout_ns = options->connect_timeout_ns,
        .wait_timeout_ns = options->wait_timeout_ns,
        .limits = bt_forward_group_limits(&rank->config, options->max_rows, tp_size(rank)),
    };
    group.limits.broadcast_bytes = BROADCAST_BYTES;
    bt_log_info(0, "rank %u of %u: meeting the others at %s", options->rank, options->size,
                options->endpoint);
    if (rank->options.device)
        status = bt_device_enter(rank->options.device, error);
    if (status == BT_OK)
        status = bt_group_create(&group, error, &rank->group);
    explicit_bzero(secret, sizeof(secret));
    if (status == BT_OK) {
        status =
            bt_group_broadcast(rank->group, 0, &rank->incarnation, sizeof(rank->incarnation), NULL);
        if (status != BT_OK) {
            bt_error_set(error, status, "%s", bt_group_error(rank->group));
        }
    }
    return status;
}

/* ---- what all were told alike ---- */

/* No padding: it is sent. */
struct terms {
    uint64_t tensor_parallel, expert_parallel, placement, redundant_experts, payload, dispatch;
    uint64_t load_windows, load_span, layers, wait_timeout_ns;
};

static struct terms terms_of(const struct bt_rank *rank)
{
    const struct bt_rank_options *options = &rank->options;
    return (struct terms){options->tensor_parallel,
                          options->expert_parallel,
                          options->placement,
                          options->redundant_experts,
                          options->payload,
                          options->dispatch,
                          options->load_windows,
                          options->load_span,
                          rank->layers,
                          (uint64_t)options->wait_timeout_ns};
}

static enum bt_status compare_terms(const struct terms *all, uint32_t size, struct bt_error *error)
{
    static const char *const names[] = {
        "tensor_parallel",  "expert_parallel",      "--expert-placement", "--redundant-experts",
        "--dispatch-dtype", "dispatch mode",        "load windows",       "load span",
        "MoE layers",       "--group-timeout in ns"};
    const uint64_t *first = (const uint64_t *)all;
    size_t count = sizeof(*all) / sizeof(*first);
    _Static_assert(sizeof(names) / sizeof(names[0]) == sizeof(*all) / sizeof(*first), "names");
    for (uint32_t r = 1; r < size; r++) {
        const uint64_t *theirs = (const uint64_t *)&all[r];
        for (size_t i = 0; i < count; i++)
            if (theirs[i] != first[i])
                return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                    "rank %u has %s %llu, rank 0 has %llu", r, names[i],
                                    (unsigned long long)theirs[i], (unsigned long long)first[i]);
    }
    return BT_OK;
}

static enum bt_status check_terms(struct bt_rank *rank, struct bt_error *error)
{
    struct terms mine = terms_of(rank), all[BT_GROUP_RANKS_MAX];
    enum bt_status status = bt_rank_exchange(rank, &mine, sizeof(mine), all);
    if (status != BT_OK)
        return bt_error_set(error, status, "%s", bt_group_error(rank->group));
    return compare_terms(all, rank->options.size, error);
}

/* ---- experts ---- */

static size_t load_count(const struct bt_rank *rank)
{
    return (size_t)rank->layers * rank->config.n_routed_experts;
}

/* Of the file, by rank 0; no file: no loads. */
static enum bt_status read_loads(struct bt_rank *rank, struct bt_error *error)
{
    const char *path = rank->options.expert_loads_file;
    if (rank->options.rank != 0 || !path)
        return BT_ERR_NOT_FOUND;
    return bt_expert_loads_read(path, rank->layers, rank->config.n_routed_experts, error,
                                rank->earlier_loads);
}

/* What rank 0 read, and what became of that, to all. */
static enum bt_status spread_loads(struct bt_rank *rank, enum bt_status mine,
                                   struct bt_error *error)
{
    struct bt_error verdict = {.status = mine};
    if (mine != BT_OK && mine != BT_ERR_NOT_FOUND)
        verdict = *error;
    enum bt_status status = bt_group_broadcast(rank->group, 0, &verdict, sizeof(verdict), NULL);
    if (status == BT_OK && verdict.status == BT_OK)
        status = bt_group_broadcast(rank->group, 0, rank->earlier_loads,
                                    load_count(rank) * sizeof(*rank->earlier_loads), NULL);
    if (status != BT_OK)
        return bt_error_set(error, status, "%s", bt_group_error(rank->group));
    verdict.text[sizeof(verdict.text) - 1] = '\0';
    return verdict.status == BT_OK || verdict.status == BT_ERR_NOT_FOUND
               ? verdict.status
               : bt_error_set(error, verdict.status, "%s", verdict.text);
}

static enum bt_status find_loads(struct bt_rank *rank, struct bt_error *error)
{
    rank->earlier_loads = calloc(load_count(rank), sizeof(*rank->earlier_loads));
    if (!rank->earlier_loads)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "rank: no memory for loads of experts");
    enum bt_status status = read_loads(rank, error);
    if (rank->group)
        status = spread_loads(rank, status, error);
    if (status != BT_ERR_NOT_FOUND)
        return status;
    free(rank->earlier_loads);
    rank->earlier_loads = NULL;
    return BT_OK;
}

/* Ranks that do not fall evenly on their machines are placed as on one. */
static struct bt_placement_options placement_options(const struct bt_rank *rank)
{
    const struct bt_rank_options *options = &rank->options;
    uint32_t machines = rank->group ? bt_group_machines(rank->group) : 1;
    if (options->size % machines != 0)
        machines = 1;
    return (struct bt_placement_options){
        .kind = options->placement,
        .layers = rank->layers,
        .experts = rank->config.n_routed_experts,
        .ranks = options->size,
        .machines = machines,
        .groups = machines > 1 ? rank->config.route.groups : 1,
        .replicas = options->redundant_experts,
    };
}

static enum bt_status place_experts(struct bt_rank *rank, struct bt_error *error)
{
    struct bt_placement_options placement = placement_options(rank);
    uint64_t *even = NULL;
    if (!rank->group || !rank->options.expert_parallel)
        return BT_OK;
    placement.loads = rank->earlier_loads;
    if (!placement.loads)
        placement.loads = even = calloc(load_count(rank), sizeof(*even));
    enum bt_status status =
        placement.loads ? bt_placement_create(&placement, error, &rank->placement)
                        : bt_error_set(error, BT_ERR_NO_MEMORY, "rank: no memory for a placement");
    free(even);
    return status;
}

static enum bt_status watch_experts(struct bt_rank *rank, struct bt_error *error)
{
    const struct bt_rank_options *options = &rank->options;
    enum bt_status status =
        bt_expert_loads_create(rank->layers, rank->config.n_routed_experts, options->load_windows,
                               options->load_span, error, &rank->loads);
    if (status != BT_OK)
        return status;
    uint32_t full = options->load_windows > 1 ? options->load_windows - 1 : 1;
    const struct bt_rebalance_options rebalance = {
        .rank = options->rank,
        .size = options->size,
        .group = rank->group,
        .loads = rank->loads,
        .layers = rank->layers,
        .experts = rank->config.n_routed_experts,
        .full_rows = full * options->load_span,
        .placement = rank->placement,
        .to = placement_options(rank),
        .interval_ns = options->rebalance_interval_ns,
        .file = options->expert_loads_file,
        .earlier = rank->earlier_loads,
    };
    return bt_rebalance_create(&rebalance, error, &rank->rebalance);
}

/* ---- joining and leaving ---- */

static enum bt_status join(struct bt_rank *rank, const char *model_dir, struct bt_error *error)
{
    enum bt_status status = bt_model_config_load(model_dir, error, &rank->config);
    if (status != BT_OK)
        return status;
    rank->layers = bt_model_moe_layers(&rank->config);
    if (rank->options.size > 1) {
        status = meet(rank, error);
        if (status == BT_OK)
            status = check_terms(rank, error);
    }
    if (status == BT_OK && rank->layers > 0)
        status = find_loads(rank, error);
    if (status == BT_OK && rank->layers > 0)
        status = place_experts(rank, error);
    if (status == BT_OK && rank->layers > 0)
        status = watch_experts(rank, error);
    if (status == BT_OK && rank->group)
        status = bt_loading_begin(rank->group, error, &rank->loading);
    return status;
}

enum bt_status bt_rank_join(const struct bt_rank_options *options, const char *model_dir,
                            struct bt_error *error, struct bt_rank **ret_rank)
{
    struct bt_rank *rank = calloc(1, sizeof(*rank));
    if (!rank) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "rank: no memory");
    }
    rank->options = *options;
    rank->options.size = options->size ? options->size : 1;
    rank->options.load_windows =
        options->load_windows ? options->load_windows : BT_RANK_LOAD_WINDOWS;
    rank->options.load_span = options->load_span ? options->load_span : LOADS_SPAN;
    rank->incarnation = bt_random_entropy();
    enum bt_status status = join(rank, model_dir, error);
    if (status != BT_OK) {
        bt_rank_leave(rank);
        return status;
    }
    *ret_rank = rank;
    return BT_OK;
}

void bt_rank_leave(struct bt_rank *rank)
{
    if (!rank) {
        return;
    }
    bt_loading_destroy(rank->loading);
    bt_group_destroy(rank->group);
    bt_rebalance_destroy(rank->rebalance);
    bt_placement_destroy(rank->placement);
    bt_expert_loads_destroy(rank->loads);
    bt_rank_metrics_destroy(rank->metrics);
    free(rank->earlier_loads);
    free(rank);
}

uint32_t bt_rank_index(const struct bt_rank *rank)
{
    return rank->options.rank;
}

uint32_t bt_rank_size(const struct bt_rank *rank)
{
    return rank->options.size;
}

struct bt_group *bt_rank_group(const struct bt_rank *rank)
{
    return rank->group;
}

uint64_t bt_rank_incarnation(const struct bt_rank *rank)
{
    return rank->incarnation;
}

/* ---- the model's part ---- */

void bt_rank_part(const struct bt_rank *rank, struct bt_model_options *options)
{
    options->tp_size = tp_size(rank);
    options->tp_rank = rank->options.tensor_parallel ? rank->options.rank : 0;
    options->placement = rank->placement;
    options->ep_rank = rank->placement ? rank->options.rank : 0;
}

void bt_rank_forward(const struct bt_rank *rank, struct bt_forward_options *options)
{
    options->tp = rank->options.tensor_parallel ? rank->group : NULL;
    options->ep = rank->placement ? rank->group : NULL;
    options->placement = rank->placement;
    options->payload = rank->options.payload;
    options->dispatch = rank->options.dispatch;
    options->loads = rank->loads;
}

/* What the ranks' bits depend on, beside the flags. */
struct kind {
    uint64_t model_hash;
    char dtype[16], kernels[24];
};

static enum bt_status compare_kinds(const struct kind *all, uint32_t size, struct bt_error *error)
{
    for (uint32_t r = 1; r < size; r++) {
        const struct kind *theirs = &all[r];
        if (theirs->model_hash != all->model_hash)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "rank %u has another --model than rank 0", r);
        if (strncmp(theirs->dtype, all->dtype, sizeof(all->dtype)) != 0)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "rank %u computes in --dtype %.15s, rank 0 in %.15s", r,
                                theirs->dtype, all->dtype);
        if (strncmp(theirs->kernels, all->kernels, sizeof(all->kernels)) != 0)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "rank %u has --kernels %.23s, rank 0 has %.23s: give the same "
                                "--device and --kernels to all",
                                r, theirs->kernels, all->kernels);
    }
    return BT_OK;
}

static enum bt_status check_kinds(struct bt_rank *rank, const struct bt_model *model,
                                  struct bt_error *error)
{
    struct kind mine = {.model_hash = model->hash}, all[BT_GROUP_RANKS_MAX];
    snprintf(mine.dtype, sizeof(mine.dtype), "%s", bt_model_dtype_name(model->dtype));
    snprintf(mine.kernels, sizeof(mine.kernels), "%s", model->kernels->name);
    enum bt_status status = bt_rank_exchange(rank, &mine, sizeof(mine), all);
    if (status != BT_OK)
        return bt_error_set(error, status, "%s", bt_group_error(rank->group));
    return compare_kinds(all, rank->options.size, error);
}

enum bt_status bt_rank_start(struct bt_rank *rank, struct bt_model *model,
                             struct bt_forward *forward, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    if (rank->loading) {
        status = bt_loading_end(rank->loading, rank->options.connect_timeout_ns, error);
        bt_loading_destroy(rank->loading);
        rank->loading = NULL;
    }
    if (status == BT_OK && rank->group)
        status = check_kinds(rank, model, error);
    if (status == BT_OK && rank->rebalance)
        status = bt_rebalance_start(rank->rebalance, model, forward, error);
    return status;
}

enum bt_status bt_rank_exchange(struct bt_rank *rank, const void *mine, size_t bytes, void *ret_all)
{
    char *all = ret_all;
    BT_ASSERT(bytes <= BT_RANK_CARD_BYTES);
    memcpy(all + rank->options.rank * bytes, mine, bytes);
    enum bt_status status = BT_OK;
    for (uint32_t r = 0; rank->group && r < rank->options.size && status == BT_OK; r++) {
        status = bt_group_broadcast(rank->group, r, all + r * bytes, bytes, NULL);
    }
    return status;
}

/* ---- experts that move ---- */

void bt_rank_words(struct bt_rank *rank, int64_t now_ns, uint64_t ret_words[BT_RANK_WORDS])
{
    if (rank->rebalance)
        bt_rebalance_words(rank->rebalance, now_ns, ret_words);
    else
        memset(ret_words, 0, BT_RANK_WORDS * sizeof(*ret_words));
}

enum bt_status bt_rank_agreed(struct bt_rank *rank, const uint64_t *words, uint32_t stride,
                              struct bt_error *error)
{
    if (rank->group)
        bt_rank_traffic_set(&rank->traffic, rank->group);
    return rank->rebalance ? bt_rebalance_agreed(rank->rebalance, words, stride, error) : BT_OK;
}

bool bt_rank_acts(const struct bt_rank *rank, const uint64_t *words, uint32_t stride)
{
    return rank->rebalance && bt_rebalance_acts(rank->rebalance, words, stride);
}

void bt_rank_metrics(struct bt_rank *rank, struct bt_metrics *metrics, const char *labels)
{
    const struct bt_rank_metrics_options options = {
        .config = &rank->config,
        .traffic = rank->group ? &rank->traffic : NULL,
        .rebalance = rank->rebalance,
        .loads = rank->options.rank == 0,
    };
    bt_rank_metrics_destroy(rank->metrics);
    rank->metrics = bt_rank_metrics_create(&options, metrics, labels);
}

void bt_rank_metrics_update(struct bt_rank *rank)
{
    bt_rank_metrics_refresh(rank->metrics);
}
