/*
 * Which tokens of which prompts the next forward pass computes. Pure: state in, chunks out.
 *
 * Short prompts first, with ageing: a job's rank is remaining - age * rate, the smallest goes
 * first. Two jobs age alike, so the clock cancels out of every comparison, and what is compared is
 * remaining + arrival * rate. Ties go to the earlier arrival, then to the lower index.
 *
 * Jobs are taken in that order until the budget or the number of jobs is used up; the last one is
 * cut to what is left of the budget.
 *
 * No job starves. Let a job arrive at time t with R tokens. Whatever arrives after t + R / rate
 * ranks behind it for ever. Let W be the tokens and N the number of all jobs (itself included)
 * that arrive until then and are not done at t. Then it is computed in at most
 *
 *     ceil(W / budget) + ceil(N / max_jobs)
 *
 * iterations after t: an iteration that does not finish it either spends its whole budget on those
 * jobs, or completes max_jobs of them.
 */
#ifndef BATON_COMMON_MODEL_PROMPT_SCHEDULE_H
#define BATON_COMMON_MODEL_PROMPT_SCHEDULE_H

#include <stdint.h>

#define BT_PROMPT_AGEING_TOKENS_PER_S     2000
#define BT_PROMPT_MAX_AGEING_TOKENS_PER_S 1000000

struct bt_prompt_job {
    uint32_t tokens;   /* of the whole prompt */
    uint32_t computed; /* < tokens */
    int64_t arrival_ns;
};

struct bt_prompt_limits {
    uint32_t budget_tokens;       /* of one iteration, >= 1 */
    uint32_t max_jobs;            /* that share an iteration, >= 1 */
    uint32_t ageing_tokens_per_s; /* the rate; 0: strictly the shortest first */
};

struct bt_prompt_chunk {
    uint32_t job; /* index into jobs */
    uint32_t begin, end;
};

/* ret_chunks holds limits->max_jobs; best first. Returns how many: 0 only without jobs. */
uint32_t bt_prompt_schedule(const struct bt_prompt_job *jobs, uint32_t job_count,
                            const struct bt_prompt_limits *limits,
                            struct bt_prompt_chunk *ret_chunks);

#endif
