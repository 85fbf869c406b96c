/* batonctl autoscale: looks, decides, scales, again and again. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "deploy/batonctl/autoscale_look.h"
#include "deploy/batonctl/autoscale_plan.h"
#include "deploy/batonctl/interrupt.h"

#define LOST_LOOKS 3 /* in a row, after which a cluster that is not found is gone */

struct autoscale {
    struct ctl_target target;
    struct ctl_engine_values engine_values;
    int64_t ttft_ns, tpot_ns, interval_ns, drain_ns, wait_ns, rounds, cores;
    int64_t least[CTL_ROLES], most[CTL_ROLES], total, min_samples, step_up, step_down;
    bool dry_run, once;
    int output;
    const char *model, *hardware, *calibration;

    struct ctl_autoscale_policy policy;
    struct ctl_autoscale_plan plan;
    struct ctl_autoscaler scaler;
    struct ctl_autoscale_looker looker;
    struct ctl_engine *engine;
    int interrupt;
    bool quit;
};

static const char usage[] =
    "batonctl autoscale [OPTIONS]\n\n"
    "Keeps TTFT and TPOT within targets with as few workers as do, until it is interrupted. Each\n"
    "look is explained in a line: what was measured, what is needed, and what is done about it.\n\n"
    "  batonctl autoscale --ttft-p90 500ms --tpot-p90 50ms --max-prefill 4 --max-decode 8\n"
    "  batonctl autoscale --dry-run --once\n\n"
    "  verdicts: keep (right as it is), wait (if it stays so), hold (too little is known now),\n"
    "  act, and in a dry run `would`. With --output json one object a line.";

/* ---- what is asked for */

static enum bt_status read_policy(struct autoscale *autoscale, struct bt_error *error)
{
    struct ctl_autoscale_policy *policy = &autoscale->policy;
    policy->ttft_s = (double)autoscale->ttft_ns / 1e9;
    policy->tpot_s = (double)autoscale->tpot_ns / 1e9;
    for (int role = 0; role < CTL_ROLES; role++) {
        policy->least[role] = (uint32_t)autoscale->least[role];
        policy->most[role] = (uint32_t)autoscale->most[role];
    }
    policy->total = autoscale->total > 0 ? (uint32_t)autoscale->total
                                         : policy->most[CTL_PREFILL] + policy->most[CTL_DECODE];
    policy->min_samples = (uint64_t)autoscale->min_samples;
    policy->step_up = (uint32_t)autoscale->step_up;
    policy->step_down = (uint32_t)autoscale->step_down;
    policy->stale_ns = 3 * autoscale->interval_ns > policy->stale_ns ? 3 * autoscale->interval_ns
                                                                     : policy->stale_ns;
    if (autoscale->once) { /* what is now is taken for what has been */
        policy->up_ns = policy->down_ns = policy->warmup_ns = 0;
    }
    if ((autoscale->model == NULL) != (autoscale->hardware == NULL) ||
        (autoscale->calibration && !autoscale->model)) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "the planner needs --model and --hardware, both");
    }
    return ctl_autoscale_policy_check(policy, error);
}

static enum bt_status read_plan(struct autoscale *autoscale, struct bt_error *error)
{
    if (!autoscale->model) {
        ctl_autoscaler_init(&autoscale->scaler, &autoscale->policy, NULL);
        return BT_OK;
    }
    enum bt_status status =
        ctl_autoscale_plan_init(&autoscale->plan, autoscale->model, autoscale->hardware,
                                (uint32_t)autoscale->cores, autoscale->calibration, error);
    ctl_autoscaler_init(&autoscale->scaler, &autoscale->policy, &autoscale->plan.predictor);
    return status;
}

/* ---- what is said */

static void clock_text(char ret_text[16])
{
    time_t now = (time_t)(bt_clock_unix_ns() / BT_NS_PER_S);
    struct tm local;
    localtime_r(&now, &local);
    strftime(ret_text, 16, "%H:%M:%S", &local);
}

static void step(void *context, const char *text)
{
    (void)context;
    char line[600];
    snprintf(line, sizeof line, "%.*s", (int)sizeof line - 1, text);
    ctl_text_flatten(line);
    fprintf(stderr, "batonctl autoscale: %s\n", line);
}

static const char *verdict_text(const struct autoscale *autoscale,
                                const struct ctl_autoscale_decision *decision)
{
    return decision->verdict == CTL_AUTOSCALE_ACT && autoscale->dry_run
               ? "would"
               : ctl_autoscale_verdict_name(decision->verdict);
}

