/*
 * Reductions. A part of the floats belongs to each rank: it adds up what all have of its part
 * (reduce), and shows the sum to all (gather).
 */
#include <string.h>

#include "common/parallel/memory_group.h"

#define UNIT 16 /* floats: parts begin at whole cache lines of a parcel */

struct part {
    size_t first, count; /* floats of the caller's array */
};

size_t bt_reduce_parcel_floats(size_t floats, uint32_t size)
{
    size_t part = (floats + size - 1) / size;
    return (part + UNIT - 1) / UNIT * UNIT * size;
}

static size_t room(size_t count)
{
    return (count + UNIT - 1) / UNIT * UNIT;
}

/* Where a rank's part is in a parcel for its machine. */
static size_t part_offset(const struct bt_ranks *ranks, const struct part *parts, uint32_t rank)
{
    size_t offset = 0;
    for (uint32_t r = ranks->first[ranks->machine_of[rank]]; r < rank; r++)
        offset += room(parts[r].count);
    return offset;
}

static void count_reduced(struct bt_memory_group *group, size_t near, size_t far)
{
    group->base.traffic.reduce += (near + far) * sizeof(float);
    group->base.traffic.between_machines += far * sizeof(float);
}

/* The parts of a machine's ranks, but not the own one. */
static void fill_machine(struct bt_memory_group *group, const float *x, const struct part *parts,
                         uint32_t machine)
{
    const struct bt_ranks *ranks = group->ranks;
    struct bt_parcel *parcel = bt_exchange_parcel(group->exchange, BT_CHANNEL_ROWS, machine);
    float *out = bt_parcel_data(parcel);
    size_t sent = 0, used = 0;

    for (uint32_t i = 0; i < ranks->count[machine]; i++) {
        const struct part *part = &parts[ranks->first[machine] + i];
        if (ranks->first[machine] + i != ranks->rank && part->count > 0) {
            group->row_ops->show(out + used, x + part->first, part->count * sizeof(*x));
            sent += part->count;
        }
        used += room(part->count);
    }
    parcel->bytes = used * sizeof(*out);
    bool far = machine != bt_ranks_machine(ranks);
    count_reduced(group, far ? 0 : sent, far ? sent : 0);
}

/* out [own part's count] = the sum of all ranks' own part. */
static enum bt_status reduce_parts(struct bt_memory_group *group, const float *x,
                                   const struct part *parts, uint64_t detail, float *out)
{
    const struct bt_ranks *ranks = group->ranks;
    const struct part *mine = &parts[ranks->rank];
    size_t offset = part_offset(ranks, parts, ranks->rank);
    const float *sources[BT_GROUP_RANKS_MAX];
    enum bt_status status = bt_exchange_begin(group->exchange, BT_CHANNEL_ROWS);

    if (status != BT_OK)
        return status;
    for (uint32_t machine = 0; machine < ranks->machines; machine++)
        fill_machine(group, x, parts, machine);
    bt_exchange_post(group->exchange, BT_CHANNEL_ROWS, BT_PARCEL_REDUCE, detail, false);
    sources[ranks->rank] = x + mine->first;
    for (uint32_t i = 0; i + 1 < ranks->size; i++) {
        uint32_t source = bt_exchange_other(group->exchange, i);
        const struct bt_parcel *parcel;
        status = bt_exchange_take(group->exchange, BT_CHANNEL_ROWS, source, &parcel);
        if (status != BT_OK)
            return status;
        if (parcel->bytes < (offset + mine->count) * sizeof(*x))
            return bt_exchange_reject(group->exchange, source, "too few floats");
        sources[source] = (const float *)(parcel + 1) + offset;
    }
    if (mine->count > 0)
        group->row_ops->sum(sources, ranks->size, mine->count, out);
    return bt_exchange_end(group->exchange, BT_CHANNEL_ROWS);
}

