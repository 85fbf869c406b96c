/* DeepSeek V3/R1 on H20 as the published tables count them, symbol by symbol. */
#ifndef BATON_TESTS_UNIT_PLANNER_PUBLISHED_H
#define BATON_TESTS_UNIT_PLANNER_PUBLISHED_H

#include "common/planner/hardware.h"
#include "common/planner/resources.h"

extern const struct bt_plan_model published_model;
extern const struct bt_plan_dtypes published_w4a8, published_fp8;

/* H20: 296 * 1024 G of fp8 a second, as the tables divide; 4000, 900 and 50 GB/s. */
struct bt_plan_hardware published_h20(void);

/* Fails with `what` unless |got - expected| <= tolerance. */
void assert_near(const char *what, double got, double expected, double tolerance);

#endif
