/* Logs as they grow, shrink and are replaced: each time that the follower asks whether the process
 * lives, the test changes the file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "deploy/batonctl/interrupt.h"
#include "deploy/batonctl/log_follow.h"
#include "deploy/batonctl/verbs.h"

static char directory[] = "/tmp/baton-log-follow-XXXXXX", path[64], other_path[64];
static char *printed;
static size_t printed_size;

/* The real one is for the whole of Unicode. */
void ctl_text_flatten(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < ' ')
            *text = '?';
}

static void put(const char *where, const char *mode, const char *text)
{
    FILE *file = fopen(where, mode);
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* What it prints, into `printed`. */
static enum bt_status follow(struct ctl_log_follow *values)
{
    struct bt_error error;
    free(printed);
    FILE *real = stdout;
    stdout = open_memstream(&printed, &printed_size);
    assert_non_null(stdout);
    values->path = path;
    enum bt_status status = ctl_log_follow(values, &error);
    fclose(stdout);
    stdout = real;
    return status;
}

static void expect_tail(int64_t tail, const char *expected)
{
    struct ctl_log_follow values = {.tail = tail, .interrupt = -1};
    assert_int_equal(follow(&values), BT_OK);
    assert_string_equal(printed, expected);
}

static void test_tail(void **state)
{
    (void)state;
    put(path, "w", "one\ntwo\n\nfour\n");
    expect_tail(-1, "one\ntwo\n\nfour\n");
    expect_tail(0, "");
    expect_tail(1, "four\n");
    expect_tail(2, "\nfour\n");
    expect_tail(3, "two\n\nfour\n");
    expect_tail(4, "one\ntwo\n\nfour\n");
    expect_tail(5, "one\ntwo\n\nfour\n");
    expect_tail(INT64_MAX, "one\ntwo\n\nfour\n");
    put(path, "a", "begun");
    expect_tail(0, "");
    expect_tail(1, "begun\n");
    expect_tail(2, "four\nbegun\n");
    expect_tail(5, "one\ntwo\n\nfour\nbegun\n");
    put(path, "w", "");
    expect_tail(0, "");
    expect_tail(3, "");
    expect_tail(-1, "");
    put(path, "w", "\n");
    expect_tail(1, "\n");
    expect_tail(2, "\n");
}

/* Lines that begin on either side of the pieces that are searched backwards. */
static void test_tail_of_many(void **state)
{
    (void)state;
    enum { LINES = 3 * CTL_LOG_LINE_MAX / 16 };
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int i = 0; i < LINES; i++)
        fprintf(file, "%015d\n", i);
    assert_int_equal(fclose(file), 0);
    static const int tails[] = {1,
                                CTL_LOG_LINE_MAX / 16 - 1,
                                CTL_LOG_LINE_MAX / 16,
                                CTL_LOG_LINE_MAX / 16 + 1,
                                LINES - 1,
                                LINES,
                                LINES + 1};
    for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
        struct ctl_log_follow values = {.tail = tails[i], .interrupt = -1};
        int lines = tails[i] < LINES ? tails[i] : LINES;
        assert_int_equal(follow(&values), BT_OK);
        assert_int_equal(printed_size, 16 * lines);
        assert_int_equal(atoi(printed), LINES - lines);
    }
}

static void test_what_is_printed(void **state)
{
    (void)state;
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fwrite("a\tb\0c\x1b[2J\n", 1, 10, file);
    fputc('\n', file);
    for (int i = 0; i < CTL_LOG_LINE_MAX + 5; i++)
        fputc('x', file);
    fputs("\nlast", file);
    assert_int_equal(fclose(file), 0);
    struct ctl_log_follow values = {.tail = -1, .interrupt = -1};
    assert_int_equal(follow(&values), BT_OK);
    assert_int_equal(printed_size, 11 + CTL_LOG_LINE_MAX + 1 + 6 + 5);
    assert_memory_equal(printed, "a\tb?c?[2J\n\nx", 12);
    assert_string_equal(printed + 11 + CTL_LOG_LINE_MAX, "\nxxxxx\nlast\n");
}

static void test_no_file(void **state)
{
    (void)state;
    struct ctl_log_follow values = {.tail = -1, .follow = true, .interrupt = -1};
    unlink(path);
    assert_int_equal(follow(&values), BT_ERR_IO);
}

