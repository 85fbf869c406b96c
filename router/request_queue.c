#include "router/request_queue.h"

#include <stdlib.h>

#include "common/base/clock.h"

/* Virtual time of a token at weight 1. */
#define TOKEN_TIME 65536
/* Prompts up to 2^BUCKET_FIRST tokens are alike. */
#define BUCKET_FIRST 6

static const struct rt_tenant_limits no_limits = {.weight = 1};

void rt_request_queue_init(struct rt_request_queue *queue, const struct rt_core_options *options)
{
    *queue = (struct rt_request_queue){.options = options};
}

void rt_request_queue_finish(struct rt_request_queue *queue)
{
    for (uint32_t i = 0; queue->tenants && i < RT_MAX_TENANTS; i++) {
        free(queue->tenants[i]);
    }
    free(queue->tenants);
    *queue = (struct rt_request_queue){0};
}

/* ---- tenants */

const struct rt_tenant *rt_request_queue_find_tenant(const struct rt_request_queue *queue,
                                                     uint32_t index)
{
    return queue->tenants ? queue->tenants[index] : NULL;
}

struct rt_tenant *rt_request_queue_tenant(struct rt_request_queue *queue, uint32_t index)
{
    BT_ASSERT(index < RT_MAX_TENANTS);
    if (!queue->tenants) {
        queue->tenants = calloc(RT_MAX_TENANTS, sizeof(struct rt_tenant *));
    }
    if (!queue->tenants || queue->tenants[index]) {
        return queue->tenants ? queue->tenants[index] : NULL;
    }
    struct rt_tenant *tenant = calloc(1, sizeof *tenant);
    if (tenant) {
        tenant->index = index;
        tenant->limits = no_limits;
        for (uint32_t level = 0; level < RT_PRIORITIES; level++) {
            tenant->flows[level].tenant = tenant;
            tenant->flows[level].level = level;
        }
        queue->tenants[index] = tenant;
    }
    return tenant;
}

static bool may_run(const struct rt_tenant *tenant)
{
    return tenant->limits.max_running == 0 || tenant->running < tenant->limits.max_running;
}

/* Gives its flows a turn, or takes it, as what changed of them says. */
static void settle_flow(struct rt_request_queue *queue, struct rt_flow *flow)
{
    struct rt_level *level = &queue->levels[flow->level];
    bool goes = flow->waiting.count > 0 && may_run(flow->tenant);
    if (goes && !flow->turn.linked) {
        if (flow->virtual_time < level->virtual_time) {
            flow->virtual_time = level->virtual_time;
        }
        rt_order_insert(&level->flows, &flow->turn, flow->virtual_time, flow->tenant->index);
    } else if (!goes) {
        rt_order_remove(&level->flows, &flow->turn);
    }
}

static void settle_tenant(struct rt_request_queue *queue, struct rt_tenant *tenant)
{
    for (uint32_t level = 0; level < RT_PRIORITIES; level++) {
        settle_flow(queue, &tenant->flows[level]);
    }
}

void rt_request_queue_set_limits(struct rt_request_queue *queue, struct rt_tenant *tenant,
                                 const struct rt_tenant_limits *limits)
{
    BT_ASSERT(limits->weight > 0 && limits->weight <= RT_MAX_WEIGHT);
    if (tenant->waiting > 0) {
        queue->busy_weight += limits->weight;
        queue->busy_weight -= tenant->limits.weight;
    }
    tenant->limits = *limits;
    settle_tenant(queue, tenant);
}

/* ---- what waits */

uint32_t rt_request_bucket(uint32_t tokens)
{
    uint32_t bucket = 0;
    while (bucket + 1 < RT_QUEUE_BUCKETS && tokens > UINT32_C(1) << (BUCKET_FIRST + bucket)) {
        bucket++;
    }
    return bucket;
}

static struct rt_tenant *tenant_of(const struct rt_request_queue *queue,
                                   const struct rt_request *request)
{
    return queue->tenants[request->spec.tenant];
}

static void count_work(struct rt_request_queue *queue, const struct rt_request *request, int sign)
{
    tenant_of(queue, request)->work_ns += sign * request->cost_ns;
    queue->levels[request->level].work_ns[request->bucket] += sign * request->cost_ns;
}

