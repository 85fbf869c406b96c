/* The core's side: its actions carried out, and what must hold after each of them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/kvcache/layout.h"
#include "tests/sim/router/scale_world.h"

#define LATENCY_NS    (200 * INT64_C(1000))
#define POISON        2
#define KILLS_MOST    8 /* of one request, where workers also die without it */
#define MAX_ATTEMPTS  6
#define LIMITED       3  /* this tenant has a limit: */
#define LIMITED_SHARE 80 /* a request for so many pages of the cluster */

static uint32_t limited_runs(void)
{
    return sim.set.decode_count * sim.set.rank_count * sim.set.rank_pages / LIMITED_SHARE;
}

void sim_router_begin(void)
{
    struct rt_core_options options = {
        .queue_capacity = UINT32_C(1) << 20,
        .max_attempts = MAX_ATTEMPTS,
        .expected_output_tokens = 256,
        .silent_after_ns = 3 * SIM_S,
        .lost_after_ns = 30 * SIM_S,
        .reserve_retry_ns = 50 * SIM_MS,
        .prefill_depth_ns = 200 * SIM_MS,
        .prefill_base_ns = SIM_MS,
        .prefill_token_ns = 100000,
        .decode_policy = sim.set.policy,
        .local_prefill = sim.set.local,
        .seed = sim.set.seed,
        .patience = 10,
        .promote_after_ns = 5 * SIM_S,
        .breaker_failures = 5,
        .breaker_window_ns = 5 * SIM_S,
        .breaker_open_ns = SIM_S,
        .breaker_open_max_ns = 10 * SIM_S,
        .flap_lives = 2,
        .flap_life_ns = 5 * SIM_S,
        .poison_deaths = POISON,
        .retry_budget = 100000,
    };
    struct rt_tenant_limits limits = {.weight = 2, .max_running = limited_runs()};
    sim.core = rt_core_create(&options);
    SIM_REQUIRE(sim.core && rt_core_tenant_set(sim.core, LIMITED, &limits) == BT_OK, "no memory");
}

/* ---- refs */

void sim_name_ref(rt_worker_ref ref, uint32_t worker)
{
    if (ref >= sim.ref_capacity) {
        size_t capacity = ref * 2 + 64;
        sim.by_ref = sim_grow(sim.by_ref, capacity * sizeof *sim.by_ref);
        for (size_t i = sim.ref_capacity; i < capacity; i++) {
            sim.by_ref[i] = UINT32_MAX;
        }
        sim.ref_capacity = capacity;
    }
    sim.by_ref[ref] = worker;
}

/* NULL: another process has its place by now. */
struct sim_worker *sim_by_ref(rt_worker_ref ref)
{
    if (ref >= sim.ref_capacity || sim.by_ref[ref] == UINT32_MAX) {
        return NULL;
    }
    struct sim_worker *worker = &sim.workers[sim.by_ref[ref]];
    return worker->ref == ref ? worker : NULL;
}

/* ---- actions */

static void digest(uint64_t value)
{
    sim.digest = (sim.digest ^ value) * UINT64_C(0x100000001b3);
}

static void check_worker(const struct rt_action *action, rt_worker_ref ref)
{
    const struct sim_worker *worker = sim_by_ref(ref);
    struct rt_worker_view view;
    SIM_REQUIRE(worker && sim_worker_ready(worker),
                "request %llu goes to a worker that is not ready",
                (unsigned long long)action->request);
    SIM_REQUIRE(rt_core_worker(sim.core, ref, &view) && view.breaker != RT_BREAKER_OPEN,
                "request %llu goes to a worker whose breaker is open",
                (unsigned long long)action->request);
}

static void on_reserve(const struct rt_action *action)
{
    struct sim_request *request = &sim.requests[action->request];
    SIM_REQUIRE(action->attempt == request->attempt + 1, "attempt %u after %u", action->attempt,
                request->attempt);
    SIM_REQUIRE(request->kills < KILLS_MOST, "a request that killed %u workers is tried again",
                request->kills);
    SIM_REQUIRE(!action->local || sim.set.local != RT_LOCAL_PREFILL_NEVER, "a rank has a prompt");
    SIM_REQUIRE(action->local == (action->prefill == RT_NO_WORKER), "two compute a prompt");
    if (!action->local) {
        check_worker(action, action->prefill);
    }
    check_worker(action, action->decode);
    request->attempt = action->attempt;
    struct sim_worker *rank = sim_by_ref(action->decode);
    struct sim_event event = {.kind = SIM_RESERVE,
                              .worker = (uint32_t)(rank - sim.workers),
                              .request = (uint32_t)action->request,
                              .attempt = action->attempt,
                              .incarnation = rank->incarnation,
                              .decode = action->decode,
                              .full = action->full,
                              .local = action->local};
    sim_schedule(event, sim.now_ns + LATENCY_NS);
}

