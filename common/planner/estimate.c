#include "common/planner/estimate.h"

#include <math.h>

enum bt_status bt_plan_instance_check(const struct bt_plan_instance *instance,
                                      struct bt_error *error)
{
    const struct bt_plan_layout *layout = &instance->layout;
    const struct bt_plan_model *model = &instance->model;
    uint32_t cards = bt_plan_layout_cards(layout);
    if (!layout->tp || !layout->dp || !layout->ep)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "layout: tp, dp and ep start at 1");
    if (layout->tp > 4096 || layout->dp > 65536)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "layout: too many cards");
    if (model->heads % layout->tp)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "layout: tp %u does not divide %u attention heads", layout->tp,
                            model->heads);
    if (cards % layout->ep)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "layout: ep %u does not divide tp * dp = %u cards", layout->ep, cards);
    if (!model->routed_experts && layout->ep > 1)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "layout: ep %u for a model without experts", layout->ep);
    if ((model->routed_experts + instance->redundant) % layout->ep)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "layout: ep %u does not divide %u experts and %u copies", layout->ep,
                            model->routed_experts, instance->redundant);
    return BT_OK;
}

/* Operations of an attention group, indexer and selection where the model has them. Selected tokens
 * differ from query to query, so only the absorbed form can share them; a prompt takes whichever of
 * that and dense multi-head attention is less. */
static double attention_operations(const struct bt_plan_instance *instance,
                                   const struct bt_plan_step *step)
{
    const struct bt_plan_model *model = &instance->model;
    enum bt_plan_form form =
        instance->phase == BT_PLAN_PREFILL ? BT_PLAN_MULTI_HEAD : BT_PLAN_ABSORBED;
    double dense = bt_plan_operations_attention(model, form, step);
    if (!model->sparse_tokens)
        return dense;
    struct bt_plan_step selected = *step;
    selected.attended = fmin(step->attended, model->sparse_tokens);
    double sparse = bt_plan_operations_attention(model, BT_PLAN_ABSORBED, &selected);
    double indexer = model->layers *
                     bt_plan_operations_indexer(model, step->batch, step->tokens, step->attended);
    return indexer + fmin(dense, sparse);
}

static void add_operations(const struct bt_plan_instance *instance, const struct bt_plan_step *step,
                           double busy, struct bt_plan_cost *cost)
{
    const struct bt_plan_model *model = &instance->model;
    const struct bt_plan_layout *layout = &instance->layout;
    double cards = bt_plan_layout_cards(layout), rows = step->batch * step->tokens;
    double skew = model->routed_experts ? instance->calibration.expert_skew : 1;
    double mlp = bt_plan_operations_mlp(model, step);
    if (instance->phase == BT_PLAN_PREFILL)
        mlp -= 2 * model->head_parameters * (rows - step->batch);

    cost->attention_operations = attention_operations(instance, step) / layout->tp;
    cost->projection_operations = bt_plan_operations_projections(model, step) / layout->tp;
    cost->mlp_operations = mlp * busy * skew / cards;
    if (model->streams > 1)
        cost->stream_operations = 2.0 * model->layers * rows *
                                  bt_plan_operations_streams(model, BT_PLAN_SINKHORN_ITERATIONS) /
                                  layout->tp;
    cost->operations = cost->attention_operations + cost->projection_operations +
                       cost->mlp_operations + cost->stream_operations;
}

static void add_traffic(const struct bt_plan_instance *instance, const struct bt_plan_step *step,
                        double busy, struct bt_plan_cost *cost)
{
    const struct bt_plan_model *model = &instance->model;
    const struct bt_plan_layout *layout = &instance->layout;
    const struct bt_plan_dtypes *dtypes = &instance->dtypes;
    enum bt_plan_form form =
        instance->phase == BT_PLAN_PREFILL ? BT_PLAN_MULTI_HEAD : BT_PLAN_ABSORBED;
    double rows = step->batch * step->tokens;
    double routed = rows * busy * layout->ep / bt_plan_layout_cards(layout);

    cost->experts_read = bt_plan_experts_read(model, layout, instance->calibration.routing, routed);
    cost->weight_bytes = bt_plan_weight_traffic(model, dtypes, layout, cost->experts_read);
    cost->kv_bytes = bt_plan_kv_traffic(model, dtypes, step);
    cost->activation_bytes =
        bt_plan_activation_traffic(model, dtypes, form, step, instance->calibration.score_share);
    if (model->streams > 1)
        cost->activation_bytes += 2.0 * model->layers * rows * dtypes->activation_bytes *
                                  (bt_plan_stream_traffic_values(model) - 3.0 * model->hidden);
}

