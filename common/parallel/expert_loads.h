/*
 * How often each expert was chosen, over a sliding window: counts of the last `windows` spans, each
 * about `span` rows long, so that what was long ago is forgotten. And the file that keeps them.
 *
 * One thread. All memory is taken at creation: layers * experts * windows * 8 bytes.
 */
#ifndef BATON_COMMON_PARALLEL_EXPERT_LOADS_H
#define BATON_COMMON_PARALLEL_EXPERT_LOADS_H

#include <stdint.h>

#include "common/base/status.h"
#include "common/parallel/placement.h"

#define BT_EXPERT_LOADS_WINDOWS_MAX 1024
#define BT_EXPERT_LOADS_SPAN_MAX    (UINT64_C(1) << 32) /* rows */

struct bt_expert_loads;
/* INVALID_ARGUMENT: a count that is 0 or beyond its limit (layers and experts: placement.h). */
enum bt_status bt_expert_loads_create(uint32_t layers, uint32_t experts, uint32_t windows,
                                      uint64_t span, struct bt_error *error,
                                      struct bt_expert_loads **ret_loads);
void bt_expert_loads_destroy(struct bt_expert_loads *loads);

/*
 * `begin` [experts + 1] as in struct bt_routing: picks of each expert, of `rows` rows. An addition
 * an expert: no allocation, no division. A span ends with the call that fills it.
 */
void bt_expert_loads_add(struct bt_expert_loads *loads, uint32_t layer, const uint32_t *begin,
                         uint32_t rows);
/* [layer][expert] of the whole window, the span that is being filled included. */
void bt_expert_loads_sum(const struct bt_expert_loads *loads, uint64_t *ret_loads);
/* Rows in the window, of the layer that has fewest. A full window has (windows - 1) * span. */
uint64_t bt_expert_loads_rows(const struct bt_expert_loads *loads);
/* Of one layer. Where only some rows have logits, the last one has fewer than the others. */
uint64_t bt_expert_loads_layer_rows(const struct bt_expert_loads *loads, uint32_t layer);

/*
 * JSON: {"version":1,"layers":L,"experts":E,"loads":[[…],…]}; written aside in the same directory,
 * synced, then renamed: readers see the old file or the new one, never a part. IO, NO_MEMORY.
 */
enum bt_status bt_expert_loads_save(const struct bt_expert_loads *loads, const char *path,
                                    struct bt_error *error);
/* The same of loads from elsewhere, as the sum over the ranks of a group: [layer][expert]. */
enum bt_status bt_expert_loads_write(const char *path, uint32_t layers, uint32_t experts,
                                     const uint64_t *loads, struct bt_error *error);
/*
 * [layer][expert] of the file. NOT_FOUND, IO (can't be read, not a regular file), NO_MEMORY;
 * INVALID_ARGUMENT names the file, the field and what is wrong with it. Not written on error.
 */
enum bt_status bt_expert_loads_read(const char *path, uint32_t layers, uint32_t experts,
                                    struct bt_error *error, uint64_t *ret_loads);

#endif
