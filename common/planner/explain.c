#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "common/planner/planner.h"
#include "common/planner/sides.h"

/* Where lines go, and what their names start with. */
struct writer {
    struct bt_plan_lines *lines;
    const char *prefix;
};

/* `numbers`: the formula with numbers put in, + - * / and parentheses only. */
__attribute__((format(printf, 6, 7))) static void add(const struct writer *writer, const char *name,
                                                      const char *formula, const char *unit,
                                                      double value, const char *numbers, ...)
{
    struct bt_plan_lines *lines = writer->lines;
    if (lines->count == BT_PLAN_LINES_MAX)
        return;
    char text[BT_PLAN_LINE_SIZE];
    va_list arguments;
    va_start(arguments, numbers);
    vsnprintf(text, sizeof(text), numbers, arguments);
    va_end(arguments);
    snprintf(lines->line[lines->count++], BT_PLAN_LINE_SIZE, "%s%s = %s = %.140s = %.6g%s%s",
             writer->prefix, name, formula, text, value, *unit ? " " : "", unit);
}

/* A step, or all steps of a prompt as one: rows are b * s, s' their mean. */
struct work {
    const struct bt_plan_instance *instance;
    const struct bt_plan_cost *cost;
    double batch, rows, attended;
};

static void explain_operations(const struct writer *writer, const struct work *work)
{
    const struct bt_plan_model *model = &work->instance->model;
    const struct bt_plan_layout *layout = &work->instance->layout;
    const struct bt_plan_cost *cost = work->cost;
    bool prefill = work->instance->phase == BT_PLAN_PREFILL;
    double skew = model->routed_experts ? work->instance->calibration.expert_skew : 1;
    if (model->sparse_tokens)
        add(writer, "attention", "(indexer + min(dense, absorbed over k_dsa))/TP", "operations",
            cost->attention_operations, "%.10g/%u", cost->attention_operations * layout->tp,
            layout->tp);
    else
        add(writer, "attention",
            prefill ? "L*2*b*s*s'*n_h*(d_h+d_R+d_v)/TP" : "L*2*b*s*s'*n_h*(2*d_c+d_R)/TP",
            "operations", cost->attention_operations, "%u*2*%.10g*%.10g*%u*(%u+%u+%u)/%u",
            model->layers, work->rows, work->attended, model->heads,
            prefill ? model->nope_dim : model->kv_rank, model->rope_dim,
            prefill ? model->value_dim : model->kv_rank, layout->tp);
    add(writer, "projections", "2*P_attention*b*s/TP", "operations", cost->projection_operations,
        "2*%.10g*%.10g/%u", model->attention_parameters, work->rows, layout->tp);
    double headless = prefill ? work->rows - work->batch * cost->steps : 0;
    add(writer, "mlp", "2*(A*b*s - head*tokens without logits)*DP*skew/cards", "operations",
        cost->mlp_operations, "2*(%.10g*%.10g-%.10g*%.10g)*%u*%g/%u", model->active_parameters,
        work->rows, model->head_parameters, headless, layout->dp, skew,
        bt_plan_layout_cards(layout));
    if (model->streams > 1)
        add(writer, "streams", "2*L*b*s*per connection/TP", "operations", cost->stream_operations,
            "2*%u*%.10g*%.10g/%u", model->layers, work->rows,
            bt_plan_operations_streams(model, BT_PLAN_SINKHORN_ITERATIONS), layout->tp);
    add(writer, "operations", "attention + projections + mlp + streams", "operations",
        cost->operations, "%.10g+%.10g+%.10g+%.10g", cost->attention_operations,
        cost->projection_operations, cost->mlp_operations, cost->stream_operations);
    double mfu =
        prefill ? work->instance->calibration.prefill_mfu : work->instance->calibration.decode_mfu;
    if (cost->attention_peak == cost->peak)
        add(writer, "compute", "operations/(peak*MFU)", "s", cost->compute_s, "%.10g/(%.10g*%g)",
            cost->operations, cost->peak, mfu);
    else
        add(writer, "compute", "(operations-attention)/(peak*MFU) + attention/(bf16 peak*MFU)", "s",
            cost->compute_s, "%.10g/(%.10g*%g)+%.10g/(%.10g*%g)",
            cost->operations - cost->attention_operations, cost->peak, mfu,
            cost->attention_operations, cost->attention_peak, mfu);
}

