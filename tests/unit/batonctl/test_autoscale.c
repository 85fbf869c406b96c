/* The autoscaler's rules, one at a time: what it is shown is written by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "deploy/batonctl/autoscale_decide.h"

#define START_NS (1000 * BT_NS_PER_S)

static struct ctl_autoscale_policy policy;
static struct ctl_autoscaler scaler;
static struct ctl_autoscale_worker workers[64];
static struct ctl_autoscale_seen seen;
static struct ctl_autoscale_decision decision;

static void set_fleet(uint32_t prefills, uint32_t decodes)
{
    for (uint32_t i = 0; i < prefills + decodes; i++) {
        workers[i] = (struct ctl_autoscale_worker){i < prefills ? CTL_PREFILL : CTL_DECODE, true,
                                                   false, INT64_MAX};
    }
    seen.workers = workers;
    seen.worker_count = prefills + decodes;
    seen.wanted[CTL_PREFILL] = prefills;
    seen.wanted[CTL_DECODE] = decodes;
}

/* 2:2 at 5 requests/s: prompts of 50 ms are 0.125 of two workers' time; 5 * 99 * 16 ms = 8
 * sequences on two workers, a tenth of their pages. TTFT 130 of 500 ms, TPOT 18 of 50 ms: one of
 * each would do. */
static int setup(void **state)
{
    (void)state;
    ctl_autoscale_policy_init(&policy);
    policy.most[CTL_PREFILL] = policy.most[CTL_DECODE] = 8;
    ctl_autoscaler_init(&scaler, &policy, NULL);
    seen = (struct ctl_autoscale_seen){
        .now_ns = START_NS,
        .stats_ns = START_NS,
        .window_s = 60,
        .ttft_count = 300,
        .tpot_count = 300,
        .running = 10,
        .sample = {.load = {.requests_s = 5, .input_tokens = 1000, .output_tokens = 100},
                   .stages = {.queue_s = 0.01, .compute_s = 0.05, .rest_s = 0.002},
                   .ttft_s = 0.13,
                   .tpot_s = 0.018,
                   .tpot_median_s = 0.016,
                   .generated_s = 500,
                   .full = 0.1},
    };
    set_fleet(2, 2);
    return 0;
}

static enum ctl_autoscale_verdict decide(void)
{
    ctl_autoscaler_decide(&scaler, &seen, &decision);
    assert_in_range(decision.reason_count, 1, CTL_AUTOSCALE_REASONS_MAX);
    return decision.verdict;
}

static void pass(double seconds)
{
    seen.now_ns += (int64_t)(seconds * 1e9);
    seen.stats_ns = seen.now_ns;
}

/* The verdicts while nothing changes for so long, at a look every 10 s; the last one. */
static enum ctl_autoscale_verdict decide_for(double seconds)
{
    enum ctl_autoscale_verdict verdict = decide();
    for (double s = 10; s <= seconds && verdict != CTL_AUTOSCALE_ACT; s += 10) {
        pass(10);
        verdict = decide();
    }
    return verdict;
}

static void assert_wanted(uint32_t prefills, uint32_t decodes)
{
    assert_int_equal(decision.wanted[CTL_PREFILL], prefills);
    assert_int_equal(decision.wanted[CTL_DECODE], decodes);
}

static void assert_says(const char *words)
{
    for (uint32_t i = 0; i < decision.reason_count; i++) {
        if (strstr(decision.reasons[i], words)) {
            return;
        }
    }
    fail_msg("'%s' is not in '%s' …", words, decision.reasons[0]);
}

/* TTFT that prefill's queue makes; as in the world's figures but measured. */
static void miss_ttft(void)
{
    seen.sample.load.requests_s = 20;
    seen.sample.stages.queue_s = 0.9;
    seen.sample.ttft_s = 2;
}

static void miss_tpot(void)
{
    seen.sample.tpot_s = 0.08;
    seen.sample.tpot_median_s = 0.07;
}

/* ---- nothing can be said */

