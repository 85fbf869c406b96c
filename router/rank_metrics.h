/* Metrics of the single ranks, and of how evenly they are used. Internal to the service. */
#ifndef BATON_ROUTER_RANK_METRICS_H
#define BATON_ROUTER_RANK_METRICS_H

#include <stdio.h>

#include "router/worker_link.h"

/* Of more ranks only the sums are told: a page of metrics is made in one go. */
#define RT_RANK_METRICS_MAX 4096

/*
 * Lines of exposition text. They are no objects of the registry, which keeps what it has for ever,
 * while workers come and go. `labels`: model_name="…".
 */
void rt_rank_metrics_render(const struct rt_service *service, const char *labels, FILE *out);

/* A prefill worker has written so much. */
void rt_rank_metrics_pushed(struct rt_worker_link *link, uint64_t bytes, int64_t now_ns);

#endif
