/* Simulated workers: the real protocol, scripted times, no compute. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/process.h"
#include "common/messaging/registration.h"
#include "common/messaging/rpc.h"
#include "proto/worker.pb-c.h"
#include "tests/bench/router_bench.h"

#define MAX_WORKERS    512
#define MAX_SEQUENCES  (1u << 18)
#define PAGES          (1u << 24)
#define RETRY_NS       100000 /* while the window is closed */
#define NO_RANK        UINT32_MAX
#define MAX_MODEL_LEN  (1u << 20)
#define SEQUENCES_STEP 256 /* in one message */

struct sequence {
    uint64_t request;
    uint32_t rank, place; /* among those of the rank that run; NO_RANK: it does not */
    uint32_t next, max_tokens;
};

struct worker {
    char id[32], endpoint[128];
    uint64_t incarnation;
    uint32_t number;
    bool decode;
    struct bt_rpc_server *server;
    struct bt_registration *registration;
    Baton__V1__RegisterRequest identity;
    Baton__V1__KvEndpoint kv;

    struct bt_rpc_call *steps;
    struct bt_loop_source *timer;
    uint32_t *running;                              /* sequences; [running_count] */
    uint32_t running_count, running_capacity, sent; /* of this step, [0, sent) */
    int64_t step_at_ns;
};

static struct bt_loop *loop;
static struct worker workers[MAX_WORKERS];
static struct sequence *sequences; /* epoch - 1 is the index */
static uint32_t sequence_count;
static Baton__V1__LayoutFingerprint fingerprint;
static Baton__V1__ProcessId process;

static Baton__V1__Token tokens[SEQUENCES_STEP];
static Baton__V1__Token *token_at[SEQUENCES_STEP];
static Baton__V1__SequenceStep steps[SEQUENCES_STEP];
static Baton__V1__SequenceStep *step_at[SEQUENCES_STEP];

/* ---- sequences */

static void stop_running(uint32_t at)
{
    struct sequence *sequence = &sequences[at];
    if (sequence->place == NO_RANK) {
        return;
    }
    struct worker *worker = &workers[sequence->rank];
    uint32_t last = worker->running[--worker->running_count];
    worker->running[sequence->place] = last;
    sequences[last].place = sequence->place;
    sequence->place = NO_RANK;
    atomic_fetch_sub(&bench_shared->running, 1);
}

static void start_running(uint32_t at)
{
    struct sequence *sequence = &sequences[at];
    struct worker *worker = &workers[sequence->rank];
    if (worker->running_count == worker->running_capacity) {
        worker->running_capacity = worker->running_capacity ? worker->running_capacity * 2 : 256;
        worker->running =
            realloc(worker->running, worker->running_capacity * sizeof *worker->running);
        if (!worker->running) {
            bench_die("no memory");
        }
    }
    sequence->place = worker->running_count;
    sequence->next = 0; /* steps repeat the first token: it may come before the prefill worker's */
    worker->running[worker->running_count++] = at;
    atomic_fetch_add(&bench_shared->running, 1);
}

