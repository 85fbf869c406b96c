/* The layouts that are tried, and copies of experts that make EP divide them. Inside common/planner
 * only. */
#ifndef BATON_COMMON_PLANNER_SEARCH_H
#define BATON_COMMON_PLANNER_SEARCH_H

#include "common/planner/planner.h"

struct bt_plan_layouts {
    struct bt_plan_pool pools[BT_PLAN_LAYOUTS_MAX]; /* `instances` is 0 */
    size_t count;
};

/*
 * Instances of 1, 2, 4, … cards and of whole nodes, up to the limit: TP in powers of two that
 * divides heads and cards, DP the rest, EP all cards (with copies of experts where it does not
 * divide them). Without experts an instance is one attention group. Where the question names a
 * layout, that alone.
 */
void bt_plan_layouts_list(const struct bt_plan_question *question,
                          const struct bt_plan_hardware *hardware, enum bt_plan_phase phase,
                          struct bt_plan_layouts *ret_layouts);

struct bt_plan_layout bt_plan_layout_given(const struct bt_plan_question *question,
                                           enum bt_plan_phase phase);
uint32_t bt_plan_layout_copies(const struct bt_plan_question *question,
                               const struct bt_plan_layout *layout);

#endif
