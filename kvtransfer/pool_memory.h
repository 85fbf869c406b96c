/* Plain memory for a pool, of which the kernel says beforehand whether it has it. */
#ifndef BATON_KVTRANSFER_POOL_MEMORY_H
#define BATON_KVTRANSFER_POOL_MEMORY_H

#include <stddef.h>

#include "common/base/status.h"

/* A pool is touched as a whole at once: one that does not fit stalls the machine first. NO_MEMORY:
 * more than the machine, or a control group, could give without swapping. */
enum bt_status kvt_pool_memory_check(size_t bytes, struct bt_error *error);

/* Puts a pool near to the cpus that the calling thread may run on, spread over their memory nodes;
 * advice, best before it is touched or registered. */
void kvt_pool_memory_place(void *base, size_t bytes);

/* Page-aligned, zeroed, placed, in huge pages where there are some; after a check. munmap frees it.
 */
enum bt_status kvt_pool_memory_map(size_t bytes, struct bt_error *error, void **ret_base);

#endif
