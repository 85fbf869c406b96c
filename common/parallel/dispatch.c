#include <string.h>

#include "common/parallel/experts.h"

static size_t up(size_t bytes)
{
    return (bytes + BT_PARCEL_ALIGNMENT - 1) / BT_PARCEL_ALIGNMENT * BT_PARCEL_ALIGNMENT;
}

/* ---- sending ---- */

/* A parcel being filled. */
struct filling {
    struct bt_dispatch_head *head;
    struct bt_dispatch_block *blocks;
    char *data;
    uint32_t first_rank, ranks;
};

static void count_blocks(const struct bt_experts *e, const struct filling *f, uint32_t first_row,
                         uint32_t end_row)
{
    uint32_t last_row[BT_GROUP_RANKS_MAX];
    memset(last_row, 0xff, sizeof(last_row));
    for (uint32_t i = 0; i < f->ranks; i++)
        f->blocks[i] = (struct bt_dispatch_block){.all_rows = e->rows_to[f->first_rank + i],
                                                  .all_picks = e->picks_to[f->first_rank + i]};
    for (uint32_t row = first_row; row < end_row; row++) {
        for (size_t pick = (size_t)row * e->k; pick < (size_t)(row + 1) * e->k; pick++) {
            uint32_t i = (uint32_t)e->dest[pick] - f->first_rank;
            if (i >= f->ranks)
                continue;
            f->blocks[i].picks++;
            f->blocks[i].rows += last_row[i] != row;
            last_row[i] = row;
        }
    }
}

/* Gives the lists their places; they are filled, and counted again, by fill_lists. */
static void place_lists(struct filling *f)
{
    size_t at = up(sizeof(*f->head)) + up(f->ranks * sizeof(*f->blocks));
    for (uint32_t i = 0; i < f->ranks; i++) {
        f->blocks[i].rows_at = at;
        at += up(f->blocks[i].rows * sizeof(uint32_t));
        f->blocks[i].picks_at = at;
        at += f->blocks[i].picks * sizeof(struct bt_dispatch_pick);
        at = up(at);
        f->blocks[i].rows = f->blocks[i].picks = 0;
    }
    f->head->payload_at = at;
    f->head->payload_rows = 0;
}

static void list_pick(const struct bt_experts *e, const struct filling *f, uint32_t i, bool new_row,
                      uint32_t place, uint32_t expert)
{
    struct bt_dispatch_block *block = &f->blocks[i];
    uint32_t *rows = (uint32_t *)(f->data + block->rows_at);
    struct bt_dispatch_pick *picks = (struct bt_dispatch_pick *)(f->data + block->picks_at);
    if (new_row)
        rows[block->rows++] = f->head->payload_rows;
    picks[block->picks++] =
        (struct bt_dispatch_pick){.at = (block->rows - 1) * e->k + place, .expert = expert};
}

/* Lists of the rows that go to this machine, and the rows, each once. */
static void fill_lists(struct bt_memory_group *group, const struct filling *f, uint32_t first_row,
                       uint32_t end_row)
{
    const struct bt_experts *e = group->experts;
    size_t row_bytes = bt_row_bytes(e->payload, e->hidden);
    uint32_t last_row[BT_GROUP_RANKS_MAX];

    memset(last_row, 0xff, sizeof(last_row));
    for (uint32_t row = first_row; row < end_row; row++) {
        bool wanted = false;
        for (uint32_t place = 0; place < e->k; place++) {
            size_t pick = (size_t)row * e->k + place;
            uint32_t i = (uint32_t)e->dest[pick] - f->first_rank;
            if (i >= f->ranks)
                continue;
            wanted = wanted || e->plain || e->dest[pick] != e->rank;
            list_pick(e, f, i, last_row[i] != row, place, e->routed[pick]);
            last_row[i] = row;
        }
        char *slot = f->data + f->head->payload_at + f->head->payload_rows * row_bytes;
        char *to = e->plain ? slot : e->row;
        if (!wanted)
            continue;
        bt_row_round(group->row_ops, e->payload, e->x_out + (size_t)row * e->hidden, e->hidden, to);
        if (to != slot)
            group->row_ops->show(slot, to, row_bytes);
        f->head->payload_rows++;
    }
}