static void count_waiting(struct rt_request_queue *queue, const struct rt_request *request,
                          int sign)
{
    struct rt_tenant *tenant = tenant_of(queue, request);
    bool was_busy = tenant->waiting > 0;
    queue->count += (uint32_t)sign;
    tenant->waiting += (uint32_t)sign;
    if (was_busy != (tenant->waiting > 0)) {
        queue->busy_weight += (uint64_t)(int64_t)sign * tenant->limits.weight;
    }
    if (!request->aside) {
        count_work(queue, request, sign);
    }
}

/* Into the flow of its level. */
static void line_up(struct rt_request_queue *queue, struct rt_request *request)
{
    struct rt_flow *flow = &tenant_of(queue, request)->flows[request->level];
    rt_order_insert(&flow->waiting, &request->turn, request->due_ns, request->serial);
    settle_flow(queue, flow);
    if (request->level > 0 && queue->options->promote_after_ns > 0) {
        int64_t levels = (int64_t)request->spec.priority - request->level + 1;
        rt_order_insert(&queue->levels[request->level].ages, &request->age,
                        request->spec.arrival_ns + levels * queue->options->promote_after_ns,
                        request->serial);
    }
}

static void step_out(struct rt_request_queue *queue, struct rt_request *request)
{
    if (request->resting) {
        rt_order_remove(&queue->resting, &request->turn);
        request->resting = false;
        return;
    }
    if (request->aside) {
        rt_order_remove(&queue->aside, &request->turn);
        request->aside = false;
        return;
    }
    struct rt_flow *flow = &tenant_of(queue, request)->flows[request->level];
    rt_order_remove(&flow->waiting, &request->turn);
    rt_order_remove(&queue->levels[request->level].ages, &request->age);
    settle_flow(queue, flow);
}

/* Where it has its place, and what it counts there. */
static void classify(struct rt_request *request, struct rt_line line)
{
    request->level = request->spec.priority;
    request->bucket = rt_request_bucket(rt_request_least_uncached(&request->spec));
    request->cost_ns = (int64_t)rt_line_at(line, UINT32_C(1) << (BUCKET_FIRST + request->bucket));
}

void rt_request_queue_submit(struct rt_request_queue *queue, struct rt_request *request,
                             struct rt_line line, int64_t now_ns)
{
    classify(request, line);
    if (queue->options->patience > 0) {
        request->due_ns = now_ns + (int64_t)(queue->options->patience * (double)request->cost_ns);
    }
    count_waiting(queue, request, 1);
    line_up(queue, request);
}

static void begin_running(struct rt_request_queue *queue, struct rt_request *request)
{
    struct rt_tenant *tenant = tenant_of(queue, request);
    request->holds_share = true;
    tenant->running++;
    settle_tenant(queue, tenant);
}

void rt_request_queue_adopt(struct rt_request_queue *queue, struct rt_request *request,
                            struct rt_line line)
{
    classify(request, line);
    request->charged = true; /* where it was taken */
    begin_running(queue, request);
}

static void end_running(struct rt_request_queue *queue, struct rt_request *request)
{
    if (request->holds_share) {
        struct rt_tenant *tenant = tenant_of(queue, request);
        request->holds_share = false;
        tenant->running--;
        settle_tenant(queue, tenant);
    }
}

void rt_request_queue_return(struct rt_request_queue *queue, struct rt_request *request,
                             int64_t rest_until_ns)
{
    end_running(queue, request);
    request->due_ns = 0;
    count_waiting(queue, request, 1);
    if (rest_until_ns > 0) {
        request->resting = true;
        rt_order_insert(&queue->resting, &request->turn, rest_until_ns, request->serial);
    } else {
        line_up(queue, request);
    }
}

void rt_request_queue_set_aside(struct rt_request_queue *queue, struct rt_request *request)
{
    count_work(queue, request, -1);
    step_out(queue, request);
    request->aside = true;
    rt_order_insert(&queue->aside, &request->turn, (int64_t)request->serial, 0);
}

void rt_request_queue_recall(struct rt_request_queue *queue)
{
    struct rt_request *request;
    while ((request = RT_ORDER_FIRST(&queue->aside, struct rt_request, turn)) != NULL) {
        step_out(queue, request);
        count_work(queue, request, 1);
        line_up(queue, request);
    }
}

static void charge(struct rt_request_queue *queue, struct rt_flow *flow, struct rt_request *request,
                   uint32_t output_tokens)
{
    struct rt_level *level = &queue->levels[flow->level];
    if (flow->virtual_time > level->virtual_time) {
        level->virtual_time = flow->virtual_time;
    }
    if (request->charged) {
        return;
    }
    request->charged = true;
    uint64_t tokens = (uint64_t)rt_request_least_uncached(&request->spec) + output_tokens;
    flow->virtual_time += (int64_t)(tokens * TOKEN_TIME / flow->tenant->limits.weight);
    if (flow->turn.linked) {
        rt_order_move(&level->flows, &flow->turn, flow->virtual_time, flow->tenant->index);
    }
}