static void explain_traffic(const struct writer *writer, const struct work *work)
{
    const struct bt_plan_instance *instance = work->instance;
    const struct bt_plan_model *model = &instance->model;
    const struct bt_plan_dtypes *dtypes = &instance->dtypes;
    const struct bt_plan_cost *cost = work->cost;
    double experts = (double)model->routed_experts + model->shared_experts;
    double read = model->dense_parameters - model->embedding_parameters;
    double dense = read * dtypes->dense_bytes / instance->layout.tp;
    double each = experts > 0 ? model->moe_parameters / experts * dtypes->expert_bytes : 1;
    add(writer, "weights_read", "steps*(W_dense/TP + W_moe/(E+shared)*k')", "bytes",
        cost->weight_bytes, "%g*(%.10g*%g/%u+%.10g*%.10g)", cost->steps, read, dtypes->dense_bytes,
        instance->layout.tp, each, (cost->weight_bytes / cost->steps - dense) / each);
    if (model->sparse_tokens)
        add(writer, "kv_read", "L*b*(s'*d_I + min(s', k_dsa)*(d_c+d_R))", "bytes", cost->kv_bytes,
            "%.10g", cost->kv_bytes);
    else {
        double token = bt_plan_kv_token_bytes(model, dtypes);
        add(writer, "kv_read", "steps*L*b*s'*bytes of a token", "bytes", cost->kv_bytes,
            "%g*%u*%.10g*%.10g*%.10g", cost->steps, model->layers, work->batch,
            cost->kv_bytes / (cost->steps * model->layers * work->batch * token), token);
    }
    add(writer, "activations", "2*L*values of a layer*bytes", "bytes", cost->activation_bytes,
        "2*%u*%.10g*%g", model->layers,
        cost->activation_bytes / (2.0 * model->layers * dtypes->activation_bytes),
        dtypes->activation_bytes);
    double share = instance->phase == BT_PLAN_PREFILL ? instance->calibration.prefill_bandwidth
                                                      : instance->calibration.decode_bandwidth;
    add(writer, "memory", "(weights + KV + activations)/(bandwidth*share)", "s", cost->memory_s,
        "(%.10g+%.10g+%.10g)/(%.10g*%g)", cost->weight_bytes, cost->kv_bytes,
        cost->activation_bytes, instance->hardware.figure[BT_PLAN_MEMORY_BANDWIDTH], share);
}

static void explain_network(const struct writer *writer, const struct work *work)
{
    const struct bt_plan_instance *instance = work->instance;
    const struct bt_plan_model *model = &instance->model;
    const struct bt_plan_layout *layout = &instance->layout;
    const struct bt_plan_cost *cost = work->cost;
    const double *figure = instance->hardware.figure;
    add(writer, "expert_traffic", "L_moe*2*b*s*d_model*routed*bytes (EP > 1)", "bytes",
        cost->expert_bytes, "%u*2*%.10g*%u*%u*%g*%u", model->moe_layers, work->rows, model->hidden,
        model->experts_per_token, instance->dtypes.network_bytes, layout->ep > 1);
    add(writer, "tensor_traffic", "L*2*b*s*d_model*bytes*(TP-1)/TP", "bytes", cost->tensor_bytes,
        "%u*2*%.10g*%u*%g*(%u-1)/%u", model->layers, work->rows, model->hidden,
        instance->dtypes.network_bytes, layout->tp, layout->tp);
    uint32_t node = (uint32_t)figure[BT_PLAN_NODE_CARDS];
    add(writer, "between_nodes", "experts*(1-node/EP) + tensor*(TP-node)/(TP-1)", "bytes",
        cost->between_bytes, "%.10g*%.10g+%.10g*%.10g", cost->expert_bytes,
        bt_plan_expert_crossing(layout->ep, node), cost->tensor_bytes,
        bt_plan_tensor_crossing(layout->tp, node));
    add(writer, "network", "inside/(links*share) + between/(links*share)", "s", cost->network_s,
        "%.10g/(%.10g*%g)+%.10g/(%.10g*%g)", cost->inside_bytes, figure[BT_PLAN_INSIDE],
        instance->calibration.inside_link, cost->between_bytes, figure[BT_PLAN_BETWEEN],
        instance->calibration.between_link);
}