static void print_line(const struct autoscale *autoscale,
                       const struct ctl_autoscale_decision *decision)
{
    char when[16];
    const uint32_t *now = autoscale->scaler.counts;
    clock_text(when);
    printf("%s %-5s %u:%u", when, verdict_text(autoscale, decision), now[CTL_PREFILL],
           now[CTL_DECODE]);
    if (decision->verdict == CTL_AUTOSCALE_ACT) {
        printf(" -> %u:%u", decision->wanted[CTL_PREFILL], decision->wanted[CTL_DECODE]);
    }
    for (uint32_t i = 0; i < decision->reason_count; i++) {
        printf("%s %s", i > 0 ? ";" : " ", decision->reasons[i]);
    }
    if (autoscale->looker.trouble[0]) {
        printf(" (%s)", autoscale->looker.trouble);
    }
    printf("\n");
}

static json_t *number_json(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *roles_json(const uint32_t counts[CTL_ROLES])
{
    return json_pack("{s:I,s:I}", "prefill", (json_int_t)counts[CTL_PREFILL], "decode",
                     (json_int_t)counts[CTL_DECODE]);
}

static json_t *seen_json(const struct ctl_autoscale_seen *seen)
{
    const struct ctl_autoscale_sample *sample = &seen->sample;
    return json_pack("{s:f,s:b,s:I,s:I,s:o,s:o,s:f,s:f,s:f,s:f,s:I,s:I,s:f}", "window_s",
                     seen->window_s, "partial", seen->partial, "ttft_samples",
                     (json_int_t)seen->ttft_count, "tpot_samples", (json_int_t)seen->tpot_count,
                     "ttft_p90_s", number_json(seen->ttft_count > 0 ? sample->ttft_s : NAN),
                     "tpot_p90_s", number_json(seen->tpot_count > 0 ? sample->tpot_s : NAN),
                     "requests_per_s", sample->load.requests_s, "input_tokens",
                     sample->load.input_tokens, "output_tokens", sample->load.output_tokens,
                     "cached_share", sample->load.cached_share, "queued", (json_int_t)seen->queued,
                     "running", (json_int_t)seen->running, "decode_full", sample->full);
}

static json_t *decision_json(const struct autoscale *autoscale,
                             const struct ctl_autoscale_seen *seen,
                             const struct ctl_autoscale_decision *decision)
{
    json_t *reasons = json_array();
    for (uint32_t i = 0; i < decision->reason_count; i++) {
        json_array_append_new(reasons, json_string(decision->reasons[i]));
    }
    return json_pack(
        "{s:I,s:s,s:b,s:o,s:o,s:o,s:o,s:{s:o,s:o,s:o,s:o},s:o,s:o,s:s}", "unix_ns",
        (json_int_t)bt_clock_unix_ns(), "verdict", ctl_autoscale_verdict_name(decision->verdict),
        "dry_run", autoscale->dry_run, "workers", roles_json(autoscale->scaler.counts), "wanted",
        roles_json(decision->wanted), "needed", roles_json(decision->need), "with_headroom",
        roles_json(decision->comfortable), "predicted", "ttft_p90_s", number_json(decision->ttft_s),
        "tpot_p90_s", number_json(decision->tpot_s), "prefill_busy", number_json(decision->busy),
        "decode_full", number_json(decision->full), "measured", seen_json(seen), "reasons", reasons,
        "trouble", autoscale->looker.trouble);
}

/* False: nobody reads it any more. */
static bool tell(const struct autoscale *autoscale, const struct ctl_autoscale_seen *seen,
                 const struct ctl_autoscale_decision *decision)
{
    if (autoscale->output == CTL_OUTPUT_TABLE) {
        print_line(autoscale, decision);
        return fflush(stdout) == 0;
    }
    json_t *json = decision_json(autoscale, seen, decision);
    int failed = json ? json_dumpf(json, stdout, JSON_COMPACT) : -1;
    json_decref(json);
    printf("\n");
    return !failed && fflush(stdout) == 0;
}

/* ---- rounds */

static enum bt_status act(struct autoscale *autoscale,
                          const struct ctl_autoscale_decision *decision, struct bt_error *error)
{
    const struct ctl_scale scale = {
        .wanted = {decision->wanted[CTL_PREFILL], decision->wanted[CTL_DECODE]},
        .drain_ns = autoscale->drain_ns,
        .wait_ns = autoscale->wait_ns,
    };
    enum bt_status status = autoscale->engine->ops->scale(autoscale->engine, &scale, error);
    ctl_autoscaler_acted(&autoscale->scaler, decision, bt_clock_now_ns(), status == BT_OK);
    if (status == BT_OK || status == BT_ERR_CANCELLED) {
        return status;
    }
    char text[BT_ERROR_TEXT_SIZE + 40];
    snprintf(text, sizeof text, "scaling failed, and is tried again later: %.400s", error->text);
    step(NULL, text);
    return autoscale->once ? status : BT_OK;
}

static enum bt_status round_once(struct autoscale *autoscale, struct bt_error *error)
{
    struct ctl_autoscale_seen seen;
    struct ctl_autoscale_decision decision;
    uint32_t window_s = ctl_autoscaler_window_s(&autoscale->scaler, bt_clock_now_ns());
    enum bt_status status =
        ctl_autoscale_look(&autoscale->looker, autoscale->engine, window_s, error, &seen);
    if (status == BT_OK && autoscale->model) {
        status = ctl_autoscale_plan_ranks(&autoscale->plan, autoscale->looker.ranks, error);
    }
    if (status != BT_OK) {
        return status;
    }
    ctl_autoscaler_decide(&autoscale->scaler, &seen, &decision);
    if (!tell(autoscale, &seen, &decision)) {
        return bt_error_set(error, BT_ERR_IO, "can't write to stdout");
    }
    if (autoscale->once && seen.stats_ns == 0) {
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "%s", autoscale->looker.trouble);
    }
    return decision.verdict == CTL_AUTOSCALE_ACT && !autoscale->dry_run
               ? act(autoscale, &decision, error)
               : BT_OK;
}

