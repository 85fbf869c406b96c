#include "decode-node/request.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/model/token_message.h"
#include "decode-node/request_state.h"

static const char replay_differs[] = "replay: the prompt's first token is another than replay[0]";

/* ------------------------------------------------------------------ life */

static void request_destroy(struct dc_request *request)
{
    dc_reservation_finish(&request->reservation);
    dc_token_log_finish(&request->tokens);
    free(request->sequence.pages);
    free(request);
}

static void expect_pages(struct dc_request *request, uint32_t pages)
{
    request->owner->expected_pages += (uint64_t)pages - request->expected_pages;
    request->expected_pages = pages;
}

void dc_request_remove(struct dc_request *request)
{
    BT_ASSERT(request->done_count == 0 && !request->in_engine);
    expect_pages(request, 0);
    if (request->expected) {
        kvt_target_forget(request->owner->options.target, request->epoch);
    }
    if (request->orphan) {
        dc_orphan_uncount(request);
    }
    bt_map_remove(&request->owner->by_epoch, request->epoch);
    request_destroy(request);
}

static void tell_router(const struct dc_request *request, Baton__V1__FinishReason finish,
                        const char *text)
{
    const struct dc_news news = {
        .request = request->reservation.request,
        .epoch = request->epoch,
        .finish = finish,
        .text = text,
    };
    dc_subscribers_add(request->owner->options.subscribers, request->reservation.router_incarnation,
                       &news);
}

static void end_done_calls(struct dc_request *request, enum bt_status status, const char *text)
{
    Baton__V1__HandoffDoneResponse response = BATON__V1__HANDOFF_DONE_RESPONSE__INIT;
    while (request->done_count > 0) {
        bt_rpc_call_end(request->done_calls[--request->done_count], status, text,
                        status == BT_OK ? &response.base : NULL);
    }
}

/* The table found out by itself: the lease ran out, the peer is gone or gave up, bad counts. */
static void on_landing_failed(void *context, const struct kvt_landing *landing,
                              enum bt_status status, const char *why)
{
    struct dc_requests *requests = context;
    struct dc_request *request = landing->user;
    if (!request) {
        return;
    }
    bt_log(status == BT_ERR_CANCELLED ? BT_LOG_INFO : BT_LOG_WARN, landing->request,
           "landing failed: %s", why);
    bt_counter_add(requests->options.metrics->failed, 1);
    tell_router(request, BATON__V1__FINISH_REASON__FINISH_ERROR, why);
    dc_request_remove(request);
}

enum bt_status dc_requests_create(const struct dc_requests_options *options, struct bt_error *error,
                                  struct dc_requests **ret_requests)
{
    struct dc_requests *requests = calloc(1, sizeof(*requests));
    if (!requests) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "requests: no memory");
    }
    requests->options = *options;
    bt_map_init(&requests->by_epoch);
    requests->running = calloc(options->max_requests, sizeof(struct dc_request *));
    requests->landings = kvt_landing_table_create(options->pages, options->first_epoch,
                                                  options->lease_ns, on_landing_failed, requests);
    if (!requests->running || !requests->landings || !dc_orphans_init(requests)) {
        dc_requests_destroy(requests);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "requests: no memory");
    }
    *ret_requests = requests;
    return BT_OK;
}

void dc_requests_destroy(struct dc_requests *requests)
{
    if (!requests) {
        return;
    }
    size_t cursor = 0;
    uint64_t epoch;
    void *request;
    while (bt_map_next(&requests->by_epoch, &cursor, &epoch, &request)) {
        request_destroy(request);
    }
    bt_map_finish(&requests->by_epoch);
    kvt_landing_table_destroy(requests->landings);
    dc_orphans_finish(requests);
    free(requests->running);
    free(requests);
}

struct kvt_landing_table *dc_requests_landings(const struct dc_requests *requests)
{
    return requests->landings;
}

uint32_t dc_requests_count(const struct dc_requests *requests)
{
    return (uint32_t)requests->by_epoch.size;
}

