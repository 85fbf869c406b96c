#include "common/planner/sides.h"

#include <math.h>

#include "common/planner/queueing.h"

#define FIXED_POINT_STEPS 400

struct bt_plan_instance bt_plan_instance_of(const struct bt_plan_question *question,
                                            enum bt_plan_phase phase,
                                            const struct bt_plan_hardware *hardware,
                                            const struct bt_plan_pool *pool)
{
    return (struct bt_plan_instance){
        .phase = phase,
        .model = question->model,
        .dtypes = question->dtypes,
        .hardware = *hardware,
        .calibration = question->calibration,
        .layout = pool->layout,
        .redundant = pool->redundant,
    };
}

struct bt_plan_prompt bt_plan_prompt_of(const struct bt_plan_question *question)
{
    return (struct bt_plan_prompt){
        .batch = 1,
        .tokens = question->load.input_tokens,
        .cached = question->load.input_tokens * question->load.cached_share,
        .chunk_tokens = question->policy.chunk_tokens,
    };
}

struct bt_plan_decoding bt_plan_decoding_of(const struct bt_plan_question *question, double batch)
{
    const struct bt_plan_load *load = &question->load;
    return (struct bt_plan_decoding){
        .batch = fmax(batch, 1),
        .context = load->input_tokens + load->output_tokens / 2,
        .reserved = load->input_tokens + load->output_tokens,
        .drafts = question->policy.drafts,
        .acceptance = question->policy.acceptance,
    };
}

struct bt_plan_prefiller bt_plan_prefiller_of(const struct bt_plan_question *question,
                                              const struct bt_plan_hardware *hardware,
                                              const struct bt_plan_pool *pool)
{
    struct bt_plan_prefiller prefiller = {
        .instance = bt_plan_instance_of(question, BT_PLAN_PREFILL, hardware, pool)};
    struct bt_plan_prompt prompt = bt_plan_prompt_of(question);
    prefiller.cost = bt_plan_prefill_cost(&prefiller.instance, &prompt);
    prefiller.memory = bt_plan_prefill_memory(&prefiller.instance, &prompt);
    return prefiller;
}

double bt_plan_decoder_tpot(const struct bt_plan_question *question,
                            const struct bt_plan_decoder *decoder, double batch)
{
    struct bt_plan_decoding decoding = bt_plan_decoding_of(question, batch);
    return bt_plan_decode_cost(&decoder->instance, &decoding).seconds /
           bt_plan_tokens_of_step(&decoding);
}

static struct bt_plan_memory decoder_memory(const struct bt_plan_question *question,
                                            const struct bt_plan_decoder *decoder, uint32_t batch)
{
    struct bt_plan_decoding decoding = bt_plan_decoding_of(question, batch);
    struct bt_plan_memory memory = bt_plan_decode_memory(&decoder->instance, &decoding);
    memory.activation_bytes += decoder->other_bytes;
    memory.total_bytes += decoder->other_bytes;
    memory.share = memory.total_bytes / memory.capacity_bytes;
    memory.fits = memory.share <= question->calibration.memory_limit;
    return memory;
}

static bool decoder_holds(const struct bt_plan_question *question,
                          const struct bt_plan_decoder *decoder, uint32_t batch)
{
    struct bt_plan_decoding decoding = bt_plan_decoding_of(question, batch);
    double step = bt_plan_decode_cost(&decoder->instance, &decoding).seconds;
    return decoder_memory(question, decoder, batch).fits &&
           step / bt_plan_tokens_of_step(&decoding) <= question->slo.tpot_s &&
           (question->slo.gap_s <= 0 || step <= question->slo.gap_s);
}

struct bt_plan_decoder bt_plan_decoder_of(const struct bt_plan_question *question,
                                          const struct bt_plan_hardware *hardware,
                                          const struct bt_plan_pool *pool, double other_bytes)
{
    struct bt_plan_decoder decoder = {
        .instance = bt_plan_instance_of(question, BT_PLAN_DECODE, hardware, pool),
        .other_bytes = other_bytes,
    };
    decoder.fits = decoder_memory(question, &decoder, 1).fits;
    decoder.least_tpot_s = bt_plan_decoder_tpot(question, &decoder, 1);
    uint32_t none = question->limits.max_batch + 1; /* least that is known not to be held */
    while (decoder.max_batch + 1 < none) {
        uint32_t middle = decoder.max_batch + (none - decoder.max_batch) / 2;
        if (decoder_holds(question, &decoder, middle))
            decoder.max_batch = middle;
        else
            none = middle;
    }
    return decoder;
}

double bt_plan_decoder_usable(const struct bt_plan_question *question,
                              const struct bt_plan_decoder *decoder)
{
    return decoder->max_batch * question->policy.max_utilisation;
}

