#include "common/model/prompt_schedule.h"

#include <stdbool.h>

#include "common/base/clock.h"
#include "common/base/status.h"

#define NS_PER_US 1000
#define US_PER_S  1000000

struct rank {
    int64_t weight; /* (remaining + (arrival - first arrival) * rate), in millionths of a token */
    int64_t arrival_ns;
    uint32_t job;
};

static int64_t first_arrival(const struct bt_prompt_job *jobs, uint32_t job_count)
{
    int64_t first = BT_NEVER_NS;
    for (uint32_t i = 0; i < job_count; i++) {
        first = jobs[i].arrival_ns < first ? jobs[i].arrival_ns : first;
    }
    return first;
}

static struct rank rank_of(const struct bt_prompt_job *jobs, uint32_t job, int64_t first_ns,
                           uint32_t rate)
{
    int64_t waited_less_us = (jobs[job].arrival_ns - first_ns) / NS_PER_US;
    int64_t remaining = (int64_t)(jobs[job].tokens - jobs[job].computed) * US_PER_S;
    return (struct rank){remaining + waited_less_us * rate, jobs[job].arrival_ns, job};
}

static bool rank_less(const struct rank *a, const struct rank *b)
{
    if (a->weight != b->weight) {
        return a->weight < b->weight;
    }
    if (a->arrival_ns != b->arrival_ns) {
        return a->arrival_ns < b->arrival_ns;
    }
    return a->job < b->job;
}

uint32_t bt_prompt_schedule(const struct bt_prompt_job *jobs, uint32_t job_count,
                            const struct bt_prompt_limits *limits,
                            struct bt_prompt_chunk *ret_chunks)
{
    BT_ASSERT(limits->budget_tokens > 0 && limits->max_jobs > 0);
    BT_ASSERT(limits->ageing_tokens_per_s <= BT_PROMPT_MAX_AGEING_TOKENS_PER_S);
    int64_t first_ns = first_arrival(jobs, job_count);
    uint32_t budget = limits->budget_tokens;
    uint32_t count = 0;
    struct rank taken = {0};
    while (count < limits->max_jobs && count < job_count && budget > 0) {
        struct rank best = {0};
        bool found = false;
        for (uint32_t i = 0; i < job_count; i++) {
            struct rank rank = rank_of(jobs, i, first_ns, limits->ageing_tokens_per_s);
            if (count > 0 && !rank_less(&taken, &rank)) {
                continue;
            }
            if (!found || rank_less(&rank, &best)) {
                best = rank;
                found = true;
            }
        }
        const struct bt_prompt_job *job = &jobs[best.job];
        uint32_t remaining = job->tokens - job->computed;
        uint32_t tokens = remaining < budget ? remaining : budget;
        ret_chunks[count++] =
            (struct bt_prompt_chunk){best.job, job->computed, job->computed + tokens};
        budget -= tokens;
        taken = best;
    }
    return count;
}
