#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/option.h"

#define MAX_ARGUMENTS 8

static const char *const colours[] = {"red", "green", NULL};

static struct {
    const char *name;
    const char *empty;
    int64_t count;
    int64_t offset;
    double ratio;
    bool fast;
    bool slow;
    int64_t wait_ns;
    int64_t period_ns;
    int colour;
} got;

static const struct bt_option table[] = {
    {"name", BT_OPTION_STRING, &got.name, .metavar = "WHO", .help = "Whose."},
    {"empty", BT_OPTION_STRING, &got.empty, ""},
    {"chunk-count", BT_OPTION_INT, &got.count, "4k", 1, 1 << 20, .help = "How many."},
    {"offset", BT_OPTION_INT, &got.offset, "-3"},
    {"ratio", BT_OPTION_DOUBLE, &got.ratio, "0.5", 0.25, 1},
    {"fast", BT_OPTION_BOOL, &got.fast, "false"},
    {"slow", BT_OPTION_BOOL, &got.slow, "true"},
    {"wait", BT_OPTION_DURATION, &got.wait_ns, "30s", 0, 60},
    {"period", BT_OPTION_DURATION, &got.period_ns, "500ms"},
    {"colour", BT_OPTION_CHOICE, &got.colour, "green", .choices = colours},
    {0},
};

/* Splits `line` at spaces; the words stay valid until the next call. */
static enum bt_status parse(const struct bt_option *options, const char *line,
                            struct bt_error *error, int *ret_used)
{
    static char words[512];
    char *argv[MAX_ARGUMENTS] = {(char *)"program"};
    int argc = 1;
    strcpy(words, line);
    for (char *word = strtok(words, " "); word; word = strtok(NULL, " ")) {
        assert_true(argc < MAX_ARGUMENTS);
        argv[argc++] = word;
    }
    *error = (struct bt_error){0};
    return bt_option_parse(options, "usage: program", argc, argv, error, ret_used);
}

static void accept(const char *line)
{
    struct bt_error error;
    if (parse(table, line, &error, NULL) != BT_OK) {
        fail_msg("'%s': %s", line, error.text);
    }
}

/* Refused, and the message holds all of `words` (split at '|'). */
static void refuse(const char *line, const char *words)
{
    struct bt_error error;
    assert_int_equal(parse(table, line, &error, NULL), BT_ERR_INVALID_ARGUMENT);
    char copy[256];
    strcpy(copy, words);
    for (char *word = strtok(copy, "|"); word; word = strtok(NULL, "|")) {
        if (!strstr(error.text, word)) {
            fail_msg("'%s': the message '%s' has no '%s'", line, error.text, word);
        }
    }
}

static void test_defaults(void **state)
{
    (void)state;
    accept("");
    assert_null(got.name);
    assert_string_equal(got.empty, "");
    assert_int_equal(got.count, 4096);
    assert_int_equal(got.offset, -3);
    assert_true(got.ratio == 0.5);
    assert_false(got.fast);
    assert_true(got.slow);
    assert_true(got.wait_ns == INT64_C(30000000000));
    assert_true(got.period_ns == 500000000);
    assert_int_equal(got.colour, 1);
}

static void test_flags(void **state)
{
    (void)state;
    accept("--name=a=b --chunk-count 1m --ratio=0.75 --fast --slow=false");
    assert_string_equal(got.name, "a=b");
    assert_int_equal(got.count, 1 << 20);
    assert_true(got.ratio == 0.75);
    assert_true(got.fast);
    assert_false(got.slow);
    accept("--name --fast --colour red --wait=1.5 --period 2m");
    assert_string_equal(got.name, "--fast"); /* a value is a value */
    assert_false(got.fast);
    assert_int_equal(got.colour, 0);
    assert_true(got.wait_ns == 1500000000);
    assert_true(got.period_ns == INT64_C(120000000000));
    accept("--name= --offset -7 --period 250us");
    assert_string_equal(got.name, "");
    assert_int_equal(got.offset, -7);
    assert_true(got.period_ns == 250000);
    accept("--offset -8g --period 1h --wait 0");
    assert_true(got.offset == INT64_C(-8) * (1 << 30));
    assert_true(got.period_ns == INT64_C(3600000000000));
    assert_true(got.wait_ns == 0);
}

static void test_refusals(void **state)
{
    (void)state;
    refuse("--nothing 1", "--nothing|unknown");
    refuse("--chunk", "--chunk|unknown"); /* no abbreviations */
    refuse("--chunk-count-x=1", "unknown");
    refuse("-n 1", "-n|unknown");
    refuse("--=3", "unknown");
    refuse("--fast --fast", "--fast|twice");
    refuse("--name", "--name|value");
    refuse("--chunk-count 0", "--chunk-count|'0'|1..1048576");
    refuse("--chunk-count 2m", "--chunk-count|'2m'|range");
    refuse("--chunk-count 12x", "--chunk-count|'12x'");
    refuse("--chunk-count=", "--chunk-count|''");
    refuse("--chunk-count 1.5", "'1.5'");
    refuse("--chunk-count 0x10", "'0x10'");
    refuse("--offset 9223372036854775808", "'9223372036854775808'");
    refuse("--offset 9223372036854775807k", "'9223372036854775807k'");
    refuse("--ratio 0.2", "--ratio|'0.2'|0.25..1");
    refuse("--ratio nan", "'nan'");
    refuse("--ratio inf", "'inf'");
    refuse("--ratio 1e999", "'1e999'");
    refuse("--ratio 0.5x", "'0.5x'");
    refuse("--ratio 0x1p-1", "'0x1p-1'");
    refuse("--fast=yes", "--fast|'yes'|true or false");
    refuse("--wait 61s", "--wait|'61s'|0s..60s");
    refuse("--wait -1s", "'-1s'");
    refuse("--wait 5 --period 3 days", "unexpected|'days'");
    refuse("--period 3weeks", "'3weeks'");
    refuse("--period 1e300", "'1e300'");
    refuse("--colour blue", "--colour|'blue'|red, green");
    refuse("word", "'word'");
}