static void add_network(const struct bt_plan_instance *instance, const struct bt_plan_step *step,
                        struct bt_plan_cost *cost)
{
    const struct bt_plan_layout *layout = &instance->layout;
    uint32_t node = (uint32_t)instance->hardware.figure[BT_PLAN_NODE_CARDS];
    cost->expert_bytes = bt_plan_expert_bytes(&instance->model, &instance->dtypes, layout, step);
    cost->tensor_bytes = bt_plan_tensor_bytes(&instance->model, &instance->dtypes, layout, step);
    cost->between_bytes = cost->expert_bytes * bt_plan_expert_crossing(layout->ep, node) +
                          cost->tensor_bytes * bt_plan_tensor_crossing(layout->tp, node);
    cost->inside_bytes = cost->expert_bytes + cost->tensor_bytes - cost->between_bytes;
}

static void add_times(const struct bt_plan_instance *instance, const struct bt_plan_step *step,
                      struct bt_plan_cost *cost)
{
    const struct bt_plan_calibration *calibration = &instance->calibration;
    const double *figure = instance->hardware.figure;
    bool prefill = instance->phase == BT_PLAN_PREFILL;
    double mfu = prefill ? calibration->prefill_mfu : calibration->decode_mfu;
    double share = prefill ? calibration->prefill_bandwidth : calibration->decode_bandwidth;

    cost->steps = 1;
    cost->peak =
        bt_plan_hardware_peak(&instance->hardware, instance->dtypes.compute, &cost->number);
    cost->attention_peak = cost->peak;
    if (instance->dtypes.bf16_attention)
        cost->attention_peak = figure[BT_PLAN_PEAK + BT_PLAN_BF16];
    cost->compute_s = (cost->operations - cost->attention_operations) / (cost->peak * mfu) +
                      cost->attention_operations / (cost->attention_peak * mfu);
    cost->memory_s = (cost->weight_bytes + cost->kv_bytes + cost->activation_bytes) /
                     (figure[BT_PLAN_MEMORY_BANDWIDTH] * share);
    cost->network_s = cost->inside_bytes / (figure[BT_PLAN_INSIDE] * calibration->inside_link) +
                      cost->between_bytes / (figure[BT_PLAN_BETWEEN] * calibration->between_link);
    cost->overhead_s = calibration->step_overhead_s;
    if (!prefill)
        cost->overhead_s += step->batch * calibration->sequence_overhead_s;
    double card = fmax(cost->compute_s, cost->memory_s);
    if (calibration->overlap == BT_PLAN_OVERLAP_ALL)
        cost->seconds = fmax(card, cost->network_s);
    else if (calibration->overlap == BT_PLAN_OVERLAP_CARD)
        cost->seconds = card + cost->network_s;
    else
        cost->seconds = cost->compute_s + cost->memory_s + cost->network_s;
    cost->seconds += cost->overhead_s;
}

struct bt_plan_cost bt_plan_step_cost(const struct bt_plan_instance *instance,
                                      const struct bt_plan_step *step, double busy)
{
    struct bt_plan_cost cost = {0};
    add_operations(instance, step, busy, &cost);
    add_traffic(instance, step, busy, &cost);
    add_network(instance, step, &cost);
    add_times(instance, step, &cost);
    return cost;
}

static void add_step(struct bt_plan_cost *sum, const struct bt_plan_cost *step)
{
    sum->attention_operations += step->attention_operations;
    sum->projection_operations += step->projection_operations;
    sum->mlp_operations += step->mlp_operations;
    sum->stream_operations += step->stream_operations;
    sum->operations += step->operations;
    sum->weight_bytes += step->weight_bytes;
    sum->kv_bytes += step->kv_bytes;
    sum->activation_bytes += step->activation_bytes;
    sum->expert_bytes += step->expert_bytes;
    sum->tensor_bytes += step->tensor_bytes;
    sum->inside_bytes += step->inside_bytes;
    sum->between_bytes += step->between_bytes;
    sum->compute_s += step->compute_s;
    sum->memory_s += step->memory_s;
    sum->network_s += step->network_s;
    sum->overhead_s += step->overhead_s;
    sum->seconds += step->seconds;
    sum->steps += step->steps;
    sum->experts_read = step->experts_read;
    sum->number = step->number;
    sum->peak = step->peak;
    sum->attention_peak = step->attention_peak;
}

/* Of the chunk that starts behind `before` tokens; a token sees those and half of its own chunk. */
static struct bt_plan_step chunk_step(const struct bt_plan_prompt *prompt, double before,
                                      double tokens)
{
    return (struct bt_plan_step){prompt->batch, tokens, before + tokens / 2};
}

static double chunk_of(const struct bt_plan_prompt *prompt)
{
    double fresh = prompt->tokens - prompt->cached;
    return prompt->chunk_tokens > 0 ? fmin(prompt->chunk_tokens, fresh) : fresh;
}

struct bt_plan_cost bt_plan_prefill_cost(const struct bt_plan_instance *instance,
                                         const struct bt_plan_prompt *prompt)
{
    struct bt_plan_cost sum = {0};
    double chunk = chunk_of(prompt);
    for (double at = prompt->cached; at < prompt->tokens; at += chunk) {
        struct bt_plan_step step = chunk_step(prompt, at, fmin(chunk, prompt->tokens - at));
        struct bt_plan_cost cost = bt_plan_step_cost(instance, &step, instance->layout.dp);
        add_step(&sum, &cost);
    }
    return sum;
}

