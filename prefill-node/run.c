#include "prefill-node/run.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/model/token_message.h"
#include "prefill-node/rank_endpoint.h"

#define HANDOFF_CALL_NS      (500 * BT_NS_PER_MS) /* HandoffDone's first; each next one twice */
#define HANDOFF_MAX_CALL_NS  (8 * BT_NS_PER_S)
#define HANDOFF_GIVE_UP_NS   (30 * BT_NS_PER_S) /* all attempts, where the call has no deadline */
#define HANDOFF_MIN_RETRY_NS (20 * BT_NS_PER_MS)
#define HANDOFF_MAX_RETRY_NS BT_NS_PER_S

enum run_state { RUN_WAITING, RUN_COMPUTING, RUN_HANDING_OFF };

struct run {
    struct pf_runs *runs;
    struct bt_rpc_call *call; /* NULL: ended */
    struct pf_request request;
    struct pf_peer *peer;
    struct pf_lease lease;
    struct pf_quiesced *quiesced; /* kept for the end */
    int64_t accepted_ns;
    enum run_state state;

    uint32_t *pages; /* [request.page_count] of our pool; NULL: none yet */
    enum bt_page_state page_state;
    struct kvt_push *push;
    struct kvt_link *link; /* the push's, valid as long */
    struct pf_job job;
    bool in_compute; /* the job is the compute thread's */
    bool push_open;  /* its event has not come */
    struct kvt_push_event pushed;
    struct pf_cuts cuts; /* that the push leaves behind */

    struct bt_rpc_pending *handoff; /* HandoffDone is out */
    struct bt_loop_source *handoff_timer;
    int64_t handoff_call_ns, handoff_retry_ns, handoff_give_up_ns;
    char handoff_text[200]; /* why the last attempt has to be repeated; "": it was the first */

    bool ending;
    enum bt_status status; /* with ending */
    char text[BT_ERROR_TEXT_SIZE];
};

struct pf_runs {
    struct pf_runs_options options;
    struct bt_loop_source *compute_source, *push_source;
    struct run **list; /* [max_runs], in order of acceptance */
    uint32_t count;
    uint64_t next_serial;
    bool refusing;
    enum bt_status refusing_status;
    const char *refusing_text;
};

static void run_advance(struct run *run);
static void runs_admit(struct pf_runs *runs);

static struct bt_page_owner owner_of(const struct run *run)
{
    return (struct bt_page_owner){run->request.request, run->request.epoch};
}

/* ------------------------------------------------------------------ the end */

/* The first error counts. What is under way is asked to stop; run_advance waits for it. */
static void run_fail(struct run *run, enum bt_status status, const char *text)
{
    if (run->ending) {
        return;
    }
    run->ending = true;
    run->status = status;
    snprintf(run->text, sizeof(run->text), "%s", text);
    if (run->in_compute) {
        pf_compute_cancel(run->runs->options.compute, run->job.serial);
    }
    if (run->push_open) {
        kvt_push_cancel(run->push);
    }
    if (run->handoff) {
        bt_rpc_pending_cancel(run->handoff);
    }
    run_advance(run);
}

static void run_free_pages(struct run *run)
{
    if (run->pages) {
        bt_page_pool_move(run->runs->options.pages, run->pages, run->request.page_count,
                          owner_of(run), run->page_state, BT_PAGE_FREE);
        free(run->pages);
        run->pages = NULL;
    }
}

static void run_count_end(const struct run *run)
{
    const struct pf_metrics *metrics = run->runs->options.metrics;
    if (run->request.probe && run->status == BT_OK) {
        return;
    }
    if (run->status == BT_OK) {
        bt_counter_add(metrics->succeeded, 1);
    } else if (run->status == BT_ERR_CANCELLED || run->status == BT_ERR_DEADLINE) {
        bt_counter_add(metrics->cancelled, 1);
    } else {
        bt_counter_add(metrics->failed, 1);
        bt_log_warn(run->request.request, "run failed: %s: %s", bt_status_name(run->status),
                    run->text);
    }
}

