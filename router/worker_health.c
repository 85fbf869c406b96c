#include "router/worker_health.h"

/* Doubled no oftener than this. */
#define DOUBLINGS_MAX 20

bool rt_health_willing(const struct rt_worker_health *health)
{
    return health->breaker == RT_BREAKER_CLOSED || health->breaker == RT_BREAKER_HALF_OPEN;
}

static void open_for(struct rt_worker_health *health, const struct rt_core_options *options,
                     uint32_t times, int64_t now_ns)
{
    uint32_t doublings = times < DOUBLINGS_MAX ? times : DOUBLINGS_MAX;
    int64_t time_ns = options->breaker_open_ns;
    while (doublings-- > 0 && time_ns < options->breaker_open_max_ns) {
        time_ns *= 2;
    }
    if (time_ns > options->breaker_open_max_ns) {
        time_ns = options->breaker_open_max_ns;
    }
    health->breaker = RT_BREAKER_OPEN;
    health->open_until_ns = now_ns + time_ns;
    health->failures = 0;
}

static bool on_trial(const struct rt_worker_health *health)
{
    return health->breaker == RT_BREAKER_HALF_OPEN || health->breaker == RT_BREAKER_PROBING;
}

bool rt_health_tips(const struct rt_worker_health *health, const struct rt_core_options *options,
                    int64_t now_ns)
{
    if (options->breaker_failures == 0 || health->breaker == RT_BREAKER_OPEN) {
        return false;
    }
    uint32_t before = now_ns < health->window_end_ns ? health->failures : 0;
    return on_trial(health) || before + 1 >= options->breaker_failures;
}

void rt_health_failed(struct rt_worker_health *health, const struct rt_core_options *options,
                      bool may_open, int64_t now_ns)
{
    bool tips = rt_health_tips(health, options, now_ns);
    if (health->failures == 0 || now_ns >= health->window_end_ns) {
        health->failures = 0;
        health->window_end_ns = now_ns + options->breaker_window_ns;
    }
    health->failures++;
    if (tips && may_open) {
        open_for(health, options, health->openings++, now_ns);
    } else if (health->breaker == RT_BREAKER_PROBING) {
        health->breaker = RT_BREAKER_HALF_OPEN;
    }
}

void rt_health_succeeded(struct rt_worker_health *health)
{
    if (on_trial(health)) {
        health->breaker = RT_BREAKER_CLOSED;
        health->failures = 0;
        health->openings = 0;
    }
}

void rt_health_placed(struct rt_worker_health *health)
{
    if (health->breaker == RT_BREAKER_HALF_OPEN) {
        health->breaker = RT_BREAKER_PROBING;
    }
}

void rt_health_released(struct rt_worker_health *health)
{
    if (health->breaker == RT_BREAKER_PROBING) {
        health->breaker = RT_BREAKER_HALF_OPEN;
    }
}

void rt_health_tick(struct rt_worker_health *health, int64_t now_ns)
{
    if (health->breaker == RT_BREAKER_OPEN && now_ns >= health->open_until_ns) {
        health->breaker = RT_BREAKER_HALF_OPEN;
    }
}

void rt_health_born(struct rt_worker_health *health, const struct rt_worker_health *before,
                    const struct rt_core_options *options, int64_t lost_ns, bool may_open,
                    int64_t now_ns)
{
    uint32_t short_lives = 0;
    if (before && lost_ns - before->born_ns < options->flap_life_ns) {
        short_lives = before->short_lives + 1;
    }
    *health = (struct rt_worker_health){.born_ns = now_ns, .short_lives = short_lives};
    if (options->flap_lives > 0 && short_lives >= options->flap_lives && may_open) {
        open_for(health, options, short_lives - options->flap_lives, now_ns);
    }
}
