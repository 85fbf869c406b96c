/*
 * Items into bins with equally many places; an item may have several copies that share its weight.
 * No bin has an item twice, and the heaviest bin is light: largest first to the lightest bin, then
 * exchanges with the heaviest bin for as long as they help. Inside common/parallel only.
 */
#ifndef BATON_COMMON_PARALLEL_PACKING_H
#define BATON_COMMON_PARALLEL_PACKING_H

#include <stdint.h>

struct bt_packing {
    uint32_t items, bins, room; /* room <= items <= bins * room <= items * bins */
    double *whole;              /* [items] weight of all copies together, not negative */
    uint32_t *copies;           /* [items] 1 … bins; bins * room together */
    uint32_t *slot;             /* [bins][room] items, in no order: the result */
    /* work space */
    double *weight;   /* [items] of one copy */
    uint32_t *order;  /* [items] */
    double *load;     /* [bins] */
    uint32_t *filled; /* [bins] */
    uint8_t *holds;   /* [items][bins] */
};

/* Every place beyond one for each item goes to the item whose copies weigh most: the largest is as
 * small as it can be. Among equals (all of them, when nothing is known) to one that has fewest. */
void bt_packing_replicate(struct bt_packing *packing);

/* Any copies will do; some of them may change places with others' in the end. */
void bt_packing_solve(struct bt_packing *packing);

/* Starts from the slots that are there (no bin has an item twice, every item is somewhere), and
 * stops as soon as no bin weighs more than `enough`: few places change. */
void bt_packing_improve(struct bt_packing *packing, double enough);

/* Of the heaviest bin. */
double bt_packing_largest(const struct bt_packing *packing);

#endif
