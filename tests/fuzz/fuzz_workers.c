/*
 * Hostile workers against the whole router service. An input is a list of acts, each
 * [kind][size, 2 bytes][message]: what a prefill worker and a decode rank send, and what clients do
 * meanwhile. In messages small numbers stand for the real ids of what the router has reserved last,
 * and the worker id "self" for the rank's own, so that changed messages are about live requests.
 *
 * Every request has to end exactly once, with its tokens in order; after it all, honest workers
 * that join have to be of use.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/process.h"
#include "router/service_state.h"
#include "tests/fuzz/driver.h"

#define SMALL        16 /* ids below stand for real ones */
#define MAX_ACTS     24
#define MAX_REQUESTS 32
#define MAX_HELD     256
#define PATIENCE_NS  (30 * BT_NS_PER_S)

enum act {
    ACT_STEP,
    ACT_RUN_EVENT,
    ACT_RESERVE, /* what the next Reserves are answered with */
    ACT_RUN_END,
    ACT_STEPS_END,
    ACT_SUBMIT,
    ACT_ABANDON,
    ACT_HEARTBEAT, /* of the rank */
    ACT_COUNT
};

struct worker {
    char id[8];
    uint64_t incarnation;
    bool decode, honest;
    struct bt_rpc_server *server;
    struct bt_rpc_call *steps, *run;
    struct {
        uint64_t request, epoch;
    } held[MAX_HELD]; /* a ring */
    uint32_t held_count;
    struct worker *rank;   /* of an honest prefill worker: who holds the landing */
    const uint8_t *answer; /* to Reserve */
    size_t answer_size;
};

struct client {
    uint64_t request;
    uint32_t tokens;
    bool open;
    int ends;
    enum rt_finish finish;
};

static struct bt_loop *loop;
static struct bt_metrics *metrics;
static struct rt_service *service;
static struct bt_rpc_client *registry;
static struct client clients[MAX_REQUESTS];
static uint32_t client_count;
static bool answered;

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

/* ------------------------------------------------------------------ clients */

static void on_output(void *context, const char *text, size_t size, const Baton__V1__Token *tokens,
                      size_t token_count)
{
    struct client *client = context;
    must(client->ends == 0, "output after the end");
    must(text && size < 1 << 20, "a text out of nothing");
    for (size_t i = 0; i < token_count; i++)
        must(tokens[i].index == client->tokens++, "tokens out of order");
}

static void on_end(void *context, const struct rt_result *result)
{
    struct client *client = context;
    client->ends++;
    client->open = false;
    client->finish = result->finish;
    must(client->ends == 1, "a request ended twice");
    must(result->finish != RT_FINISH_ERROR || result->status < BT_OK, "an error without a status");
}

static struct client *submit(void)
{
    static const uint32_t prompt[] = {3, 4, 5, 6, 7};
    if (client_count == MAX_REQUESTS)
        return NULL;
    struct rt_generation g = {.prompt = prompt, .prompt_tokens = 5, .deadline_ns = BT_NEVER_NS};
    baton__v1__sampling_params__init(&g.sampling);
    g.sampling.top_p = 1;
    g.sampling.repetition_penalty = 1;
    g.sampling.logprobs = client_count % 3 == 0 ? 2 : -1;
    g.sampling.max_tokens = 3;
    g.trace.sampled = client_count % 2 == 0;
    struct client *client = &clients[client_count++];
    *client = (struct client){.open = true};
    struct rt_sink sink = {.context = client, .on_output = on_output, .on_end = on_end};
    if (rt_service_submit(service, &g, &sink, NULL, &client->request) == BT_OK)
        return client;
    client_count--; /* the queue is full */
    return NULL;
}

static void abandon(uint8_t which)
{
    struct client *client = client_count > 0 ? &clients[which % client_count] : NULL;
    if (client && client->open) {
        client->open = false;
        client->ends = 1; /* nothing more may come */
        rt_service_abandon(service, client->request);
    }
}

