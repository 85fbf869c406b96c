/*
 * Requests whose router went away while their sequence ran. Any router that shows the request's
 * resume key may have it: it goes on, or is kept when it ended, until the grace is over. What makes
 * that safe: an epoch names one run of one sequence, its owner is one router at a time, and whoever
 * is not the owner hears nothing of it.
 */
#include <stdlib.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "decode-node/request_state.h"

/* ------------------------------------------------------------------ tokens */

/* From now on the request ends with its router. */
static void log_fail(struct dc_request *request)
{
    bt_log_warn(request->reservation.request, "no memory for its tokens: it ends with its router");
    request->reservation.resumable = false;
    dc_token_log_finish(&request->tokens);
    if (request->orphan) {
        dc_orphan_drop(request);
    }
}

void dc_request_log_begin(struct dc_request *request)
{
    const struct dc_reservation *reservation = &request->reservation;
    if (reservation->resumable &&
        !dc_token_log_add(&request->tokens, reservation->replay, reservation->replay_count)) {
        log_fail(request);
    }
}

/* What is there already comes as it was. */
void dc_request_log(struct dc_request *request, const struct dc_entry *entry)
{
    if (!request->reservation.resumable || entry->index < request->tokens.count) {
        return;
    }
    BT_ASSERT(entry->index == request->tokens.count);
    if (!dc_token_log_add(&request->tokens, &entry->sample.token, 1)) {
        log_fail(request);
    }
}

/* ------------------------------------------------------------------ life */

bool dc_orphans_init(struct dc_requests *requests)
{
    uint32_t count = requests->options.max_requests;
    if (requests->options.orphan_grace_ns <= 0) {
        return true;
    }
    requests->orphan_messages = calloc(count, sizeof(*requests->orphan_messages));
    requests->orphan_list = calloc(count, sizeof(*requests->orphan_list));
    return requests->orphan_messages && requests->orphan_list;
}

void dc_orphans_finish(struct dc_requests *requests)
{
    free(requests->orphan_messages);
    free(requests->orphan_list);
}

static bool outlives_router(const struct dc_request *request)
{
    return request->owner->options.orphan_grace_ns > 0 && request->reservation.resumable &&
           !request->stopping && (request->in_engine || request->finish != DC_RUNNING);
}

static void orphan_make(struct dc_request *request, int64_t now_ns)
{
    struct dc_requests *requests = request->owner;
    request->orphan = true;
    request->adopted = false;
    request->orphan_until_ns = now_ns + requests->options.orphan_grace_ns;
    requests->orphan_count++;
    requests->ended_count += request->finish != DC_RUNNING;
    requests->orphans_changed = true;
    bt_counter_add(requests->options.metrics->orphaned, 1);
    bt_log_info(request->reservation.request, "its router is gone; it goes on without one");
}

void dc_orphan_uncount(struct dc_request *request)
{
    struct dc_requests *requests = request->owner;
    request->orphan = false;
    requests->orphan_count--;
    requests->ended_count -= request->finish != DC_RUNNING;
    requests->orphans_changed = true;
}

void dc_orphan_drop(struct dc_request *request)
{
    request->owner->orphans_changed = true;
    if (request->finish != DC_RUNNING) {
        dc_request_remove(request);
    } else {
        dc_request_stop(request, DC_FINISH_CANCELLED);
    }
}

bool dc_orphan_keep(struct dc_request *request, enum dc_finish finish)
{
    bool ended = finish == DC_FINISH_STOP || finish == DC_FINISH_LENGTH;
    if (!request->orphan || request->stopping || !ended) {
        return false;
    }
    request->finish = finish;
    request->owner->ended_count++;
    return true;
}

struct dc_request *dc_orphan_find(struct dc_requests *requests, uint64_t request)
{
    size_t cursor = 0;
    uint64_t epoch;
    void *value;
    while (requests->orphan_count > 0 &&
           bt_map_next(&requests->by_epoch, &cursor, &epoch, &value)) {
        struct dc_request *candidate = value;
        if (candidate->orphan && !candidate->stopping &&
            candidate->reservation.request == request) {
            return candidate;
        }
    }
    return NULL;
}

