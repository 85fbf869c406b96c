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

/* Ranks that hold an expert, and of which of them it may be asked for. */
struct copies {
    const uint32_t *ranks;
    uint32_t count;
};

static struct copies copies_of(const struct bt_placement_layer *placement, uint32_t expert)
{
    const uint32_t *begin = placement->begin + expert;
    BT_ASSERT(begin[1] > begin[0]);
    return (struct copies){placement->ranks + begin[0], begin[1] - begin[0]};
}

/* Those of this machine alone, where it has some: they are neighbours in the list. */
static struct copies near_copies(const struct bt_ranks *ranks, struct copies all)
{
    uint32_t machine = bt_ranks_machine(ranks), first = 0, count = 0;
    while (first < all.count && ranks->machine_of[all.ranks[first]] != machine)
        first++;
    while (first + count < all.count && ranks->machine_of[all.ranks[first + count]] == machine)
        count++;
    return count ? (struct copies){all.ranks + first, count} : all;
}

/* The rank with fewest picks; of equals this one, else the next from a place that turns. */
static uint32_t least_loaded(const struct bt_ranks *ranks, struct copies copies,
                             const uint32_t *picks_to, uint32_t row)
{
    uint32_t start = (row + ranks->rank) % copies.count, best = copies.ranks[start];
    for (uint32_t i = 1; i < copies.count; i++) {
        uint32_t rank = copies.ranks[(start + i) % copies.count];
        bool is_own = rank == ranks->rank;
        if (picks_to[rank] < picks_to[best] || (is_own && picks_to[rank] == picks_to[best]))
            best = rank;
    }
    return best;
}

/* Picks that have no choice first, so that the others know what every rank has to do anyway. */
static void choose_ranks(struct bt_experts *e, const struct bt_ranks *ranks,
                         const uint32_t *experts, const struct bt_placement_layer *placement)
{
    uint32_t load[BT_GROUP_RANKS_MAX] = {0};
    size_t picks = (size_t)e->rows * e->k;
    bool choices = false;
    for (size_t pick = 0; pick < picks; pick++) {
        BT_ASSERT(experts[pick] < e->experts);
        struct copies copies = copies_of(placement, experts[pick]);
        BT_ASSERT(copies.ranks[copies.count - 1] < e->size);
        e->dest[pick] = (uint8_t)copies.ranks[0];
        choices = choices || copies.count > 1;
        load[copies.ranks[0]] += copies.count == 1;
    }
    for (size_t pick = 0; pick < picks && choices; pick++) {
        struct copies copies = copies_of(placement, experts[pick]);
        if (copies.count == 1)
            continue;
        uint32_t rank =
            least_loaded(ranks, near_copies(ranks, copies), load, (uint32_t)(pick / e->k));
        e->dest[pick] = (uint8_t)rank;
        load[rank]++;
    }
}

void bt_experts_choose(struct bt_experts *e, const struct bt_ranks *ranks, const uint32_t *experts,
                       const struct bt_placement_layer *placement, uint32_t rows)
{
    uint32_t last_row[BT_GROUP_RANKS_MAX];

    e->rows = rows;
    memset(last_row, 0xff, sizeof(last_row));
    memset(e->rows_to, 0, sizeof(e->rows_to));
    memset(e->picks_to, 0, sizeof(e->picks_to));
    choose_ranks(e, ranks, experts, placement);
    for (uint32_t row = 0; row < rows; row++) {
        for (size_t pick = (size_t)row * e->k; pick < (size_t)(row + 1) * e->k; pick++) {
            uint32_t rank = e->dest[pick];
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
