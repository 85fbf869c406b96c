#include "prefill-node/run.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/model/token_message.h"
#include "prefill-node/delivery.h"
#include "prefill-node/handoff.h"
#include "prefill-node/layer_times.h"

enum run_state { RUN_WAITING, RUN_OPENING, RUN_COMPUTING, RUN_HANDING_OFF };

struct run {
    struct pf_runs *runs;
    struct bt_rpc_call *call; /* NULL: ended */
    struct pf_request request;
    Baton__V1__Landing *landing; /* for the other ranks; NULL: there are none */
    struct pf_delivery delivery;
    struct pf_joint joint;        /* the deliveries of the other ranks */
    struct pf_quiesced *quiesced; /* kept for the end */
    int64_t accepted_ns;
    enum run_state state;

    struct pf_prompt_pages pages; /* of our pool */
    struct pf_layer_times *times; /* NULL: nobody asked */
    struct pf_job job;
    bool in_compute;     /* the job is the compute thread's */
    struct pf_cuts cuts; /* that all pushes leave behind; once they ended */

    struct pf_handoff handoff;

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
static void run_start(struct run *run);
static void runs_admit(struct pf_runs *runs);

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
    pf_delivery_cancel(&run->delivery);
    pf_joint_cancel(&run->joint);
    pf_handoff_cancel(&run->handoff);
    run_advance(run);
}

