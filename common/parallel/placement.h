/*
 * Which ranks hold which experts, and where they should be by how often they are hit.
 *
 *     contiguous    expert / (experts / ranks): neighbours together
 *     round-robin   expert % ranks: the default
 *     balanced      from measured loads (expert_loads.h); hot experts on several ranks
 *
 * Pure: no I/O, no clock, the same result for the same input. A placement does not change once it
 * is made, so any thread may read it.
 */
#ifndef BATON_COMMON_PARALLEL_PLACEMENT_H
#define BATON_COMMON_PARALLEL_PLACEMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

#define BT_PLACEMENT_LAYERS_MAX  1024
#define BT_PLACEMENT_EXPERTS_MAX 4096
#define BT_PLACEMENT_RANKS_MAX   1024
#define BT_PLACEMENT_SLOTS_MAX   16384 /* of one layer: experts and replicas */
/* Picks of one expert in a window: what is beyond comes from a broken file, not from traffic. */
#define BT_EXPERT_LOAD_MAX (UINT64_C(1) << 48)

/* One layer: expert e is on ranks[begin[e]] … ranks[begin[e + 1] - 1], ascending, at least one. */
struct bt_placement_layer {
    const uint32_t *begin; /* [experts + 1] */
    const uint32_t *ranks;
};

struct bt_placement {
    uint32_t layers, experts, ranks, machines;
    struct bt_placement_layer *layer; /* [layers] */
    void *memory;                     /* of all of them */
};

enum bt_placement_kind {
    BT_PLACEMENT_CONTIGUOUS,
    BT_PLACEMENT_ROUND_ROBIN,
    BT_PLACEMENT_BALANCED,
};
/* "contiguous", "round-robin", "balanced"; INVALID_ARGUMENT lists them. */
enum bt_status bt_placement_kind_parse(const char *text, struct bt_error *error,
                                       enum bt_placement_kind *ret_kind);

struct bt_placement_options {
    enum bt_placement_kind kind;
    /* ranks: a multiple of machines; those of a machine are neighbours. contiguous: experts: a
     * multiple of ranks. */
    uint32_t layers, experts, ranks, machines;
    /* ---- balanced only ---- */
    uint32_t groups; /* n_group of the router: groups go to machines whole when they can; 1: none */
    /* Slots a layer beyond one for each expert, a multiple of ranks together with `experts`, so
     * that all ranks hold equally many: at most `experts` each. */
    uint32_t replicas;
    const uint64_t *loads; /* [layer][expert] picks, BT_EXPERT_LOAD_MAX at most */
    /* What it will replace, of the same layers, experts, ranks and machines; NULL: nothing. Few
     * weights move: a layer keeps what it has but for a few exchanges where that comes within 2 %
     * of a placement made anew; else ranks get those of the new sets that are most like theirs. */
    const struct bt_placement *previous;
};

/*
 * balanced, hierarchical: groups of experts to machines by load (largest first, to the least
 * loaded with room), hot experts replicated inside their machine, replicas packed on its ranks.
 * Groups stay whole when there are several, their count is a multiple of the machines, and the
 * slots of a rank are not more than the experts of a machine; else all ranks are as one machine.
 * All ranks hold (experts + replicas) / ranks. An expert is on a rank at most once. Loads that are
 * all 0 count as equal ones.
 *
 * INVALID_ARGUMENT names what does not divide or is out of range; NO_MEMORY.
 */
enum bt_status bt_placement_create(const struct bt_placement_options *options,
                                   struct bt_error *error, struct bt_placement **ret_placement);
void bt_placement_destroy(struct bt_placement *placement);

/* Largest load of a rank over the mean, an expert's load spread evenly over its replicas. `loads`
 * of the layer [experts]; 1 when they are all 0. */
double bt_placement_max_over_mean(const struct bt_placement *placement, uint32_t layer,
                                  const uint64_t *loads);

/* The ranks' experts of a layer, ascending; returns how many, fills the first max. */
uint32_t bt_placement_experts_of(const struct bt_placement *placement, uint32_t layer,
                                 uint32_t rank, uint32_t *ret_experts, uint32_t max);

/* ---- rebalancing while serving ---- */

/*
 * Largest load over the mean of all layers together: the sum of their largest loads over the sum of
 * their means, as every layer waits for its slowest rank. loads [layer][expert]; 1 when all are 0.
 */
double bt_placement_imbalance(const struct bt_placement *placement, const uint64_t *loads);

/*
 * Whether to move from `from` to `to`: when the imbalance falls by more than `hysteresis` (0.1: a
 * tenth of the mean load; not negative). A window that holds few picks shows skew that is not
 * there: ask only when it is full (bt_expert_loads_rows).
 */
bool bt_placement_pays(const struct bt_placement *from, const struct bt_placement *to,
                       const uint64_t *loads, double hysteresis);

/*
 * Experts of a layer that `rank` must have loaded before the switch from `from` to `to`, and those
 * that it may drop after it; ascending. Room for `experts` each. Both placements are of the same
 * layers, experts and ranks.
 */
void bt_placement_changes(const struct bt_placement *from, const struct bt_placement *to,
                          uint32_t layer, uint32_t rank, uint32_t *ret_load,
                          uint32_t *ret_load_count, uint32_t *ret_drop, uint32_t *ret_drop_count);

#endif