/* ------------------------------------------------------------------ reserve */

static enum bt_status check_room(struct dc_requests *requests,
                                 const struct dc_reservation *reservation, struct bt_error *error)
{
    if (!dc_subscribers_has(requests->options.subscribers, reservation->router_incarnation)) {
        return bt_error_set(error, BT_ERR_STALE,
                            "router_incarnation: that router has no Steps stream here");
    }
    if (dc_requests_count(requests) >= requests->options.max_requests &&
        !dc_orphans_evict(requests)) {
        return bt_error_set(error, BT_ERR_EXHAUSTED, "%" PRIu32 " requests are here already",
                            requests->options.max_requests);
    }
    return BT_OK;
}

static enum bt_status request_land(struct dc_request *request, struct bt_error *error)
{
    struct dc_requests *requests = request->owner;
    const struct dc_reservation *reservation = &request->reservation;
    request->sequence.page_capacity = reservation->max_pages;
    request->sequence.pages = calloc(reservation->max_pages, sizeof(uint32_t));
    if (!request->sequence.pages) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "request: no memory");
    }
    struct kvt_landing *landing;
    enum bt_status status =
        kvt_landing_reserve(requests->landings, reservation->request, reservation->prompt_tokens,
                            reservation->extra_tokens, bt_clock_now_ns(), error, &landing);
    if (status != BT_OK) {
        return status;
    }
    if (!bt_map_put(&requests->by_epoch, landing->epoch, request)) {
        kvt_landing_cancel(requests->landings, reservation->request, landing->epoch);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "request: no memory");
    }
    request->landing = landing;
    request->epoch = landing->epoch;
    landing->user = request;
    expect_pages(request, reservation->expected_pages > landing->page_count
                              ? reservation->expected_pages
                              : landing->page_count);
    return BT_OK;
}

static void request_join(struct dc_request *request);

/* The engine has it from now on, and no prefill worker ever. */
static void request_compute(struct dc_request *request)
{
    struct dc_requests *requests = request->owner;
    kvt_landing_own(requests->landings, request->landing);
    request->sequence.prompt = request->reservation.prompt;
    request->sequence.arrival_ns = bt_clock_now_ns();
    request->prompting = true;
    requests->prompting_count++;
    requests->prompt_tokens += request->reservation.prompt_tokens;
    request_join(request);
}

enum bt_status dc_requests_reserve(struct dc_requests *requests,
                                   const Baton__V1__ReserveRequest *message, struct bt_error *error,
                                   const struct kvt_landing **ret_landing)
{
    struct dc_request *request = calloc(1, sizeof(*request));
    if (!request) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "request: no memory");
    }
    request->owner = requests;
    enum bt_status status =
        dc_reservation_init(&request->reservation, message, &requests->options.limits, error);
    if (status == BT_OK) {
        status = check_room(requests, &request->reservation, error);
    }
    if (status == BT_OK) {
        dc_orphans_give_way(requests, message->request_id);
        status = request_land(request, error);
    }
    if (status != BT_OK) {
        bt_counter_add(requests->options.metrics->refused_reserve, 1);
        request_destroy(request);
        return status;
    }
    bt_counter_add(requests->options.metrics->reserved, 1);
    if (request->reservation.prompt) {
        request_compute(request);
    }
    *ret_landing = request->landing;
    return BT_OK;
}

void dc_requests_leased(struct dc_requests *requests, uint64_t epoch)
{
    struct dc_request *request = bt_map_get(&requests->by_epoch, epoch);
    if (!request || request->expected || !request->landing ||
        request->landing->state != KVT_LANDING_LANDING) {
        return;
    }
    request->expected = true;
    kvt_target_expect(requests->options.target, epoch, request->landing->pages,
                      request->landing->prompt_tokens);
}

/* ------------------------------------------------------------------ handoff */

