/*
 * The arithmetic of balanced placements, a layer at a time. Inside common/parallel only; sizes were
 * checked by the caller. Deterministic: IEEE arithmetic in a fixed order, ties by index.
 */
#ifndef BATON_COMMON_PARALLEL_BALANCE_H
#define BATON_COMMON_PARALLEL_BALANCE_H

#include <stdbool.h>
#include <stdint.h>

/* What the largest load of a rank may be above the best that was found, for fewer moves. */
#define BT_BALANCE_SLACK 0.02

struct bt_balance_shape {
    uint32_t experts, ranks;
    uint32_t machines; /* 1, or divides groups and ranks */
    uint32_t groups;   /* divides experts */
    uint32_t room;     /* slots of a rank; at most the experts of a machine */
};

/* Work space of one layer after the other. */
struct bt_balance;
/* NULL: no memory. */
struct bt_balance *bt_balance_create(const struct bt_balance_shape *shape);
void bt_balance_destroy(struct bt_balance *balance);

/*
 * Fills held [experts][ranks] with 0 and 1. `previous` [experts][ranks], or NULL: what was there
 * before. It is changed in few places where that comes within BT_BALANCE_SLACK of an arrangement
 * that is made anew; else ranks (and machines) of the new one are named so that much of it stays.
 */
void bt_balance_layer(struct bt_balance *balance, const uint64_t *loads, const uint8_t *previous,
                      uint8_t *held);

#endif
