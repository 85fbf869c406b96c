/* The core's actions carried out, the workers' events fed into the core. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "router/rank_metrics.h"
#include "router/service_admit.h"
#include "router/service_state.h"

struct rt_worker_link *rt_service_link(const struct rt_service *service, rt_worker_ref ref)
{
    return rt_worker_links_get(&service->links, ref);
}

bool rt_service_has_live_worker(const struct rt_service *service)
{
    return rt_core_live_workers(service->core) > 0;
}

void rt_service_trouble(struct rt_worker_link *link)
{
    rt_worker_links_trouble(&link->service->links, link);
    link->service->links_changed = true;
}

static struct rt_stream *stream_get(const struct rt_service *service, uint64_t id)
{
    return bt_map_get(&service->streams, id);
}

/* ---- events */

void rt_service_on_link_up(struct rt_worker_link *link)
{
    bt_log_info(0, "worker %s is connected", link->id);
    rt_core_worker_connected(link->service->core, link->ref, bt_clock_now_ns());
}

void rt_service_on_link_broken(struct rt_worker_link *link, const char *why)
{
    struct rt_service *service = link->service;
    rt_service_trouble(link);
    if (service->closing) {
        return;
    }
    struct rt_worker_view view;
    if (rt_core_worker(service->core, link->ref, &view) && view.state != RT_WORKER_LOST) {
        bt_log_warn(0, "worker %s is lost: %s", link->id, why);
        rt_core_worker_lost(service->core, link->ref, why, bt_clock_now_ns());
    }
}

void rt_load_from_message(const Baton__V1__RankLoad *message, struct rt_load *ret_load)
{
    *ret_load = (struct rt_load){
        .pages_total = message->pages_total,
        .pages_free =
            message->pages_free < message->pages_total ? message->pages_free : message->pages_total,
        .pages_reserved = message->pages_reserved,
        .pages_ready = message->pages_ready,
        .pages_quarantined = message->pages_quarantined,
        .running = message->running,
        .waiting = message->waiting,
        .max_running = message->max_running,
        .waiting_tokens = message->waiting_tokens,
        .kv_tokens = message->kv_tokens,
        .pages_expected = message->pages_expected,
    };
}

/* False: no memory. */
static bool step_tokens(struct rt_worker_link *link, const Baton__V1__SequenceStep *sequence)
{
    if (sequence->n_tokens > link->token_capacity) {
        size_t capacity = sequence->n_tokens * 2;
        struct rt_token *grown = realloc(link->tokens, capacity * sizeof *grown);
        if (!grown || capacity > UINT32_MAX) {
            return false;
        }
        link->tokens = grown;
        link->token_capacity = (uint32_t)capacity;
    }
    for (size_t i = 0; i < sequence->n_tokens; i++) {
        const Baton__V1__Token *token = sequence->tokens[i];
        link->tokens[i] =
            (struct rt_token){.index = token->index, .token = token->token, .payload = token};
    }
    return true;
}

/* What a rank says of an end. BT_IN_PROGRESS: none yet. */
static enum bt_status step_status(const Baton__V1__SequenceStep *sequence,
                                  enum rt_finish *ret_finish)
{
    *ret_finish = RT_FINISH_ERROR;
    switch ((int)sequence->finish) {
    case BATON__V1__FINISH_REASON__FINISH_UNSPECIFIED:
        return BT_IN_PROGRESS;
    case BATON__V1__FINISH_REASON__FINISH_STOP:
        *ret_finish = RT_FINISH_STOP;
        return BT_OK;
    case BATON__V1__FINISH_REASON__FINISH_LENGTH:
        *ret_finish = RT_FINISH_LENGTH;
        return BT_OK;
    case BATON__V1__FINISH_REASON__FINISH_CANCELLED:
        return BT_ERR_CANCELLED;
    case BATON__V1__FINISH_REASON__FINISH_DEADLINE:
        return BT_ERR_DEADLINE;
    case BATON__V1__FINISH_REASON__FINISH_PREEMPTED:
        return BT_ERR_PREEMPTED;
    case BATON__V1__FINISH_REASON__FINISH_ERROR:
        return BT_ERR_INTERNAL;
    default:
        return BT_ERR_PROTOCOL;
    }
}