static void request_join(struct dc_request *request)
{
    struct dc_requests *requests = request->owner;
    const struct kvt_landing *landing = request->landing;
    struct dc_sequence *sequence = &request->sequence;
    BT_ASSERT(landing->page_count <= sequence->page_capacity);
    memcpy(sequence->pages, landing->pages, landing->page_count * sizeof(uint32_t));
    sequence->page_count = landing->page_count;
    sequence->request = landing->request;
    sequence->epoch = landing->epoch;
    sequence->prompt_tokens = landing->prompt_tokens;
    sequence->sampling = &request->reservation.sampling;
    sequence->history = request->reservation.history;
    sequence->replay = request->reservation.replay;
    sequence->replay_count = request->reservation.replay_count;
    sequence->user = request;
    request->in_engine = true;
    request->joined_ns = bt_clock_now_ns();
    requests->running[requests->running_count++] = request;
    dc_request_log_begin(request);
    dc_stepper_add(requests->options.stepper, sequence);
}

/* The tokens that are to be replayed go on from the one that prefill drew. */
static bool replay_fits(const struct dc_request *request)
{
    const struct dc_reservation *reservation = &request->reservation;
    return reservation->replay_count == 0 || request->sequence.last.token == reservation->replay[0];
}

/*
 * Every write of the epoch is over, whatever the verdict. OK: the sums are equal; CORRUPT: they are
 * not; else there is none, and `why` says so.
 */
static void request_verdict(struct dc_request *request, enum bt_status sum, const char *why)
{
    struct dc_requests *requests = request->owner;
    struct kvt_landing *landing;
    if (sum == BT_OK && !replay_fits(request)) {
        sum = BT_ERR_MISMATCH;
        why = replay_differs;
    }
    enum bt_status status = kvt_landing_verified(requests->landings, request->reservation.request,
                                                 request->epoch, sum == BT_OK, &landing);
    if (status == BT_OK) {
        request->landing = landing;
        end_done_calls(request, BT_OK, NULL);
        bt_counter_add(requests->options.metrics->handed_off, 1);
        request_join(request);
        return;
    }
    if (status == BT_ERR_CORRUPT) { /* the landing's word for any sum that is not right */
        status = sum;
        bt_log_error(request->reservation.request, "handoff refused: %s", why);
        bt_counter_add(sum == BT_ERR_CORRUPT ? requests->options.metrics->corrupt
                                             : requests->options.metrics->refused_done,
                       1);
        tell_router(request, BATON__V1__FINISH_REASON__FINISH_ERROR, why);
    } else {
        why = "the request was cancelled";
    }
    end_done_calls(request, status, why);
    dc_request_remove(request);
    dc_requests_serve_pages(requests);
}

static enum bt_status check_done(const struct dc_requests *requests,
                                 const Baton__V1__HandoffDoneRequest *message,
                                 struct bt_error *error, struct bt_sample *ret_first)
{
    if (requests->options.require_checksum && !message->has_checksum) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "has_checksum: this rank takes no handoff without one");
    }
    if (message->first_token && message->first_token->index != 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "first_token.index is %" PRIu32,
                            message->first_token->index);
    }
    enum bt_status status = bt_token_message_read(
        message->first_token, requests->options.limits.vocab_size, error, ret_first);
    if (status != BT_OK) {
        bt_error_prefix(error, "first_token");
    }
    return status;
}

/* The pages are checked on the target's thread; dc_requests_checksum brings the result. */
static void request_sum(struct dc_request *request)
{
    request->expected = false;
    enum bt_status status = kvt_target_checksum(
        request->owner->options.target, request->reservation.request, request->epoch,
        request->landing->pages, request->landing->prompt_tokens);
    if (status != BT_OK) {
        request_verdict(request, status,
                        status == BT_ERR_EXHAUSTED
                            ? "checksum: as many as the rank can take are being computed"
                            : "checksum: no memory to compute it");
    }
}

static void request_verify(struct dc_request *request, const Baton__V1__HandoffDoneRequest *message)
{
    request->checksum = message->checksum;
    if (message->has_checksum) {
        request_sum(request);
    } else {
        request_verdict(request, BT_OK, NULL);
    }
}