/* out: everybody's part; mine [own part's count] may be out's. */
static enum bt_status gather_parts(struct bt_memory_group *group, const float *mine,
                                   const struct part *parts, uint64_t detail, float *out)
{
    const struct bt_ranks *ranks = group->ranks;
    const struct part *own = &parts[ranks->rank];
    enum bt_status status = bt_exchange_begin(group->exchange, BT_CHANNEL_ROWS);
    if (status != BT_OK)
        return status;
    struct bt_parcel *parcel =
        bt_exchange_parcel(group->exchange, BT_CHANNEL_ROWS, bt_ranks_machine(ranks));
    parcel->bytes = own->count * sizeof(*mine);
    if (own->count > 0)
        group->row_ops->show(bt_parcel_data(parcel), mine, parcel->bytes);
    bt_exchange_post(group->exchange, BT_CHANNEL_ROWS, BT_PARCEL_GATHER, detail, true);
    group->base.traffic.reduce += own->count * sizeof(*mine) * (ranks->size - 1);
    group->base.traffic.between_machines += own->count * sizeof(*mine) * (ranks->machines - 1);
    if (own->count > 0 && mine != out + own->first)
        memcpy(out + own->first, mine, own->count * sizeof(*mine));
    for (uint32_t i = 0; i + 1 < ranks->size; i++) {
        uint32_t source = bt_exchange_other(group->exchange, i);
        const struct part *part = &parts[source];
        const struct bt_parcel *theirs;
        status = bt_exchange_take(group->exchange, BT_CHANNEL_ROWS, source, &theirs);
        if (status != BT_OK)
            return status;
        if (theirs->bytes != part->count * sizeof(*out))
            return bt_exchange_reject(group->exchange, source, "another number of floats");
        if (part->count > 0)
            memcpy(out + part->first, theirs + 1, part->count * sizeof(*out));
    }
    return bt_exchange_end(group->exchange, BT_CHANNEL_ROWS);
}

/* [first, first + count) in parts of whole units, the first ranks the larger ones. */
static void split(size_t first, size_t count, uint32_t size, struct part *ret_parts)
{
    size_t units = (count + UNIT - 1) / UNIT, end = first + count;
    for (uint32_t r = 0; r < size; r++) {
        size_t width = (units / size + (r < units % size)) * UNIT;
        ret_parts[r] = (struct part){first, width < end - first ? width : end - first};
        first += ret_parts[r].count;
    }
}

enum bt_status bt_memory_all_reduce(struct bt_group *base, float *x, size_t count)
{
    struct bt_memory_group *group = (struct bt_memory_group *)base;
    struct part parts[BT_GROUP_RANKS_MAX];
    if (base->size == 1)
        return BT_OK;
    for (size_t first = 0; first < count; first += group->piece_floats) {
        size_t left = count - first;
        split(first, left < group->piece_floats ? left : group->piece_floats, base->size, parts);
        float *mine = x + parts[base->rank].first;
        enum bt_status status = reduce_parts(group, x, parts, count, mine);
        if (status == BT_OK)
            status = gather_parts(group, mine, parts, count, x);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}

/* Floats [done, done + most) of every rank's share of the rows. Returns where in the own share. */
static size_t cut(const struct bt_group *base, uint32_t rows, uint32_t width, size_t done,
                  size_t most, struct part *ret_parts)
{
    struct bt_share own = bt_group_share(base, base->rank, rows);
    for (uint32_t r = 0; r < base->size; r++) {
        struct bt_share share = bt_group_share(base, r, rows);
        size_t floats = (size_t)share.count * width, from = done < floats ? done : floats;
        ret_parts[r] = (struct part){(size_t)share.first * width + from,
                                     floats - from < most ? floats - from : most};
    }
    return ret_parts[base->rank].first - (size_t)own.first * width;
}

enum bt_status bt_memory_reduce_scatter(struct bt_group *base, const float *x, uint32_t rows,
                                        uint32_t width, float *out)
{
    struct bt_memory_group *group = (struct bt_memory_group *)base;
    struct part parts[BT_GROUP_RANKS_MAX];
    size_t longest = (size_t)bt_group_share(base, 0, rows).count * width;
    size_t most = group->piece_floats / base->size;

    for (size_t done = 0; done < longest; done += most) {
        size_t at = cut(base, rows, width, done, most, parts);
        enum bt_status status =
            reduce_parts(group, x, parts, (uint64_t)rows << 32 | width, out + at);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}

enum bt_status bt_memory_all_gather(struct bt_group *base, const float *mine, uint32_t rows,
                                    uint32_t width, float *out)
{
    struct bt_memory_group *group = (struct bt_memory_group *)base;
    struct part parts[BT_GROUP_RANKS_MAX];
    size_t longest = (size_t)bt_group_share(base, 0, rows).count * width;
    size_t most = group->piece_floats / base->size;

    for (size_t done = 0; done < longest; done += most) {
        size_t at = cut(base, rows, width, done, most, parts);
        enum bt_status status =
            gather_parts(group, mine + at, parts, (uint64_t)rows << 32 | width, out);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}