/* Others are no tokens of the model, and no rank would replay them. */
static bool in_vocabulary(const struct rt_service *service, const struct rt_token *tokens,
                          size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (tokens[i].token >= service->checkpoint.vocab_size) {
            return false;
        }
    }
    return true;
}

/* What it says cannot be more than there is, nor all of it. */
static uint32_t cached_tokens(const struct rt_stream *stream, uint32_t said)
{
    return said < stream->prompt_tokens ? said : 0;
}

/*
 * The prefill worker tells of an attempt in its own stream and, by the handoff, in the rank's first
 * step. Either may be read first, and the request may be over before the other is: that one counts.
 */
static void take_prefill_done(struct rt_service *service, struct rt_stream *stream,
                              uint32_t attempt, const Baton__V1__PrefillDone *done)
{
    if (stream->done_attempt == attempt) {
        return;
    }
    stream->done_attempt = attempt;
    stream->done = *done;
    stream->done.transport = NULL;
    stream->done.layers = NULL;
    stream->done.n_layers = 0;
    stream->done.cached_tokens = cached_tokens(stream, done->cached_tokens);
    rt_transport_copy(done->transport, stream->transport);
    if (stream->run_attempt != attempt) {
        return; /* another router ran it */
    }
    uint32_t cached = stream->done.cached_tokens;
    bt_counter_add(service->metrics.prefix_queries, stream->prompt_tokens);
    bt_counter_add(service->metrics.prefix_hits, cached);
    rt_core_prefill_done(service->core, stream->id, attempt,
                         done->compute_ns < INT64_MAX ? (int64_t)done->compute_ns : INT64_MAX,
                         stream->prompt_tokens - cached);
}

static void on_step_prefill(struct rt_worker_link *link, const Baton__V1__SequenceStep *sequence,
                            struct rt_stream *stream)
{
    struct rt_request_view view;
    if (rt_core_request(link->service->core, sequence->request_id, &view) && !view.local &&
        view.decode == link->ref && view.epoch == sequence->epoch && view.epoch != 0) {
        rt_transport_copy(sequence->prefill->transport, link->used_transport);
        take_prefill_done(link->service, stream, view.attempt, sequence->prefill);
    }
}

static const char strange_token[] = "token: it gave one that is not in the vocabulary";

static void on_sequence(struct rt_worker_link *link, const Baton__V1__SequenceStep *sequence,
                        int64_t now_ns)
{
    struct rt_service *service = link->service;
    enum rt_finish finish;
    enum bt_status status = step_status(sequence, &finish);
    bool finished = status != BT_IN_PROGRESS;
    size_t count = sequence->n_tokens;
    if (!step_tokens(link, sequence)) {
        /* Without these tokens the next ones leave a gap, which the core deals with. */
        bt_log_error(sequence->request_id, "no memory for tokens");
        count = 0;
    }
    if (!in_vocabulary(service, link->tokens, count)) {
        rt_worker_link_cancel(link, sequence->request_id, sequence->epoch);
        rt_core_decoded(service->core, link->ref, sequence->request_id, sequence->epoch, NULL, 0,
                        true, RT_FINISH_ERROR, BT_ERR_PROTOCOL, strange_token, now_ns);
        return;
    }
    struct rt_stream *stream = stream_get(service, sequence->request_id);
    if (stream && sequence->start) {
        rt_stages_step(&stream->stages, sequence->start, &service->metrics);
    }
    if (stream && sequence->prefill) {
        on_step_prefill(link, sequence, stream);
    }
    if (status == BT_ERR_PREEMPTED) {
        bt_counter_add(service->metrics.preemptions, 1);
    }
    if (sequence->prompt_compute_ns > 0 && sequence->prompt_compute_ns < INT64_MAX) {
        rt_core_local_prefill_done(service->core, link->ref, sequence->request_id, sequence->epoch,
                                   (int64_t)sequence->prompt_compute_ns);
    }
    rt_core_decoded(service->core, link->ref, sequence->request_id, sequence->epoch, link->tokens,
                    (uint32_t)count, finished, finish, finished ? status : BT_OK, sequence->error,
                    now_ns);
}

