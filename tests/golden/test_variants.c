/*
 * Other configurations of the family (tests/models/reference/make_variants.py) on every backend
 * this CPU has, or a GPU.
 *
 * Tolerance of logits: MARGIN times the reference's own distance from fp64, which each golden
 * carries (3e-5 to 6e-5); measured are at most 1.5 times it. The goldens were made without
 * near-ties, so experts and greedy tokens must be the same ones.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/golden/compare.h"

#define MARGIN 4

static const char *const variants[] = {"v2-lite", "v2-groups", "v3-f32",
                                       "v3-tied", "dense",     "v3-hf"};

/* Also checks the golden's own figures, without which exact comparisons would be luck. */
static double tolerance_of(const struct golden *golden)
{
    const float *distance = golden_data(golden, "fp32_minus_fp64");
    const float *router_gap = golden_data(golden, "router_gap");
    assert_non_null(distance);
    assert_non_null(router_gap);
    double tolerance = MARGIN * (double)*distance;
    assert_true(*router_gap > 1e-4f);
    for (uint32_t i = 0; i < golden->greedy_count; i++)
        assert_true((double)golden->greedy_gap[i] > 4 * tolerance);
    return tolerance;
}

static void run_variant(const char *variant, const char *kernels)
{
    char dir[512], path[600];
    struct golden golden;
    snprintf(dir, sizeof(dir), "%s/%s", TESTS_MODELS, variant);
    snprintf(path, sizeof(path), "%s/golden.safetensors", dir);
    golden_open(path, variant, &golden);
    double tolerance = tolerance_of(&golden);
    const struct engine_options options = {.kernels = kernels, .max_rows = 128, .pool_pages = 8};
    struct engine *engine = engine_open(dir, &options);
    double whole = compare_logits(engine, &golden, 0, tolerance);
    double chunks = compare_logits(engine, &golden, 30, tolerance);
    assert_true(whole == chunks);
    print_message("%s %s: logits differ by %g\n", kernels, variant, whole);
    compare_states(engine, &golden);
    compare_greedy(engine, &golden);
    engine_close(engine);
    golden_close(&golden);
}

static const char *gpu; /* of this run; NULL: the CPU */

static void test_variant(void **state)
{
    if (gpu) {
        run_variant(*state, gpu);
        return;
    }
    for (const char *const *kernels = bt_kernels_available(); *kernels; kernels++)
        run_variant(*state, *kernels);
}

/* A GPU, without which it is skipped (none: each of the CPU's backends); which tests. */
int main(int argc, char **argv)
{
    struct bt_error error = {0};
    gpu = argc > 1 ? argv[1] : NULL;
    if (gpu && !engine_can_open(gpu, &error)) {
        printf("skipped: %s\n", error.text);
        return 77;
    }
    if (argc > 2)
        cmocka_set_test_filter(argv[2]);
    struct CMUnitTest tests[sizeof(variants) / sizeof(variants[0])];
    for (size_t i = 0; i < sizeof(variants) / sizeof(variants[0]); i++)
        tests[i] = (struct CMUnitTest){variants[i], test_variant, NULL, NULL, (void *)variants[i]};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