static void test_stale(void **state)
{
    (void)state;
    miss_ttft();
    seen.now_ns += policy.stale_ns + 1;
    assert_int_equal(decide(), CTL_AUTOSCALE_HOLD);
    assert_says("no stats of a router for 30 s");
    seen.stats_ns = 0;
    assert_int_equal(decide(), CTL_AUTOSCALE_HOLD);
    assert_says("no router");
    seen.stats_ns = seen.now_ns;
    assert_int_equal(decide(), CTL_AUTOSCALE_WAIT);
}

/* Half of the load, seen by half of the routers, is no reason to shrink. */
static void test_partial(void **state)
{
    (void)state;
    seen.partial = true;
    seen.sample.load.requests_s = 0.1;
    assert_int_equal(decide_for(4000), CTL_AUTOSCALE_HOLD);
    assert_says("not all routers");
}

static void test_few_samples(void **state)
{
    (void)state;
    miss_ttft();
    seen.ttft_count = seen.tpot_count = policy.min_samples - 1;
    assert_int_equal(decide_for(1000), CTL_AUTOSCALE_HOLD);
    assert_says("too few");
    seen.ttft_count++;
    assert_int_equal(decide(), CTL_AUTOSCALE_WAIT);
}

/* TTFT's samples are of first tokens only: where none comes at all, the queue tells. */
static void test_queue_without_samples(void **state)
{
    (void)state;
    assert_int_equal(decide(), CTL_AUTOSCALE_WAIT); /* fewer would do */
    seen.ttft_count = seen.tpot_count = 0;
    seen.queued = 500;
    assert_int_equal(decide_for(30), CTL_AUTOSCALE_ACT);
    assert_true(decision.wanted[CTL_PREFILL] > 2);
}

/* A request now and then gives no samples, but it can be seen that fewer workers would do. */
static void test_trickle(void **state)
{
    (void)state;
    decide();
    seen.sample.load.requests_s = 0.05;
    seen.ttft_count = seen.tpot_count = 3;
    assert_int_equal(decide_for(400), CTL_AUTOSCALE_ACT);
    assert_wanted(1, 1);
}

static void test_short_window(void **state)
{
    (void)state;
    miss_ttft();
    seen.window_s = 5; /* a router that has just been started */
    assert_int_equal(decide_for(100), CTL_AUTOSCALE_HOLD);
    assert_says("5 s only");
}

/* Stats that reach back to before a worker was warm do not count, however old it is by now. */
static void test_warmup(void **state)
{
    (void)state;
    miss_ttft();
    for (double age_s = 0; age_s < 60 + 60; age_s += 10) {
        workers[1].age_ns = (int64_t)(age_s * 1e9);
        assert_int_equal(decide(), CTL_AUTOSCALE_HOLD);
        assert_says("warm up");
        assert_true(ctl_autoscaler_window_s(&scaler, seen.now_ns) < 60);
        pass(10);
    }
    workers[1].age_ns = 121 * BT_NS_PER_S;
    pass(5);
    assert_int_equal(decide(), CTL_AUTOSCALE_WAIT);
}

/* Nor do those from before somebody else changed the fleet. */
static void test_fleet_changes(void **state)
{
    (void)state;
    decide();
    set_fleet(2, 1);
    miss_tpot();
    pass(10);
    assert_int_equal(decide(), CTL_AUTOSCALE_HOLD);
    pass(59);
    assert_int_equal(decide(), CTL_AUTOSCALE_HOLD);
    pass(2);
    assert_int_equal(decide(), CTL_AUTOSCALE_WAIT);
}

static void test_workers_that_come(void **state)
{
    (void)state;
    miss_ttft();
    workers[1].ready = false;
    assert_int_equal(decide_for(200), CTL_AUTOSCALE_HOLD);
    assert_says("workers came");
    /* One that never comes is no excuse for ever: 5 times the warm-up. */
    assert_int_equal(decide_for(400), CTL_AUTOSCALE_ACT);
    assert_true(decision.wanted[CTL_PREFILL] > 1);
}

