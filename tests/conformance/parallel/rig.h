/*
 * Ranks for tests: a process each, forked before anything else happens, or a thread each. Every
 * rank ends with its parent and with an alarm; what still runs when the case is over is killed by
 * its pid.
 */
#ifndef BATON_TESTS_CONFORMANCE_PARALLEL_RIG_H
#define BATON_TESTS_CONFORMANCE_PARALLEL_RIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/parallel/group.h"

#define CASE_SECONDS 240 /* machines may be slow */

/* In a rank: cmocka is in the parent alone. */
#define CHECK(expression) ((expression) ? (void)0 : check_failed(#expression, __FILE__, __LINE__))
_Noreturn void check_failed(const char *expression, const char *file, int line);

extern const char *transport; /* of this run: "self", "ucx", "nccl" */
extern bool ranks_are_threads;
extern uint64_t seed;

enum rank_end { RANK_OK, RANK_KILLED, RANK_STOPPED };

typedef void rank_fn(const struct bt_group_options *options, const void *context);

struct rig_case {
    uint32_t size, ranks_per_machine;
    struct bt_group_limits limits;
    int64_t wait_timeout_ns; /* 0: long */
    rank_fn *fn;
    const void *context;
    uint32_t victim; /* that ends otherwise than well; size: none */
    enum rank_end victim_end;
};

/* Runs all ranks; fails the cmocka test unless all end as they should. */
void run_ranks(const struct rig_case *rig);

/* A port that nobody else is given while this process lives. "tcp://127.0.0.1:PORT". */
void reserve_endpoint(char *ret_endpoint, size_t size);

/* Buffers that the transport can work on: of the device, and of the host as well. */
void *buffer_alloc(size_t bytes);
void buffer_free(void *buffer);
/* What is in memory that the host may not be able to read (arrivals): a buffer of its own. */
void *buffer_copy(const void *data, size_t bytes);

struct bt_group *join(const struct bt_group_options *options);

/* The group's calls go to a stream of this rank's device from here on; what was queued is done. */
void queue_calls(struct bt_group *group);
void stop_queueing(struct bt_group *group);
bool calls_are_queued(void);
/* Until what was queued is done; nothing where calls are done on return. */
enum bt_status await_calls(struct bt_group *group);

struct bt_graph;
/* What is queued between the first two is not done: it is a graph, which is then done each time. */
void record_calls(void);
struct bt_graph *recorded_calls(void);
void repeat_calls(struct bt_graph *graph);
void forget_calls(struct bt_graph *graph);

/* ---- the same numbers on every rank ---- */

/* In [-4, 4), all bits random. */
float random_float(uint64_t stream, uint64_t index);
uint32_t random_below(uint64_t stream, uint64_t index, uint32_t below);

#endif
