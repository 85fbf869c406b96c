/*
 * How many prefill and decode workers there shall be: one decision after another, from what was
 * seen. Pure: the clock is in what was seen.
 *
 * A role grows when the model, as measured, says that its workers miss the target at the present
 * load, or when the target is missed as measured, for as long as `up_ns`; it shrinks when fewer
 * would bear `headroom` times the load, for as long as `down_ns`. Between the two it stays. One
 * that shrank and had to grow again waits twice as long before it shrinks the next time. What is
 * seen while workers come, warm up or go is not counted; nothing is done on what is old, partial or
 * of too few requests. Where the total is reached, workers change their role instead.
 */
#ifndef BATON_DEPLOY_BATONCTL_AUTOSCALE_DECIDE_H
#define BATON_DEPLOY_BATONCTL_AUTOSCALE_DECIDE_H

#include "deploy/batonctl/autoscale_model.h"
#include "deploy/batonctl/cluster.h"

#define CTL_AUTOSCALE_WORKERS_MAX 4096 /* of a role */

struct ctl_autoscale_policy {
    double ttft_s, tpot_s; /* targets; 0: none. One at least */
    double quantile;
    uint32_t least[CTL_ROLES], most[CTL_ROLES]; /* 1 <= least <= most */
    uint32_t total;                             /* least of both <= total */
    int64_t up_ns, down_ns;      /* how long more, fewer workers must have been right */
    int64_t cooldown_ns;         /* after an action's end */
    int64_t warmup_ns;           /* of a worker, since it serves */
    int64_t stale_ns;            /* older stats say nothing */
    int64_t window_ns;           /* least that stats have to be of */
    double headroom;             /* > 1: fewer workers have to bear so many times the load */
    double tolerance;            /* a target is missed when it is by this share of it */
    double max_full;             /* of decode workers' pages */
    double max_busy;             /* of prefill workers' time */
    uint32_t step_up, step_down; /* workers of a role in one action */
    uint64_t min_samples;
};

/* 500 ms and 50 ms; the p90; 1 to 64 of each; 30 s up, 5 min down, 60 s cooldown and warm-up. */
void ctl_autoscale_policy_init(struct ctl_autoscale_policy *ret_policy);
/* INVALID_ARGUMENT, naming what. */
enum bt_status ctl_autoscale_policy_check(const struct ctl_autoscale_policy *policy,
                                          struct bt_error *error);

struct ctl_autoscale_worker {
    enum ctl_role role;
    bool ready, ending;
    int64_t age_ns; /* since it serves, INT64_MAX: from before anybody looked */
};

struct ctl_autoscale_seen {
    int64_t now_ns;
    int64_t stats_ns;                   /* when they were said; 0: never */
    bool partial;                       /* not all routers answered */
    double window_s;                    /* that they are of: the shortest */
    struct ctl_autoscale_sample sample; /* without `workers` and `ttft_good`: decide fills them */
    uint64_t ttft_count, tpot_count;
    uint32_t queued, running;
    const struct ctl_autoscale_worker *workers; /* [worker_count] */
    uint32_t worker_count;
    uint32_t wanted[CTL_ROLES]; /* as the engine has it */
};

enum ctl_autoscale_verdict {
    CTL_AUTOSCALE_KEEP, /* as it is is right */
    CTL_AUTOSCALE_HOLD, /* nothing can be said now */
    CTL_AUTOSCALE_WAIT, /* something will be done, if it stays so */
    CTL_AUTOSCALE_ACT,
};
const char *ctl_autoscale_verdict_name(enum ctl_autoscale_verdict verdict);

#define CTL_AUTOSCALE_REASONS_MAX 8
#define CTL_AUTOSCALE_REASON_SIZE 240

struct ctl_autoscale_decision {
    enum ctl_autoscale_verdict verdict;
    uint32_t wanted[CTL_ROLES];      /* ACT: from now on; else as they are */
    uint32_t need[CTL_ROLES];        /* least that meets the target now; 0: not known */
    uint32_t comfortable[CTL_ROLES]; /* least that bears the headroom; 0: not known */
    double ttft_s, tpot_s;           /* predicted with `wanted`; NaN: not known */
    double busy, full;
    char reasons[CTL_AUTOSCALE_REASONS_MAX][CTL_AUTOSCALE_REASON_SIZE];
    uint32_t reason_count;
};

/* How long a role's count has not been right, and by how much at least; times INT64_MIN: it is. */
struct ctl_autoscale_trend {
    int64_t more_since_ns, fewer_since_ns;
    uint32_t more, fewer;
    int64_t shrank_ns;
    uint32_t strikes; /* how often it had to grow again soon after it shrank */
};

struct ctl_autoscaler {
    struct ctl_autoscale_policy policy;
    struct ctl_autoscale_model model;
    struct ctl_autoscale_trend trends[CTL_ROLES];
    uint32_t counts[CTL_ROLES]; /* that were there the last time */
    bool begun;
    int64_t clean_ns;               /* from here on stats are of the workers as they are */
    int64_t cool_ns;                /* until here nothing is done */
    int64_t unsettled_ns;           /* since when workers have been coming and going */
    int64_t thought_ns;             /* the last time that something could be said */
    uint32_t failures;              /* in a row */
    struct ctl_autoscale_load load; /* the last lengths that are known */
};

void ctl_autoscaler_init(struct ctl_autoscaler *autoscaler,
                         const struct ctl_autoscale_policy *policy,
                         const struct ctl_autoscale_predictor *predictor);
/* Over how long stats may be asked for, in seconds; 0: whatever, they will not count. */
uint32_t ctl_autoscaler_window_s(const struct ctl_autoscaler *autoscaler, int64_t now_ns);
void ctl_autoscaler_decide(struct ctl_autoscaler *autoscaler, const struct ctl_autoscale_seen *seen,
                           struct ctl_autoscale_decision *ret_decision);
/* What was decided was done by now, or failed: then it waits longer each time. */
void ctl_autoscaler_acted(struct ctl_autoscaler *autoscaler,
                          const struct ctl_autoscale_decision *decision, int64_t now_ns, bool done);

#endif
