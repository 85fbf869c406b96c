/*
 * The requests of a decode rank, from Reserve to the last page: landing, handoff, batch, end.
 *
 * A request lives from Reserve until its landing is over or its sequence came back from the step
 * thread; the landing table keeps pages that may still be written, without a request. Control
 * thread only. Everything is keyed by (request, epoch): what comes late or twice finds nothing, or
 * finds that it was done.
 *
 * A request has no deadline of its own here: its router cancels it when the deadline passes. When
 * the router goes, all its requests do, but those that another may have: with a resume key and a
 * sequence that runs. These are orphans for a time. They go on, their tokens are kept, and so are
 * those of one that ends, which holds no pages; a router that shows the key gets all of it
 * (Decode/Adopt). An orphan makes way for a request of the same id, and gives its pages up before
 * any request does that a router has.
 */
#ifndef BATON_DECODE_NODE_REQUEST_H
#define BATON_DECODE_NODE_REQUEST_H

#include "common/messaging/rpc.h"
#include "decode-node/metrics.h"
#include "decode-node/reservation.h"
#include "decode-node/stepper.h"
#include "decode-node/subscriber.h"
#include "kvtransfer/landing.h"
#include "kvtransfer/target.h"
#include "proto/registry.pb-c.h"

struct dc_requests;

struct dc_requests_options {
    struct kvt_target *target;
    struct dc_stepper *stepper;
    struct bt_page_pool *pages;
    struct dc_subscribers *subscribers;
    struct dc_metrics *metrics;
    struct dc_reservation_limits limits;
    uint64_t first_epoch;
    int64_t lease_ns;
    int64_t orphan_grace_ns; /* 0: there are no orphans */
    uint32_t max_requests;   /* orphans that ended included, until one of them is in the way */
    bool require_checksum;
};

enum bt_status dc_requests_create(const struct dc_requests_options *options, struct bt_error *error,
                                  struct dc_requests **ret_requests);
/* The step thread is gone; calls that wait belong to the RPC server. NULL is fine. */
void dc_requests_destroy(struct dc_requests *requests);

struct kvt_landing_table *dc_requests_landings(const struct dc_requests *requests);

/* Pages for a new request. The landing is valid until the next call. */
enum bt_status dc_requests_reserve(struct dc_requests *requests,
                                   const Baton__V1__ReserveRequest *message, struct bt_error *error,
                                   const struct kvt_landing **ret_landing);

/* Ends the call, now or after the verdict on the pages. */
void dc_requests_handoff_done(struct dc_requests *requests, struct bt_rpc_call *call,
                              const Baton__V1__HandoffDoneRequest *message);
/* Computed by the target. */
void dc_requests_checksum(struct dc_requests *requests, uint64_t epoch, uint64_t checksum,
                          bool early);

/* A prefill worker holds the lease of this epoch: its pages are going to be written. */
void dc_requests_leased(struct dc_requests *requests, uint64_t epoch);

/* epoch 0: whichever it has; router_incarnation 0: whose ever it is. */
void dc_requests_cancel(struct dc_requests *requests, uint64_t request, uint64_t epoch,
                        uint64_t router_incarnation);
/* All end, as PREEMPTED: their routers run them elsewhere. */
void dc_requests_give_back(struct dc_requests *requests);

/* A step that the step thread finished. */
void dc_requests_step(struct dc_requests *requests, const struct dc_step *step);

/* Pages may have become free: gives them to sequences that wait for one. */
void dc_requests_serve_pages(struct dc_requests *requests);

Baton__V1__FinishReason dc_finish_reason(enum dc_finish finish);

/* ---- routers come and go (orphan.c) */

/* The router's Steps stream ended. */
void dc_requests_router_gone(struct dc_requests *requests, uint64_t router_incarnation,
                             int64_t now_ns);
/* It opened another: what it left behind here it runs elsewhere. */
void dc_requests_router_back(struct dc_requests *requests, uint64_t router_incarnation);
/* Ends the call, and sends the router what the orphan has. */
void dc_requests_adopt(struct dc_requests *requests, struct bt_rpc_call *call,
                       const Baton__V1__AdoptRequest *message);
/* Ends all orphans; there are none from now on. */
void dc_requests_close_orphans(struct dc_requests *requests);
/* Lets go of orphans. Call at dc_requests_next_deadline_ns (BT_NEVER_NS: none) or later. */
void dc_requests_tick(struct dc_requests *requests, int64_t now_ns);
int64_t dc_requests_next_deadline_ns(const struct dc_requests *requests);
/* Of the list below, since it was last asked. */
bool dc_requests_orphans_changed(struct dc_requests *requests);
/* Those that can be adopted; valid until the requests are called again. */
size_t dc_requests_orphans(struct dc_requests *requests, Baton__V1__Orphan ***ret_orphans);

/* ---- looking in */

void dc_requests_load(const struct dc_requests *requests, Baton__V1__RankLoad *ret_load);
uint32_t dc_requests_count(const struct dc_requests *requests);

#endif
