/* The catalogue of cards, the files over it, and calibrations. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/planner/calibration.h"
#include "common/planner/hardware.h"
#include "tests/unit/planner/published.h"
#include "tests/unit/planner/scratch_file.h"

static struct bt_plan_catalogue catalogue;

static const struct bt_plan_hardware *find(const char *name)
{
    const struct bt_plan_hardware *hardware = NULL;
    struct bt_error error = {0};
    assert_int_equal(bt_plan_catalogue_find(&catalogue, name, &error, &hardware), BT_OK);
    return hardware;
}

static void load(void)
{
    struct bt_error error = {0};
    if (bt_plan_catalogue_load(NULL, &error, &catalogue) != BT_OK)
        fail_msg("%s", error.text);
}

/* Peaks halve from fp4 to fp8 to bf16 where a card has them, dense: 8-bit is twice 16-bit. */
static void each_card_has_its_figures_and_their_sources(void **state)
{
    (void)state;
    static const char *const names[] = {"h20",  "h800",   "h100",       "h200",   "b200",
                                        "a100", "mi300x", "cpu-avx512", "cpu-amx"};
    load();
    assert_int_equal(catalogue.count, sizeof(names) / sizeof(names[0]));
    for (size_t i = 0; i < catalogue.count; i++) {
        const struct bt_plan_hardware *card = find(names[i]);
        const double *figure = card->figure, *peak = &figure[BT_PLAN_PEAK];
        assert_near("8 bits", peak[BT_PLAN_INT8] / peak[BT_PLAN_BF16], 2, 0.001);
        if (peak[BT_PLAN_FP8] > 0)
            assert_near("fp8", peak[BT_PLAN_FP8] / peak[BT_PLAN_BF16], 2, 0.001);
        if (peak[BT_PLAN_FP4] > 0)
            assert_near("fp4", peak[BT_PLAN_FP4] / peak[BT_PLAN_FP8], 2, 0.001);
        for (int j = 0; j < BT_PLAN_FIGURES; j++)
            if (figure[j] > 0 && j != BT_PLAN_CORES && !*card->source[j])
                fail_msg("%s.%s has no source", card->name,
                         bt_plan_figure_key((enum bt_plan_figure)j));
        assert_true(figure[BT_PLAN_INSIDE] >= figure[BT_PLAN_BETWEEN]);
    }
}

static void h20_is_the_tables(void **state)
{
    (void)state;
    load();
    const double *figure = find("h20")->figure;
    assert_near("fp8", figure[BT_PLAN_PEAK + BT_PLAN_FP8], 296e12, 1);
    assert_near("memory", figure[BT_PLAN_MEMORY], 96e9, 1);
    assert_near("bandwidth", figure[BT_PLAN_MEMORY_BANDWIDTH], 4000e9, 1);
    assert_near("inside", figure[BT_PLAN_INSIDE], 900e9, 1);
    assert_near("between", figure[BT_PLAN_BETWEEN], 50e9, 1);
    assert_near("reserve", figure[BT_PLAN_RESERVE], 10e9, 1);
}

static void missing_numbers_fall_to_the_next_wider(void **state)
{
    (void)state;
    load();
    enum bt_plan_number used;
    assert_near("A100 fp8", bt_plan_hardware_peak(find("a100"), BT_PLAN_FP8, &used), 624e12, 1e6);
    assert_int_equal(used, BT_PLAN_INT8);
    assert_near("H100 fp4", bt_plan_hardware_peak(find("h100"), BT_PLAN_FP4, &used), 1978.9e12,
                1e6);
    assert_int_equal(used, BT_PLAN_FP8);
    assert_near("B200 fp4", bt_plan_hardware_peak(find("b200"), BT_PLAN_FP4, &used), 9000e12, 1e6);
    assert_int_equal(used, BT_PLAN_FP4);
    assert_near("bf16", bt_plan_hardware_peak(find("h20"), BT_PLAN_BF16, &used), 148e12, 1e6);
}

