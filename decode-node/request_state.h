/*
 * The requests of a rank as their own parts see them: request.c drives each from Reserve to its
 * end; orphan.c keeps those whose router went away. Control thread.
 */
#ifndef BATON_DECODE_NODE_REQUEST_STATE_H
#define BATON_DECODE_NODE_REQUEST_STATE_H

#include "common/base/map.h"
#include "decode-node/request.h"
#include "decode-node/token_log.h"

#define DC_MAX_DONE_CALLS 4 /* HandoffDone calls that wait for one verdict */

struct dc_request {
    struct dc_requests *owner;
    struct dc_reservation reservation;
    uint64_t epoch;
    struct kvt_landing *landing; /* NULL: it was cancelled while its pages are being verified, or is
                                    an orphan that ended */

    struct bt_rpc_call *done_calls[DC_MAX_DONE_CALLS];
    uint32_t done_count;
    uint64_t checksum; /* as the prefill worker computed it */
    bool expected;     /* by the target, which sums its pages as they come */
    struct dc_prefill_told prefill;
    bool has_prefill; /* it was told with the handoff */

    struct dc_sequence sequence;
    uint32_t expected_pages; /* at its end, and no less than it has; 0: it holds none any more */
    bool in_engine;
    bool stopping;  /* the step thread was told to end it */
    bool prompting; /* its prompt is being computed here */
    bool wants_page, stalled;
    int64_t joined_ns, token_ns;
    bool started; /* its first step was told */

    struct dc_token_log tokens; /* all of its output, where the reservation is resumable */
    bool orphan;                /* no router has it */
    bool adopted;               /* by the router that has it */
    enum dc_finish finish;      /* DC_RUNNING, or of an orphan that ended */
    int64_t orphan_until_ns;
};

struct dc_requests {
    struct dc_requests_options options;
    struct kvt_landing_table *landings;
    struct bt_map by_epoch;
    struct dc_request **running; /* [max_requests]: in the engine, in the order they joined */
    uint32_t running_count;
    uint32_t stopping_count;
    uint32_t wish_count;      /* of running ones that want a page */
    uint32_t batch_rows;      /* of the last step */
    uint32_t prompting_count; /* of running ones whose prompt is being computed here */
    uint64_t prompt_tokens;   /* of these, not computed yet */
    uint64_t kv_tokens;
    uint64_t expected_pages; /* of all */

    uint32_t orphan_count; /* those that are being stopped included */
    uint32_t ended_count;  /* of these, those that ended well and hold tokens alone */
    bool orphans_changed;
    Baton__V1__Orphan *orphan_messages; /* [max_requests]; these two NULL: there are none, ever */
    Baton__V1__Orphan **orphan_list;
};

/* ---- request.c */

/* Out of the tables, and freed. Its pages are somebody else's, its sequence is back. */
void dc_request_remove(struct dc_request *request);
void dc_request_stop(struct dc_request *request, enum dc_finish finish);
/* At once, or when its sequence comes back. */
void dc_request_cancel(struct dc_request *request);

/* ---- orphan.c */

/* Its sequence joins: the tokens that it has already. */
void dc_request_log_begin(struct dc_request *request);
void dc_request_log(struct dc_request *request, const struct dc_entry *entry);

bool dc_orphans_init(struct dc_requests *requests);
void dc_orphans_finish(struct dc_requests *requests);
/* The sequence came back, its pages are free. True: what it generated is kept for a router. */
bool dc_orphan_keep(struct dc_request *request, enum dc_finish finish);
/* The request is no orphan any more. */
void dc_orphan_uncount(struct dc_request *request);
void dc_orphan_drop(struct dc_request *request);
/* NULL: there is none that is not being stopped already. */
struct dc_request *dc_orphan_find(struct dc_requests *requests, uint64_t request);
/* A request of this id is going to run here anew. */
void dc_orphans_give_way(struct dc_requests *requests, uint64_t request);
/* Forgets the ended one that would be kept the shortest. False: there is none. */
bool dc_orphans_evict(struct dc_requests *requests);

#endif
