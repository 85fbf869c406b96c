/* What the core counts of its decisions: why a worker was chosen, what attempts were repeated for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "router/core.h"
#include "tests/unit/router/core_driver.h"

static struct rt_core_counts counts(void)
{
    struct rt_core_counts all;
    rt_core_counts(core, &all);
    return all;
}

static void check_chosen(enum rt_role role, uint64_t only, uint64_t prefix, uint64_t policy)
{
    struct rt_core_counts all = counts();
    assert_int_equal(all.chosen[role][RT_CHOICE_ONLY], only);
    assert_int_equal(all.chosen[role][RT_CHOICE_PREFIX], prefix);
    assert_int_equal(all.chosen[role][RT_CHOICE_POLICY], policy);
}

static void test_choices(void **state)
{
    (void)state;
    core_open(NULL);
    rt_worker_ref p0 = worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 1000);
    submit(1, 100, 5);
    grant(1, 901);
    check_chosen(RT_ROLE_PREFILL, 1, 0, 0);
    check_chosen(RT_ROLE_DECODE, 1, 0, 0);
    worker_add("p1", RT_ROLE_PREFILL, 0);
    submit(2, 100, 5);
    grant(2, 902);
    check_chosen(RT_ROLE_PREFILL, 1, 0, 1);
    check_chosen(RT_ROLE_DECODE, 2, 0, 0);
    worker_add("d1", RT_ROLE_DECODE, 1000);
    struct rt_cached cached = {p0, 4096};
    struct rt_request_spec spec = {.id = 3,
                                   .prompt_tokens = 5000,
                                   .max_tokens = 5,
                                   .arrival_ns = now,
                                   .deadline_ns = BT_NEVER_NS,
                                   .cached = &cached,
                                   .cached_count = 1};
    assert_int_equal(rt_core_submit(core, &spec, now, NULL, NULL), BT_OK);
    assert_int_equal(next(RT_ACTION_RESERVE, 3).prefill, p0);
    check_chosen(RT_ROLE_PREFILL, 1, 1, 1);
    check_chosen(RT_ROLE_DECODE, 2, 0, 1);
}

/* One more of this cause, and of no other. */
static void check_retried(struct rt_core_counts before, enum rt_retry_cause cause)
{
    struct rt_core_counts after = counts();
    for (int i = 0; i < RT_RETRY_CAUSES; i++) {
        if (after.retried[i] - before.retried[i] != (i == (int)cause)) {
            fail_msg("%s is counted %d times instead of %s once", rt_retry_cause_names[i],
                     (int)(after.retried[i] - before.retried[i]), rt_retry_cause_names[cause]);
        }
    }
}

static void refuse(uint64_t request, enum bt_status status)
{
    struct rt_action reserve = next(RT_ACTION_RESERVE, request);
    rt_core_reserved(core, request, reserve.attempt, reserve.decode, status, "because", 0, now);
}

static void test_causes(void **state)
{
    (void)state;
    struct rt_core_options options = default_options;
    options.max_attempts = 100;
    core_open(&options);
    rt_worker_ref p0 = worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("p1", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 1000);
    worker_add("d1", RT_ROLE_DECODE, 1000);
    submit(1, 100, 5);
    struct rt_core_counts before = counts();
    refuse(1, BT_ERR_EXHAUSTED);
    check_retried(before, RT_RETRY_REFUSED);
    before = counts();
    refuse(1, BT_ERR_INTERNAL);
    check_retried(before, RT_RETRY_RESERVE_FAILED);
    next(RT_ACTION_CANCEL_DECODE, 1);
    now += BT_NS_PER_S; /* who refused is asked again */
    rt_core_tick(core, now);
    before = counts();
    struct rt_action run = grant(1, 901);
    run_ended(&run, BT_ERR_CORRUPT);
    next(RT_ACTION_CANCEL_DECODE, 1);
    check_retried(before, RT_RETRY_HANDOFF_FAILED);
    now += BT_NS_PER_S;
    rt_core_tick(core, now);
    before = counts();
    run = grant(1, 902);
    first_token(&run, 100);
    next_tokens(1, 0, 1);
    run_ended(&run, BT_OK);
    decode_failed(&run, BT_ERR_PREEMPTED);
    check_retried(before, RT_RETRY_PREEMPTED);
    before = counts();
    run = grant(1, 903);
    rt_core_worker_lost(core, run.prefill, "killed", now);
    check_retried(before, RT_RETRY_WORKER_LOST);
    assert_true(run.prefill == p0 || run.prefill == p0 + 1);
}

#define TEST(name) cmocka_unit_test_teardown(name, core_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_choices),
        TEST(test_causes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
