#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <dirent.h>

#include "common/base/clock.h"
#include "prefill-node/budget.h"
#include "tests/late-device/late_device.h"

#define CPU "Some CPU @ 2 GHz"

static struct bt_model *load_tiny(uint32_t max_tokens)
{
    struct bt_error error = {0};
    struct bt_model *model;
    const struct bt_model_options options = {.dir = TINY_MODEL, .max_tokens = max_tokens};
    if (bt_model_load(&options, &error, &model) != BT_OK) {
        fail_msg("%s", error.text);
    }
    return model;
}

static void test_choice(void **state)
{
    (void)state;
    static const struct {
        struct pf_budget_curve curve;
        uint32_t expected;
    } cases[] = {
        {{.count = 0}, PF_BUDGET_FALLBACK},
        {{{{64, 100}}, 1, false}, 64},
        {{{{64, 50}, {128, 80}, {256, 96}, {512, 100}, {1024, 99}}, 5, false}, 256},
        {{{{64, 50}, {128, 80}, {256, 94}, {512, 100}}, 4, false}, 512},
        {{{{64, 100}, {128, 90}, {256, 80}}, 3, false}, 64},
        {{{{64, 96}, {128, 10}, {256, 100}}, 3, false}, 64},
        /* Cut while it rose: what was not seen may be better. */
        {{{{64, 50}, {128, 80}}, 2, true}, PF_BUDGET_FALLBACK},
        {{{{512, 50}, {1024, 80}}, 2, true}, 1024},
        {{{{64, 99}, {128, 100}}, 2, true}, 64},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(pf_budget_choose(&cases[i].curve), cases[i].expected);
    }
}

static void test_file_goes_round(void **state)
{
    (void)state;
    struct bt_model *model = load_tiny(256);
    const struct pf_budget_curve curve = {{{64, 50.5}, {128, 1234567.5}}, 2, false};
    struct pf_budget_curve parsed;
    char text[1024];
    assert_true(pf_budget_format(&curve, model, CPU, text, sizeof(text)));
    assert_true(pf_budget_parse(text, model, CPU, &parsed));
    assert_int_equal(parsed.count, 2);
    assert_int_equal(parsed.points[1].tokens, 128);
    assert_true(parsed.points[1].tokens_per_s == 1234567.5);
    assert_false(parsed.is_cut);
    for (size_t size = 0; size <= strlen(text); size++) { /* no room, no overflow */
        char *exact = malloc(size + 1);
        assert_false(pf_budget_format(&curve, model, CPU, exact, size));
        free(exact);
    }
    bt_model_destroy(model);
}

static void test_spoiled_files(void **state)
{
    (void)state;
    struct bt_model *model = load_tiny(256);
    const struct pf_budget_curve curve = {{{64, 50}, {128, 80}}, 2, false};
    struct pf_budget_curve parsed = {.count = 77};
    char text[1024], spoiled[1024];
    assert_true(pf_budget_format(&curve, model, CPU, text, sizeof(text)));
    assert_true(pf_budget_parse(text, model, CPU, &parsed));
    parsed.count = 77;
    assert_false(pf_budget_parse(text, model, CPU " II", &parsed));
    assert_false(pf_budget_parse("", model, CPU, &parsed));
    for (size_t size = 0; size < strlen(text); size++) { /* cut off anywhere */
        memcpy(spoiled, text, size);
        spoiled[size] = '\0';
        assert_false(pf_budget_parse(spoiled, model, CPU, &parsed));
    }
    static const char *const tails[] = {"point 64 50\npoint 64 60\nend\n",
                                        "point 128 50\npoint 64 60\nend\n",
                                        "point 0 50\nend\n",
                                        "point 64 nan\nend\n",
                                        "point 64 inf\nend\n",
                                        "point 64 -1\nend\n",
                                        "point 64 0\nend\n",
                                        "point 99999999 1\nend\n",
                                        "point -64 50\nend\n",
                                        "point 64 50 7\nend\n",
                                        "point 64\nend\n",
                                        "point x\nend\n",
                                        "end\n",
                                        "point 64 50\nend",
                                        "point 64 50\nfinished\n",
                                        "point 64 50\nend\nend\n",
                                        "point 64 50",
                                        "point 99999999999999999999 50\nend\n"};
    size_t head = (size_t)(strstr(text, "point") - text);
    for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
        snprintf(spoiled, sizeof(spoiled), "%.*s%s", (int)head, text, tails[i]);
        if (pf_budget_parse(spoiled, model, CPU, &parsed)) {
            fail_msg("taken: %s", tails[i]);
        }
    }
    size_t at = head;
    for (uint32_t i = 1; i <= PF_BUDGET_MAX_POINTS + 1; i++) { /* one too many */
        at += (size_t)snprintf(text + at, sizeof(text) - at, "point %u 5\n", i);
    }
    snprintf(text + at, sizeof(text) - at, "end\n");
    assert_false(pf_budget_parse(text, model, CPU, &parsed));
    assert_int_equal(parsed.count, 77); /* written on success only */
    bt_model_destroy(model);
}

