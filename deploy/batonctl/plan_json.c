#include <math.h>

#include "deploy/batonctl/plan_report.h"

/* JSON has no infinity: what never ends is null. */
static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *layout_json(const struct bt_plan_pool *pool)
{
    return json_pack("{s:i,s:i,s:i,s:i,s:i,s:i}", "tp", (int)pool->layout.tp, "dp",
                     (int)pool->layout.dp, "ep", (int)pool->layout.ep, "redundant_experts",
                     (int)pool->redundant, "instances", (int)pool->instances, "cards",
                     (int)(pool->instances * bt_plan_layout_cards(&pool->layout)));
}

static json_t *cost_json(const struct bt_plan_cost *cost, enum bt_plan_bound bound)
{
    return json_pack("{s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}",
                     "bound", bt_plan_bound_name(bound), "seconds_s", number(cost->seconds),
                     "compute_s", number(cost->compute_s), "memory_s", number(cost->memory_s),
                     "network_s", number(cost->network_s), "overhead_s", number(cost->overhead_s),
                     "operations", number(cost->operations), "attention_operations",
                     number(cost->attention_operations), "projection_operations",
                     number(cost->projection_operations), "mlp_operations",
                     number(cost->mlp_operations), "weight_read_bytes", number(cost->weight_bytes),
                     "kv_read_bytes", number(cost->kv_bytes), "activation_bytes",
                     number(cost->activation_bytes), "expert_network_bytes",
                     number(cost->expert_bytes), "tensor_network_bytes", number(cost->tensor_bytes),
                     "steps", number(cost->steps), "experts_read", number(cost->experts_read));
}

static json_t *memory_json(const struct bt_plan_memory *memory)
{
    return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:b}", "weight_bytes",
                     number(memory->weight_bytes), "kv_bytes", number(memory->kv_bytes),
                     "activation_bytes", number(memory->activation_bytes), "reserve_bytes",
                     number(memory->reserve_bytes), "total_bytes", number(memory->total_bytes),
                     "capacity_bytes", number(memory->capacity_bytes), "share",
                     number(memory->share), "fits", memory->fits);
}

static json_t *survey_json(const struct bt_plan_survey *survey, bool decode)
{
    json_t *array = json_array();
    for (size_t i = 0; i < survey->count; i++) {
        const struct bt_plan_choice *c = &survey->choices[i];
        json_t *one =
            json_pack("{s:o,s:o,s:o,s:o}", "layout", layout_json(&c->pool), "memory",
                      memory_json(&c->memory), decode ? "step" : "prompt",
                      cost_json(&c->cost, c->bound), "requests_per_s", number(c->requests_per_s));
        if (decode) {
            json_object_set_new(one, "max_batch", json_integer(c->max_batch));
            json_object_set_new(one, "tpot_s", number(c->tpot_s));
        }
        json_array_append_new(array, one);
    }
    return array;
}

static json_t *outcome_json(const struct bt_plan_outcome *o)
{
    json_t *prefill = json_pack(
        "{s:s,s:o,s:o,s:o,s:o,s:o,s:o}", "hardware", o->prefill_hardware.name, "layout",
        layout_json(&o->prefill.pool), "prompt", cost_json(&o->prefill.cost, o->prefill.bound),
        "service_s", number(o->prefill.service_s), "wait_s", number(o->prefill.wait_s),
        "utilisation", number(o->prefill.utilisation), "mfu", number(o->prefill.mfu));
    json_t *decode = json_pack(
        "{s:s,s:o,s:o,s:o,s:i,s:o,s:o,s:o,s:o}", "hardware", o->decode_hardware.name, "layout",
        layout_json(&o->decode.pool), "step", cost_json(&o->decode.cost, o->decode.bound), "memory",
        memory_json(&o->decode.memory), "max_batch", (int)o->decode.max_batch, "batch",
        number(o->decode.batch), "utilisation", number(o->decode.utilisation), "tokens_of_step",
        number(o->decode.tokens_of_step), "bandwidth_share", number(o->decode.bandwidth_share));
    if (!o->aggregated)
        json_object_set_new(prefill, "memory", memory_json(&o->prefill.memory));
    return json_pack(
        "{s:b,s:o,s:o,s:{s:o,s:o,s:o,s:b},s:o,s:o,s:o,s:o,s:o,s:i,s:b,s:b,s:b,s:b,s:b,s:b}",
        "aggregated", o->aggregated, "prefill", prefill, "decode", decode, "handoff", "bytes",
        number(o->handoff.bytes), "transfer_s", number(o->handoff.transfer_s), "visible_s",
        number(o->handoff.visible_s), "layerwise", o->handoff.layerwise, "ttft_s",
        number(o->ttft_s), "tpot_s", number(o->tpot_s), "worst_gap_s", number(o->worst_gap_s),
        "chunk_tokens", number(o->chunk_tokens), "cost_per_hour", number(o->cost_per_hour), "cards",
        (int)o->cards, "fits", o->fits, "stable", o->stable, "meets_ttft", o->meets_ttft,
        "meets_tpot", o->meets_tpot, "meets_gap", o->meets_gap, "good", o->good);
}

static json_t *lengths_json(const struct ctl_plan_report *report)
{
    json_t *array = json_array();
    for (size_t i = 0; i < report->length_count; i++) {
        const struct ctl_plan_length *l = &report->lengths[i];
        json_t *steps = json_array();
        for (size_t b = 0; b < report->batch_count; b++)
            if (l->tpot_s[b] > 0)
                json_array_append_new(steps,
                                      json_pack("{s:i,s:o,s:s}", "batch", (int)report->batches[b],
                                                "tpot_s", number(l->tpot_s[b]), "bound",
                                                bt_plan_bound_name(l->decode_bound[b])));
        json_array_append_new(array, json_pack("{s:o,s:o,s:o,s:o,s:o}", "tokens", number(l->tokens),
                                               "prompt", cost_json(&l->prefill, l->bound),
                                               "handoff_visible_s", number(l->handoff.visible_s),
                                               "ttft_s", number(l->ttft_s), "steps", steps));
    }
    return array;
}

