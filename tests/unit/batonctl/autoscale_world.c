#include "tests/unit/batonctl/autoscale_world.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/random.h"

#define TICK_S     0.1
#define INTERVAL_S 10
#define NOBODY     UINT32_MAX

struct request {
    double arrived_s, began_s, ttft_s, first_s, tpot_s, ended_s;
    double left;     /* seconds of prefill, then tokens of decode */
    uint32_t decode; /* the worker that has its place */
};

struct worker {
    bool there, ending;
    double ready_s;
    uint32_t prompt;            /* prefill: its request */
    uint32_t *sequences, count; /* decode: places taken, [places] */
};

struct world_state {
    struct request requests[WORLD_REQUESTS]; /* by number % WORLD_REQUESTS */
    uint64_t arrived, dispatched;            /* numbers */
    struct worker workers[2][WORLD_WORKERS];
    double next_arrival_s, next_look_s, acting_until_s;
    struct ctl_autoscale_decision acting;
    uint64_t draws;
};

static double draw(struct world *world)
{
    return ((double)(bt_random_u64(world->spec.seed, world->state->draws++, 0) >> 11) + 0.5) *
           0x1p-53;
}

static struct request *request_of(struct world *world, uint64_t number)
{
    return &world->state->requests[number % WORLD_REQUESTS];
}

static void add_worker(struct world *world, int role, double ready_s)
{
    for (int i = 0; i < WORLD_WORKERS; i++) {
        struct worker *worker = &world->state->workers[role][i];
        if (!worker->there) {
            worker->there = true;
            worker->ending = false;
            worker->ready_s = ready_s;
            worker->prompt = NOBODY;
            worker->count = 0;
            return;
        }
    }
    assert(!"room for workers");
}

void world_create(struct world *world, const struct world_spec *spec)
{
    memset(world, 0, sizeof *world);
    world->spec = *spec;
    world->state = calloc(1, sizeof *world->state);
    assert(world->state);
    for (int i = 0; i < WORLD_WORKERS; i++) {
        world->state->workers[1][i].sequences = calloc(spec->places, sizeof(uint32_t));
    }
    for (int role = 0; role < 2; role++) {
        for (uint32_t i = 0; i < spec->workers[role]; i++) {
            add_worker(world, role, -1e6);
        }
        world->counts[role] = spec->workers[role];
    }
    world->state->next_look_s = INTERVAL_S;
    ctl_autoscaler_init(&world->scaler, &spec->policy, spec->predictor);
}

void world_destroy(struct world *world)
{
    for (int i = 0; i < WORLD_WORKERS; i++) {
        free(world->state->workers[1][i].sequences);
    }
    free(world->state);
}

/* ---- requests */

static void arrive(struct world *world)
{
    struct world_state *state = world->state;
    while (true) {
        double rate = world->spec.rate(world->time_s);
        if (state->next_arrival_s < world->time_s - 1) {
            state->next_arrival_s = world->time_s;
        }
        if (!(rate > 0) || state->next_arrival_s > world->time_s) {
            return;
        }
        struct request *request = request_of(world, state->arrived++);
        assert(request->arrived_s == 0 || request->ended_s > 0);
        *request = (struct request){.arrived_s = fmax(state->next_arrival_s, 1e-9)};
        world->arrived++;
        state->next_arrival_s -= log(draw(world)) / rate;
    }
}

static struct worker *free_prefill(struct world *world)
{
    for (int i = 0; i < WORLD_WORKERS; i++) {
        struct worker *worker = &world->state->workers[0][i];
        if (worker->there && !worker->ending && worker->ready_s <= world->time_s &&
            worker->prompt == NOBODY) {
            return worker;
        }
    }
    return NULL;
}

static uint32_t emptiest_decode(struct world *world)
{
    uint32_t best = NOBODY;
    for (uint32_t i = 0; i < WORLD_WORKERS; i++) {
        struct worker *workers = world->state->workers[1], *worker = &workers[i];
        if (worker->there && !worker->ending && worker->ready_s <= world->time_s &&
            worker->count < world->spec.places &&
            (best == NOBODY || worker->count < workers[best].count)) {
            best = i;
        }
    }
    return best;
}

static void dispatch(struct world *world)
{
    struct world_state *state = world->state;
    while (state->dispatched < state->arrived) {
        struct worker *prefill = free_prefill(world);
        uint32_t decode = emptiest_decode(world);
        if (!prefill || decode == NOBODY) {
            return;
        }
        uint32_t number = (uint32_t)(state->dispatched++ % WORLD_REQUESTS);
        struct request *request = &state->requests[number];
        request->began_s = world->time_s;
        request->left =
            world->spec.prefill_s * (1 + world->spec.prefill_spread * (2 * draw(world) - 1));
        request->decode = decode;
        prefill->prompt = number;
        struct worker *rank = &state->workers[1][decode];
        rank->sequences[rank->count++] = number;
    }
}