void rt_service_on_step(struct rt_worker_link *link, const Baton__V1__StepEvent *step)
{
    int64_t now_ns = bt_clock_now_ns();
    for (size_t i = 0; i < step->n_sequences; i++) {
        on_sequence(link, step->sequences[i], now_ns);
    }
    if (step->load) { /* made after these ends */
        struct rt_load load;
        rt_load_from_message(step->load, &load);
        rt_core_worker_load(link->service->core, link->ref, &load);
    }
    rt_service_pump(link->service); /* tokens point into the message */
}

/* A rank that was restarted at the same endpoint answers for itself, which nobody asked. */
static enum bt_status check_landing(const struct rt_worker_link *link,
                                    const Baton__V1__Landing *landing, uint64_t request,
                                    const char **ret_why)
{
    if (!landing || landing->request_id != request || landing->epoch == 0 || !landing->endpoint ||
        landing->n_runs == 0) {
        *ret_why = "the landing is not complete";
        return BT_ERR_PROTOCOL;
    }
    if (strcmp(landing->endpoint->worker_id, link->id) != 0 ||
        landing->endpoint->incarnation != link->incarnation) {
        *ret_why = "the landing is of another worker or incarnation";
        return BT_ERR_STALE;
    }
    return BT_OK;
}

static uint32_t landed_pages(const Baton__V1__Landing *landing)
{
    uint64_t pages = 0;
    for (size_t i = 0; i < landing->n_runs; i++) {
        pages += landing->runs[i]->count;
    }
    return pages < UINT32_MAX ? (uint32_t)pages : UINT32_MAX;
}

static Baton__V1__Landing *copy_landing(const Baton__V1__Landing *landing)
{
    size_t size = baton__v1__landing__get_packed_size(landing);
    uint8_t *packed = malloc(size + 1);
    if (!packed) {
        return NULL;
    }
    baton__v1__landing__pack(landing, packed);
    Baton__V1__Landing *copy = baton__v1__landing__unpack(NULL, size, packed);
    free(packed);
    return copy;
}

/* Whether the answer is the one that the core waits for decides the core. */
static enum bt_status keep_landing(struct rt_service *service, uint64_t request, uint32_t attempt,
                                   const Baton__V1__Landing *landing)
{
    struct rt_stream *stream = stream_get(service, request);
    struct rt_request_view view;
    if (!stream || !rt_core_request(service->core, request, &view) || view.attempt != attempt ||
        view.state != RT_RESERVING) {
        return BT_OK;
    }
    Baton__V1__Landing *copy = copy_landing(landing);
    if (!copy) {
        return BT_ERR_NO_MEMORY;
    }
    if (stream->landing) {
        baton__v1__landing__free_unpacked(stream->landing, NULL);
    }
    stream->landing = copy;
    return BT_OK;
}

/* The rank computes the prompt, and has no landing to tell of. */
static bool reserved_locally(const struct rt_service *service, uint64_t request, uint32_t attempt,
                             const Baton__V1__ReserveResponse *response)
{
    struct rt_request_view view;
    return response && !response->landing && rt_core_request(service->core, request, &view) &&
           view.attempt == attempt && view.local;
}