/* ---- following: what happens at each question, and whether the process still lives then */

struct step {
    enum { APPEND, REWRITE, REPLACE, REMOVE, REPLACE_AFTER } what;
    const char *text;
    bool ends;
};

static bool play(void *context)
{
    const struct step **next = context;
    const struct step *step = (*next)++;
    switch (step->what) {
    case APPEND:
        put(path, "a", step->text);
        break;
    case REWRITE:
        put(path, "w", step->text);
        break;
    case REPLACE_AFTER: /* something more came into the one before */
        put(path, "a", "its last\n");
        /* fall through */
    case REPLACE:
        put(other_path, "w", step->text);
        assert_int_equal(rename(other_path, path), 0);
        break;
    case REMOVE:
        assert_int_equal(unlink(path), 0);
        break;
    }
    return !step->ends;
}

static void expect_followed(const char *before, int64_t tail, const struct step *steps,
                            const char *expected)
{
    put(path, "w", before);
    struct ctl_log_follow values = {
        .tail = tail, .follow = true, .is_alive = play, .context = &steps, .interrupt = -1};
    assert_int_equal(follow(&values), BT_OK);
    assert_string_equal(printed, expected);
}

static void test_it_grows_until_the_process_ends(void **state)
{
    (void)state;
    expect_followed("a\nb\n", 1,
                    (const struct step[]){{APPEND, "c\nd", false},
                                          {APPEND, "", false},
                                          {APPEND, "d\ne", false},
                                          {APPEND, "e\nlast words", true}},
                    "b\nc\ndd\nee\nlast words\n");
}

static void test_a_dead_process(void **state)
{
    (void)state;
    expect_followed("a\n", -1, (const struct step[]){{APPEND, "b\n", true}}, "a\nb\n");
    expect_followed("a\n", 0, (const struct step[]){{APPEND, "b\n", true}}, "b\n");
}

static void test_truncated(void **state)
{
    (void)state;
    expect_followed("long line\nbegun", -1,
                    (const struct step[]){{APPEND, "", false},
                                          {REWRITE, "x\n", false},
                                          {APPEND, "y\n", false},
                                          {REWRITE, "", false},
                                          {APPEND, "z\n", true}},
                    "long line\nbegun\nx\ny\nz\n");
}

static void test_replaced(void **state)
{
    (void)state;
    expect_followed("a\n", -1,
                    (const struct step[]){{APPEND, "begun, and ", false},
                                          {REPLACE_AFTER, "a longer one than that before\n", false},
                                          {APPEND, "begun", false},
                                          {REPLACE, "new\n", true}},
                    "a\nbegun, and its last\na longer one than that before\nbegun\nnew\n");
}

static void test_removed_and_there_again(void **state)
{
    (void)state;
    expect_followed("a\n", -1,
                    (const struct step[]){{APPEND, "b\n", false},
                                          {REMOVE, NULL, false},
                                          {REPLACE, "c\n", false},
                                          {REMOVE, NULL, true}},
                    "a\nb\nc\n");
}

static bool raises(void *context)
{
    put(path, "a", context);
    assert_int_equal(kill(getpid(), SIGINT), 0);
    return true;
}

/* The last of the tests: signals stay held. */
static void test_interrupted(void **state)
{
    (void)state;
    struct bt_error error;
    put(path, "w", "a\n");
    struct ctl_log_follow values = {
        .tail = -1, .follow = true, .is_alive = raises, .context = (void *)"half"};
    signal(SIGINT, SIG_DFL); /* who was started in the background may ignore it */
    assert_int_equal(ctl_interrupt_hold(&error, &values.interrupt), BT_OK);
    assert_int_equal(follow(&values), BT_ERR_CANCELLED);
    assert_string_equal(printed, "a\nhalf\n");
}

static int set_up(void **state)
{
    (void)state;
    snprintf(path, sizeof(path), "%s/log", mkdtemp(directory));
    snprintf(other_path, sizeof(other_path), "%s/other", directory);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    free(printed);
    unlink(path);
    unlink(other_path);
    return rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tail),
        cmocka_unit_test(test_tail_of_many),
        cmocka_unit_test(test_what_is_printed),
        cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_it_grows_until_the_process_ends),
        cmocka_unit_test(test_a_dead_process),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_replaced),
        cmocka_unit_test(test_removed_and_there_again),
        cmocka_unit_test(test_interrupted),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
