/* The arrivals and lengths of a load against the distributions that they are drawn from. The seeds
 * are fixed, so that a test either always passes or never. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "deploy/batonctl/bench_arrivals.h"
#include "deploy/batonctl/bench_lengths.h"
#include "deploy/batonctl/bench_prompt.h"

#define DRAWS 200000
#define SEED  20260101

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The greatest distance between the draws' distribution and the one they should have, times
 * sqrt(count): over 1.95 once in a thousand. */
static double kolmogorov(double *draws, size_t count, double (*cdf)(double))
{
    double worst = 0;
    qsort(draws, count, sizeof *draws, compare);
    for (size_t i = 0; i < count; i++) {
        double at = cdf(draws[i]);
        worst = fmax(worst, fabs(at - (double)i / (double)count));
        worst = fmax(worst, fabs(at - (double)(i + 1) / (double)count));
    }
    return worst * sqrt((double)count);
}

static double exponential(double x)
{
    return 1 - exp(-x);
}

/* Of shape 2 and 4 and mean 1, and of shape 1/2: closed forms. */
static double erlang_2(double x)
{
    return 1 - exp(-2 * x) * (1 + 2 * x);
}
static double erlang_4(double x)
{
    double y = 4 * x;
    return 1 - exp(-y) * (1 + y + y * y / 2 + y * y * y / 6);
}
static double chi_square_1(double x)
{
    return erf(sqrt(x / 2));
}

static void gaps(struct ctl_bench_arrivals *arrivals, double *ret_gaps)
{
    int64_t before = 0;
    for (size_t i = 0; i < DRAWS; i++) {
        int64_t at = ctl_bench_arrivals_next(arrivals);
        assert_true(at >= before);
        ret_gaps[i] = (double)(at - before) / 1e9 * arrivals->rate;
        before = at;
    }
}

static void test_gaps_follow_their_distribution(void **state)
{
    (void)state;
    static double draws[DRAWS];
    const struct {
        double burstiness;
        double (*cdf)(double);
    } cases[] = {{1, exponential}, {2, erlang_2}, {4, erlang_4}, {0.5, chi_square_1}};
    for (size_t i = 0; i < 4; i++) {
        struct ctl_bench_arrivals arrivals = {
            .kind = CTL_BENCH_GAMMA, .rate = 7.5, .burstiness = cases[i].burstiness, .seed = SEED};
        gaps(&arrivals, draws);
        double distance = kolmogorov(draws, DRAWS, cases[i].cdf);
        print_message("burstiness %g: distance %.3f\n", cases[i].burstiness, distance);
        assert_true(distance < 1.95);
    }
}

/* Shapes without a closed form, by their moments. */
static void test_mean_and_variance(void **state)
{
    (void)state;
    const double shapes[] = {0.05, 0.3, 1, 3.7, 250};
    for (size_t i = 0; i < 5; i++) {
        double sum = 0, squares = 0, shape = shapes[i];
        for (uint64_t k = 0; k < DRAWS; k++) {
            double x = ctl_bench_gamma(SEED, k, shape);
            assert_true(x >= 0 && isfinite(x));
            sum += x;
            squares += (x - 1) * (x - 1);
        }
        double deviation = sqrt(1 / shape), mean = sum / DRAWS, variance = squares / DRAWS;
        print_message("shape %g: mean %.4f, variance %.4f of %.4f\n", shape, mean, variance,
                      1 / shape);
        assert_true(fabs(mean - 1) < 4 * deviation / sqrt(DRAWS));
        /* The variance of a square: kurtosis 3 + 6/shape. */
        double spread = sqrt((2 + 6 / shape) / DRAWS) / shape;
        assert_true(fabs(variance - 1 / shape) < 4 * spread);
    }
}

static void test_gaps_are_independent(void **state)
{
    (void)state;
    static double draws[DRAWS];
    struct ctl_bench_arrivals arrivals = {
        .kind = CTL_BENCH_GAMMA, .rate = 1, .burstiness = 1, .seed = SEED};
    gaps(&arrivals, draws);
    double product = 0;
    for (size_t i = 0; i + 1 < DRAWS; i++)
        product += (draws[i] - 1) * (draws[i + 1] - 1);
    assert_true(fabs(product / DRAWS) < 4 / sqrt(DRAWS));
}