void rt_service_on_reserved(struct rt_worker_link *link, uint64_t request, uint32_t attempt,
                            enum bt_status status, const char *text,
                            const Baton__V1__ReserveResponse *response)
{
    struct rt_service *service = link->service;
    if (service->closing) {
        return;
    }
    if (status == BT_OK && reserved_locally(service, request, attempt, response)) {
        rt_core_reserved(service->core, request, attempt, link->ref, BT_OK, NULL, response->epoch,
                         bt_clock_now_ns());
        return;
    }
    const Baton__V1__Landing *landing = response ? response->landing : NULL;
    if (status == BT_OK) {
        status = check_landing(link, landing, request, &text);
    }
    if (status == BT_OK) {
        status = keep_landing(service, request, attempt, landing);
        text = "no memory for a landing";
    }
    if (status != BT_OK) {
        bt_counter_add(service->metrics.reserve_refusals, 1);
    }
    if (status == BT_OK) {
        rt_core_landed(service->core, request, attempt, landed_pages(landing));
    }
    rt_core_reserved(service->core, request, attempt, link->ref, status, text,
                     status == BT_OK ? landing->epoch : 0, bt_clock_now_ns());
}

static void cancel_run(struct rt_stream *stream, uint32_t attempt)
{
    if (stream && stream->run && stream->run_attempt == attempt) {
        rt_run_cancel(stream->run);
        stream->run = NULL;
    }
}

static void on_first_token(struct rt_worker_link *link, uint64_t request, uint32_t attempt,
                           const Baton__V1__PrefillEvent *event)
{
    struct rt_service *service = link->service;
    struct rt_stream *stream = stream_get(service, request);
    if (stream && stream->run_attempt == attempt && stream->done_attempt != attempt) {
        stream->done.cached_tokens = cached_tokens(stream, event->cached_tokens);
    }
    struct rt_token token = {.index = event->first_token->index,
                             .token = event->first_token->token,
                             .payload = event->first_token};
    if (in_vocabulary(service, &token, 1)) {
        rt_core_first_token(service->core, request, attempt, &token, bt_clock_now_ns());
    } else {
        cancel_run(stream, attempt);
        rt_core_prefill_ended(service->core, request, attempt, BT_ERR_PROTOCOL, strange_token,
                              bt_clock_now_ns());
    }
    rt_service_pump(service); /* the token points into the message */
}

static void note_rank_transport(const struct rt_service *service, uint64_t request,
                                const char *transport)
{
    struct rt_request_view view;
    if (rt_core_request(service->core, request, &view)) {
        struct rt_worker_link *rank = rt_service_link(service, view.decode);
        if (rank) {
            rt_transport_copy(transport, rank->used_transport);
        }
    }
}

static void on_prefill_done(struct rt_worker_link *link, uint64_t request, uint32_t attempt,
                            const Baton__V1__PrefillDone *done)
{
    struct rt_service *service = link->service;
    struct rt_stream *stream = stream_get(service, request);
    bt_counter_add(service->metrics.kv_pushed_bytes, done->kv_bytes);
    bt_counter_add(service->metrics.kv_hidden_bytes, done->hidden_bytes);
    rt_rank_metrics_pushed(link, done->kv_bytes, bt_clock_now_ns());
    rt_transport_copy(done->transport, link->used_transport);
    if (stream && stream->run_attempt == attempt) {
        take_prefill_done(service, stream, attempt, done);
        note_rank_transport(service, request, done->transport);
        rt_stages_prefill_done(&stream->stages, attempt, done, &service->metrics);
    } else if (!stream) {
        rt_service_trace_late_done(service, request, attempt, done);
    }
}

void rt_service_on_adopted(struct rt_worker_link *link, uint64_t request, uint64_t epoch,
                           enum bt_status status, const char *text)
{
    struct rt_service *service = link->service;
    if (status == BT_OK || service->closing) {
        return;
    }
    bt_log_info(request, "not taken over from %s: %s", link->id,
                text && text[0] ? text : bt_status_name(status));
    if (status != BT_ERR_NOT_FOUND) {
        rt_worker_link_cancel(link, request, epoch); /* it may have understood */
    }
    rt_core_decoded(service->core, link->ref, request, epoch, NULL, 0, true, RT_FINISH_ERROR,
                    BT_ERR_UNAVAILABLE, text, bt_clock_now_ns());
}

