/* HandoffDone of one run, sent until the decode rank answers. Control thread only. */
#ifndef BATON_PREFILL_NODE_HANDOFF_H
#define BATON_PREFILL_NODE_HANDOFF_H

#include "common/messaging/rpc.h"
#include "common/model/sampler.h"
#include "prefill-node/cuts.h"
#include "proto/worker.pb-c.h"

#define PF_TRANSPORT_SIZE 32

struct pf_handoff_spec {
    struct bt_rpc_client *client; /* of the decode rank */
    uint64_t request, epoch;
    uint32_t prompt_tokens, page_count;
    bool has_checksum;
    uint64_t checksum;
    const struct bt_sample *first; /* what it and `cuts` point to lives until the end */
    bool logprobs;
    const struct pf_cuts *cuts;
    const Baton__V1__PrefillDone *figures; /* as the router gets them; copied, without layers */
    int64_t deadline_ns;                   /* BT_NEVER_NS: none, and it is given up some time */
    /* OK: accepted. UNAVAILABLE: given up. CANCELLED after cancel, else what the rank says. */
    void (*done)(void *context, enum bt_status status, const char *text);
    void *context;
};

struct pf_handoff {
    struct bt_loop_source *timer;
    struct bt_rpc_pending *pending; /* an attempt is out */
    bool cancelled;
    struct pf_handoff_spec spec;
    Baton__V1__PrefillDone figures;
    char transport[PF_TRANSPORT_SIZE]; /* of the figures */
    int64_t call_ns, retry_ns, give_up_ns;
    char text[200]; /* why the last attempt has to be repeated; "": it was the first */
};

/* What start needs, so that it can not fail. False: no memory. */
bool pf_handoff_init(struct pf_handoff *handoff, struct bt_loop *loop);
void pf_handoff_finish(struct pf_handoff *handoff); /* no attempt is out; zeroed is fine */

void pf_handoff_start(struct pf_handoff *handoff, const struct pf_handoff_spec *spec);
/* No attempt follows. True: one is out, and `done` comes when it has ended. */
bool pf_handoff_cancel(struct pf_handoff *handoff);

#endif
