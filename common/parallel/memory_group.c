#include "common/parallel/memory_group.h"

#include <stdlib.h>
#include <string.h>

/*
 * Floats that go round in one exchange of a reduction, and bytes of a broadcast: few enough to stay
 * in a core's own cache between being written and read, many enough that waiting is small beside.
 */
#define PIECE_FLOATS ((size_t)128 << 10)
#define PIECE_BYTES  ((size_t)512 << 10)

static struct bt_memory_group *memory_group(struct bt_group *base)
{
    return (struct bt_memory_group *)base;
}

static void destroy(struct bt_group *base)
{
    struct bt_memory_group *group = memory_group(base);
    bt_exchange_destroy(group->exchange);
    bt_experts_destroy(group->experts);
    free(group);
}

static const struct bt_error *error_of(const struct bt_group *base)
{
    return bt_exchange_error(((const struct bt_memory_group *)base)->exchange);
}

static struct bt_parcel *own_parcel(struct bt_memory_group *group, enum bt_channel channel)
{
    return bt_exchange_parcel(group->exchange, channel, bt_ranks_machine(group->ranks));
}

/* `bytes` of the own parcel went to all. */
static void count_to_all(struct bt_memory_group *group, size_t bytes)
{
    group->base.traffic.other += bytes * (group->ranks->size - 1);
    group->base.traffic.between_machines += bytes * (group->ranks->machines - 1);
}

static enum bt_status barrier(struct bt_group *base)
{
    struct bt_memory_group *group = memory_group(base);
    enum bt_status status = bt_exchange_begin(group->exchange, BT_CHANNEL_ROWS);
    if (status != BT_OK)
        return status;
    own_parcel(group, BT_CHANNEL_ROWS)->bytes = 0;
    bt_exchange_post(group->exchange, BT_CHANNEL_ROWS, BT_PARCEL_BARRIER, 0, true);
    return bt_exchange_end(group->exchange, BT_CHANNEL_ROWS);
}

/* ---- broadcast: in each parcel of root the length of the whole, then a piece ---- */

static void fill_piece(struct bt_memory_group *group, const char *data, size_t bytes, size_t done)
{
    struct bt_parcel *parcel = own_parcel(group, BT_CHANNEL_ROWS);
    uint64_t total = bytes;
    size_t now = bytes - done < group->piece_bytes ? bytes - done : group->piece_bytes;

    memcpy(bt_parcel_data(parcel), &total, sizeof(total));
    if (now > 0)
        memcpy((char *)bt_parcel_data(parcel) + sizeof(total), data + done, now);
    parcel->bytes = sizeof(total) + now;
    count_to_all(group, now);
}

static enum bt_status take_piece(struct bt_memory_group *group, uint32_t root, char *data,
                                 size_t room, size_t done, uint64_t *ret_total)
{
    const struct bt_parcel *parcel;
    uint64_t total;
    enum bt_status status = bt_exchange_take(group->exchange, BT_CHANNEL_ROWS, root, &parcel);
    if (status != BT_OK)
        return status;
    size_t bytes = parcel->bytes;
    if (bytes < sizeof(total))
        return bt_exchange_reject(group->exchange, root, "a broadcast without its length");
    memcpy(&total, parcel + 1, sizeof(total));
    size_t now = total - done < group->piece_bytes ? total - done : group->piece_bytes;
    if (total < done || bytes != sizeof(total) + now)
        return bt_exchange_reject(group->exchange, root, "a broadcast of another length");
    size_t wanted = done >= room ? 0 : now < room - done ? now : room - done;
    if (wanted > 0)
        memcpy(data + done, (const char *)(parcel + 1) + sizeof(total), wanted);
    *ret_total = total;
    return BT_OK;
}

static enum bt_status broadcast_piece(struct bt_memory_group *group, uint32_t root, char *data,
                                      size_t bytes, size_t done, uint64_t *total)
{
    enum bt_status status = bt_exchange_begin(group->exchange, BT_CHANNEL_ROWS);
    if (status != BT_OK)
        return status;
    own_parcel(group, BT_CHANNEL_ROWS)->bytes = 0;
    if (group->ranks->rank == root)
        fill_piece(group, data, bytes, done);
    bt_exchange_post(group->exchange, BT_CHANNEL_ROWS, BT_PARCEL_BROADCAST, root, true);
    if (group->ranks->rank != root)
        status = take_piece(group, root, data, bytes, done, total);
    return status == BT_OK ? bt_exchange_end(group->exchange, BT_CHANNEL_ROWS) : status;
}

static enum bt_status broadcast(struct bt_group *base, uint32_t root, void *data, size_t bytes,
                                size_t *ret_bytes)
{
    struct bt_memory_group *group = memory_group(base);
    uint64_t total = bytes;
    size_t done = 0;
    do {
        enum bt_status status = broadcast_piece(group, root, data, bytes, done, &total);
        if (status != BT_OK)
            return status;
        done += group->piece_bytes;
    } while (done < total);
    if (ret_bytes)
        *ret_bytes = total;
    return total > bytes ? BT_ERR_EXHAUSTED : BT_OK;
}