static void cores_scale_peaks_alone(void **state)
{
    (void)state;
    load();
    struct bt_plan_hardware one = *find("cpu-avx512"), four = one;
    bt_plan_hardware_set_cores(&four, 4);
    bt_plan_hardware_set_cores(&one, 1);
    assert_near("bf16", four.figure[BT_PLAN_PEAK] / one.figure[BT_PLAN_PEAK], 4, 1e-9);
    assert_near("bandwidth", four.figure[BT_PLAN_MEMORY_BANDWIDTH],
                one.figure[BT_PLAN_MEMORY_BANDWIDTH], 0);
}

#define FIGURE(key, value) "\"" key "\":{\"value\":" value ",\"source\":\"s\"}"
#define ENTRY(name, more)                                                                          \
    "{\"accelerators\":[{\"name\":\"" name                                                         \
    "\",\"title\":\"T\"," FIGURE("memory_gb", "10") "," FIGURE("memory_gb_s", "100") "," FIGURE(   \
        "bf16_tflops", "1") "," FIGURE("node_cards",                                               \
                                       "4") "," FIGURE("inside_gb_s",                              \
                                                       "10") "," FIGURE("between_gb_s", "1") more  \
        "}]}"
#define PRICE "," FIGURE("price_per_hour", "3")

static enum bt_status load_over(const char *text, struct bt_error *error)
{
    struct scratch_file file;
    scratch_file_open("cards.json", text, &file);
    enum bt_status status = bt_plan_catalogue_load(file.path, error, &catalogue);
    scratch_file_close(&file);
    return status;
}

static void a_file_adds_and_replaces(void **state)
{
    (void)state;
    struct bt_error error = {0};
    load();
    size_t count = catalogue.count;
    assert_int_equal(load_over(ENTRY("mine", PRICE), &error), BT_OK);
    assert_int_equal(catalogue.count, count + 1);
    assert_near("memory", find("mine")->figure[BT_PLAN_MEMORY], 10e9, 0);
    assert_near("reserve by default", find("mine")->figure[BT_PLAN_RESERVE], 10e9, 0);
    assert_int_equal(load_over(ENTRY("h20", PRICE), &error), BT_OK);
    assert_int_equal(catalogue.count, count);
    assert_near("price", find("h20")->figure[BT_PLAN_PRICE], 3, 0);
    const struct bt_plan_hardware *none;
    assert_int_equal(bt_plan_catalogue_find(&catalogue, "nope", &error, &none), BT_ERR_NOT_FOUND);
    assert_non_null(strstr(error.text, "mi300x"));
}

