/* The window against one that keeps every row; the file against everything that may be in one. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "common/parallel/expert_loads.h"

#define SEED         UINT64_C(20240608)
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct bt_expert_loads *make(uint32_t layers, uint32_t experts, uint32_t windows,
                                    uint64_t span)
{
    struct bt_expert_loads *loads = NULL;
    struct bt_error error = {0};
    if (bt_expert_loads_create(layers, experts, windows, span, &error, &loads) != BT_OK)
        fail_msg("%s", error.text);
    return loads;
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        uint32_t layers, experts, windows;
        uint64_t span;
    } cases[] = {
        {0, 1, 1, 1},
        {1, 0, 1, 1},
        {1, 1, 0, 1},
        {1, 1, 1, 0},
        {BT_PLACEMENT_LAYERS_MAX + 1, 1, 1, 1},
        {1, BT_PLACEMENT_EXPERTS_MAX + 1, 1, 1},
        {1, 1, BT_EXPERT_LOADS_WINDOWS_MAX + 1, 1},
        {1, 1, 1, BT_EXPERT_LOADS_SPAN_MAX + 1},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct bt_expert_loads *loads = NULL;
        struct bt_error error = {0};
        assert_int_equal(bt_expert_loads_create(cases[i].layers, cases[i].experts, cases[i].windows,
                                                cases[i].span, &error, &loads),
                         BT_ERR_INVALID_ARGUMENT);
        assert_null(loads);
    }
    bt_expert_loads_destroy(NULL);
}

/* ---- the window ---- */

/* `rows` rows that all pick this one. */
static void add_same(struct bt_expert_loads *loads, uint32_t layer, uint32_t expert, uint32_t rows)
{
    uint32_t begin[4] = {0};
    for (uint32_t i = expert + 1; i < COUNT(begin); i++)
        begin[i] = rows;
    bt_expert_loads_add(loads, layer, begin, rows);
}

static void expect_sum(const struct bt_expert_loads *loads, const uint64_t *sum, uint32_t count)
{
    uint64_t found[8];
    bt_expert_loads_sum(loads, found);
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(found[i], sum[i]);
}

/* Two layers of three experts, three spans of ten rows, by hand. */
static void test_window(void **state)
{
    (void)state;
    struct bt_expert_loads *loads = make(2, 3, 3, 10);
    assert_int_equal(bt_expert_loads_rows(loads), 0);
    add_same(loads, 0, 0, 10);
    add_same(loads, 0, 1, 4);
    add_same(loads, 0, 1, 6);
    add_same(loads, 1, 2, 5);
    expect_sum(loads, (const uint64_t[]){10, 10, 0, 0, 0, 5}, 6);
    assert_int_equal(bt_expert_loads_rows(loads), 5);
    add_same(loads, 0, 2, 25); /* longer than a span: it is one */
    expect_sum(loads, (const uint64_t[]){10, 10, 25, 0, 0, 5}, 6);
    add_same(loads, 0, 1, 1); /* the fourth span: the first is forgotten */
    expect_sum(loads, (const uint64_t[]){0, 11, 25, 0, 0, 5}, 6);
    add_same(loads, 1, 0, 100);
    assert_int_equal(bt_expert_loads_rows(loads), 36);
    add_same(loads, 0, 1, 9);
    add_same(loads, 0, 0, 0); /* the fifth: the second goes */
    expect_sum(loads, (const uint64_t[]){0, 10, 25, 100, 0, 5}, 6);
    assert_int_equal(bt_expert_loads_rows(loads), 35);
    assert_int_equal(bt_expert_loads_layer_rows(loads, 0), 35);
    assert_int_equal(bt_expert_loads_layer_rows(loads, 1), 105);
    bt_expert_loads_destroy(loads);
    loads = make(1, 3, 1, 1);
    add_same(loads, 0, 0, 2);
    add_same(loads, 0, 2, 3);
    expect_sum(loads, (const uint64_t[]){0, 0, 3}, 3);
    assert_int_equal(bt_expert_loads_rows(loads), 3);
    bt_expert_loads_destroy(loads);
}

