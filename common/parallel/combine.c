#include <string.h>

#include "common/parallel/experts.h"

#define COLUMNS 2048 /* of a row that are added up at once: they stay in the first cache */

static size_t up(size_t bytes)
{
    return (bytes + BT_PARCEL_ALIGNMENT - 1) / BT_PARCEL_ALIGNMENT * BT_PARCEL_ALIGNMENT;
}

/* ---- sending: y in the order of each source's list ---- */

/* Picks of one source in one exchange begin at done[source] of its list. */
static size_t copy_picks(struct bt_memory_group *group, uint32_t source, uint32_t first,
                         uint32_t count, const char *y, size_t row_bytes, char *to)
{
    const struct bt_experts *e = group->experts;
    const uint32_t *position = e->position + e->base_pick[source] + first;
    for (uint32_t i = 0; i < count; i++)
        group->row_ops->show(to + i * row_bytes, y + position[i] * row_bytes, row_bytes);
    return count * row_bytes;
}

static void fill_parcel(struct bt_memory_group *group, uint32_t machine, uint32_t chunk,
                        const uint32_t *done, const char *y, size_t row_bytes)
{
    const struct bt_experts *e = group->experts;
    const struct bt_ranks *ranks = group->ranks;
    struct bt_parcel *parcel = bt_exchange_parcel(group->exchange, BT_CHANNEL_ROWS, machine);
    char *data = bt_parcel_data(parcel);
    struct bt_combine_block *blocks = (struct bt_combine_block *)data;
    size_t at = up(ranks->count[machine] * sizeof(*blocks)), start = at;

    for (uint32_t i = 0; i < ranks->count[machine]; i++) {
        uint32_t source = ranks->first[machine] + i;
        uint32_t picks = e->chunk_picks[(size_t)chunk * e->size + source];
        blocks[i] = (struct bt_combine_block){.picks = picks, .at = at};
        if (source != e->rank)
            at += copy_picks(group, source, done[source], picks, y, row_bytes, data + at);
    }
    parcel->bytes = at;
    group->base.traffic.combine += at - start;
    if (machine != bt_ranks_machine(ranks))
        group->base.traffic.between_machines += at - start;
}

/* ---- receiving ---- */

/* Rows of y for this rank's list of picks of each destination, from the exchange's first one on. */
struct returns {
    const char *y[BT_GROUP_RANKS_MAX];
    uint32_t first[BT_GROUP_RANKS_MAX], count[BT_GROUP_RANKS_MAX];
};

static void expect(const struct bt_experts *e, uint32_t first_row, uint32_t end_row,
                   struct returns *returns)
{
    for (uint32_t rank = 0; rank < e->size; rank++) {
        returns->first[rank] += returns->count[rank];
        returns->count[rank] = 0;
    }
    for (size_t pick = (size_t)first_row * e->k; pick < (size_t)end_row * e->k; pick++)
        returns->count[e->dest[pick]]++;
}

static enum bt_status take_returns(struct bt_memory_group *group, uint32_t rank, size_t row_bytes,
                                   struct returns *returns)
{
    const struct bt_ranks *ranks = group->ranks;
    uint32_t machine = bt_ranks_machine(ranks), local = ranks->rank - ranks->first[machine];
    struct bt_combine_block block;
    const struct bt_parcel *parcel;
    enum bt_status status = bt_exchange_take(group->exchange, BT_CHANNEL_ROWS, rank, &parcel);
    if (status != BT_OK)
        return status;
    uint64_t bytes = parcel->bytes;
    const char *data = (const char *)(parcel + 1);
    if (bytes < ranks->count[machine] * sizeof(block))
        return bt_exchange_reject(group->exchange, rank, "no rows");
    memcpy(&block, data + local * sizeof(block), sizeof(block));
    size_t element = row_bytes / group->experts->hidden;
    if (block.picks != returns->count[rank] || block.at % element != 0 || block.at > bytes ||
        block.picks > (bytes - block.at) / row_bytes)
        return bt_exchange_reject(group->exchange, rank, "another number of rows");
    returns->y[rank] = data + block.at;
    return BT_OK;
}