/* ------------------------------------------------------------------ small numbers */

static void real_ids(const struct worker *worker, uint64_t *request, uint64_t *epoch)
{
    uint32_t count = worker->held_count;
    if (count == 0 || *request >= SMALL)
        return;
    uint32_t back = *request < count ? (uint32_t)*request : count - 1;
    uint32_t at = (count - 1 - back) % MAX_HELD;
    *request = worker->held[at].request;
    if (*epoch < SMALL)
        *epoch = worker->held[at].epoch + *epoch;
}

static void real_worker(const struct worker *worker, Baton__V1__KvEndpoint *endpoint)
{
    if (strcmp(endpoint->worker_id, "self") == 0) {
        free(endpoint->worker_id);
        endpoint->worker_id = strdup(worker->id);
        must(endpoint->worker_id != NULL, "no memory");
    }
    if (endpoint->incarnation < SMALL)
        endpoint->incarnation += worker->incarnation;
}

/* ------------------------------------------------------------------ workers */

static void honest_landing(struct worker *worker, struct bt_rpc_call *call, uint64_t request,
                           uint64_t epoch)
{
    Baton__V1__KvEndpoint endpoint = BATON__V1__KV_ENDPOINT__INIT;
    Baton__V1__PageRun run = BATON__V1__PAGE_RUN__INIT;
    Baton__V1__PageRun *runs[] = {&run};
    Baton__V1__Landing landing = BATON__V1__LANDING__INIT;
    Baton__V1__ReserveResponse response = BATON__V1__RESERVE_RESPONSE__INIT;
    endpoint.worker_id = worker->id;
    endpoint.incarnation = worker->incarnation;
    run.count = 1;
    landing.request_id = request;
    landing.epoch = epoch;
    landing.endpoint = &endpoint;
    landing.n_runs = 1;
    landing.runs = runs;
    response.landing = &landing;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void hostile_landing(struct worker *worker, struct bt_rpc_call *call)
{
    Baton__V1__ReserveResponse *response =
        baton__v1__reserve_response__unpack(NULL, worker->answer_size, worker->answer);
    if (!response) {
        bt_rpc_call_end(call, BT_ERR_EXHAUSTED, "no page", NULL);
        return;
    }
    Baton__V1__Landing *landing = response->landing;
    uint64_t request = 0;
    real_ids(worker, &request, &response->epoch);
    if (landing)
        real_ids(worker, &landing->request_id, &landing->epoch);
    if (landing && landing->endpoint)
        real_worker(worker, landing->endpoint);
    bt_rpc_call_end(call, BT_OK, NULL, &response->base);
    baton__v1__reserve_response__free_unpacked(response, NULL);
}

static void handle_reserve(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    static uint64_t next_epoch = 1000;
    struct worker *worker = context;
    uint64_t request = ((const Baton__V1__ReserveRequest *)message)->request_id;
    uint32_t at = worker->held_count++ % MAX_HELD;
    worker->held[at].request = request;
    worker->held[at].epoch = next_epoch++;
    if (worker->honest || !worker->answer)
        honest_landing(worker, call, request, worker->held[at].epoch);
    else
        hostile_landing(worker, call);
}

static void handle_cancel(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    (void)context;
    (void)message;
    Baton__V1__CancelResponse response = BATON__V1__CANCEL_RESPONSE__INIT;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void on_steps_cancelled(void *context, struct bt_rpc_call *call)
{
    ((struct worker *)context)->steps = NULL;
    bt_rpc_call_end(call, BT_ERR_CANCELLED, NULL, NULL);
}

static void send_load(struct worker *worker, Baton__V1__SequenceStep *sequence)
{
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    Baton__V1__StepEvent event = BATON__V1__STEP_EVENT__INIT;
    load.pages_total = load.pages_free = 100;
    event.load = &load;
    event.n_sequences = sequence ? 1 : 0;
    event.sequences = &sequence;
    bt_rpc_call_send(worker->steps, &event.base);
}

static void handle_steps(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    (void)message;
    struct worker *worker = context;
    must(!worker->steps, "two Steps of one router");
    worker->steps = call;
    bt_rpc_call_on_cancel(call, on_steps_cancelled, worker);
    send_load(worker, NULL);
}

static void on_run_cancelled(void *context, struct bt_rpc_call *call)
{
    struct worker *worker = context;
    if (worker->run == call)
        worker->run = NULL;
    bt_rpc_call_end(call, BT_ERR_CANCELLED, NULL, NULL);
}

/* Three tokens, the last of which ends it. */
static void honest_run(struct worker *worker, struct bt_rpc_call *call, uint64_t request,
                       uint64_t epoch)
{
    Baton__V1__Token tokens[3], *pointers[3];
    for (uint32_t i = 0; i < 3; i++) {
        baton__v1__token__init(&tokens[i]);
        tokens[i].index = i;
        tokens[i].token = 5 + i;
        pointers[i] = &tokens[i];
    }
    Baton__V1__PrefillEvent event = BATON__V1__PREFILL_EVENT__INIT;
    event.event_case = BATON__V1__PREFILL_EVENT__EVENT_FIRST_TOKEN;
    event.first_token = &tokens[0];
    bt_rpc_call_send(call, &event.base);
    bt_rpc_call_end(call, BT_OK, NULL, NULL);
    Baton__V1__SequenceStep sequence = BATON__V1__SEQUENCE_STEP__INIT;
    sequence.request_id = request;
    sequence.epoch = epoch;
    sequence.n_tokens = 3;
    sequence.tokens = pointers;
    sequence.finish = BATON__V1__FINISH_REASON__FINISH_LENGTH;
    send_load(worker->rank, &sequence);
}

static void handle_run(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    const Baton__V1__PrefillRequest *request = (const Baton__V1__PrefillRequest *)message;
    struct worker *worker = context;
    if (worker->honest && worker->rank->steps) {
        honest_run(worker, call, request->request_id, request->landing->epoch);
        return;
    }
    if (worker->run) {
        bt_rpc_call_end(call, BT_ERR_EXHAUSTED, "one at a time", NULL);
        return;
    }
    worker->run = call;
    bt_rpc_call_on_cancel(call, on_run_cancelled, worker);
}

static const struct bt_rpc_method methods[] = {
    {"baton.v1.Decode/Reserve", &baton__v1__reserve_request__descriptor, handle_reserve},
    {"baton.v1.Decode/Cancel", &baton__v1__cancel_request__descriptor, handle_cancel},
    {"baton.v1.Decode/Steps", &baton__v1__steps_request__descriptor, handle_steps},
    {"baton.v1.Prefill/Run", &baton__v1__prefill_request__descriptor, handle_run},
    {NULL, NULL, NULL},
};

/* ------------------------------------------------------------------ the registry */

static void on_answer(void *context, enum bt_status status, const char *text,
                      const ProtobufCMessage *response)
{
    (void)context;
    (void)text;
    (void)response;
    must(status <= BT_OK, "an impossible answer");
    answered = true;
}

/* What was sent before on this loop has been read when the answer is there. */
static void ask(const char *method, const ProtobufCMessage *request)
{
    struct bt_rpc_call_spec spec = {
        .method = method, .request = request, .deadline_ns = BT_NEVER_NS, .on_end = on_answer};
    answered = false;
    must(bt_rpc_client_call(registry, &spec, NULL, NULL) == BT_OK, "no call");
    int64_t until_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (!answered && bt_clock_now_ns() < until_ns)
        bt_loop_run_once(loop, until_ns, NULL);
    must(answered, "the router does not answer");
}

static void beat(const struct worker *worker, const uint8_t *data, size_t size)
{
    Baton__V1__HeartbeatRequest *request = baton__v1__heartbeat_request__unpack(NULL, size, data);
    if (!request)
        return;
    if (strcmp(request->worker_id, "self") == 0) {
        free(request->worker_id);
        request->worker_id = strdup(worker->id);
        must(request->worker_id != NULL, "no memory");
    }
    if (request->incarnation < SMALL)
        request->incarnation += worker->incarnation;
    ask("baton.v1.Registry/Heartbeat", &request->base);
    baton__v1__heartbeat_request__free_unpacked(request, NULL);
}

static void settle(void)
{
    Baton__V1__HeartbeatRequest nobody = BATON__V1__HEARTBEAT_REQUEST__INIT;
    nobody.worker_id = (char *)"nobody";
    ask("baton.v1.Registry/Heartbeat", &nobody.base);
}

static void fill_layout(Baton__V1__LayoutFingerprint *layout)
{
    baton__v1__layout_fingerprint__init(layout);
    layout->layout_version = 1;
    layout->model_hash = 77;
    layout->model_name = (char *)"tiny";
    layout->kv_dtype = (char *)"bf16";
    layout->arithmetic = (char *)"float32";
    layout->page_tokens = 64;
    layout->layer_count = 6;
    layout->kv_lora_rank = 64;
    layout->qk_rope_head_dim = 16;
}

static void enlist(struct worker *worker)
{
    Baton__V1__LayoutFingerprint layout;
    Baton__V1__ProcessId process = BATON__V1__PROCESS_ID__INIT;
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    Baton__V1__KvEndpoint kv = BATON__V1__KV_ENDPOINT__INIT;
    Baton__V1__RegisterRequest request = BATON__V1__REGISTER_REQUEST__INIT;
    struct bt_process_id self;
    must(bt_process_self(NULL, &self) == BT_OK, "no process id");
    fill_layout(&layout);
    process.host = self.host;
    process.pid = self.pid;
    process.start_ticks = self.start_ticks;
    load.pages_total = load.pages_free = worker->decode ? 100 : 0;
    char *endpoint = (char *)bt_rpc_server_endpoint(worker->server);
    kv = (Baton__V1__KvEndpoint){.base = kv.base,
                                 .worker_id = worker->id,
                                 .incarnation = worker->incarnation,
                                 .transport_address = {4, (uint8_t *)"addr"},
                                 .pool_key = {3, (uint8_t *)"key"},
                                 .pool_pages = 100,
                                 .fingerprint = &layout,
                                 .process = &process,
                                 .control_endpoint = endpoint};
    request.worker_id = worker->id;
    request.incarnation = worker->incarnation;
    request.role =
        worker->decode ? BATON__V1__WORKER_ROLE__ROLE_DECODE : BATON__V1__WORKER_ROLE__ROLE_PREFILL;
    request.control_endpoint = endpoint;
    request.fingerprint = &layout;
    request.process = &process;
    request.max_model_len = 4096;
    request.load = &load;
    request.transport = (char *)"auto";
    request.kv = worker->decode ? &kv : NULL;
    ask("baton.v1.Registry/Register", &request.base);
}

static void join(struct worker *worker, const char *id, bool decode, struct worker *rank)
{
    static uint64_t incarnation = 1;
    *worker = (struct worker){
        .incarnation = incarnation, .decode = decode, .rank = rank, .honest = id[0] == 'h'};
    incarnation += SMALL;
    snprintf(worker->id, sizeof worker->id, "%s", id);
    must(bt_rpc_server_create(loop, "tcp://127.0.0.1:*", methods, worker, NULL, &worker->server) ==
             BT_OK,
         "no server");
    enlist(worker);
}

static void leave(struct worker *worker)
{
    bt_rpc_server_destroy(worker->server);
    worker->server = NULL;
}

/* ------------------------------------------------------------------ the service */

static void open_service(void)
{
    struct bt_error error = {.text = ""};
    struct rt_service_options options = {
        .core = {.queue_capacity = 8,
                 .max_attempts = 3,
                 .expected_output_tokens = 64,
                 .prefill_depth_ns = 10 * BT_NS_PER_S,
                 .prefill_token_ns = BT_NS_PER_MS,
                 .silent_after_ns = 60 * BT_NS_PER_S,
                 .lost_after_ns = 120 * BT_NS_PER_S,
                 .reserve_retry_ns = BT_NS_PER_MS},
        .model_dir = MODEL_DIR,
        .worker_endpoint = "tcp://127.0.0.1:*",
        .request_timeout_ns = 60 * BT_NS_PER_S,
        .heartbeat_ms = 250,
        .trace_keep = 8,
        .prefix_blocks = 1000,
        .tokenizer_threads = 1,
        .tokenizer_max_jobs = 4,
        .tokenizer_max_bytes = 1 << 20,
    };
    loop = bt_loop_create(&error);
    metrics = bt_metrics_create();
    client_count = 0;
    must(loop && metrics && rt_service_create(loop, &options, metrics, &error, &service) == BT_OK &&
             bt_rpc_client_create(loop, rt_service_rpc_endpoint(service), &error, &registry) ==
                 BT_OK,
         error.text);
}

static void close_service(void)
{
    rt_service_stop(service);
    for (uint32_t i = 0; i < client_count; i++)
        must(clients[i].ends == 1, "a request did not end once");
    rt_service_destroy(service);
    bt_rpc_client_destroy(registry);
}

/* ------------------------------------------------------------------ acts */

static void act_step(struct worker *rank, const uint8_t *data, size_t size)
{
    Baton__V1__StepEvent *event = baton__v1__step_event__unpack(NULL, size, data);
    for (size_t i = 0; event && i < event->n_sequences; i++)
        real_ids(rank, &event->sequences[i]->request_id, &event->sequences[i]->epoch);
    if (event && rank->steps)
        bt_rpc_call_send(rank->steps, &event->base);
    if (event)
        baton__v1__step_event__free_unpacked(event, NULL);
}

static void act_run_event(struct worker *prefill, const uint8_t *data, size_t size)
{
    Baton__V1__PrefillEvent *event = baton__v1__prefill_event__unpack(NULL, size, data);
    if (event && prefill->run)
        bt_rpc_call_send(prefill->run, &event->base);
    if (event)
        baton__v1__prefill_event__free_unpacked(event, NULL);
}

static void end_call(struct bt_rpc_call **call, uint8_t how)
{
    static const enum bt_status ends[] = {BT_OK,           BT_ERR_STALE,     BT_ERR_UNAVAILABLE,
                                          BT_ERR_INTERNAL, BT_ERR_CANCELLED, BT_ERR_MISMATCH};
    if (*call) {
        struct bt_rpc_call *over = *call;
        *call = NULL;
        bt_rpc_call_end(over, ends[how % (sizeof ends / sizeof ends[0])], "\x1b[31m over \xff",
                        NULL);
    }
}

static void act(struct worker *prefill, struct worker *rank, uint8_t kind, const uint8_t *data,
                size_t size)
{
    uint8_t first = size > 0 ? data[0] : 0;
    switch (kind % ACT_COUNT) {
    case ACT_STEP:
        act_step(rank, data, size);
        break;
    case ACT_RUN_EVENT:
        act_run_event(prefill, data, size);
        break;
    case ACT_RESERVE:
        rank->answer = data;
        rank->answer_size = size;
        break;
    case ACT_RUN_END:
        end_call(&prefill->run, first);
        break;
    case ACT_STEPS_END:
        end_call(&rank->steps, first);
        break;
    case ACT_SUBMIT:
        submit();
        break;
    case ACT_ABANDON:
        abandon(first);
        break;
    default:
        beat(first % 2 ? prefill : rank, data, size);
    }
    settle();
    settle(); /* a Reserve is answered in one round, its Run comes in the next */
}

/* Any two of the same process may still be told apart. */
static void still_of_use(void)
{
    struct worker prefill, rank;
    join(&rank, "hd", true, NULL);
    join(&prefill, "hp", false, &rank);
    int64_t until_ns = bt_clock_now_ns() + PATIENCE_NS;
    struct client *client = NULL;
    while (!(client && client->ends > 0 && client->finish == RT_FINISH_LENGTH)) {
        must(bt_clock_now_ns() < until_ns, "honest workers are of no use");
        if (!client || client->ends > 0)
            client = submit();
        settle();
    }
    must(client->tokens == 3, "tokens are missing");
    Baton__V1__StatusResponse *status = rt_service_status(service);
    must(status != NULL, "no status");
    baton__v1__status_response__free_unpacked(status, NULL);
    Baton__V1__TraceRequest last = BATON__V1__TRACE_REQUEST__INIT;
    last.last = 8;
    ask("baton.v1.Router/Trace", &last.base);
    close_service();
    leave(&prefill);
    leave(&rank);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bt_log_init("fuzz-workers", BT_LOG_ERROR - 1); /* losses are what it is about */
    struct worker prefill, rank;
    open_service();
    join(&rank, "d0", true, NULL);
    join(&prefill, "p0", false, &rank);
    int acts = 0;
    for (size_t at = 0; at + 3 <= size && acts < MAX_ACTS; acts++) {
        size_t length = data[at + 1] + 256u * data[at + 2];
        length = length < size - at - 3 ? length : size - at - 3;
        act(&prefill, &rank, data[at], data + at + 3, length);
        at += 3 + length;
    }
    leave(&prefill);
    leave(&rank);
    client_count = client_count < MAX_REQUESTS / 2 ? client_count : MAX_REQUESTS / 2;
    still_of_use();
    bt_loop_destroy(loop);
    bt_metrics_destroy(metrics);
    return 0;
}

/* ------------------------------------------------------------------ seeds */

static size_t put(uint8_t *ret_data, enum act kind, const ProtobufCMessage *message)
{
    size_t size = message ? protobuf_c_message_pack(message, ret_data + 3) : 0;
    ret_data[0] = (uint8_t)kind;
    ret_data[1] = (uint8_t)size;
    ret_data[2] = (uint8_t)(size >> 8);
    return 3 + size;
}

static size_t put_reserve(uint8_t *ret_data, bool local)
{
    Baton__V1__KvEndpoint endpoint = BATON__V1__KV_ENDPOINT__INIT;
    Baton__V1__PageRun run = BATON__V1__PAGE_RUN__INIT;
    Baton__V1__PageRun *runs[] = {&run, &run};
    Baton__V1__Landing landing = BATON__V1__LANDING__INIT;
    Baton__V1__ReserveResponse response = BATON__V1__RESERVE_RESPONSE__INIT;
    endpoint.worker_id = (char *)"self";
    run.count = 1;
    landing.endpoint = &endpoint;
    landing.n_runs = 2;
    landing.runs = runs;
    response.landing = local ? NULL : &landing;
    return put(ret_data, ACT_RESERVE, &response.base);
}

static size_t put_first_token(uint8_t *ret_data)
{
    Baton__V1__TokenLogprob other = BATON__V1__TOKEN_LOGPROB__INIT, *top[] = {&other, &other};
    Baton__V1__Token token = BATON__V1__TOKEN__INIT;
    Baton__V1__PrefillEvent event = BATON__V1__PREFILL_EVENT__INIT;
    token.token = 5;
    token.has_logprob = true;
    token.logprob = -1;
    token.n_top = 2;
    token.top = top;
    event.event_case = BATON__V1__PREFILL_EVENT__EVENT_FIRST_TOKEN;
    event.first_token = &token;
    event.cached_tokens = 2;
    return put(ret_data, ACT_RUN_EVENT, &event.base);
}

static size_t put_done(uint8_t *ret_data)
{
    Baton__V1__LayerTime layer = BATON__V1__LAYER_TIME__INIT, *layers[] = {&layer, &layer};
    Baton__V1__PrefillDone done = BATON__V1__PREFILL_DONE__INIT;
    Baton__V1__PrefillEvent event = BATON__V1__PREFILL_EVENT__INIT;
    layer.compute_end_ns = layer.push_end_ns = layer.bytes = 900;
    done.kv_bytes = done.hidden_bytes = 4096;
    done.compute_ns = done.visible_transfer_ns = done.queue_ns = 5000000;
    done.begin_unix_ns = INT64_C(1700000000000000000);
    done.transport = (char *)"shm";
    done.cached_tokens = 2;
    done.n_layers = 2;
    done.layers = layers;
    event.event_case = BATON__V1__PREFILL_EVENT__EVENT_DONE;
    event.done = &done;
    return put(ret_data, ACT_RUN_EVENT, &event.base);
}

static size_t put_step(uint8_t *ret_data, uint32_t from, uint32_t count,
                       Baton__V1__FinishReason finish)
{
    Baton__V1__Token tokens[3], *pointers[3];
    for (uint32_t i = 0; i < count; i++) {
        baton__v1__token__init(&tokens[i]);
        tokens[i].index = from + i;
        tokens[i].token = 5 + from + i;
        pointers[i] = &tokens[i];
    }
    Baton__V1__SequenceStart start = BATON__V1__SEQUENCE_START__INIT;
    Baton__V1__SequenceStep sequence = BATON__V1__SEQUENCE_STEP__INIT, *list[] = {&sequence};
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    Baton__V1__StepEvent event = BATON__V1__STEP_EVENT__INIT;
    start.wait_ns = start.step_ns = 1000;
    start.begin_unix_ns = INT64_C(1700000000000000000);
    sequence.n_tokens = count;
    sequence.tokens = pointers;
    sequence.finish = finish;
    sequence.start = from == 0 ? &start : NULL;
    sequence.prompt_compute_ns = 100;
    Baton__V1__PrefillDone figures = BATON__V1__PREFILL_DONE__INIT;
    figures.kv_bytes = figures.compute_ns = 1000;
    figures.transport = (char *)"shm";
    figures.cached_tokens = 1;
    sequence.prefill = from == 0 ? &figures : NULL;
    sequence.error = (char *)(finish == BATON__V1__FINISH_REASON__FINISH_ERROR ? "bad" : "");
    load.pages_total = 100;
    load.pages_free = 90;
    load.running = load.kv_tokens = 1;
    event.n_sequences = 1;
    event.sequences = list;
    event.load = &load;
    return put(ret_data, ACT_STEP, &event.base);
}

static size_t put_beat(uint8_t *ret_data)
{
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    Baton__V1__HeartbeatRequest request = BATON__V1__HEARTBEAT_REQUEST__INIT;
    load.pages_total = load.pages_free = 100;
    request.worker_id = (char *)"self";
    request.load = &load;
    request.sequence = 1;
    return put(ret_data, ACT_HEARTBEAT, &request.base);
}

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    must(capacity >= 4096, "no room for a seed");
    if (index > 3)
        return 0;
    size_t size = 0;
    if (index != 2)
        size += put_reserve(ret_data, index == 3);
    size += put(ret_data + size, ACT_SUBMIT, NULL);
    if (index != 3)
        size += put_first_token(ret_data + size);
    if (index == 1)
        size += put(ret_data + size, ACT_SUBMIT, NULL);
    size += put_done(ret_data + size);
    size += put(ret_data + size, ACT_RUN_END, NULL);
    size += put_step(ret_data + size, 0, 2, BATON__V1__FINISH_REASON__FINISH_UNSPECIFIED);
    size += put_beat(ret_data + size);
    if (index == 1)
        size += put(ret_data + size, ACT_ABANDON, NULL);
    return size + put_step(ret_data + size, 2, 1,
                           index == 2 ? BATON__V1__FINISH_REASON__FINISH_ERROR
                                      : BATON__V1__FINISH_REASON__FINISH_LENGTH);
}