static void test_no_workers(void **state)
{
    (void)state;
    set_fleet(2, 0);
    assert_int_equal(decide(), CTL_AUTOSCALE_HOLD);
    assert_says("no decode worker");
}

/* ---- which role */

static void test_ttft_is_prefills(void **state)
{
    (void)state;
    miss_ttft();
    assert_int_equal(decide_for(30), CTL_AUTOSCALE_ACT);
    assert_int_equal(decision.wanted[CTL_DECODE], 2);
    assert_in_range(decision.wanted[CTL_PREFILL], 3, 6);
    assert_says("prefill: TTFT p90 2 s, target 500 ms");
}

static void test_tpot_is_decodes(void **state)
{
    (void)state;
    miss_tpot();
    assert_int_equal(decide_for(30), CTL_AUTOSCALE_ACT);
    assert_int_equal(decision.wanted[CTL_PREFILL], 2);
    assert_in_range(decision.wanted[CTL_DECODE], 3, 6);
    assert_says("decode: TPOT p90 80 ms, target 50 ms");
}

/* TTFT misses, prefill has time, the pages are full: decode. */
static void test_wait_for_pages(void **state)
{
    (void)state;
    seen.sample.full = 0.97;
    seen.sample.ttft_s = 3;
    seen.sample.stages.queue_s = 1.2;
    seen.sample.stages.reserve_s = 0.8;
    assert_int_equal(decide_for(30), CTL_AUTOSCALE_ACT);
    assert_int_equal(decision.wanted[CTL_PREFILL], 2);
    assert_true(decision.wanted[CTL_DECODE] > 2);
    assert_says("wait for decode");
    /* Full pages that nobody waits for are decode's matter too, and no miss of prefill's. */
    setup(NULL);
    seen.sample.full = 0.97;
    assert_int_equal(decide_for(30), CTL_AUTOSCALE_ACT);
    assert_int_equal(decision.wanted[CTL_PREFILL], 2);
}

/* The queue is prefill's own: pages are full, but prompts wait in prefill. */
static void test_wait_in_prefill(void **state)
{
    (void)state;
    miss_ttft();
    seen.sample.stages.queue_s = 0.1;
    seen.sample.stages.prefill_queue_s = 1.5;
    seen.sample.full = 0.9;
    assert_int_equal(decide_for(30), CTL_AUTOSCALE_ACT);
    assert_true(decision.wanted[CTL_PREFILL] > 2);
}

/* One target alone: the other's quantile is nobody's business. */
static void test_no_target(void **state)
{
    (void)state;
    policy.tpot_s = 0;
    ctl_autoscaler_init(&scaler, &policy, NULL);
    miss_tpot();
    decide_for(400);
    assert_true(decision.wanted[CTL_DECODE] <= 2);
}

/* ---- time */

static void test_delays(void **state)
{
    (void)state;
    assert_int_equal(decide_for(290), CTL_AUTOSCALE_WAIT);
    assert_says("to 1 if it stays so");
    pass(10);
    assert_int_equal(decide(), CTL_AUTOSCALE_ACT);
    assert_wanted(1, 1);
    setup(NULL);
    miss_ttft();
    assert_int_equal(decide_for(20), CTL_AUTOSCALE_WAIT);
    pass(10);
    assert_int_equal(decide(), CTL_AUTOSCALE_ACT);
}

/* One look at which it was not right begins the delay anew. */
static void test_delay_begins_anew(void **state)
{
    (void)state;
    assert_int_equal(decide_for(290), CTL_AUTOSCALE_WAIT);
    struct ctl_autoscale_sample calm = seen.sample;
    seen.sample.load.requests_s = 9.5; /* two are right, one would not do */
    seen.sample.ttft_s = 0.3;
    seen.sample.generated_s = 950;
    seen.sample.tpot_s = 0.045;
    seen.sample.tpot_median_s = 0.042;
    pass(5);
    assert_int_equal(decide(), CTL_AUTOSCALE_KEEP);
    seen.sample = calm;
    pass(5);
    assert_int_not_equal(decide_for(200), CTL_AUTOSCALE_ACT);
}