/* Nothing of the run is under way any more: the rank may have its pages back, the call its END. */
static void run_end_call(struct run *run)
{
    run_free_pages(run);
    pf_peer_lease_drop(run->peer, &run->lease);
    if ((run->status != BT_OK || run->request.probe) && run->lease.asked_ns != 0) {
        run->quiesced->cuts = run->cuts;
        pf_peer_quiesced(run->peer, run->quiesced);
        run->quiesced = NULL;
    }
    if (run->push) {
        kvt_push_close(run->push);
        run->push = NULL;
    }
    run_count_end(run);
    bt_rpc_call_on_cancel(run->call, NULL, NULL);
    bt_rpc_call_end(run->call, run->status, run->status == BT_OK ? NULL : run->text, NULL);
    run->call = NULL;
}

static void run_destroy(struct run *run)
{
    if (run->peer) {
        pf_peer_release(run->peer);
    }
    bt_loop_remove(run->handoff_timer);
    pf_request_finish(&run->request);
    free(run->quiesced);
    free(run->pages);
    free(run);
}

static void run_remove(struct run *run)
{
    struct pf_runs *runs = run->runs;
    for (uint32_t i = 0; i < runs->count; i++) {
        if (runs->list[i] == run) {
            runs->count--;
            memmove(&runs->list[i], &runs->list[i + 1], (runs->count - i) * sizeof(struct run *));
            break;
        }
    }
    run_destroy(run);
    runs_admit(runs);
    runs->options.changed(runs->options.context);
}

/* ------------------------------------------------------------------ handoff */

/* Sent before HandoffDone, so that the router knows these figures when the rank's tokens come. */
static void send_done(struct run *run)
{
    const struct kvt_push_event *pushed = &run->pushed;
    Baton__V1__PrefillDone done = BATON__V1__PREFILL_DONE__INIT;
    done.kv_bytes = pushed->bytes;
    done.writes = pushed->writes;
    done.compute_ns = (uint64_t)(run->job.computed_ns - run->job.started_ns);
    done.visible_transfer_ns = pushed->end_ns > run->job.computed_ns
                                   ? (uint64_t)(pushed->end_ns - run->job.computed_ns)
                                   : 0;
    done.hidden_bytes = pushed->hidden_bytes;
    done.layerwise = run->request.prompt_tokens > run->runs->options.layerwise_threshold;
    done.transport = (char *)pf_peer_transport(run->peer);
    Baton__V1__PrefillEvent event = BATON__V1__PREFILL_EVENT__INIT;
    event.event_case = BATON__V1__PREFILL_EVENT__EVENT_DONE;
    event.done = &done;
    bt_rpc_call_send(run->call, &event.base);

    const struct pf_metrics *metrics = run->runs->options.metrics;
    if (run->request.probe) {
        return;
    }
    bt_counter_add(metrics->kv_bytes, done.kv_bytes);
    bt_counter_add(metrics->kv_bytes_hidden, done.hidden_bytes);
    bt_counter_add(metrics->kv_writes, done.writes);
    bt_histogram_observe(metrics->visible_transfer_seconds,
                         (double)done.visible_transfer_ns * 1e-9);
}

static void handoff_later(struct run *run, enum bt_status status, const char *text)
{
    int64_t now_ns = bt_clock_now_ns();
    if (now_ns + run->handoff_retry_ns >= run->handoff_give_up_ns) {
        char why[BT_ERROR_TEXT_SIZE];
        snprintf(why, sizeof(why), "handoff: %.400s (%s)", text, bt_status_name(status));
        run_fail(run, BT_ERR_UNAVAILABLE, why);
        return;
    }
    snprintf(run->handoff_text, sizeof(run->handoff_text), "%s%s%.150s", bt_status_name(status),
             text[0] ? ": " : "", text);
    bt_loop_timer_set(run->handoff_timer, now_ns + run->handoff_retry_ns);
    run->handoff_retry_ns = run->handoff_retry_ns * 2 < HANDOFF_MAX_RETRY_NS
                                ? run->handoff_retry_ns * 2
                                : HANDOFF_MAX_RETRY_NS;
}

/* A rank that could not take it may have let the landing go: then the first refusal says why. */
static void handoff_refused(struct run *run, enum bt_status status, const char *text)
{
    char why[BT_ERROR_TEXT_SIZE];
    snprintf(why, sizeof(why), "%.250s%s%s%s",
             text[0] ? text : "the decode rank refused the handoff",
             run->handoff_text[0] ? " (the attempt before: " : "", run->handoff_text,
             run->handoff_text[0] ? ")" : "");
    run_fail(run, status, why);
}

