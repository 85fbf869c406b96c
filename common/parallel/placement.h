/*
 * Which ranks hold which experts, and where they should be by how often they are hit.
 *
 *     contiguous    expert / (experts / ranks): neighbours together
 *     round-robin   expert % ranks: the default
 *     balanced      from measured loads; hot experts on several ranks
 *
 * Pure: no I/O but the load file, no clock, the same result for the same input.
 */
#ifndef BATON_COMMON_PARALLEL_PLACEMENT_H
#define BATON_COMMON_PARALLEL_PLACEMENT_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

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
    uint32_t layers, experts, ranks, machines; /* ranks: a multiple of machines */
    uint32_t groups; /* n_group of the router: groups go to machines whole when they can; 1: none */
    /* balanced: slots a layer beyond one for each expert, a multiple of ranks together with
     * `experts`, so that all ranks hold equally many. */
    uint32_t replicas;
    const uint64_t *loads; /* [layer][expert] picks; balanced only */
};

/*
 * balanced, hierarchical: groups of experts to machines by load (largest first, to the least
 * loaded with room), hot experts replicated inside their machine, replicas packed on its ranks. All
 * ranks hold (experts + replicas) / ranks. An expert is on a rank at most once.
 * INVALID_ARGUMENT names what does not divide.
 */
enum bt_status bt_placement_create(const struct bt_placement_options *options,
                                   struct bt_error *error, struct bt_placement **ret_placement);
void bt_placement_destroy(struct bt_placement *placement);

/* Largest load of a rank over the mean, an expert's load spread evenly over its replicas. */
double bt_placement_max_over_mean(const struct bt_placement *placement, uint32_t layer,
                                  const uint64_t *loads);

/* The ranks' experts of a layer, ascending; returns how many, fills the first max. */
uint32_t bt_placement_experts_of(const struct bt_placement *placement, uint32_t layer,
                                 uint32_t rank, uint32_t *ret_experts, uint32_t max);

/*
 * Loads over a sliding window: counts of the last `windows` spans, each `span` rows long, so that
 * what was long ago is forgotten.
 */
struct bt_expert_loads;
enum bt_status bt_expert_loads_create(uint32_t layers, uint32_t experts, uint32_t windows,
                                      uint64_t span, struct bt_error *error,
                                      struct bt_expert_loads **ret_loads);
void bt_expert_loads_destroy(struct bt_expert_loads *loads);
/* `begin` as in struct bt_routing: picks of each expert, of `rows` rows. No allocation. */
void bt_expert_loads_add(struct bt_expert_loads *loads, uint32_t layer, const uint32_t *begin,
                         uint32_t rows);
/* [layer][expert] */
void bt_expert_loads_sum(const struct bt_expert_loads *loads, uint64_t *ret_loads);
/* JSON: {"version":1,"layers":L,"experts":E,"loads":[[…],…]}; written aside, then renamed. */
enum bt_status bt_expert_loads_save(const struct bt_expert_loads *loads, const char *path,
                                    struct bt_error *error);
/* [layer][expert] of the file; INVALID_ARGUMENT names the file and what is wrong with it. */
enum bt_status bt_expert_loads_read(const char *path, uint32_t layers, uint32_t experts,
                                    struct bt_error *error, uint64_t *ret_loads);

#endif