/* Of all that was right in the meantime, the most careful: two, though one would do mostly. */
static void test_most_careful(void **state)
{
    (void)state;
    policy.step_down = 4;
    ctl_autoscaler_init(&scaler, &policy, NULL);
    set_fleet(4, 2);
    assert_int_equal(decide_for(100), CTL_AUTOSCALE_WAIT);
    assert_says("prefill: to 1 if");
    seen.sample.load.requests_s = 14; /* 0.7 of one worker: not with headroom */
    pass(10);
    assert_int_equal(decide(), CTL_AUTOSCALE_WAIT);
    assert_says("prefill: to 2 if");
    seen.sample.load.requests_s = 5;
    pass(10);
    assert_int_equal(decide_for(300), CTL_AUTOSCALE_ACT);
    assert_int_equal(decision.wanted[CTL_PREFILL], 2);
}

static void test_cooldown_and_failures(void **state)
{
    (void)state;
    int64_t pauses_s[] = {60, 120, 240, 480, 960, 1920, 1920};
    miss_ttft();
    for (int failures = 0; failures <= 6; failures++) {
        assert_int_equal(decide_for(4000), CTL_AUTOSCALE_ACT);
        ctl_autoscaler_acted(&scaler, &decision, seen.now_ns, failures == 0);
        int64_t acted_ns = seen.now_ns;
        pass(70); /* past the window */
        while (decide() != CTL_AUTOSCALE_ACT) {
            pass(10);
            assert_true(seen.now_ns - acted_ns < 4000 * BT_NS_PER_S);
        }
        int64_t waited_s = (seen.now_ns - acted_ns) / BT_NS_PER_S;
        assert_in_range(waited_s, pauses_s[failures], pauses_s[failures] + 120);
    }
    ctl_autoscaler_acted(&scaler, &decision, seen.now_ns, true);
    assert_int_equal(scaler.failures, 0);
}

/* A role that shrank and had to grow again waits twice as long before the next time. */
static void test_strikes(void **state)
{
    (void)state;
    assert_int_equal(decide_for(300), CTL_AUTOSCALE_ACT);
    assert_wanted(1, 1);
    ctl_autoscaler_acted(&scaler, &decision, seen.now_ns, true);
    struct ctl_autoscale_sample calm = seen.sample;
    set_fleet(1, 1);
    pass(10);
    decide();
    miss_ttft();
    pass(130);
    assert_int_equal(decide_for(60), CTL_AUTOSCALE_ACT);
    assert_true(decision.wanted[CTL_PREFILL] > 1);
    ctl_autoscaler_acted(&scaler, &decision, seen.now_ns, true);
    assert_int_equal(scaler.trends[CTL_PREFILL].strikes, 1);
    assert_int_equal(scaler.trends[CTL_DECODE].strikes, 0);
    seen.sample = calm;
    set_fleet(2, 1);
    pass(10);
    decide();
    pass(120);
    assert_int_not_equal(decide_for(580), CTL_AUTOSCALE_ACT);
    assert_int_equal(decide_for(60), CTL_AUTOSCALE_ACT);
    assert_wanted(1, 1);
}

/* ---- limits */

static void test_limits(void **state)
{
    (void)state;
    policy.least[CTL_DECODE] = 2;
    policy.most[CTL_PREFILL] = 3;
    policy.step_up = 1;
    ctl_autoscaler_init(&scaler, &policy, NULL);
    assert_int_equal(decide_for(300), CTL_AUTOSCALE_ACT);
    assert_wanted(1, 2);
    setup(NULL);
    policy.most[CTL_PREFILL] = 3;
    ctl_autoscaler_init(&scaler, &policy, NULL);
    miss_ttft();
    seen.sample.load.requests_s = 80;
    assert_int_equal(decide_for(30), CTL_AUTOSCALE_ACT);
    assert_wanted(3, 2);
    assert_says("more than 3 would be needed");
    set_fleet(6, 2); /* by hand, beyond the limit */
    pass(10);
    decide();
    pass(70);
    assert_int_equal(decide_for(400), CTL_AUTOSCALE_ACT);
    assert_wanted(3, 2);
}

