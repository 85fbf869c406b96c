#include "router/placement.h"

#include "common/kvcache/layout.h"

uint32_t rt_request_pages(const struct rt_request *request, uint32_t expected_output_tokens)
{
    uint32_t output = request->spec.max_tokens;
    if (!request->full && output > expected_output_tokens) {
        output = expected_output_tokens;
    }
    return bt_kv_pages_for((uint64_t)request->spec.prompt_tokens + output);
}

uint32_t rt_request_full_pages(const struct rt_request_spec *spec)
{
    return bt_kv_pages_for((uint64_t)spec->prompt_tokens + spec->max_tokens);
}

static bool refused(const struct rt_worker *worker, const struct rt_request *request)
{
    for (uint32_t i = 0; i < request->refusal_count; i++) {
        if (request->refusals[i].worker == worker->ref) {
            return request->refusals[i].load_serial == worker->load_serial;
        }
    }
    return false;
}

static bool holds_length(const struct rt_worker *worker, const struct rt_request_spec *spec)
{
    uint64_t tokens = (uint64_t)spec->prompt_tokens + spec->max_tokens;
    return worker->info.max_model_len == 0 || tokens <= worker->info.max_model_len;
}

static bool candidate(const struct rt_worker *worker, enum rt_role role,
                      const struct rt_request *request)
{
    return worker->info.role == role && rt_worker_state(worker) == RT_WORKER_READY &&
           holds_length(worker, &request->spec) && !refused(worker, request);
}

struct rt_worker *rt_placement_prefill(const struct rt_worker_table *table,
                                       const struct rt_request *request, uint32_t depth_tokens)
{
    struct rt_worker *best = NULL;
    for (uint32_t i = 0; i < table->count; i++) {
        struct rt_worker *worker = table->workers[i];
        uint64_t backlog = rt_worker_backlog(worker);
        if (candidate(worker, RT_ROLE_PREFILL, request) &&
            (backlog == 0 || backlog < depth_tokens) &&
            (!best || backlog < rt_worker_backlog(best))) {
            best = worker;
        }
    }
    return best;
}

/* a's utilisation after `pages` more against b's, as fractions: negative, 0, positive. */
static int compare_utilisation(const struct rt_worker *a, const struct rt_worker *b, uint32_t pages)
{
    uint64_t left = (rt_worker_projected_pages(a) + pages) * b->info.load.pages_total;
    uint64_t right = (rt_worker_projected_pages(b) + pages) * a->info.load.pages_total;
    return (left > right) - (left < right);
}

static bool better_decode(const struct rt_worker *worker, const struct rt_worker *best,
                          uint32_t pages)
{
    if (!best) {
        return true;
    }
    int order = compare_utilisation(worker, best, pages);
    return order < 0 || (order == 0 && worker->info.load.running < best->info.load.running);
}

struct rt_worker *rt_placement_decode(const struct rt_worker_table *table,
                                      const struct rt_request *request, uint32_t pages)
{
    struct rt_worker *best = NULL;
    for (uint32_t i = 0; i < table->count; i++) {
        struct rt_worker *worker = table->workers[i];
        if (candidate(worker, RT_ROLE_DECODE, request) &&
            rt_worker_projected_pages(worker) + pages <= worker->info.load.pages_total &&
            better_decode(worker, best, pages)) {
            best = worker;
        }
    }
    return best;
}

bool rt_placement_possible(const struct rt_worker_table *table, enum rt_role role,
                           const struct rt_request_spec *spec)
{
    uint32_t pages = role == RT_ROLE_DECODE ? rt_request_full_pages(spec) : 0;
    bool any = false;
    for (uint32_t i = 0; i < table->count; i++) {
        const struct rt_worker *worker = table->workers[i];
        if (worker->info.role != role || worker->life.lost) {
            continue;
        }
        any = true;
        if (holds_length(worker, spec) && pages <= worker->info.load.pages_total) {
            return true;
        }
    }
    return !any;
}

uint32_t rt_placement_largest_pool(const struct rt_worker_table *table)
{
    uint32_t largest = 0;
    for (uint32_t i = 0; i < table->count; i++) {
        const struct rt_worker *worker = table->workers[i];
        if (worker->info.role == RT_ROLE_DECODE && !worker->life.lost &&
            worker->info.load.pages_total > largest) {
            largest = worker->info.load.pages_total;
        }
    }
    return largest;
}