/* Tokens of a request that decode makes: the first one is prefill's. */
static double decoded_tokens(const struct bt_plan_question *question)
{
    return fmax(question->load.output_tokens - 1, 0);
}

double bt_plan_decoder_rate(const struct bt_plan_question *question,
                            const struct bt_plan_decoder *decoder)
{
    double batch = bt_plan_decoder_usable(question, decoder), tokens = decoded_tokens(question);
    if (decoder->max_batch == 0)
        return 0;
    if (tokens <= 0)
        return INFINITY;
    return batch * decoder->instance.layout.dp /
           (tokens * bt_plan_decoder_tpot(question, decoder, batch));
}

double bt_plan_prefiller_wait(const struct bt_plan_question *question,
                              const struct bt_plan_prefiller *prefiller, uint32_t instances,
                              double requests_per_s)
{
    return bt_plan_wait_s(instances * prefiller->instance.layout.dp, prefiller->cost.seconds,
                          requests_per_s, question->load.variation, question->slo.quantile);
}

double bt_plan_prefiller_ttft(const struct bt_plan_question *question,
                              const struct bt_plan_prefiller *prefiller,
                              const struct bt_plan_handoff *handoff)
{
    return prefiller->cost.seconds + handoff->visible_s + question->calibration.request_overhead_s;
}

bool bt_plan_prefiller_bears(const struct bt_plan_question *question,
                             const struct bt_plan_prefiller *prefiller,
                             const struct bt_plan_handoff *handoff, uint32_t instances,
                             double requests_per_s)
{
    double servers = (double)instances * prefiller->instance.layout.dp;
    if (requests_per_s * prefiller->cost.seconds > servers * question->policy.max_utilisation)
        return false;
    double wait = bt_plan_prefiller_wait(question, prefiller, instances, requests_per_s);
    return wait + bt_plan_prefiller_ttft(question, prefiller, handoff) <= question->slo.ttft_s;
}

struct bt_plan_handoff bt_plan_handoff_of(const struct bt_plan_question *question,
                                          const struct bt_plan_prefiller *prefiller,
                                          const struct bt_plan_decoder *decoder)
{
    double tokens = question->load.input_tokens;
    return bt_plan_handoff_cost(&prefiller->instance, &decoder->instance, tokens,
                                prefiller->cost.seconds,
                                tokens >= question->policy.layerwise_from_tokens);
}

/*
 * The batch of a group at `rate` requests/s, where decode has `share` of the time. Rises from 0 to
 * the least fixed point of batch = rate * tokens * TPOT(batch); TPOT/batch never rises with the
 * batch, so there is no other.
 */
static double steady_batch(const struct bt_plan_question *question,
                           const struct bt_plan_decoder *decoder, double rate, double share)
{
    double batch = 0, work = rate * decoded_tokens(question) / share;
    double most = bt_plan_decoder_usable(question, decoder);
    if (decoder->max_batch == 0 || share <= 0 ||
        work * bt_plan_decoder_tpot(question, decoder, most) > most * (1 + 1e-9))
        return INFINITY;
    for (int i = 0; i < FIXED_POINT_STEPS; i++) {
        double next = work * bt_plan_decoder_tpot(question, decoder, batch);
        if (next - batch <= 1e-9 * next)
            return fmin(next, most);
        batch = next;
    }
    return fmin(batch, most);
}

static struct bt_plan_decode_side decode_side(const struct bt_plan_question *question,
                                              const struct bt_plan_decoder *decoder,
                                              uint32_t instances, double rate, double share)
{
    struct bt_plan_decode_side side = {
        .pool = {decoder->instance.layout, decoder->instance.redundant, instances},
        .max_batch = decoder->max_batch,
        .batch = steady_batch(question, decoder, rate, share),
    };
    struct bt_plan_decoding now =
        bt_plan_decoding_of(question, isfinite(side.batch) ? side.batch : decoder->max_batch);
    side.cost = bt_plan_decode_cost(&decoder->instance, &now);
    side.memory = decoder_memory(question, decoder, decoder->max_batch);
    side.bound = bt_plan_bound_of(&side.cost);
    side.utilisation = decoder->max_batch ? side.batch / decoder->max_batch : INFINITY;
    side.tokens_of_step = bt_plan_tokens_of_step(&now);
    side.bandwidth_share =
        (side.cost.weight_bytes + side.cost.kv_bytes + side.cost.activation_bytes) /
        (side.cost.seconds * decoder->instance.hardware.figure[BT_PLAN_MEMORY_BANDWIDTH]);
    return side;
}

static struct bt_plan_prefill_side prefill_side(const struct bt_plan_prefiller *prefiller,
                                                uint32_t instances, double rate, double service_s)
{
    const struct bt_plan_cost *cost = &prefiller->cost;
    return (struct bt_plan_prefill_side){
        .pool = {prefiller->instance.layout, prefiller->instance.redundant, instances},
        .cost = *cost,
        .memory = prefiller->memory,
        .bound = bt_plan_bound_of(cost),
        .service_s = service_s,
        .utilisation = rate * service_s / ((double)instances * prefiller->instance.layout.dp),
        .mfu = cost->operations / (cost->seconds * cost->peak),
    };
}

