#include "common/parallel/placement.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/parallel/balance.h"

static const char *const kinds[] = {
    [BT_PLACEMENT_CONTIGUOUS] = "contiguous",
    [BT_PLACEMENT_ROUND_ROBIN] = "round-robin",
    [BT_PLACEMENT_BALANCED] = "balanced",
};

enum bt_status bt_placement_kind_parse(const char *text, struct bt_error *error,
                                       enum bt_placement_kind *ret_kind)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strcmp(text, kinds[i]) == 0) {
            *ret_kind = (enum bt_placement_kind)i;
            return BT_OK;
        }
    }
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                        "'%s' is no placement: contiguous, round-robin or balanced", text);
}

/* ---- what can be made ---- */

static enum bt_status check_range(const char *name, uint32_t value, uint32_t most,
                                  struct bt_error *error)
{
    if (value >= 1 && value <= most)
        return BT_OK;
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                        "placement: %s is %" PRIu32 ", not in 1 … %" PRIu32, name, value, most);
}

static enum bt_status check_sizes(const struct bt_placement_options *o, struct bt_error *error)
{
    enum bt_status status = check_range("layers", o->layers, BT_PLACEMENT_LAYERS_MAX, error);
    if (status == BT_OK)
        status = check_range("experts", o->experts, BT_PLACEMENT_EXPERTS_MAX, error);
    if (status == BT_OK)
        status = check_range("ranks", o->ranks, BT_PLACEMENT_RANKS_MAX, error);
    if (status == BT_OK)
        status = check_range("machines", o->machines, o->ranks, error);
    if (status != BT_OK)
        return status;
    if (o->ranks % o->machines)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "placement: %" PRIu32 " ranks do not divide among %" PRIu32 " machines",
                            o->ranks, o->machines);
    if (o->kind == BT_PLACEMENT_CONTIGUOUS && o->experts % o->ranks)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "placement: contiguous: %" PRIu32 " experts do not divide among "
                            "%" PRIu32 " ranks",
                            o->experts, o->ranks);
    if (o->kind != BT_PLACEMENT_BALANCED && o->replicas)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "placement: replicas are for balanced, not for %s", kinds[o->kind]);
    return BT_OK;
}

static enum bt_status check_slots(const struct bt_placement_options *o, struct bt_error *error)
{
    uint64_t slots = (uint64_t)o->experts + o->replicas;
    if (o->groups == 0 || o->experts % o->groups)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "placement: balanced: %" PRIu32 " experts do not divide among "
                            "%" PRIu32 " groups",
                            o->experts, o->groups);
    if (slots > BT_PLACEMENT_SLOTS_MAX || slots > (uint64_t)o->experts * o->ranks)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "placement: balanced: %" PRIu32 " replicas of %" PRIu32 " experts are "
                            "too many for %" PRIu32 " ranks (limit %d slots)",
                            o->replicas, o->experts, o->ranks, BT_PLACEMENT_SLOTS_MAX);
    if (slots % o->ranks)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "placement: balanced: %" PRIu32 " experts and %" PRIu32 " replicas do "
                            "not divide among %" PRIu32 " ranks",
                            o->experts, o->replicas, o->ranks);
    return BT_OK;
}

static enum bt_status check_loads(const struct bt_placement_options *o, struct bt_error *error)
{
    if (!o->loads)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "placement: balanced needs loads");
    for (size_t i = 0; i < (size_t)o->layers * o->experts; i++) {
        if (o->loads[i] > BT_EXPERT_LOAD_MAX)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "placement: load of layer %zu, expert %zu is %" PRIu64
                                ", limit %" PRIu64,
                                i / o->experts, i % o->experts, o->loads[i], BT_EXPERT_LOAD_MAX);
    }
    const struct bt_placement *p = o->previous;
    if (p && (p->layers != o->layers || p->experts != o->experts || p->ranks != o->ranks ||
              p->machines != o->machines))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "placement: the previous one has other layers, experts, ranks or "
                            "machines");
    return BT_OK;
}

static enum bt_status check_options(const struct bt_placement_options *o, struct bt_error *error)
{
    enum bt_status status = check_sizes(o, error);
    if (status == BT_OK && o->kind == BT_PLACEMENT_BALANCED)
        status = check_slots(o, error);
    if (status == BT_OK && o->kind == BT_PLACEMENT_BALANCED)
        status = check_loads(o, error);
    return status;
}

/* ---- making it ---- */