static void explain_overhead(const struct writer *writer, const struct work *work)
{
    const struct bt_plan_calibration *calibration = &work->instance->calibration;
    if (work->instance->phase == BT_PLAN_PREFILL)
        add(writer, "overhead", "chunks*step_overhead_s", "s", work->cost->overhead_s, "%g*%.10g",
            work->cost->steps, calibration->step_overhead_s);
    else
        add(writer, "overhead", "step_overhead_s + b*sequence_overhead_s", "s",
            work->cost->overhead_s, "%.10g+%.10g*%.10g", calibration->step_overhead_s, work->batch,
            calibration->sequence_overhead_s);
}

/* With drafts a step's time is (1 + drafts/L) of its own. */
static void explain_sum(const struct writer *writer, const struct work *work, uint32_t drafts)
{
    const struct bt_plan_cost *cost = work->cost;
    uint32_t layers = work->instance->model.layers;
    switch (work->instance->calibration.overlap) {
    case BT_PLAN_OVERLAP_NONE:
        add(writer, "seconds", "(compute + memory + network)*(1+drafts/L) + overhead", "s",
            cost->seconds, "(%.10g+%.10g+%.10g)*(1+%u/%u)+%.10g", cost->compute_s, cost->memory_s,
            cost->network_s, drafts, layers, cost->overhead_s);
        break;
    case BT_PLAN_OVERLAP_CARD:
        add(writer, "seconds", "(max(compute, memory) + network)*(1+drafts/L) + overhead", "s",
            cost->seconds, "%.10g", cost->seconds);
        break;
    default:
        add(writer, "seconds", "max(compute, memory, network)*(1+drafts/L) + overhead", "s",
            cost->seconds, "%.10g", cost->seconds);
    }
}

static void explain_memory(const struct writer *writer, const struct bt_plan_memory *memory)
{
    add(writer, "memory_used", "weights + KV + activations + reserve", "bytes", memory->total_bytes,
        "%.10g+%.10g+%.10g+%.10g", memory->weight_bytes, memory->kv_bytes, memory->activation_bytes,
        memory->reserve_bytes);
    add(writer, "memory_share", "used/capacity", memory->fits ? "(fits)" : "(does not fit)",
        memory->share, "%.10g/%.10g", memory->total_bytes, memory->capacity_bytes);
}

static void explain_work(const struct writer *writer, const struct work *work, uint32_t drafts)
{
    explain_operations(writer, work);
    explain_traffic(writer, work);
    explain_network(writer, work);
    explain_overhead(writer, work);
    explain_sum(writer, work, drafts);
}

static void explain_prefill(const struct bt_plan_question *question,
                            const struct bt_plan_outcome *outcome, struct bt_plan_lines *lines)
{
    const struct bt_plan_prefill_side *side = &outcome->prefill;
    struct writer writer = {lines, "prefill."};
    struct bt_plan_instance instance =
        bt_plan_instance_of(question, BT_PLAN_PREFILL, &outcome->prefill_hardware, &side->pool);
    struct bt_plan_prompt prompt = bt_plan_prompt_of(question);
    double fresh = prompt.tokens - prompt.cached;
    struct work work = {&instance, &side->cost, prompt.batch, prompt.batch * fresh,
                        prompt.cached + fresh / 2};
    explain_work(&writer, &work, 0);
    if (!outcome->aggregated)
        explain_memory(&writer, &side->memory);
    add(&writer, "service", "prefill + chunks*decode steps between", "s", side->service_s,
        "%.10g+%.10g", side->cost.seconds, side->service_s - side->cost.seconds);
    add(&writer, "utilisation", "requests/s*service/(instances*DP)", "", side->utilisation,
        "%.10g*%.10g/(%u*%u)", question->load.requests_per_s, side->service_s, side->pool.instances,
        side->pool.layout.dp);
}