static void test_least(void **state)
{
    (void)state;
    policy.least[CTL_PREFILL] = 3;
    policy.least[CTL_DECODE] = 4;
    ctl_autoscaler_init(&scaler, &policy, NULL);
    assert_int_equal(decide_for(30), CTL_AUTOSCALE_ACT);
    assert_wanted(3, 4);
}

static void test_idle(void **state)
{
    (void)state;
    seen.sample = (struct ctl_autoscale_sample){0};
    seen.ttft_count = seen.tpot_count = 0;
    seen.running = 0;
    set_fleet(5, 4);
    assert_int_equal(decide_for(300), CTL_AUTOSCALE_ACT);
    assert_wanted(4, 3); /* one at a time */
}

static void test_total_changes_roles(void **state)
{
    (void)state;
    policy.total = 8;
    ctl_autoscaler_init(&scaler, &policy, NULL);
    set_fleet(6, 2);
    miss_tpot();
    assert_int_equal(decide_for(30), CTL_AUTOSCALE_ACT);
    assert_int_equal(decision.wanted[CTL_PREFILL] + decision.wanted[CTL_DECODE], 8);
    assert_true(decision.wanted[CTL_DECODE] > 2 && decision.wanted[CTL_PREFILL] >= 1);
    assert_says("total of 8");
}

/* Another split of the total that is hardly better is not worth a change. */
static void test_total_stays(void **state)
{
    (void)state;
    policy.total = 4;
    policy.ttft_s = policy.tpot_s = 1e-4;
    ctl_autoscaler_init(&scaler, &policy, NULL);
    assert_int_equal(decide_for(400), CTL_AUTOSCALE_KEEP);
    assert_says("stays");
    assert_wanted(2, 2);
}

/* Those who wait already have to be worked off, too. */
static void test_backlog(void **state)
{
    (void)state;
    miss_ttft();
    seen.sample.load.requests_s = 50;
    assert_int_equal(decide_for(30), CTL_AUTOSCALE_ACT);
    uint32_t without = decision.wanted[CTL_PREFILL];
    setup(NULL);
    miss_ttft();
    seen.sample.load.requests_s = 50;
    seen.queued = 1200; /* 40/s of 30 s */
    assert_int_equal(decide_for(30), CTL_AUTOSCALE_ACT);
    assert_true(decision.wanted[CTL_PREFILL] > without);
}

static void test_policies(void **state)
{
    (void)state;
    struct ctl_autoscale_policy good = policy;
    assert_int_equal(ctl_autoscale_policy_check(&policy, NULL), BT_OK);
    policy.ttft_s = policy.tpot_s = 0;
    assert_int_equal(ctl_autoscale_policy_check(&policy, NULL), BT_ERR_INVALID_ARGUMENT);
    policy = good;
    policy.least[CTL_PREFILL] = 9;
    assert_int_equal(ctl_autoscale_policy_check(&policy, NULL), BT_ERR_INVALID_ARGUMENT);
    policy = good;
    policy.least[CTL_DECODE] = 0;
    assert_int_equal(ctl_autoscale_policy_check(&policy, NULL), BT_ERR_INVALID_ARGUMENT);
    policy = good;
    policy.total = 1;
    assert_int_equal(ctl_autoscale_policy_check(&policy, NULL), BT_ERR_INVALID_ARGUMENT);
    policy = good;
    policy.headroom = 1;
    assert_int_equal(ctl_autoscale_policy_check(&policy, NULL), BT_ERR_INVALID_ARGUMENT);
}

/* ---- the model */

static double say_prefill(void *context, double input_tokens, double cached_share)
{
    (void)context;
    return input_tokens * (1 - cached_share) * 1e-5; /* ten times as fast as it is */
}