static void test_one_seed_one_order(void **state)
{
    (void)state;
    struct ctl_bench_arrivals one = {
        .kind = CTL_BENCH_GAMMA, .rate = 3, .burstiness = 0.7, .seed = SEED};
    struct ctl_bench_arrivals same = one, other = one;
    other.seed++;
    int differ = 0;
    for (int i = 0; i < 100; i++) {
        int64_t at = ctl_bench_arrivals_next(&one);
        assert_int_equal(at, ctl_bench_arrivals_next(&same));
        differ += at != ctl_bench_arrivals_next(&other);
    }
    assert_true(differ > 90);
}

static void test_bursts(void **state)
{
    (void)state;
    struct ctl_bench_arrivals arrivals = {
        .kind = CTL_BENCH_BURST, .burst = 3, .every_ns = 250000000};
    const int64_t wanted[] = {0, 0, 0, 250000000, 250000000, 250000000, 500000000};
    for (size_t i = 0; i < 7; i++)
        assert_int_equal(ctl_bench_arrivals_next(&arrivals), wanted[i]);
}

static void test_extremes_stay_times(void **state)
{
    (void)state;
    struct ctl_bench_arrivals slow = {
        .kind = CTL_BENCH_GAMMA, .rate = 1e-300, .burstiness = 0.01, .seed = 1};
    int64_t before = 0;
    for (int i = 0; i < 1000; i++) {
        int64_t at = ctl_bench_arrivals_next(&slow);
        assert_true(at >= before && at <= (int64_t)(CTL_BENCH_LONGEST_S * 1e9));
        before = at;
    }
}

