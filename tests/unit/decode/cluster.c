#include "tests/unit/decode/cluster.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"

struct pf_worker_options cluster_prefill_options(void)
{
    return (struct pf_worker_options){
        .worker_id = "prefill-test",
        .listen = "tcp://127.0.0.1:*",
        .served_model_name = "tiny",
        .transport = "auto",
        .kv_dtype = BT_F32,
        .kv_pages = 128,
        .chunked_prefill_size = 128,
        .max_num_seqs = 8,
        .max_queued = 32,
        .layerwise_threshold = 0,
        .checksum = true,
    };
}

struct dc_worker_options cluster_decode_options(void)
{
    return (struct dc_worker_options){
        .worker_id = "decode-test",
        .listen = "tcp://127.0.0.1:*",
        .served_model_name = "tiny",
        .transport = "auto",
        .kv_dtype = BT_F32,
        .kv_pages = 128,
        .max_num_seqs = 16,
        .max_reserved = 32,
        .expected_output_tokens = 512,
        .lease_ms = 20000,
        .checksum = true,
    };
}

void cluster_turn(struct cluster *cluster)
{
    struct bt_error error;
    assert_int_equal(
        bt_loop_run_once(cluster->loop, bt_clock_now_ns() + 100 * BT_NS_PER_MS, &error), BT_OK);
}

static struct attempt *attempt_of(struct cluster *cluster, uint64_t request, uint64_t epoch)
{
    for (uint32_t i = 0; i < cluster->attempt_count; i++) {
        struct attempt *attempt = cluster->attempts[i];
        bool reserving = attempt->epoch == 0; /* its answer may come after its first steps */
        if (attempt->request == request && (attempt->epoch == epoch || reserving)) {
            return attempt;
        }
    }
    return NULL;
}

struct prefill_figures prefill_figures_of(const Baton__V1__PrefillDone *done)
{
    struct prefill_figures figures;
    memset(&figures, 0, sizeof(figures));
    figures.kv_bytes = done->kv_bytes;
    figures.writes = done->writes;
    figures.compute_ns = done->compute_ns;
    figures.visible_transfer_ns = done->visible_transfer_ns;
    figures.hidden_bytes = done->hidden_bytes;
    figures.queue_ns = done->queue_ns;
    figures.begin_unix_ns = done->begin_unix_ns;
    figures.cached_tokens = done->cached_tokens;
    figures.layerwise = done->layerwise;
    snprintf(figures.transport, sizeof(figures.transport), "%s", done->transport);
    return figures;
}

static void on_step(void *context, const ProtobufCMessage *message)
{
    struct cluster *cluster = context;
    const Baton__V1__StepEvent *event = (const Baton__V1__StepEvent *)message;
    cluster->hello = true;
    assert_non_null(event->load);
    for (size_t i = 0; i < event->n_sequences; i++) {
        const Baton__V1__SequenceStep *step = event->sequences[i];
        struct attempt *attempt = attempt_of(cluster, step->request_id, step->epoch);
        if (!attempt) {
            continue;
        }
        assert_int_equal(attempt->finish, BATON__V1__FINISH_REASON__FINISH_UNSPECIFIED);
        for (size_t k = 0; k < step->n_tokens; k++) {
            assert_int_equal(step->tokens[k]->index, attempt->token_count);
            if (attempt->token_count < MAX_TOKENS) {
                attempt->logprobs[attempt->token_count] = step->tokens[k]->logprob;
                attempt->tokens[attempt->token_count] = step->tokens[k]->token;
            }
            attempt->token_count++;
        }
        if (step->prefill) {
            assert_int_equal(step->prefill->n_layers, 0);
            assert_int_equal(step->tokens[0]->index, attempt->replay_count);
            attempt->by_rank = prefill_figures_of(step->prefill);
            attempt->unknown_told = step->prefill->base.n_unknown_fields;
            attempt->transport_size = strlen(step->prefill->transport);
            attempt->rank_told++;
        }
        attempt->finish = step->finish;
        snprintf(attempt->error, sizeof(attempt->error), "%s", step->error);
    }
}

