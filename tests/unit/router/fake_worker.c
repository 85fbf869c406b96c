#include "tests/unit/router/fake_worker.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/process.h"

const uint32_t *fake_script;

static uint64_t next_epoch = 1000;

/* ---- decode */

static Baton__V1__LayoutFingerprint fingerprint(void)
{
    Baton__V1__LayoutFingerprint message = BATON__V1__LAYOUT_FINGERPRINT__INIT;
    message.layout_version = 1;
    message.model_hash = 77;
    message.model_name = (char *)"tiny";
    message.kv_dtype = (char *)"bf16";
    message.arithmetic = (char *)"float32";
    message.page_tokens = 64;
    message.layer_count = 6;
    message.kv_lora_rank = 64;
    message.qk_rope_head_dim = 16;
    return message;
}

static void handle_reserve(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    struct fake_worker *worker = context;
    const Baton__V1__ReserveRequest *request = (const Baton__V1__ReserveRequest *)message;
    assert_non_null(request->sampling);
    worker->reserve_key_size = request->resume_key.len;
    if (request->resume_key.len == 32) {
        memcpy(worker->reserve_key, request->resume_key.data, 32);
    }
    if (worker->refuse != BT_OK) {
        bt_rpc_call_end(call, worker->refuse, "told to refuse", NULL);
        return;
    }
    assert_true(worker->held_count < FAKE_MAX);
    struct fake_held *held = &worker->held[worker->held_count++];
    *held = (struct fake_held){.request = request->request_id,
                               .epoch = next_epoch++,
                               .full = request->full,
                               .prompt_tokens = request->prompt_tokens,
                               .penalty_prompt_tokens = (uint32_t)request->n_prompt};
    Baton__V1__KvEndpoint endpoint = BATON__V1__KV_ENDPOINT__INIT;
    endpoint.worker_id = worker->id;
    endpoint.incarnation = worker->incarnation + worker->impostor;
    Baton__V1__PageRun run = BATON__V1__PAGE_RUN__INIT;
    run.count = 1;
    Baton__V1__PageRun *runs[] = {&run};
    Baton__V1__Landing landing = BATON__V1__LANDING__INIT;
    landing.request_id = held->request;
    landing.epoch = held->epoch;
    landing.endpoint = &endpoint;
    landing.n_runs = 1;
    landing.runs = runs;
    Baton__V1__ReserveResponse response = BATON__V1__RESERVE_RESPONSE__INIT;
    response.landing = &landing;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_adopt(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    struct fake_worker *worker = context;
    const Baton__V1__AdoptRequest *request = (const Baton__V1__AdoptRequest *)message;
    assert_non_null(worker->steps);
    assert_int_not_equal(request->router_incarnation, 0);
    assert_int_equal(request->resume_key.len, 32);
    memcpy(worker->adopt_key, request->resume_key.data, 32);
    worker->adopt_count++;
    if (worker->refuse_adopt != BT_OK) {
        bt_rpc_call_end(call, worker->refuse_adopt, "told to refuse", NULL);
        return;
    }
    assert_true(worker->held_count < FAKE_MAX);
    worker->held[worker->held_count++] =
        (struct fake_held){.request = request->request_id, .epoch = request->epoch};
    Baton__V1__AdoptResponse response = BATON__V1__ADOPT_RESPONSE__INIT;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_cancel(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    struct fake_worker *worker = context;
    const Baton__V1__CancelRequest *request = (const Baton__V1__CancelRequest *)message;
    assert_true(worker->cancel_count < FAKE_MAX);
    worker->cancels[worker->cancel_count++] = *request;
    if (worker->refuse_cancel != BT_OK) {
        bt_rpc_call_end(call, worker->refuse_cancel, "told to refuse", NULL);
        worker->refuse_cancel = BT_OK;
        return;
    }
    for (uint32_t i = 0; i < worker->held_count; i++) {
        if (worker->held[i].request == request->request_id &&
            (request->epoch == 0 || request->epoch == worker->held[i].epoch)) {
            worker->held[i].cancelled = true;
        }
    }
    Baton__V1__CancelResponse response = BATON__V1__CANCEL_RESPONSE__INIT;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void on_steps_cancelled(void *context, struct bt_rpc_call *call)
{
    struct fake_worker *worker = context;
    worker->steps = NULL;
    bt_rpc_call_end(call, BT_ERR_CANCELLED, NULL, NULL);
}

static void handle_steps(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    struct fake_worker *worker = context;
    const Baton__V1__StepsRequest *request = (const Baton__V1__StepsRequest *)message;
    assert_int_not_equal(request->router_incarnation, 0);
    assert_null(worker->steps);
    worker->steps = call;
    worker->steps_opened++;
    bt_rpc_call_on_cancel(call, on_steps_cancelled, worker);
}

static void send_step(struct fake_worker *worker, Baton__V1__SequenceStep *sequence)
{
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    load.pages_total = worker->pages_total;
    load.pages_free = worker->pages_total - worker->pages_used;
    Baton__V1__StepEvent event = BATON__V1__STEP_EVENT__INIT;
    event.load = &load;
    event.n_sequences = sequence ? 1 : 0;
    event.sequences = &sequence;
    assert_non_null(worker->steps);
    assert_int_equal(bt_rpc_call_send(worker->steps, &event.base), BT_OK);
}

void fake_decode_hello(struct fake_worker *worker)
{
    send_step(worker, NULL);
}

static struct fake_held *newest(struct fake_worker *worker)
{
    uint32_t i = worker->held_count;
    while (i > 0 && worker->held[i - 1].cancelled) {
        i--;
    }
    assert_true(i > 0);
    return &worker->held[i - 1];
}

static Baton__V1__PrefillDone prefill_done(uint32_t cached_tokens)
{
    Baton__V1__PrefillDone done = BATON__V1__PREFILL_DONE__INIT;
    done.kv_bytes = 4096;
    done.hidden_bytes = 1024;
    done.writes = 3;
    done.compute_ns = 5000000;
    done.visible_transfer_ns = 2000000;
    done.layerwise = true;
    done.transport = (char *)"shm";
    done.cached_tokens = cached_tokens;
    return done;
}

void fake_decode_step(struct fake_worker *worker, uint32_t first, uint32_t count,
                      Baton__V1__FinishReason finish)
{
    Baton__V1__Token tokens[64];
    Baton__V1__Token *pointers[64];
    assert_true(count <= 64);
    for (uint32_t i = 0; i < count; i++) {
        baton__v1__token__init(&tokens[i]);
        tokens[i].index = first + i;
        tokens[i].token = fake_script[first + i];
        tokens[i].has_logprob = true;
        tokens[i].logprob = -1.0F - (float)(first + i);
        pointers[i] = &tokens[i];
    }
    const struct fake_held *held = newest(worker);
    Baton__V1__SequenceStep sequence = BATON__V1__SEQUENCE_STEP__INIT;
    sequence.request_id = held->request;
    sequence.epoch = held->epoch;
    sequence.n_tokens = count;
    sequence.tokens = pointers;
    sequence.finish = finish;
    Baton__V1__PrefillDone done;
    if (worker->passes_on > 0) {
        done = prefill_done(worker->passes_on - 1);
        sequence.prefill = &done;
        worker->passes_on = 0;
    }
    send_step(worker, &sequence);
}

/* ---- prefill */

static void on_run_cancelled(void *context, struct bt_rpc_call *call)
{
    struct fake_worker *worker = context;
    worker->run_cancels++;
    worker->run = NULL;
    bt_rpc_call_end(call, BT_ERR_CANCELLED, NULL, NULL);
}

static void handle_run(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    struct fake_worker *worker = context;
    const Baton__V1__PrefillRequest *request = (const Baton__V1__PrefillRequest *)message;
    assert_null(worker->run);
    assert_non_null(request->landing);
    assert_non_null(request->sampling);
    assert_non_null(request->landing->endpoint);
    worker->run = call;
    worker->run_count++;
    worker->run_request = request->request_id;
    worker->run_epoch = request->landing->epoch;
    worker->run_prompt_tokens = (uint32_t)request->n_prompt;
    worker->run_seed = request->sampling->seed;
    snprintf(worker->run_rank, sizeof worker->run_rank, "%s",
             request->landing->endpoint->worker_id);
    bt_rpc_call_on_cancel(call, on_run_cancelled, worker);
}

static void send_run_event(struct fake_worker *worker, const Baton__V1__PrefillEvent *event)
{
    assert_non_null(worker->run);
    assert_int_equal(bt_rpc_call_send(worker->run, &event->base), BT_OK);
}

void fake_prefill_first_token(struct fake_worker *worker)
{
    Baton__V1__Token token = BATON__V1__TOKEN__INIT;
    token.token = fake_script[0];
    token.has_logprob = true;
    token.logprob = -1;
    Baton__V1__PrefillEvent event = BATON__V1__PREFILL_EVENT__INIT;
    event.event_case = BATON__V1__PREFILL_EVENT__EVENT_FIRST_TOKEN;
    event.first_token = &token;
    event.cached_tokens = worker->cached_tokens;
    send_run_event(worker, &event);
}

void fake_prefill_done(struct fake_worker *worker)
{
    Baton__V1__PrefillDone done = prefill_done(worker->cached_tokens);
    Baton__V1__PrefillEvent event = BATON__V1__PREFILL_EVENT__INIT;
    event.event_case = BATON__V1__PREFILL_EVENT__EVENT_DONE;
    event.done = &done;
    send_run_event(worker, &event);
    bt_rpc_call_end(worker->run, BT_OK, NULL, NULL);
    worker->run = NULL;
}

void fake_prefill_fail(struct fake_worker *worker, enum bt_status status)
{
    bt_rpc_call_end(worker->run, status, "told to fail", NULL);
    worker->run = NULL;
}

/* ---- both */

static const struct bt_rpc_method methods[] = {
    {"baton.v1.Decode/Reserve", &baton__v1__reserve_request__descriptor, handle_reserve},
    {"baton.v1.Decode/Adopt", &baton__v1__adopt_request__descriptor, handle_adopt},
    {"baton.v1.Decode/Cancel", &baton__v1__cancel_request__descriptor, handle_cancel},
    {"baton.v1.Decode/Steps", &baton__v1__steps_request__descriptor, handle_steps},
    {"baton.v1.Prefill/Run", &baton__v1__prefill_request__descriptor, handle_run},
    {NULL, NULL, NULL},
};

void fake_worker_open(struct fake_worker *worker, struct bt_loop *loop, const char *id, bool decode)
{
    static uint64_t incarnation = 1;
    *worker = (struct fake_worker){
        .incarnation = incarnation++, .decode = decode, .pages_total = decode ? 100 : 0};
    snprintf(worker->id, sizeof worker->id, "%s", id);
    assert_int_equal(
        bt_rpc_server_create(loop, "tcp://127.0.0.1:*", methods, worker, NULL, &worker->server),
        BT_OK);
    snprintf(worker->endpoint, sizeof worker->endpoint, "%s",
             bt_rpc_server_endpoint(worker->server));
}

void fake_worker_close(struct fake_worker *worker)
{
    bt_rpc_server_destroy(worker->server);
    worker->server = NULL;
}

const Baton__V1__RegisterRequest *fake_worker_registration(const struct fake_worker *worker)
{
    static Baton__V1__RegisterRequest request;
    static Baton__V1__LayoutFingerprint layout;
    static Baton__V1__ProcessId process;
    static Baton__V1__RankLoad load;
    static Baton__V1__KvEndpoint kv;
    static struct bt_process_id self;
    assert_int_equal(bt_process_self(NULL, &self), BT_OK);
    baton__v1__register_request__init(&request);
    baton__v1__process_id__init(&process);
    baton__v1__rank_load__init(&load);
    baton__v1__kv_endpoint__init(&kv);
    layout = fingerprint();
    process.host = self.host;
    process.pid = self.pid;
    process.start_ticks = self.start_ticks;
    load.pages_total = load.pages_free = worker->pages_total;
    request.worker_id = (char *)worker->id;
    request.incarnation = worker->incarnation;
    request.role =
        worker->decode ? BATON__V1__WORKER_ROLE__ROLE_DECODE : BATON__V1__WORKER_ROLE__ROLE_PREFILL;
    request.control_endpoint = (char *)worker->endpoint;
    request.fingerprint = &layout;
    request.process = &process;
    request.max_model_len = 4096;
    request.load = &load;
    request.transport = (char *)"auto";
    if (worker->decode) {
        kv.worker_id = (char *)worker->id;
        kv.incarnation = worker->incarnation;
        kv.transport_address = (ProtobufCBinaryData){4, (uint8_t *)"addr"};
        kv.pool_key = (ProtobufCBinaryData){3, (uint8_t *)"key"};
        kv.pool_pages = worker->pages_total;
        kv.fingerprint = &layout;
        kv.process = &process;
        kv.control_endpoint = (char *)worker->endpoint;
        request.kv = &kv;
    }
    return &request;
}