/* The job is ours, no push reads the pages. */
static void run_free_pages(struct run *run)
{
    pf_prompt_pages_release(&run->pages,
                            atomic_load_explicit(&run->job.computed, memory_order_relaxed));
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

/* The decode rank may be writable by one of our processes, and all of them have stopped. What one
 * does that does not tell ends with it, and the decode rank sees to that. */
static bool run_owes_quiesced(const struct run *run)
{
    bool leased = pf_delivery_leased(&run->delivery) || run->joint.leased;
    return (run->status != BT_OK || run->request.probe) && leased && !run->joint.unknown;
}

/* Nothing of the run is under way any more: the rank may have its pages back, the call its END. */
static void run_end_call(struct run *run)
{
    run_free_pages(run);
    pf_delivery_drop_lease(&run->delivery);
    if (run_owes_quiesced(run)) {
        run->quiesced->cuts = run->cuts;
        pf_peer_quiesced(run->delivery.peer, run->quiesced);
        run->quiesced = NULL;
    }
    run_count_end(run);
    bt_rpc_call_on_cancel(run->call, NULL, NULL);
    bt_rpc_call_end(run->call, run->status, run->status == BT_OK ? NULL : run->text, NULL);
    run->call = NULL;
}

static void run_destroy(struct run *run)
{
    pf_delivery_finish(&run->delivery);
    pf_layer_times_destroy(run->times);
    pf_handoff_finish(&run->handoff);
    pf_request_finish(&run->request);
    if (run->landing) {
        protobuf_c_message_free_unpacked(&run->landing->base, NULL);
    }
    free(run->quiesced);
    pf_prompt_pages_finish(&run->pages);
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

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Of all ranks. */
static void fill_done(const struct run *run, Baton__V1__PrefillDone *done)
{
    baton__v1__prefill_done__init(done);
    const struct kvt_push_event *pushed = &run->delivery.pushed;
    const struct pf_joint *joint = &run->joint;
    int64_t visible_ns = pushed->end_ns - run->job.computed_ns;
    done->kv_bytes = pushed->bytes + joint->kv_bytes;
    done->writes = pushed->writes + joint->writes;
    done->compute_ns = (uint64_t)(run->job.computed_ns - run->job.started_ns);
    done->visible_transfer_ns = larger(visible_ns > 0 ? (uint64_t)visible_ns : 0,
                                       run->request.probe ? joint->write_ns : joint->visible_ns);
    done->hidden_bytes = pushed->hidden_bytes + joint->hidden_bytes;
    done->layerwise = run->request.prompt_tokens > run->runs->options.layerwise_threshold;
    done->transport = (char *)pf_peer_transport(run->delivery.peer);
    done->cached_tokens = pf_prompt_pages_cached_tokens(&run->pages);
    done->begin_unix_ns = bt_clock_unix_ns() - (bt_clock_now_ns() - run->job.started_ns);
    int64_t queue_ns = run->job.started_ns - run->accepted_ns;
    done->queue_ns = queue_ns > 0 ? (uint64_t)queue_ns : 0;
    if (run->times) {
        pf_layer_times_fill(run->times, run->job.started_ns, done);
    }
}

/* Each rank counts what it wrote itself. */
static void count_done(const struct run *run, const Baton__V1__PrefillDone *done)
{
    const struct pf_metrics *metrics = run->runs->options.metrics;
    const struct kvt_push_event *pushed = &run->delivery.pushed;
    bt_counter_add(metrics->kv_bytes, pushed->bytes);
    bt_counter_add(metrics->kv_bytes_hidden, pushed->hidden_bytes);
    bt_counter_add(metrics->kv_writes, pushed->writes);
    bt_histogram_observe(metrics->visible_transfer_seconds,
                         (double)done->visible_transfer_ns * 1e-9);
}

static void send_done(struct run *run, Baton__V1__PrefillDone *done)
{
    Baton__V1__PrefillEvent event = BATON__V1__PREFILL_EVENT__INIT;
    event.event_case = BATON__V1__PREFILL_EVENT__EVENT_DONE;
    event.done = done;
    bt_rpc_call_send(run->call, &event.base);
}

static void on_handoff(void *context, enum bt_status status, const char *text)
{
    struct run *run = context;
    if (run->ending) {
        run_advance(run);
    } else if (status == BT_OK) {
        const struct kvt_push_event *pushed = &run->delivery.pushed;
        kvt_source_cuts_over(run->runs->options.source, pushed->link, pushed->cut_lines);
        run->ending = true;
        run->status = BT_OK;
        run_advance(run);
    } else {
        run_fail(run, status, text);
    }
}

/* The figures go to the router on both ways: directly, and with the handoff. */
static void handoff_start(struct run *run)
{
    Baton__V1__PrefillDone done;
    fill_done(run, &done);
    const struct pf_handoff_spec spec = {
        .client = pf_peer_client(run->delivery.peer),
        .request = run->request.request,
        .epoch = run->request.epoch,
        .prompt_tokens = run->request.prompt_tokens,
        .page_count = run->request.page_count,
        .has_checksum = run->runs->options.checksum,
        .checksum = run->delivery.pushed.checksum + run->joint.checksum,
        .first = &run->job.first,
        .logprobs = run->request.sampling.logprobs >= 0,
        .cuts = &run->cuts,
        .figures = &done,
        .deadline_ns = bt_rpc_call_deadline_ns(run->call),
        .done = on_handoff,
        .context = run,
    };
    run->state = RUN_HANDING_OFF;
    send_done(run, &done);
    count_done(run, &done);
    pf_handoff_start(&run->handoff, &spec);
}

/* What there is to compute: nothing. Its time counts from the first write. */
static void probe_end(struct run *run)
{
    Baton__V1__PrefillDone done;
    run->job.started_ns = run->job.computed_ns = run->delivery.pushed.first_write_ns;
    fill_done(run, &done);
    send_done(run, &done);
    run->ending = true;
    run->status = BT_OK;
}

/* Once: the first time that nothing is under way. */
static void collect_cuts(struct run *run)
{
    run->cuts = run->joint.cuts;
    pf_cuts_add(&run->cuts, pf_cut_of(&run->delivery.pushed));
}

static bool run_is_busy(const struct run *run)
{
    return run->in_compute || run->delivery.push_open || run->joint.running > 0;
}

/* Goes on as far as what is under way allows. May free the run. */
static void run_advance(struct run *run)
{
    if (!run->ending && run->joint.status != BT_OK) {
        run_fail(run, run->joint.status, run->joint.text);
        return;
    }
    if (!run->ending && run->state == RUN_OPENING) {
        if (run->joint.opening == 0) {
            run_start(run);
        }
        return;
    }
    if (run_is_busy(run)) {
        return;
    }
    if (run->state != RUN_HANDING_OFF) {
        collect_cuts(run);
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
    if (!run->handoff.pending) {
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
    event.cached_tokens = pf_prompt_pages_cached_tokens(&run->pages);
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
    pf_prompt_pages_computed(&run->pages);
    if (!run->ending) {
        send_first_token(run);
    }
}

static void job_event(const struct pf_compute_event *event)
{
    struct run *run = event->job->user;
    if (event->kind == PF_COMPUTE_STARTED) {
        if (!run->ending) {
            send_started(run);
        }
        return;
    }
    run->in_compute = false;
    bt_counter_add(run->runs->options.metrics->computed_tokens,
                   atomic_load_explicit(&run->job.computed, memory_order_relaxed) -
                       pf_prompt_pages_cached_tokens(&run->pages));
    if (event->kind == PF_COMPUTE_COMPUTED) {
        run_computed(run);
    }
    run_advance(run);
}

static void on_compute(void *context)
{
    struct pf_runs *runs = context;
    struct pf_compute_event event;
    while (bt_queue_try_pop(pf_compute_events(runs->options.compute), &event)) {
        if (event.kind == PF_COMPUTE_STOP) {
            runs->options.stop_wanted(runs->options.context);
        } else if (event.kind == PF_COMPUTE_FAILED) {
            runs->options.group_over(runs->options.context, event.error->text);
        } else {
            job_event(&event);
        }
    }
}

static void on_push(void *context)
{
    struct pf_runs *runs = context;
    struct kvt_push_event event;
    while (bt_queue_try_pop(kvt_source_events(runs->options.source), &event)) {
        struct pf_delivery *delivery = event.user;
        struct run *run = delivery->context;
        pf_delivery_ended(delivery, &event);
        if (event.status != BT_OK && !run->ending) {
            char why[BT_ERROR_TEXT_SIZE];
            pf_delivery_explain(delivery, why, sizeof(why));
            run_fail(run, event.status, why);
        } else {
            run_advance(run);
        }
    }
}

static void on_joint(void *context)
{
    run_advance(context);
}

/* After the flush nothing is written: HandoffDone's answer decides. */
static void on_lease_lost(void *context, enum bt_status status, const char *text)
{
    struct run *run = context;
    if (run->state != RUN_HANDING_OFF) {
        run_fail(run, status, text);
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
    if (run->request.sampled && !run->times) {
        run->times =
            pf_layer_times_create(options->layer_count, pf_prompt_pages_cached_tokens(&run->pages),
                                  run->request.prompt_tokens);
    }
    const struct pf_delivery_pages pages = {
        .source = run->pages.list,
        .target = run->request.target_pages,
        .prompt_tokens = run->request.prompt_tokens,
        .layerwise = run->request.prompt_tokens > options->layerwise_threshold,
        .share = options->share,
        .watch = run->times ? pf_layer_times_watch(run->times) : NULL,
    };
    return pf_delivery_open(&run->delivery, options->source, &pages, error);
}

/* The other ranks open theirs. */
static void run_open_joint(struct run *run)
{
    const struct pf_runs_options *options = &run->runs->options;
    const struct pf_joint_spec spec = {
        .serial = run->job.serial,
        .request = run->request.request,
        .prompt_tokens = run->request.prompt_tokens,
        .landing = run->landing,
        .pages = run->pages.list,
        .cached_tokens = pf_prompt_pages_cached_tokens(&run->pages),
        .layerwise = run->request.prompt_tokens > options->layerwise_threshold,
        .probe = run->request.probe,
        .changed = on_joint,
        .context = run,
    };
    if (options->group) {
        pf_joint_open(&run->joint, options->group, &spec);
    }
}

static void run_compute(struct run *run)
{
    run->job = (struct pf_job){
        .serial = run->job.serial,
        .request = run->request.request,
        .tokens = run->request.prompt,
        .token_count = run->request.prompt_tokens,
        .pages = run->pages.list,
        .sampling = &run->request.sampling,
        .history = run->request.history,
        .push = run->delivery.push,
        .times = run->times,
        .arrival_ns = run->accepted_ns,
        .user = run,
        .computed = pf_prompt_pages_cached_tokens(&run->pages),
    };
    run->in_compute = true;
    pf_compute_add(run->runs->options.compute, &run->job);
}

/* Every rank's push is open. */
static void run_start(struct run *run)
{
    run->state = RUN_COMPUTING;
    if (run->request.probe) {
        kvt_push_finish(run->delivery.push);
    } else {
        run_compute(run);
    }
}

/* What is cached is final on all layers: it goes out while the rest is computed. */
static void run_push_cached(const struct run *run)
{
    uint32_t tokens = pf_prompt_pages_cached_tokens(&run->pages);
    for (uint32_t layer = 0; tokens > 0 && layer < run->runs->options.layer_count; layer++) {
        kvt_push_ready(run->delivery.push, layer, tokens);
    }
}

static void run_count_cached(const struct run *run)
{
    const struct pf_metrics *metrics = run->runs->options.metrics;
    if (run->pages.hashes) {
        bt_counter_add(metrics->prefix_queries, run->request.prompt_tokens);
        bt_counter_add(metrics->prefix_hits, pf_prompt_pages_cached_tokens(&run->pages));
    }
}

/* False: no pages are free for it now. */
static bool run_admit(struct run *run)
{
    if (!pf_prompt_pages_take(&run->pages)) {
        return false;
    }
    struct bt_error error;
    enum bt_status status = run_open_push(run, &error);
    if (status != BT_OK) {
        run_fail(run, status, error.text); /* frees the run, and admits again */
        return true;
    }
    run_count_cached(run);
    run_push_cached(run);
    run->state = RUN_OPENING;
    run->job.serial = ++run->runs->next_serial;
    run_open_joint(run);
    run_advance(run);
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
    uint32_t total = bt_page_pool_total(runs->options.pages->pool);
    if (run->request.page_count > total) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "prompt: %" PRIu32 " pages, this worker has %" PRIu32,
                            run->request.page_count, total);
    }
    return BT_OK;
}

static enum bt_status run_copy_landing(struct run *run, const Baton__V1__Landing *landing,
                                       struct bt_error *error)
{
    size_t size = protobuf_c_message_get_packed_size(&landing->base);
    uint8_t *bytes = malloc(size);
    if (bytes) {
        protobuf_c_message_pack(&landing->base, bytes);
        run->landing = (Baton__V1__Landing *)protobuf_c_message_unpack(
            &baton__v1__landing__descriptor, NULL, size, bytes);
    }
    free(bytes);
    return run->landing ? BT_OK : bt_error_set(error, BT_ERR_NO_MEMORY, "landing: no memory");
}

static enum bt_status run_init_pages(struct run *run, struct bt_error *error)
{
    const struct pf_request *request = &run->request;
    const struct bt_page_owner owner = {request->request, request->epoch};
    return pf_prompt_pages_init(&run->pages, run->runs->options.pages, owner, request->prompt,
                                request->prompt_tokens, !request->probe)
               ? BT_OK
               : bt_error_set(error, BT_ERR_NO_MEMORY, "prompt: no memory");
}

static enum bt_status run_begin(struct run *run, const Baton__V1__PrefillRequest *message,
                                struct bt_error *error)
{
    const struct pf_runs_options *options = &run->runs->options;
    enum bt_status status = pf_request_init(&run->request, message, &options->limits, error);
    if (status == BT_OK) {
        status = run_check(run, error);
    }
    if (status == BT_OK && options->group) {
        status = run_copy_landing(run, message->landing, error);
    }
    if (status == BT_OK) {
        status = run_init_pages(run, error);
    }
    if (status != BT_OK) {
        return status;
    }
    const struct pf_delivery_spec spec = {
        .endpoint = message->landing->endpoint,
        .request = run->request.request,
        .epoch = run->request.epoch,
        .lease_ms = run->request.lease_ms,
        .lost = on_lease_lost,
        .context = run,
    };
    return pf_delivery_begin(&run->delivery, options->peers, &spec, error);
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
    bool ready = pf_handoff_init(&run->handoff, runs->options.loop) && run->quiesced;
    enum bt_status status = ready ? BT_OK : bt_error_set(error, BT_ERR_NO_MEMORY, "run: no memory");
    if (status == BT_OK) {
        status = run_begin(run, message, error);
    }
    if (status != BT_OK) {
        run_destroy(run);
        return status;
    }
    *run->quiesced =
        (struct pf_quiesced){.request = run->request.request, .epoch = run->request.epoch};
    *ret_run = run;
    return BT_OK;
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
            uint32_t cached = pf_prompt_pages_cached_tokens(&run->pages);
            computed = computed > cached ? computed : cached;
        }
        view.waiting_tokens += run->request.prompt_tokens - computed;
    }
    *ret_view = view;
}

uint32_t pf_runs_count(const struct pf_runs *runs)
{
    return runs->count;
}