static struct bt_placement *allocate(const struct bt_placement_options *o)
{
    size_t words = (size_t)o->layers * (o->experts + 1 + o->experts + o->replicas);
    struct bt_placement *placement = calloc(1, sizeof(*placement));
    if (!placement)
        return NULL;
    placement->layers = o->layers;
    placement->experts = o->experts;
    placement->ranks = o->ranks;
    placement->machines = o->machines;
    placement->layer = calloc(o->layers, sizeof(*placement->layer));
    placement->memory = calloc(words, sizeof(uint32_t));
    if (placement->layer && placement->memory)
        return placement;
    bt_placement_destroy(placement);
    return NULL;
}

void bt_placement_destroy(struct bt_placement *placement)
{
    if (!placement)
        return;
    free(placement->layer);
    free(placement->memory);
    free(placement);
}

/* Layer `layer` of the placement from held [experts][ranks]; `slots` of them are set. */
static void fill_layer(struct bt_placement *placement, uint32_t layer, uint32_t slots,
                       const uint8_t *held)
{
    uint32_t experts = placement->experts, count = 0;
    uint32_t *begin = (uint32_t *)placement->memory + (size_t)layer * (experts + 1 + slots);
    uint32_t *ranks = begin + experts + 1;
    for (uint32_t expert = 0; expert < experts; expert++) {
        begin[expert] = count;
        for (uint32_t rank = 0; rank < placement->ranks; rank++) {
            if (held[(size_t)expert * placement->ranks + rank])
                ranks[count++] = rank;
        }
        BT_ASSERT(count > begin[expert]);
    }
    begin[experts] = count;
    BT_ASSERT(count == slots);
    placement->layer[layer] = (struct bt_placement_layer){begin, ranks};
}

/* The same for every layer. */
static void hold_by_index(const struct bt_placement_options *o, uint8_t *held)
{
    uint32_t each = o->experts / o->ranks;
    memset(held, 0, (size_t)o->experts * o->ranks);
    for (uint32_t expert = 0; expert < o->experts; expert++) {
        bool contiguous = o->kind == BT_PLACEMENT_CONTIGUOUS;
        uint32_t rank = contiguous ? expert / each : expert % o->ranks;
        held[(size_t)expert * o->ranks + rank] = 1;
    }
}

static void hold_as(const struct bt_placement *placement, uint32_t layer, uint8_t *held)
{
    const struct bt_placement_layer *l = &placement->layer[layer];
    memset(held, 0, (size_t)placement->experts * placement->ranks);
    for (uint32_t expert = 0; expert < placement->experts; expert++) {
        for (uint32_t i = l->begin[expert]; i < l->begin[expert + 1]; i++)
            held[(size_t)expert * placement->ranks + l->ranks[i]] = 1;
    }
}

static struct bt_balance_shape shape_of(const struct bt_placement_options *o)
{
    uint32_t room = (o->experts + o->replicas) / o->ranks;
    bool whole = o->groups > 1 && o->groups % o->machines == 0 && room <= o->experts / o->machines;
    return (struct bt_balance_shape){
        .experts = o->experts,
        .ranks = o->ranks,
        .machines = whole ? o->machines : 1,
        .groups = o->groups,
        .room = room,
    };
}

/* held and before: [experts][ranks] */
static enum bt_status fill_balanced(const struct bt_placement_options *o, uint8_t *held,
                                    uint8_t *before, struct bt_placement *placement)
{
    struct bt_balance_shape shape = shape_of(o);
    struct bt_balance *balance = bt_balance_create(&shape);
    if (!balance)
        return BT_ERR_NO_MEMORY;
    for (uint32_t layer = 0; layer < o->layers; layer++) {
        if (o->previous)
            hold_as(o->previous, layer, before);
        bt_balance_layer(balance, o->loads + (size_t)layer * o->experts,
                         o->previous ? before : NULL, held);
        fill_layer(placement, layer, o->experts + o->replicas, held);
    }
    bt_balance_destroy(balance);
    return BT_OK;
}