static void on_prefill(const struct rt_action *action)
{
    SIM_REQUIRE(action->attempt == sim.requests[action->request].attempt, "an old attempt runs");
    const struct sim_worker *worker = sim_by_ref(action->prefill);
    SIM_REQUIRE(worker && sim_worker_ready(worker), "a run goes to a worker that is not ready");
    struct sim_event event = {.kind = SIM_RUN_DONE,
                              .worker = (uint32_t)(worker - sim.workers),
                              .request = (uint32_t)action->request,
                              .attempt = action->attempt,
                              .epoch = action->epoch,
                              .decode = action->decode};
    sim_schedule(event, sim.now_ns + LATENCY_NS);
}

static void on_cancel(const struct rt_action *action)
{
    const struct sim_worker *rank = sim_by_ref(action->decode);
    if (rank) {
        struct sim_event event = {.kind = SIM_CANCEL,
                                  .worker = (uint32_t)(rank - sim.workers),
                                  .request = (uint32_t)action->request,
                                  .epoch = action->epoch,
                                  .incarnation = rank->incarnation};
        sim_schedule(event, sim.now_ns + LATENCY_NS);
    }
}

static void on_tokens(const struct rt_action *action)
{
    struct sim_request *request = &sim.requests[action->request];
    SIM_REQUIRE(request->submitted && !request->ended, "tokens of a request that is over");
    for (uint32_t i = 0; i < action->token_count; i++) {
        SIM_REQUIRE(action->tokens[i].index == request->received, "token %u came as number %u",
                    action->tokens[i].index, request->received);
        SIM_REQUIRE(action->tokens[i].token ==
                        sim_token((uint32_t)action->request, request->received),
                    "another token");
        request->received++;
    }
    if (request->first_ns == 0) {
        request->first_ns = sim.now_ns;
    }
}

static void on_end(const struct rt_action *action)
{
    struct sim_request *request = &sim.requests[action->request];
    SIM_REQUIRE(request->submitted && !request->ended, "request %llu ends twice",
                (unsigned long long)action->request);
    bool complete = action->finish == RT_FINISH_STOP || action->finish == RT_FINISH_LENGTH;
    request->ended = true;
    request->end_ns = sim.now_ns;
    sim.ended++;
    sim.known--;
    sim.errors += action->finish == RT_FINISH_ERROR;
    SIM_REQUIRE(!complete || request->received == request->length,
                "request %llu ends after %u of %u tokens", (unsigned long long)action->request,
                request->received, request->length);
    SIM_REQUIRE(complete || request->cut || sim.set.faults, "it failed without a fault: %s",
                action->text ? action->text : "");
    if (complete) {
        int64_t rest = request->received > 1 ? request->received - 1 : 1;
        int64_t tpot_ns = (request->end_ns - request->first_ns) / rest;
        request->good = request->first_ns - request->arrival_ns <= sim_slo_ttft_ns[sim.set.trace] &&
                        tpot_ns <= sim_slo_tpot_ns[sim.set.trace];
    }
    bool poison = action->finish == RT_FINISH_ERROR && strstr(action->text, "while it ran there");
    SIM_REQUIRE(!poison || request->kills > 1, "a request that killed %u workers is called poison",
                request->kills);
    SIM_REQUIRE(!poison || action->status == BT_ERR_PEER_LOST, "poison has another status");
    sim.poisoned += poison;
    sim_trace_ended((uint32_t)action->request);
}

static void act(const struct rt_action *action)
{
    digest(action->request);
    digest((uint64_t)action->kind << 32 | action->decode);
    digest((uint64_t)sim.now_ns);
    switch (action->kind) {
    case RT_ACTION_RESERVE:
        on_reserve(action);
        break;
    case RT_ACTION_PREFILL:
        on_prefill(action);
        break;
    case RT_ACTION_CANCEL_PREFILL:
        sim.requests[action->request].cancelled = action->attempt;
        break;
    case RT_ACTION_CANCEL_DECODE:
        on_cancel(action);
        break;
    case RT_ACTION_TOKENS:
        on_tokens(action);
        break;
    case RT_ACTION_END:
        on_end(action);
        break;
    }
}

void sim_router_act(void)
{
    struct rt_action action;
    while (rt_core_next_action(sim.core, &action)) {
        act(&action);
    }
}

/* How uneven the ranks are: the largest share of pages in use over the mean share, less one. */
void sim_sample_imbalance(void)
{
    uint64_t sum = 0, most = 0;
    uint32_t count = sim.worker_count - sim.set.prefill_count;
    for (uint32_t i = sim.set.prefill_count; i < sim.worker_count; i++) {
        sum += sim.workers[i].pages_used;
        most = sim.workers[i].pages_used > most ? sim.workers[i].pages_used : most;
    }
    if (sum > 0 && sim.now_ns < sim.arrivals_end_ns) {
        sim.imbalance_sum += (double)most * count / (double)sum - 1;
        sim.imbalance_samples++;
    }
}