static void test_rates(void **state)
{
    (void)state;
    struct bt_error error;
    double rate, rates[CTL_BENCH_RATES_MAX];
    uint32_t count;
    assert_int_equal(ctl_bench_rate_parse("inf", &error, &rate), BT_OK);
    assert_true(rate == 0);
    assert_int_equal(ctl_bench_rate_parse("2.5", &error, &rate), BT_OK);
    assert_true(rate == 2.5);
    const char *const bad[] = {"", "0", "-1", "nan", "1e9", "3x", "infinity", " "};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(ctl_bench_rate_parse(bad[i], &error, &rate), BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(ctl_bench_rates_parse("1,2.5,1000", &error, rates, &count), BT_OK);
    assert_int_equal(count, 3);
    assert_true(rates[0] == 1 && rates[1] == 2.5 && rates[2] == 1000);
    const char *const lists[] = {
        "",     ",",     "1,",  ",1",
        "1,,2", "1,inf", "1;2", "11111111111111111111111111111111111111111111"};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        assert_int_equal(ctl_bench_rates_parse(lists[i], &error, rates, &count),
                         BT_ERR_INVALID_ARGUMENT);
    char many[4 * CTL_BENCH_RATES_MAX + 8] = "1";
    for (int i = 0; i < CTL_BENCH_RATES_MAX; i++)
        strcat(many, ",2");
    assert_int_equal(ctl_bench_rates_parse(many, &error, rates, &count), BT_ERR_INVALID_ARGUMENT);
}

/* ------------------------------------------------------------------ lengths */

static struct ctl_bench_lengths lengths(const char *text)
{
    struct bt_error error;
    struct ctl_bench_lengths parsed;
    assert_int_equal(ctl_bench_lengths_parse(text, &error, &parsed), BT_OK);
    return parsed;
}

static void test_lengths(void **state)
{
    (void)state;
    struct bt_error error;
    struct ctl_bench_lengths fixed = lengths("512"), range = lengths("3:6"),
                             normal = lengths("lognormal:200:0.5"), parsed;
    uint32_t seen[7] = {0};
    double logs = 0, squares = 0, sum = 0;
    for (uint64_t i = 0; i < DRAWS; i++) {
        assert_int_equal(ctl_bench_lengths_draw(&fixed, SEED, i), 512);
        uint32_t one = ctl_bench_lengths_draw(&range, SEED, i);
        assert_in_range(one, 3, 6);
        seen[one]++;
        double length = ctl_bench_lengths_draw(&normal, SEED, i);
        sum += length;
        logs += log(length);
        squares += log(length) * log(length);
    }
    for (int i = 3; i <= 6; i++) /* binomial, 4 sigma */
        assert_true(fabs(seen[i] - DRAWS / 4.) < 4 * sqrt(DRAWS * 0.25 * 0.75));
    double mean = logs / DRAWS, deviation = sqrt(squares / DRAWS - mean * mean);
    print_message("lognormal: mean %.2f, deviation of logarithms %.4f\n", sum / DRAWS, deviation);
    /* The mean deviates by 200 sqrt(e^0.25 - 1); the deviation by sigma / sqrt(2n). */
    assert_true(fabs(sum / DRAWS - 200) < 4 * 200 * sqrt(exp(0.25) - 1) / sqrt(DRAWS));
    assert_true(fabs(deviation - 0.5) < 4 * 0.5 / sqrt(2. * DRAWS));
    const char *const bad[] = {"",
                               "-1",
                               "5:3",
                               "1:",
                               "x",
                               "1:2:3",
                               "lognormal",
                               "lognormal:5",
                               "999999999",
                               "lognormal:0:1",
                               "lognormal:5:9",
                               "lognormal:5:0",
                               "1 ",
                               "lognormal:nan:1",
                               "18446744073709551616"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(ctl_bench_lengths_parse(bad[i], &error, &parsed), BT_ERR_INVALID_ARGUMENT);
}

static void expect_fit(const char *input, const char *output, uint32_t room, const uint32_t *drawn,
                       uint32_t wanted_input, uint32_t wanted_output)
{
    struct ctl_bench_lengths in = lengths(input), out = lengths(output);
    uint32_t fitting[2] = {drawn[0], drawn[1]};
    ctl_bench_lengths_fit(&in, &out, room, &fitting[0], &fitting[1]);
    assert_int_equal(fitting[0], wanted_input);
    assert_int_equal(fitting[1], wanted_output);
}

static void test_drawn_lengths_fit(void **state)
{
    (void)state;
    const uint32_t some[] = {60, 30}, most[] = {900, 900}, one[] = {1, 1};
    expect_fit("1:999", "1:999", 90, some, 60, 30);
    expect_fit("1:999", "1:999", 89, some, 59, 30);
    expect_fit("1:999", "1:999", 89, most, 1, 88);
    expect_fit("1:999", "1:999", 2, most, 1, 1);
    expect_fit("1:999", "1:999", 2, one, 1, 1);
    expect_fit("1:999", "30", 80, some, 50, 30);
    expect_fit("60", "lognormal:30:1", 80, some, 60, 20);
    /* What is named stays, and nothing helps. */
    expect_fit("60", "30", 80, some, 60, 30);
    expect_fit("900", "1:999", 900, most, 900, 899);
    expect_fit("1:999", "900", 900, most, 900, 900);
    expect_fit("1:999", "1:999", 1, some, 60, 30);
    struct ctl_bench_lengths wide = lengths("lognormal:500:2"), any = lengths("1:600");
    uint32_t cut = 0;
    for (uint64_t i = 0; i < DRAWS; i++) {
        uint32_t input = ctl_bench_lengths_draw(&wide, SEED, i), before = input,
                 output = ctl_bench_lengths_draw(&any, SEED + 1, i);
        ctl_bench_lengths_fit(&wide, &any, 512, &input, &output);
        assert_true(input >= 1 && output >= 1 && input + output <= 512);
        assert_true(input == before || input + output == 512);
        cut += input != before;
    }
    assert_true(cut > 0 && cut < DRAWS);
}

/* ------------------------------------------------------------------ prompts */

static const uint32_t pool[] = {7, 11, 13, 17, 19, 23, 29, 31};

static struct ctl_bench_prompts prompts(void)
{
    return (struct ctl_bench_prompts){.pool = pool,
                                      .pool_count = 8,
                                      .seed = SEED,
                                      .prefix_tokens = 40,
                                      .prefix_count = 2,
                                      .block_tokens = 16,
                                      .tokens_per_word = 1.6};
}

static size_t common(const uint32_t *a, const uint32_t *b, size_t count)
{
    size_t same = 0;
    while (same < count && a[same] == b[same])
        same++;
    return same;
}

static void test_prefixes_are_shared(void **state)
{
    (void)state;
    struct ctl_bench_prompts p = prompts();
    uint32_t ids[4][100], again[100], other[100];
    for (uint64_t i = 0; i < 4; i++)
        ctl_bench_prompt_ids(&p, i, 60, ids[i]);
    ctl_bench_prompt_ids(&p, 3, 60, again);
    assert_memory_equal(again, ids[3], sizeof again);
    assert_in_range(common(ids[0], ids[2], 100), 40, 50);
    assert_in_range(common(ids[1], ids[3], 100), 40, 50);
    assert_in_range(common(ids[0], ids[1], 100), 0, 10);
    p.seed++;
    ctl_bench_prompt_ids(&p, 3, 60, other);
    assert_in_range(common(other, ids[3], 100), 0, 10);
    uint32_t seen = 0;
    for (size_t i = 0; i < 100; i++)
        for (size_t k = 0; k < 8; k++)
            seen |= (uint32_t)(ids[0][i] == pool[k]) << k;
    assert_int_equal(seen, 0xff);
}

static void test_blocks_are_shared(void **state)
{
    (void)state;
    struct ctl_bench_prompts p = prompts();
    const uint64_t a[] = {1, 2, 3}, b[] = {1, 2, 4};
    uint32_t one[60], two[60], cut[20], own[60];
    ctl_bench_prompt_blocks(&p, 0, a, 3, 60, one); /* the last 12 are its own */
    ctl_bench_prompt_blocks(&p, 1, b, 3, 60, two);
    assert_in_range(common(one, two, 60), 32, 40);
    ctl_bench_prompt_blocks(&p, 2, a, 3, 20, cut);
    assert_int_equal(common(cut, one, 20), 20);
    ctl_bench_prompt_blocks(&p, 3, a, 3, 60, own);
    assert_in_range(common(own, one, 60), 48, 56);
    ctl_bench_prompt_blocks(&p, 4, NULL, 0, 60, own);
    assert_in_range(common(own, one, 60), 0, 8);
}

static void test_texts(void **state)
{
    (void)state;
    struct ctl_bench_prompts p = prompts();
    char *a = ctl_bench_prompt_text(&p, 0, 64), *b = ctl_bench_prompt_text(&p, 2, 64);
    size_t words = 1;
    for (const char *c = a; *c; c++)
        words += *c == ' ';
    assert_int_equal(words, 25 + 40);
    size_t shared = 0, blanks = 0;
    for (; a[shared] && a[shared] == b[shared]; shared++)
        blanks += a[shared] == ' ';
    assert_in_range(blanks, 25, 30);
    free(a);
    free(b);
    p.prefix_tokens = 0;
    a = ctl_bench_prompt_text(&p, 0, 1);
    assert_true(*a && !strchr(a, ' '));
    free(a);
}

int main(void)
{
    print_message("seed %d\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gaps_follow_their_distribution),
        cmocka_unit_test(test_mean_and_variance),
        cmocka_unit_test(test_gaps_are_independent),
        cmocka_unit_test(test_one_seed_one_order),
        cmocka_unit_test(test_bursts),
        cmocka_unit_test(test_extremes_stay_times),
        cmocka_unit_test(test_rates),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_drawn_lengths_fit),
        cmocka_unit_test(test_prefixes_are_shared),
        cmocka_unit_test(test_blocks_are_shared),
        cmocka_unit_test(test_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