/* Random batches; the sum is that of the last whole calls whose spans are still there. */
static void test_window_random(void **state)
{
    (void)state;
    enum { EXPERTS = 5, WINDOWS = 4, SPAN = 50, CALLS = 400 };
    struct bt_expert_loads *loads = make(1, EXPERTS, WINDOWS, SPAN);
    uint32_t picks[CALLS][EXPERTS], span_of[CALLS], rows_of[CALLS], span = 0, in_span = 0;
    print_message("seed %llu\n", (unsigned long long)SEED);
    for (uint32_t call = 0; call < CALLS; call++) {
        uint32_t begin[EXPERTS + 1] = {0};
        for (uint32_t e = 0; e < EXPERTS; e++) {
            picks[call][e] = (uint32_t)(bt_random_u64(SEED, call, e) % 9);
            begin[e + 1] = begin[e] + picks[call][e];
        }
        rows_of[call] = (uint32_t)(bt_random_u64(SEED, call, EXPERTS) % 30);
        if (in_span >= SPAN) {
            span++;
            in_span = 0;
        }
        span_of[call] = span;
        in_span += rows_of[call];
        bt_expert_loads_add(loads, 0, begin, rows_of[call]);
        uint64_t sum[EXPERTS] = {0}, rows = 0;
        for (uint32_t i = 0; i <= call; i++) {
            for (uint32_t e = 0; e < EXPERTS && span_of[i] + WINDOWS > span; e++)
                sum[e] += picks[i][e];
            rows += span_of[i] + WINDOWS > span ? rows_of[i] : 0;
        }
        expect_sum(loads, sum, EXPERTS);
        assert_int_equal(bt_expert_loads_rows(loads), rows);
    }
    bt_expert_loads_destroy(loads);
}

/* ---- the file ---- */

struct scratch {
    char dir[200], path[256];
};

static int set_up(void **state)
{
    static struct scratch scratch;
    const char *root = getenv("TMPDIR");
    snprintf(scratch.dir, sizeof(scratch.dir), "%s/baton-loads-XXXXXX", root ? root : "/tmp");
    if (!mkdtemp(scratch.dir))
        return -1;
    snprintf(scratch.path, sizeof(scratch.path), "%s/loads.json", scratch.dir);
    *state = &scratch;
    return 0;
}

static int tear_down(void **state)
{
    struct scratch *scratch = *state;
    DIR *dir = opendir(scratch->dir);
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir)
        closedir(dir);
    return rmdir(scratch->dir);
}

