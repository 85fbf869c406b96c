#include "common/parallel/group.h"

#include <string.h>

#include "common/kernels/cuda/module.h"
#include "common/parallel/group_ops.h"

/* ---- creation ---- */

static enum bt_status check_peers(const struct bt_group_options *options, struct bt_error *error)
{
    if (!options->endpoint)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "group: no endpoint");
    if (!options->secret || strlen(options->secret) < BT_GROUP_SECRET_MIN)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "group: secret: at least %d characters are wanted",
                            BT_GROUP_SECRET_MIN);
    if (options->connect_timeout_ns <= 0 || options->wait_timeout_ns <= 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "group: a timeout is not above 0");
    return BT_OK;
}

static enum bt_status check_limits(const struct bt_group_limits *limits, struct bt_error *error)
{
    uint64_t picks = (uint64_t)limits->rows * BT_GROUP_RANKS_MAX * limits->experts_per_token;
    if (limits->rows == 0)
        return BT_OK;
    if (limits->hidden == 0 || limits->experts == 0 || limits->experts_per_token == 0 ||
        limits->experts_per_token > limits->experts || limits->experts >= UINT32_MAX ||
        picks > UINT32_MAX)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "group: limits: %u rows of %u floats, %u of %u experts each",
                            limits->rows, limits->hidden, limits->experts_per_token,
                            limits->experts);
    return BT_OK;
}

static enum bt_status check(const struct bt_group_options *options, struct bt_error *error)
{
    if (options->size == 0 || options->size > BT_GROUP_RANKS_MAX || options->rank >= options->size)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "group: rank %u of %u ranks, the most is %d", options->rank,
                            options->size, BT_GROUP_RANKS_MAX);
    enum bt_status status = options->size > 1 ? check_peers(options, error) : BT_OK;
    return status == BT_OK ? check_limits(&options->limits, error) : status;
}

/* So that an agreement waits for other ranks' hosts alone, whatever is queued on the devices. */
static enum bt_status add_words(struct bt_group *group, const struct bt_group_options *options,
                                struct bt_error *error)
{
    struct bt_group_options words = *options;
    words.limits = (struct bt_group_limits){0};
    return bt_memory_group_create(&words, error, &group->words);
}

static enum bt_status create_on_gpus(const struct bt_group_options *options, struct bt_error *error,
                                     struct bt_group **ret_group)
{
    const struct bt_cuda_module *module;
    struct bt_group *group;
    enum bt_status status = bt_cuda_module_load(error, &module);
    if (status == BT_OK)
        status = module->group_create(options, error, &group);
    if (status != BT_OK)
        return status;
    status = add_words(group, options, error);
    if (status != BT_OK) {
        bt_group_destroy(group);
        return status;
    }
    *ret_group = group;
    return BT_OK;
}

enum bt_status bt_group_create(const struct bt_group_options *options, struct bt_error *error,
                               struct bt_group **ret_group)
{
    const char *transport = options->transport ? options->transport : "auto";
    enum bt_status status = check(options, error);
    if (status != BT_OK)
        return status;
    if (strcmp(transport, "nccl") == 0)
        return create_on_gpus(options, error, ret_group);
    if (strcmp(transport, "self") == 0 && options->size != 1)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "group: self is one rank, not %u",
                            options->size);
    if (strcmp(transport, "auto") != 0 && strcmp(transport, "self") != 0 &&
        strcmp(transport, "ucx") != 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "group: '%s' is no transport: auto, self, ucx or nccl", transport);
    return bt_memory_group_create(options, error, ret_group);
}

void bt_group_destroy(struct bt_group *group)
{
    if (!group)
        return;
    struct bt_group *words = group->words;
    group->ops->destroy(group);
    bt_group_destroy(words);
}

uint32_t bt_group_rank(const struct bt_group *group)
{
    return group->rank;
}

uint32_t bt_group_size(const struct bt_group *group)
{
    return group->size;
}

uint32_t bt_group_machines(const struct bt_group *group)
{
    return group->machines;
}

const char *bt_group_error(const struct bt_group *group)
{
    return group->ops->error(group)->text;
}

void bt_group_traffic(const struct bt_group *group, struct bt_group_traffic *ret_traffic)
{
    *ret_traffic = group->traffic;
    if (group->words) {
        ret_traffic->other += group->words->traffic.other;
        ret_traffic->between_machines += group->words->traffic.between_machines;
    }
}

/* ---- calls ---- */

static enum bt_status over(const struct bt_group *group)
{
    return group->ops->error(group)->status;
}

bool bt_group_use_stream(struct bt_group *group, struct bt_stream *stream)
{
    return group->ops->use_stream && group->ops->use_stream(group, stream);
}

void bt_group_expect_rows(struct bt_group *group, uint32_t rows)
{
    BT_ASSERT(rows <= group->limits.rows);
    if (group->ops->expect_rows)
        group->ops->expect_rows(group, rows);
}