enum bt_status bt_placement_create(const struct bt_placement_options *o, struct bt_error *error,
                                   struct bt_placement **ret_placement)
{
    enum bt_status status = check_options(o, error);
    if (status != BT_OK)
        return status;
    size_t cells = (size_t)o->experts * o->ranks;
    uint8_t *held = malloc(2 * cells);
    struct bt_placement *placement = allocate(o);
    if (!held || !placement) {
        status = BT_ERR_NO_MEMORY;
    } else if (o->kind == BT_PLACEMENT_BALANCED) {
        status = fill_balanced(o, held, held + cells, placement);
    } else {
        hold_by_index(o, held);
        for (uint32_t layer = 0; layer < o->layers; layer++)
            fill_layer(placement, layer, o->experts, held);
    }
    free(held);
    if (status != BT_OK) {
        bt_placement_destroy(placement);
        return bt_error_set(error, status, "placement: no memory");
    }
    *ret_placement = placement;
    return BT_OK;
}

/* ---- what it is like ---- */

/* The largest load of a rank and the sum of all. */
static void measure(const struct bt_placement *placement, uint32_t layer, const uint64_t *loads,
                    double *ret_largest, double *ret_total)
{
    const struct bt_placement_layer *l = &placement->layer[layer];
    double of_rank[BT_PLACEMENT_RANKS_MAX] = {0};
    BT_ASSERT(layer < placement->layers && placement->ranks <= BT_PLACEMENT_RANKS_MAX);
    *ret_largest = *ret_total = 0;
    for (uint32_t expert = 0; expert < placement->experts; expert++) {
        uint32_t copies = l->begin[expert + 1] - l->begin[expert];
        for (uint32_t i = l->begin[expert]; i < l->begin[expert + 1]; i++)
            of_rank[l->ranks[i]] += (double)loads[expert] / copies;
        *ret_total += (double)loads[expert];
    }
    for (uint32_t rank = 0; rank < placement->ranks; rank++)
        *ret_largest = of_rank[rank] > *ret_largest ? of_rank[rank] : *ret_largest;
}

double bt_placement_max_over_mean(const struct bt_placement *placement, uint32_t layer,
                                  const uint64_t *loads)
{
    double largest, total;
    measure(placement, layer, loads, &largest, &total);
    return total > 0 ? largest / (total / placement->ranks) : 1;
}

double bt_placement_imbalance(const struct bt_placement *placement, const uint64_t *loads)
{
    double largest = 0, total = 0;
    for (uint32_t layer = 0; layer < placement->layers; layer++) {
        double layer_largest, layer_total;
        measure(placement, layer, loads + (size_t)layer * placement->experts, &layer_largest,
                &layer_total);
        largest += layer_largest;
        total += layer_total;
    }
    return total > 0 ? largest / (total / placement->ranks) : 1;
}

static bool holds(const struct bt_placement_layer *layer, uint32_t expert, uint32_t rank)
{
    for (uint32_t i = layer->begin[expert]; i < layer->begin[expert + 1]; i++) {
        if (layer->ranks[i] == rank)
            return true;
    }
    return false;
}

uint32_t bt_placement_experts_of(const struct bt_placement *placement, uint32_t layer,
                                 uint32_t rank, uint32_t *ret_experts, uint32_t max)
{
    uint32_t count = 0;
    BT_ASSERT(layer < placement->layers && rank < placement->ranks);
    for (uint32_t expert = 0; expert < placement->experts; expert++) {
        if (!holds(&placement->layer[layer], expert, rank))
            continue;
        if (count < max)
            ret_experts[count] = expert;
        count++;
    }
    return count;
}

/* ---- rebalancing ---- */

bool bt_placement_pays(const struct bt_placement *from, const struct bt_placement *to,
                       const uint64_t *loads, double hysteresis)
{
    BT_ASSERT(hysteresis >= 0);
    return bt_placement_imbalance(from, loads) - bt_placement_imbalance(to, loads) > hysteresis;
}

void bt_placement_changes(const struct bt_placement *from, const struct bt_placement *to,
                          uint32_t layer, uint32_t rank, uint32_t *ret_load,
                          uint32_t *ret_load_count, uint32_t *ret_drop, uint32_t *ret_drop_count)
{
    uint32_t load = 0, drop = 0;
    BT_ASSERT(from->layers == to->layers && layer < to->layers);
    BT_ASSERT(from->experts == to->experts && from->ranks == to->ranks && rank < to->ranks);
    for (uint32_t expert = 0; expert < to->experts; expert++) {
        bool before = holds(&from->layer[layer], expert, rank);
        bool after = holds(&to->layer[layer], expert, rank);
        if (after && !before)
            ret_load[load++] = expert;
        if (before && !after)
            ret_drop[drop++] = expert;
    }
    *ret_load_count = load;
    *ret_drop_count = drop;
}
