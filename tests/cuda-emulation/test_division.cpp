/*
 * How launches of grouped products on sm_90 are divided, by count: a grid of whole clusters that
 * stay at once, in which no block takes more tiles than without clusters.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

extern "C" {
#include <cmocka.h>
}

#include "common/kernels/cuda/grouped_gemm_wgmma.cuh"

#define ROWS   256 /* of a tile */
#define PANELS 2
#define FEW    64 /* rows */

static uint64_t ceil_of(uint64_t count, uint64_t each)
{
    return (count + each - 1) / each;
}

/* Rows of one group. */
static void check(int multiprocessors, uint32_t outs, uint32_t weights, uint32_t rows)
{
    static bt_cuda_grouped_call call;
    call.rows = rows;
    call.groups = 1;
    call.weights = weights;
    call.outs = outs;
    call.data[0][0] = &call;
    const bt_grouped_division division = bt_grouped_divide(&call, multiprocessors, ROWS, PANELS);
    const uint64_t strips = rows / ROWS + 1;
    const uint64_t columns = ceil_of(outs, division.panels * BT_CUDA_PANEL) * weights;
    const uint64_t alone = ceil_of(strips * columns, (uint64_t)multiprocessors);
    assert_true(division.blocks > 0 && division.blocks <= (unsigned)multiprocessors);
    assert_int_equal(division.blocks % division.cluster, 0);
    assert_true(ceil_of(strips * ceil_of(columns, division.cluster),
                        division.blocks / division.cluster) <= alone);
    if (rows <= FEW)
        assert_int_equal(division.cluster, 1);
    else if (columns % 2 == 0 && multiprocessors % 2 == 0)
        assert_int_equal(division.cluster, 2);
}

static void test_division(void **unused)
{
    (void)unused;
    for (int multiprocessors : {1, 2, 3, 16, 114, 132})
        for (uint32_t outs : {64, 576, 1408, 2048, 2112})
            for (uint32_t weights : {1, 2})
                for (uint32_t rows = 1; rows < 8192; rows += 21)
                    check(multiprocessors, outs, weights, rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_division)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
