/*
 * A prefill worker of several ranks, each a real baton-prefill, before a real decode rank; router
 * is the test. Whatever happens, the processes end with it.
 */
#ifndef BATON_TESTS_UNIT_PREFILL_RANKS_H
#define BATON_TESTS_UNIT_PREFILL_RANKS_H

#include <sys/types.h>

#include "proto/registry.pb-c.h"
#include "tests/unit/decode/cluster.h"

#define RANKS_MAX  4
#define KV_PROMPTS 8

struct ranks_options {
    uint32_t size;
    bool no_expert_parallel;
    const char *group_timeout; /* NULL: 60s */
    const char *chunk;         /* NULL: 128 */
    const char *pages;         /* of a prefill rank's pool; NULL: 64 */
    uint32_t lease_ms;         /* 0: 5000 */
    enum bt_dtype kv_dtype;    /* f32, bf16 or f8_e4m3 */
    bool no_prefix_caching;
    uint32_t heartbeat_ms; /* 0: 500 */
};

#define RANKS_PAGES_MAX 256

/* What a router that asks for all of it would know. */
struct ranks_prefixes {
    uint64_t version;
    uint64_t block[RANKS_PAGES_MAX];  /* by page; 0: nothing */
    uint32_t parent[RANKS_PAGES_MAX]; /* likewise */
};

struct ranks {
    struct cluster cluster; /* without a prefill worker of its own */
    struct ranks_options options;
    char dir[64];
    pid_t pids[RANKS_MAX]; /* 0: ended */
    int exits[RANKS_MAX];  /* as of waitpid */
    struct bt_rpc_server *registry;
    uint32_t registrations, goodbyes;
    struct ranks_prefixes *prefixes; /* as the heartbeats tell; NULL: not wanted */
    uint64_t incarnation;            /* the leader's */
    Baton__V1__GroupMember group;
    bool has_group;
    char endpoint[256];
    struct bt_rpc_client *to_rank[RANKS_MAX]; /* of followers */
};

/* All ranks run, and rank 0 has written its ready file. */
void ranks_open(struct ranks *ranks, const struct ranks_options *options);
/* Ends what is left by SIGKILL. */
void ranks_close(struct ranks *ranks);

void ranks_signal(struct ranks *ranks, uint32_t rank, int signal);
/* Takes note of processes that ended. */
bool ranks_ended(struct ranks *ranks, uint32_t rank);
bool ranks_all_ended(struct ranks *ranks);
/* Ended by exit with that code. */
bool ranks_exited(const struct ranks *ranks, uint32_t rank, int code);

/* While they are held the decode rank answers for no lease, though it gives them: a run computes,
 * and may write nothing, so that it can't end well. */
void ranks_hold_leases(bool held);
/* Until the decode rank has given a lease to this rank. */
void ranks_await_lease(struct ranks *ranks, uint32_t rank);

/* A counter or gauge of a rank, by the beginning of its line; fails the test when it is not there.
 */
double ranks_metric(struct ranks *ranks, uint32_t rank, const char *name);

/* KV of a prompt as it was when the decode rank verified it: [layer][token][dim], of 0 bytes when
 * it never was. */
struct kv_landed {
    uint64_t request;
    uint32_t tokens;
    size_t bytes;
    char *data;
};
extern struct kv_landed kv_landed[KV_PROMPTS];
extern uint32_t kv_landed_count;
void kv_forget(void);
const struct kv_landed *kv_of(uint64_t request);

#endif