static double speed(const struct world *world, const struct worker *worker)
{
    return world->time_s - worker->ready_s < world->spec.warm_s ? 1 / world->spec.slow : 1;
}

static void run_prefills(struct world *world)
{
    for (int i = 0; i < WORLD_WORKERS; i++) {
        struct worker *worker = &world->state->workers[0][i];
        if (!worker->there || worker->prompt == NOBODY) {
            worker->there &= !worker->ending;
            continue;
        }
        struct request *request = &world->state->requests[worker->prompt];
        request->left -= TICK_S * speed(world, worker);
        if (request->left <= 0) {
            request->first_s = world->time_s;
            request->ttft_s = world->time_s - request->arrived_s;
            request->left = world->spec.output - 1;
            world->ttft_missed += request->ttft_s > world->spec.policy.ttft_s;
            worker->prompt = NOBODY;
        }
    }
}

static void run_decodes(struct world *world)
{
    for (int i = 0; i < WORLD_WORKERS; i++) {
        struct worker *worker = &world->state->workers[1][i];
        worker->there &= !(worker->ending && worker->count == 0);
        uint32_t batch = 0;
        for (uint32_t k = 0; k < worker->count; k++) {
            batch += world->state->requests[worker->sequences[k]].first_s > 0;
        }
        double step = (world->spec.fixed_s + world->spec.sequence_s * batch) / speed(world, worker);
        for (uint32_t k = 0; k < worker->count;) {
            struct request *request = &world->state->requests[worker->sequences[k]];
            request->left -= request->first_s > 0 ? TICK_S / step : 0;
            if (request->first_s > 0 && request->left <= 0) {
                request->ended_s = world->time_s;
                request->tpot_s = (world->time_s - request->first_s) / (world->spec.output - 1);
                world->tpot_missed += request->tpot_s > world->spec.policy.tpot_s;
                world->finished++;
                worker->sequences[k] = worker->sequences[--worker->count];
            } else {
                k++;
            }
        }
    }
}

/* ---- what an autoscaler sees */

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(double *values, uint32_t count, double q)
{
    if (count == 0) {
        return 0;
    }
    qsort(values, count, sizeof *values, by_size);
    return values[(uint32_t)fmin(count - 1, floor(q * count))];
}

static void fill_sample(struct world *world, double window_s, struct ctl_autoscale_seen *seen)
{
    static double ttfts[WORLD_REQUESTS], tpots[WORLD_REQUESTS];
    const struct world_state *state = world->state;
    double from_s = world->time_s - window_s, queue_s = 0, compute_s = 0, arrived = 0;
    uint64_t first = state->arrived > WORLD_REQUESTS ? state->arrived - WORLD_REQUESTS : 0;
    uint32_t ttft_count = 0, tpot_count = 0, finished = 0;
    for (uint64_t number = first; number < state->arrived; number++) {
        const struct request *request = &state->requests[number % WORLD_REQUESTS];
        arrived += request->arrived_s >= from_s;
        if (request->first_s > 0 && request->first_s >= from_s) {
            ttfts[ttft_count++] = request->ttft_s;
            queue_s += request->began_s - request->arrived_s;
            compute_s += request->first_s - request->began_s;
        }
        if (request->ended_s > 0 && request->ended_s >= from_s) {
            tpots[tpot_count++] = request->tpot_s;
            finished++;
        }
    }
    struct ctl_autoscale_sample *sample = &seen->sample;
    sample->load.requests_s = arrived / window_s;
    sample->load.input_tokens = finished > 0 ? 1000 : 0;
    sample->load.output_tokens = finished > 0 ? world->spec.output : 0;
    seen->ttft_count = ttft_count;
    seen->tpot_count = tpot_count;
    if (ttft_count > 0) {
        sample->stages.queue_s = queue_s / ttft_count;
        sample->stages.compute_s = compute_s / ttft_count;
    }
    sample->ttft_s = quantile(ttfts, ttft_count, world->spec.policy.quantile);
    sample->tpot_median_s = quantile(tpots, tpot_count, 0.5);
    sample->tpot_s = quantile(tpots, tpot_count, world->spec.policy.quantile);
    sample->generated_s = tpot_count * (double)world->spec.output / window_s;
    seen->window_s = window_s;
}

