/* What clients ask: the shapes of public traces, at a rate that the cluster can or can't bear. */
#include <math.h>
#include <stdlib.h>

#include "tests/sim/router/scale_world.h"

#define PAGE_TOKENS 64
#define TURNS_MAX   8

const char *const sim_trace_names[SIM_TRACES] = {"short-in/long-out", "long-in/short-out",
                                                 "dialogue", "bursts"};
const int64_t sim_slo_ttft_ns[SIM_TRACES] = {1 * SIM_S, 8 * SIM_S, 2 * SIM_S, 3 * SIM_S};
const int64_t sim_slo_tpot_ns[SIM_TRACES] = {50 * SIM_MS, 50 * SIM_MS, 50 * SIM_MS, 50 * SIM_MS};

#define DEADLY 150 /* of so many requests one kills whoever runs it */

/* Medians; lengths are spread lognormally around them. */
static const struct {
    double prompt, prompt_spread, output, output_spread;
} shapes[SIM_TRACES] = {
    {160, 0.6, 400, 0.7}, {8000, 0.5, 60, 0.5}, {400, 0.5, 200, 0.6}, {1200, 1.0, 160, 0.8}};

static double normal(void)
{
    double radius = sqrt(-2 * log(1 - sim_unit()));
    return radius * cos(6.283185307179586 * sim_unit());
}

static uint32_t lognormal(double median, double spread, uint32_t most)
{
    double value = median * exp(spread * normal());
    return value < 1 ? 1 : value > most ? most : (uint32_t)value;
}

/* Mean of the lognormal. */
static double mean(double median, double spread)
{
    return median * exp(spread * spread / 2);
}

/* The cluster's requests a second, by prefill and by decode. A dialogue's later turns have most of
 * their prompt cached, if all goes well. */
static double capacity(void)
{
    const struct sim_setting *set = &sim.set;
    double prompt = mean(shapes[set->trace].prompt, shapes[set->trace].prompt_spread);
    double output = mean(shapes[set->trace].output, shapes[set->trace].output_spread);
    double held =
        set->trace == SIM_DIALOGUE ? prompt + TURNS_MAX / 2.0 * (prompt + output) : prompt;
    double prefill = set->prefill_count / sim_prefill_s(prompt * 1.3);
    double rows = (double)set->rank_pages * PAGE_TOKENS / (held + output) * 0.8;
    double step = sim_step_s(rows, rows * (held + output / 2));
    double decode = (double)set->decode_count * set->rank_count * rows / step / output;
    return prefill < decode ? prefill : decode;
}

static void draw_request(struct sim_request *request)
{
    enum sim_trace trace = sim.set.trace;
    uint32_t most = sim.set.rank_pages * PAGE_TOKENS / 4;
    uint32_t added = lognormal(shapes[trace].prompt, shapes[trace].prompt_spread, most / 4);
    request->prompt += added;
    request->length = lognormal(shapes[trace].output, shapes[trace].output_spread, most / 4);
    /* Some clients name a limit that they reach, most one that is far. */
    request->max_tokens = sim_draw(4) == 0 ? request->length : request->length * 2 + 64;
    request->tenant = (uint32_t)sim_draw(4);
    request->priority = (uint32_t)sim_draw(2);
    if (sim.set.faults && sim_draw(DEADLY) == 0) {
        bool in_prefill = request->length == 1 || sim_draw(2) == 0;
        request->deadly = in_prefill ? 1 : 2 + (uint32_t)sim_draw(request->length - 1);
    }
}

/* Bursts come five times as fast for a fifth of the time. */
static double rate_factor(int64_t at_ns)
{
    if (sim.set.trace != SIM_BURSTS) {
        return 1;
    }
    return at_ns / SIM_S % 10 < 2 ? 2.5 : 0.625;
}

void sim_trace_begin(void)
{
    sim.requests = sim_grow(NULL, (sim.set.request_count + 1) * sizeof *sim.requests);
    double rate = capacity() * sim.set.load;
    double at_s = (double)sim.now_ns / SIM_S + 0.5; /* workers are there by then */
    uint32_t per_conversation = sim.set.trace == SIM_DIALOGUE ? TURNS_MAX : 1;
    for (uint32_t id = 1; id <= sim.set.request_count; id++) {
        struct sim_request *request = &sim.requests[id];
        *request = (struct sim_request){.conversation = id - (id - 1) % per_conversation};
        if (request->conversation == id) { /* later turns come when the one before has ended */
            at_s += -log(1 - sim_unit()) * per_conversation /
                    (rate * rate_factor((int64_t)(at_s * SIM_S)));
            sim_schedule((struct sim_event){.kind = SIM_SUBMIT, .request = id},
                         (int64_t)(at_s * SIM_S));
        }
    }
    sim.arrivals_end_ns = (int64_t)(at_s * SIM_S);
    sim.faults_end_ns = sim.set.faults ? sim.arrivals_end_ns : 0;
}

/* The prefill worker that has the conversation so far. */
static uint32_t find_cached(uint32_t id, struct rt_cached *cached)
{
    uint32_t holder = sim.requests[sim.requests[id].conversation].holder;
    uint32_t tokens = sim_worker_cached(holder, id);
    *cached = (struct rt_cached){sim.workers[holder].ref, tokens};
    return tokens > 0;
}

void sim_trace_submit(uint32_t id)
{
    struct sim_request *request = &sim.requests[id];
    struct rt_cached cached;
    draw_request(request);
    request->arrival_ns = sim.now_ns;
    struct rt_request_spec spec = {.id = id,
                                   .prompt_tokens = request->prompt,
                                   .max_tokens = request->max_tokens,
                                   .arrival_ns = sim.now_ns,
                                   .deadline_ns = BT_NEVER_NS,
                                   .tenant = request->tenant,
                                   .priority = request->priority,
                                   .cached = &cached};
    spec.slo_ttft_ns = sim.set.admission ? sim_slo_ttft_ns[sim.set.trace] : 0;
    spec.cached_count = id != request->conversation ? find_cached(id, &cached) : 0;
    int64_t retry_ns = 0;
    enum bt_status status = rt_core_submit(sim.core, &spec, sim.now_ns, NULL, &retry_ns);
    SIM_REQUIRE(status == BT_OK || (status == BT_ERR_EXHAUSTED && retry_ns > 0),
                "request %u is refused: %s", id, bt_status_name(status));
    sim.submitted++;
    if (status != BT_OK) {
        request->shed = true;
        sim.shed++;
        sim_trace_ended(id);
        return;
    }
    request->submitted = true;
    sim.known++;
    if (sim.set.faults && sim_draw(50) == 0) {
        sim_schedule((struct sim_event){.kind = SIM_CLIENT_LEAVES, .request = id},
                     sim.now_ns + (int64_t)sim_draw(5000) * SIM_MS);
    }
}

/* The next turn of a dialogue repeats all that was said. */
void sim_trace_ended(uint32_t id)
{
    if (id == sim.set.request_count || sim.requests[id + 1].conversation == id + 1) {
        return;
    }
    const struct sim_request *request = &sim.requests[id];
    uint32_t said = request->prompt + request->received;
    uint32_t most = sim.set.rank_pages * PAGE_TOKENS / 4;
    sim.requests[id + 1].prompt = said < most ? said : most;
    sim_schedule((struct sim_event){.kind = SIM_SUBMIT, .request = id + 1},
                 sim.now_ns + SIM_S + (int64_t)sim_draw(4000) * SIM_MS);
}
