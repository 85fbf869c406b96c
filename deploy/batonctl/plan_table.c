#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "deploy/batonctl/plan_report.h"

#define LAYOUTS_SHOWN 24

struct duration_text {
    char text[24];
};

static struct duration_text duration(double seconds)
{
    struct duration_text out;
    if (!isfinite(seconds))
        snprintf(out.text, sizeof(out.text), "-");
    else if (seconds >= 1)
        snprintf(out.text, sizeof(out.text), "%.3g s", seconds);
    else
        snprintf(out.text, sizeof(out.text), "%.3g ms", 1e3 * seconds);
    return out;
}

static double gb(double bytes)
{
    return bytes / 1e9;
}

static void print_head(const struct ctl_plan_report *report)
{
    const struct bt_plan_question *q = &report->question;
    const struct bt_plan_model *m = &q->model;
    double all = m->dense_parameters + m->moe_parameters;
    printf("model     %s: %.4g B parameters, %.4g B in attention and %.4g B beside it for a token; "
           "weights %s, KV %s\n",
           report->path, all / 1e9, m->attention_parameters / 1e9, m->active_parameters / 1e9,
           bt_plan_weights_name(report->weights), report->fp8_kv ? "fp8" : "bf16");
    if (!report->file.runs)
        printf("          Baton does not run it: %s\n", report->file.refusal);
    printf("cards     prefill %s (%s), decode %s (%s)\n", q->prefill_hardware.name,
           q->prefill_hardware.title, q->decode_hardware.name, q->decode_hardware.title);
    printf("load      %g requests/s, %g tokens in (%g%% cached), %g out\n", q->load.requests_per_s,
           q->load.input_tokens, 100 * q->load.cached_share, q->load.output_tokens);
    printf("limits    TTFT %s", duration(q->slo.ttft_s).text);
    printf(q->slo.quantile > 0 ? " at p%g" : " on average", 100 * q->slo.quantile);
    printf(", TPOT %s\n", duration(q->slo.tpot_s).text);
    printf("assuming  %s\n", q->calibration.source);
}

static void print_fit(const char *title, const struct bt_plan_survey *survey, bool decode)
{
    printf("\n%s\n%-18s %5s %10s %10s %7s %5s %10s %-8s %9s", title, "LAYOUT", "CARDS",
           "WEIGHTS GB", "USED GB", "MEMORY", "FITS", decode ? "STEP" : "PROMPT", "BOUND BY",
           "REQ/S");
    printf(decode ? " %6s\n" : "\n", "BATCH");
    for (size_t i = 0; i < survey->count && i < LAYOUTS_SHOWN; i++) {
        const struct bt_plan_choice *c = &survey->choices[i];
        printf("%-18s %5u %10.2f %10.2f %6.1f%% %5s %10s %-8s %9.4g",
               ctl_plan_layout_name(&c->pool.layout).text, c->cards, gb(c->memory.weight_bytes),
               gb(c->memory.total_bytes), 100 * c->memory.share, c->memory.fits ? "yes" : "no",
               duration(c->cost.seconds).text, bt_plan_bound_name(c->bound), c->requests_per_s);
        if (decode)
            printf(" %6u", c->max_batch);
        printf("\n");
    }
    if (survey->count > LAYOUTS_SHOWN)
        printf("… %zu more: --output json has all\n", survey->count - LAYOUTS_SHOWN);
}

static void print_lengths(const struct ctl_plan_report *report)
{
    printf("\nTTFT without a queue, and TPOT by sequences of a group (prefill %s, decode %s)\n",
           ctl_plan_layout_name(&report->prefill_pool.layout).text,
           ctl_plan_layout_name(&report->decode_pool.layout).text);
    printf("%-8s %9s %9s %9s %-8s", "TOKENS", "PREFILL", "HANDOFF", "TTFT", "BOUND BY");
    for (size_t b = 0; b < report->batch_count; b += 2)
        printf(" %10s%-3u", "TPOT b=", report->batches[b]);
    printf("\n");
    for (size_t i = 0; i < report->length_count; i++) {
        const struct ctl_plan_length *l = &report->lengths[i];
        printf("%-8.0f %9s %9s %9s %-8s", l->tokens, duration(l->prefill.seconds).text,
               duration(l->handoff.visible_s).text, duration(l->ttft_s).text,
               bt_plan_bound_name(l->bound));
        for (size_t b = 0; b < report->batch_count; b += 2)
            printf(" %13s", l->tpot_s[b] > 0 ? duration(l->tpot_s[b]).text : "no memory");
        printf("\n");
    }
}

static void print_cost(const char *phase, const struct bt_plan_cost *cost, enum bt_plan_bound bound)
{
    printf("  %-8s bound by %s: compute %s, memory %s, network %s, fixed %s; %s\n", phase,
           bt_plan_bound_name(bound), duration(cost->compute_s).text, duration(cost->memory_s).text,
           duration(cost->network_s).text, duration(cost->overhead_s).text,
           duration(cost->seconds).text);
}