bool bt_group_queues(const struct bt_group *group, enum bt_dispatch_mode mode)
{
    return group->ops->queues && group->ops->queues(group, mode);
}

enum bt_status bt_group_await(struct bt_group *group, bool (*is_done)(void *context), void *context)
{
    enum bt_status status = over(group);
    BT_ASSERT(group->ops->await);
    return status != BT_OK ? status : group->ops->await(group, is_done, context);
}

enum bt_status bt_group_barrier(struct bt_group *group)
{
    enum bt_status status = over(group);
    return status != BT_OK ? status : group->ops->barrier(group);
}

enum bt_status bt_group_broadcast(struct bt_group *group, uint32_t root, void *data, size_t bytes,
                                  size_t *ret_bytes)
{
    enum bt_status status = over(group);
    BT_ASSERT(root < group->size);
    return status != BT_OK ? status : group->ops->broadcast(group, root, data, bytes, ret_bytes);
}

/* Who is lost to the hosts is lost to the devices. */
static enum bt_status agreed(struct bt_group *group, enum bt_status status)
{
    if (status != BT_OK && group->words)
        group->ops->fail(group, status, bt_group_error(group->words));
    return status;
}

enum bt_status bt_group_agree_begin(struct bt_group *group, const uint64_t *words, uint32_t count)
{
    enum bt_status status = over(group);
    BT_ASSERT(count > 0 && count <= BT_GROUP_WORDS_MAX);
    if (status != BT_OK)
        return status;
    BT_ASSERT(group->agreeing == 0);
    group->agreeing = count;
    return group->words ? agreed(group, bt_group_agree_begin(group->words, words, count))
                        : group->ops->agree_begin(group, words, count);
}

enum bt_status bt_group_agree_finish(struct bt_group *group, uint64_t *ret_words)
{
    enum bt_status status = over(group);
    if (status != BT_OK)
        return status;
    BT_ASSERT(group->agreeing > 0);
    status = group->words ? agreed(group, bt_group_agree_finish(group->words, ret_words))
                          : group->ops->agree_finish(group, ret_words);
    group->agreeing = 0;
    return status;
}

enum bt_status bt_group_all_reduce(struct bt_group *group, float *x, size_t count)
{
    enum bt_status status = over(group);
    BT_ASSERT(count <= group->limits.floats);
    return status != BT_OK ? status : group->ops->all_reduce(group, x, count);
}

enum bt_status bt_group_reduce_scatter(struct bt_group *group, const float *x, uint32_t rows,
                                       uint32_t width, float *out)
{
    enum bt_status status = over(group);
    BT_ASSERT((uint64_t)rows * width <= group->limits.floats);
    return status != BT_OK ? status : group->ops->reduce_scatter(group, x, rows, width, out);
}

enum bt_status bt_group_all_gather(struct bt_group *group, const float *mine, uint32_t rows,
                                   uint32_t width, float *out)
{
    enum bt_status status = over(group);
    BT_ASSERT((uint64_t)rows * width <= group->limits.floats);
    return status != BT_OK ? status : group->ops->all_gather(group, mine, rows, width, out);
}

enum bt_status bt_group_repeat(struct bt_group *group, uint64_t dispatch_bytes,
                               uint64_t combine_bytes)
{
    group->traffic.dispatch += dispatch_bytes;
    group->traffic.combine += combine_bytes;
    return group->ops->repeat ? group->ops->repeat(group) : over(group);
}

enum bt_status bt_group_dispatch_begin(struct bt_group *group, enum bt_dispatch_mode mode,
                                       const float *x, uint32_t rows,
                                       const struct bt_routing *routing,
                                       const struct bt_placement_layer *placement,
                                       enum bt_dtype payload)
{
    enum bt_status status = over(group);
    BT_ASSERT(group->limits.rows > 0 && rows <= group->limits.rows);
    BT_ASSERT(payload == BT_F32 || payload == BT_BF16 || payload == BT_F8_E4M3);
    if (status != BT_OK)
        return status;
    BT_ASSERT(!group->dispatching && !group->dispatched);
    status = group->ops->dispatch_begin(group, mode, x, rows, routing, placement, payload);
    group->dispatching = status == BT_OK;
    return status;
}

enum bt_status bt_group_dispatch_finish(struct bt_group *group, struct bt_arrivals *ret_arrivals)
{
    enum bt_status status = over(group);
    if (status != BT_OK)
        return status;
    BT_ASSERT(group->dispatching);
    group->dispatching = false;
    status = group->ops->dispatch_finish(group, ret_arrivals);
    group->dispatched = status == BT_OK;
    return status;
}

enum bt_status bt_group_combine(struct bt_group *group, const void *y, enum bt_dtype payload,
                                const struct bt_routing *routing, float *out)
{
    enum bt_status status = over(group);
    BT_ASSERT(payload == BT_F32 || payload == BT_BF16);
    if (status != BT_OK)
        return status;
    BT_ASSERT(group->dispatched);
    group->dispatched = false;
    return group->ops->combine(group, y, payload, routing, out);
}
