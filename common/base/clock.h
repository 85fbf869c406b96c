/*
 * Time. Deadlines inside a process are monotonic nanoseconds; on the wire they travel as a
 * remaining time in milliseconds, so that clocks of machines need not agree.
 */
#ifndef BATON_COMMON_BASE_CLOCK_H
#define BATON_COMMON_BASE_CLOCK_H

#include <stdint.h>

#define BT_NS_PER_MS INT64_C(1000000)
#define BT_NS_PER_S  INT64_C(1000000000)
#define BT_NEVER_NS  INT64_MAX

/* CLOCK_MONOTONIC. Comparable between processes of one machine, and only there. */
int64_t bt_clock_now_ns(void);

/* CLOCK_REALTIME, for timestamps that people or clients read. */
int64_t bt_clock_unix_ns(void);

#endif
