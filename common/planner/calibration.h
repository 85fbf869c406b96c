/*
 * How near a deployment comes to its cards' peaks, and what the estimates assume. Measured values
 * come from a JSON file with these keys; what it leaves out keeps its default.
 */
#ifndef BATON_COMMON_PLANNER_CALIBRATION_H
#define BATON_COMMON_PLANNER_CALIBRATION_H

#include <stdbool.h>

#include "common/base/status.h"
#include "common/planner/resources.h"

/* How the three times of a step add up. */
enum bt_plan_overlap {
    BT_PLAN_OVERLAP_NONE, /* compute + memory + network, as the published tables */
    BT_PLAN_OVERLAP_CARD, /* max(compute, memory) + network */
    BT_PLAN_OVERLAP_ALL,  /* max of the three */
    BT_PLAN_OVERLAPS,
};

struct bt_plan_calibration {
    double prefill_mfu, decode_mfu;             /* of the peak, (0, 1] */
    double prefill_bandwidth, decode_bandwidth; /* of the memory's, (0, 1] */
    double inside_link, between_link;           /* of the links', (0, 1] */
    double step_overhead_s;                     /* of each decode step and each chunk of a prompt */
    double sequence_overhead_s;                 /* of each sequence of a group in a decode step */
    double request_overhead_s;                  /* of TTFT, and of no card's time */
    double score_share;  /* of attention's scores that memory sees; 0: fused attention */
    double expert_skew;  /* work of the busiest card over the mean, in experts; from 1 */
    double memory_limit; /* of a card's memory that may be in use */
    enum bt_plan_routing routing;
    enum bt_plan_overlap overlap;
    bool measured;    /* from a file */
    char source[160]; /* of the file's "source": when, where, how */
};

/* Peaks as they are, nothing overlapped, scores in memory, k' on average: the published tables. */
struct bt_plan_calibration bt_plan_calibration_published(void);

/*
 * Not measured: MFU 0.6 (below it compute is not saturated), memory 0.85, the memory's and the
 * network's whole bandwidth, half of the node's links (data sheets add both directions up), fused
 * attention, experts read by expectation, nothing overlapped.
 */
struct bt_plan_calibration bt_plan_calibration_default(void);

/* Keys are the fields' names; "routing" is expected, average or uneven, "overlap" none, card or
 * all. Unknown keys and values out of range are INVALID_ARGUMENT with file and key. */
enum bt_status bt_plan_calibration_load(const char *path, struct bt_error *error,
                                        struct bt_plan_calibration *ret_calibration);

const char *bt_plan_routing_name(enum bt_plan_routing routing);
const char *bt_plan_overlap_name(enum bt_plan_overlap overlap);

#endif