static void handle_reserve(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    struct worker *worker = context;
    const Baton__V1__ReserveRequest *request = (const Baton__V1__ReserveRequest *)message;
    if (sequence_count == MAX_SEQUENCES) {
        bt_rpc_call_end(call, BT_ERR_EXHAUSTED, "the simulation is over", NULL);
        return;
    }
    sequences[sequence_count] = (struct sequence){.request = request->request_id,
                                                  .rank = worker->number,
                                                  .place = NO_RANK,
                                                  .max_tokens = request->sampling->max_tokens};
    Baton__V1__KvEndpoint endpoint = BATON__V1__KV_ENDPOINT__INIT;
    endpoint.worker_id = worker->id;
    endpoint.incarnation = worker->incarnation;
    Baton__V1__PageRun run = BATON__V1__PAGE_RUN__INIT;
    run.count = request->prompt_tokens / 64 + 1;
    Baton__V1__PageRun *runs[] = {&run};
    Baton__V1__Landing landing = BATON__V1__LANDING__INIT;
    landing.request_id = request->request_id;
    landing.epoch = ++sequence_count;
    landing.endpoint = &endpoint;
    landing.n_runs = 1;
    landing.runs = runs;
    Baton__V1__ReserveResponse response = BATON__V1__RESERVE_RESPONSE__INIT;
    response.landing = &landing;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_cancel(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    (void)context;
    const Baton__V1__CancelRequest *request = (const Baton__V1__CancelRequest *)message;
    if (request->epoch > 0 && request->epoch <= sequence_count) {
        stop_running((uint32_t)request->epoch - 1);
    }
    Baton__V1__CancelResponse response = BATON__V1__CANCEL_RESPONSE__INIT;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_run(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    (void)context;
    const Baton__V1__PrefillRequest *request = (const Baton__V1__PrefillRequest *)message;
    Baton__V1__Token token = BATON__V1__TOKEN__INIT;
    token.token = bench_tokens[0];
    Baton__V1__PrefillEvent event = BATON__V1__PREFILL_EVENT__INIT;
    event.event_case = BATON__V1__PREFILL_EVENT__EVENT_FIRST_TOKEN;
    event.first_token = &token;
    bool told = bt_rpc_call_send(call, &event.base) == BT_OK;
    Baton__V1__PrefillDone done = BATON__V1__PREFILL_DONE__INIT;
    done.compute_ns = 1000;
    done.transport = (char *)"shm";
    event.event_case = BATON__V1__PREFILL_EVENT__EVENT_DONE;
    event.done = &done;
    told = told && bt_rpc_call_send(call, &event.base) == BT_OK;
    if (!told) {
        bt_rpc_call_end(call, BT_ERR_UNAVAILABLE, "the queue is full: try again", NULL);
        return;
    }
    bt_rpc_call_end(call, BT_OK, NULL, NULL);
    atomic_fetch_add(&bench_shared->runs, 1);
    start_running((uint32_t)request->landing->epoch - 1);
}

/* ---- steps */

static uint32_t fill_step(struct worker *worker, Baton__V1__StepEvent *event)
{
    uint32_t count = worker->running_count - worker->sent;
    count = count < SEQUENCES_STEP ? count : SEQUENCES_STEP;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = worker->running[worker->sent + i];
        const struct sequence *sequence = &sequences[at];
        tokens[i].index = sequence->next;
        tokens[i].token = bench_tokens[sequence->next % BENCH_TOKEN_KINDS];
        steps[i].request_id = sequence->request;
        steps[i].epoch = at + 1;
        steps[i].finish = sequence->next + 1 < sequence->max_tokens
                              ? BATON__V1__FINISH_REASON__FINISH_UNSPECIFIED
                              : BATON__V1__FINISH_REASON__FINISH_LENGTH;
    }
    event->n_sequences = count;
    event->sequences = step_at;
    return count;
}

/* What was sent has happened. */
static void step_sent(struct worker *worker, uint32_t count)
{
    uint32_t ended = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = worker->running[worker->sent + i - ended];
        if (++sequences[at].next == sequences[at].max_tokens) {
            stop_running(at); /* the last one takes its place, and its turn in the next step */
            ended++;
        }
    }
    worker->sent += count - ended;
    atomic_fetch_add(&bench_shared->tokens_sent, count);
}

static bool window_open(void)
{
    uint64_t read = atomic_load(&bench_shared->marks_read) * BENCH_TOKEN_KINDS;
    return atomic_load(&bench_shared->tokens_sent) < read + atomic_load(&bench_shared->window);
}

static void send_load(struct worker *worker, Baton__V1__StepEvent *event, uint32_t count)
{
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    load.pages_total = load.pages_free = PAGES;
    load.running = worker->running_count;
    load.max_running = MAX_SEQUENCES;
    event->load = &load;
    if (bt_rpc_call_send(worker->steps, &event->base) == BT_OK && count > 0) {
        step_sent(worker, count);
    }
}

static void on_step(void *context)
{
    struct worker *worker = context;
    int64_t now_ns = bt_clock_now_ns(), step_ns = atomic_load(&bench_shared->step_ns);
    if (!worker->steps) {
        return;
    }
    while (window_open() && worker->sent < worker->running_count) {
        Baton__V1__StepEvent event = BATON__V1__STEP_EVENT__INIT;
        uint32_t before = worker->sent, count = fill_step(worker, &event);
        send_load(worker, &event, count);
        if (worker->sent == before) {
            break; /* the queue is full, or all of them ended */
        }
    }
    if (worker->sent >= worker->running_count) {
        worker->sent = 0;
        worker->step_at_ns =
            worker->step_at_ns + step_ns > now_ns ? worker->step_at_ns + step_ns : now_ns + step_ns;
        bool idle = worker->running_count == 0 || !window_open();
        bt_loop_timer_set(worker->timer, idle ? now_ns + 10 * RETRY_NS : worker->step_at_ns);
    } else {
        bt_loop_timer_set(worker->timer, now_ns + RETRY_NS);
    }
}

static void on_steps_cancelled(void *context, struct bt_rpc_call *call)
{
    struct worker *worker = context;
    worker->steps = NULL;
    bt_rpc_call_end(call, BT_ERR_CANCELLED, NULL, NULL);
}

static void handle_steps(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    (void)message;
    struct worker *worker = context;
    worker->steps = call;
    bt_rpc_call_on_cancel(call, on_steps_cancelled, worker);
    Baton__V1__StepEvent event = BATON__V1__STEP_EVENT__INIT;
    send_load(worker, &event, 0); /* a stream begins with one */
    bt_loop_timer_set(worker->timer, bt_clock_now_ns() + RETRY_NS);
}