static void on_steps_end(void *context, enum bt_status status, const char *text,
                         const ProtobufCMessage *response)
{
    struct cluster *cluster = context;
    (void)status;
    (void)text;
    (void)response;
    cluster->steps = NULL;
    cluster->steps_ended = true;
}

void cluster_subscribe(struct cluster *cluster)
{
    Baton__V1__StepsRequest request = BATON__V1__STEPS_REQUEST__INIT;
    request.router_incarnation = ROUTER;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Decode/Steps",
        .request = &request.base,
        .data = &baton__v1__step_event__descriptor,
        .deadline_ns = BT_NEVER_NS,
        .on_data = on_step,
        .on_end = on_steps_end,
        .context = cluster,
    };
    cluster->hello = cluster->steps_ended = false;
    assert_int_equal(bt_rpc_client_call(cluster->to_decode, &spec, NULL, &cluster->steps), BT_OK);
    cluster_until(cluster, cluster->hello);
}

void cluster_open(struct cluster *cluster, const struct pf_worker_options *prefill,
                  const struct dc_worker_options *decode)
{
    struct bt_error error = {0};
    *cluster =
        (struct cluster){.prefill_pages = prefill->kv_pages, .decode_pages = decode->kv_pages};
    cluster->loop = bt_loop_create(&error);
    assert_non_null(cluster->loop);
    const struct bt_model_options load = {.dir = TINY_MODEL};
    if (bt_model_load(&load, &error, &cluster->model) != BT_OK ||
        pf_worker_create(cluster->loop, cluster->model, prefill, &error, &cluster->prefill) !=
            BT_OK ||
        dc_worker_create(cluster->loop, cluster->model, decode, &error, &cluster->decode) !=
            BT_OK ||
        bt_rpc_client_create(cluster->loop, pf_worker_endpoint(cluster->prefill), &error,
                             &cluster->to_prefill) != BT_OK ||
        bt_rpc_client_create(cluster->loop, dc_worker_endpoint(cluster->decode), &error,
                             &cluster->to_decode) != BT_OK) {
        fail_msg("%s", error.text);
    }
    cluster_subscribe(cluster);
}

void cluster_close(struct cluster *cluster)
{
    cluster_until(cluster, pf_worker_free_pages(cluster->prefill) == cluster->prefill_pages &&
                               dc_worker_free_pages(cluster->decode) == cluster->decode_pages &&
                               dc_worker_requests(cluster->decode) == 0);
    pf_worker_stop(cluster->prefill);
    cluster_until(cluster, pf_worker_quiet(cluster->prefill));
    dc_worker_stop(cluster->decode);
    cluster_until(cluster, dc_worker_quiet(cluster->decode));
    pf_worker_destroy(cluster->prefill);
    dc_worker_destroy(cluster->decode);
    bt_rpc_client_destroy(cluster->to_prefill);
    bt_rpc_client_destroy(cluster->to_decode);
    for (uint32_t i = 0; i < cluster->attempt_count; i++) {
        attempt_finish(cluster->attempts[i]);
    }
    bt_model_destroy(cluster->model);
    bt_loop_destroy(cluster->loop);
}

enum bt_status cluster_call(struct cluster *cluster, struct bt_rpc_client *client,
                            const char *method, const ProtobufCMessage *request,
                            const ProtobufCMessageDescriptor *response,
                            ProtobufCMessage **ret_response)
{
    struct bt_error error;
    (void)cluster;
    const struct bt_rpc_call_spec spec = {
        .method = method,
        .request = request,
        .response = response,
        .deadline_ns = bt_clock_now_ns() + 30 * BT_NS_PER_S,
    };
    return bt_rpc_client_call_wait(client, &spec, &error, ret_response);
}