static bool keep_done_call(struct dc_request *request, struct bt_rpc_call *call)
{
    if (request->done_count == DC_MAX_DONE_CALLS) {
        bt_rpc_call_end(call, BT_ERR_EXHAUSTED, "the handoff is being verified already", NULL);
        return false;
    }
    request->done_calls[request->done_count++] = call;
    return true;
}

void dc_requests_handoff_done(struct dc_requests *requests, struct bt_rpc_call *call,
                              const Baton__V1__HandoffDoneRequest *message)
{
    struct bt_error error;
    struct bt_sample first;
    struct kvt_landing *landing = NULL;
    enum bt_status status = check_done(requests, message, &error, &first);
    if (status != BT_OK) {
        bt_rpc_call_end(call, status, error.text, NULL);
        return;
    }
    Baton__V1__HandoffDoneResponse response = BATON__V1__HANDOFF_DONE_RESPONSE__INIT;
    switch (kvt_landing_done(requests->landings, message->request_id, message->epoch,
                             message->prompt_tokens, message->page_count, &error, &landing)) {
    case KVT_DONE_VERIFY: {
        struct dc_request *request = landing->user;
        request->sequence.last = first;
        if (message->done) {
            dc_prefill_told_keep(message->done, &request->prefill);
            request->has_prefill = true;
        }
        keep_done_call(request, call);
        request_verify(request, message);
        break;
    }
    case KVT_DONE_WAIT:
        keep_done_call(landing->user, call);
        break;
    case KVT_DONE_DUPLICATE:
        bt_rpc_call_end(call, BT_OK, NULL, &response.base);
        break;
    case KVT_DONE_REFUSED:
        bt_counter_add(requests->options.metrics->refused_done, 1);
        bt_rpc_call_end(call, error.status, error.text, NULL);
        break;
    }
}

void dc_requests_checksum(struct dc_requests *requests, uint64_t epoch, uint64_t checksum,
                          bool early)
{
    struct dc_request *request = bt_map_get(&requests->by_epoch, epoch);
    BT_ASSERT(request); /* VERIFYING ones wait for this */
    if (early && checksum != request->checksum && request->landing) {
        request_sum(request); /* what came early was a hint: from the beginning, then */
        return;
    }
    bool equal = checksum == request->checksum;
    request_verdict(request, equal ? BT_OK : BT_ERR_CORRUPT,
                    equal ? NULL : "checksum: the pages are not what the prefill worker wrote");
}

/* ------------------------------------------------------------------ cancel */

void dc_request_stop(struct dc_request *request, enum dc_finish finish)
{
    if (!request->stopping) {
        request->stopping = true;
        request->owner->stopping_count++;
        dc_stepper_stop(request->owner->options.stepper, request->reservation.request,
                        request->epoch, finish);
    }
}

void dc_request_cancel(struct dc_request *request)
{
    struct dc_requests *requests = request->owner;
    struct kvt_landing *landing = request->landing;
    if (request->finish != DC_RUNNING) {
        dc_request_remove(request);
        return;
    }
    if (!landing) {
        return; /* cancelled already, waits for the verdict */
    }
    if (landing->state == KVT_LANDING_READY) {
        dc_request_stop(request, DC_FINISH_CANCELLED);
        return;
    }
    bt_counter_add(requests->options.metrics->cancelled, 1);
    bool verifying = landing->state == KVT_LANDING_VERIFYING;
    landing->user = NULL;
    request->landing = NULL;
    kvt_landing_cancel(requests->landings, request->reservation.request, request->epoch);
    if (!verifying) {
        dc_request_remove(request);
    }
}

static struct dc_request *find(struct dc_requests *requests, uint64_t request, uint64_t epoch)
{
    if (epoch != 0) {
        struct dc_request *found = bt_map_get(&requests->by_epoch, epoch);
        return found && found->reservation.request == request ? found : NULL;
    }
    const struct kvt_landing *landing = kvt_landing_find(requests->landings, request);
    return landing ? landing->user : dc_orphan_find(requests, request);
}

