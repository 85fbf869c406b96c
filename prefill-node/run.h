/*
 * The Run calls of a prefill worker, from acceptance to their one END.
 *
 *   WAITING (no pages yet) -> COMPUTING (chunks; the push follows layer by layer)
 *       -> HANDING_OFF (all is flushed: HandoffDone until the rank answers) -> END OK
 *
 * Whatever goes wrong - cancel, deadline, a lease refused, the push broken, HandoffDone refused -
 * leads to the same end: the compute thread gives the job back, the push ends, the pages become
 * free, the rank is told Quiesced, the call gets its END with the first error. Control thread only.
 */
#ifndef BATON_PREFILL_NODE_RUN_H
#define BATON_PREFILL_NODE_RUN_H

#include "common/kvcache/page_pool.h"
#include "common/messaging/rpc.h"
#include "prefill-node/compute.h"
#include "prefill-node/metrics.h"
#include "prefill-node/peer.h"
#include "prefill-node/request.h"

struct pf_runs;

struct pf_runs_options {
    struct bt_loop *loop;
    struct kvt_source *source;
    struct pf_compute *compute;
    struct pf_peers *peers;
    struct bt_page_pool *pages;
    struct pf_metrics *metrics;
    struct pf_request_limits limits;
    bool checksum;
    uint32_t layerwise_threshold;   /* prompts of more tokens are pushed layer by layer */
    uint32_t max_runs;              /* at once, waiting ones included */
    void (*changed)(void *context); /* a run ended */
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