void rt_request_queue_take(struct rt_request_queue *queue, struct rt_request *request,
                           uint32_t output_tokens)
{
    struct rt_tenant *tenant = tenant_of(queue, request);
    count_waiting(queue, request, -1);
    step_out(queue, request);
    charge(queue, &tenant->flows[request->level], request, output_tokens);
    begin_running(queue, request);
}

void rt_request_queue_forget(struct rt_request_queue *queue, struct rt_request *request)
{
    if (request->turn.linked) {
        count_waiting(queue, request, -1);
        step_out(queue, request);
    }
    end_running(queue, request);
}

/* ---- whose turn it is */

static void end_holds(struct rt_request_queue *queue, int64_t now_ns)
{
    struct rt_request *request;
    while ((request = RT_ORDER_FIRST(&queue->resting, struct rt_request, turn)) != NULL &&
           request->turn.key <= now_ns) {
        step_out(queue, request);
        line_up(queue, request);
    }
}

static void promote(struct rt_request_queue *queue, int64_t now_ns)
{
    for (uint32_t level = RT_PRIORITIES - 1; level > 0; level--) {
        struct rt_order_tree *ages = &queue->levels[level].ages;
        struct rt_request *request;
        while ((request = RT_ORDER_FIRST(ages, struct rt_request, age)) != NULL &&
               request->age.key <= now_ns) {
            count_waiting(queue, request, -1);
            step_out(queue, request);
            request->level--;
            count_waiting(queue, request, 1);
            line_up(queue, request);
        }
    }
}

struct rt_request *rt_request_queue_next(struct rt_request_queue *queue, int64_t now_ns)
{
    end_holds(queue, now_ns);
    promote(queue, now_ns);
    for (uint32_t level = 0; level < RT_PRIORITIES; level++) {
        const struct rt_flow *flow =
            RT_ORDER_FIRST(&queue->levels[level].flows, struct rt_flow, turn);
        if (flow) {
            return RT_ORDER_FIRST(&flow->waiting, struct rt_request, turn);
        }
    }
    return NULL;
}

int64_t rt_request_queue_wakes_ns(const struct rt_request_queue *queue)
{
    return queue->resting.first ? queue->resting.first->key : BT_NEVER_NS;
}

/* ---- how long it takes */

static int64_t level_work(const struct rt_level *level, uint32_t buckets)
{
    int64_t work_ns = 0;
    for (uint32_t i = 0; i < buckets; i++) {
        work_ns += level->work_ns[i];
    }
    return work_ns;
}

/* Others' backlogs delay a tenant by no more than its share says. */
static int64_t share_of_work(const struct rt_request_queue *queue, uint32_t index)
{
    const struct rt_tenant *tenant = rt_request_queue_find_tenant(queue, index);
    if (!tenant) {
        return 0;
    }
    uint64_t busy = queue->busy_weight + (tenant->waiting > 0 ? 0 : tenant->limits.weight);
    return (int64_t)((double)tenant->work_ns * (double)busy / tenant->limits.weight);
}

int64_t rt_request_queue_work_before(const struct rt_request_queue *queue, uint32_t tenant,
                                     uint32_t level, uint32_t bucket)
{
    int64_t work_ns = 0;
    for (uint32_t i = 0; i < level; i++) {
        work_ns += level_work(&queue->levels[i], RT_QUEUE_BUCKETS);
    }
    uint32_t buckets = queue->options->patience > 0 ? bucket + 1 : RT_QUEUE_BUCKETS;
    work_ns += level_work(&queue->levels[level], buckets);
    int64_t share_ns = share_of_work(queue, tenant);
    return share_ns < work_ns ? share_ns : work_ns;
}

/* ---- deadlines */

void rt_deadlines_insert(struct rt_order_tree *deadlines, struct rt_request *request)
{
    if (request->spec.deadline_ns != BT_NEVER_NS) {
        rt_order_insert(deadlines, &request->deadline, request->spec.deadline_ns, request->serial);
    }
}

struct rt_request *rt_deadlines_first(const struct rt_order_tree *deadlines)
{
    return RT_ORDER_FIRST(deadlines, struct rt_request, deadline);
}
