/*
 * Whole workers and the router against hostile peers: a cluster of tests/sim is given an honest
 * request, and meanwhile messages out of nowhere. An input is a list of steps,
 *
 *     [kind][argument][size, 2 bytes][bytes]
 *
 * kind 0: `bytes` as a request, of method `argument` below; 1: as data of an open stream; 2: as the
 * end of an open call, with status -argument; 3: `argument` milliseconds pass. Ids, epochs and
 * incarnations are the same in each run, and the seeds know them; a peer that is let in may spoil a
 * request with them, but nothing may crash, hang, leak or end a request twice.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/kvcache/page_pool.h"
#include "kvtransfer/cut.h"
#include "proto/registry.pb-c.h"
#include "proto/worker.pb-c.h"
#include "tests/fuzz/driver.h"
#include "tests/sim/cluster.h"
#include "tests/sim/fabric.h"
#include "tests/sim/front.h"
#include "tests/sim/seams.h"

#define SEED      1
#define ROUTER    0
#define PREFILL   1
#define DECODE    2
#define SEED_SIZE 1024

static const struct {
    uint32_t node;
    const char *method;
} methods[] = {
    {DECODE, "baton.v1.Decode/Reserve"},     {DECODE, "baton.v1.Decode/Lease"},
    {DECODE, "baton.v1.Decode/HandoffDone"}, {DECODE, "baton.v1.Decode/Quiesced"},
    {DECODE, "baton.v1.Decode/Cancel"},      {DECODE, "baton.v1.Decode/Steps"},
    {PREFILL, "baton.v1.Prefill/Run"},       {ROUTER, "baton.v1.Registry/Register"},
    {ROUTER, "baton.v1.Registry/Heartbeat"}, {ROUTER, "baton.v1.Registry/Deregister"},
    {PREFILL, "baton.v1.Worker/Drain"},      {DECODE, "baton.v1.Worker/Drain"},
    {PREFILL, "baton.v1.Worker/Preflight"},  {DECODE, "baton.v1.Worker/Preflight"},
};
#define METHODS (sizeof(methods) / sizeof(methods[0]))

/* ---- the cluster */

static void pass(int64_t duration_ns)
{
    int64_t until_ns = world.now_ns + duration_ns;
    while (world.now_ns < until_ns && world_step()) {
    }
}

static void submit(void *object, uint64_t unused)
{
    (void)unused;
    client_submit(object);
}

static void cluster_begin(void)
{
    world_begin(SEED, false);
    fabric_begin(SEED);
    client_count = 0;
    cluster = (struct cluster){.lease_ms = 300, .checksum = true};
    node_add(ROLE_ROUTER, 0);
    node_add(ROLE_PREFILL, 8);
    node_add(ROLE_DECODE, 8);
    for (uint32_t i = 0; i < world.node_count; i++) {
        node_start(&world.nodes[i]);
    }
    pass(20 * SIM_MS);
    node_run(&world.nodes[ROUTER], submit, &world.nodes[ROUTER], 0);
    pass(SIM_MS);
}

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void cluster_end(void)
{
    pass(60 * SIM_S);
    must(client_count == 1 && clients_of_router[0].ends == 1, "the request did not end once");
    for (uint32_t i = PREFILL; i < world.node_count; i++) {
        uint32_t sum = 0;
        for (int state = 0; state < BT_PAGE_STATE_COUNT; state++) {
            sum += bt_page_pool_count(world.nodes[i].pages, (enum bt_page_state)state);
        }
        must(sum == world.nodes[i].kv_pages, "pages were lost");
    }
    fabric_end();
    world_end();
}

/* ---- inputs */

