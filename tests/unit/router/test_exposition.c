/* Pages of several workers made into one. What stands in it is what the format says, and a page of
 * a hostile worker changes nothing of the others' lines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "router/exposition.h"

#define MAX_PAGES 8

struct pages {
    struct rt_exposition_page list[MAX_PAGES];
    size_t count;
};

static void add(struct pages *pages, const char *worker, const char *text)
{
    pages->list[pages->count++] =
        (struct rt_exposition_page){.worker = worker, .text = text, .size = strlen(text)};
}

static char *merge(struct pages *pages)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    assert_true(rt_exposition_merge(pages->list, pages->count, out));
    fclose(out);
    return text;
}

static void test_two_workers(void **state)
{
    (void)state;
    struct pages pages = {0};
    add(&pages, "a",
        "# HELP up One.\n# TYPE up gauge\nup 1\n"
        "# HELP t_seconds Times.\n# TYPE t_seconds histogram\n"
        "t_seconds_bucket{x=\"1\",le=\"0.5\"} 2\nt_seconds_bucket{x=\"1\",le=\"+Inf\"} 3\n"
        "t_seconds_sum{x=\"1\"} 1.5\nt_seconds_count{x=\"1\"} 3\n");
    add(&pages, "b",
        "# HELP n_total Other.\n# TYPE n_total counter\nn_total{l=\"q\\\"\\\\\\n\"} 7 123\n"
        "# HELP up Another text.\n# TYPE up gauge\nup{worker=\"liar\"} 0\n");
    char *text = merge(&pages);
    assert_string_equal(
        text, "# HELP up One.\n# TYPE up gauge\nup{worker=\"a\"} 1\n"
              "up{worker=\"b\",exported_worker=\"liar\"} 0\n"
              "# HELP t_seconds Times.\n# TYPE t_seconds histogram\n"
              "t_seconds_bucket{worker=\"a\",le=\"0.5\",x=\"1\"} 2\n"
              "t_seconds_bucket{worker=\"a\",le=\"+Inf\",x=\"1\"} 3\n"
              "t_seconds_sum{worker=\"a\",x=\"1\"} 1.5\nt_seconds_count{worker=\"a\",x=\"1\"} 3\n"
              "# HELP n_total Other.\n# TYPE n_total counter\n"
              "n_total{worker=\"b\",l=\"q\\\"\\\\\\n\"} 7\n");
    assert_int_equal(pages.list[0].rejected + pages.list[1].rejected, 0);
    free(text);
}

/* Each alone in a page: nothing of it may come out. */
static void test_what_is_not_right_is_left_out(void **state)
{
    (void)state;
    static const char *const wrong[] = {"x",
                                        "x ",
                                        " 1",
                                        "1x 1",
                                        "x{ 1",
                                        "x{a} 1",
                                        "x{a=} 1",
                                        "x{a=1} 1",
                                        "x{a=\"1} 1",
                                        "x{a=\"1\" 1",
                                        "x{a=\"\\q\"} 1",
                                        "x{a=\"1\"b=\"2\"} 1",
                                        "x{a=\"1\",a=\"1\"} 1",
                                        "x{__a=\"1\"} 1",
                                        "x{a:b=\"1\"} 1",
                                        "x{a=\"\x01\"} 1",
                                        "x{a=\"\xff\"} 1",
                                        "x one",
                                        "x 0x10",
                                        "x 1 2 3",
                                        "x 1 soon",
                                        "x inf",
                                        "x 1\r",
                                        "x{worker=\"a\",exported_worker=\"b\"} 1",
                                        "baton_worker_scrape_up{worker=\"other\"} 1",
                                        "# TYPE x thing",
                                        "# TYPE 1 gauge",
                                        "# HELP x \\q",
                                        "# HELP x \xff",
                                        "# TYPE x gauge\n# TYPE x gauge",
                                        "# TYPE h histogram\nh 1",
                                        "# TYPE h histogram\nh_bucket 1",
                                        "# TYPE h histogram\nh_bucket{le=\"x\"} 1",
                                        "# TYPE h histogram\nh_sum{le=\"1\"} 1",
                                        "# TYPE s summary\ns 1",
                                        "x 1\nx 2\ny",
                                        "x{a=\"1\",b=\"2\"} 1\nx{b=\"2\",a=\"1\"} 1\ny"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct pages pages = {0};
        add(&pages, "a", wrong[i]);
        char *text = merge(&pages);
        uint32_t fine = 0; /* lines of values */
        for (char *at = text; (at = strchr(at, '}')) != NULL; at++) {
            fine++;
        }
        bool repeats = wrong[i][strlen(wrong[i]) - 1] == 'y';
        if (pages.list[0].rejected != (repeats ? 2 : 1) || fine != (repeats ? 1 : 0)) {
            fail_msg("'%s' gave '%s', %u rejected", wrong[i], text, pages.list[0].rejected);
        }
        free(text);
    }
}

