#include "router/admission.h"

#include <math.h>

#include "router/placement.h"

/* The measure is of about the last two of these, and is believed after a part of one. */
#define MEASURE_NS     2e9
#define MEASURE_MIN_NS 2e8
/* No worker does less than this many seconds a second, whatever was measured; and a request is left
 * at least this share by those with a higher priority, since in the end it is promoted. */
#define RATE_MIN  0.01
#define SHARE_MIN 0.05
/* The sliding means are of about so many requests. */
#define SHORT_SPAN 32
#define STAY_SPAN  64

void rt_admission_hear(struct rt_admission *admission, bool waiting, int64_t now_ns)
{
    if (admission->waited && now_ns > admission->heard_ns) {
        admission->busy_ns += (double)(now_ns - admission->heard_ns);
        if (admission->busy_ns > 2 * MEASURE_NS) {
            double kept = MEASURE_NS / admission->busy_ns;
            admission->busy_ns *= kept;
            admission->taken_ns *= kept;
        }
    }
    admission->heard_ns = now_ns;
    admission->waited = waiting;
}

static void fade(struct rt_admission *admission, int64_t now_ns)
{
    double kept = exp(-(double)(now_ns - admission->coming_at_ns) / MEASURE_NS);
    for (int level = 0; level < RT_PRIORITIES; level++) {
        admission->coming[level] *= kept;
    }
    admission->coming_at_ns = now_ns;
}

void rt_admission_submitted(struct rt_admission *admission, const struct rt_request *request,
                            int64_t now_ns)
{
    fade(admission, now_ns);
    admission->coming[request->level] += (double)request->cost_ns / MEASURE_NS;
}

void rt_admission_taken(struct rt_admission *admission, const struct rt_request *request)
{
    if (admission->waited) {
        admission->taken_ns += (double)request->cost_ns;
    }
}

void rt_admission_first_token(struct rt_admission *admission, const struct rt_request *request,
                              int64_t now_ns)
{
    double off = (double)(now_ns - request->taken_ns - request->predicted_ns);
    admission->short_ns += (off - admission->short_ns) / SHORT_SPAN;
}

void rt_admission_ended(struct rt_admission *admission, const struct rt_request *request,
                        int64_t now_ns)
{
    double stay_ns = (double)(now_ns - request->taken_ns);
    double span = admission->stay_ns > 0 ? STAY_SPAN : 1;
    admission->stay_ns += (stay_ns - admission->stay_ns) / span;
}

/* Until the tenant may run one more, if those before it go first. */
static double tenant_wait_ns(const struct rt_admission *admission,
                             const struct rt_request_queue *queue, uint32_t index)
{
    const struct rt_tenant *tenant = rt_request_queue_find_tenant(queue, index);
    if (!tenant || tenant->limits.max_running == 0 ||
        tenant->running + tenant->waiting < tenant->limits.max_running) {
        return 0;
    }
    return admission->stay_ns * (tenant->waiting + 1) / tenant->limits.max_running;
}

/* Seconds of prefill taken a second of what is not above this level. */
static double rate(const struct rt_admission *admission, uint32_t ready, uint32_t priority)
{
    double all = ready;
    if (admission->busy_ns >= MEASURE_MIN_NS) {
        double measured = admission->taken_ns / admission->busy_ns;
        all = measured > RATE_MIN ? measured : RATE_MIN;
    }
    double left = all;
    for (uint32_t level = 0; level < priority; level++) {
        left -= admission->coming[level];
    }
    return left > SHARE_MIN * all ? left : SHARE_MIN * all;
}

/* As if the queue were empty and it were taken now. False: no worker has room. */
static bool predict_at_once(const struct rt_worker_table *workers,
                            const struct rt_request_spec *spec, int64_t now_ns, int64_t *ret_ns)
{
    struct rt_request request = {.spec = *spec};
    for (uint32_t i = 0; i < spec->cached_count; i++) {
        request.cached[i] = spec->cached[i];
    }
    return rt_placement_prefill(workers, &request, now_ns, ret_ns) != NULL;
}

int64_t rt_admission_predict_ns(const struct rt_admission *admission,
                                const struct rt_request_queue *queue,
                                const struct rt_worker_table *workers,
                                const struct rt_request_spec *spec, int64_t now_ns)
{
    uint32_t ready = workers->willing_count[RT_ROLE_PREFILL];
    if (ready == 0) {
        return 0;
    }
    double short_ns = admission->short_ns > 0 ? admission->short_ns : 0;
    int64_t at_once_ns;
    double tenant_ns = tenant_wait_ns(admission, queue, spec->tenant);
    if (queue->count == 0 && tenant_ns == 0 &&
        predict_at_once(workers, spec, now_ns, &at_once_ns)) {
        return at_once_ns + (int64_t)short_ns;
    }
    uint32_t tokens = rt_request_least_uncached(spec);
    int64_t before_ns = rt_request_queue_work_before(queue, spec->tenant, spec->priority,
                                                     rt_request_bucket(tokens));
    double wait_ns = (double)before_ns / rate(admission, ready, spec->priority);
    wait_ns = wait_ns > tenant_ns ? wait_ns : tenant_ns;
    double ahead_ns = (double)workers->backlog_ns / ready;
    return (int64_t)(wait_ns + ahead_ns + rt_line_at(workers->line.line, tokens) + short_ns);
}

bool rt_admission_retry(struct rt_admission *admission, const struct rt_core_options *options,
                        int64_t now_ns)
{
    if (options->retry_budget == 0) {
        return true;
    }
    double elapsed = (double)(now_ns - admission->retries_at_ns) / RT_RETRY_WINDOW_NS;
    admission->retries_at_ns = now_ns;
    admission->retries += elapsed * options->retry_budget;
    if (admission->retries > options->retry_budget) {
        admission->retries = options->retry_budget;
    }
    if (admission->retries < 1) {
        return false;
    }
    admission->retries -= 1;
    return true;
}
