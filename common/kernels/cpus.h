/*
 * The cpus that a team runs on, and the memory that is near to them. Immutable; any thread.
 */
#ifndef BATON_COMMON_KERNELS_CPUS_H
#define BATON_COMMON_KERNELS_CPUS_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

#define BT_CPUS_MAX 1024

struct bt_cpus;

/*
 * "0-3,8": numbers as the kernel gives them, each once; the order is kept. INVALID_ARGUMENT for a
 * list that can't be read, or a cpu that this process may not use, with the place.
 */
enum bt_status bt_cpus_create(const char *list, struct bt_error *error, struct bt_cpus **ret_cpus);
void bt_cpus_destroy(struct bt_cpus *cpus); /* NULL is fine */

uint32_t bt_cpus_count(const struct bt_cpus *cpus);
/* The `index`-th of the list. */
uint32_t bt_cpus_number(const struct bt_cpus *cpus, uint32_t index);

/* The calling thread runs on the `index`-th cpu alone, or on any of the list. */
void bt_cpus_pin(const struct bt_cpus *cpus, uint32_t index);
void bt_cpus_pin_to_all(const struct bt_cpus *cpus);

/*
 * Asks that pages of the range, not touched yet, come from the memory of the list's nodes, in turn
 * where they are several. Advice: on a machine of one node, or where the kernel refuses, nothing
 * happens. Returns the number of nodes.
 */
uint32_t bt_cpus_place_memory(const struct bt_cpus *cpus, void *start, size_t bytes);

/* The same for the cpus that the calling thread may run on (those of a team after bt_team_leave).
 * Pages that are there already move, if they can. */
uint32_t bt_cpus_place_memory_near_thread(void *start, size_t bytes);

#endif