/* ---- life */

static void fill_load(void *context, Baton__V1__RankLoad *ret_load, bool *ret_draining)
{
    const struct worker *worker = context;
    ret_load->pages_total = ret_load->pages_free = worker->decode ? PAGES : 0;
    ret_load->running = worker->running_count;
    ret_load->max_running = MAX_SEQUENCES;
    *ret_draining = false;
}

static void on_registered(void *context)
{
    (void)context;
    atomic_fetch_add(&bench_shared->registered, 1);
}

static void on_refused(void *context, enum bt_status status, const char *text)
{
    (void)context;
    bench_die("a simulated worker is refused: %s: %s", bt_status_name(status), text);
}

static void fill_identity(struct worker *worker)
{
    Baton__V1__RegisterRequest *identity = &worker->identity;
    baton__v1__register_request__init(identity);
    identity->worker_id = worker->id;
    identity->incarnation = worker->incarnation;
    identity->role =
        worker->decode ? BATON__V1__WORKER_ROLE__ROLE_DECODE : BATON__V1__WORKER_ROLE__ROLE_PREFILL;
    identity->control_endpoint = worker->endpoint;
    identity->fingerprint = &fingerprint;
    identity->process = &process;
    identity->max_model_len = MAX_MODEL_LEN;
    identity->transport = (char *)"shm";
    if (!worker->decode) {
        return;
    }
    Baton__V1__KvEndpoint *kv = &worker->kv;
    baton__v1__kv_endpoint__init(kv);
    kv->worker_id = worker->id;
    kv->incarnation = worker->incarnation;
    kv->transport_address = (ProtobufCBinaryData){4, (uint8_t *)"none"};
    kv->pool_key = (ProtobufCBinaryData){4, (uint8_t *)"none"};
    kv->pool_pages = PAGES;
    kv->fingerprint = &fingerprint;
    kv->process = &process;
    kv->control_endpoint = worker->endpoint;
    identity->kv = kv;
}

static const struct bt_rpc_method methods[] = {
    {"baton.v1.Decode/Reserve", &baton__v1__reserve_request__descriptor, handle_reserve},
    {"baton.v1.Decode/Cancel", &baton__v1__cancel_request__descriptor, handle_cancel},
    {"baton.v1.Decode/Steps", &baton__v1__steps_request__descriptor, handle_steps},
    {"baton.v1.Prefill/Run", &baton__v1__prefill_request__descriptor, handle_run},
    {NULL, NULL, NULL},
};

static void open_worker(uint32_t number, const char *router)
{
    struct worker *worker = &workers[number];
    struct bt_error error;
    worker->number = number;
    worker->decode = number > 0;
    worker->incarnation = 1000 + number;
    snprintf(worker->id, sizeof worker->id, worker->decode ? "decode-%u" : "prefill-%u", number);
    worker->timer = bt_loop_add_timer(loop, BT_NEVER_NS, on_step, worker);
    if (!worker->timer || bt_rpc_server_create(loop, "tcp://127.0.0.1:*", methods, worker, &error,
                                               &worker->server) != BT_OK) {
        bench_die("a simulated worker: %s", error.text);
    }
    snprintf(worker->endpoint, sizeof worker->endpoint, "%s",
             bt_rpc_server_endpoint(worker->server));
    fill_identity(worker);
    const struct bt_registration_events events = {
        .load = fill_load, .registered = on_registered, .refused = on_refused, .context = worker};
    if (bt_registration_create(loop, router, &worker->identity, &events, &error,
                               &worker->registration) != BT_OK) {
        bench_die("a simulated worker: %s", error.text);
    }
}

static void fill_common(void)
{
    bench_fill_common(&process, &fingerprint);
    for (uint32_t i = 0; i < SEQUENCES_STEP; i++) {
        baton__v1__token__init(&tokens[i]);
        baton__v1__sequence_step__init(&steps[i]);
        token_at[i] = &tokens[i];
        steps[i].n_tokens = 1;
        steps[i].tokens = &token_at[i];
        step_at[i] = &steps[i];
    }
}

void bench_workers_run(const struct bench_workers *setup)
{
    struct bt_error error;
    bt_process_raise_file_limit();
    bt_log_init("simulated", BT_LOG_WARN);
    fill_common();
    sequences = calloc(MAX_SEQUENCES, sizeof *sequences);
    loop = bt_loop_create(&error);
    if (!loop || !sequences || setup->decode_workers >= MAX_WORKERS) {
        bench_die("no memory for simulated workers");
    }
    for (uint32_t i = 0; i <= setup->decode_workers; i++) {
        open_worker(i, setup->router);
    }
    bt_loop_run(loop, &error);
    exit(0);
}