static void count_traffic(struct bt_memory_group *group, const struct filling *f, bool far)
{
    size_t row_bytes = bt_row_bytes(group->experts->payload, group->experts->hidden);
    for (uint32_t i = 0; i < f->ranks; i++)
        if (f->first_rank + i != group->ranks->rank)
            group->base.traffic.dispatch += f->blocks[i].rows * row_bytes;
    if (far)
        group->base.traffic.between_machines += f->head->payload_rows * row_bytes;
}

static void fill_parcel(struct bt_memory_group *group, uint32_t machine, uint32_t first_row,
                        uint32_t end_row)
{
    const struct bt_experts *e = group->experts;
    const struct bt_ranks *ranks = group->ranks;
    struct bt_parcel *parcel = bt_exchange_parcel(group->exchange, BT_CHANNEL_ROWS, machine);
    char *data = bt_parcel_data(parcel);
    struct filling f = {
        .head = (struct bt_dispatch_head *)data,
        .blocks = (struct bt_dispatch_block *)(data + up(sizeof(struct bt_dispatch_head))),
        .data = data,
        .first_rank = ranks->first[machine],
        .ranks = ranks->count[machine],
    };

    *f.head = (struct bt_dispatch_head){.rows = e->rows, .ranks = f.ranks};
    count_blocks(e, &f, first_row, end_row);
    place_lists(&f);
    fill_lists(group, &f, first_row, end_row);
    parcel->bytes = f.head->payload_at + f.head->payload_rows * bt_row_bytes(e->payload, e->hidden);
    count_traffic(group, &f, machine != bt_ranks_machine(ranks));
}

/* ---- receiving ---- */

/* What one source sent to this rank in one exchange; heads are copied out of shared memory. */
struct block {
    uint32_t source, rows, picks, payload_rows;
    const uint32_t *row_list;
    const struct bt_dispatch_pick *pick_list;
    const char *payload;
};

static bool fits(uint64_t at, uint64_t count, size_t element, uint64_t bytes)
{
    return at % 4 == 0 && at <= bytes && count <= (bytes - at) / element;
}

/* Of the first exchange: gives a source its places among the arrivals. */
static bool welcome_source(struct bt_experts *e, const struct bt_group_limits *limits,
                           uint32_t source, const struct bt_dispatch_head *head,
                           const struct bt_dispatch_block *block)
{
    if (head->rows > limits->rows || block->all_rows > head->rows ||
        block->all_picks > (uint64_t)block->all_rows * e->k)
        return false;
    uint32_t chunks = (head->rows + e->chunk_rows - 1) / e->chunk_rows;
    if (chunks > e->chunks)
        e->chunks = chunks;
    e->rows_of[source] = block->all_rows;
    e->picks_of[source] = block->all_picks;
    e->base_row[source] = e->arrived_rows;
    e->base_pick[source] = e->arrived_picks;
    e->arrived_rows += block->all_rows;
    e->arrived_picks += block->all_picks;
    e->rows_got[source] = e->picks_got[source] = 0;
    return true;
}

