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
#define STAY_SPAN 64

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
    rt_way_learn(&admission->misses, request, now_ns - request->taken_ns);
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
static bool predict_at_once(const struct rt_admission *admission,
                            const struct rt_worker_table *workers,
                            const struct rt_request_spec *spec, int64_t now_ns, int64_t *ret_ns)
{
    struct rt_request request = {.spec = *spec};
    struct rt_decode_turns turns = {0};
    struct rt_way_answer answer;
    for (uint32_t i = 0; i < spec->cached_count; i++) {
        request.cached[i] = spec->cached[i];
    }
    const struct rt_way_question question = {.workers = workers,
                                             .misses = &admission->misses,
                                             .request = &request,
                                             .pages = rt_request_full_pages(spec),
                                             .now_ns = now_ns};
    rt_way_choose(&question, &turns, &answer);
    double miss_ns = admission->misses.ns[answer.local];
    *ret_ns = answer.predicted_ns + (int64_t)(miss_ns > 0 ? miss_ns : 0);
    return answer.local ? answer.decode != NULL : answer.prefill != NULL;
}

/* Who computes prompts: how many are ready, how long they take, what is ahead on one of them. */
struct servers {
    uint32_t ready;
    bool local;
    struct rt_line line;
    double ahead_ns;
};

static struct servers servers_of(const struct rt_worker_table *workers)
{
    enum rt_local_prefill mode = workers->options->local_prefill;
    uint32_t ready = workers->willing_count[RT_ROLE_PREFILL];
    if (mode == RT_LOCAL_PREFILL_ALWAYS || (mode == RT_LOCAL_PREFILL_AUTO && ready == 0)) {
        /* One that takes no more has so much ahead. */
        return (struct servers){workers->willing_local, true, workers->local_line.line,
                                (double)workers->options->prefill_depth_ns};
    }
    return (struct servers){ready, false, workers->line.line,
                            ready > 0 ? (double)workers->backlog_ns / ready : 0};
}

int64_t rt_admission_predict_ns(const struct rt_admission *admission,
                                const struct rt_request_queue *queue,
                                const struct rt_worker_table *workers,
                                const struct rt_request_spec *spec, int64_t now_ns)
{
    struct servers servers = servers_of(workers);
    if (servers.ready == 0) {
        return 0;
    }
    double miss_ns = admission->misses.ns[servers.local];
    int64_t at_once_ns;
    double tenant_ns = tenant_wait_ns(admission, queue, spec->tenant);
    if (queue->count == queue->aside.count && tenant_ns == 0 &&
        predict_at_once(admission, workers, spec, now_ns, &at_once_ns)) {
        return at_once_ns;
    }
    uint32_t tokens = servers.local ? spec->prompt_tokens : rt_request_least_uncached(spec);
    int64_t before_ns = rt_request_queue_work_before(queue, spec->tenant, spec->priority,
                                                     rt_request_bucket(tokens));
    double wait_ns = (double)before_ns / rate(admission, servers.ready, spec->priority);
    wait_ns = wait_ns > tenant_ns ? wait_ns : tenant_ns;
    return (int64_t)(wait_ns + servers.ahead_ns + rt_line_at(servers.line, tokens) +
                     (miss_ns > 0 ? miss_ns : 0));
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
