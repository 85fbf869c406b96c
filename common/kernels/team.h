/*
 * A team of threads that share the parts of an operation. The thread that runs is one of them; the
 * others wait: they spin for a moment, then sleep, so that a core they share with another process
 * is not taken from it. Between two runs nothing is allocated and nothing moves between cores.
 */
#ifndef BATON_COMMON_KERNELS_TEAM_H
#define BATON_COMMON_KERNELS_TEAM_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

#define BT_TEAM_MAX_THREADS 256

struct bt_team;

struct bt_team_options {
    uint32_t threads; /* the caller's included; 0: one for each cpu of `cpus` */
    const char *cpus; /* "0-3,8": thread i is pinned to the i-th of them; NULL: not pinned */
};

/* INVALID_ARGUMENT: a list that can't be read, cpus that this process may not use, or more threads
 * than cpus given. The calling thread becomes thread 0, and is pinned too. */
enum bt_status bt_team_create(const struct bt_team_options *options, struct bt_error *error,
                              struct bt_team **ret_team);
void bt_team_destroy(struct bt_team *team);

/*
 * Thread 0 may change between runs: who was it leaves and may use all cpus of the team again, as
 * threads of control beside it should; who is it from now on enters and is pinned. NULL is fine.
 */
void bt_team_leave(struct bt_team *team);
void bt_team_enter(struct bt_team *team);

/* 1 for NULL. */
uint32_t bt_team_threads(const struct bt_team *team);

/* Puts memory that was not touched yet near to the cpus of a pinned team; see cpus.h. Returns the
 * number of memory nodes that it is spread over. */
uint32_t bt_team_place_memory(const struct bt_team *team, void *start, size_t bytes);

/* `thread` is 0 … threads - 1, for scratch of its own; which thread gets a part is not fixed, so no
 * result may depend on it. */
typedef void bt_team_fn(void *context, uint32_t part, uint32_t thread);

/* Runs fn for every part 0 … parts - 1 and returns when all are done. Parts start in ascending
 * order. team NULL: one after the other here. Not from within fn. */
void bt_team_run(struct bt_team *team, bt_team_fn *fn, void *context, uint32_t parts);

#endif