/* One that is still to come back is found by its epoch alone from now on. */
void dc_orphans_give_way(struct dc_requests *requests, uint64_t request)
{
    struct kvt_landing *landing = kvt_landing_find(requests->landings, request);
    struct dc_request *orphan = landing ? landing->user : dc_orphan_find(requests, request);
    if (!orphan || !orphan->orphan) {
        return;
    }
    bt_log_info(request, "runs here anew; the one without a router ends");
    if (landing) {
        kvt_landing_retire(requests->landings, landing);
    }
    dc_orphan_drop(orphan);
}

bool dc_orphans_evict(struct dc_requests *requests)
{
    struct dc_request *first = NULL;
    size_t cursor = 0;
    uint64_t epoch;
    void *value;
    while (requests->ended_count > 0 && bt_map_next(&requests->by_epoch, &cursor, &epoch, &value)) {
        struct dc_request *candidate = value;
        if (candidate->orphan && candidate->finish != DC_RUNNING &&
            (!first || candidate->orphan_until_ns < first->orphan_until_ns)) {
            first = candidate;
        }
    }
    if (first) {
        dc_orphan_drop(first);
    }
    return first != NULL;
}

/* ------------------------------------------------------------------ routers */

void dc_requests_router_gone(struct dc_requests *requests, uint64_t router_incarnation,
                             int64_t now_ns)
{
    size_t cursor = 0;
    uint64_t epoch;
    void *value;
    while (bt_map_next(&requests->by_epoch, &cursor, &epoch, &value)) {
        struct dc_request *request = value;
        if (request->orphan || request->reservation.router_incarnation != router_incarnation) {
            continue;
        }
        if (outlives_router(request)) {
            orphan_make(request, now_ns);
        } else {
            dc_request_cancel(request);
        }
    }
    dc_requests_serve_pages(requests);
}

static void drop_orphans(struct dc_requests *requests, uint64_t router_incarnation,
                         int64_t until_ns)
{
    size_t cursor = 0;
    uint64_t epoch;
    void *value;
    while (requests->orphan_count > 0 &&
           bt_map_next(&requests->by_epoch, &cursor, &epoch, &value)) {
        struct dc_request *request = value;
        if (request->orphan && !request->stopping && request->orphan_until_ns <= until_ns &&
            (router_incarnation == 0 ||
             request->reservation.router_incarnation == router_incarnation)) {
            bt_counter_add(requests->options.metrics->orphans_dropped, 1);
            dc_orphan_drop(request);
        }
    }
}

void dc_requests_router_back(struct dc_requests *requests, uint64_t router_incarnation)
{
    drop_orphans(requests, router_incarnation, INT64_MAX);
}

void dc_requests_close_orphans(struct dc_requests *requests)
{
    requests->options.orphan_grace_ns = 0;
    drop_orphans(requests, 0, INT64_MAX);
}

void dc_requests_tick(struct dc_requests *requests, int64_t now_ns)
{
    drop_orphans(requests, 0, now_ns);
}

int64_t dc_requests_next_deadline_ns(const struct dc_requests *requests)
{
    int64_t next_ns = BT_NEVER_NS;
    size_t cursor = 0;
    uint64_t epoch;
    void *value;
    while (requests->orphan_count > 0 &&
           bt_map_next(&requests->by_epoch, &cursor, &epoch, &value)) {
        const struct dc_request *request = value;
        if (request->orphan && !request->stopping && request->orphan_until_ns < next_ns) {
            next_ns = request->orphan_until_ns;
        }
    }
    return next_ns;
}

/* ------------------------------------------------------------------ adoption */

static bool keys_equal(const uint8_t *key, const uint8_t *shown)
{
    unsigned differs = 0;
    for (size_t i = 0; i < DC_RESUME_KEY_BYTES; i++) { /* in constant time: the key is a secret */
        differs |= (unsigned)(key[i] ^ shown[i]);
    }
    return differs == 0;
}

