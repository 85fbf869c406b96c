/*
 * The Run calls of a prefill worker, from acceptance to their one END.
 *
 *   WAITING (no pages yet) -> OPENING (the other ranks' pushes, in a group)
 *       -> COMPUTING (chunks; the pushes follow layer by layer)
 *       -> HANDING_OFF (all is flushed: HandoffDone until the rank answers) -> END OK
 *
 * Whatever goes wrong - cancel, deadline, a lease refused, the push broken, HandoffDone refused -
 * leads to the same end: the compute thread gives the job back, the pushes of all ranks end, the
 * pages become free or stay for later prompts, the decode rank is told Quiesced, the call gets its
 * END with the first error. Where a rank of the group is lost, it is not told: what was lost may go
 * on writing until it is dead. Control thread only.
 */
#ifndef BATON_PREFILL_NODE_RUN_H
#define BATON_PREFILL_NODE_RUN_H

#include "common/messaging/rpc.h"
#include "prefill-node/compute.h"
#include "prefill-node/group.h"
#include "prefill-node/metrics.h"
#include "prefill-node/peer.h"
#include "prefill-node/prompt_pages.h"
#include "prefill-node/request.h"

struct pf_runs;

struct pf_runs_options {
    struct bt_loop *loop;
    struct kvt_source *source;
    struct pf_compute *compute;
    struct pf_peers *peers;
    struct pf_group *group; /* NULL: alone */
    struct kvt_share share; /* of this rank; count 0: all pages */
    struct pf_pages *pages;
    uint32_t layer_count;
    struct pf_metrics *metrics;
    struct pf_request_limits limits;
    bool checksum;
    uint32_t layerwise_threshold;       /* prompts of more tokens are pushed layer by layer */
    uint32_t max_runs;                  /* at once, waiting ones included */
    void (*changed)(void *context);     /* a run ended */
    void (*stop_wanted)(void *context); /* PF_COMPUTE_STOP, and FAILED; in a group */
    void (*group_over)(void *context, const char *why);
    void *context;
};

/* Takes the events of compute and source from now on. */
enum bt_status pf_runs_create(const struct pf_runs_options *options, struct bt_error *error,
                              struct pf_runs **ret_runs);
void pf_runs_destroy(struct pf_runs *runs); /* no run is left; NULL is fine */

/* A new Run call: it will be ended, now if the request is refused. */
void pf_runs_accept(struct pf_runs *runs, struct bt_rpc_call *call,
                    const Baton__V1__PrefillRequest *message);

/* All of them end with this status; those that come later too. */
void pf_runs_fail_all(struct pf_runs *runs, enum bt_status status, const char *text);

struct pf_runs_view {
    uint32_t running; /* have pages */
    uint32_t waiting;
    uint64_t waiting_tokens; /* prompt tokens that are not computed */
};
void pf_runs_look(const struct pf_runs *runs, struct pf_runs_view *ret_view);
uint32_t pf_runs_count(const struct pf_runs *runs);

#endif
