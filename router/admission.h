/*
 * Whether a new request would see its first token in time. Internal to the core.
 *
 * The prediction is the sum of
 *   - the wait in the queue: the prefill time of what goes before, over how much of it is taken a
 *     second, less what comes in with a higher priority and goes before it, too. The former is
 *     measured while something waits, and so knows of whatever holds the queue up;
 *     before there is a measure, each ready prefill worker does one second a second. A tenant that
 *     runs all it may waits until its own requests have ended;
 *   - the work ahead on a prefill worker when the request gets there, and its own prefill; the same
 *     on a decode rank, where that is sooner, or prompts are computed there alone;
 *   - what predictions were short by lately: messages, transfer, prompts that share a pass.
 */
#ifndef BATON_ROUTER_ADMISSION_H
#define BATON_ROUTER_ADMISSION_H

#include "router/prompt_way.h"
#include "router/request_queue.h"

struct rt_admission {
    int64_t heard_ns;             /* the measure is up to here */
    bool waited;                  /* something did, from then on */
    double busy_ns;               /* time with something waiting, fading */
    double taken_ns;              /* prefill time that was taken in it, fading alike */
    double coming[RT_PRIORITIES]; /* prefill seconds a second that are submitted, sliding mean */
    int64_t coming_at_ns;         /* as of then */
    struct rt_way_misses misses; /* of predictions, after a request was taken */
    double stay_ns;        /* sliding mean of the time from being taken to the end */
    double retries;        /* left in the retry budget */
    int64_t retries_at_ns; /* as of then */
};

/* At each event that may change the queue, before it does; `waiting`: something does. */
void rt_admission_hear(struct rt_admission *admission, bool waiting, int64_t now_ns);
/* A request was let in. */
void rt_admission_submitted(struct rt_admission *admission, const struct rt_request *request,
                            int64_t now_ns);
void rt_admission_taken(struct rt_admission *admission, const struct rt_request *request);
void rt_admission_first_token(struct rt_admission *admission, const struct rt_request *request,
                              int64_t now_ns);

/* `request` is over, and was taken. */
void rt_admission_ended(struct rt_admission *admission, const struct rt_request *request,
                        int64_t now_ns);

/* 0: nothing is known, as nobody that computes prompts is ready. */
int64_t rt_admission_predict_ns(const struct rt_admission *admission,
                                const struct rt_request_queue *queue,
                                const struct rt_worker_table *workers,
                                const struct rt_request_spec *spec, int64_t now_ns);

/* Takes one retry out of the budget. False: it is used up. */
bool rt_admission_retry(struct rt_admission *admission, const struct rt_core_options *options,
                        int64_t now_ns);

#endif