static json_t *curve_json(const struct ctl_plan_report *report)
{
    json_t *points = json_array();
    for (size_t i = 0; i < report->curve.count; i++) {
        const struct bt_plan_point *p = &report->curve.points[i];
        json_array_append_new(
            points,
            json_pack("{s:i,s:i,s:i,s:i,s:o,s:o,s:o}", "prefill_instances",
                      (int)p->prefill_instances, "decode_instances", (int)p->decode_instances,
                      "prefill_cards", (int)p->prefill_cards, "decode_cards", (int)p->decode_cards,
                      "prefill_requests_per_s", number(p->prefill_limit), "decode_requests_per_s",
                      number(p->decode_limit), "goodput_requests_per_s", number(p->goodput)));
    }
    return json_pack(
        "{s:i,s:o,s:o,s:o}", "cards", (int)report->curve_cards, "points", points, "best",
        report->curve.count ? json_integer((json_int_t)report->curve.best) : json_null(),
        "aggregated_requests_per_s", number(report->curve.aggregated));
}

static json_t *variants_json(const struct ctl_plan_report *report)
{
    json_t *array = json_array();
    for (int i = 0; i < BT_PLAN_VARIANTS; i++) {
        const struct ctl_plan_variant *v = &report->variants[i];
        json_array_append_new(array, json_pack("{s:s,s:b,s:s,s:o}", "with",
                                               bt_plan_variant_name(v->variant), "applies",
                                               v->applies, "why_not", v->why_not, "outcome",
                                               v->found ? outcome_json(&v->outcome) : json_null()));
    }
    return array;
}

static json_t *hardware_json(const struct bt_plan_hardware *hardware)
{
    json_t *figures = json_object(), *sources = json_object();
    for (int i = 0; i < BT_PLAN_FIGURES; i++) {
        const char *key = bt_plan_figure_key((enum bt_plan_figure)i);
        if (hardware->figure[i] > 0) {
            json_object_set_new(
                figures, key,
                number(hardware->figure[i] / bt_plan_figure_unit((enum bt_plan_figure)i)));
            json_object_set_new(sources, key, json_string(hardware->source[i]));
        }
    }
    return json_pack("{s:s,s:s,s:o,s:o}", "name", hardware->name, "title", hardware->title,
                     "figures", figures, "sources", sources);
}

static json_t *question_json(const struct ctl_plan_report *report)
{
    const struct bt_plan_question *q = &report->question;
    const struct bt_plan_model *m = &q->model;
    json_t *model =
        json_pack("{s:s,s:o,s:o,s:o,s:o,s:o,s:s,s:s,s:b,s:s?}", "path", report->path, "parameters",
                  number(m->dense_parameters + m->moe_parameters), "dense_parameters",
                  number(m->dense_parameters), "moe_parameters", number(m->moe_parameters),
                  "attention_parameters", number(m->attention_parameters), "active_parameters",
                  number(m->active_parameters), "weights", bt_plan_weights_name(report->weights),
                  "kv", report->fp8_kv ? "fp8" : "bf16", "runs", report->file.runs, "refusal",
                  report->file.runs ? NULL : report->file.refusal);
    return json_pack("{s:o,s:o,s:o,s:{s:f,s:f,s:f,s:f},s:{s:f,s:f,s:f,s:f},s:{s:b,s:s}}", "model",
                     model, "prefill_hardware", hardware_json(&q->prefill_hardware),
                     "decode_hardware", hardware_json(&q->decode_hardware), "load",
                     "requests_per_s", q->load.requests_per_s, "input_tokens", q->load.input_tokens,
                     "output_tokens", q->load.output_tokens, "cached_share", q->load.cached_share,
                     "slo", "ttft_s", q->slo.ttft_s, "tpot_s", q->slo.tpot_s, "quantile",
                     q->slo.quantile, "gap_s", q->slo.gap_s, "calibration", "measured",
                     q->calibration.measured, "source", q->calibration.source);
}

json_t *ctl_plan_json(const struct ctl_plan_report *report)
{
    const struct bt_plan_answer *answer = &report->answer;
    json_t *lines = json_array();
    for (size_t i = 0; i < report->lines.count; i++)
        json_array_append_new(lines, json_string(report->lines.line[i]));
    json_t *root = json_pack(
        "{s:o,s:o,s:o,s:b,s:o,s:o,s:b,s:o,s:o,s:s,s:s,s:o,s:o,s:o}", "question",
        question_json(report), "prefill_layouts", survey_json(&report->prefill, false),
        "decode_layouts", survey_json(&report->decode, true), "found", answer->found,
        "disaggregated", answer->found || report->given ? outcome_json(&answer->best) : json_null(),
        "aggregated", answer->aggregated_found ? outcome_json(&answer->aggregated) : json_null(),
        "disaggregate", answer->disaggregate, "saving", number(answer->saving), "ttft_cost_s",
        number(answer->ttft_cost_s), "verdict", answer->verdict, "why_not", answer->why_not,
        "lengths", lengths_json(report), "goodput",
        report->has_pair ? curve_json(report) : json_null(), "variants", variants_json(report));
    if (report->explained)
        json_object_set(root, "explained", lines);
    json_decref(lines);
    return root;
}
