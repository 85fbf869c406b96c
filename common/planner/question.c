#include <math.h>
#include <string.h>

#include "common/planner/planner.h"
#include "common/planner/search.h"
#include "common/planner/sides.h"

#define TOKENS_MAX 4194304.0 /* as long as any config.json says */
#define CHUNKS_MAX 16384.0

void bt_plan_question_init(struct bt_plan_question *ret_question)
{
    memset(ret_question, 0, sizeof(*ret_question));
    ret_question->calibration = bt_plan_calibration_default();
    ret_question->policy = (struct bt_plan_policy){
        .chunk_tokens = 8192,
        .layerwise_from_tokens = 8192,
        .max_utilisation = 0.9,
        .acceptance = 0.85,
    };
    ret_question->limits = (struct bt_plan_limits){
        .max_cards = 1024,
        .max_instance_cards = 64,
        .max_batch = 512,
    };
}

static const struct bound {
    const char *name;
    size_t offset;
    double min, max;
} bounds[] = {
#define BOUND(field, low, high)                                                                    \
    {                                                                                              \
#field, offsetof(struct bt_plan_question, field), low, high                                \
    }
    BOUND(load.requests_per_s, 1e-9, 1e6),
    BOUND(load.input_tokens, 1, TOKENS_MAX),
    BOUND(load.output_tokens, 1, TOKENS_MAX),
    BOUND(load.cached_share, 0, 0.999),
    BOUND(load.variation, 0, 100),
    BOUND(slo.ttft_s, 1e-9, 1e9),
    BOUND(slo.tpot_s, 1e-9, 1e9),
    BOUND(slo.quantile, 0, 0.9999),
    BOUND(slo.gap_s, 0, 1e9),
    BOUND(policy.chunk_tokens, 0, TOKENS_MAX),
    BOUND(policy.layerwise_from_tokens, 0, 1e18),
    BOUND(policy.max_utilisation, 0.01, 1),
    BOUND(policy.acceptance, 0, 1),
    BOUND(model.active_parameters, 1, 1e16),
    BOUND(model.dense_parameters, 1, 1e16),
    BOUND(model.moe_parameters, 0, 1e16),
    BOUND(calibration.memory_limit, 0.01, 1),
    BOUND(calibration.prefill_mfu, 1e-6, 1),
    BOUND(calibration.decode_mfu, 1e-6, 1),
    BOUND(calibration.prefill_bandwidth, 1e-6, 1),
    BOUND(calibration.decode_bandwidth, 1e-6, 1),
    BOUND(calibration.inside_link, 1e-6, 1),
    BOUND(calibration.between_link, 1e-6, 1),
    BOUND(calibration.expert_skew, 1, 4096),
    BOUND(calibration.step_overhead_s, 0, 60),
    BOUND(calibration.sequence_overhead_s, 0, 60),
    BOUND(calibration.request_overhead_s, 0, 600),
};

static enum bt_status check_counts(const struct bt_plan_question *question, struct bt_error *error)
{
    const struct bt_plan_limits *limits = &question->limits;
    const struct {
        const char *name;
        uint32_t value, min, max;
    } counts[] = {
        {"limits.max_cards", limits->max_cards, 1, 65536},
        {"limits.max_instance_cards", limits->max_instance_cards, 1, 1024},
        {"limits.max_batch", limits->max_batch, 1, 1 << 20},
        {"policy.drafts", question->policy.drafts, 0, 16},
        {"model.layers", question->model.layers, 1, 4096},
        {"model.heads", question->model.heads, 1, 4096},
        {"model.streams", question->model.streams, 1, 64},
    };
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        if (counts[i].value < counts[i].min || counts[i].value > counts[i].max)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s = %u: not in %u … %u",
                                counts[i].name, counts[i].value, counts[i].min, counts[i].max);
    return BT_OK;
}

static enum bt_status check_hardware(const char *field, const struct bt_plan_hardware *hardware,
                                     struct bt_error *error)
{
    static const enum bt_plan_figure needed[] = {BT_PLAN_PEAK + BT_PLAN_BF16,
                                                 BT_PLAN_MEMORY,
                                                 BT_PLAN_MEMORY_BANDWIDTH,
                                                 BT_PLAN_NODE_CARDS,
                                                 BT_PLAN_INSIDE,
                                                 BT_PLAN_BETWEEN,
                                                 BT_PLAN_PRICE};
    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
        if (!(hardware->figure[needed[i]] > 0))
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s.%s: not above 0", field,
                                bt_plan_figure_key(needed[i]));
    return BT_OK;
}

