/*
 * Keeps what the service's status shows beyond the present: the history of the last minutes and the
 * last survey of the cluster. Loop thread only.
 *
 * Every RT_HISTORY_STEP_NS it looks at all workers and requests, RT_MONITOR_SLICE of them at a time
 * and other events in between, and then takes a step of the history.
 */
#ifndef BATON_ROUTER_MONITOR_H
#define BATON_ROUTER_MONITOR_H

#include "router/history.h"
#include "router/stages.h"
#include "router/survey.h"

#define RT_MONITOR_SLICE 2048

struct rt_service;
struct rt_stream;

struct rt_monitor;

struct rt_monitor *rt_monitor_create(struct rt_service *service); /* NULL: no memory */
void rt_monitor_destroy(struct rt_monitor *monitor);

/* A NULL monitor is fine. */
void rt_monitor_first_token(struct rt_monitor *monitor, const struct rt_stream *stream,
                            int64_t now_ns);
void rt_monitor_stage(struct rt_monitor *monitor, enum rt_ttft_stage stage, int64_t stage_ns);
void rt_monitor_end(struct rt_monitor *monitor, const struct rt_stream *stream,
                    enum rt_finish finish);

const struct rt_history *rt_monitor_history(const struct rt_monitor *monitor);
/* At most RT_HISTORY_STEP_NS old, and of this moment where all is seen in one slice. */
const struct rt_survey_result *rt_monitor_survey(struct rt_monitor *monitor);
void rt_monitor_totals(const struct rt_monitor *monitor, struct rt_history_totals *ret_totals);

#endif
