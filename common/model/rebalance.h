/*
 * How often the experts of a group are chosen, and experts that move between its ranks while they
 * serve. Inside common/model: rank.h is the way to it.
 *
 * All ranks come to the same decisions: they are made of the words that all have seen, and of the
 * sum of all ranks' loads. When rank 0 asks, the ranks exchange their loads between two steps. A
 * thread of each then works out the placement that follows from them, and loads what its rank
 * lacks, one layer at a time. Between two steps for which all ranks say that they have the layer,
 * all switch to it. Where one can't load it, all stop there: every layer has the old placement or
 * the new one, the same on all ranks.
 */
#ifndef BATON_COMMON_MODEL_REBALANCE_H
#define BATON_COMMON_MODEL_REBALANCE_H

#include "common/model/forward.h"

#define BT_REBALANCE_WORDS 2 /* of each agreement */

/*
 * What the imbalance must fall by. A full window of V3 tells the load of a rank to within 0.5 %, so
 * that the largest of many seems 1 % or 2 % too large; and weights that move cost memory bandwidth
 * for which a step pays. Below a twentieth nobody would notice what was gained.
 */
#define BT_REBALANCE_HYSTERESIS 0.05

struct bt_rebalance_options {
    uint32_t rank, size;
    struct bt_group *group;        /* NULL: alone */
    struct bt_expert_loads *loads; /* of this rank; borrowed, as is all that follows */
    uint32_t layers, experts;
    uint64_t full_rows; /* of all ranks in a layer: with fewer it stays as it is */
    /* Where the experts are at the start; NULL: all ranks have all. */
    const struct bt_placement *placement;
    /* Of new placements, but for loads and previous. Another kind than balanced: nothing moves. */
    struct bt_placement_options to;
    int64_t interval_ns; /* rank 0: between two exchanges of loads; 0: none */
    const char *file;    /* rank 0: NULL: none */
    /* [layers][experts] of an earlier life: in the file they count for what the window lacks. NULL:
     * none. */
    const uint64_t *earlier;
};

struct bt_rebalance;
enum bt_status bt_rebalance_create(const struct bt_rebalance_options *options,
                                   struct bt_error *error, struct bt_rebalance **ret_rebalance);
/* Ends what is going on as soon as a tensor is loaded; rank 0 writes the file. NULL is fine. */
void bt_rebalance_destroy(struct bt_rebalance *rebalance);

/* The model and pass whose experts are switched. Starts the thread. */
enum bt_status bt_rebalance_start(struct bt_rebalance *rebalance, struct bt_model *model,
                                  struct bt_forward *forward, struct bt_error *error);

/* See rank.h. */
void bt_rebalance_words(struct bt_rebalance *rebalance, int64_t now_ns,
                        uint64_t ret_words[BT_REBALANCE_WORDS]);
bool bt_rebalance_acts(const struct bt_rebalance *rebalance, const uint64_t *words,
                       uint32_t stride);
enum bt_status bt_rebalance_agreed(struct bt_rebalance *rebalance, const uint64_t *words,
                                   uint32_t stride, struct bt_error *error);

struct bt_rebalance_report {
    double imbalance;     /* of the placement in use, by the loads of the last exchange */
    uint64_t moves;       /* experts that this rank loaded and took into use */
    uint64_t done, ended; /* rebalances that came to their end; that a rank's fault ended before */
};
/* Any thread. ret_loads [layers][experts] of the last exchange; may be NULL. */
void bt_rebalance_look(struct bt_rebalance *rebalance, struct bt_rebalance_report *ret_report,
                       uint64_t *ret_loads);

#endif
