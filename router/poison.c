#include "router/poison.h"

#include "common/base/status.h"

#define RAISED_MOST 1 /* times poison_deaths, on top of it */
/* Thirds and such add up to a little less than they should. */
#define ROUNDING 1e-6

void rt_deaths_add(struct rt_deaths *deaths, int64_t now_ns)
{
    deaths->when_ns[deaths->next] = now_ns;
    deaths->next = (deaths->next + 1) % RT_DEATHS_KEPT;
    deaths->count += deaths->count < RT_DEATHS_KEPT;
}

static uint32_t recent(const struct rt_deaths *deaths, int64_t now_ns)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < deaths->count; i++) {
        count += now_ns - deaths->when_ns[i] < RT_DEATHS_WINDOW_NS;
    }
    return count;
}

/* Deaths without a token since. */
static uint32_t streak(const struct rt_suspicion *suspicion, uint32_t delivered)
{
    return suspicion->delivered == delivered ? suspicion->deaths : 0;
}

static uint32_t level_of(uint32_t deaths)
{
    return deaths < RT_STREAK_LEVELS ? deaths : RT_STREAK_LEVELS - 1;
}

bool rt_suspicion_isolates(const struct rt_suspicion *suspicion, uint32_t delivered)
{
    return streak(suspicion, delivered) >= RT_ISOLATED_DEATHS;
}

void rt_exposed_add(struct rt_exposed *exposed, const struct rt_suspicion *suspicion,
                    uint32_t delivered)
{
    exposed->by_streak[level_of(streak(suspicion, delivered))]++;
}

bool rt_suspicion_death(struct rt_suspicion *suspicion, uint32_t delivered,
                        const struct rt_exposed *exposed, const struct rt_deaths *deaths,
                        uint32_t poison_deaths, int64_t now_ns)
{
    uint32_t before = streak(suspicion, delivered);
    uint32_t sharing = 0;
    for (uint32_t level = level_of(before); level < RT_STREAK_LEVELS; level++) {
        sharing += exposed->by_streak[level];
    }
    BT_ASSERT(sharing > 0);
    if (before == 0) {
        *suspicion = (struct rt_suspicion){.delivered = delivered};
    }
    suspicion->deaths++;
    suspicion->shares += 1.0 / sharing;
    uint32_t all = recent(deaths, now_ns);
    uint32_t elsewhere = all > suspicion->deaths ? all - suspicion->deaths : 0;
    if (elsewhere > RAISED_MOST * poison_deaths) {
        elsewhere = RAISED_MOST * poison_deaths;
    }
    return poison_deaths > 0 && suspicion->shares >= poison_deaths + elsewhere - ROUNDING;
}
