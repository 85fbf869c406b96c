/*
 * The requests of a decode rank, from Reserve to the last page: landing, handoff, batch, end.
 *
 * A request lives from Reserve until its landing is over or its sequence came back from the step
 * thread; the landing table keeps pages that may still be written, without a request. Control
 * thread only. Everything is keyed by (request, epoch): what comes late or twice finds nothing, or
 * finds that it was done.
 *
 * A request has no deadline of its own here: its router cancels it when the deadline passes, and
 * when the router goes, all its requests do.
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
    uint32_t max_requests;
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

/* epoch 0: whichever it has. */
void dc_requests_cancel(struct dc_requests *requests, uint64_t request, uint64_t epoch);
void dc_requests_cancel_router(struct dc_requests *requests, uint64_t router_incarnation);
void dc_requests_cancel_all(struct dc_requests *requests);

/* A step that the step thread finished. */
void dc_requests_step(struct dc_requests *requests, const struct dc_step *step);

/* Pages may have become free: gives them to sequences that wait for one. */
void dc_requests_serve_pages(struct dc_requests *requests);

void dc_requests_load(const struct dc_requests *requests, Baton__V1__RankLoad *ret_load);
uint32_t dc_requests_count(const struct dc_requests *requests);

#endif