void sim_router_tick(void)
{
    rt_core_tick(sim.core, sim.now_ns);
}

/* ---- what must hold */

static void check_rank(const struct sim_worker *rank)
{
    uint32_t pages = 0;
    for (uint32_t i = 0; i < rank->held_count; i++) {
        pages += rank->held[i].pages;
    }
    SIM_REQUIRE(pages == rank->pages_used && pages <= sim.set.rank_pages,
                "a rank has %u pages in use of %u", pages, sim.set.rank_pages);
}

struct tally {
    uint32_t known, waiting, running_of_limited;
    uint64_t on_prefill, on_decode;
};

static void tally_request(const struct rt_request_view *view, struct tally *tally)
{
    const struct sim_request *request = &sim.requests[view->id];
    SIM_REQUIRE(request->submitted && !request->ended, "the core knows a request that is over");
    SIM_REQUIRE(view->generated_tokens >= request->received, "the client has more than there is");
    tally->known++;
    tally->waiting += view->state == RT_QUEUED;
    tally->running_of_limited += view->state != RT_QUEUED && request->tenant == LIMITED;
    tally->on_prefill += view->prefill != RT_NO_WORKER;
    tally->on_decode += view->decode != RT_NO_WORKER;
    SIM_REQUIRE(view->state == RT_QUEUED || view->decode != RT_NO_WORKER,
                "a request that runs is nowhere");
}

static void tally_workers(struct tally *tally)
{
    size_t cursor = 0;
    rt_worker_ref ref;
    struct rt_worker_view view;
    uint64_t on[2] = {0, 0};
    while (rt_core_next_worker(sim.core, &cursor, &ref)) {
        SIM_REQUIRE(rt_core_worker(sim.core, ref, &view), "a worker is listed and unknown");
        on[view.info->role] += view.requests;
        SIM_REQUIRE(view.state != RT_WORKER_LOST || view.requests == 0,
                    "a lost worker has requests");
    }
    SIM_REQUIRE(on[RT_ROLE_PREFILL] == tally->on_prefill && on[RT_ROLE_DECODE] == tally->on_decode,
                "the workers' lists and the requests disagree");
}

void sim_check_world(void)
{
    for (uint32_t i = sim.set.prefill_count; i < sim.worker_count; i++) {
        check_rank(&sim.workers[i]);
    }
    struct tally tally = {0};
    struct rt_request_view view;
    size_t cursor = 0;
    while (rt_core_next_request(sim.core, &cursor, &view)) {
        tally_request(&view, &tally);
    }
    SIM_REQUIRE(tally.known == sim.known, "the core knows %u requests of %u", tally.known,
                sim.known);
    SIM_REQUIRE(tally.waiting == rt_core_queued(sim.core), "%u wait, the queue has %u",
                tally.waiting, rt_core_queued(sim.core));
    SIM_REQUIRE(tally.running_of_limited <= limited_runs(), "a tenant runs %u requests",
                tally.running_of_limited);
    tally_workers(&tally);
}

void sim_check_end(void)
{
    struct rt_core_counts counts;
    struct rt_worker_view view;
    size_t cursor = 0;
    rt_worker_ref ref;
    sim_check_world();
    SIM_REQUIRE(sim.known == 0, "%u requests are lost", sim.known);
    for (uint32_t i = sim.set.prefill_count; i < sim.worker_count; i++) {
        SIM_REQUIRE(sim.workers[i].pages_used == 0, "a rank holds pages of nobody");
    }
    while (rt_core_next_worker(sim.core, &cursor, &ref)) {
        SIM_REQUIRE(rt_core_worker(sim.core, ref, &view) && view.projected_pages == 0 &&
                        view.ahead_ns == 0,
                    "%s counts what is over", view.info->id);
    }
    rt_core_counts(sim.core, &counts);
    SIM_REQUIRE(sim.poisoned == counts.poisoned, "%u requests ended as poison, %llu are counted",
                sim.poisoned, (unsigned long long)counts.poisoned);
    SIM_REQUIRE(sim.set.faults || counts.retries == 0, "something was tried again without a fault");
    /* That policy sends all to one rank until it reports, which may have reserved more. */
    bool sparse = sim.set.faults || sim.set.policy == RT_DECODE_MEAN_KV_LENGTH;
    SIM_REQUIRE(sparse || counts.refusals * 20 <= counts.decisions,
                "ranks refused %llu of %llu: the core places them where there is no room",
                (unsigned long long)counts.refusals, (unsigned long long)counts.decisions);
}
