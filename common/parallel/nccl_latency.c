/*
 * Few rows, at once: everybody gets everybody's rows and picks, as many as the rank with most rows
 * has, and each works out on the device what is for it; results travel back in the places of their
 * picks. So the host knows all sizes, and waits for nothing. What the padding costs: README.md.
 */
#include "common/parallel/nccl_latency.h"

#include <stdlib.h>
#include <string.h>

#include "common/parallel/arrivals_cuda.h"
#include "common/parallel/rows_cuda.h"

/* Layers whose placements are kept: those of a model, twice, as experts move. */
#define COPIES_MAX (2 * BT_PLACEMENT_LAYERS_MAX)

/* ---- memory ---- */

static void *take(struct bt_nccl_group *g, size_t bytes, bool pinned)
{
    void *memory = NULL;
    if (g->error.status == BT_OK)
        bt_nccl_cuda_ok(g, pinned ? cudaHostAlloc(&memory, bytes, cudaHostAllocPortable)
                                  : cudaMalloc(&memory, bytes));
    return memory;
}

void bt_nccl_latency_create(struct bt_nccl_group *g)
{
    const struct bt_group_limits *limits = &g->base.limits;
    struct bt_nccl_latency *l = calloc(1, sizeof(*l));
    g->latency = l;
    if (!l) {
        bt_nccl_fail(g, BT_ERR_NO_MEMORY, "no memory for a group");
        return;
    }
    l->room = limits->rows < BT_NCCL_LATENCY_ROWS ? limits->rows : BT_NCCL_LATENCY_ROWS;
    size_t own = (size_t)l->room * limits->experts_per_token * sizeof(uint32_t);
    size_t experts = limits->experts * sizeof(uint32_t);
    l->words = take(g, own, false);
    l->all_words = take(g, own * g->base.size, false);
    l->order = take(g, own * g->base.size, false);
    l->begin = take(g, experts + sizeof(uint32_t), false);
    l->counts = take(g, experts, false);
    l->faults = take(g, experts, true);
    if (l->faults)
        memset(l->faults, 0, experts);
}

static void forget(struct bt_nccl_copies *copies)
{
    free(copies->ours);
    cudaFree(copies->memory);
    *copies = (struct bt_nccl_copies){0};
}

void bt_nccl_latency_destroy(struct bt_nccl_group *g)
{
    struct bt_nccl_latency *l = g->latency;
    if (!l)
        return;
    for (uint32_t i = 0; i < l->copies_count; i++)
        forget(&l->copies[i]);
    free(l->copies);
    cudaFree(l->words);
    cudaFree(l->all_words);
    cudaFree(l->order);
    cudaFree(l->begin);
    cudaFree(l->counts);
    cudaFreeHost(l->faults);
    free(l);
}

bool bt_nccl_latency_is_confused(const struct bt_nccl_group *g)
{
    bool any = false;
    for (uint32_t e = 0; g->latency && e < g->base.limits.experts; e++)
        any = any || __atomic_load_n(&g->latency->faults[e], __ATOMIC_RELAXED);
    return any;
}

/* ---- placements on the device ---- */

static size_t words_of(const struct bt_nccl_group *g, const struct bt_placement_layer *placement)
{
    uint32_t experts = g->base.limits.experts;
    return experts + 1 + (size_t)placement->begin[experts];
}

static bool is_of(const struct bt_nccl_group *g, const struct bt_nccl_copies *copies,
                  const struct bt_placement_layer *placement)
{
    uint32_t experts = g->base.limits.experts;
    return copies->placement == placement &&
           memcmp(copies->ours, placement->begin, (experts + 1) * sizeof(uint32_t)) == 0 &&
           memcmp(copies->ours + experts + 1, placement->ranks,
                  placement->begin[experts] * sizeof(uint32_t)) == 0;
}

/* Copies that this rank may ask: those of its machine, where it has some. */
static uint32_t put_near(const struct bt_nccl_group *g, const uint32_t *ranks, uint32_t count,
                         uint32_t *out)
{
    uint32_t machine = bt_ranks_machine(&g->ranks), near = 0;
    for (uint32_t i = 0; i < count; i++)
        if (g->ranks.machine_of[ranks[i]] == machine)
            out[near++] = ranks[i];
    if (near > 0)
        return near;
    memcpy(out, ranks, count * sizeof(*out));
    return count;
}