/* Another router's is nobody else's. One without a router is of whoever knows its epoch. */
static bool may_cancel(const struct dc_request *request, uint64_t epoch,
                       uint64_t router_incarnation)
{
    return router_incarnation == 0 ||
           request->reservation.router_incarnation == router_incarnation ||
           (request->orphan && epoch != 0);
}

void dc_requests_cancel(struct dc_requests *requests, uint64_t request, uint64_t epoch,
                        uint64_t router_incarnation)
{
    struct dc_request *found = find(requests, request, epoch);
    if (found && may_cancel(found, epoch, router_incarnation)) {
        dc_request_cancel(found);
        dc_requests_serve_pages(requests);
    }
}

static void give_back(struct dc_request *request)
{
    const struct kvt_landing *landing = request->landing;
    if (landing && landing->state == KVT_LANDING_READY) {
        dc_request_stop(request, DC_FINISH_PREEMPTED);
        return;
    }
    if (landing) {
        tell_router(request, BATON__V1__FINISH_REASON__FINISH_PREEMPTED, NULL);
    }
    dc_request_cancel(request);
}

void dc_requests_give_back(struct dc_requests *requests)
{
    size_t cursor = 0;
    uint64_t epoch;
    void *value;
    while (bt_map_next(&requests->by_epoch, &cursor, &epoch, &value)) {
        give_back(value);
    }
}

/* ------------------------------------------------------------------ steps */

Baton__V1__FinishReason dc_finish_reason(enum dc_finish finish)
{
    switch (finish) {
    case DC_RUNNING:
        return BATON__V1__FINISH_REASON__FINISH_UNSPECIFIED;
    case DC_FINISH_STOP:
        return BATON__V1__FINISH_REASON__FINISH_STOP;
    case DC_FINISH_LENGTH:
        return BATON__V1__FINISH_REASON__FINISH_LENGTH;
    case DC_FINISH_CANCELLED:
        return BATON__V1__FINISH_REASON__FINISH_CANCELLED;
    case DC_FINISH_PREEMPTED:
        return BATON__V1__FINISH_REASON__FINISH_PREEMPTED;
    case DC_FINISH_DIVERGED:
        break;
    }
    return BATON__V1__FINISH_REASON__FINISH_ERROR;
}

static void count_token(struct dc_request *request, const struct dc_entry *entry, int64_t now_ns)
{
    const struct dc_metrics *metrics = request->owner->options.metrics;
    if (entry->index > 0) {
        bt_counter_add(metrics->generated, 1);
    }
    if (request->token_ns > 0) {
        bt_histogram_observe(metrics->inter_token_seconds,
                             (double)(now_ns - request->token_ns) * 1e-9);
    }
    request->token_ns = now_ns;
}

static void count_finish(const struct dc_request *request, enum dc_finish finish, int64_t now_ns)
{
    const struct dc_metrics *metrics = request->owner->options.metrics;
    struct bt_counter *const counters[] = {
        [DC_FINISH_STOP] = metrics->stopped,        [DC_FINISH_LENGTH] = metrics->lengthy,
        [DC_FINISH_CANCELLED] = metrics->cancelled, [DC_FINISH_PREEMPTED] = metrics->preempted,
        [DC_FINISH_DIVERGED] = metrics->failed,
    };
    bt_counter_add(counters[finish], 1);
    if (finish == DC_FINISH_STOP || finish == DC_FINISH_LENGTH) {
        double seconds = (double)(now_ns - request->joined_ns) * 1e-9;
        uint32_t before = request->reservation.replay_count;
        uint32_t later = request->sequence.generated - (before > 0 ? before : 1);
        bt_histogram_observe(metrics->decode_seconds, seconds);
        bt_histogram_observe(metrics->per_token_seconds, later ? seconds / later : 0);
    }
}