/* Ascending by expert; few. */
static uint32_t find_summands(const struct bt_experts *e, const struct bt_routing *routing,
                              const char *y, size_t row_bytes, const struct returns *returns,
                              uint32_t row, struct bt_summand *ret_summands)
{
    for (uint32_t place = 0; place < e->k; place++) {
        size_t pick = (size_t)row * e->k + place;
        uint32_t rank = e->dest[pick], index = e->index[pick], i = place;
        struct bt_summand summand = {.expert = routing->experts[pick],
                                     .weight = routing->weights[pick]};
        if (rank == e->rank)
            summand.y = y + e->position[e->base_pick[rank] + index] * row_bytes;
        else
            summand.y = returns->y[rank] + (index - returns->first[rank]) * row_bytes;
        for (; i > 0 && ret_summands[i - 1].expert > summand.expert; i--)
            ret_summands[i] = ret_summands[i - 1];
        ret_summands[i] = summand;
    }
    return e->k;
}

static void add_row(struct bt_memory_group *group, enum bt_dtype payload,
                    const struct bt_summand *summands, uint32_t count, float *out)
{
    size_t hidden = group->experts->hidden, element = bt_dtype_bytes(payload);
    for (size_t first = 0; first < hidden; first += COLUMNS) {
        size_t width = hidden - first < COLUMNS ? hidden - first : COLUMNS;
        for (uint32_t i = 0; i < count; i++)
            bt_row_add(group->row_ops, payload, summands[i].y + first * element, summands[i].weight,
                       width, out + first);
    }
}

static enum bt_status exchange_chunk(struct bt_memory_group *group, uint32_t chunk, const char *y,
                                     enum bt_dtype payload, const struct bt_routing *routing,
                                     uint32_t *done, struct returns *returns, float *out)
{
    struct bt_experts *e = group->experts;
    size_t row_bytes = e->hidden * bt_dtype_bytes(payload);
    uint32_t first = bt_chunk_first(e, chunk, e->rows);
    uint32_t end = bt_chunk_first(e, chunk + 1, e->rows);
    enum bt_status status = bt_exchange_begin(group->exchange, BT_CHANNEL_ROWS);

    if (status != BT_OK)
        return status;
    for (uint32_t machine = 0; machine < group->ranks->machines; machine++)
        fill_parcel(group, machine, chunk, done, y, row_bytes);
    bt_exchange_post(group->exchange, BT_CHANNEL_ROWS, BT_PARCEL_COMBINE, payload, false);
    for (uint32_t source = 0; source < e->size; source++)
        done[source] += e->chunk_picks[(size_t)chunk * e->size + source];
    expect(e, first, end, returns);
    for (uint32_t i = 0; i + 1 < e->size && status == BT_OK; i++)
        status = take_returns(group, bt_exchange_other(group->exchange, i), row_bytes, returns);
    for (uint32_t row = first; row < end && status == BT_OK; row++) {
        uint32_t count = find_summands(e, routing, y, row_bytes, returns, row, e->summands);
        add_row(group, payload, e->summands, count, out + (size_t)row * e->hidden);
    }
    return status == BT_OK ? bt_exchange_end(group->exchange, BT_CHANNEL_ROWS) : status;
}

enum bt_status bt_memory_combine(struct bt_group *base, const void *y, enum bt_dtype payload,
                                 const struct bt_routing *routing, float *out)
{
    struct bt_memory_group *group = (struct bt_memory_group *)base;
    uint32_t done[BT_GROUP_RANKS_MAX] = {0};
    struct returns returns = {.y = {NULL}};
    enum bt_status status = BT_OK;

    for (uint32_t chunk = 0; chunk < group->experts->chunks && status == BT_OK; chunk++)
        status = exchange_chunk(group, chunk, y, payload, routing, done, &returns, out);
    return status;
}