static void on_signal(void *context)
{
    struct autoscale *autoscale = context;
    struct bt_error error;
    if (ctl_interrupt_check(autoscale->interrupt, &error) == BT_ERR_CANCELLED) {
        autoscale->quit = true;
        bt_loop_stop(autoscale->looker.loop);
    }
}

static void sleep_until(struct autoscale *autoscale, int64_t until_ns)
{
    while (!autoscale->quit && bt_clock_now_ns() < until_ns) {
        if (bt_loop_run_once(autoscale->looker.loop, until_ns, NULL) != BT_OK) {
            autoscale->quit = true;
        }
    }
}

/* An error of a look is said and waited out, unless nothing was ever seen, or the cluster is gone.
 */
static enum bt_status run(struct autoscale *autoscale, struct bt_error *error)
{
    int lost = 0;
    bool begun = false;
    for (int64_t round = 0; !autoscale->quit; round++) {
        int64_t next_ns = bt_clock_now_ns() + autoscale->interval_ns;
        enum bt_status status = round_once(autoscale, error);
        if (status == BT_ERR_CANCELLED || autoscale->quit) {
            return BT_OK;
        }
        lost = status == BT_ERR_NOT_FOUND ? lost + 1 : 0;
        if (status != BT_OK &&
            (!begun || autoscale->once || status == BT_ERR_IO || lost == LOST_LOOKS)) {
            return status;
        }
        if (status != BT_OK) {
            step(NULL, error->text);
        }
        begun = true;
        if (autoscale->once || round + 1 == autoscale->rounds) {
            return BT_OK;
        }
        sleep_until(autoscale, next_ns);
    }
    return BT_OK;
}

static enum bt_status open_all(struct autoscale *autoscale, struct bt_error *error)
{
    const struct ctl_progress progress = {step, NULL};
    enum bt_status status =
        ctl_autoscale_looker_init(&autoscale->looker, &autoscale->target, error);
    if (status == BT_OK) {
        status = ctl_engine_open(&autoscale->target, &autoscale->engine_values, &progress, error,
                                 &autoscale->engine);
    }
    if (status == BT_OK) {
        status = ctl_interrupt_hold(error, &autoscale->interrupt);
    }
    if (status == BT_OK &&
        !bt_loop_add_fd(autoscale->looker.loop, autoscale->interrupt, on_signal, autoscale)) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for signals");
    }
    return status;
}

static void close_all(struct autoscale *autoscale)
{
    ctl_engine_close(autoscale->engine);
    ctl_autoscale_looker_finish(&autoscale->looker);
    if (autoscale->interrupt >= 0) {
        close(autoscale->interrupt);
    }
}