static void running_erase(struct dc_requests *requests, const struct dc_request *request)
{
    for (uint32_t i = 0; i < requests->running_count; i++) {
        if (requests->running[i] == request) {
            requests->running_count--;
            memmove(&requests->running[i], &requests->running[i + 1],
                    (requests->running_count - i) * sizeof(struct dc_request *));
            return;
        }
    }
}

/* Its prompt is computed, or never will be. What is left of it was counted. */
static void end_prompting(struct dc_request *request)
{
    struct dc_requests *requests = request->owner;
    request->prompting = false;
    requests->prompting_count--;
    requests->prompt_tokens -= request->reservation.prompt_tokens - request->sequence.computed;
}

/* The first token of a prompt that was computed here: how long that took goes with it. */
static void note_prompt(struct dc_request *request, struct dc_news *news)
{
    const struct dc_metrics *metrics = request->owner->options.metrics;
    end_prompting(request);
    news->prompt_compute_ns = (uint64_t)request->sequence.prompt_compute_ns;
    bt_counter_add(metrics->local_prompts, 1);
    bt_counter_add(metrics->local_prompt_tokens, request->reservation.prompt_tokens);
}

/* The sequence came back: its pages are free again. */
static void request_leave(struct dc_request *request, enum dc_finish finish, int64_t now_ns)
{
    struct dc_requests *requests = request->owner;
    count_finish(request, finish, now_ns);
    running_erase(requests, request);
    requests->stopping_count -= request->stopping;
    requests->wish_count -= request->wants_page;
    if (request->prompting) {
        end_prompting(request);
    }
    request->in_engine = false;
    kvt_landing_release(requests->landings, request->reservation.request, request->epoch);
    request->landing = NULL;
    expect_pages(request, 0);
    if (!dc_orphan_keep(request, finish)) {
        dc_request_remove(request);
    }
}

/* How the sequence came into the batch, with the first token that was drawn here. */
static void tell_start(struct dc_request *request, const struct dc_step *step, struct dc_news *news)
{
    int64_t wait_ns = step->begin_ns - request->joined_ns;
    request->started = news->starts = true;
    news->wait_ns = wait_ns > 0 ? (uint64_t)wait_ns : 0;
    news->step_ns = (uint64_t)(step->end_ns - step->begin_ns);
    news->begin_unix_ns = bt_clock_unix_ns() - (bt_clock_now_ns() - step->begin_ns);
}

static void handle_entry(struct dc_requests *requests, const struct dc_entry *entry,
                         const struct dc_step *step)
{
    struct dc_request *request = entry->user;
    int64_t now_ns = step->end_ns;
    struct dc_news news = {
        .request = entry->request,
        .epoch = entry->epoch,
        .sample = entry->has_token ? &entry->sample : NULL,
        .index = entry->index,
        .with_logprobs = request->reservation.sampling.logprobs >= 0,
        .finish = dc_finish_reason(entry->finish),
        .text = entry->finish == DC_FINISH_DIVERGED ? replay_differs : NULL,
    };
    if (entry->has_token && request->token_ns == 0 && request->has_prefill) {
        news.prefill = &request->prefill;
    }
    if (entry->drawn && !request->started) {
        tell_start(request, step, &news);
    }
    if (entry->has_token && request->prompting) {
        note_prompt(request, &news);
    }
    if (!request->orphan) {
        dc_subscribers_add(requests->options.subscribers, request->reservation.router_incarnation,
                           &news);
    }
    if (entry->has_token) {
        dc_request_log(request, entry);
        count_token(request, entry, now_ns);
    }
    if (entry->finish != DC_RUNNING) {
        request_leave(request, entry->finish, now_ns);
    }
}

static void handle_wish(struct dc_requests *requests, const struct dc_page_wish *wish)
{
    struct dc_request *request = bt_map_get(&requests->by_epoch, wish->epoch);
    if (!request || !request->in_engine) {
        return;
    }
    requests->wish_count += !request->wants_page;
    request->wants_page = true;
    request->stalled |= wish->stalled;
}

