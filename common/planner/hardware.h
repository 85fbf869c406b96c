/*
 * Accelerators: what a card has of the four resources, each figure with where it comes from. The
 * catalogue is accelerators.json, built in; a file of the same format adds entries and replaces
 * those of the same name.
 */
#ifndef BATON_COMMON_PLANNER_HARDWARE_H
#define BATON_COMMON_PLANNER_HARDWARE_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/planner/resources.h"

/* Figures of a card, in single units: bytes, bytes/s, operations/s. */
enum bt_plan_figure {
    BT_PLAN_PEAK,                                    /* + enum bt_plan_number; 0: not there */
    BT_PLAN_MEMORY = BT_PLAN_PEAK + BT_PLAN_NUMBERS, /* of one card */
    BT_PLAN_MEMORY_BANDWIDTH,
    BT_PLAN_RESERVE, /* runtime, buffers, captured graphs */
    BT_PLAN_NODE_CARDS,
    BT_PLAN_INSIDE,  /* of one card, to others of its node; as data sheets say, both directions */
    BT_PLAN_BETWEEN, /* of one card, to other nodes; one direction */
    BT_PLAN_PRICE,   /* of a card for an hour: a relative weight, to be edited */
    BT_PLAN_CORES,   /* a CPU's: its peaks are those of one core times this; 1 else */
    BT_PLAN_FIGURES,
};

#define BT_PLAN_HARDWARE_MAX 64

struct bt_plan_hardware {
    char name[32];  /* "h20" */
    char title[64]; /* "NVIDIA H20 96GB" */
    double figure[BT_PLAN_FIGURES];
    char source[BT_PLAN_FIGURES][160]; /* "" where the figure is not there */
};

struct bt_plan_catalogue {
    struct bt_plan_hardware entries[BT_PLAN_HARDWARE_MAX];
    size_t count;
};

/* The built-in entries, and those of `path` (may be NULL) over them. */
enum bt_status bt_plan_catalogue_load(const char *path, struct bt_error *error,
                                      struct bt_plan_catalogue *ret_catalogue);

/* NOT_FOUND with the names there are. Valid as long as the catalogue. */
enum bt_status bt_plan_catalogue_find(const struct bt_plan_catalogue *catalogue, const char *name,
                                      struct bt_error *error,
                                      const struct bt_plan_hardware **ret_hardware);

/* The same machine with so many cores of its kind. */
void bt_plan_hardware_set_cores(struct bt_plan_hardware *hardware, uint32_t cores);

/* Peak for products of `number`, or of the next wider ones that the card has: fp4, fp8, int8, bf16.
 * fp8 and int8 stand in for each other. */
double bt_plan_hardware_peak(const struct bt_plan_hardware *hardware, enum bt_plan_number number,
                             enum bt_plan_number *ret_used);

/* "bf16", "fp8", "int8", "fp4"; the key of a figure in the file, "memory_gb"; and what the file's
 * values are counted in, 1e9. */
const char *bt_plan_number_name(enum bt_plan_number number);
const char *bt_plan_figure_key(enum bt_plan_figure figure);
double bt_plan_figure_unit(enum bt_plan_figure figure);

#endif