/* first, flags, ranks; whether there are choices. */
static bool write_copies(const struct bt_nccl_group *g, const struct bt_placement_layer *placement,
                         uint32_t *out)
{
    uint32_t experts = g->base.limits.experts, next = 0;
    uint32_t *first = out, *flags = out + experts + 1, *list = flags + experts;
    bool choices = false;
    for (uint32_t e = 0; e < experts; e++) {
        const uint32_t *ranks = placement->ranks + placement->begin[e];
        uint32_t count = placement->begin[e + 1] - placement->begin[e];
        BT_ASSERT(count > 0 && ranks[count - 1] < g->base.size);
        first[e] = next;
        flags[e] = count == 1 ? BT_COPIES_ONE : 0;
        for (uint32_t i = 0; i < count; i++)
            flags[e] |= ranks[i] == g->base.rank ? BT_COPIES_HERE : 0;
        next += put_near(g, ranks, count, list + next);
        choices = choices || count > 1;
    }
    first[experts] = next;
    return choices;
}

/* A place for it: its own of before, a free one, or that which was not used for longest. */
static struct bt_nccl_copies *make_place(struct bt_nccl_group *g,
                                         const struct bt_placement_layer *placement)
{
    struct bt_nccl_latency *l = g->latency;
    struct bt_nccl_copies *eldest = NULL;
    for (uint32_t i = 0; i < l->copies_count; i++) {
        if (l->copies[i].placement == placement)
            return &l->copies[i];
        if (!eldest || l->copies[i].used < eldest->used)
            eldest = &l->copies[i];
    }
    if (l->copies_count == COPIES_MAX)
        return eldest;
    if (l->copies_count == l->copies_room) {
        uint32_t room = l->copies_room ? 2 * l->copies_room : 16;
        struct bt_nccl_copies *more = realloc(l->copies, room * sizeof(*more));
        if (!more)
            return NULL;
        l->copies = more;
        l->copies_room = room;
    }
    l->copies[l->copies_count] = (struct bt_nccl_copies){0};
    return &l->copies[l->copies_count++];
}

/* What a graph was captured with stays: its placement is used by no other run meanwhile. */
static bool load_copies(struct bt_nccl_group *g, const struct bt_placement_layer *placement,
                        struct bt_nccl_copies *copies)
{
    uint32_t experts = g->base.limits.experts;
    size_t ours = words_of(g, placement) * sizeof(uint32_t), bytes = ours + (size_t)experts * 4;
    forget(copies);
    copies->ours = malloc(ours);
    uint32_t *words = malloc(bytes);
    copies->memory = take(g, bytes, false);
    bool fine = copies->ours && words && copies->memory;
    if (fine) {
        memcpy(copies->ours, placement->begin, (experts + 1) * sizeof(uint32_t));
        memcpy(copies->ours + experts + 1, placement->ranks,
               placement->begin[experts] * sizeof(uint32_t));
        copies->choices = write_copies(g, placement, words);
        fine = bt_nccl_cuda_ok(
            g, cudaMemcpyAsync(copies->memory, words,
                               ((size_t)2 * experts + 1 + words[experts]) * sizeof(uint32_t),
                               cudaMemcpyHostToDevice, g->stream));
    }
    free(words); /* pageable: it was read in the call */
    copies->placement = fine ? placement : NULL;
    if (!fine)
        bt_nccl_fail(g, BT_ERR_NO_MEMORY, "no memory for a placement");
    return fine;
}

/* False: the group is over. */
static bool find_copies(struct bt_nccl_group *g, const struct bt_placement_layer *placement,
                        struct bt_cuda_copies *ret_copies)
{
    struct bt_nccl_latency *l = g->latency;
    uint32_t experts = g->base.limits.experts;
    struct bt_nccl_copies *copies = NULL;
    for (uint32_t i = 0; i < l->copies_count && !copies; i++)
        if (l->copies[i].placement == placement)
            copies = &l->copies[i];
    if (!copies || !is_of(g, copies, placement)) {
        copies = make_place(g, placement);
        if (!copies) {
            bt_nccl_fail(g, BT_ERR_NO_MEMORY, "no memory for a placement");
            return false;
        }
        if (!load_copies(g, placement, copies))
            return false;
    }
    copies->used = ++l->uses;
    *ret_copies = (struct bt_cuda_copies){.first = copies->memory,
                                          .flags = copies->memory + experts + 1,
                                          .ranks = copies->memory + 2 * experts + 1,
                                          .choices = copies->choices};
    return true;
}

/* ---- dispatch ---- */