static void print_outcome(const char *title, const struct bt_plan_outcome *o)
{
    printf("\n%s\n", title);
    if (o->aggregated)
        printf("  %u x %s = %u cards, chunks of %g\n", o->decode.pool.instances,
               ctl_plan_layout_name(&o->decode.pool.layout).text, o->cards, o->chunk_tokens);
    else
        printf("  P:D %u:%u  prefill %u x %s on %s, decode %u x %s on %s = %u cards\n",
               o->prefill.pool.instances, o->decode.pool.instances, o->prefill.pool.instances,
               ctl_plan_layout_name(&o->prefill.pool.layout).text, o->prefill_hardware.name,
               o->decode.pool.instances, ctl_plan_layout_name(&o->decode.pool.layout).text,
               o->decode_hardware.name, o->cards);
    printf("  cost %.4g an hour (relative), TTFT %s (waiting %s, handoff %s), TPOT %s, longest gap "
           "%s\n",
           o->cost_per_hour, duration(o->ttft_s).text, duration(o->prefill.wait_s).text,
           duration(o->handoff.visible_s).text, duration(o->tpot_s).text,
           duration(o->worst_gap_s).text);
    print_cost("prefill", &o->prefill.cost, o->prefill.bound);
    print_cost("decode", &o->decode.cost, o->decode.bound);
    printf("  prefill busy %.1f%%, MFU %.1f%%; decode batch %.4g of %u, bandwidth used %.1f%%\n",
           100 * o->prefill.utilisation, 100 * o->prefill.mfu, o->decode.batch, o->decode.max_batch,
           100 * o->decode.bandwidth_share);
}

static void print_variants(const struct ctl_plan_report *report)
{
    printf("\nWHAT CHANGES\n%-10s %8s %6s %10s %10s %10s\n", "WITH", "P:D", "CARDS", "COST/H",
           "TTFT", "TPOT");
    for (int i = 0; i < BT_PLAN_VARIANTS; i++) {
        const struct ctl_plan_variant *v = &report->variants[i];
        const struct bt_plan_outcome *o = &v->outcome;
        char ratio[24];
        if (!v->found) {
            printf("%-10s %s%s\n", bt_plan_variant_name(v->variant),
                   v->applies ? "limits not met: " : "", v->why_not);
            continue;
        }
        snprintf(ratio, sizeof(ratio), "%u:%u", o->prefill.pool.instances,
                 o->decode.pool.instances);
        printf("%-10s %8s %6u %10.4g %10s %10s\n", bt_plan_variant_name(v->variant), ratio,
               o->cards, o->cost_per_hour, duration(o->ttft_s).text, duration(o->tpot_s).text);
    }
}

static void print_curve(const struct ctl_plan_report *report)
{
    const struct bt_plan_curve *curve = &report->curve;
    size_t every = curve->count > 16 ? (curve->count + 15) / 16 : 1;
    printf("\nGOODPUT of %u cards by ratio (together: %.4g requests/s)\n%8s %10s %10s %10s\n",
           report->curve_cards, curve->aggregated, "P:D", "PREFILL", "DECODE", "BOTH");
    for (size_t i = 0; i < curve->count; i++) {
        const struct bt_plan_point *p = &curve->points[i];
        char ratio[24];
        if (i % every && i != curve->best)
            continue;
        snprintf(ratio, sizeof(ratio), "%u:%u", p->prefill_instances, p->decode_instances);
        printf("%8s %10.4g %10.4g %10.4g%s\n", ratio, p->prefill_limit, p->decode_limit, p->goodput,
               i == curve->best ? "  best" : "");
    }
}

void ctl_plan_print(const struct ctl_plan_report *report)
{
    const struct bt_plan_answer *answer = &report->answer;
    print_head(report);
    print_fit("PREFILL, one worker by layout", &report->prefill, false);
    print_fit("DECODE, one worker by layout", &report->decode, true);
    if (report->has_pair)
        print_lengths(report);
    if (report->given)
        print_outcome("AS NAMED", &answer->best);
    else if (answer->found)
        print_outcome("APART (prefill and decode)", &answer->best);
    if (answer->aggregated_found)
        print_outcome("TOGETHER (the same cards do both)", &answer->aggregated);
    if (report->has_pair && report->curve.count)
        print_curve(report);
    print_variants(report);
    if (report->lines.count)
        printf("\nEXPLAINED\n");
    for (size_t i = 0; i < report->lines.count; i++)
        printf("  %s\n", report->lines.line[i]);
    printf("\nVERDICT   %s\n", answer->verdict);
    if (answer->why_not[0])
        printf("          apart: %s\n", answer->why_not);
}