static void test_measuring(void **state)
{
    (void)state;
    struct bt_model *model = load_tiny(256);
    struct bt_error error;
    struct bt_kv_layout layout = bt_model_kv_layout(model, BT_F32);
    struct pf_budget_curve curve;
    assert_int_equal(pf_budget_measure(model, &layout, 0, &error, &curve), BT_OK);
    assert_int_equal(curve.count, 1); /* no time: the first point alone */
    assert_true(curve.is_cut);
    assert_int_equal(pf_budget_choose(&curve), PF_BUDGET_FALLBACK);
    assert_int_equal(pf_budget_measure(model, &layout, 60 * BT_NS_PER_S, &error, &curve), BT_OK);
    assert_int_equal(curve.count, 3); /* a prompt is no longer */
    assert_false(curve.is_cut);
    for (uint32_t i = 0; i < curve.count; i++) {
        assert_int_equal(curve.points[i].tokens, 64u << i);
        assert_true(curve.points[i].tokens_per_s > 0);
    }
    bt_model_destroy(model);
}

/* Says so, and writes no curve; nothing ends the process. */
static void test_a_device_that_fails(void **state)
{
    (void)state;
    struct bt_model *model = load_tiny(256), view = *model;
    struct bt_device *device = late_device_create(model->kernels);
    struct bt_kv_layout layout = bt_model_kv_layout(model, BT_F32);
    struct bt_error error = {0};
    struct pf_budget_curve curve = {.count = 77};
    uint32_t tokens = 77;
    view.device = device;
    view.kernels = device->kernels;
    late_device_break(device);
    assert_int_equal(pf_budget_measure(&view, &layout, BT_NS_PER_S, &error, &curve),
                     BT_ERR_INTERNAL);
    assert_int_equal(curve.count, 77);
    assert_non_null(strstr(error.text, "chunk size: a chunk to measure it failed: "));
    assert_int_equal(pf_budget_find(&view, &layout, "/dev/null/x", &error, &tokens),
                     BT_ERR_INTERNAL);
    assert_int_equal(tokens, 77);
    late_device_destroy(device);
    bt_model_destroy(model);
}

/* The only file in the folder. */
static void path_of(const char *dir, char *ret_path, size_t size)
{
    uint32_t count = 0;
    DIR *opened = opendir(dir);
    assert_non_null(opened);
    for (struct dirent *entry; (entry = readdir(opened));) {
        if (entry->d_name[0] != '.') {
            snprintf(ret_path, size, "%s/%s", dir, entry->d_name);
            count++;
        }
    }
    closedir(opened);
    assert_int_equal(count, 1);
}

/* One point is quick on any backend. What the file says is believed; what is no such file is
 * measured again and replaced. */
static void test_cache(void **state)
{
    (void)state;
    struct bt_model *model = load_tiny(64);
    struct bt_error error;
    struct bt_kv_layout layout = bt_model_kv_layout(model, BT_F32);
    char dir[] = "/tmp/baton-budget-XXXXXX", path[512], text[2048] = "";
    uint32_t tokens = 0;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(pf_budget_find(model, &layout, dir, &error, &tokens), BT_OK);
    path_of(dir, path, sizeof(path));
    FILE *file = fopen(path, "r+");
    size_t bytes = fread(text, 1, sizeof(text) - 1, file);
    text[bytes] = '\0';
    char *points = strstr(text, "point");
    assert_non_null(points);
    strcpy(points, "point 77 5\nend\n");
    rewind(file);
    assert_int_equal(ftruncate(fileno(file), 0), 0);
    fputs(text, file);
    fclose(file);
    assert_int_equal(pf_budget_find(model, &layout, dir, &error, &tokens), BT_OK);
    assert_int_equal(tokens, 77);
    file = fopen(path, "w");
    fwrite("\0garbage", 1, 8, file);
    fclose(file);
    assert_int_equal(pf_budget_find(model, &layout, dir, &error, &tokens), BT_OK);
    assert_true(tokens >= 64 && tokens != 77);
    path_of(dir, path, sizeof(path));
    unlink(path);
    rmdir(dir);
    /* Nowhere to write: measured all the same. */
    assert_int_equal(pf_budget_find(model, &layout, "/dev/null/x", &error, &tokens), BT_OK);
    bt_model_destroy(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),        cmocka_unit_test(test_file_goes_round),
        cmocka_unit_test(test_spoiled_files), cmocka_unit_test(test_measuring),
        cmocka_unit_test(test_cache),         cmocka_unit_test(test_a_device_that_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
