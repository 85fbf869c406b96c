/* How much memory a process here may still take. */
#ifndef BATON_COMMON_BASE_MEMORY_H
#define BATON_COMMON_BASE_MEMORY_H

#include <stdint.h>

/*
 * Bytes that are free or can be had by dropping file pages: what the kernel says of the machine, or
 * less where a control group (v2, v1) has a limit. UINT64_MAX where nothing says.
 */
uint64_t bt_memory_available_bytes(void);

/* The same with /proc and /sys below `root`, for tests. */
uint64_t bt_memory_available_below(const char *root);

#endif
