/*
 * The search for scales on layers whose answer is known: a few inputs carry large activations and
 * meet small weights, which a plain rounding takes for zeros and a scaled one does not.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "common/model/quantize.h"
#include "deploy/batonctl/awq.h"

#define SEED    20
#define HIDDEN  256
#define INNER   128
#define EXPERTS 3 /* two routed, the shared one */
#define ROWS    64
#define LOUD    37 /* every so many inputs */

struct layer {
    float weights[EXPERTS][3][INNER * HIDDEN]; /* gate, up [INNER][HIDDEN]; down [HIDDEN][INNER] */
    float x[ROWS * HIDDEN];
    uint32_t choices[ROWS];
    struct ctl_expert experts[EXPERTS];
    float input[HIDDEN], inner[EXPERTS * INNER];
};

struct matrix {
    const float *data;
    uint32_t cols;
};

static struct matrix matrices[EXPERTS][3];

static float uniform(uint64_t index, uint32_t stream)
{
    return (float)(bt_random_u64(SEED, index, stream) % 20001) / 10000 - 1;
}

static void read_row(const void *context, uint32_t row, float *ret_row)
{
    const struct matrix *m = context;
    memcpy(ret_row, m->data + (size_t)row * m->cols, m->cols * sizeof(float));
}

/* `loud`: of those inputs, what activations are multiplied with, and weights divided by. */
static struct layer *make_layer(float loud)
{
    struct layer *layer = calloc(1, sizeof(*layer));
    for (uint32_t i = 0; i < ROWS * HIDDEN; i++)
        layer->x[i] = uniform(i, 0) * (i % HIDDEN % LOUD == 5 ? loud : 1);
    for (uint32_t row = 0; row < ROWS; row++)
        layer->choices[row] = row % (EXPERTS - 1);
    for (uint32_t e = 0; e < EXPERTS; e++) {
        struct ctl_weights *parts[] = {&layer->experts[e].gate, &layer->experts[e].up,
                                       &layer->experts[e].down};
        for (uint32_t p = 0; p < 3; p++) {
            uint32_t cols = p == 2 ? INNER : HIDDEN, rows = p == 2 ? HIDDEN : INNER;
            for (uint32_t i = 0; i < rows * cols; i++)
                layer->weights[e][p][i] =
                    uniform(i, 1 + 3 * e + p) * (p < 2 && i % cols % LOUD == 5 ? 1 / loud : 1) / 16;
            matrices[e][p] = (struct matrix){layer->weights[e][p], cols};
            *parts[p] = (struct ctl_weights){read_row, &matrices[e][p], rows, cols};
        }
    }
    return layer;
}

static struct ctl_awq_errors search(struct layer *layer, struct bt_team *team)
{
    const struct ctl_awq_layer asked = {
        .hidden = HIDDEN,
        .expert_count = EXPERTS,
        .experts = layer->experts,
        .has_shared = true,
        .x = layer->x,
        .choices = layer->choices,
        .rows = ROWS,
        .experts_per_token = 1,
    };
    struct ctl_awq_errors errors = {0};
    struct bt_error error;
    assert_int_equal(
        ctl_awq_search(&asked, team, layer->input, layer->inner, INNER, &errors, &error), BT_OK);
    return errors;
}

static void test_loud_inputs(void **state)
{
    (void)state;
    struct layer *layer = make_layer(40);
    struct ctl_awq_errors errors = search(layer, NULL);
    print_message("plain %.4f scaled %.4f alpha %.1f\n", errors.plain, errors.scaled,
                  errors.input_alpha);
    assert_true(errors.plain > 0);
    assert_true(errors.scaled <= 0.5 * errors.plain);
    assert_true(errors.input_alpha > 0);
    /* The loud inputs' weights grow, more than any other's. */
    for (uint32_t i = 0; i < HIDDEN; i++)
        assert_true(i % LOUD == 5 || layer->input[i] < layer->input[5] / 2);
    free(layer);
}

/* Nothing to gain: nothing is lost either, and the scales of the inputs stay near each other. */
static void test_even_inputs(void **state)
{
    (void)state;
    struct layer *layer = make_layer(1);
    struct ctl_awq_errors errors = search(layer, NULL);
    assert_true(errors.scaled <= errors.plain);
    assert_true(errors.scaled > 0.8 * errors.plain);
    for (uint32_t i = 0; i < HIDDEN; i++)
        assert_true(layer->input[i] > 0.5f && layer->input[i] < 2);
    free(layer);
}

/* Squared error of all products of a matrix with all rows of x, once it was rounded. */
static double product_error(const struct layer *layer, const float *weights, const float *scales)
{
    double sum = 0;
    for (uint32_t out = 0; out < INNER; out++) {
        const float *row = weights + (size_t)out * HIDDEN;
        float scaled[HIDDEN];
        int8_t values[HIDDEN];
        uint8_t groups[HIDDEN / BT_QUANTIZE_GROUP];
        for (uint32_t i = 0; i < HIDDEN; i++)
            scaled[i] = row[i] * (scales ? scales[i] : 1);
        double step = (double)bt_quantize_row_i4(scaled, HIDDEN, NULL, false, values, groups);
        for (uint32_t r = 0; r < ROWS; r++) {
            double off = 0;
            for (uint32_t i = 0; i < HIDDEN; i++) {
                double back = values[i] * groups[i / BT_QUANTIZE_GROUP] * step;
                off += (back / (scales ? (double)scales[i] : 1) - (double)row[i]) *
                       (double)layer->x[(size_t)r * HIDDEN + i];
            }
            sum += off * off;
        }
    }
    return sum;
}

/* Not by the search's own word: half the error, a quarter of its square. */
static void test_products_with_the_scales(void **state)
{
    (void)state;
    struct layer *layer = make_layer(40);
    search(layer, NULL);
    for (uint32_t e = 0; e < EXPERTS; e++)
        for (uint32_t part = 0; part < 2; part++)
            assert_true(product_error(layer, layer->weights[e][part], layer->input) <=
                        0.25 * product_error(layer, layer->weights[e][part], NULL));
    free(layer);
}

/* A weight that is no number spoils no search, and not the process: its rounding tells. */
static void test_weight_that_is_no_number(void **state)
{
    (void)state;
    struct layer *layer = make_layer(40);
    layer->weights[1][0][3 * HIDDEN + 9] = NAN;
    search(layer, NULL);
    for (uint32_t i = 0; i < HIDDEN; i++)
        assert_true(isfinite(layer->input[i]));
    free(layer);
}

static void test_threads(void **state)
{
    (void)state;
    struct layer *one = make_layer(40), *two = make_layer(40);
    struct bt_error error;
    struct bt_team *team;
    const struct bt_team_options options = {.threads = 2};
    assert_int_equal(bt_team_create(&options, &error, &team), BT_OK);
    search(one, NULL);
    search(two, team);
    bt_team_destroy(team);
    assert_memory_equal(one->input, two->input, sizeof(one->input));
    assert_memory_equal(one->inner, two->inner, sizeof(one->inner));
    free(one);
    free(two);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loud_inputs),
        cmocka_unit_test(test_even_inputs),
        cmocka_unit_test(test_products_with_the_scales),
        cmocka_unit_test(test_weight_that_is_no_number),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