static void test_types_are_those_of_the_most(void **state)
{
    (void)state;
    struct pages pages = {0};
    add(&pages, "evil", "# TYPE up histogram\nup_bucket{le=\"1\"} 5\nup 3\n");
    add(&pages, "a", "# TYPE up gauge\nup 1\n");
    add(&pages, "b", "# TYPE up gauge\nup 2\n");
    char *text = merge(&pages);
    assert_non_null(strstr(text, "# TYPE up gauge\nup{worker=\"evil\"} 3\nup{worker=\"a\"} 1\n"
                                 "up{worker=\"b\"} 2\n"));
    assert_null(strstr(text, "# TYPE up histogram"));
    free(text);
}

/* What is said of the limits; and what stands before them is there. */
static void test_limits(void **state)
{
    (void)state;
    char *page = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&page, &size);
    for (uint32_t i = 0; i < RT_EXPOSITION_LINES + 10; i++) {
        fprintf(out, "f%u{i=\"%u\"} 1\n", i % (RT_EXPOSITION_FAMILIES + 1), i);
    }
    fclose(out);
    struct pages pages = {0};
    add(&pages, "a", page);
    add(&pages, "b", "honest 1\n");
    char *text = merge(&pages);
    assert_non_null(strstr(text, "\nhonest{worker=\"b\"} 1\n"));
    assert_non_null(strstr(text, "\nf511{worker=\"a\",i=\"511\"} 1\n"));
    assert_null(strstr(text, "\nf512{"));
    uint32_t more = RT_EXPOSITION_LINES / (RT_EXPOSITION_FAMILIES + 1);
    assert_int_equal(pages.list[0].rejected, 10 + more);
    free(text);
    free(page);
}

/* Bytes of a page changed at random: every line that comes out has the form of one, families stand
 * together, and the other worker's lines are all there. */
static void test_noise(void **state)
{
    (void)state;
    static const char good[] = "# HELP up One.\n# TYPE up gauge\nup{a=\"b\",c=\"d\"} 1\n"
                               "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 1\n"
                               "h_sum 1\nh_count 1\n";
    uint64_t seed = 20260131;
    for (uint32_t round = 0; round < 3000; round++) {
        char bad[sizeof good];
        memcpy(bad, good, sizeof good);
        for (uint32_t k = 0; k < 1 + round % 12; k++) {
            uint64_t draw = bt_random_u64(seed, round, k);
            char c = draw & 1 ? good[(draw >> 8) % (sizeof good - 1)] : (char)(draw >> 40);
            bad[(draw >> 20) % (sizeof good - 1)] = c;
        }
        struct pages pages = {0};
        pages.list[pages.count++] =
            (struct rt_exposition_page){.worker = "bad", .text = bad, .size = sizeof good - 1};
        add(&pages, "fine", good);
        char *text = merge(&pages);
        assert_non_null(strstr(text, "{worker=\"fine\",a=\"b\",c=\"d\"} 1\n"));
        assert_int_equal(pages.list[1].rejected, 0);
        for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
            bool comment = strncmp(line, "# ", 2) == 0;
            if (!comment && (!strstr(line, "{worker=\"") || !strstr(line, "} "))) {
                fail_msg("seed %llu round %u: '%s'", (unsigned long long)seed, round, line);
            }
        }
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_workers),
        cmocka_unit_test(test_what_is_not_right_is_left_out),
        cmocka_unit_test(test_types_are_those_of_the_most),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