enum bt_status bt_nccl_latency_begin(struct bt_nccl_group *g, uint32_t slots, const float *x,
                                     uint32_t rows, const struct bt_routing *routing,
                                     const struct bt_placement_layer *placement,
                                     enum bt_dtype payload)
{
    struct bt_nccl_latency *l = g->latency;
    const struct bt_group_limits *limits = &g->base.limits;
    uint32_t per_row = limits->experts_per_token, row_bytes;
    struct bt_cuda_choice choice = {.experts = routing->experts,
                                    .live =
                                        routing->begin ? routing->begin + limits->experts : NULL,
                                    .rows = rows,
                                    .slots = slots,
                                    .per_row = per_row,
                                    .rank = g->base.rank,
                                    .words = l->words};
    if (!find_copies(g, placement, &choice.copies))
        return g->error.status;
    row_bytes = (uint32_t)bt_row_bytes(payload, limits->hidden);
    l->slots = slots;
    l->rows = rows;
    l->payload = payload;
    l->flags = choice.copies.flags;
    bt_arrivals_cuda_choose(g->stream, &choice);
    bt_rows_cuda_round(g->stream, bt_nccl_payload_code(payload), x, rows, NULL, slots,
                       limits->hidden, row_bytes, g->device.outgoing);
    bt_nccl_collect(g);
    bt_nccl_ok(g, ncclAllGather(l->words, l->all_words, (size_t)slots * per_row, ncclUint32,
                                g->comm, g->stream));
    bt_nccl_ok(g, ncclAllGather(g->device.outgoing, g->device.incoming, (size_t)slots * row_bytes,
                                ncclUint8, g->comm, g->stream));
    bt_nccl_ok(g, bt_nccl_collected(g));
    g->base.traffic.dispatch += (uint64_t)slots * row_bytes * (g->base.size - 1);
    return bt_nccl_settle(g);
}

enum bt_status bt_nccl_latency_finish(struct bt_nccl_group *g, struct bt_arrivals *ret_arrivals)
{
    struct bt_nccl_latency *l = g->latency;
    const struct bt_group_limits *limits = &g->base.limits;
    uint32_t rows = l->slots * g->base.size;
    const struct bt_cuda_arrivals arrivals = {.words = l->all_words,
                                              .flags = l->flags,
                                              .picks = rows * limits->experts_per_token,
                                              .rank = g->base.rank,
                                              .experts = limits->experts,
                                              .counts = l->counts,
                                              .order = l->order,
                                              .begin = l->begin,
                                              .faults = l->faults};
    bt_arrivals_cuda_sort(g->stream, &arrivals);
    bt_rows_cuda_expand(g->stream, bt_nccl_payload_code(l->payload), g->device.incoming, rows,
                        limits->hidden, (uint32_t)bt_row_bytes(l->payload, limits->hidden),
                        g->device.x);
    *ret_arrivals = (struct bt_arrivals){.rows = rows,
                                         .x = g->device.x,
                                         .routing = {.order = l->order, .begin = l->begin},
                                         .picks = arrivals.picks,
                                         .on_device = true};
    return g->error.status;
}

/* ---- combine ---- */

/* A block of the same size to and from each rank, the own one, too. */
static void exchange_blocks(struct bt_nccl_group *g, size_t bytes)
{
    bt_nccl_collect(g);
    for (uint32_t r = 0; r < g->base.size; r++) {
        bt_nccl_ok(g, ncclSend(g->device.outgoing + r * bytes, bytes, ncclUint8, (int)r, g->comm,
                               g->stream));
        bt_nccl_ok(g, ncclRecv(g->device.incoming + r * bytes, bytes, ncclUint8, (int)r, g->comm,
                               g->stream));
    }
    bt_nccl_ok(g, bt_nccl_collected(g));
}

enum bt_status bt_nccl_latency_combine(struct bt_nccl_group *g, const void *y,
                                       enum bt_dtype payload, const struct bt_routing *routing,
                                       float *out)
{
    struct bt_nccl_latency *l = g->latency;
    const struct bt_group_limits *limits = &g->base.limits;
    uint32_t picks = l->slots * limits->experts_per_token;
    size_t row_bytes = limits->hidden * bt_dtype_bytes(payload);
    const struct bt_cuda_sum sum = {.y = g->device.incoming,
                                    .words = l->words,
                                    .weights = routing->weights,
                                    .rows = l->rows,
                                    .slots = l->slots,
                                    .per_row = limits->experts_per_token,
                                    .hidden = limits->hidden,
                                    .payload = bt_nccl_payload_code(payload),
                                    .out = out};
    bt_arrivals_cuda_return(g->stream, y, l->order, l->begin + limits->experts,
                            picks * g->base.size, (uint32_t)(row_bytes / 2),
                            (uint16_t *)(void *)g->device.outgoing);
    exchange_blocks(g, picks * row_bytes);
    if (bt_nccl_settle(g) != BT_OK)
        return g->error.status;
    bt_arrivals_cuda_sum(g->stream, &sum);
    g->base.traffic.combine += picks * row_bytes * (g->base.size - 1);
    return g->error.status;
}
