#include "deploy/batonctl/autoscale_decide.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"

#define NOT_SINCE     INT64_MIN
#define STRIKES_MOST  4
#define SOON          6 /* times down_ns: so soon after a role shrank it should not grow again */
#define SETTLE_MOST   5 /* times the warm-up: workers that come and go for longer are no excuse */
#define FAILURES_MOST 5
#define WINDOW_MOST_S 120
#define STEP_S        4    /* a window is longer than asked for by up to two steps of a router */
#define GROW_ROOM     1.1  /* a role grows to bear so many times the load */
#define NEAR          0.9  /* of a target: below it all is well, whatever the model says */
#define BACKLOG_S     30.0 /* in which a queue should be worked off */
#define BETTER        0.9  /* a change of role makes the worst strain less than this share of it */
#define OVERLOAD      10.0 /* strain of a role that does not keep up, times how busy it is */

static const char *const verdict_names[] = {"keep", "hold", "wait", "act"};

const char *ctl_autoscale_verdict_name(enum ctl_autoscale_verdict verdict)
{
    return verdict_names[verdict];
}

static const char *role_name(int role)
{
    return role == CTL_PREFILL ? "prefill" : "decode";
}

static double seconds(int64_t ns)
{
    return (double)ns / 1e9;
}

/* ---- policy */

void ctl_autoscale_policy_init(struct ctl_autoscale_policy *ret_policy)
{
    *ret_policy = (struct ctl_autoscale_policy){
        .ttft_s = 0.5,
        .tpot_s = 0.05,
        .quantile = 0.9,
        .least = {1, 1},
        .most = {64, 64},
        .total = 128,
        .up_ns = 30 * BT_NS_PER_S,
        .down_ns = 300 * BT_NS_PER_S,
        .cooldown_ns = 60 * BT_NS_PER_S,
        .warmup_ns = 60 * BT_NS_PER_S,
        .stale_ns = 30 * BT_NS_PER_S,
        .window_ns = 20 * BT_NS_PER_S,
        .headroom = 1.25,
        .tolerance = 0.05,
        .max_full = 0.85,
        .max_busy = 0.9,
        .step_up = 4,
        .step_down = 1,
        .min_samples = 10,
    };
}

static enum bt_status check_counts(const struct ctl_autoscale_policy *policy,
                                   struct bt_error *error)
{
    for (int role = 0; role < CTL_ROLES; role++) {
        if (policy->least[role] < 1 || policy->least[role] > policy->most[role] ||
            policy->most[role] > CTL_AUTOSCALE_WORKERS_MAX) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "between 1 and %d %s workers, the least no more than the most: "
                                "not %u to %u",
                                CTL_AUTOSCALE_WORKERS_MAX, role_name(role), policy->least[role],
                                policy->most[role]);
        }
    }
    if (policy->total < policy->least[CTL_PREFILL] + policy->least[CTL_DECODE]) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "a total of %u is less than the least of both roles, %u + %u",
                            policy->total, policy->least[CTL_PREFILL], policy->least[CTL_DECODE]);
    }
    return BT_OK;
}

enum bt_status ctl_autoscale_policy_check(const struct ctl_autoscale_policy *policy,
                                          struct bt_error *error)
{
    if (!(policy->ttft_s >= 0) || !(policy->tpot_s >= 0) || policy->ttft_s + policy->tpot_s <= 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "a target for TTFT or for TPOT is needed");
    }
    if (!(policy->headroom > 1) || !(policy->max_full > 0) || !(policy->max_busy > 0) ||
        policy->step_up < 1 || policy->step_down < 1) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "headroom has to be above 1, limits and steps above 0");
    }
    return check_counts(policy, error);
}

/* ---- words */