static void on_handoff(void *context, enum bt_status status, const char *text,
                       const ProtobufCMessage *response)
{
    struct run *run = context;
    (void)response;
    run->handoff = NULL;
    if (run->ending) {
        run_advance(run);
    } else if (status == BT_OK) {
        kvt_source_cuts_over(run->runs->options.source, run->pushed.link, run->pushed.cut_lines);
        run->ending = true;
        run->status = BT_OK;
        run_advance(run);
    } else if (pf_rank_worth_retrying(status)) {
        handoff_later(run, status, text);
    } else {
        handoff_refused(run, status, text);
    }
}

static void handoff_send(struct run *run)
{
    int64_t now_ns = bt_clock_now_ns();
    int64_t until_ns = now_ns + run->handoff_call_ns;
    run->handoff_call_ns = run->handoff_call_ns * 2 < HANDOFF_MAX_CALL_NS ? run->handoff_call_ns * 2
                                                                          : HANDOFF_MAX_CALL_NS;
    struct bt_token_message token;
    bt_token_message_fill(&token, 0, &run->job.first, run->request.sampling.logprobs >= 0);
    Baton__V1__HandoffDoneRequest request = BATON__V1__HANDOFF_DONE_REQUEST__INIT;
    request.request_id = run->request.request;
    request.epoch = run->request.epoch;
    request.prompt_tokens = run->request.prompt_tokens;
    request.page_count = run->request.page_count;
    request.has_checksum = run->runs->options.checksum;
    request.checksum = request.has_checksum ? run->pushed.checksum : 0;
    request.first_token = &token.token;
    struct pf_cuts_message cuts;
    pf_cuts_message_fill(&cuts, &run->cuts);
    request.cuts = cuts.list;
    request.n_cuts = run->cuts.count;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Decode/HandoffDone",
        .request = &request.base,
        .response = &baton__v1__handoff_done_response__descriptor,
        .deadline_ns = until_ns < run->handoff_give_up_ns ? until_ns : run->handoff_give_up_ns,
        .on_end = on_handoff,
        .context = run,
    };
    struct bt_error error;
    enum bt_status status =
        bt_rpc_client_call(pf_peer_client(run->peer), &spec, &error, &run->handoff);
    if (status != BT_OK) {
        run->handoff = NULL;
        handoff_later(run, status, error.text);
    }
}

static void handoff_fire(void *context)
{
    struct run *run = context;
    if (!run->ending && !run->handoff) {
        handoff_send(run);
    }
}

static void handoff_start(struct run *run)
{
    int64_t deadline_ns = bt_rpc_call_deadline_ns(run->call);
    int64_t bound_ns = bt_clock_now_ns() + HANDOFF_GIVE_UP_NS;
    run->state = RUN_HANDING_OFF;
    run->handoff_call_ns = HANDOFF_CALL_NS;
    run->handoff_retry_ns = HANDOFF_MIN_RETRY_NS;
    run->handoff_give_up_ns = deadline_ns == BT_NEVER_NS ? bound_ns : deadline_ns;
    send_done(run);
    handoff_send(run);
}

/* What there is to compute: nothing. Its time counts from the first write. */
static void probe_end(struct run *run)
{
    run->job.started_ns = run->job.computed_ns = run->pushed.first_write_ns;
    send_done(run);
    run->ending = true;
    run->status = BT_OK;
}

/* Goes on as far as what is under way allows. May free the run. */
static void run_advance(struct run *run)
{
    if (run->in_compute || run->push_open) {
        return;
    }
    if (!run->ending) {
        if (run->state != RUN_COMPUTING) {
            return;
        }
        run_free_pages(run);
        if (!run->request.probe) {
            handoff_start(run);
            return;
        }
        probe_end(run);
    }
    if (run->call) {
        run_end_call(run);
    }
    if (!run->handoff) {
        run_remove(run);
    }
}

/* ------------------------------------------------------------------ events */