int ctl_verb_autoscale(int argc, char **argv)
{
    static struct autoscale a;
    a = (struct autoscale){.interrupt = -1};
    ctl_autoscale_policy_init(&a.policy);
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(a.target),
        CTL_ENDPOINT_OPTIONS(a.target),
        CTL_ENGINE_OPTIONS(a.engine_values),
        {"ttft-p90", BT_OPTION_DURATION, &a.ttft_ns, "500ms", 0, 86400,
         .help = "target of the time to the first token; 0: none"},
        {"tpot-p90", BT_OPTION_DURATION, &a.tpot_ns, "50ms", 0, 86400,
         .help = "target of the time between later tokens, of a request's mean; 0: none"},
        {"min-prefill", BT_OPTION_INT, &a.least[CTL_PREFILL], "1", 1, CTL_AUTOSCALE_WORKERS_MAX,
         .help = "prefill workers at least"},
        {"max-prefill", BT_OPTION_INT, &a.most[CTL_PREFILL], "8", 1, CTL_AUTOSCALE_WORKERS_MAX,
         .help = "and at most"},
        {"min-decode", BT_OPTION_INT, &a.least[CTL_DECODE], "1", 1, CTL_AUTOSCALE_WORKERS_MAX,
         .help = "decode workers at least"},
        {"max-decode", BT_OPTION_INT, &a.most[CTL_DECODE], "8", 1, CTL_AUTOSCALE_WORKERS_MAX,
         .help = "and at most"},
        {"total", BT_OPTION_INT, &a.total, "0", 0, 2 * CTL_AUTOSCALE_WORKERS_MAX,
         .help = "workers of both roles at most; where it is reached they change their role. 0: "
                 "what both may have"},
        {"interval", BT_OPTION_DURATION, &a.interval_ns, "10s", 0.1, 3600,
         .help = "between two looks"},
        {"scale-up-delay", BT_OPTION_DURATION, &a.policy.up_ns, "30s", 0, 86400,
         .help = "how long more workers must have been needed"},
        {"scale-down-delay", BT_OPTION_DURATION, &a.policy.down_ns, "5m", 0, 86400,
         .help = "how long fewer must have been enough; longer for a role that had to grow again"},
        {"cooldown", BT_OPTION_DURATION, &a.policy.cooldown_ns, "60s", 0, 86400,
         .help = "after an action; twice as long after each that failed"},
        {"warmup", BT_OPTION_DURATION, &a.policy.warmup_ns, "60s", 0, 86400,
         .help = "of a new worker, in which nothing that is measured counts"},
        {"window", BT_OPTION_DURATION, &a.policy.window_ns, "20s", 2, 100,
         .help = "what is measured has to be of so long at least"},
        {"headroom", BT_OPTION_DOUBLE, &a.policy.headroom, "1.25", 1.01, 10,
         .help = "how many times the load fewer workers would have to bear"},
        {"tolerance", BT_OPTION_DOUBLE, &a.policy.tolerance, "0.05", 0, 10,
         .help = "a target is missed when it is by this share of it"},
        {"min-samples", BT_OPTION_INT, &a.min_samples, "10", 1, 1000000,
         .help = "requests that something measured has to be of"},
        {"max-step-up", BT_OPTION_INT, &a.step_up, "4", 1, CTL_AUTOSCALE_WORKERS_MAX,
         .help = "workers of a role that come at once"},
        {"max-step-down", BT_OPTION_INT, &a.step_down, "1", 1, CTL_AUTOSCALE_WORKERS_MAX,
         .help = "and that go"},
        {"drain-deadline", BT_OPTION_DURATION, &a.drain_ns, "60s", 0, 86400,
         .help = "what runs on workers that go is finished there for as long; then elsewhere"},
        {"wait", BT_OPTION_DURATION, &a.wait_ns, "5m", 0.001, 86400,
         .help = "until new workers are ready"},
        {"model", BT_OPTION_STRING, &a.model, NULL, .metavar = "DIR",
         .help = "the planner's estimates predict, corrected by what is measured; without it only "
                 "what is measured does"},
        {"hardware", BT_OPTION_STRING, &a.hardware, NULL, .metavar = "NAME",
         .help = "for them: the workers' card, as `plan` knows it"},
        {"cores", BT_OPTION_INT, &a.cores, "0", 0, 4096,
         .help = "of a worker, where it is a cpu; 0: the catalogue's"},
        {"calibration", BT_OPTION_STRING, &a.calibration, NULL, .metavar = "FILE",
         .help = "for them: efficiencies, as `plan` knows them"},
        {"dry-run", BT_OPTION_BOOL, &a.dry_run, "false", .help = "only say what would be done"},
        {"once", BT_OPTION_BOOL, &a.once, "false",
         .help = "one look, as if it had been so for long, and one action if one is called for"},
        {"rounds", BT_OPTION_INT, &a.rounds, "0", 0, 1e12,
         .help = "looks, after which it ends; 0: until interrupted"},
        CTL_OUTPUT_OPTION(a.output),
        {0},
    };
    int code = ctl_parse(options, usage, argc, argv, NULL);
    if (code >= 0) {
        return code;
    }
    struct bt_error error = {0};
    enum bt_status status = read_policy(&a, &error);
    if (status == BT_OK) {
        status = read_plan(&a, &error);
    }
    if (status == BT_OK) {
        status = open_all(&a, &error);
    }
    if (status == BT_OK) {
        status = run(&a, &error);
    }
    close_all(&a);
    return status == BT_OK ? CTL_EXIT_OK : ctl_fail("autoscale", &error);
}