static void test_environment(void **state)
{
    (void)state;
    setenv("BATON_CHUNK_COUNT", "77", 1);
    setenv("BATON_FAST", "true", 1);
    accept("");
    assert_int_equal(got.count, 77);
    assert_true(got.fast);
    accept("--chunk-count 78 --fast=false"); /* the flag wins */
    assert_int_equal(got.count, 78);
    assert_false(got.fast);
    setenv("BATON_CHUNK_COUNT", "many", 1);
    refuse("", "BATON_CHUNK_COUNT|'many'");
    accept("--chunk-count 1");
    unsetenv("BATON_CHUNK_COUNT");
    unsetenv("BATON_FAST");
}

static void test_required(void **state)
{
    (void)state;
    const char *model;
    const struct bt_option options[] = {{"model", BT_OPTION_STRING, &model, .required = true}, {0}};
    struct bt_error error;
    assert_int_equal(parse(options, "", &error, NULL), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "--model"));
    assert_non_null(strstr(error.text, "BATON_MODEL"));
    setenv("BATON_MODEL", "here", 1);
    assert_int_equal(parse(options, "", &error, NULL), BT_OK);
    assert_string_equal(model, "here");
    unsetenv("BATON_MODEL");
}

static void test_rest_of_the_line(void **state)
{
    (void)state;
    struct bt_error error;
    int used = 0;
    assert_int_equal(parse(table, "--fast up --slow", &error, &used), BT_OK);
    assert_int_equal(used, 2);
    assert_int_equal(parse(table, "--fast -- --slow", &error, &used), BT_OK);
    assert_int_equal(used, 3);
    assert_int_equal(parse(table, "--fast - x", &error, &used), BT_OK);
    assert_int_equal(used, 2);
    assert_int_equal(parse(table, "--fast", &error, &used), BT_OK);
    assert_int_equal(used, 2);
}

/* "-c 3" is "--count 3", and nothing else is. */
static void test_letters(void **state)
{
    (void)state;
    int64_t count;
    bool fast;
    struct bt_error error;
    const struct bt_option options[] = {
        {"count", BT_OPTION_INT, &count, "1", .letter = 'c'},
        {"fast", BT_OPTION_BOOL, &fast, "false", .letter = 'f'},
        {"quiet", BT_OPTION_STRING, &(const char *){NULL}},
        {0},
    };
    assert_int_equal(parse(options, "-c 3 -f", &error, NULL), BT_OK);
    assert_int_equal(count, 3);
    assert_true(fast);
    assert_int_equal(parse(options, "-f", &error, NULL), BT_OK);
    assert_int_equal(count, 1);
    assert_int_equal(parse(options, "-c -3", &error, NULL), BT_OK);
    assert_int_equal(count, -3);
    static const struct {
        const char *line, *part;
    } bad[] = {
        {"-q x", "'-q'"},           {"-c=3", "'-c=3'"},
        {"-c3", "'-c3'"},           {"-fc 3", "'-fc'"},
        {"-C 3", "'-C'"},           {"-c", "--count: needs"},
        {"--c 3", "'--c'"},         {"-count 3", "'-count'"},
        {"-c x", "--count"},        {"-c 1 --count 2", "--count: given twice"},
        {"-f -f", "--fast: given"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(parse(options, bad[i].line, &error, NULL), BT_ERR_INVALID_ARGUMENT);
        if (!strstr(error.text, bad[i].part)) {
            fail_msg("'%s': '%s' is not in '%s'", bad[i].line, bad[i].part, error.text);
        }
    }
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    bt_option_print_help(options, "usage: program", out);
    fclose(out);
    assert_non_null(strstr(text, "\n  -c, --count N\n"));
    assert_non_null(strstr(text, "\n  -f, --fast\n"));
    assert_non_null(strstr(text, "\n  --quiet "));
    free(text);
}

static void test_the_nearest_is_named(void **state)
{
    (void)state;
    refuse("--colur red", "'--colur'; did you mean --colour?");
    refuse("--wiat=3", "'--wiat=3'; did you mean --wait?");
    struct bt_error error;
    assert_int_equal(parse(table, "--xyzzy 3", &error, NULL), BT_ERR_INVALID_ARGUMENT);
    assert_null(strstr(error.text, "did you mean"));
}

static void test_help(void **state)
{
    (void)state;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    bt_option_print_help(table, "usage: program", out);
    fclose(out);
    assert_memory_equal(text, "usage: program\n", 15);
    assert_non_null(strstr(text, "--name WHO\n        Whose.\n        (string, env BATON_NAME)\n"));
    assert_non_null(strstr(text, "--chunk-count N\n        How many.\n        "
                                 "(int, default 4k, range 1..1048576, env BATON_CHUNK_COUNT)\n"));
    assert_non_null(strstr(text, "(duration, default 30s, range 0s..60s, env BATON_WAIT)\n"));
    assert_non_null(strstr(text, "(red|green, default green, env BATON_COLOUR)\n"));
    assert_non_null(strstr(text, "(string, default \"\", env BATON_EMPTY)\n"));
    free(text);
    struct bt_error error;
    assert_int_equal(parse(table, "--fast --help", &error, NULL), BT_ERR_CANCELLED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_flags),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_required),
        cmocka_unit_test(test_rest_of_the_line),
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_letters),
        cmocka_unit_test(test_the_nearest_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