static double say_step(void *context, double batch, double context_tokens)
{
    (void)context;
    (void)context_tokens;
    return 0.005 + 0.0005 * batch; /* half of it */
}

/* A predictor that is wrong by a factor is put right by what is measured. */
static void test_predictor_is_corrected(void **state)
{
    (void)state;
    static const struct ctl_autoscale_predictor wrong = {say_prefill, say_step, NULL};
    ctl_autoscaler_init(&scaler, &policy, &wrong);
    struct ctl_autoscale_load load = seen.sample.load;
    /* 5/s * 10 ms on 2 workers. */
    assert_float_equal(ctl_autoscale_busy(&scaler.model, &load, 2), 0.025, 1e-6);
    for (int i = 0; i < 30; i++) {
        decide();
        pass(10);
    }
    assert_float_equal(ctl_autoscale_busy(&scaler.model, &load, 2), 0.125, 0.005);
    double tpot = ctl_autoscale_tpot_s(&scaler.model, &load, 2);
    assert_float_equal(tpot, 0.018, 0.0005);
    load.cached_share = 0.5; /* half of a prompt's tokens, half of its time */
    assert_float_equal(ctl_autoscale_busy(&scaler.model, &load, 2), 0.0625, 0.0025);
}

/* Measured at two batches, the line is known at a third: 10 ms and 1 ms a sequence. */
static void test_line(void **state)
{
    (void)state;
    struct ctl_autoscale_model model;
    ctl_autoscale_model_init(&model, NULL, 0.9);
    for (int i = 0; i < 40; i++) {
        double batch = i % 2 ? 10 : 20, step = 0.01 + 0.001 * batch;
        struct ctl_autoscale_sample sample = {
            .tpot_s = step, .tpot_median_s = step, .generated_s = batch / step, .workers = {1, 1}};
        ctl_autoscale_model_learn(&model, &sample);
    }
    /* 1010 tokens/s on 3 workers: b = 337 * (0.01 + 0.001 b), b = 5.08. */
    struct ctl_autoscale_load load = {.requests_s = 10, .input_tokens = 100, .output_tokens = 102};
    assert_float_equal(ctl_autoscale_tpot_s(&model, &load, 3), 0.01508, 0.0001);
    /* On one worker a batch grows without end: 1010 * 0.001 > 1. */
    assert_true(isinf(ctl_autoscale_tpot_s(&model, &load, 1)));
}

/* A worker that has become twice as slow is known as such after some time. */
static void test_line_moves(void **state)
{
    (void)state;
    struct ctl_autoscale_model model;
    ctl_autoscale_model_init(&model, NULL, 0.9);
    for (int i = 0; i < 400; i++) {
        double batch = i % 2 ? 10 : 20, step = (0.01 + 0.001 * batch) * (i < 200 ? 1 : 2);
        struct ctl_autoscale_sample sample = {
            .tpot_s = step, .tpot_median_s = step, .generated_s = batch / step, .workers = {1, 1}};
        ctl_autoscale_model_learn(&model, &sample);
    }
    /* b = 337 * (0.02 + 0.002 b), b = 20.6. */
    struct ctl_autoscale_load load = {.requests_s = 10, .input_tokens = 100, .output_tokens = 102};
    assert_float_equal(ctl_autoscale_tpot_s(&model, &load, 3), 0.0612, 0.001);
}

/* A worker that computes several prompts together: each takes 1 s, 5 come a second, two workers
 * bear it and nobody waits. So they are no busier than 0.9, whatever 5 * 1 / 2 says. */
