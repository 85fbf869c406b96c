#include "tests/unit/planner/published.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

const struct bt_plan_model published_model = {
    .layers = 61,
    .moe_layers = 58,
    .heads = 128,
    .nope_dim = 128,
    .rope_dim = 64,
    .value_dim = 128,
    .kv_rank = 512,
    .q_rank = 1536,
    .hidden = 7168,
    .moe_intermediate = 2048,
    .routed_experts = 256,
    .shared_experts = 1,
    .experts_per_token = 8,
    .active_parameters = 25.6 * BT_PLAN_G,
    .dense_parameters = 14e9,
    .moe_parameters = 657e9,
    .streams = 1,
};

const struct bt_plan_dtypes published_w4a8 = {1, 0.5, 1, 1, 0, 1, 2, BT_PLAN_FP8, false};
const struct bt_plan_dtypes published_fp8 = {1, 1, 1, 1, 0, 1, 2, BT_PLAN_FP8, false};

struct bt_plan_hardware published_h20(void)
{
    return (struct bt_plan_hardware){
        .name = "h20",
        .figure = {[BT_PLAN_PEAK + BT_PLAN_BF16] = 148.0 * 1024 * BT_PLAN_G,
                   [BT_PLAN_PEAK + BT_PLAN_FP8] = 296.0 * 1024 * BT_PLAN_G,
                   [BT_PLAN_MEMORY] = 96e9,
                   [BT_PLAN_MEMORY_BANDWIDTH] = 4000 * 1e9,
                   [BT_PLAN_RESERVE] = 10e9,
                   [BT_PLAN_NODE_CARDS] = 8,
                   [BT_PLAN_INSIDE] = 900 * BT_PLAN_G,
                   [BT_PLAN_BETWEEN] = 50 * BT_PLAN_G,
                   [BT_PLAN_PRICE] = 1,
                   [BT_PLAN_CORES] = 1},
    };
}

void assert_near(const char *what, double got, double expected, double tolerance)
{
    if (!(fabs(got - expected) <= tolerance))
        fail_msg("%s: %.9g, expected %.9g +- %.3g", what, got, expected, tolerance);
}
