/*
 * Which requests kill the workers that run them. Internal to the core; pure.
 *
 * Workers also die of other causes, with whatever runs there, and that must not end a request. What
 * is known of a request and its deaths (workers that died while they computed for it):
 *
 *   - What a request makes a worker compute is a function of the request alone, so one that kills
 *     does it at the same place each time. A request that got past the place where a worker died
 *     under it, did not kill that worker: only deaths in a row without a new token between them
 *     count, and of prefill workers only those before the first token.
 *   - A death is shared by those that ran there. The share of a request is one over the number of
 *     those that have at least as many deaths in a row as it has itself: one that dies again among
 *     requests that are there for the first time, has the whole of it.
 *   - Where workers die without it, too, its own deaths say less: each such death within a minute
 *     makes it need one more, up to twice as many in all.
 *
 *   - Those that died together would go on together. After RT_ISOLATED_DEATHS in a row, the workers
 *     that a request is placed on get nothing else until it got on.
 *
 * A request is poison when its shares in a row reach `poison_deaths`, raised as the third rule
 * says. So one that kills is stopped after `poison_deaths` workers where it is alone, and after one
 * or two more where it runs among others.
 */
#ifndef BATON_ROUTER_POISON_H
#define BATON_ROUTER_POISON_H

#include <stdbool.h>
#include <stdint.h>

#include "router/core.h"

#define RT_DEATHS_KEPT      64 /* more in the window count as so many */
#define RT_DEATHS_WINDOW_NS (INT64_C(60) * 1000000000)
#define RT_ISOLATED_DEATHS  2
#define RT_STREAK_LEVELS    8 /* longer streaks are told apart no more */

/* Of one request. Zero: none. */
struct rt_suspicion {
    uint32_t deaths;    /* in a row */
    uint32_t delivered; /* tokens that it had got to at the last of them */
    double shares;      /* of these deaths */
};

/* Of workers, whoever ran there. Zero: none. */
struct rt_deaths {
    int64_t when_ns[RT_DEATHS_KEPT];
    uint32_t next, count;
};

/* Those that a dying worker computed for, by their deaths in a row before it. Zero: nobody. */
struct rt_exposed {
    uint32_t by_streak[RT_STREAK_LEVELS];
};

void rt_deaths_add(struct rt_deaths *deaths, int64_t now_ns);

/* Whether what it runs on should get nothing else. */
bool rt_suspicion_isolates(const struct rt_suspicion *suspicion, uint32_t delivered);

/* First for all that the worker computed for… */
void rt_exposed_add(struct rt_exposed *exposed, const struct rt_suspicion *suspicion,
                    uint32_t delivered);
/* …then for each of them. The death is in `deaths` already. True: it is poison. */
bool rt_suspicion_death(struct rt_suspicion *suspicion, uint32_t delivered,
                        const struct rt_exposed *exposed, const struct rt_deaths *deaths,
                        uint32_t poison_deaths, int64_t now_ns);

#endif