static void say(struct ctl_autoscale_decision *decision, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void say(struct ctl_autoscale_decision *decision, const char *format, ...)
{
    if (decision->reason_count == CTL_AUTOSCALE_REASONS_MAX) {
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(decision->reasons[decision->reason_count++], CTL_AUTOSCALE_REASON_SIZE, format,
              arguments);
    va_end(arguments);
}

/* "850 ms", "2.3 s", "without end". */
struct text {
    char text[24];
};

static struct text time_text(double s)
{
    struct text text;
    if (isnan(s)) {
        snprintf(text.text, sizeof text.text, "unknown");
    } else if (!(s < 1e4)) {
        snprintf(text.text, sizeof text.text, "without end");
    } else if (s < 1) {
        snprintf(text.text, sizeof text.text, "%.3g ms", s * 1e3);
    } else {
        snprintf(text.text, sizeof text.text, "%.3g s", s);
    }
    return text;
}

/* ---- what a load needs */

/* One decision on its way. */
struct thought {
    struct ctl_autoscaler *scaler;
    const struct ctl_autoscale_policy *policy;
    const struct ctl_autoscale_seen *seen;
    struct ctl_autoscale_decision *decision;
    struct ctl_autoscale_sample sample;
    struct ctl_autoscale_load load, backlog; /* now; and with the queue that is to be worked off */
    uint32_t now[CTL_ROLES];                 /* workers */
    bool measured_ttft, measured_tpot;       /* there are samples enough */
    bool waits_for_pages;
    double excess; /* requests queued beyond what the target allows */
};

static bool role_bears(const struct thought *thought, int role,
                       const struct ctl_autoscale_load *load, uint32_t workers)
{
    const struct ctl_autoscale_policy *policy = thought->policy;
    const struct ctl_autoscale_model *model = &thought->scaler->model;
    if (role == CTL_PREFILL) {
        return ctl_autoscale_busy(model, load, workers) <= policy->max_busy &&
               (policy->ttft_s <= 0 ||
                ctl_autoscale_ttft_s(model, load, workers) <= policy->ttft_s);
    }
    return ctl_autoscale_full(model, load, workers) <= policy->max_full &&
           isfinite(ctl_autoscale_tpot_s(model, load, workers)) &&
           (policy->tpot_s <= 0 || ctl_autoscale_tpot_s(model, load, workers) <= policy->tpot_s);
}

/* The least count that bears `times` the load; one more than the most: none does. Both sides get
 * better with each worker. */
static uint32_t least_that_bears(const struct thought *thought, int role,
                                 const struct ctl_autoscale_load *load, double times)
{
    struct ctl_autoscale_load more = *load;
    more.requests_s *= times;
    uint32_t low = thought->policy->least[role], high = thought->policy->most[role] + 1;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (role_bears(thought, role, &more, middle)) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

static uint32_t least_of(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t most_of(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* ---- when nothing can be said */

static void count_workers(struct thought *thought, bool *ret_coming, int64_t *ret_youngest_ns)
{
    *ret_coming = false;
    *ret_youngest_ns = INT64_MAX;
    for (uint32_t i = 0; i < thought->seen->worker_count; i++) {
        const struct ctl_autoscale_worker *worker = &thought->seen->workers[i];
        if (worker->ending) {
            continue;
        }
        if (!worker->ready) {
            *ret_coming = true;
            continue;
        }
        thought->now[worker->role]++;
        if (worker->age_ns < *ret_youngest_ns) {
            *ret_youngest_ns = worker->age_ns;
        }
    }
}

/* Stats count from when workers are as they are now, and warm. */
static void watch_fleet(struct thought *thought)
{
    struct ctl_autoscaler *scaler = thought->scaler;
    int64_t now_ns = thought->seen->now_ns, youngest_ns;
    bool coming, changed = false;
    count_workers(thought, &coming, &youngest_ns);
    for (int role = 0; role < CTL_ROLES; role++) {
        changed |= scaler->begun && scaler->counts[role] != thought->now[role];
        coming |= thought->seen->wanted[role] > thought->now[role];
        scaler->counts[role] = thought->now[role];
    }
    bool young = youngest_ns < thought->policy->warmup_ns;
    bool unsettled = coming || changed || young;
    if (!unsettled) {
        scaler->unsettled_ns = NOT_SINCE;
    } else if (scaler->unsettled_ns == NOT_SINCE) {
        scaler->unsettled_ns = now_ns;
    }
    bool patient = scaler->unsettled_ns == NOT_SINCE ||
                   now_ns - scaler->unsettled_ns < SETTLE_MOST * thought->policy->warmup_ns;
    if (unsettled && patient) {
        int64_t warm_ns =
            coming || !young ? now_ns : now_ns - youngest_ns + thought->policy->warmup_ns;
        scaler->clean_ns = warm_ns > scaler->clean_ns ? warm_ns : scaler->clean_ns;
    }
    scaler->begun = true;
}

/* Of a load whose requests come less often than samples are asked for, few samples say enough. */
static bool is_trickle(const struct thought *thought)
{
    const struct ctl_autoscale_seen *seen = thought->seen;
    return seen->queued == 0 &&
           seen->sample.load.requests_s * seen->window_s < (double)thought->policy->min_samples * 2;
}

static bool nothing_to_say(struct thought *thought)
{
    const struct ctl_autoscale_seen *seen = thought->seen;
    const struct ctl_autoscaler *scaler = thought->scaler;
    struct ctl_autoscale_decision *decision = thought->decision;
    int64_t now_ns = seen->now_ns, begun_ns = seen->stats_ns - (int64_t)(seen->window_s * 1e9);
    if (seen->stats_ns == 0) {
        say(decision, "no router has said anything yet");
    } else if (now_ns - seen->stats_ns > thought->policy->stale_ns) {
        say(decision, "no stats of a router for %.0f s", seconds(now_ns - seen->stats_ns));
    } else if (seen->partial) {
        say(decision, "not all routers answer: what they see of the load is missing");
    } else if (thought->now[CTL_PREFILL] == 0 || thought->now[CTL_DECODE] == 0) {
        say(decision, "no %s worker serves",
            role_name(thought->now[CTL_PREFILL] == 0 ? CTL_PREFILL : CTL_DECODE));
    } else if (begun_ns < scaler->clean_ns) {
        say(decision, "workers came, go or warm up: stats count from %s on",
            scaler->clean_ns > now_ns ? "later" : "then");
    } else if (seen->window_s < seconds(thought->policy->window_ns)) {
        say(decision, "stats are of %.0f s only, %.0f s are needed", seen->window_s,
            seconds(thought->policy->window_ns));
    } else if (!thought->measured_ttft && !thought->measured_tpot && !is_trickle(thought) &&
               thought->excess <= 0) {
        say(decision, "%llu and %llu samples are too few, %llu are needed",
            (unsigned long long)seen->ttft_count, (unsigned long long)seen->tpot_count,
            (unsigned long long)thought->policy->min_samples);
    } else {
        return false;
    }
    return true;
}

/* ---- roles */

static bool misses(double measured_s, double target_s, double tolerance)
{
    return target_s > 0 && measured_s > target_s * (1 + tolerance);
}

/* Whether what was measured speaks for more workers of a role at all. */
static bool strained(const struct thought *thought, int role)
{
    const struct ctl_autoscale_policy *policy = thought->policy;
    if (role == CTL_DECODE) {
        return thought->waits_for_pages || thought->sample.full > policy->max_full ||
               (thought->measured_tpot && policy->tpot_s > 0 &&
                thought->sample.tpot_s > NEAR * policy->tpot_s);
    }
    if (thought->waits_for_pages) {
        return false;
    }
    return thought->excess > 0 ||
           (thought->measured_ttft && policy->ttft_s > 0 &&
            thought->sample.ttft_s > NEAR * policy->ttft_s) ||
           (policy->ttft_s <= 0 && ctl_autoscale_knows(&thought->scaler->model, CTL_PREFILL) &&
            ctl_autoscale_busy(&thought->scaler->model, &thought->load, thought->now[CTL_PREFILL]) >
                policy->max_busy);
}

/* As measured, whatever the model says. */
static bool misses_now(const struct thought *thought, int role)
{
    const struct ctl_autoscale_policy *policy = thought->policy;
    if (role == CTL_DECODE) {
        return thought->waits_for_pages ||
               (thought->measured_tpot &&
                misses(thought->sample.tpot_s, policy->tpot_s, policy->tolerance));
    }
    return !thought->waits_for_pages &&
           (thought->excess > 0 ||
            (thought->measured_ttft &&
             misses(thought->sample.ttft_s, policy->ttft_s, policy->tolerance)));
}

static bool is_idle(const struct thought *thought)
{
    return thought->seen->queued == 0 && thought->seen->running == 0 &&
           !(thought->load.requests_s > 0);
}

static void say_role(struct thought *thought, int role)
{
    const struct ctl_autoscale_policy *policy = thought->policy;
    const struct ctl_autoscale_sample *sample = &thought->sample;
    bool prefill = role == CTL_PREFILL;
    double target = prefill ? policy->ttft_s : policy->tpot_s;
    bool measured = prefill ? thought->measured_ttft : thought->measured_tpot;
    double value = measured ? (prefill ? sample->ttft_s : sample->tpot_s) : NAN;
    char target_text[48] = "no target";
    if (target > 0) {
        snprintf(target_text, sizeof target_text, "target %s", time_text(target).text);
    }
    uint32_t need = thought->decision->need[role], most = policy->most[role];
    char needed[64] = "how many are needed is not known";
    if (need > most) {
        snprintf(needed, sizeof needed, "more than %u would be needed", most);
    } else if (need > 0) {
        snprintf(needed, sizeof needed, "%u needed, %u with headroom", need,
                 least_of(thought->decision->comfortable[role], most));
    }
    say(thought->decision, "%s: %s p%.3g %s, %s; %u workers, %s", role_name(role),
        prefill ? "TTFT" : "TPOT", policy->quantile * 100, time_text(value).text, target_text,
        thought->now[role], needed);
}

/* The counts that a role would grow and shrink to at once; its present one: it would not. */
static void think_of_role(struct thought *thought, int role, uint32_t *ret_more,
                          uint32_t *ret_fewer)
{
    const struct ctl_autoscale_policy *policy = thought->policy;
    struct ctl_autoscale_decision *decision = thought->decision;
    uint32_t now = thought->now[role], most = policy->most[role], least = policy->least[role];
    bool knows = ctl_autoscale_knows(&thought->scaler->model, role);
    const struct ctl_autoscale_load *load =
        role == CTL_PREFILL ? &thought->backlog : &thought->load;
    *ret_more = *ret_fewer = now;
    if (is_idle(thought)) {
        decision->need[role] = decision->comfortable[role] = least;
    } else if (knows) {
        decision->need[role] = least_that_bears(thought, role, load, 1);
        decision->comfortable[role] = least_that_bears(thought, role, load, policy->headroom);
    }
    uint32_t need = decision->need[role];
    if (strained(thought, role) && need > now) {
        *ret_more = need > most ? most : least_that_bears(thought, role, load, GROW_ROOM);
    }
    if (misses_now(thought, role)) {
        *ret_more = most_of(*ret_more, now + 1);
    }
    *ret_more = least_of(least_of(*ret_more, now + policy->step_up), most);
    *ret_more = most_of(*ret_more, least);
    uint32_t comfortable = decision->comfortable[role];
    if (comfortable > 0 && comfortable < now && !misses_now(thought, role)) {
        *ret_fewer = most_of(most_of(comfortable, least),
                             now > policy->step_down ? now - policy->step_down : 1);
    }
    if (now > most) {
        *ret_fewer = least_of(*ret_fewer, most);
        *ret_more = now;
    }
    say_role(thought, role);
}

/* ---- time */

static int64_t shrink_delay_ns(const struct thought *thought, int role)
{
    return thought->policy->down_ns << thought->scaler->trends[role].strikes;
}

/* The most careful of what was right all the time. */
static void follow(struct thought *thought, int role, uint32_t more, uint32_t fewer)
{
    struct ctl_autoscale_trend *trend = &thought->scaler->trends[role];
    uint32_t now = thought->now[role];
    int64_t now_ns = thought->seen->now_ns;
    if (more <= now) {
        trend->more_since_ns = NOT_SINCE;
    } else if (trend->more_since_ns == NOT_SINCE) {
        trend->more_since_ns = now_ns;
        trend->more = more;
    } else {
        trend->more = least_of(trend->more, more);
    }
    if (fewer >= now) {
        trend->fewer_since_ns = NOT_SINCE;
    } else if (trend->fewer_since_ns == NOT_SINCE) {
        trend->fewer_since_ns = now_ns;
        trend->fewer = fewer;
    } else {
        trend->fewer = most_of(trend->fewer, fewer);
    }
    int64_t calm_ns = 2 * SOON * shrink_delay_ns(thought, role);
    if (trend->strikes > 0 && now_ns - trend->shrank_ns > calm_ns) {
        trend->strikes--;
        trend->shrank_ns = now_ns;
    }
}

static bool is_ripe(int64_t since_ns, int64_t now_ns, int64_t delay_ns)
{
    return since_ns != NOT_SINCE && now_ns - since_ns >= delay_ns;
}

/* The count that the time has come for. */
static uint32_t ripe_count(struct thought *thought, int role)
{
    const struct ctl_autoscale_trend *trend = &thought->scaler->trends[role];
    struct ctl_autoscale_decision *decision = thought->decision;
    int64_t now_ns = thought->seen->now_ns, up_ns = thought->policy->up_ns,
            down_ns = shrink_delay_ns(thought, role);
    if (is_ripe(trend->more_since_ns, now_ns, up_ns)) {
        return trend->more;
    }
    if (is_ripe(trend->fewer_since_ns, now_ns, down_ns)) {
        return trend->fewer;
    }
    bool grows = trend->more_since_ns != NOT_SINCE;
    if (grows || trend->fewer_since_ns != NOT_SINCE) {
        decision->verdict = CTL_AUTOSCALE_WAIT;
        say(decision, "%s: to %u if it stays so for another %.0f s", role_name(role),
            grows ? trend->more : trend->fewer,
            grows ? seconds(up_ns - (now_ns - trend->more_since_ns))
                  : seconds(down_ns - (now_ns - trend->fewer_since_ns)));
    }
    return thought->now[role];
}

/* ---- within a total */

static double strain_of(const struct thought *thought, int role, uint32_t workers)
{
    const struct ctl_autoscale_policy *policy = thought->policy;
    const struct ctl_autoscale_model *model = &thought->scaler->model;
    const struct ctl_autoscale_load *load =
        role == CTL_PREFILL ? &thought->backlog : &thought->load;
    double target = role == CTL_PREFILL ? policy->ttft_s : policy->tpot_s, busy, value;
    if (!ctl_autoscale_knows(model, role)) {
        return workers == thought->now[role] ? 0 : OVERLOAD;
    }
    if (role == CTL_PREFILL) {
        busy = ctl_autoscale_busy(model, load, workers) / policy->max_busy;
        value = ctl_autoscale_ttft_s(model, load, workers);
    } else {
        busy = ctl_autoscale_full(model, load, workers) / policy->max_full;
        value = ctl_autoscale_tpot_s(model, load, workers);
    }
    if (!isfinite(value) || busy > 1) {
        return OVERLOAD * (isfinite(busy) ? fmax(busy, 1) : 1 + 1.0 / workers);
    }
    return fmin(OVERLOAD, target > 0 ? fmax(busy, value / target) : busy);
}

static double worst_strain(const struct thought *thought, const uint32_t counts[CTL_ROLES])
{
    return fmax(strain_of(thought, CTL_PREFILL, counts[CTL_PREFILL]),
                strain_of(thought, CTL_DECODE, counts[CTL_DECODE]));
}

/* Of the splits of the total the one with the least strain, if it is better by far. */
static void split_total(struct thought *thought, uint32_t wanted[CTL_ROLES])
{
    const struct ctl_autoscale_policy *policy = thought->policy;
    const uint32_t *now = thought->now;
    uint32_t total = policy->total, split[CTL_ROLES], best[CTL_ROLES];
    bool full_now = now[CTL_PREFILL] + now[CTL_DECODE] == total;
    double least = INFINITY;
    memcpy(best, now, sizeof best);
    for (uint32_t prefills = policy->least[CTL_PREFILL];
         prefills <= policy->most[CTL_PREFILL] && prefills + policy->least[CTL_DECODE] <= total;
         prefills++) {
        split[CTL_PREFILL] = prefills;
        split[CTL_DECODE] = least_of(total - prefills, policy->most[CTL_DECODE]);
        double strain = worst_strain(thought, split);
        if (strain < least) {
            least = strain;
            memcpy(best, split, sizeof best);
        }
    }
    double present = worst_strain(thought, now);
    say(thought->decision,
        "%u + %u are more than the total of %u: of its splits %u + %u is the best",
        wanted[CTL_PREFILL], wanted[CTL_DECODE], total, best[CTL_PREFILL], best[CTL_DECODE]);
    if (full_now && !(least < BETTER * present)) {
        say(thought->decision, "what is there is hardly worse, and stays");
        memcpy(best, now, sizeof best);
    }
    memcpy(wanted, best, sizeof best);
}

/* ---- all */

static void predict(struct thought *thought)
{
    struct ctl_autoscale_decision *decision = thought->decision;
    const struct ctl_autoscale_model *model = &thought->scaler->model;
    const uint32_t *wanted = decision->wanted;
    if (ctl_autoscale_knows(model, CTL_PREFILL) && wanted[CTL_PREFILL] > 0) {
        decision->ttft_s = ctl_autoscale_ttft_s(model, &thought->load, wanted[CTL_PREFILL]);
        decision->busy = ctl_autoscale_busy(model, &thought->load, wanted[CTL_PREFILL]);
    }
    if (ctl_autoscale_knows(model, CTL_DECODE) && wanted[CTL_DECODE] > 0) {
        decision->tpot_s = ctl_autoscale_tpot_s(model, &thought->load, wanted[CTL_DECODE]);
        decision->full = ctl_autoscale_full(model, &thought->load, wanted[CTL_DECODE]);
    }
}

/* What the sample says by itself. */
static void look(struct thought *thought)
{
    const struct ctl_autoscale_policy *policy = thought->policy;
    const struct ctl_autoscale_seen *seen = thought->seen;
    struct ctl_autoscale_load *last = &thought->scaler->load;
    thought->sample = seen->sample;
    thought->measured_ttft = seen->ttft_count >= policy->min_samples;
    thought->measured_tpot = seen->tpot_count >= policy->min_samples;
    if (seen->sample.load.input_tokens > 0 && seen->sample.load.output_tokens > 0) {
        *last = seen->sample.load;
    }
    last->requests_s = seen->sample.load.requests_s;
    thought->load = thought->sample.load = *last;
    const struct ctl_autoscale_stages *stages = &seen->sample.stages;
    double waits = stages->queue_s + stages->reserve_s;
    double all = waits + stages->prefill_queue_s + stages->compute_s + stages->rest_s;
    double patience_s = policy->ttft_s > 0 ? policy->ttft_s : 1;
    thought->excess = (double)seen->queued - (thought->load.requests_s * patience_s + 1);
    bool somebody_waits = thought->excess > 0 || waits > all / 2;
    thought->waits_for_pages =
        seen->sample.full > policy->max_full && somebody_waits && stages->prefill_queue_s <= waits;
    thought->backlog = thought->load;
    if (thought->excess > 0 && !thought->waits_for_pages) {
        thought->backlog.requests_s += thought->excess / BACKLOG_S;
    }
}

static void learn(struct thought *thought)
{
    struct ctl_autoscale_sample *sample = &thought->sample;
    memcpy(sample->workers, thought->now, sizeof thought->now);
    sample->ttft_good = thought->measured_ttft && !thought->waits_for_pages && thought->excess <= 0;
    if (!thought->measured_ttft) {
        sample->stages = (struct ctl_autoscale_stages){0};
    }
    if (!thought->measured_tpot) {
        sample->tpot_s = sample->tpot_median_s = 0;
    }
    ctl_autoscale_model_learn(&thought->scaler->model, sample);
}

static bool is_cooling(struct thought *thought)
{
    const struct ctl_autoscaler *scaler = thought->scaler;
    if (thought->seen->now_ns >= scaler->cool_ns) {
        return false;
    }
    say(thought->decision, "%s: nothing is done for another %.0f s",
        scaler->failures > 0 ? "the last action failed" : "the last action was just now",
        seconds(scaler->cool_ns - thought->seen->now_ns));
    return true;
}

static void think(struct thought *thought)
{
    struct ctl_autoscale_decision *decision = thought->decision;
    uint32_t wanted[CTL_ROLES];
    learn(thought);
    if (thought->waits_for_pages) {
        say(decision, "prompts wait for decode: its pages are %.0f%% in use",
            thought->sample.full * 100);
    }
    for (int role = 0; role < CTL_ROLES; role++) {
        uint32_t more, fewer;
        think_of_role(thought, role, &more, &fewer);
        follow(thought, role, more, fewer);
    }
    for (int role = 0; role < CTL_ROLES; role++) {
        wanted[role] = ripe_count(thought, role);
    }
    if (wanted[CTL_PREFILL] + wanted[CTL_DECODE] > thought->policy->total) {
        split_total(thought, wanted);
    }
    bool same = memcmp(wanted, thought->now, sizeof wanted) == 0;
    if (same || is_cooling(thought)) {
        decision->verdict = same ? decision->verdict : CTL_AUTOSCALE_WAIT;
        return;
    }
    decision->verdict = CTL_AUTOSCALE_ACT;
    memcpy(decision->wanted, wanted, sizeof wanted);
}

static void forget_trends(struct ctl_autoscaler *scaler)
{
    for (int role = 0; role < CTL_ROLES; role++) {
        scaler->trends[role].more_since_ns = scaler->trends[role].fewer_since_ns = NOT_SINCE;
    }
}

void ctl_autoscaler_init(struct ctl_autoscaler *autoscaler,
                         const struct ctl_autoscale_policy *policy,
                         const struct ctl_autoscale_predictor *predictor)
{
    *autoscaler = (struct ctl_autoscaler){
        .policy = *policy, .clean_ns = NOT_SINCE, .cool_ns = NOT_SINCE, .unsettled_ns = NOT_SINCE};
    ctl_autoscale_model_init(&autoscaler->model, predictor, policy->quantile);
    forget_trends(autoscaler);
}

uint32_t ctl_autoscaler_window_s(const struct ctl_autoscaler *autoscaler, int64_t now_ns)
{
    int64_t least_ns = autoscaler->policy.window_ns;
    double clean_s = autoscaler->clean_ns == NOT_SINCE
                         ? WINDOW_MOST_S
                         : seconds(now_ns - autoscaler->clean_ns) - STEP_S;
    double window_s = fmin(fmax(clean_s, 0), fmax(3 * seconds(least_ns), seconds(least_ns) + 1));
    return (uint32_t)fmin(window_s, WINDOW_MOST_S);
}

void ctl_autoscaler_decide(struct ctl_autoscaler *autoscaler, const struct ctl_autoscale_seen *seen,
                           struct ctl_autoscale_decision *ret_decision)
{
    struct thought thought = {.scaler = autoscaler,
                              .policy = &autoscaler->policy,
                              .seen = seen,
                              .decision = ret_decision};
    *ret_decision =
        (struct ctl_autoscale_decision){.ttft_s = NAN, .tpot_s = NAN, .busy = NAN, .full = NAN};
    watch_fleet(&thought);
    memcpy(ret_decision->wanted, thought.now, sizeof thought.now);
    look(&thought);
    if (nothing_to_say(&thought)) {
        ret_decision->verdict = CTL_AUTOSCALE_HOLD;
        if (autoscaler->unsettled_ns != NOT_SINCE ||
            seen->now_ns - autoscaler->thought_ns > autoscaler->policy.up_ns) {
            forget_trends(autoscaler);
        }
        return;
    }
    autoscaler->thought_ns = seen->now_ns;
    think(&thought);
    predict(&thought);
}

void ctl_autoscaler_acted(struct ctl_autoscaler *autoscaler,
                          const struct ctl_autoscale_decision *decision, int64_t now_ns, bool done)
{
    const struct ctl_autoscale_policy *policy = &autoscaler->policy;
    int64_t pause_ns = policy->cooldown_ns;
    forget_trends(autoscaler);
    autoscaler->clean_ns = now_ns;
    if (!done) {
        autoscaler->failures += autoscaler->failures < FAILURES_MOST;
        pause_ns <<= autoscaler->failures;
    } else {
        autoscaler->failures = 0;
    }
    autoscaler->cool_ns = now_ns + pause_ns;
    for (int role = 0; done && role < CTL_ROLES; role++) {
        struct ctl_autoscale_trend *trend = &autoscaler->trends[role];
        bool had_shrunk = trend->shrank_ns != 0;
        uint32_t before = autoscaler->counts[role];
        if (decision->wanted[role] < before) {
            trend->shrank_ns = now_ns;
        } else if (decision->wanted[role] > before && had_shrunk &&
                   now_ns - trend->shrank_ns < SOON * policy->down_ns &&
                   trend->strikes < STRIKES_MOST) {
            trend->strikes++;
        }
    }
}