void rt_service_on_run_event(struct rt_worker_link *link, uint64_t request, uint32_t attempt,
                             const Baton__V1__PrefillEvent *event)
{
    if (event->event_case == BATON__V1__PREFILL_EVENT__EVENT_FIRST_TOKEN && event->first_token) {
        on_first_token(link, request, attempt, event);
    } else if (event->event_case == BATON__V1__PREFILL_EVENT__EVENT_DONE && event->done) {
        on_prefill_done(link, request, attempt, event->done);
    }
}

void rt_service_on_run_ended(struct rt_worker_link *link, uint64_t request, uint32_t attempt,
                             struct rt_run *run, enum bt_status status, const char *text)
{
    struct rt_service *service = link->service;
    struct rt_stream *stream = stream_get(service, request);
    if (stream && stream->run == run) {
        stream->run = NULL;
    }
    if (!service->closing) {
        rt_core_prefill_ended(service->core, request, attempt, status, text, bt_clock_now_ns());
    }
}

/* ---- actions */

/*
 * The client has some tokens already: the rank goes on behind them instead of drawing them anew.
 * All but the last, which comes once more: the core sees that it is the same, and the rank itself
 * says whether it was the end.
 */
static void add_replay(struct rt_service *service, Baton__V1__ReserveRequest *request)
{
    const uint32_t *tokens;
    uint32_t count = rt_core_delivered(service->core, request->request_id, &tokens);
    if (count > 1) {
        request->n_replay = count - 1;
        request->replay = (uint32_t *)tokens;
        bt_counter_add(service->metrics.replayed_tokens, count - 1);
    }
}

/* Its prompt is computed from now on, and what is said of it is about that. */
static void note_dispatch(struct rt_service *service, struct rt_stream *stream,
                          const struct rt_worker_link *prefill, const struct rt_worker_link *decode)
{
    int64_t now_ns = bt_clock_now_ns();
    if (stream->dispatched_ns == 0) {
        stream->dispatched_ns = now_ns;
        bt_histogram_observe(service->metrics.queue_time,
                             (double)(now_ns - stream->arrival_ns) / 1e9);
    }
    stream->done = (Baton__V1__PrefillDone)BATON__V1__PREFILL_DONE__INIT;
    stream->done.transport = NULL;
    stream->transport[0] = '\0';
    snprintf(stream->prefill_worker, RT_WORKER_ID_SIZE, "%s", prefill ? prefill->id : "");
    snprintf(stream->decode_worker, RT_WORKER_ID_SIZE, "%s", decode ? decode->id : "");
}

static void act_reserve(struct rt_service *service, struct rt_stream *stream,
                        const struct rt_action *action)
{
    struct rt_worker_link *link = rt_service_link(service, action->decode);
    Baton__V1__ReserveRequest request = BATON__V1__RESERVE_REQUEST__INIT;
    request.request_id = stream->id;
    request.prompt_tokens = stream->prompt_tokens;
    request.sampling = &stream->sampling;
    request.local_prefill = action->local;
    if (stream->sampling.repetition_penalty != 1 || action->local) {
        request.n_prompt = stream->prompt_tokens;
        request.prompt = stream->prompt;
    }
    request.full = action->full;
    request.expected_pages = action->pages;
    request.router_incarnation = service->incarnation;
    if (rt_stream_resumable(stream)) {
        request.resume_key = (ProtobufCBinaryData){RT_DIGEST_BYTES, stream->key.bytes};
    }
    add_replay(service, &request);
    Baton__V1__TraceContext trace;
    rt_trace_context_fill(&stream->stages.trace, &trace);
    request.trace = &trace;
    rt_stages_reserve(&stream->stages, bt_clock_now_ns());
    if (action->local) {
        note_dispatch(service, stream, link, link);
    }
    enum bt_status status =
        link ? rt_worker_link_reserve(link, action->attempt, stream->deadline_ns, &request)
             : BT_ERR_UNAVAILABLE;
    if (status != BT_OK) {
        rt_core_reserved(service->core, stream->id, action->attempt, action->decode, status,
                         "the reserve could not be sent", 0, bt_clock_now_ns());
    }
}