static enum bt_status check_adopt(const struct dc_requests *requests,
                                  const Baton__V1__AdoptRequest *message, struct bt_error *error)
{
    if (message->request_id == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "request_id is 0");
    }
    if (message->epoch == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "epoch is 0");
    }
    if (message->router_incarnation == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "router_incarnation is 0");
    }
    if (message->resume_key.len != DC_RESUME_KEY_BYTES) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "resume_key: %zu bytes instead of %d",
                            message->resume_key.len, DC_RESUME_KEY_BYTES);
    }
    if (!dc_subscribers_has(requests->options.subscribers, message->router_incarnation)) {
        return bt_error_set(error, BT_ERR_STALE,
                            "router_incarnation: that router has no Steps stream here");
    }
    return BT_OK;
}

/* *ret_again: it has it already. */
static enum bt_status find_adoptable(const struct dc_requests *requests,
                                     const Baton__V1__AdoptRequest *message, struct bt_error *error,
                                     struct dc_request **ret_request, bool *ret_again)
{
    struct dc_request *request = bt_map_get(&requests->by_epoch, message->epoch);
    bool known = request && request->reservation.request == message->request_id &&
                 request->reservation.resumable && !request->stopping &&
                 keys_equal(request->reservation.resume_key, message->resume_key.data);
    bool again = known && request->adopted &&
                 request->reservation.router_incarnation == message->router_incarnation;
    if (!known || (!request->orphan && !again)) {
        return bt_error_set(error, BT_ERR_NOT_FOUND,
                            "no request with this id, epoch and key waits for a router");
    }
    *ret_request = request;
    *ret_again = again;
    return BT_OK;
}

/* The stream may end in here, and with it the request may be without a router again, or gone. */
static void deliver(struct dc_requests *requests, struct dc_request *request)
{
    uint64_t epoch = request->epoch;
    const struct dc_history history = {
        .request = request->reservation.request,
        .epoch = epoch,
        .tokens = request->tokens.ids,
        .count = request->tokens.count,
        .finish = dc_finish_reason(request->finish),
        .prefill = request->has_prefill ? &request->prefill : NULL,
    };
    dc_subscribers_deliver(requests->options.subscribers, request->reservation.router_incarnation,
                           &history);
    request = bt_map_get(&requests->by_epoch, epoch);
    if (request && !request->orphan && request->finish != DC_RUNNING) {
        dc_request_remove(request);
    }
}

void dc_requests_adopt(struct dc_requests *requests, struct bt_rpc_call *call,
                       const Baton__V1__AdoptRequest *message)
{
    struct bt_error error;
    struct dc_request *request = NULL;
    bool again = false;
    enum bt_status status = check_adopt(requests, message, &error);
    if (status == BT_OK) {
        status = find_adoptable(requests, message, &error, &request, &again);
    }
    if (status != BT_OK) {
        bt_rpc_call_end(call, status, error.text, NULL);
        return;
    }
    Baton__V1__AdoptResponse response = BATON__V1__ADOPT_RESPONSE__INIT;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
    if (!again) {
        bt_log_info(message->request_id, "router %016jx goes on with it",
                    (uintmax_t)message->router_incarnation);
        bt_counter_add(requests->options.metrics->adopted, 1);
        dc_orphan_uncount(request);
        request->adopted = true;
        request->reservation.router_incarnation = message->router_incarnation;
        deliver(requests, request);
    }
}

/* ------------------------------------------------------------------ looking in */

bool dc_requests_orphans_changed(struct dc_requests *requests)
{
    bool changed = requests->orphans_changed;
    requests->orphans_changed = false;
    return changed;
}

size_t dc_requests_orphans(struct dc_requests *requests, Baton__V1__Orphan ***ret_orphans)
{
    size_t count = 0, cursor = 0;
    uint64_t epoch;
    void *value;
    while (requests->orphan_count > 0 &&
           bt_map_next(&requests->by_epoch, &cursor, &epoch, &value)) {
        struct dc_request *request = value;
        if (!request->orphan || request->stopping) {
            continue;
        }
        Baton__V1__Orphan *orphan = &requests->orphan_messages[count];
        baton__v1__orphan__init(orphan);
        orphan->request_id = request->reservation.request;
        orphan->epoch = epoch;
        orphan->resume_key.data = request->reservation.resume_key;
        orphan->resume_key.len = DC_RESUME_KEY_BYTES;
        orphan->tokens = request->tokens.count;
        requests->orphan_list[count++] = orphan;
    }
    *ret_orphans = requests->orphan_list;
    return count;
}