static void faults_name_file_entry_and_key(void **state)
{
    (void)state;
    static const struct {
        const char *text, *what;
    } cases[] = {
        {ENTRY("a", ""), "a.price_per_hour"},
        {ENTRY("a", PRICE ",\"memroy_gb\":1"), "a.memroy_gb"},
        {ENTRY("a", PRICE "," FIGURE("int8_tops", "-1")), "a.int8_tops.value"},
        {ENTRY("a", PRICE ",\"int8_tops\":5"), "a.int8_tops"},
        {ENTRY("a", PRICE ",\"int8_tops\":{\"value\":5}"), "a.int8_tops.source"},
        {ENTRY("a", PRICE ",\"int8_tops\":{\"value\":5,\"source\":\"s\",\"x\":1}"),
         "a.int8_tops.x"},
        {"{\"accelerators\":[3]}", "accelerators[0]"},
        {"{\"accelerators\":[{}]}", "accelerators[0].name"},
        {"{\"accelerators\":{}}", "accelerators"},
        {"{\"other\":[]}", "other"},
        {ENTRY("a name that is longer than 31 characters", PRICE), "name"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bt_error error = {0};
        assert_int_equal(load_over(cases[i].text, &error), BT_ERR_INVALID_ARGUMENT);
        if (!strstr(error.text, cases[i].what) || !strstr(error.text, "cards.json"))
            fail_msg("case %zu: %s", i, error.text);
    }
    struct bt_error error = {0};
    assert_int_equal(bt_plan_catalogue_load("/nonexistent", &error, &catalogue), BT_ERR_NOT_FOUND);
}

static void more_entries_than_there_is_room_for_are_refused(void **state)
{
    (void)state;
    static char text[BT_PLAN_HARDWARE_MAX * 800];
    size_t at = (size_t)snprintf(text, sizeof(text), "{\"accelerators\":[");
    for (int i = 0; i < BT_PLAN_HARDWARE_MAX; i++) {
        const char *entry = ENTRY("", PRICE);
        const char *begin = strstr(entry, "\",\"title"), *end = strstr(entry, "]}");
        at += (size_t)snprintf(text + at, sizeof(text) - at, "%s{\"name\":\"n%d%.*s", i ? "," : "",
                               i, (int)(end - begin), begin);
    }
    snprintf(text + at, sizeof(text) - at, "]}");
    struct bt_error error = {0};
    assert_int_equal(load_over(text, &error), BT_ERR_EXHAUSTED);
}

static void a_calibration_keeps_what_it_leaves_out(void **state)
{
    (void)state;
    struct scratch_file file;
    struct bt_error error = {0};
    struct bt_plan_calibration calibration;
    scratch_file_open("measured.json",
                      "{\"prefill_mfu\":0.42,\"overlap\":\"card\",\"source\":\"a run\","
                      "\"sequence_overhead_s\":0.002,\"request_overhead_s\":0.03}",
                      &file);
    assert_int_equal(bt_plan_calibration_load(file.path, &error, &calibration), BT_OK);
    scratch_file_close(&file);
    struct bt_plan_calibration rules = bt_plan_calibration_default();
    assert_near("given", calibration.prefill_mfu, 0.42, 0);
    assert_near("of a sequence", calibration.sequence_overhead_s, 0.002, 0);
    assert_near("of a request", calibration.request_overhead_s, 0.03, 0);
    assert_near("left out", calibration.decode_mfu, rules.decode_mfu, 0);
    assert_near("left out: of a step", calibration.step_overhead_s, 0, 0);
    assert_near("no rule of thumb", rules.sequence_overhead_s + rules.request_overhead_s, 0, 0);
    assert_int_equal(calibration.overlap, BT_PLAN_OVERLAP_CARD);
    assert_int_equal(calibration.routing, BT_PLAN_ROUTING_EXPECTED);
    assert_string_equal(calibration.source, "a run");
    assert_true(calibration.measured);
    assert_false(rules.measured);
    assert_near("rule of thumb: MFU", rules.prefill_mfu, 0.60, 0);
    assert_near("rule of thumb: memory", rules.memory_limit, 0.85, 0);
}

static void faults_of_a_calibration_name_file_and_key(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"{\"prefill_mfu\":0}", "prefill_mfu"},
        {"{\"prefill_mfu\":1.1}", "prefill_mfu"},
        {"{\"expert_skew\":0.9}", "expert_skew"},
        {"{\"mfu\":0.5}", "mfu"},
        {"{\"overlap\":\"some\"}", "overlap"},
        {"{\"routing\":3}", "routing"},
        {"{\"sequence_overhead_s\":-1e-9}", "sequence_overhead_s"},
        {"{\"request_overhead_s\":601}", "request_overhead_s"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct scratch_file file;
        struct bt_error error = {0};
        struct bt_plan_calibration calibration;
        scratch_file_open("measured.json", cases[i][0], &file);
        assert_int_equal(bt_plan_calibration_load(file.path, &error, &calibration),
                         BT_ERR_INVALID_ARGUMENT);
        scratch_file_close(&file);
        assert_non_null(strstr(error.text, cases[i][1]));
        assert_non_null(strstr(error.text, "measured.json"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_card_has_its_figures_and_their_sources),
        cmocka_unit_test(h20_is_the_tables),
        cmocka_unit_test(missing_numbers_fall_to_the_next_wider),
        cmocka_unit_test(cores_scale_peaks_alone),
        cmocka_unit_test(a_file_adds_and_replaces),
        cmocka_unit_test(faults_name_file_entry_and_key),
        cmocka_unit_test(more_entries_than_there_is_room_for_are_refused),
        cmocka_unit_test(a_calibration_keeps_what_it_leaves_out),
        cmocka_unit_test(faults_of_a_calibration_name_file_and_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
