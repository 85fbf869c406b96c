#include <math.h>

#include "common/planner/planner.h"
#include "common/planner/sides.h"

#define BISECTIONS 60

/* What a side is asked at a rate; true up to some rate, false above it. */
struct probe {
    bool (*bears)(const struct probe *probe, double requests_per_s);
    const struct bt_plan_question *question;
    const struct bt_plan_prefiller *prefiller;
    const struct bt_plan_decoder *decoder;
    struct bt_plan_handoff handoff;
    uint32_t instances;
};

static bool prefill_bears(const struct probe *probe, double requests_per_s)
{
    return bt_plan_prefiller_bears(probe->question, probe->prefiller, &probe->handoff,
                                   probe->instances, requests_per_s);
}

static bool aggregated_bears(const struct probe *probe, double requests_per_s)
{
    return bt_plan_aggregated_of(probe->question, probe->prefiller, probe->decoder,
                                 probe->instances, requests_per_s)
        .good;
}

/* The highest rate below `most`, to 2^-60 of it; 0 where not even a request now and then is borne.
 */
static double highest_rate(const struct probe *probe, double most)
{
    double good = 0, bad = most;
    for (int i = 0; i < BISECTIONS; i++) {
        double middle = (good + bad) / 2;
        if (probe->bears(probe, middle))
            good = middle;
        else
            bad = middle;
    }
    return good;
}

/* No side bears more than its groups without a pause. */
static double capacity(const struct probe *probe)
{
    return 1.001 * probe->instances * probe->prefiller->instance.layout.dp /
           probe->prefiller->cost.seconds;
}

static struct bt_plan_point point_of(const struct bt_plan_question *question,
                                     const struct bt_plan_prefiller *prefiller,
                                     const struct bt_plan_decoder *decoder, uint32_t prefills,
                                     uint32_t decodes)
{
    struct probe probe = {.bears = prefill_bears,
                          .question = question,
                          .prefiller = prefiller,
                          .handoff = bt_plan_handoff_of(question, prefiller, decoder),
                          .instances = prefills};
    struct bt_plan_point point = {
        .prefill_instances = prefills,
        .decode_instances = decodes,
        .prefill_cards = prefills * bt_plan_layout_cards(&prefiller->instance.layout),
        .decode_cards = decodes * bt_plan_layout_cards(&decoder->instance.layout),
        .prefill_limit = prefiller->memory.fits ? highest_rate(&probe, capacity(&probe)) : 0,
        .decode_limit = decodes * bt_plan_decoder_rate(question, decoder),
    };
    point.goodput = fmin(point.prefill_limit, point.decode_limit);
    return point;
}

static double aggregated_rate(const struct bt_plan_question *question,
                              const struct bt_plan_pool *pool, uint32_t total_cards)
{
    const struct bt_plan_hardware *hardware = &question->decode_hardware;
    struct bt_plan_prefiller prefiller = bt_plan_prefiller_of(question, hardware, pool);
    struct bt_plan_decoder decoder =
        bt_plan_decoder_of(question, hardware, pool, prefiller.memory.activation_bytes);
    struct probe probe = {.bears = aggregated_bears,
                          .question = question,
                          .prefiller = &prefiller,
                          .decoder = &decoder,
                          .instances = total_cards / bt_plan_layout_cards(&pool->layout)};
    return probe.instances && decoder.max_batch ? highest_rate(&probe, capacity(&probe)) : 0;
}

static void fill(const struct bt_plan_question *question, const struct bt_plan_prefiller *prefiller,
                 const struct bt_plan_decoder *decoder, uint32_t total_cards,
                 struct bt_plan_curve *curve)
{
    uint32_t prefill_cards = bt_plan_layout_cards(&prefiller->instance.layout);
    uint32_t decode_cards = bt_plan_layout_cards(&decoder->instance.layout);
    if (total_cards < prefill_cards + decode_cards)
        return;
    size_t splits = (total_cards - decode_cards) / prefill_cards;
    size_t count = splits < curve->capacity ? splits : curve->capacity;
    for (size_t i = 0; i < count; i++) {
        uint32_t prefills = (uint32_t)(count == splits ? i + 1 : 1 + i * splits / count);
        uint32_t decodes = (total_cards - prefills * prefill_cards) / decode_cards;
        curve->points[i] = point_of(question, prefiller, decoder, prefills, decodes);
        if (curve->points[i].goodput > curve->points[curve->best].goodput)
            curve->best = i;
    }
    curve->count = count;
}

enum bt_status bt_plan_goodput(const struct bt_plan_question *question,
                               const struct bt_plan_pool *prefill,
                               const struct bt_plan_pool *decode, uint32_t total_cards,
                               struct bt_error *error, struct bt_plan_curve *curve)
{
    struct bt_plan_outcome outcome; /* refuses what can't be */
    struct bt_plan_pool first = *prefill, second = *decode;
    first.instances = second.instances = 1;
    enum bt_status status = bt_plan_evaluate(question, &first, &second, error, &outcome);
    if (status != BT_OK)
        return status;
    if (total_cards < 1 || total_cards > 65536)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "total_cards = %u: not in 1 … 65536",
                            total_cards);
    struct bt_plan_prefiller prefiller =
        bt_plan_prefiller_of(question, &question->prefill_hardware, prefill);
    struct bt_plan_decoder decoder =
        bt_plan_decoder_of(question, &question->decode_hardware, decode, 0);
    curve->count = curve->best = 0;
    fill(question, &prefiller, &decoder, total_cards, curve);
    curve->aggregated = aggregated_rate(question, decode, total_cards);
    return BT_OK;
}