static void act_prefill(struct rt_service *service, struct rt_stream *stream,
                        const struct rt_action *action)
{
    int64_t now_ns = bt_clock_now_ns();
    struct rt_worker_link *link = rt_service_link(service, action->prefill);
    const struct rt_worker_link *rank = rt_service_link(service, action->decode);
    BT_ASSERT(stream->landing && stream->landing->epoch == action->epoch);
    note_dispatch(service, stream, link, rank);
    Baton__V1__PrefillRequest request = BATON__V1__PREFILL_REQUEST__INIT;
    request.request_id = stream->id;
    request.n_prompt = stream->prompt_tokens;
    request.prompt = stream->prompt;
    request.sampling = &stream->sampling;
    request.landing = stream->landing;
    Baton__V1__TraceContext trace;
    rt_trace_context_fill(&stream->stages.trace, &trace);
    request.trace = &trace;
    rt_stages_prefill(&stream->stages, action->attempt, now_ns);
    stream->run_attempt = action->attempt;
    enum bt_status status = link ? rt_worker_link_run(link, action->attempt, stream->deadline_ns,
                                                      &request, &stream->run)
                                 : BT_ERR_UNAVAILABLE;
    if (status != BT_OK) {
        rt_core_prefill_ended(service->core, stream->id, action->attempt, status,
                              "the run could not be sent", now_ns);
    }
}

static void act_cancel_decode(struct rt_service *service, const struct rt_action *action)
{
    struct rt_worker_link *link = rt_service_link(service, action->decode);
    if (link) {
        rt_worker_link_cancel(link, action->request, action->epoch);
    }
}

/* `stopped`: with this output. */
static void after_output(struct rt_service *service, struct rt_stream *stream,
                         enum bt_status status, bool stopped)
{
    int64_t now_ns = bt_clock_now_ns();
    if (status != BT_OK) {
        rt_stream_end(stream, RT_FINISH_ERROR, status, "no memory for text", now_ns,
                      &service->metrics);
        rt_core_finish(service->core, stream->id, RT_FINISH_CANCELLED, now_ns);
    } else if (stopped) {
        rt_core_finish(service->core, stream->id, RT_FINISH_STOP, now_ns);
    }
}

static void act_tokens(struct rt_service *service, struct rt_stream *stream,
                       const struct rt_action *action)
{
    bool stopped = false;
    enum bt_status status =
        rt_stream_output(stream, action->tokens, action->token_count, bt_clock_now_ns(),
                         &service->output, &service->metrics, &stopped);
    after_output(service, stream, status, stopped);
}

/* Before any action: what is queued comes behind what was delivered when they were taken over. */
static void catch_up(struct rt_service *service)
{
    while (service->catching) {
        struct rt_stream *stream = service->catching;
        service->catching = stream->next_catching;
        stream->catching_up = false;
        bool stopped = false;
        enum bt_status status = rt_stream_catch_up(stream, &service->output, &stopped);
        after_output(service, stream, status, stopped);
    }
}