static uint32_t count_files(const struct scratch *scratch)
{
    uint32_t count = 0;
    DIR *dir = opendir(scratch->dir);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

static void put_text(const struct scratch *scratch, const char *text, size_t bytes)
{
    unlink(scratch->path); /* some file systems wait for the disk when a file is truncated */
    FILE *file = fopen(scratch->path, "we");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static void test_round_trip(void **state)
{
    struct scratch *scratch = *state;
    struct bt_error error = {0};
    uint64_t found[6] = {0};
    const uint64_t extremes[6] = {0, 1, BT_EXPERT_LOAD_MAX, BT_EXPERT_LOAD_MAX - 1, 4294967296, 7};
    assert_int_equal(bt_expert_loads_write(scratch->path, 2, 3, extremes, &error), BT_OK);
    assert_int_equal(bt_expert_loads_read(scratch->path, 2, 3, &error, found), BT_OK);
    assert_memory_equal(found, extremes, sizeof(found));

    struct bt_expert_loads *loads = make(2, 3, 3, 10);
    add_same(loads, 0, 1, 4);
    add_same(loads, 1, 2, 5);
    assert_int_equal(bt_expert_loads_save(loads, scratch->path, &error), BT_OK); /* over it */
    assert_int_equal(bt_expert_loads_read(scratch->path, 2, 3, &error, found), BT_OK);
    assert_memory_equal(found, ((const uint64_t[]){0, 4, 0, 0, 0, 5}), sizeof(found));
    bt_expert_loads_destroy(loads);
    assert_int_equal(count_files(scratch), 1);
    struct stat info;
    assert_int_equal(stat(scratch->path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0644);
}

/* What the header promises, letter by letter: other programs read it. */
static void test_format(void **state)
{
    struct scratch *scratch = *state;
    char text[128] = "", bare[128], *out = bare;
    const uint64_t loads[4] = {1, 2, 3, 4};
    assert_int_equal(bt_expert_loads_write(scratch->path, 2, 2, loads, NULL), BT_OK);
    FILE *file = fopen(scratch->path, "re");
    assert_non_null(file);
    assert_true(fread(text, 1, sizeof(text) - 1, file) > 0);
    fclose(file);
    for (const char *in = text; *in; in++) {
        if (*in != '\n')
            *out++ = *in;
    }
    *out = '\0';
    assert_string_equal(bare, "{\"version\":1,\"layers\":2,\"experts\":2,\"loads\":[[1,2],[3,4]]}");
}

static void test_not_written(void **state)
{
    struct scratch *scratch = *state;
    struct bt_error error = {0};
    const uint64_t loads[1] = {1};
    char path[300];
    snprintf(path, sizeof(path), "%s/none/loads.json", scratch->dir);
    assert_int_equal(bt_expert_loads_write(path, 1, 1, loads, &error), BT_ERR_IO);
    assert_non_null(strstr(error.text, path));
    /* a folder stands there: nothing is left beside it */
    assert_int_equal(mkdir(scratch->path, 0700), 0);
    assert_int_equal(bt_expert_loads_write(scratch->path, 1, 1, loads, &error), BT_ERR_IO);
    assert_non_null(strstr(error.text, scratch->path));
    assert_int_equal(rmdir(scratch->path), 0);
    assert_int_equal(count_files(scratch), 0);
}

/* Must fail, leave the output alone, and name the file and `word`. */
static void expect_refused(const struct scratch *scratch, enum bt_status status, const char *word)
{
    struct bt_error error = {0};
    uint64_t found[4] = {11, 12, 13, 14};
    assert_int_equal(bt_expert_loads_read(scratch->path, 2, 2, &error, found), status);
    if (!strstr(error.text, scratch->path) || !strstr(error.text, word))
        fail_msg("'%s' lacks the path or '%s'", error.text, word);
    assert_memory_equal(found, ((const uint64_t[]){11, 12, 13, 14}), sizeof(found));
}

#define HEAD "{\"version\":1,\"layers\":2,\"experts\":2,"

static void test_read_refused(void **state)
{
    struct scratch *scratch = *state;
    static const struct {
        const char *text, *word;
    } cases[] = {
        {"", "line"},
        {"garbage", "line"},
        {"[1,2]", "not a JSON object"},
        {"3", "line"},
        {"{}", "version is missing"},
        {"{\"version\":2,\"layers\":2,\"experts\":2,\"loads\":[[1,2],[3,4]]}", "version is 2"},
        {"{\"version\":\"1\",\"layers\":2,\"experts\":2,\"loads\":[[1,2],[3,4]]}",
         "version is not a number"},
        {"{\"version\":1,\"experts\":2,\"loads\":[[1,2],[3,4]]}", "layers is missing"},
        {"{\"version\":1,\"layers\":3,\"experts\":2,\"loads\":[[1,2],[3,4],[5,6]]}",
         "layers is 3, not 2"},
        {"{\"version\":1,\"layers\":-2,\"experts\":2,\"loads\":[[1,2],[3,4]]}", "layers is -2"},
        {"{\"version\":1,\"layers\":[2],\"experts\":2,\"loads\":[[1,2],[3,4]]}",
         "layers is not a number"},
        {"{\"version\":1,\"layers\":2,\"experts\":1e99,\"loads\":[[1,2],[3,4]]}",
         "experts is 1e+99"},
        {"{\"version\":1,\"layers\":2,\"experts\":null,\"loads\":[[1,2],[3,4]]}",
         "experts is not a number"},
        {HEAD "\"load\":[[1,2],[3,4]]}", "loads is missing"},
        {HEAD "\"loads\":7}", "loads is not a list"},
        {HEAD "\"loads\":{\"0\":[1,2]}}", "loads is not a list"},
        {HEAD "\"loads\":[[1,2]]}", "loads has 1 elements, not 2"},
        {HEAD "\"loads\":[]}", "loads has 0 elements"},
        {HEAD "\"loads\":[[1,2],[3,4],[5,6]]}", "loads has 3 elements"},
        {HEAD "\"loads\":[[1,2],3]}", "loads[1] is not a list"},
        {HEAD "\"loads\":[[1,2],[3]]}", "loads[1] has 1 elements, not 2"},
        {HEAD "\"loads\":[[1,2,3],[3,4]]}", "loads[0] has 3 elements"},
        {HEAD "\"loads\":[[1,2],[3,-4]]}", "loads[1][1] is negative"},
        {HEAD "\"loads\":[[1,2.5],[3,4]]}", "loads[0][1] is 2.5"},
        {HEAD "\"loads\":[[1,\"2\"],[3,4]]}", "loads[0][1] is not a number"},
        {HEAD "\"loads\":[[true,2],[3,4]]}", "loads[0][0] is not a number"},
        {HEAD "\"loads\":[[1,2],[null,4]]}", "loads[1][0] is not a number"},
        {HEAD "\"loads\":[[1,2],[281474976710657,4]]}", "loads[1][0] is 281474976710657, limit"},
        {HEAD "\"loads\":[[1,2],[99999999999999999999999999,4]]}", "loads[1][0] is 1e+26, limit"},
        {HEAD "\"loads\":[[1,2],[1e999,4]]}", "line"},
        {HEAD "\"loads\":[[1,2],[NaN,4]]}", "line"},
        {HEAD "\"loads\":[[1,2],[3,4]]} x", "line"},
        {HEAD "\"version\":1,\"loads\":[[1,2],[3,4]]}", "duplicate"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        put_text(scratch, cases[i].text, strlen(cases[i].text));
        expect_refused(scratch, BT_ERR_INVALID_ARGUMENT, cases[i].word);
    }
}

static void test_not_a_file(void **state)
{
    struct scratch *scratch = *state;
    expect_refused(scratch, BT_ERR_NOT_FOUND, "");
    assert_int_equal(mkdir(scratch->path, 0700), 0);
    expect_refused(scratch, BT_ERR_IO, "not a regular file");
    assert_int_equal(rmdir(scratch->path), 0);
    assert_int_equal(mkfifo(scratch->path, 0600), 0); /* opening must not wait for a writer */
    expect_refused(scratch, BT_ERR_IO, "not a regular file");
    assert_int_equal(unlink(scratch->path), 0);
}

/* Bytes beyond what such a file can have are refused before they are read. */
static void test_too_long(void **state)
{
    struct scratch *scratch = *state;
    put_text(scratch, "", 0);
    assert_int_equal(truncate(scratch->path, (off_t)1 << 40), 0);
    expect_refused(scratch, BT_ERR_INVALID_ARGUMENT, "limit");
}

/* Cut anywhere it is refused; with any byte changed it is read or refused, and nothing breaks. */
static void test_damaged(void **state)
{
    struct scratch *scratch = *state;
    static const char whole[] = HEAD "\"loads\":[[1,2],[3,4]]}";
    for (size_t bytes = 0; bytes < sizeof(whole) - 1; bytes++) {
        put_text(scratch, whole, bytes);
        expect_refused(scratch, BT_ERR_INVALID_ARGUMENT, "line");
    }
    print_message("seed %llu\n", (unsigned long long)SEED);
    for (uint32_t round = 0; round < 2000; round++) {
        char text[sizeof(whole)];
        uint64_t found[4];
        struct bt_error error = {0};
        memcpy(text, whole, sizeof(whole));
        for (uint32_t i = 0; i <= round % 3; i++) {
            uint64_t dice = bt_random_u64(SEED, round, i);
            text[dice % (sizeof(whole) - 1)] = (char)(dice >> 32);
        }
        put_text(scratch, text, sizeof(whole) - 1);
        enum bt_status status = bt_expert_loads_read(scratch->path, 2, 2, &error, found);
        assert_true(status == BT_OK || status == BT_ERR_INVALID_ARGUMENT);
        for (int i = 0; status == BT_OK && i < 4; i++)
            assert_true(found[i] <= BT_EXPERT_LOAD_MAX);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_window_random),
        cmocka_unit_test_setup_teardown(test_round_trip, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_format, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_not_written, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_read_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_not_a_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_too_long, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damaged, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
