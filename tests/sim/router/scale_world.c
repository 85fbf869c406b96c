/* Time, chance and the order of events. */
#include "tests/sim/router/scale_world.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/random.h"

#define STUCK_NS (600 * SIM_S)
/* The imbalance is sampled once in so many events a worker. */
#define SAMPLE_EVENTS 4

struct sim_world sim;

_Noreturn void sim_fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "seed %llu, event %llu, %.6f s: ", (unsigned long long)sim.set.seed,
            (unsigned long long)sim.event_count, (double)sim.now_ns / SIM_S);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

void *sim_grow(void *memory, size_t bytes)
{
    memory = realloc(memory, bytes);
    SIM_REQUIRE(memory, "no memory");
    return memory;
}

uint64_t sim_draw(uint64_t below)
{
    return bt_random_u64(sim.set.seed, sim.draws++, 0) % below;
}

double sim_unit(void)
{
    return bt_random_unit(sim.set.seed, sim.draws++, 0);
}

uint32_t sim_token(uint32_t request, uint32_t index)
{
    uint64_t hash = ((uint64_t)request << 32 | index) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(hash >> 40);
}

/* ---- events */

static bool before(const struct sim_event *a, const struct sim_event *b)
{
    return a->when_ns < b->when_ns || (a->when_ns == b->when_ns && a->order < b->order);
}

void sim_schedule(struct sim_event event, int64_t when_ns)
{
    if (sim.heap_count == sim.heap_capacity) {
        sim.heap_capacity = sim.heap_capacity ? sim.heap_capacity * 2 : 4096;
        sim.heap = sim_grow(sim.heap, sim.heap_capacity * sizeof *sim.heap);
    }
    event.when_ns = when_ns;
    event.order = sim.order++;
    size_t i = sim.heap_count++;
    while (i > 0 && before(&event, &sim.heap[(i - 1) / 2])) {
        sim.heap[i] = sim.heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    sim.heap[i] = event;
}

static struct sim_event pop(void)
{
    struct sim_event first = sim.heap[0];
    struct sim_event last = sim.heap[--sim.heap_count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < sim.heap_count; i = child) {
        if (child + 1 < sim.heap_count && before(&sim.heap[child + 1], &sim.heap[child])) {
            child++;
        }
        if (!before(&sim.heap[child], &last)) {
            break;
        }
        sim.heap[i] = sim.heap[child];
    }
    sim.heap[i] = last;
    return first;
}

static void handle(const struct sim_event *event)
{
    switch (event->kind) {
    case SIM_SUBMIT:
        sim_trace_submit(event->request);
        break;
    case SIM_CLIENT_LEAVES:
        sim.requests[event->request].cut = true;
        rt_core_finish(sim.core, event->request, RT_FINISH_CANCELLED, sim.now_ns);
        break;
    default:
        sim_workers_event(event);
        break;
    }
}

static void step(void)
{
    int64_t tick_ns = rt_core_next_deadline_ns(sim.core);
    if (tick_ns <= sim.heap[0].when_ns) {
        sim.now_ns = tick_ns > sim.now_ns ? tick_ns : sim.now_ns;
        sim_router_tick();
    } else {
        struct sim_event event = pop();
        sim.now_ns = event.when_ns;
        handle(&event);
    }
    sim_router_act();
    if (++sim.event_count % sim.set.check_every == 0) {
        sim_check_world();
    }
    if (sim.event_count % (SAMPLE_EVENTS * sim.worker_count) == 0) {
        sim_sample_imbalance();
    }
}

/* ---- figures */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(double *values, size_t count, double q)
{
    if (count == 0) {
        return 0;
    }
    qsort(values, count, sizeof *values, compare);
    return values[(size_t)(q * (double)(count - 1))];
}

static void latencies(struct sim_figures *figures)
{
    double *ttft = sim_grow(NULL, (sim.set.request_count + 1) * sizeof *ttft);
    double *tpot = sim_grow(NULL, (sim.set.request_count + 1) * sizeof *tpot);
    size_t first_count = 0, rest_count = 0, good = 0;
    for (uint32_t id = 1; id <= sim.set.request_count; id++) {
        const struct sim_request *request = &sim.requests[id];
        good += request->good;
        figures->deadly += request->kills > 0;
        if (request->kills > figures->most_kills) {
            figures->most_kills = request->kills;
        }
        if (request->first_ns > 0) {
            ttft[first_count++] = (double)(request->first_ns - request->arrival_ns) / SIM_MS;
        }
        if (request->ended && request->received > 1) {
            tpot[rest_count++] =
                (double)(request->end_ns - request->first_ns) / SIM_MS / (request->received - 1);
        }
    }
    figures->goodput = (double)good / sim.set.request_count;
    figures->ttft_p50_ms = quantile(ttft, first_count, 0.5);
    figures->ttft_p99_ms = quantile(ttft, first_count, 0.99);
    figures->tpot_p50_ms = quantile(tpot, rest_count, 0.5);
    figures->tpot_p99_ms = quantile(tpot, rest_count, 0.99);
    free(ttft);
    free(tpot);
}

static void collect(struct sim_figures *figures)
{
    struct rt_core_counts counts;
    rt_core_counts(sim.core, &counts);
    uint64_t local = 0;
    for (int way = RT_WAY_LOCAL_CHEAPER; way < RT_WAYS; way++) {
        local += counts.ways[way];
    }
    *figures = (struct sim_figures){.local = (double)local / (double)counts.decisions,
                                    .preemptions = counts.preemptions,
                                    .sheds = sim.shed,
                                    .errors = sim.errors,
                                    .retries = counts.retries,
                                    .refusals = counts.refusals,
                                    .poisoned = counts.poisoned,
                                    .kept_out = counts.kept_out,
                                    .breakers = counts.breakers_opened,
                                    .groups_killed = sim.groups_killed,
                                    .events = sim.event_count,
                                    .digest = sim.digest,
                                    .simulated_s = (double)sim.now_ns / SIM_S};
    figures->imbalance =
        sim.imbalance_samples > 0 ? sim.imbalance_sum / (double)sim.imbalance_samples : 0;
    latencies(figures);
}

static void free_world(void)
{
    rt_core_destroy(sim.core);
    for (uint32_t i = 0; i < sim.worker_count; i++) {
        free(sim.workers[i].held);
    }
    free(sim.workers);
    free(sim.groups);
    free(sim.by_ref);
    free(sim.requests);
    free(sim.heap);
}

void sim_run(const struct sim_setting *set, struct sim_figures *ret_figures)
{
    sim = (struct sim_world){.set = *set, .now_ns = SIM_S};
    sim_router_begin();
    sim_workers_begin();
    sim_trace_begin();
    sim_router_act();
    while (sim.ended + sim.shed < set->request_count) {
        step();
        SIM_REQUIRE(sim.now_ns < sim.arrivals_end_ns + STUCK_NS, "%u requests never end",
                    set->request_count - sim.ended - sim.shed);
    }
    /* What is under way arrives. */
    for (int64_t end_ns = sim.now_ns + 60 * SIM_S; sim.now_ns < end_ns;) {
        step();
    }
    sim_check_end();
    collect(ret_figures);
    free_world();
}