static void step(uint8_t kind, uint8_t argument, const uint8_t *bytes, size_t size)
{
    switch (kind % 4) {
    case 0:
        rpc_inject_request(&world.nodes[methods[argument % METHODS].node],
                           methods[argument % METHODS].method, bytes, size);
        break;
    case 1:
        rpc_inject_answer(argument, true, BT_OK, bytes, size);
        break;
    case 2:
        rpc_inject_answer(argument, false, argument % 8 ? BT_OK : BT_ERR_STALE, bytes, size);
        break;
    default:
        pass(argument * SIM_MS);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cluster_begin();
    while (size >= 4) {
        size_t length = (size_t)data[2] << 8 | data[3];
        length = length < size - 4 ? length : size - 4;
        step(data[0], data[1], data + 4, length);
        data += 4 + length;
        size -= 4 + length;
    }
    cluster_end();
    return 0;
}

/* What honest peers would send, from a cluster of the same seed. */
static size_t add(uint8_t *data, size_t at, size_t capacity, uint8_t kind, uint8_t argument,
                  const ProtobufCMessage *message)
{
    size_t size = message ? protobuf_c_message_get_packed_size(message) : 0;
    if (at + 4 + size > capacity || size > SEED_SIZE) {
        return at;
    }
    data[at] = kind;
    data[at + 1] = argument;
    data[at + 2] = (uint8_t)(size >> 8);
    data[at + 3] = (uint8_t)size;
    if (message) {
        protobuf_c_message_pack(message, data + at + 4);
    }
    return at + 4 + size;
}

static size_t seed_of_decode(uint8_t *data, size_t capacity)
{
    uint64_t request = clients_of_router[0].request, epoch = (uint64_t)bt_clock_unix_ns();
    Baton__V1__SamplingParams sampling = BATON__V1__SAMPLING_PARAMS__INIT;
    sampling.top_p = sampling.repetition_penalty = 1;
    sampling.logprobs = -1;
    sampling.max_tokens = 4;
    Baton__V1__StepsRequest steps = BATON__V1__STEPS_REQUEST__INIT;
    steps.router_incarnation = 77;
    Baton__V1__ReserveRequest reserve = BATON__V1__RESERVE_REQUEST__INIT;
    reserve.request_id = 5;
    reserve.prompt_tokens = 70;
    reserve.sampling = &sampling;
    reserve.router_incarnation = 77;
    Baton__V1__ProcessId process = BATON__V1__PROCESS_ID__INIT;
    process.host = (char *)"host-0";
    process.pid = 2;
    process.start_ticks = 2;
    Baton__V1__LeaseKey key = BATON__V1__LEASE_KEY__INIT, *keys[] = {&key};
    key.request_id = request;
    key.epoch = epoch;
    Baton__V1__LeaseRequest lease = BATON__V1__LEASE_REQUEST__INIT;
    lease.worker_id = (char *)"prefill-1";
    lease.incarnation = 9;
    lease.process = &process;
    lease.lease = keys;
    lease.n_lease = 1;
    Baton__V1__Token token = BATON__V1__TOKEN__INIT;
    Baton__V1__HandoffDoneRequest done = BATON__V1__HANDOFF_DONE_REQUEST__INIT;
    done.request_id = request;
    done.epoch = epoch;
    done.prompt_tokens = clients_of_router[0].prompt_tokens;
    done.page_count = (done.prompt_tokens + 63) / 64;
    done.has_checksum = true;
    done.first_token = &token;
    Baton__V1__PrefillDone figures = BATON__V1__PREFILL_DONE__INIT;
    figures.kv_bytes = figures.writes = 7;
    figures.transport = (char *)"sim";
    figures.cached_tokens = 64;
    done.done = &figures;
    Baton__V1__QuiescedRequest quiesced = BATON__V1__QUIESCED_REQUEST__INIT;
    quiesced.request_id = request;
    quiesced.epoch = epoch;
    quiesced.incarnation = 9;
    Baton__V1__CancelRequest cancel = BATON__V1__CANCEL_REQUEST__INIT;
    cancel.request_id = request;
    size_t at = add(data, 0, capacity, 0, 5, &steps.base);
    at = add(data, at, capacity, 0, 0, &reserve.base);
    at = add(data, at, capacity, 0, 1, &lease.base);
    at = add(data, at, capacity, 3, 5, NULL);
    at = add(data, at, capacity, 0, 2, &done.base);
    at = add(data, at, capacity, 0, 3, &quiesced.base);
    Baton__V1__LinkCut cuts[3], *list[3];
    for (uint32_t i = 0; i < 3; i++) {
        baton__v1__link_cut__init(&cuts[i]);
        cuts[i].link = 1 + i / 2;
        cuts[i].lines = i == 2 ? KVT_ALL_LINES : UINT64_C(1) << i;
        list[i] = &cuts[i];
    }
    done.cuts = quiesced.cuts = list;
    done.n_cuts = quiesced.n_cuts = 3;
    at = add(data, at, capacity, 0, 2, &done.base);
    at = add(data, at, capacity, 0, 3, &quiesced.base);
    return add(data, at, capacity, 0, 4, &cancel.base);
}

static size_t seed_of_landing(uint8_t *data, size_t capacity)
{
    static uint32_t prompt[70];
    Baton__V1__PageRun run = BATON__V1__PAGE_RUN__INIT, *runs[] = {&run};
    run.count = 3;
    Baton__V1__LayoutFingerprint fingerprint = BATON__V1__LAYOUT_FINGERPRINT__INIT;
    fingerprint.layout_version = 1;
    fingerprint.model_hash = 1;
    fingerprint.kv_dtype = (char *)"bf16";
    fingerprint.arithmetic = (char *)"float32";
    fingerprint.page_tokens = 64;
    fingerprint.layer_count = SIM_LAYERS;
    fingerprint.kv_lora_rank = fingerprint.qk_rope_head_dim = 1;
    Baton__V1__ProcessId process = BATON__V1__PROCESS_ID__INIT;
    process.host = (char *)"host-0";
    process.pid = 3;
    process.start_ticks = 3;
    Baton__V1__KvEndpoint endpoint = BATON__V1__KV_ENDPOINT__INIT;
    endpoint.worker_id = (char *)"decode-2";
    endpoint.incarnation = 11;
    endpoint.transport_address.data = endpoint.pool_key.data = (uint8_t *)"blob";
    endpoint.transport_address.len = endpoint.pool_key.len = 4;
    endpoint.pool_base = 4096;
    endpoint.pool_pages = 8;
    endpoint.fingerprint = &fingerprint;
    endpoint.process = &process;
    endpoint.control_endpoint = world.nodes[DECODE].endpoint;
    Baton__V1__Landing landing = BATON__V1__LANDING__INIT;
    landing.request_id = 5;
    landing.epoch = 3;
    landing.endpoint = &endpoint;
    landing.runs = runs;
    landing.n_runs = 1;
    landing.lease_ms = 300;
    Baton__V1__SamplingParams sampling = BATON__V1__SAMPLING_PARAMS__INIT;
    sampling.top_p = sampling.repetition_penalty = 1;
    sampling.logprobs = -1;
    sampling.max_tokens = 4;
    Baton__V1__PrefillRequest prefill = BATON__V1__PREFILL_REQUEST__INIT;
    prefill.request_id = 5;
    prefill.prompt = prompt;
    prefill.n_prompt = 70;
    prefill.sampling = &sampling;
    prefill.landing = &landing;
    Baton__V1__ReserveResponse reserved = BATON__V1__RESERVE_RESPONSE__INIT;
    reserved.landing = &landing;
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    load.pages_total = load.pages_free = 8;
    Baton__V1__RegisterRequest identity = BATON__V1__REGISTER_REQUEST__INIT;
    identity.worker_id = (char *)"decode-2";
    identity.incarnation = 11;
    identity.role = BATON__V1__WORKER_ROLE__ROLE_DECODE;
    identity.control_endpoint = world.nodes[DECODE].endpoint;
    identity.fingerprint = &fingerprint;
    identity.process = &process;
    identity.load = &load;
    identity.kv = &endpoint;
    identity.max_model_len = 512;
    size_t at = add(data, 0, capacity, 0, 6, &prefill.base);
    at = add(data, at, capacity, 2, 1, &reserved.base);
    at = add(data, at, capacity, 0, 7, &identity.base);
    return add(data, at, capacity, 3, 20, NULL);
}

static size_t seed_of_answers(uint8_t *data, size_t capacity)
{
    Baton__V1__Token token = BATON__V1__TOKEN__INIT, *tokens[] = {&token};
    Baton__V1__SequenceStep sequence = BATON__V1__SEQUENCE_STEP__INIT, *list[] = {&sequence};
    sequence.request_id = clients_of_router[0].request;
    sequence.epoch = (uint64_t)bt_clock_unix_ns();
    sequence.tokens = tokens;
    sequence.n_tokens = 1;
    Baton__V1__PrefillDone figures = BATON__V1__PREFILL_DONE__INIT;
    figures.transport = (char *)"sim";
    sequence.prefill = &figures;
    Baton__V1__StepEvent event = BATON__V1__STEP_EVENT__INIT;
    event.sequences = list;
    event.n_sequences = 1;
    Baton__V1__PrefillEvent first = BATON__V1__PREFILL_EVENT__INIT;
    first.event_case = BATON__V1__PREFILL_EVENT__EVENT_FIRST_TOKEN;
    first.first_token = &token;
    protobuf_c_boolean live[] = {1, 0};
    Baton__V1__LeaseResponse lease = BATON__V1__LEASE_RESPONSE__INIT;
    lease.live = live;
    lease.n_live = 2;
    size_t at = add(data, 0, capacity, 1, 0, &event.base);
    at = add(data, at, capacity, 1, 40, &first.base);
    at = add(data, at, capacity, 2, 3, &lease.base);
    at = add(data, at, capacity, 2, 0, NULL);
    return add(data, at, capacity, 3, 5, NULL);
}

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    static uint8_t seeds[3][SEED_SIZE];
    static size_t sizes[3];
    if (sizes[0] == 0) {
        cluster_begin();
        sizes[0] = seed_of_decode(seeds[0], SEED_SIZE);
        sizes[1] = seed_of_landing(seeds[1], SEED_SIZE);
        sizes[2] = seed_of_answers(seeds[2], SEED_SIZE);
        cluster_end();
    }
    if (index >= 3 || sizes[index] > capacity) {
        return 0;
    }
    memcpy(ret_data, seeds[index], sizes[index]);
    return sizes[index];
}