void attempt_init(struct attempt *attempt, uint64_t request, const uint32_t *prompt,
                  uint32_t prompt_tokens, uint32_t max_tokens)
{
    *attempt = (struct attempt){
        .request = request,
        .prompt = prompt,
        .prompt_tokens = prompt_tokens,
        .deadline_ns = BT_NEVER_NS,
        .first_token = -1,
    };
    baton__v1__sampling_params__init(&attempt->sampling);
    attempt->sampling.seed = request;
    attempt->sampling.top_p = 1;
    attempt->sampling.repetition_penalty = 1;
    attempt->sampling.logprobs = 0;
    attempt->sampling.ignore_eos = true;
    attempt->sampling.max_tokens = max_tokens;
}

void attempt_replay(struct attempt *attempt, const struct attempt *before, uint32_t count)
{
    attempt->replay = before->tokens;
    attempt->replay_count = attempt->token_count = count;
    memcpy(attempt->tokens, before->tokens, count * sizeof(uint32_t));
    memcpy(attempt->logprobs, before->logprobs, count * sizeof(float));
}

void attempt_finish(struct attempt *attempt)
{
    if (attempt->reserved) {
        protobuf_c_message_free_unpacked(&attempt->reserved->base, NULL);
        attempt->reserved = NULL;
    }
}

enum bt_status cluster_reserve(struct cluster *cluster, struct attempt *attempt)
{
    Baton__V1__ReserveRequest request = BATON__V1__RESERVE_REQUEST__INIT;
    request.request_id = attempt->request;
    request.prompt_tokens = attempt->prompt_tokens;
    request.sampling = &attempt->sampling;
    request.full = attempt->full;
    request.router_incarnation = attempt->router ? attempt->router : ROUTER;
    request.expected_pages = attempt->expected_pages;
    request.resume_key.data = (uint8_t *)attempt->resume_key;
    request.resume_key.len = attempt->resume_key ? 32 : 0;
    request.replay = (uint32_t *)attempt->replay;
    request.n_replay = attempt->replay_count;
    request.local_prefill = attempt->local;
    if (attempt->sampling.repetition_penalty != 1 || attempt->local) {
        request.prompt = (uint32_t *)attempt->prompt;
        request.n_prompt = attempt->prompt_tokens;
    }
    uint32_t place = cluster->attempt_count++;
    assert_true(place < 64);
    cluster->attempts[place] = attempt;
    attempt->epoch = 0;
    enum bt_status status = cluster_call(cluster, cluster->to_decode, "baton.v1.Decode/Reserve",
                                         &request.base, &baton__v1__reserve_response__descriptor,
                                         (ProtobufCMessage **)&attempt->reserved);
    if (status == BT_OK) {
        assert_int_equal(attempt->reserved->landing == NULL, attempt->local);
        attempt->epoch =
            attempt->local ? attempt->reserved->epoch : attempt->reserved->landing->epoch;
    } else {
        assert_int_equal(cluster->attempt_count, place + 1);
        cluster->attempt_count = place;
    }
    return status;
}

static void on_run_event(void *context, const ProtobufCMessage *message)
{
    struct attempt *attempt = context;
    const Baton__V1__PrefillEvent *event = (const Baton__V1__PrefillEvent *)message;
    switch (event->event_case) {
    case BATON__V1__PREFILL_EVENT__EVENT_STARTED:
        attempt->started = true;
        break;
    case BATON__V1__PREFILL_EVENT__EVENT_FIRST_TOKEN:
        attempt->first_token = (int)event->first_token->token;
        break;
    case BATON__V1__PREFILL_EVENT__EVENT_DONE:
        attempt->handed_off = true;
        attempt->by_prefill = prefill_figures_of(event->done);
        attempt->layers_told = (uint32_t)event->done->n_layers;
        break;
    default:
        fail_msg("unknown event");
    }
}