static void send_started(struct run *run)
{
    Baton__V1__PrefillStarted started = BATON__V1__PREFILL_STARTED__INIT;
    Baton__V1__PrefillEvent event = BATON__V1__PREFILL_EVENT__INIT;
    event.event_case = BATON__V1__PREFILL_EVENT__EVENT_STARTED;
    event.started = &started;
    bt_rpc_call_send(run->call, &event.base);
}

static void send_first_token(struct run *run)
{
    struct bt_token_message token;
    bt_token_message_fill(&token, 0, &run->job.first, run->request.sampling.logprobs >= 0);
    Baton__V1__PrefillEvent event = BATON__V1__PREFILL_EVENT__INIT;
    event.event_case = BATON__V1__PREFILL_EVENT__EVENT_FIRST_TOKEN;
    event.first_token = &token.token;
    bt_rpc_call_send(run->call, &event.base);
}

static void run_computed(struct run *run)
{
    const struct pf_metrics *metrics = run->runs->options.metrics;
    bt_counter_add(metrics->prompt_tokens, run->request.prompt_tokens);
    bt_histogram_observe(metrics->queue_seconds,
                         (double)(run->job.started_ns - run->accepted_ns) * 1e-9);
    bt_histogram_observe(metrics->prefill_seconds,
                         (double)(run->job.computed_ns - run->job.started_ns) * 1e-9);
    bt_page_pool_move(run->runs->options.pages, run->pages, run->request.page_count, owner_of(run),
                      BT_PAGE_RESERVED, BT_PAGE_READY);
    run->page_state = BT_PAGE_READY;
    if (!run->ending) {
        send_first_token(run);
    }
}

static void on_compute(void *context)
{
    struct pf_runs *runs = context;
    struct pf_compute_event event;
    while (bt_queue_try_pop(pf_compute_events(runs->options.compute), &event)) {
        struct run *run = event.job->user;
        if (event.kind == PF_COMPUTE_STARTED) {
            if (!run->ending) {
                send_started(run);
            }
            continue;
        }
        run->in_compute = false;
        if (event.kind == PF_COMPUTE_COMPUTED) {
            run_computed(run);
        }
        run_advance(run);
    }
}

static void run_push_failed(struct run *run, enum bt_status status)
{
    char why[BT_ERROR_TEXT_SIZE];
    const char *link_error = kvt_link_error(run->link);
    if (status == BT_ERR_DEADLINE) {
        run_fail(run, status, "push: the lease ran out");
        return;
    }
    snprintf(why, sizeof(why), "push: the link to the decode rank broke%s%.400s",
             link_error[0] ? ": " : "", link_error);
    run_fail(run, status, why);
}

static void on_push(void *context)
{
    struct pf_runs *runs = context;
    struct kvt_push_event event;
    while (bt_queue_try_pop(kvt_source_events(runs->options.source), &event)) {
        struct run *run = event.user;
        run->push_open = false;
        run->pushed = event;
        pf_cuts_add(&run->cuts, pf_cut_of(&event));
        if (event.status != BT_OK && !run->ending) {
            run_push_failed(run, event.status);
        } else {
            run_advance(run);
        }
    }
}

static void on_lease(void *context, enum bt_status status, int64_t until_ns)
{
    struct run *run = context;
    if (status == BT_OK) {
        if (run->push) {
            kvt_push_lease(run->push, until_ns);
        }
    } else if (run->state != RUN_HANDING_OFF) {
        /* After the flush nothing is written: HandoffDone's answer decides. */
        run_fail(run, status,
                 status == BT_ERR_STALE      ? "the decode rank holds no such landing"
                 : status == BT_ERR_DEADLINE ? "the lease ran out"
                                             : "the decode rank did not answer for a lease");
    }
}

static void on_cancel(void *context, struct bt_rpc_call *call)
{
    struct run *run = context;
    bool late = bt_clock_now_ns() >= bt_rpc_call_deadline_ns(call);
    run_fail(run, late ? BT_ERR_DEADLINE : BT_ERR_CANCELLED,
             late ? "deadline passed" : "cancelled");
}

/* ------------------------------------------------------------------ admission */

