/* Which ranks are on which machine. Plain data; internal to this folder. */
#ifndef BATON_COMMON_PARALLEL_RANKS_H
#define BATON_COMMON_PARALLEL_RANKS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/parallel/group.h"

/* The ranks of a machine are neighbours: first[m] … first[m] + count[m] - 1. */
struct bt_ranks {
    uint32_t rank, size;
    uint32_t machines;
    uint32_t machine_of[BT_GROUP_RANKS_MAX];
    uint32_t first[BT_GROUP_RANKS_MAX], count[BT_GROUP_RANKS_MAX]; /* [machines] */
};

/* together[r]: rank r shares memory with rank r - 1. */
void bt_ranks_init(struct bt_ranks *ranks, uint32_t rank, uint32_t size, const bool *together);

static inline uint32_t bt_ranks_machine(const struct bt_ranks *ranks)
{
    return ranks->machine_of[ranks->rank];
}

static inline bool bt_ranks_near(const struct bt_ranks *ranks, uint32_t rank)
{
    return ranks->machine_of[rank] == bt_ranks_machine(ranks);
}

/* Who takes in what `source` sends to `machine`, for all ranks there. */
static inline uint32_t bt_ranks_relay(const struct bt_ranks *ranks, uint32_t source,
                                      uint32_t machine)
{
    uint32_t local = source - ranks->first[ranks->machine_of[source]];
    return ranks->first[machine] + local % ranks->count[machine];
}

#endif