/* ---- agreement ---- */

static enum bt_status agree_begin(struct bt_group *base, const uint64_t *words, uint32_t count)
{
    struct bt_memory_group *group = memory_group(base);
    enum bt_status status = bt_exchange_begin(group->exchange, BT_CHANNEL_WORDS);
    if (status != BT_OK)
        return status;
    struct bt_parcel *parcel = own_parcel(group, BT_CHANNEL_WORDS);
    parcel->bytes = count * sizeof(*words);
    memcpy(bt_parcel_data(parcel), words, parcel->bytes);
    count_to_all(group, count * sizeof(*words));
    bt_exchange_post(group->exchange, BT_CHANNEL_WORDS, BT_PARCEL_AGREE, count, true);
    return BT_OK;
}

static enum bt_status agree_finish(struct bt_group *base, uint64_t *ret_words)
{
    struct bt_memory_group *group = memory_group(base);
    uint32_t count = base->agreeing, rank = group->ranks->rank;

    memcpy(ret_words + (size_t)rank * count, bt_parcel_data(own_parcel(group, BT_CHANNEL_WORDS)),
           count * sizeof(*ret_words));
    for (uint32_t i = 0; i + 1 < group->ranks->size; i++) {
        uint32_t source = bt_exchange_other(group->exchange, i);
        const struct bt_parcel *parcel;
        enum bt_status status =
            bt_exchange_take(group->exchange, BT_CHANNEL_WORDS, source, &parcel);
        if (status != BT_OK)
            return status;
        memcpy(ret_words + (size_t)source * count, parcel + 1, count * sizeof(*ret_words));
    }
    return bt_exchange_end(group->exchange, BT_CHANNEL_WORDS);
}

/* ---- creation ---- */

static const struct bt_group_ops memory_ops = {
    .destroy = destroy,
    .error = error_of,
    .barrier = barrier,
    .broadcast = broadcast,
    .agree_begin = agree_begin,
    .agree_finish = agree_finish,
    .all_reduce = bt_memory_all_reduce,
    .reduce_scatter = bt_memory_reduce_scatter,
    .all_gather = bt_memory_all_gather,
    .dispatch_begin = bt_memory_dispatch_begin,
    .dispatch_finish = bt_memory_dispatch_finish,
    .combine = bt_memory_combine,
};

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void size_pieces(struct bt_memory_group *group, size_t *ret_capacity)
{
    const struct bt_group_limits *limits = &group->base.limits;
    uint32_t size = group->base.size;
    size_t floats = limits->floats < PIECE_FLOATS ? limits->floats : PIECE_FLOATS;
    size_t bytes = limits->broadcast_bytes < PIECE_BYTES ? limits->broadcast_bytes : PIECE_BYTES;

    group->piece_floats = bt_reduce_parcel_floats(floats, size);
    group->piece_bytes = bytes < 64 ? 64 : bytes;
    *ret_capacity =
        larger(group->piece_floats * sizeof(float), sizeof(uint64_t) + group->piece_bytes);
    if (limits->rows > 0)
        *ret_capacity = larger(*ret_capacity, bt_experts_parcel_bytes(limits, size));
}

enum bt_status bt_memory_group_create(const struct bt_group_options *options,
                                      struct bt_error *error, struct bt_group **ret_group)
{
    struct bt_exchange_options exchange = {.group = options};
    struct bt_memory_group *group = calloc(1, sizeof(*group));
    enum bt_status status = BT_OK;
    if (!group)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a group");
    group->base = (struct bt_group){.ops = &memory_ops,
                                    .rank = options->rank,
                                    .size = options->size,
                                    .limits = options->limits};
    group->row_ops = bt_row_ops_select();
    size_pieces(group, &exchange.capacity[BT_CHANNEL_ROWS]);
    exchange.capacity[BT_CHANNEL_WORDS] = BT_GROUP_WORDS_MAX * sizeof(uint64_t);
    if (options->limits.rows > 0)
        status = bt_experts_create(&options->limits, options->rank, options->size, error,
                                   &group->experts);
    if (status != BT_OK)
        goto err_group;
    status = bt_exchange_create(&exchange, error, &group->exchange);
    if (status != BT_OK)
        goto err_experts;
    group->ranks = bt_exchange_ranks(group->exchange);
    group->base.machines = group->ranks->machines;
    status = barrier(&group->base); /* so that all connections are made */
    if (status != BT_OK) {
        bt_error_set(error, status, "group: %s", error_of(&group->base)->text);
        goto err_exchange;
    }
    *ret_group = &group->base;
    return BT_OK;

err_exchange:
    bt_exchange_destroy(group->exchange);
err_experts:
    bt_experts_destroy(group->experts);
err_group:
    free(group);
    return status;
}
