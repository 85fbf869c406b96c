/* What groups send is what the four-resource model says, in every layout. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/model-groups/wire_bytes.h"

#define TOLERANCE 0.02

static void test_sent_as_predicted(void **state)
{
    struct wire_report report;
    const struct wire_figure *figures = report.figures;
    (void)state;
    assert_true(wire_bytes_measure(TESTS_MODELS, &report));
    assert_int_equal(report.count, 1 + 3 + 3 + 2 + 2);
    for (size_t i = 0; i < report.count; i++) {
        print_message("%s: %.1f bytes a token, predicted %.1f\n", figures[i].name, figures[i].sent,
                      figures[i].predicted);
        assert_true(figures[i].predicted > 0);
        assert_true(fabs(figures[i].sent / figures[i].predicted - 1) <= TOLERANCE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sent_as_predicted)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