static enum bt_status run_open_push(struct run *run, struct bt_error *error)
{
    const struct pf_runs_options *options = &run->runs->options;
    struct kvt_push_spec spec = {
        .request = run->request.request,
        .epoch = run->request.epoch,
        .source_pages = run->pages,
        .target_pages = run->request.target_pages,
        .prompt_tokens = run->request.prompt_tokens,
        .layerwise = run->request.prompt_tokens > options->layerwise_threshold,
        .user = run,
    };
    enum bt_status status = pf_peer_link(run->peer, error, &spec.link);
    if (status == BT_OK) {
        status = kvt_push_open(options->source, &spec, error, &run->push);
        run->link = spec.link;
    }
    if (status == BT_OK) {
        run->push_open = true;
        if (run->lease.until_ns != 0) {
            kvt_push_lease(run->push, run->lease.until_ns);
        }
    }
    return status;
}

static void run_compute(struct run *run)
{
    run->job = (struct pf_job){
        .serial = ++run->runs->next_serial,
        .request = run->request.request,
        .tokens = run->request.prompt,
        .token_count = run->request.prompt_tokens,
        .pages = run->pages,
        .sampling = &run->request.sampling,
        .history = run->request.history,
        .push = run->push,
        .arrival_ns = run->accepted_ns,
        .user = run,
    };
    run->state = RUN_COMPUTING;
    run->in_compute = true;
    pf_compute_add(run->runs->options.compute, &run->job);
}

/* False: no pages are free for it now. */
static bool run_admit(struct run *run)
{
    uint32_t *pages = calloc(run->request.page_count, sizeof(uint32_t));
    if (!pages || !bt_page_pool_alloc(run->runs->options.pages, run->request.page_count,
                                      owner_of(run), pages)) {
        free(pages);
        return false;
    }
    run->pages = pages;
    run->page_state = BT_PAGE_RESERVED;
    struct bt_error error;
    enum bt_status status = run_open_push(run, &error);
    if (status != BT_OK) {
        run_fail(run, status, error.text); /* frees the run, and admits again */
        return true;
    }
    if (run->request.probe) {
        run->state = RUN_COMPUTING;
        kvt_push_finish(run->push);
    } else {
        run_compute(run);
    }
    return true;
}

static struct run *first_waiting(const struct pf_runs *runs)
{
    for (uint32_t i = 0; i < runs->count; i++) {
        if (runs->list[i]->state == RUN_WAITING && !runs->list[i]->ending) {
            return runs->list[i];
        }
    }
    return NULL;
}

/* In order of acceptance: a long prompt is not passed by short ones for ever. */
static void runs_admit(struct pf_runs *runs)
{
    struct run *run;
    while ((run = first_waiting(runs)) && run_admit(run)) {
    }
}

static bool runs_has(const struct pf_runs *runs, uint64_t request, uint64_t epoch)
{
    for (uint32_t i = 0; i < runs->count; i++) {
        const struct pf_request *other = &runs->list[i]->request;
        if (other->request == request && other->epoch == epoch) {
            return true;
        }
    }
    return false;
}

static enum bt_status run_check(const struct run *run, struct bt_error *error)
{
    const struct pf_runs *runs = run->runs;
    if (runs->refusing) {
        return bt_error_set(error, runs->refusing_status, "%s", runs->refusing_text);
    }
    if (runs_has(runs, run->request.request, run->request.epoch)) {
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS,
                            "request and landing.epoch are being worked on");
    }
    if (runs->count == runs->options.max_runs) {
        return bt_error_set(error, BT_ERR_EXHAUSTED, "%" PRIu32 " requests are here already",
                            runs->options.max_runs);
    }
    uint32_t total = bt_page_pool_total(runs->options.pages);
    if (run->request.page_count > total) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "prompt: %" PRIu32 " pages, this worker has %" PRIu32,
                            run->request.page_count, total);
    }
    return BT_OK;
}