static void on_run_end(void *context, enum bt_status status, const char *text,
                       const ProtobufCMessage *response)
{
    struct attempt *attempt = context;
    (void)response;
    attempt->run = NULL;
    attempt->run_ended = true;
    attempt->run_status = status;
    snprintf(attempt->run_text, sizeof(attempt->run_text), "%s", text);
}

void cluster_run(struct cluster *cluster, struct attempt *attempt)
{
    Baton__V1__PrefillRequest request = BATON__V1__PREFILL_REQUEST__INIT;
    request.request_id = attempt->request;
    request.prompt = (uint32_t *)attempt->prompt;
    request.n_prompt = attempt->prompt_tokens;
    request.sampling = &attempt->sampling;
    request.landing = attempt->reserved->landing;
    static uint8_t trace_id[16] = {1};
    Baton__V1__TraceContext trace = BATON__V1__TRACE_CONTEXT__INIT;
    trace.trace_id = (ProtobufCBinaryData){sizeof(trace_id), trace_id};
    trace.parent_id = 1;
    trace.sampled = attempt->sampled;
    request.trace = &trace;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Prefill/Run",
        .request = &request.base,
        .data = &baton__v1__prefill_event__descriptor,
        .deadline_ns = attempt->deadline_ns,
        .on_data = on_run_event,
        .on_end = on_run_end,
        .context = attempt,
    };
    assert_int_equal(bt_rpc_client_call(cluster->to_prefill, &spec, NULL, &attempt->run), BT_OK);
}

enum bt_status cluster_cancel(struct cluster *cluster, uint64_t request, uint64_t epoch)
{
    Baton__V1__CancelRequest message = BATON__V1__CANCEL_REQUEST__INIT;
    message.request_id = request;
    message.epoch = epoch;
    return cluster_call(cluster, cluster->to_decode, "baton.v1.Decode/Cancel", &message.base, NULL,
                        NULL);
}

bool cluster_lease(struct cluster *cluster, const struct fake_prefill *fake, uint64_t request,
                   uint64_t epoch)
{
    Baton__V1__ProcessId process = BATON__V1__PROCESS_ID__INIT;
    process.host = (char *)fake->process.host;
    process.pid = fake->process.pid;
    process.start_ticks = fake->process.start_ticks;
    Baton__V1__LeaseKey key = BATON__V1__LEASE_KEY__INIT;
    key.request_id = request;
    key.epoch = epoch;
    Baton__V1__LeaseKey *keys[] = {&key};
    Baton__V1__LeaseRequest message = BATON__V1__LEASE_REQUEST__INIT;
    message.worker_id = (char *)"fake";
    message.incarnation = fake->incarnation;
    message.process = &process;
    message.lease = keys;
    message.n_lease = 1;
    Baton__V1__LeaseResponse *response = NULL;
    assert_int_equal(cluster_call(cluster, cluster->to_decode, "baton.v1.Decode/Lease",
                                  &message.base, &baton__v1__lease_response__descriptor,
                                  (ProtobufCMessage **)&response),
                     BT_OK);
    assert_int_equal(response->n_live, 1);
    bool live = response->live[0];
    protobuf_c_message_free_unpacked(&response->base, NULL);
    return live;
}

enum bt_status cluster_quiesced(struct cluster *cluster, const struct fake_prefill *fake,
                                uint64_t request, uint64_t epoch, bool broken)
{
    Baton__V1__QuiescedRequest message = BATON__V1__QUIESCED_REQUEST__INIT;
    message.request_id = request;
    message.epoch = epoch;
    message.incarnation = fake->incarnation;
    Baton__V1__LinkCut cut = BATON__V1__LINK_CUT__INIT, *cuts[] = {&cut};
    cut.link = 7;
    cut.lines = UINT64_MAX;
    message.cuts = cuts;
    message.n_cuts = broken;
    return cluster_call(cluster, cluster->to_decode, "baton.v1.Decode/Quiesced", &message.base,
                        NULL, NULL);
}
