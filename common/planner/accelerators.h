/* The text of accelerators.json, built in. Inside common/planner only. */
#ifndef BATON_COMMON_PLANNER_ACCELERATORS_H
#define BATON_COMMON_PLANNER_ACCELERATORS_H

extern const char bt_plan_accelerators[];

#endif
