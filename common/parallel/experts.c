#include "common/parallel/experts.h"

#include <stdlib.h>
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