static void fill_fleet(struct world *world, struct ctl_autoscale_worker *workers,
                       struct ctl_autoscale_seen *seen)
{
    double taken = 0, ready = 0;
    for (int role = 0; role < 2; role++) {
        for (int i = 0; i < WORLD_WORKERS; i++) {
            const struct worker *worker = &world->state->workers[role][i];
            if (!worker->there) {
                continue;
            }
            bool is_ready = worker->ready_s <= world->time_s;
            workers[seen->worker_count++] = (struct ctl_autoscale_worker){
                .role = (enum ctl_role)role,
                .ready = is_ready,
                .ending = worker->ending,
                .age_ns = (int64_t)((world->time_s - worker->ready_s) * 1e9)};
            if (role == 1 && is_ready && !worker->ending) {
                ready++;
                taken += worker->count;
            }
        }
        seen->wanted[role] = world->counts[role];
    }
    seen->workers = workers;
    seen->sample.full = ready > 0 ? taken / ready / world->spec.places : 0;
}

static void look(struct world *world, struct ctl_autoscale_worker *workers,
                 struct ctl_autoscale_seen *seen)
{
    int64_t now_ns = (int64_t)(world->time_s * 1e9) + 1;
    *seen = (struct ctl_autoscale_seen){.now_ns = now_ns, .stats_ns = now_ns};
    double window_s = ctl_autoscaler_window_s(&world->scaler, now_ns);
    window_s = fmin(fmax(window_s, 2), world->time_s);
    fill_sample(world, window_s, seen);
    fill_fleet(world, workers, seen);
    seen->queued = (uint32_t)(world->state->arrived - world->state->dispatched);
    for (uint64_t i =
             world->state->arrived > WORLD_REQUESTS ? world->state->arrived - WORLD_REQUESTS : 0;
         i < world->state->dispatched; i++) {
        seen->running += world->state->requests[i % WORLD_REQUESTS].ended_s == 0;
    }
}

static void end_workers(struct world *world, int role, uint32_t count)
{
    for (int i = 0; i < WORLD_WORKERS && count > 0; i++) {
        struct worker *worker = &world->state->workers[role][i];
        if (worker->there && !worker->ending) {
            worker->ending = true;
            count--;
        }
    }
}

/* The engine takes as long as new workers take to come; the loop waits for it. */
static void act(struct world *world, const struct ctl_autoscale_decision *decision)
{
    bool grows = false;
    for (int role = 0; role < 2; role++) {
        uint32_t now = world->counts[role], wanted = decision->wanted[role];
        for (uint32_t i = now; i < wanted; i++) {
            add_worker(world, role, world->time_s + world->spec.cold_s);
            grows = true;
        }
        if (wanted < now) {
            end_workers(world, role, now - wanted);
        }
        world->counts[role] = wanted;
    }
    assert(world->change_count < WORLD_CHANGES);
    world->changes[world->change_count++] =
        (struct world_change){world->time_s, {world->counts[0], world->counts[1]}};
    world->state->acting = *decision;
    world->state->acting_until_s = world->time_s + (grows ? world->spec.cold_s : 0);
}

static void run_autoscaler(struct world *world)
{
    struct world_state *state = world->state;
    if (state->acting_until_s > 0 && state->acting_until_s <= world->time_s) {
        ctl_autoscaler_acted(&world->scaler, &state->acting, (int64_t)(world->time_s * 1e9) + 1,
                             true);
        state->acting_until_s = 0;
    }
    if (state->acting_until_s > 0 || world->time_s < state->next_look_s) {
        return;
    }
    static struct ctl_autoscale_worker workers[2 * WORLD_WORKERS];
    struct ctl_autoscale_seen seen;
    state->next_look_s = world->time_s + INTERVAL_S;
    look(world, workers, &seen);
    ctl_autoscaler_decide(&world->scaler, &seen, &world->last);
    if (getenv("BATON_TEST_SHOW")) {
        printf("%6.0f s  %u:%u %s -> %u:%u rate %.2f queued %u full %.2f\n", world->time_s,
               world->counts[0], world->counts[1], ctl_autoscale_verdict_name(world->last.verdict),
               world->last.wanted[0], world->last.wanted[1], seen.sample.load.requests_s,
               seen.queued, seen.sample.full);
        for (uint32_t i = 0; i < world->last.reason_count; i++) {
            printf("          %s\n", world->last.reasons[i]);
        }
    }
    if (world->last.verdict == CTL_AUTOSCALE_ACT) {
        act(world, &world->last);
    }
}

void world_run(struct world *world, double until_s)
{
    world->arrived = world->ttft_missed = world->tpot_missed = world->finished = 0;
    world->worker_s = 0;
    for (; world->time_s < until_s; world->time_s += TICK_S) {
        arrive(world);
        dispatch(world);
        run_prefills(world);
        run_decodes(world);
        run_autoscaler(world);
        world->worker_s += TICK_S * (world->counts[0] + world->counts[1]);
    }
}

uint32_t world_changes_since(const struct world *world, double time_s)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < world->change_count; i++) {
        count += world->changes[i].time_s >= time_s;
    }
    return count;
}
