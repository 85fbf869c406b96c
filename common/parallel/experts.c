#include "common/parallel/experts.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static size_t up(size_t bytes)
{
    return (bytes + BT_PARCEL_ALIGNMENT - 1) / BT_PARCEL_ALIGNMENT * BT_PARCEL_ALIGNMENT;
}

static uint32_t rows_most(const struct bt_group_limits *limits, uint32_t size)
{
    size_t a_row = (size_t)size * limits->experts_per_token * limits->hidden * sizeof(float);
    size_t most = BT_COMBINE_BYTES / a_row;
    if (most > BT_ROWS_LATENCY)
        most = BT_ROWS_LATENCY;
    if (most > limits->rows)
        most = limits->rows;
    return most < 1 ? 1 : (uint32_t)most;
}

size_t bt_experts_parcel_bytes(const struct bt_group_limits *limits, uint32_t size)
{
    size_t rows = rows_most(limits, size), k = limits->experts_per_token;
    size_t picks = rows * k;
    size_t dispatch =
        up(sizeof(struct bt_dispatch_head)) + up(size * sizeof(struct bt_dispatch_block)) +
        size * up(rows * sizeof(uint32_t)) + up(picks * sizeof(struct bt_dispatch_pick)) +
        size * BT_PARCEL_ALIGNMENT + rows * up(limits->hidden * sizeof(float));
    size_t combine = up(size * sizeof(struct bt_combine_block)) +
                     size * picks * up(limits->hidden * sizeof(float));
    return dispatch > combine ? dispatch : combine;
}

/* Walks the arrays twice: to know the bytes, and to place them. */
static size_t place(char *memory, size_t *used, size_t count, size_t element)
{
    size_t at = *used;
    *used += up(count * element);
    return memory ? (size_t)(uintptr_t)memory + at : 0;
}

static size_t place_arrays(struct bt_experts *e, const struct bt_group_limits *limits, char *memory)
{
    size_t used = 0, own_picks = (size_t)limits->rows * e->k;
    size_t rows = (size_t)limits->rows * e->size, picks = own_picks * e->size;

    e->dest = (void *)place(memory, &used, own_picks, sizeof(*e->dest));
    e->index = (void *)place(memory, &used, own_picks, sizeof(*e->index));
    e->row = (void *)place(memory, &used, e->hidden, sizeof(float) + 1);
    e->summands = (void *)place(memory, &used, e->k, sizeof(*e->summands));
    e->pick_at = (void *)place(memory, &used, picks, sizeof(*e->pick_at));
    e->pick_expert = (void *)place(memory, &used, picks, sizeof(*e->pick_expert));
    e->position = (void *)place(memory, &used, picks, sizeof(*e->position));
    e->order = (void *)place(memory, &used, picks, sizeof(*e->order));
    e->begin = (void *)place(memory, &used, (size_t)e->experts + 2, sizeof(*e->begin));
    e->chunk_picks = (void *)place(memory, &used, rows, sizeof(*e->chunk_picks));
    e->x = (void *)place(memory, &used, rows * e->hidden, sizeof(*e->x));
    return used;
}

enum bt_status bt_experts_create(const struct bt_group_limits *limits, uint32_t rank, uint32_t size,
                                 struct bt_error *error, struct bt_experts **ret_experts)
{
    struct bt_experts *e = calloc(1, sizeof(*e));
    if (!e)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a group");
    e->rank = rank;
    e->size = size;
    e->hidden = limits->hidden;
    e->experts = limits->experts;
    e->k = limits->experts_per_token;
    e->rows_most = rows_most(limits, size);
    e->memory_bytes = place_arrays(e, limits, NULL);
    e->memory = mmap(NULL, e->memory_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (e->memory == MAP_FAILED) {
        bt_error_set(error, BT_ERR_NO_MEMORY, "group: no memory for %zu bytes of arrivals: %m",
                     e->memory_bytes);
        free(e);
        return BT_ERR_NO_MEMORY;
    }
    place_arrays(e, limits, e->memory);
    *ret_experts = e;
    return BT_OK;
}

void bt_experts_destroy(struct bt_experts *e)
{
    if (!e)
        return;
    munmap(e->memory, e->memory_bytes);
    free(e);
}

/* ---- where picks go ---- */

/* Of an expert's ranks: this one; else one of this machine; else any, by row and rank. */
static uint32_t choose_rank(const struct bt_ranks *ranks, const uint32_t *holders, uint32_t count,
                            uint32_t row)
{
    uint32_t near = 0, machine = bt_ranks_machine(ranks);
    if (count == 1)
        return holders[0];
    for (uint32_t i = 0; i < count; i++) {
        if (holders[i] == ranks->rank)
            return holders[i];
        near += ranks->machine_of[holders[i]] == machine;
    }
    uint32_t wanted = (row + ranks->rank) % (near ? near : count);
    for (uint32_t i = 0; i < count; i++) {
        if (near && ranks->machine_of[holders[i]] != machine)
            continue;
        if (wanted-- == 0)
            return holders[i];
    }
    return holders[0];
}

void bt_experts_choose(struct bt_experts *e, const struct bt_ranks *ranks, const uint32_t *experts,
                       const struct bt_placement_layer *placement, uint32_t rows)
{
    uint32_t last_row[BT_GROUP_RANKS_MAX];

    e->rows = rows;
    memset(last_row, 0xff, sizeof(last_row));
    memset(e->rows_to, 0, sizeof(e->rows_to));
    memset(e->picks_to, 0, sizeof(e->picks_to));
    for (uint32_t row = 0; row < rows; row++) {
        for (size_t pick = (size_t)row * e->k; pick < (size_t)(row + 1) * e->k; pick++) {
            uint32_t expert = experts[pick];
            BT_ASSERT(expert < e->experts);
            const uint32_t *begin = placement->begin + expert;
            uint32_t rank =
                choose_rank(ranks, placement->ranks + begin[0], begin[1] - begin[0], row);
            BT_ASSERT(begin[1] > begin[0] && rank < e->size);
            e->dest[pick] = (uint8_t)rank;
            e->index[pick] = e->picks_to[rank]++;
            e->rows_to[rank] += last_row[rank] != row;
            last_row[rank] = row;
        }
    }
}

/* ---- the order of arrivals ---- */

/* Sources ascending, each one's list as it is. */
void bt_experts_sort(struct bt_experts *e)
{
    uint32_t *next = e->begin + 1; /* ends up as begin */
    memset(e->begin, 0, ((size_t)e->experts + 2) * sizeof(*e->begin));
    for (uint32_t i = 0; i < e->arrived_picks; i++)
        next[e->pick_expert[i] + 1]++;
    for (uint32_t expert = 0; expert < e->experts; expert++)
        next[expert + 1] += next[expert];
    for (uint32_t source = 0; source < e->size; source++) {
        size_t first = e->base_pick[source];
        for (size_t i = first; i < first + e->picks_of[source]; i++) {
            e->position[i] = next[e->pick_expert[i]]++;
            e->order[e->position[i]] = e->pick_at[i];
        }
    }
}
