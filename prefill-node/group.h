/*
 * The other ranks of a prefill worker, as rank 0's control thread sees them: each pushes its share
 * of every prompt when it is asked to (PrefillRank of proto/worker.proto), and connects to the
 * decode ranks that this one knows.
 *
 * A rank that may be pushing and does not answer any more is lost, and with it the worker: what it
 * writes ends with its process.
 */
#ifndef BATON_PREFILL_NODE_GROUP_H
#define BATON_PREFILL_NODE_GROUP_H

#include "common/kvcache/page_pool.h"
#include "common/messaging/rpc.h"
#include "prefill-node/cuts.h"

#define PF_ENDPOINT_SIZE 256 /* of a rank's RPC server */

struct pf_group;

struct pf_group_options {
    struct bt_loop *loop;
    uint64_t incarnation; /* of the group */
    uint32_t size;
    int64_t keepalive_ms;                      /* to the other ranks, see pf_node_keepalive_ms */
    const char (*endpoints)[PF_ENDPOINT_SIZE]; /* [size] of all ranks, this one included; copied */
    void (*lost)(void *context, const char *text); /* once at most */
    void (*warm)(void *context);                   /* no rank is connecting any more */
    void *context;
};

enum bt_status pf_group_create(const struct pf_group_options *options, struct bt_error *error,
                               struct pf_group **ret_group);
void pf_group_destroy(struct pf_group *group); /* no joint push is left; NULL is fine */

/* Every rank connects to these. */
void pf_group_connect(struct pf_group *group, Baton__V1__KvEndpoint *const *ranks, size_t count);
bool pf_group_warm(const struct pf_group *group); /* none is connecting */

/* The group is over: whoever has not told its outcome is not waited for. */
void pf_group_abandon(struct pf_group *group);

/* The pushes of one run on all other ranks. */
struct pf_joint {
    uint32_t opening; /* ranks that have not said that their push is open */
    uint32_t running; /* that have not told their outcome */
    /* The first trouble of any of them; BT_OK: none. */
    enum bt_status status;
    char text[256];
    bool leased;  /* the decode rank may know one of the processes */
    bool unknown; /* one may go on writing: only its death tells when that is over */
    uint64_t checksum, kv_bytes, writes, hidden_bytes; /* sums */
    uint64_t visible_ns, write_ns;                     /* the longest */
    struct pf_cuts cuts;

    struct pf_group *group;
    void (*changed)(void *context); /* not inside pf_joint_open; may free the joint */
    void *context;
    struct rank_push *list; /* that are running */
};

struct pf_joint_spec {
    uint64_t serial, request;
    uint32_t prompt_tokens;
    const Baton__V1__Landing *landing;
    const uint32_t *pages;  /* [bt_kv_pages_for(prompt_tokens)], of every pool */
    uint32_t cached_tokens; /* whose KV every pool has */
    bool layerwise, probe;
    void (*changed)(void *context);
    void *context;
};

/* Asks all ranks. An error ends as an outcome does: by joint->status, once `running` is 0; that may
 * be at once. */
void pf_joint_open(struct pf_joint *joint, struct pf_group *group,
                   const struct pf_joint_spec *spec);
/* Ranks that push stop, and tell their outcomes. */
void pf_joint_cancel(struct pf_joint *joint);

#endif