static bool read_block(struct bt_memory_group *group, uint32_t chunk, uint32_t source,
                       const struct bt_parcel *parcel, struct block *ret_block)
{
    struct bt_experts *e = group->experts;
    const char *data = (const char *)(parcel + 1);
    uint64_t bytes = parcel->bytes;
    uint32_t machine = bt_ranks_machine(group->ranks);
    uint32_t local = group->ranks->rank - group->ranks->first[machine];
    struct bt_dispatch_head head;
    struct bt_dispatch_block block;

    if (bytes < up(sizeof(head)) + group->ranks->count[machine] * sizeof(block))
        return false;
    memcpy(&head, data, sizeof(head));
    memcpy(&block, data + up(sizeof(head)) + local * sizeof(block), sizeof(block));
    if (head.ranks != group->ranks->count[machine] ||
        (chunk == 0 && !welcome_source(e, &group->base.limits, source, &head, &block)))
        return false;
    if (!fits(block.rows_at, block.rows, sizeof(uint32_t), bytes) ||
        !fits(block.picks_at, block.picks, sizeof(struct bt_dispatch_pick), bytes) ||
        !fits(head.payload_at, head.payload_rows, bt_row_bytes(e->payload, e->hidden), bytes) ||
        block.rows > e->rows_of[source] - e->rows_got[source] ||
        block.picks > e->picks_of[source] - e->picks_got[source])
        return false;
    *ret_block = (struct block){
        .source = source,
        .rows = block.rows,
        .picks = block.picks,
        .payload_rows = head.payload_rows,
        .row_list = (const uint32_t *)(data + block.rows_at),
        .pick_list = (const struct bt_dispatch_pick *)(data + block.picks_at),
        .payload = data + head.payload_at,
    };
    return true;
}

static bool take_rows(struct bt_memory_group *group, const struct block *block)
{
    const struct bt_experts *e = group->experts;
    size_t row_bytes = bt_row_bytes(e->payload, e->hidden);
    size_t first = (size_t)e->base_row[block->source] + e->rows_got[block->source];
    for (uint32_t i = 0; i < block->rows; i++) {
        uint32_t row = block->row_list[i];
        if (row >= block->payload_rows)
            return false;
        bt_row_expand(group->row_ops, e->payload, block->payload + row * row_bytes, e->hidden,
                      e->x + (first + i) * e->hidden);
    }
    return true;
}

/* Own rows that stay: rounded alike, and not by way of the window. */
static void take_own_rows(struct bt_memory_group *group, uint32_t first_row, uint32_t end_row)
{
    const struct bt_experts *e = group->experts;
    float *to = e->x + ((size_t)e->base_row[e->rank] + e->rows_got[e->rank]) * e->hidden;
    for (uint32_t row = first_row; row < end_row; row++) {
        if (!memchr(e->dest + (size_t)row * e->k, (int)e->rank, e->k))
            continue;
        bt_row_round(group->row_ops, e->payload, e->x_out + (size_t)row * e->hidden, e->hidden,
                     e->row);
        bt_row_expand(group->row_ops, e->payload, e->row, e->hidden, to);
        to += e->hidden;
    }
}

static bool take_picks(const struct bt_experts *e, const struct block *block)
{
    uint32_t first_row = e->base_row[block->source] + e->rows_got[block->source];
    size_t to = (size_t)e->base_pick[block->source] + e->picks_got[block->source];
    for (uint32_t i = 0; i < block->picks; i++) {
        struct bt_dispatch_pick pick = block->pick_list[i];
        if (pick.expert >= e->experts || pick.at / e->k >= block->rows)
            return false;
        e->pick_expert[to + i] = pick.expert;
        e->pick_at[to + i] = first_row * e->k + pick.at;
    }
    return true;
}

static enum bt_status take_in(struct bt_memory_group *group, uint32_t chunk, uint32_t source,
                              const struct bt_parcel *parcel)
{
    struct bt_experts *e = group->experts;
    struct block block;
    bool sound = read_block(group, chunk, source, parcel, &block);
    if (sound && source == e->rank && !e->plain)
        take_own_rows(group, bt_chunk_first(e, chunk, e->rows),
                      bt_chunk_first(e, chunk + 1, e->rows));
    else
        sound = sound && take_rows(group, &block);
    if (!sound || !take_picks(e, &block))
        return bt_exchange_reject(group->exchange, source, "rows that are none");
    e->rows_got[source] += block.rows;
    e->picks_got[source] += block.picks;
    e->chunk_picks[(size_t)chunk * e->size + source] = block.picks;
    return BT_OK;
}

