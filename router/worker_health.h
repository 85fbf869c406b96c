/*
 * The circuit breaker of one worker. Internal to the core.
 *
 * CLOSED -> OPEN after `breaker_failures` failures of its own within `breaker_window_ns`: it gets
 * nothing. After a time HALF_OPEN: it may get one request, and is PROBING while that runs. The
 * first good sign closes it; a failure opens it again for twice as long.
 *
 * A worker that comes back under the same id again and again after short lives has its breaker
 * open from the start, each time for twice as long.
 */
#ifndef BATON_ROUTER_WORKER_HEALTH_H
#define BATON_ROUTER_WORKER_HEALTH_H

#include "router/core.h"

struct rt_worker_health {
    enum rt_breaker breaker;
    uint32_t failures;     /* in the window */
    int64_t window_end_ns; /* of the first of them */
    uint32_t openings;     /* in a row */
    int64_t open_until_ns;
    int64_t born_ns;
    uint32_t short_lives; /* before this one, in a row */
};

/* Whether it may get a request. */
bool rt_health_willing(const struct rt_worker_health *health);
/* Whether another failure now opens it. */
bool rt_health_tips(const struct rt_worker_health *health, const struct rt_core_options *options,
                    int64_t now_ns);
/* `may_open`: others are left. */
void rt_health_failed(struct rt_worker_health *health, const struct rt_core_options *options,
                      bool may_open, int64_t now_ns);
void rt_health_succeeded(struct rt_worker_health *health);
void rt_health_placed(struct rt_worker_health *health);   /* a request */
void rt_health_released(struct rt_worker_health *health); /* one that proved nothing */
void rt_health_tick(struct rt_worker_health *health, int64_t now_ns);
/* A process that follows one that was lost at `lost_ns` (`before`; NULL: none is known). */
void rt_health_born(struct rt_worker_health *health, const struct rt_worker_health *before,
                    const struct rt_core_options *options, int64_t lost_ns, bool may_open,
                    int64_t now_ns);

#endif