/* Everything that may fail, before anything is under way. */
static enum bt_status run_create(struct pf_runs *runs, const Baton__V1__PrefillRequest *message,
                                 struct bt_error *error, struct run **ret_run)
{
    struct run *run = calloc(1, sizeof(*run));
    if (!run) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "run: no memory");
    }
    run->runs = runs;
    run->accepted_ns = bt_clock_now_ns();
    run->quiesced = calloc(1, sizeof(*run->quiesced));
    run->handoff_timer = bt_loop_add_timer(runs->options.loop, BT_NEVER_NS, handoff_fire, run);
    enum bt_status status = pf_request_init(&run->request, message, &runs->options.limits, error);
    if (status != BT_OK) {
        goto err_run;
    }
    status = run_check(run, error);
    if (status != BT_OK) {
        goto err_run;
    }
    struct pf_peer *peer;
    status = pf_peers_get(runs->options.peers, message->landing->endpoint, error, &peer);
    if (status != BT_OK) {
        goto err_run;
    }
    if (pf_peer_is_quiescing(peer, run->request.request, run->request.epoch)) {
        status = bt_error_set(error, BT_ERR_STALE, "landing.epoch is over");
        goto err_run;
    }
    status = pf_peer_acquire(peer, error);
    if (status != BT_OK) {
        goto err_run;
    }
    run->peer = peer;
    run->lease = (struct pf_lease){.request = run->request.request,
                                   .epoch = run->request.epoch,
                                   .lease_ms = run->request.lease_ms,
                                   .news = on_lease,
                                   .context = run};
    if (!run->quiesced || !run->handoff_timer || pf_peer_lease_hold(peer, &run->lease) != BT_OK) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "run: no memory");
        goto err_run;
    }
    *run->quiesced =
        (struct pf_quiesced){.request = run->request.request, .epoch = run->request.epoch};
    *ret_run = run;
    return BT_OK;

err_run:
    run_destroy(run);
    return status;
}

void pf_runs_accept(struct pf_runs *runs, struct bt_rpc_call *call,
                    const Baton__V1__PrefillRequest *message)
{
    struct bt_error error;
    struct run *run = NULL;
    enum bt_status status = run_create(runs, message, &error, &run);
    if (status != BT_OK) {
        bt_counter_add(runs->options.metrics->refused, 1);
        bt_rpc_call_end(call, status, error.text, NULL);
        return;
    }
    run->call = call;
    bt_rpc_call_on_cancel(call, on_cancel, run);
    runs->list[runs->count++] = run;
    runs_admit(runs);
}

/* ------------------------------------------------------------------ the table */

enum bt_status pf_runs_create(const struct pf_runs_options *options, struct bt_error *error,
                              struct pf_runs **ret_runs)
{
    struct pf_runs *runs = calloc(1, sizeof(*runs));
    if (!runs) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "runs: no memory");
    }
    runs->options = *options;
    runs->list = calloc(options->max_runs, sizeof(struct run *));
    runs->compute_source = bt_loop_add_fd(
        options->loop, bt_queue_fd(pf_compute_events(options->compute)), on_compute, runs);
    runs->push_source = bt_loop_add_fd(
        options->loop, bt_queue_fd(kvt_source_events(options->source)), on_push, runs);
    if (!runs->list || !runs->compute_source || !runs->push_source) {
        pf_runs_destroy(runs);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "runs: no memory");
    }
    *ret_runs = runs;
    return BT_OK;
}

void pf_runs_destroy(struct pf_runs *runs)
{
    if (!runs) {
        return;
    }
    BT_ASSERT(runs->count == 0);
    bt_loop_remove(runs->compute_source);
    bt_loop_remove(runs->push_source);
    free(runs->list);
    free(runs);
}

void pf_runs_fail_all(struct pf_runs *runs, enum bt_status status, const char *text)
{
    runs->refusing = true;
    runs->refusing_status = status;
    runs->refusing_text = text;
    for (uint32_t i = runs->count; i-- > 0;) {
        if (i < runs->count) {
            run_fail(runs->list[i], status, text);
        }
    }
}

void pf_runs_look(const struct pf_runs *runs, struct pf_runs_view *ret_view)
{
    struct pf_runs_view view = {0};
    for (uint32_t i = 0; i < runs->count; i++) {
        const struct run *run = runs->list[i];
        uint32_t computed = 0;
        if (run->state == RUN_WAITING) {
            view.waiting++;
        } else {
            view.running++;
            computed = atomic_load_explicit(&run->job.computed, memory_order_relaxed);
        }
        view.waiting_tokens += run->request.prompt_tokens - computed;
    }
    *ret_view = view;
}

uint32_t pf_runs_count(const struct pf_runs *runs)
{
    return runs->count;
}