static void explain_decode(const struct bt_plan_question *question,
                           const struct bt_plan_outcome *outcome, struct bt_plan_lines *lines)
{
    const struct bt_plan_decode_side *side = &outcome->decode;
    struct writer writer = {lines, "decode."};
    struct bt_plan_instance instance =
        bt_plan_instance_of(question, BT_PLAN_DECODE, &outcome->decode_hardware, &side->pool);
    struct bt_plan_decoding now =
        bt_plan_decoding_of(question, isfinite(side->batch) ? side->batch : side->max_batch);
    struct work work = {&instance, &side->cost, now.batch, now.batch * (1 + now.drafts),
                        now.context};
    explain_work(&writer, &work, now.drafts);
    explain_memory(&writer, &side->memory);
    struct writer whole = {lines, ""};
    double share = outcome->aggregated
                       ? outcome->prefill.cost.seconds * question->load.requests_per_s /
                             side->pool.instances / side->pool.layout.dp
                       : 0;
    add(&whole, "tpot", "step/tokens of a step/(1 - share of prefill)", "s", outcome->tpot_s,
        "%.10g/%.10g/(1-%.10g)", side->cost.seconds, side->tokens_of_step, share);
    if (isfinite(side->batch))
        add(&writer, "batch", "requests/s*(output-1)*TPOT/(instances*DP)", "sequences", side->batch,
            "%.10g*%.10g*%.10g/(%u*%u)", question->load.requests_per_s,
            fmax(question->load.output_tokens - 1, 0), outcome->tpot_s, side->pool.instances,
            side->pool.layout.dp);
}

void bt_plan_explain(const struct bt_plan_question *question, const struct bt_plan_outcome *outcome,
                     struct bt_plan_lines *ret_lines)
{
    struct writer whole = {ret_lines, ""};
    const struct bt_plan_handoff *handoff = &outcome->handoff;
    ret_lines->count = 0;
    explain_prefill(question, outcome, ret_lines);
    if (!outcome->aggregated) {
        add(&whole, "handoff", "L*input*bytes of a token", "bytes", handoff->bytes,
            "%u*%.10g*%.10g", question->model.layers, question->load.input_tokens,
            bt_plan_kv_token_bytes(&question->model, &question->dtypes));
        add(&whole, "handoff_seen",
            handoff->layerwise ? "max(transfer/L, transfer - prefill*(1-1/L))" : "transfer", "s",
            handoff->visible_s, "%.10g", handoff->visible_s);
    }
    add(&whole, "ttft", "wait + service + handoff seen + request_overhead_s", "s", outcome->ttft_s,
        "%.10g+%.10g+%.10g+%.10g", outcome->prefill.wait_s, outcome->prefill.service_s,
        handoff->visible_s, question->calibration.request_overhead_s);
    explain_decode(question, outcome, ret_lines);
    add(&whole, "cost", "cards*price", "an hour", outcome->cost_per_hour, "%u*%g+%u*%g",
        outcome->aggregated
            ? 0
            : outcome->prefill.pool.instances * bt_plan_layout_cards(&outcome->prefill.pool.layout),
        outcome->prefill_hardware.figure[BT_PLAN_PRICE],
        outcome->decode.pool.instances * bt_plan_layout_cards(&outcome->decode.pool.layout),
        outcome->decode_hardware.figure[BT_PLAN_PRICE]);
}