static void test_prompts_together(void **state)
{
    (void)state;
    struct ctl_autoscale_model model;
    ctl_autoscale_model_init(&model, NULL, 0.9);
    struct ctl_autoscale_sample sample = seen.sample;
    sample.stages.compute_s = 1;
    sample.workers[CTL_PREFILL] = sample.workers[CTL_DECODE] = 2;
    ctl_autoscale_model_learn(&model, &sample);
    assert_float_equal(ctl_autoscale_busy(&model, &sample.load, 2), 0.9, 1e-6);
    sample.stages.queue_s = 5; /* but if they wait it is as it seems */
    ctl_autoscale_model_init(&model, NULL, 0.9);
    ctl_autoscale_model_learn(&model, &sample);
    assert_float_equal(ctl_autoscale_busy(&model, &sample.load, 2), 2.5, 1e-6);
}

/* Both get better with each worker, whatever was learned; nothing is negative or NaN. */
static void test_hostile_numbers(void **state)
{
    (void)state;
    static const double odd[] = {0, 1e-12, 1e-3, 1, 37, 1e6, 1e15};
    for (uint64_t i = 0; i < 4000; i++) {
        uint64_t draw = bt_random_u64(11, i, 0);
#define ODD(shift) odd[(draw >> (shift)) % 7]
        seen.sample = (struct ctl_autoscale_sample){
            .load = {ODD(0), ODD(4), ODD(8), ODD(12)},
            .stages = {ODD(16), ODD(20), ODD(24), ODD(28), ODD(32)},
            .ttft_s = ODD(36),
            .tpot_s = ODD(40),
            .tpot_median_s = ODD(44),
            .generated_s = ODD(48),
            .full = ODD(52),
        };
        seen.queued = (uint32_t)(draw >> 33);
        seen.ttft_count = draw >> 20;
        seen.window_s = 60;
        set_fleet(1 + (uint32_t)(draw >> 5) % 8, 1 + (uint32_t)(draw >> 9) % 8);
        pass(i % 3 ? 10 : 100);
        enum ctl_autoscale_verdict verdict = decide();
        for (int role = 0; role < CTL_ROLES; role++) {
            assert_in_range(decision.wanted[role], 1, policy.most[role]);
        }
        if (verdict == CTL_AUTOSCALE_ACT) {
            ctl_autoscaler_acted(&scaler, &decision, seen.now_ns, draw % 2);
        }
        for (uint32_t count = 1; count < 8 && ctl_autoscale_knows(&scaler.model, 0); count++) {
            double fewer = ctl_autoscale_ttft_s(&scaler.model, &seen.sample.load, count);
            assert_true(fewer >= ctl_autoscale_ttft_s(&scaler.model, &seen.sample.load, count + 1));
            assert_false(isnan(fewer) || fewer < 0);
        }
        for (uint32_t count = 1; count < 8 && ctl_autoscale_knows(&scaler.model, 1); count++) {
            double fewer = ctl_autoscale_tpot_s(&scaler.model, &seen.sample.load, count);
            double more = ctl_autoscale_tpot_s(&scaler.model, &seen.sample.load, count + 1);
            assert_true(fewer >= more * (1 - 1e-6));
            assert_false(isnan(fewer) || fewer < 0);
        }
    }
}

#define TEST(name) cmocka_unit_test_setup(name, setup)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_stale),
        TEST(test_partial),
        TEST(test_few_samples),
        TEST(test_queue_without_samples),
        TEST(test_trickle),
        TEST(test_short_window),
        TEST(test_warmup),
        TEST(test_fleet_changes),
        TEST(test_workers_that_come),
        TEST(test_no_workers),
        TEST(test_ttft_is_prefills),
        TEST(test_tpot_is_decodes),
        TEST(test_wait_for_pages),
        TEST(test_wait_in_prefill),
        TEST(test_no_target),
        TEST(test_delays),
        TEST(test_delay_begins_anew),
        TEST(test_most_careful),
        TEST(test_cooldown_and_failures),
        TEST(test_strikes),
        TEST(test_limits),
        TEST(test_least),
        TEST(test_idle),
        TEST(test_total_changes_roles),
        TEST(test_total_stays),
        TEST(test_backlog),
        TEST(test_policies),
        TEST(test_predictor_is_corrected),
        TEST(test_line),
        TEST(test_line_moves),
        TEST(test_prompts_together),
        TEST(test_hostile_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
