#include "common/model/rank.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/random.h"

#define SECRET_MAX      1024
#define LOADS_WINDOWS   16
#define LOADS_SPAN      4096 /* rows */
#define BROADCAST_BYTES ((size_t)64 << 10)

struct bt_rank {
    struct bt_rank_options options;
    struct bt_model_config config;
    uint32_t layers;        /* MoE layers */
    struct bt_group *group; /* NULL: alone */
    uint64_t incarnation;
    struct bt_placement *placement; /* NULL: this rank has all experts */
    struct bt_expert_loads *loads;  /* NULL: no experts */
    struct bt_model *model;
    struct bt_forward *forward;
};

/* ---- joining ---- */

static enum bt_status read_secret(const char *path, struct bt_error *error,
                                  char ret_secret[SECRET_MAX])
{
    FILE *file = fopen(path, "re");
    if (!file) {
        return bt_error_set(error, BT_ERR_IO, "--group-secret-file %s: %s", path, strerror(errno));
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

static enum bt_status meet(struct bt_rank *rank, struct bt_error *error)
{
    const struct bt_rank_options *options = &rank->options;
    char secret[SECRET_MAX];
    enum bt_status status = read_secret(options->secret_file, error, secret);
    if (status != BT_OK) {
        return status;
    }
    struct bt_group_options group = {
        .transport = "auto",
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

static enum bt_status place_experts(struct bt_rank *rank, struct bt_error *error)
{
    const struct bt_rank_options *options = &rank->options;
    if (rank->layers == 0 || !rank->group || !options->expert_parallel) {
        return BT_OK;
    }
    const struct bt_placement_options placement = {
        .kind = options->placement,
        .layers = rank->layers,
        .experts = rank->config.n_routed_experts,
        .ranks = options->size,
        .machines = bt_group_machines(rank->group),
        .groups = 1,
        .replicas = options->redundant_experts,
    };
    return bt_placement_create(&placement, error, &rank->placement);
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
    rank->incarnation = bt_random_entropy();
    enum bt_status status = bt_model_config_load(model_dir, error, &rank->config);
    if (status == BT_OK) {
        rank->layers = bt_model_moe_layers(&rank->config);
        status = rank->options.size > 1 ? meet(rank, error) : BT_OK;
    }
    if (status == BT_OK) {
        status = place_experts(rank, error);
    }
    if (status == BT_OK && rank->layers > 0) {
        status = bt_expert_loads_create(rank->layers, rank->config.n_routed_experts, LOADS_WINDOWS,
                                        LOADS_SPAN, error, &rank->loads);
    }
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
    bt_group_destroy(rank->group);
    bt_placement_destroy(rank->placement);
    bt_expert_loads_destroy(rank->loads);
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

enum bt_status bt_rank_start(struct bt_rank *rank, struct bt_model *model,
                             struct bt_forward *forward, struct bt_error *error)
{
    (void)error;
    rank->model = model;
    rank->forward = forward;
    return BT_OK;
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
    (void)rank;
    (void)now_ns;
    memset(ret_words, 0, BT_RANK_WORDS * sizeof(*ret_words));
}

enum bt_status bt_rank_agreed(struct bt_rank *rank, const uint64_t *words, uint32_t stride,
                              struct bt_error *error)
{
    (void)rank;
    (void)words;
    (void)stride;
    (void)error;
    return BT_OK;
}

void bt_rank_metrics(struct bt_rank *rank, struct bt_metrics *metrics, const char *labels)
{
    (void)rank;
    (void)metrics;
    (void)labels;
}

void bt_rank_metrics_update(struct bt_rank *rank)
{
    (void)rank;
}
