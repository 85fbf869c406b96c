/* The cluster counted in slices: against a count of what the test registered. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "router/survey.h"

#define SLICE 100

static struct rt_core *make_core(void)
{
    const struct rt_core_options options = {.queue_capacity = 64,
                                            .max_attempts = 3,
                                            .expected_output_tokens = 64,
                                            .silent_after_ns = BT_NS_PER_S,
                                            .lost_after_ns = 10 * BT_NS_PER_S,
                                            .reserve_retry_ns = BT_NS_PER_S,
                                            .prefill_depth_ns = BT_NS_PER_S,
                                            .prefill_base_ns = 1000,
                                            .prefill_token_ns = 10};
    struct rt_core *core = rt_core_create(&options);
    assert_non_null(core);
    return core;
}

/* group 0: of one rank. */
static rt_worker_ref add(struct rt_core *core, const char *id, enum rt_role role, uint64_t group,
                         uint32_t rank, uint32_t size, uint32_t pages_free)
{
    struct rt_worker_info info = {.incarnation = 1000 + group * 64 + rank, .role = role};
    struct bt_error error = {0};
    rt_worker_ref ref;
    snprintf(info.id, sizeof info.id, "%s", id);
    if (group > 0) {
        info.group = (struct rt_group_member){.incarnation = group, .rank = rank, .size = size};
        snprintf(info.group.name, sizeof info.group.name, "group-%u", (unsigned)group);
    }
    info.max_model_len = 4096;
    info.load =
        (struct rt_load){.pages_total = 100, .pages_free = pages_free, .running = 2, .waiting = 1};
    if (rt_core_worker_register(core, &info, 1, &error, &ref) != BT_OK) {
        fail_msg("%s", error.text);
    }
    rt_core_worker_connected(core, ref, 1);
    return ref;
}

static const struct rt_survey_result *look(struct rt_survey *survey, const struct rt_core *core,
                                           unsigned *ret_slices)
{
    *ret_slices = 1;
    while (!rt_survey_go_on(survey, core, SLICE)) {
        assert_true(++*ret_slices < 10000);
    }
    return rt_survey_last(survey);
}

static void test_sums(void **state)
{
    (void)state;
    struct rt_core *core = make_core();
    struct rt_survey *survey = rt_survey_create();
    unsigned slices;
    add(core, "p", RT_ROLE_PREFILL, 0, 0, 1, 100);
    add(core, "d.0", RT_ROLE_DECODE, 7, 0, 2, 20);
    add(core, "d.1", RT_ROLE_DECODE, 7, 1, 2, 60);
    rt_worker_ref single = add(core, "single", RT_ROLE_DECODE, 0, 0, 1, 0);
    const struct rt_survey_result *result = look(survey, core, &slices);
    assert_int_equal(slices, 1);
    assert_int_equal(result->roles[RT_ROLE_PREFILL].ranks, 1);
    const struct rt_survey_sum *decode = &result->roles[RT_ROLE_DECODE];
    assert_int_equal(decode->states[RT_WORKER_READY], 3);
    assert_int_equal(decode->pages_total, 300);
    assert_int_equal(decode->pages_free, 80);
    assert_int_equal(decode->running, 6);
    assert_float_equal(decode->kv_max, 1, 1e-12);
    assert_float_equal(decode->kv_sum / decode->kv_ranks, 2.2 / 3, 1e-12);
    assert_int_equal(result->tile_counts[RT_ROLE_DECODE], 2);
    const struct rt_survey_sum *tiles = result->tiles[RT_ROLE_DECODE];
    assert_string_equal(tiles[0].name, "group-7");
    assert_int_equal(tiles[0].ranks, 2);
    assert_float_equal(tiles[0].kv_max, 0.8, 1e-12);
    assert_string_equal(tiles[1].name, "single");

    rt_core_worker_lost(core, single, "gone", 2);
    result = look(survey, core, &slices);
    decode = &result->roles[RT_ROLE_DECODE];
    assert_int_equal(decode->states[RT_WORKER_LOST], 1);
    assert_int_equal(decode->ranks, 3);
    assert_int_equal(decode->pages_total, 200); /* those of the lost one are no more */
    assert_int_equal(decode->running, 4);
    rt_survey_destroy(survey);
    rt_core_destroy(core);
}

static void test_requests(void **state)
{
    (void)state;
    struct rt_core *core = make_core();
    struct rt_survey *survey = rt_survey_create();
    unsigned slices;
    add(core, "p", RT_ROLE_PREFILL, 0, 0, 1, 100);
    rt_worker_ref decode = add(core, "d", RT_ROLE_DECODE, 0, 0, 1, 100);
    struct rt_action action;
    for (uint64_t id = 1; id <= 3; id++) {
        const struct rt_request_spec spec = {.id = id,
                                             .prompt_tokens = 10,
                                             .max_tokens = 5,
                                             .arrival_ns = 1,
                                             .deadline_ns = BT_NEVER_NS};
        struct bt_error error = {0};
        assert_int_equal(rt_core_submit(core, &spec, 1, &error, NULL), BT_OK);
    }
    while (rt_core_next_action(core, &action)) {
    }
    rt_core_reserved(core, 1, 1, decode, BT_OK, NULL, 5, 2);
    while (rt_core_next_action(core, &action)) {
    }
    const struct rt_survey_result *result = look(survey, core, &slices);
    uint32_t sum = 0;
    for (int i = 0; i <= RT_DECODING; i++) {
        sum += result->requests[i];
    }
    assert_int_equal(sum, 3);
    assert_int_equal(result->requests[RT_PREFILLING], 1);
    rt_survey_destroy(survey);
    rt_core_destroy(core);
}

/* More groups than tiles, looked at a hundred ranks at a time. */
static void test_many(void **state)
{
    (void)state;
    struct rt_core *core = make_core();
    struct rt_survey *survey = rt_survey_create();
    unsigned slices;
    const uint32_t groups = RT_SURVEY_TILES + 20;
    for (uint32_t rank = 0; rank < 2; rank++) { /* ranks of a group come far from each other */
        for (uint32_t group = 1; group <= groups; group++) {
            char id[32];
            snprintf(id, sizeof id, "d-%u.%u", group, rank);
            add(core, id, RT_ROLE_DECODE, group, rank, 2, 50);
        }
    }
    for (int pass = 0; pass < 3; pass++) {
        const struct rt_survey_result *result = look(survey, core, &slices);
        assert_int_equal(slices, 2 * groups / SLICE + 1);
        assert_int_equal(result->roles[RT_ROLE_DECODE].ranks, 2 * groups);
        assert_int_equal(result->tile_counts[RT_ROLE_DECODE], RT_SURVEY_TILES + 1);
        const struct rt_survey_sum *tiles = result->tiles[RT_ROLE_DECODE];
        for (uint32_t i = 0; i < RT_SURVEY_TILES; i++) {
            char name[32];
            snprintf(name, sizeof name, "group-%u", i + 1);
            assert_string_equal(tiles[i].name, name);
            assert_int_equal(tiles[i].ranks, 2);
        }
        assert_string_equal(tiles[RT_SURVEY_TILES].name, "");
        assert_int_equal(tiles[RT_SURVEY_TILES].ranks, 40);
    }
    rt_survey_destroy(survey);
    rt_core_destroy(core);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_requests),
        cmocka_unit_test(test_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
