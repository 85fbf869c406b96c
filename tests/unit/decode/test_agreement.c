/* What three ranks agree on, whatever each of them says: all come to the same, by the contract of
 * struct dc_consent. The group is the test's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "decode-node/agreement.h"

#define RANKS     3
#define WORDS_MAX 64

static struct exchange {
    uint64_t words[RANKS][WORDS_MAX];
    uint32_t count, said;
} exchange;

enum bt_status __wrap_bt_group_agree_begin(struct bt_group *group, const uint64_t *words,
                                           uint32_t count);
enum bt_status __wrap_bt_group_agree_finish(struct bt_group *group, uint64_t *ret_words);

enum bt_status __wrap_bt_group_agree_begin(struct bt_group *group, const uint64_t *words,
                                           uint32_t count)
{
    (void)group;
    assert_in_range(count, 1, WORDS_MAX);
    memcpy(exchange.words[exchange.said++ % RANKS], words, count * sizeof(*words));
    exchange.count = count;
    return BT_OK;
}

enum bt_status __wrap_bt_group_agree_finish(struct bt_group *group, uint64_t *ret_words)
{
    (void)group;
    for (uint32_t r = 0; r < RANKS; r++)
        memcpy(ret_words + (size_t)r * exchange.count, exchange.words[r],
               exchange.count * sizeof(*ret_words));
    return BT_OK;
}

/* The ranks say these, in every order, as none of them counts for more. */
static struct dc_consent agree(const struct dc_intent intents[RANKS])
{
    static uint64_t all[RANKS * WORDS_MAX];
    int group; /* only its address counts */
    struct dc_agreement agreement = {
        .group = (struct bt_group *)(void *)&group, .size = RANKS, .all = all};
    struct dc_consent consent = {0};
    for (uint32_t turn = 0; turn < RANKS; turn++) {
        struct bt_error error;
        struct dc_consent other;
        exchange.said = 0;
        for (uint32_t r = 0; r < RANKS; r++)
            assert_int_equal(dc_agreement_begin(&agreement, &intents[(r + turn) % RANKS], &error),
                             BT_OK);
        assert_int_equal(dc_agreement_end(&agreement, &error, &other), BT_OK);
        if (turn > 0) {
            assert_int_equal(other.goes_on, consent.goes_on);
            assert_int_equal(other.leaves, consent.leaves);
            assert_int_equal(other.steady, consent.steady);
            assert_int_equal(other.largest, consent.largest);
            assert_int_equal(other.drained, consent.drained);
        }
        consent = other;
    }
    return consent;
}

/* Steps go on behind each other where every rank can, and there is nothing but a step. */
static void test_goes_on(void **state)
{
    const struct dc_intent can = {.rows = 4, .drawing = 4, .flags = DC_RANK_GOES_ON};
    const struct dc_intent empty = {.flags = DC_RANK_GOES_ON};
    const struct {
        struct dc_intent odd;
        bool goes_on;
    } cases[] = {
        {can, true},
        {empty, true},
        {{.rows = 9, .drawing = 9, .flags = DC_RANK_GOES_ON}, true},
        {{.rows = 4, .drawing = 4}, false},
        {{.rows = 0}, false},
        {{.rows = 4, .drawing = 3, .flags = DC_RANK_GOES_ON}, false}, /* a replay */
        {{.rows = 4, .drawing = 4, .prompt_rows = 1, .flags = DC_RANK_GOES_ON}, false},
        {{.rows = 4, .drawing = 4, .flags = DC_RANK_GOES_ON | DC_RANK_LEAVES}, false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct dc_intent intents[RANKS] = {can, cases[i].odd, empty};
        if (agree(intents).goes_on != cases[i].goes_on)
            fail_msg("case %zu", i);
    }
    const struct dc_intent nothing[RANKS] = {empty, empty, empty};
    assert_false(agree(nothing).goes_on);
}

static void test_sizes_and_leaving(void **state)
{
    const struct dc_intent intents[RANKS] = {{.rows = 2, .drawing = 1, .prompt_rows = 64},
                                             {.rows = 7, .drawing = 7},
                                             {.prompt_rows = 65, .flags = DC_RANK_LEAVES}};
    const struct dc_consent consent = agree(intents);
    (void)state;
    assert_int_equal(consent.largest, 7);
    assert_int_equal(consent.prompts, 65);
    assert_int_equal(consent.drawing, 7);
    assert_true(consent.leaves);
    assert_false(consent.steady);
}

/* A will of one is not drained before all follow it and none is busy. */
static void test_drained(void **state)
{
    const struct dc_intent follows = {.will = 3};
    const struct {
        struct dc_intent odd;
        bool drained;
    } cases[] = {
        {follows, true},
        {{.will = 3, .flags = DC_RANK_BUSY}, false},
        {{.will = 2}, false},
        {{.will = 4}, false}, /* the last word: they serve */
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct dc_intent intents[RANKS] = {follows, cases[i].odd, follows};
        if (agree(intents).drained != cases[i].drained)
            fail_msg("case %zu", i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_goes_on),
                                       cmocka_unit_test(test_sizes_and_leaving),
                                       cmocka_unit_test(test_drained)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
