/*
 * The identity of a process that outlives its pid: what is needed to prove that a peer on this
 * machine is dead, as opposed to silent. And the start-up chores that all programs share.
 */
#ifndef BATON_COMMON_BASE_PROCESS_H
#define BATON_COMMON_BASE_PROCESS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"

#define BT_HOST_ID_SIZE 80

struct bt_process_id {
    char host[BT_HOST_ID_SIZE]; /* boot id of the kernel + inode of the pid namespace */
    int64_t pid;                /* in that namespace */
    uint64_t start_ticks;       /* field 22 of /proc/PID/stat */
};

enum bt_process_state { BT_PROCESS_ALIVE, BT_PROCESS_DEAD, BT_PROCESS_UNKNOWN };

enum bt_status bt_process_self(struct bt_error *error, struct bt_process_id *ret_id);

/* Of a process of this namespace that the caller knows to be there (its child). */
enum bt_status bt_process_of(int64_t pid, struct bt_error *error, struct bt_process_id *ret_id);

/*
 * DEAD only with proof: same host id and no process with that pid and start time is left (a zombie
 * counts as dead: it can not run). UNKNOWN for a process of another host or namespace.
 */
enum bt_process_state bt_process_probe(const struct bt_process_id *id);

/* True when both run under one kernel and pid namespace. */
bool bt_process_same_host(const struct bt_process_id *a, const struct bt_process_id *b);

/*
 * Ends this process (SIGTERM) when its parent ends, for `batonctl up --foreground` and tests.
 * Returns BT_ERR_PEER_LOST when the parent is gone already.
 */
enum bt_status bt_process_die_with_parent(void);

/*
 * Between the two, SIGINT and SIGTERM do to the process what they do by default, whatever threads
 * block: it starts, waits for others, and has nothing yet to end in order. NO_MEMORY: no thread.
 */
enum bt_status bt_process_start_begin(struct bt_error *error);
void bt_process_start_end(void); /* harmless without the other */

/* As many descriptors as the hard limit allows: each peer and client is one, whom a low soft limit
 * would turn away. */
void bt_process_raise_file_limit(void);

#endif
