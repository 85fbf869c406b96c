/*
 * A decode worker of several ranks: processes of baton-decode, and what they need around them in
 * this one: a router's registry, a prefill worker, RPC clients and a Steps stream of each rank. The
 * processes end with this one, and with the test.
 */
#ifndef BATON_TESTS_UNIT_DECODE_GROUP_H
#define BATON_TESTS_UNIT_DECODE_GROUP_H

#include <sys/types.h>

#include "proto/registry.pb-c.h"
#include "tests/unit/decode/cluster.h"

#define MAX_RANKS      4
#define MAX_RANK_FLAGS 16

struct rank {
    pid_t pid;
    bool exited;
    int exit_status; /* of waitpid */
    char worker_id[32], endpoint[128];
    Baton__V1__GroupMember member; /* as registered, but for the name */
    char member_name[32];
    bool registered, draining, deregistered;
    struct cluster cluster; /* loop, prefill worker, this rank as to_decode */
};

struct group {
    uint32_t size;
    int64_t turn_ns; /* the end of the last turn */
    bool was_away; /* between two turns after a signal, almost as long as ranks wait for answers */
    char directory[64];
    struct bt_loop *loop;
    struct bt_model *model;
    struct bt_rpc_server *registry;
    struct pf_worker *prefill;
    struct bt_rpc_client *to_prefill;
    struct rank ranks[MAX_RANKS];
};

/* `flags`: more of each rank, NULL at the end. All ranks are ready after it. */
void group_open(struct group *group, uint32_t size, const char *const *flags);
/* Of two ranks the first alone, which listens for the other one. */
void group_open_one(struct group *group);
/* Kills what still runs. */
void group_close(struct group *group);

/* Runs the loop until `done` or 90 s, which fail the test. */
#define group_until(group, done)                                                                   \
    do {                                                                                           \
        int64_t until_ns_ = bt_clock_now_ns() + 90 * BT_NS_PER_S;                                  \
        while (!(done)) {                                                                          \
            assert_true(bt_clock_now_ns() < until_ns_);                                            \
            group_turn(group);                                                                     \
        }                                                                                          \
    } while (0)
/* To its process; from then on it is noted whether this one listens. */
void group_signal(struct group *group, uint32_t rank, int signal);
/* What comes back from a group that leaves does so when the rank has said goodbye, unless nobody
 * listened for long. */
void group_turn(struct group *group);

/* Waits until all but `except` (or size) have ended, with this status. */
void group_ends(struct group *group, uint32_t except, int exit_code);
/* A metric of a rank: `name` with all its labels' text containing `label` ("": any). */
double group_metric(struct group *group, uint32_t rank, const char *name, const char *label);

#endif