static enum bt_status post_chunk(struct bt_memory_group *group, uint32_t chunk)
{
    struct bt_experts *e = group->experts;
    uint32_t first = bt_chunk_first(e, chunk, e->rows), end = bt_chunk_first(e, chunk + 1, e->rows);
    enum bt_status status = bt_exchange_begin(group->exchange, BT_CHANNEL_ROWS);

    if (status != BT_OK)
        return status;
    for (uint32_t machine = 0; machine < group->ranks->machines; machine++)
        fill_parcel(group, machine, first, end);
    bt_exchange_post(group->exchange, BT_CHANNEL_ROWS, BT_PARCEL_DISPATCH,
                     (uint64_t)e->payload << 32 | e->chunk_rows, false);
    return BT_OK;
}

static enum bt_status take_chunk(struct bt_memory_group *group, uint32_t chunk)
{
    struct bt_experts *e = group->experts;
    enum bt_status status = take_in(
        group, chunk, e->rank,
        bt_exchange_parcel(group->exchange, BT_CHANNEL_ROWS, bt_ranks_machine(group->ranks)));
    for (uint32_t i = 0; i + 1 < e->size && status == BT_OK; i++) {
        uint32_t source = bt_exchange_other(group->exchange, i);
        const struct bt_parcel *parcel;
        status = bt_exchange_take(group->exchange, BT_CHANNEL_ROWS, source, &parcel);
        if (status == BT_OK)
            status = take_in(group, chunk, source, parcel);
    }
    return status == BT_OK ? bt_exchange_end(group->exchange, BT_CHANNEL_ROWS) : status;
}

static enum bt_status check_complete(struct bt_memory_group *group)
{
    const struct bt_experts *e = group->experts;
    for (uint32_t source = 0; source < e->size; source++)
        if (e->rows_got[source] != e->rows_of[source] ||
            e->picks_got[source] != e->picks_of[source])
            return bt_exchange_reject(group->exchange, source, "fewer rows than it said");
    return BT_OK;
}

enum bt_status bt_memory_dispatch_begin(struct bt_group *base, enum bt_dispatch_mode mode,
                                        const float *x, uint32_t rows,
                                        const struct bt_routing *routing,
                                        const struct bt_placement_layer *placement,
                                        enum bt_dtype payload)
{
    struct bt_memory_group *group = (struct bt_memory_group *)base;
    struct bt_experts *e = group->experts;
    uint32_t wanted = mode == BT_DISPATCH_LATENCY ? BT_ROWS_LATENCY : BT_ROWS_THROUGHPUT;

    e->payload = payload;
    e->x_out = x;
    e->routed = routing->experts;
    e->chunk_rows = wanted < e->rows_most ? wanted : e->rows_most;
    e->chunks = 1;
    e->arrived_rows = e->arrived_picks = 0;
    e->plain = mode == BT_DISPATCH_THROUGHPUT;
    bt_experts_choose(e, group->ranks, routing->experts, placement, rows);
    return post_chunk(group, 0);
}

enum bt_status bt_memory_dispatch_finish(struct bt_group *base, struct bt_arrivals *ret_arrivals)
{
    struct bt_memory_group *group = (struct bt_memory_group *)base;
    struct bt_experts *e = group->experts;
    enum bt_status status = take_chunk(group, 0);

    for (uint32_t chunk = 1; chunk < e->chunks && status == BT_OK; chunk++) {
        status = post_chunk(group, chunk);
        if (status == BT_OK)
            status = take_chunk(group, chunk);
    }
    if (status == BT_OK)
        status = check_complete(group);
    if (status != BT_OK)
        return status;
    bt_experts_sort(e);
    *ret_arrivals = (struct bt_arrivals){.rows = e->arrived_rows,
                                         .x = e->x,
                                         .routing = {.order = e->order, .begin = e->begin},
                                         .begin = e->begin,
                                         .picks = e->arrived_picks};
    return BT_OK;
}