static enum bt_status check_pool(const struct bt_plan_question *question, enum bt_plan_phase phase,
                                 const struct bt_plan_hardware *hardware,
                                 const struct bt_plan_pool *pool, struct bt_error *error)
{
    const char *name = phase == BT_PLAN_PREFILL ? "prefill" : "decode";
    struct bt_plan_instance instance = bt_plan_instance_of(question, phase, hardware, pool);
    enum bt_status status = bt_plan_instance_check(&instance, error);
    if (status != BT_OK) {
        bt_error_prefix(error, "%s", name);
        return status;
    }
    if (pool->instances < 1 || pool->instances > 65536)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: instances = %u: not in 1 … 65536",
                            name, pool->instances);
    if ((double)pool->instances * bt_plan_layout_cards(&pool->layout) > 1048576)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: more than 1048576 cards", name);
    return BT_OK;
}

/* A layout that the question names. */
static enum bt_status check_given(const struct bt_plan_question *question, enum bt_plan_phase phase,
                                  struct bt_error *error)
{
    struct bt_plan_pool pool = {.layout = bt_plan_layout_given(question, phase), .instances = 1};
    if (!pool.layout.tp && !pool.layout.dp && !pool.layout.ep)
        return BT_OK;
    pool.redundant = bt_plan_layout_copies(question, &pool.layout);
    return check_pool(question, phase,
                      phase == BT_PLAN_PREFILL ? &question->prefill_hardware
                                               : &question->decode_hardware,
                      &pool, error);
}

enum bt_status bt_plan_question_check(const struct bt_plan_question *question,
                                      struct bt_error *error)
{
    for (size_t i = 0; i < sizeof(bounds) / sizeof(bounds[0]); i++) {
        double value;
        memcpy(&value, (const char *)question + bounds[i].offset, sizeof(value));
        if (!(value >= bounds[i].min && value <= bounds[i].max))
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s = %g: not in %g … %g",
                                bounds[i].name, value, bounds[i].min, bounds[i].max);
    }
    double chunk = question->policy.chunk_tokens;
    if (chunk > 0 && question->load.input_tokens / chunk > CHUNKS_MAX)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "policy.chunk_tokens = %g: more than %g chunks a prompt", chunk,
                            CHUNKS_MAX);
    if (question->policy.drafts && question->model.mtp_parameters <= 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "policy.drafts = %u: the model has no MTP module",
                            question->policy.drafts);
    enum bt_status status = check_counts(question, error);
    if (status == BT_OK)
        status = check_hardware("prefill_hardware", &question->prefill_hardware, error);
    if (status == BT_OK)
        status = check_hardware("decode_hardware", &question->decode_hardware, error);
    if (status == BT_OK)
        status = check_given(question, BT_PLAN_PREFILL, error);
    if (status == BT_OK)
        status = check_given(question, BT_PLAN_DECODE, error);
    return status;
}

enum bt_status bt_plan_evaluate(const struct bt_plan_question *question,
                                const struct bt_plan_pool *prefill,
                                const struct bt_plan_pool *decode, struct bt_error *error,
                                struct bt_plan_outcome *ret_outcome)
{
    const struct bt_plan_hardware *first = &question->prefill_hardware;
    const struct bt_plan_hardware *second = &question->decode_hardware;
    enum bt_status status = bt_plan_question_check(question, error);
    if (status == BT_OK)
        status = check_pool(question, BT_PLAN_PREFILL, first, prefill, error);
    if (status == BT_OK)
        status = check_pool(question, BT_PLAN_DECODE, second, decode, error);
    if (status != BT_OK)
        return status;
    struct bt_plan_prefiller prefiller = bt_plan_prefiller_of(question, first, prefill);
    struct bt_plan_decoder decoder = bt_plan_decoder_of(question, second, decode, 0);
    *ret_outcome =
        bt_plan_outcome_of(question, &prefiller, &decoder, prefill->instances, decode->instances);
    return BT_OK;
}

enum bt_status bt_plan_evaluate_aggregated(const struct bt_plan_question *question,
                                           const struct bt_plan_hardware *hardware,
                                           const struct bt_plan_pool *pool, struct bt_error *error,
                                           struct bt_plan_outcome *ret_outcome)
{
    enum bt_status status = bt_plan_question_check(question, error);
    if (status == BT_OK)
        status = check_hardware("hardware", hardware, error);
    if (status == BT_OK)
        status = check_pool(question, BT_PLAN_DECODE, hardware, pool, error);
    if (status != BT_OK)
        return status;
    struct bt_plan_prefiller prefiller = bt_plan_prefiller_of(question, hardware, pool);
    struct bt_plan_decoder decoder =
        bt_plan_decoder_of(question, hardware, pool, prefiller.memory.activation_bytes);
    *ret_outcome = bt_plan_aggregated_of(question, &prefiller, &decoder, pool->instances,
                                         question->load.requests_per_s);
    return BT_OK;
}