static void judge(const struct bt_plan_question *question, bool prefill_fits,
                  struct bt_plan_outcome *outcome)
{
    /* Sizing divides by what is compared here: leave room for rounding. */
    double limit = question->policy.max_utilisation * (1 + 1e-9);
    outcome->fits = prefill_fits && outcome->decode.memory.fits;
    outcome->stable = outcome->prefill.utilisation <= limit && outcome->decode.utilisation <= limit;
    outcome->meets_ttft = outcome->ttft_s <= question->slo.ttft_s;
    outcome->meets_tpot = outcome->tpot_s <= question->slo.tpot_s;
    outcome->meets_gap = question->slo.gap_s <= 0 || outcome->worst_gap_s <= question->slo.gap_s;
    outcome->chunk_tokens = question->policy.chunk_tokens;
    outcome->good = outcome->fits && outcome->stable && outcome->meets_ttft &&
                    outcome->meets_tpot && outcome->meets_gap;
}

struct bt_plan_outcome bt_plan_outcome_of(const struct bt_plan_question *question,
                                          const struct bt_plan_prefiller *prefiller,
                                          const struct bt_plan_decoder *decoder,
                                          uint32_t prefill_instances, uint32_t decode_instances)
{
    const struct bt_plan_hardware *first = &prefiller->instance.hardware;
    const struct bt_plan_hardware *second = &decoder->instance.hardware;
    double rate = question->load.requests_per_s;
    uint32_t prefill_cards = prefill_instances * bt_plan_layout_cards(&prefiller->instance.layout);
    uint32_t decode_cards = decode_instances * bt_plan_layout_cards(&decoder->instance.layout);
    struct bt_plan_outcome outcome = {
        .prefill_hardware = *first,
        .decode_hardware = *second,
        .prefill = prefill_side(prefiller, prefill_instances, rate, prefiller->cost.seconds),
        .decode = decode_side(question, decoder, decode_instances,
                              rate / ((double)decode_instances * decoder->instance.layout.dp), 1),
        .handoff = bt_plan_handoff_of(question, prefiller, decoder),
        .cards = prefill_cards + decode_cards,
        .cost_per_hour = prefill_cards * first->figure[BT_PLAN_PRICE] +
                         decode_cards * second->figure[BT_PLAN_PRICE],
    };
    outcome.prefill.wait_s = bt_plan_prefiller_wait(question, prefiller, prefill_instances, rate);
    outcome.ttft_s =
        outcome.prefill.wait_s + bt_plan_prefiller_ttft(question, prefiller, &outcome.handoff);
    outcome.tpot_s = outcome.decode.cost.seconds / outcome.decode.tokens_of_step;
    outcome.worst_gap_s = outcome.decode.cost.seconds;
    judge(question, outcome.prefill.memory.fits, &outcome);
    return outcome;
}

struct bt_plan_outcome bt_plan_aggregated_of(const struct bt_plan_question *question,
                                             const struct bt_plan_prefiller *prefiller,
                                             const struct bt_plan_decoder *decoder,
                                             uint32_t instances, double requests_per_s)
{
    const struct bt_plan_hardware *hardware = &decoder->instance.hardware;
    uint32_t groups = instances * decoder->instance.layout.dp;
    double rate = requests_per_s / groups, busy = rate * prefiller->cost.seconds;
    struct bt_plan_outcome outcome = {
        .aggregated = true,
        .prefill_hardware = *hardware,
        .decode_hardware = *hardware,
        .decode = decode_side(question, decoder, instances, rate, 1 - busy),
        .cards = instances * bt_plan_layout_cards(&decoder->instance.layout),
    };
    double step = outcome.decode.cost.seconds, chunks = prefiller->cost.steps;
    double service = prefiller->cost.seconds + chunks * step;
    outcome.prefill = prefill_side(prefiller, instances, requests_per_s, service);
    outcome.prefill.wait_s = bt_plan_wait_s(groups, service, requests_per_s,
                                            question->load.variation, question->slo.quantile);
    outcome.ttft_s = outcome.prefill.wait_s + service + question->calibration.request_overhead_s;
    outcome.tpot_s = busy < 1 ? step / outcome.decode.tokens_of_step / (1 - busy) : INFINITY;
    outcome.worst_gap_s = prefiller->cost.seconds / chunks + step;
    outcome.cost_per_hour = outcome.cards * hardware->figure[BT_PLAN_PRICE];
    outcome.prefill.memory = (struct bt_plan_memory){0};
    judge(question, true, &outcome);
    return outcome;
}
