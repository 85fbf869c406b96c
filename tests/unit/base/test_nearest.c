#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/nearest.h"

static const char *nearest_of(const char *word, const char *const *offered)
{
    struct bt_nearest nearest = {.word = word};
    for (; *offered; offered++)
        bt_nearest_offer(&nearest, *offered);
    return nearest.best;
}

static void expect(const char *word, const char *offered, bool near)
{
    const char *best = nearest_of(word, (const char *const[]){offered, NULL});
    if ((best != NULL) != near)
        fail_msg("'%s' and '%s': %s, expected %s", word, offered, best ? "near" : "far",
                 near ? "near" : "far");
}

static void test_one_letter(void **state)
{
    (void)state;
    expect("status", "status", true);
    expect("statsu", "status", true);  /* swapped */
    expect("sttus", "status", true);   /* one is missing */
    expect("statuss", "status", true); /* one too many */
    expect("ststus", "status", true);  /* another */
    expect("ge", "get", true);         /* one in three is at least one */
    expect("tg", "gt", true);
}

static void test_how_far(void **state)
{
    (void)state;
    expect("kitten", "sitting", false); /* three edits of six letters: the textbook's */
    expect("sittin", "sitting", true);
    expect("outptu", "output", true);
    expect("abcdef", "abcxyf", true);  /* two of six */
    expect("abcdef", "abxyzf", false); /* three */
    expect("abcd", "abxy", true);      /* two of four: 4/3, rounded up */
    expect("abc", "axy", false);       /* two of three */
    expect("ca", "abc", false);        /* swapped, and then torn apart: not one edit */
    expect("x", "y", false);           /* nothing of it is left */
    expect("x", "xy", false);
}

static void test_a_beginning(void **state)
{
    (void)state;
    expect("tok", "tokenize", true);
    expect("max", "max-generated-tokens", true);
    expect("to", "tokenize", false); /* two letters begin too much */
    expect("okenize-this", "okenize", false);
}

static void test_the_nearest(void **state)
{
    (void)state;
    static const char *const verbs[] = {"start", "state", "status", "stats", NULL};
    assert_string_equal(nearest_of("statu", verbs), "state"); /* the first of three as near */
    assert_string_equal(nearest_of("status", verbs), "status");
    assert_string_equal(nearest_of("stast", verbs), "start"); /* before "stats", as near */
    static const char *const beginnings[] = {"plan-model", "plans", NULL};
    assert_string_equal(nearest_of("plan", beginnings), "plans"); /* an edit beats a beginning */
    assert_null(nearest_of("xyzzyx", verbs));
}

static void test_sizes(void **state)
{
    (void)state;
    char longest[64], longer[65];
    memset(longest, 'a', 63);
    longest[63] = '\0';
    memset(longer, 'a', 64);
    longer[64] = '\0';
    expect("", "a", false);
    expect("a", "", false);
    expect("", "", false);
    expect(longest, longest, true);
    expect(longer, longer, false);
    expect(longest, longer, false);
    expect(longer, longest, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_letter),  cmocka_unit_test(test_how_far),
        cmocka_unit_test(test_a_beginning), cmocka_unit_test(test_the_nearest),
        cmocka_unit_test(test_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