static void act_end(struct rt_service *service, struct rt_stream *stream,
                    const struct rt_action *action)
{
    if (action->finish == RT_FINISH_ERROR) {
        bt_log_warn(stream->id, "%s failed: %s", stream->name, action->text);
    }
    bt_map_remove(&service->streams, stream->id);
    rt_service_settle(service, stream);
    rt_stream_end(stream, action->finish, action->status, action->text, bt_clock_now_ns(),
                  &service->metrics);
    rt_service_trace_keep(service, stream, action->finish, bt_clock_now_ns());
    struct rt_stream *successor = stream->successor;
    stream->successor = NULL;
    rt_stream_destroy(stream);
    rt_service_follow(service, successor);
}

static void act(struct rt_service *service, const struct rt_action *action)
{
    if (action->kind == RT_ACTION_CANCEL_DECODE) {
        act_cancel_decode(service, action); /* also for requests that are long over */
        return;
    }
    struct rt_stream *stream = stream_get(service, action->request);
    BT_ASSERT(stream);
    switch (action->kind) {
    case RT_ACTION_RESERVE:
        act_reserve(service, stream, action);
        break;
    case RT_ACTION_PREFILL:
        act_prefill(service, stream, action);
        break;
    case RT_ACTION_CANCEL_PREFILL:
        cancel_run(stream, action->attempt);
        break;
    case RT_ACTION_TOKENS:
        act_tokens(service, stream, action);
        break;
    case RT_ACTION_END:
        act_end(service, stream, action);
        break;
    case RT_ACTION_CANCEL_DECODE:
        break;
    }
}

static void act_all(struct rt_service *service)
{
    struct rt_action action;
    while (rt_core_next_action(service->core, &action)) {
        act(service, &action);
    }
}

/* Closes what broke or is lost, frees what the core has forgotten. */
static void tend_link(struct rt_service *service, struct rt_worker_link *link)
{
    struct rt_worker_view view;
    bool known = rt_core_worker(service->core, link->ref, &view);
    if (!known || view.state == RT_WORKER_LOST) {
        rt_worker_prefixes_forget(service->prefixes, link->ref);
        rt_orphans_forget(service->orphans, link->ref);
    }
    if (!known) {
        rt_worker_link_close(link);
        rt_worker_links_remove(&service->links, link);
        rt_worker_link_destroy(link);
        return;
    }
    if (link->client && (link->broken || view.state == RT_WORKER_LOST)) {
        if (!link->broken && !link->left) {
            bt_log_warn(0, "worker %s is lost: %s", link->id, view.why_lost);
        }
        bt_counter_add(service->metrics.worker_losses, link->left ? 0 : 1);
        rt_worker_link_close(link);
    } else if (view.state != RT_WORKER_LOST) {
        rt_worker_links_well(&service->links, link); /* it came back */
    }
}

/* Those that are lost are troubled until the core forgets them, and few, or it is a bad day. */
static void tend_links(struct rt_service *service)
{
    service->links_changed = false;
    service->liveness = rt_core_liveness(service->core);
    rt_worker_ref ref = RT_NO_WORKER;
    while ((ref = rt_core_next_lost(service->core, ref)) != RT_NO_WORKER) {
        struct rt_worker_link *lost = rt_service_link(service, ref);
        if (lost) {
            rt_worker_links_trouble(&service->links, lost);
        }
    }
    struct rt_worker_link *next;
    for (struct rt_worker_link *link = service->links.troubled; link; link = next) {
        next = link->next_troubled;
        tend_link(service, link);
    }
}

static bool links_need_care(const struct rt_service *service)
{
    return service->links_changed || service->liveness != rt_core_liveness(service->core);
}

void rt_service_pump(struct rt_service *service)
{
    BT_ASSERT(!service->pumping);
    service->pumping = true;
    catch_up(service);
    int64_t now_ns = bt_clock_now_ns();
    if (rt_core_next_deadline_ns(service->core) <= now_ns) {
        rt_core_tick(service->core, now_ns);
    }
    act_all(service);
    while (links_need_care(service)) {
        tend_links(service);
        act_all(service);
    }
    service->pumping = false;
    bt_loop_timer_set(service->timer, rt_core_next_deadline_ns(service->core));
}