void dc_requests_step(struct dc_requests *requests, const struct dc_step *step)
{
    requests->prompt_tokens -= step->prompt_rows;
    for (uint32_t i = 0; i < step->entry_count; i++) {
        handle_entry(requests, &step->entries[i], step);
    }
    for (uint32_t i = 0; i < step->wish_count; i++) {
        handle_wish(requests, &step->wishes[i]);
    }
    requests->batch_rows = step->rows;
    requests->kv_tokens = step->kv_tokens;
    if (step->rows > 0) {
        bt_histogram_observe(requests->options.metrics->step_rows, step->rows);
        bt_histogram_observe(requests->options.metrics->step_seconds,
                             (double)(step->end_ns - step->begin_ns) * 1e-9);
    }
    dc_requests_serve_pages(requests);
    dc_subscribers_flush(requests->options.subscribers);
}

/* ------------------------------------------------------------------ growth */

static bool request_grow(struct dc_request *request)
{
    struct dc_requests *requests = request->owner;
    struct kvt_landing *landing = request->landing;
    if (kvt_landing_grow(requests->landings, landing, 1) != BT_OK) {
        return false;
    }
    if (landing->page_count > request->expected_pages) {
        expect_pages(request, landing->page_count);
    }
    requests->wish_count--;
    request->wants_page = request->stalled = false;
    dc_stepper_grow(requests->options.stepper, landing->request, landing->epoch,
                    landing->pages[landing->page_count - 1]);
    return true;
}

static struct dc_request *youngest(const struct dc_requests *requests, bool orphan)
{
    for (uint32_t i = requests->running_count; i-- > 0;) {
        struct dc_request *request = requests->running[i];
        if (orphan ? request->orphan : !request->reservation.full) {
            return request;
        }
    }
    return NULL;
}

/*
 * The youngest sequence that no router has gives its pages up; where there is none, the youngest
 * that did not reserve all it can need. There is one: the sequence that waits did not.
 */
static void preempt_youngest(struct dc_requests *requests)
{
    struct dc_request *request = youngest(requests, true);
    request = request ? request : youngest(requests, false);
    if (request) {
        bt_log_info(request->reservation.request, "preempted: no page is free");
        dc_request_stop(request, DC_FINISH_PREEMPTED);
    }
}

/* The eldest first. Only a sequence that can not go on takes pages from others, and only when none
 * are on their way. */
void dc_requests_serve_pages(struct dc_requests *requests)
{
    bool stalled = false;
    for (uint32_t i = 0; i < requests->running_count && requests->wish_count > 0; i++) {
        struct dc_request *request = requests->running[i];
        if (request->wants_page && !request->stopping && !request_grow(request)) {
            stalled = stalled || request->stalled;
        }
    }
    if (stalled && requests->stopping_count == 0) {
        preempt_youngest(requests);
    }
}

/* ------------------------------------------------------------------ looking in */

void dc_requests_load(const struct dc_requests *requests, Baton__V1__RankLoad *ret_load)
{
    const struct bt_page_pool *pages = requests->options.pages;
    ret_load->pages_total = bt_page_pool_total(pages);
    ret_load->pages_free = bt_page_pool_count(pages, BT_PAGE_FREE);
    ret_load->pages_reserved =
        bt_page_pool_count(pages, BT_PAGE_RESERVED) + bt_page_pool_count(pages, BT_PAGE_LANDING);
    ret_load->pages_ready = bt_page_pool_count(pages, BT_PAGE_READY);
    ret_load->pages_quarantined = bt_page_pool_count(pages, BT_PAGE_QUARANTINED);
    ret_load->running = requests->running_count - requests->prompting_count;
    ret_load->waiting = dc_requests_count(requests) - ret_load->running - requests->ended_count;
    ret_load->waiting_tokens = requests->prompt_tokens;
    ret_load->max_running = requests->options.max_requests;
    ret_load->kv_tokens = requests->running_count > 0 ? requests->kv_tokens : 0;
    ret_load->pages_expected =
        requests->expected_pages < UINT32_MAX ? (uint32_t)requests->expected_pages : UINT32_MAX;
}