static struct bt_plan_memory memory_of(const struct bt_plan_instance *instance, double kv,
                                       double activations)
{
    struct bt_plan_memory memory = {
        .weight_bytes = bt_plan_weight_memory(&instance->model, &instance->dtypes,
                                              &instance->layout, instance->redundant),
        .kv_bytes = kv,
        .activation_bytes = activations,
        .reserve_bytes = instance->hardware.figure[BT_PLAN_RESERVE],
        .capacity_bytes = instance->hardware.figure[BT_PLAN_MEMORY],
    };
    memory.total_bytes = memory.weight_bytes + kv + activations + memory.reserve_bytes;
    memory.share = memory.total_bytes / memory.capacity_bytes;
    memory.fits = memory.share <= instance->calibration.memory_limit;
    return memory;
}

struct bt_plan_memory bt_plan_prefill_memory(const struct bt_plan_instance *instance,
                                             const struct bt_plan_prompt *prompt)
{
    double chunk = chunk_of(prompt);
    struct bt_plan_step last = chunk_step(prompt, prompt->tokens - chunk, chunk);
    double values = bt_plan_activation_values(&instance->model, BT_PLAN_MULTI_HEAD, &last,
                                              instance->calibration.score_share);
    double kv =
        bt_plan_kv_memory(&instance->model, &instance->dtypes, prompt->batch, prompt->tokens);
    return memory_of(instance, kv, values * instance->dtypes.activation_bytes);
}

double bt_plan_tokens_of_step(const struct bt_plan_decoding *decoding)
{
    double tokens = 1, chance = 1;
    for (uint32_t i = 0; i < decoding->drafts; i++) {
        chance *= decoding->acceptance;
        tokens += chance;
    }
    return tokens;
}

struct bt_plan_cost bt_plan_decode_cost(const struct bt_plan_instance *instance,
                                        const struct bt_plan_decoding *decoding)
{
    struct bt_plan_step step = {decoding->batch, 1.0 + decoding->drafts, decoding->context};
    struct bt_plan_cost cost = bt_plan_step_cost(instance, &step, instance->layout.dp);
    cost.seconds += (cost.seconds - cost.overhead_s) * decoding->drafts / instance->model.layers;
    return cost;
}

struct bt_plan_memory bt_plan_decode_memory(const struct bt_plan_instance *instance,
                                            const struct bt_plan_decoding *decoding)
{
    struct bt_plan_step step = {decoding->batch, 1.0 + decoding->drafts, decoding->context};
    double values = bt_plan_activation_values(&instance->model, BT_PLAN_ABSORBED, &step,
                                              instance->calibration.score_share);
    double kv =
        bt_plan_kv_memory(&instance->model, &instance->dtypes, decoding->batch, decoding->reserved);
    struct bt_plan_memory memory =
        memory_of(instance, kv, values * instance->dtypes.activation_bytes);
    if (decoding->drafts) {
        double drafts =
            instance->model.mtp_parameters * instance->dtypes.expert_bytes / instance->layout.ep;
        memory.weight_bytes += drafts;
        memory.total_bytes += drafts;
        memory.share = memory.total_bytes / memory.capacity_bytes;
        memory.fits = memory.share <= instance->calibration.memory_limit;
    }
    return memory;
}

enum bt_plan_bound bt_plan_bound_of(const struct bt_plan_cost *cost)
{
    bool memory = cost->memory_s > 0.5 * cost->compute_s;
    bool network = cost->network_s > 0.5 * cost->compute_s;
    if (network && (!memory || cost->network_s > cost->memory_s))
        return BT_PLAN_BOUND_NETWORK;
    return memory ? BT_PLAN_BOUND_MEMORY : BT_PLAN_BOUND_COMPUTE;
}

const char *bt_plan_bound_name(enum bt_plan_bound bound)
{
    static const char *const names[] = {"compute", "memory", "network"};
    return names[bound];
}

struct bt_plan_handoff bt_plan_handoff_cost(const struct bt_plan_instance *prefill,
                                            const struct bt_plan_instance *decode, double tokens,
                                            double prefill_s, bool layerwise)
{
    double sending = prefill->layout.tp * prefill->hardware.figure[BT_PLAN_BETWEEN] *
                     prefill->calibration.between_link;
    double receiving = decode->layout.tp * decode->hardware.figure[BT_PLAN_BETWEEN] *
                       decode->calibration.between_link;
    struct bt_plan_handoff handoff = {.layerwise = layerwise};
    handoff.bytes = bt_plan_handoff_bytes(&decode->model, &decode->dtypes, tokens);
    handoff.transfer_s = handoff.bytes / fmin(sending, receiving);
    double last = handoff.transfer_s / decode->model.layers;
    double hidden_s = prefill_s * (1 - 1.0 / decode->model.layers);
    handoff.visible_s = layerwise ? fmax(last, handoff.transfer_s - hidden_s) : handoff.transfer_s;
    return handoff;
}
