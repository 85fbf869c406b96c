/* What the core has placed on each worker. */
#include "router/worker_table.h"

/* ---- the list of a worker */

static void enlist(struct rt_worker *worker, struct rt_request *request)
{
    enum rt_role role = worker->info.role;
    struct rt_request_link *link = &request->on_worker[role];
    *link = (struct rt_request_link){.prev = worker->last};
    *(worker->last ? &worker->last->on_worker[role].next : &worker->first) = request;
    worker->last = request;
    worker->request_count++;
    worker->isolating += request->isolated;
}

static void delist(struct rt_worker *worker, struct rt_request *request)
{
    enum rt_role role = worker->info.role;
    struct rt_request_link *link = &request->on_worker[role];
    *(link->prev ? &link->prev->on_worker[role].next : &worker->first) = link->next;
    *(link->next ? &link->next->on_worker[role].prev : &worker->last) = link->prev;
    *link = (struct rt_request_link){0};
    worker->request_count--;
    worker->isolating -= request->isolated;
}

static void left(struct rt_worker_table *table, struct rt_worker *worker,
                 struct rt_request *request)
{
    delist(worker, request);
    rt_health_released(&worker->health);
    rt_worker_reindex(table, worker);
}

void rt_worker_end_isolation(struct rt_worker_table *table, struct rt_request *request)
{
    const rt_worker_ref refs[] = {request->prefill, request->decode};
    for (int role = 0; request->isolated && role < 2; role++) {
        struct rt_worker *worker = rt_worker_table_get(table, refs[role]);
        if (worker) {
            worker->isolating--;
            rt_worker_reindex(table, worker);
        }
    }
    request->isolated = false;
}

/* ---- prefill */

void rt_worker_place_prefill(struct rt_worker_table *table, struct rt_worker *worker,
                             struct rt_request *request, int64_t now_ns)
{
    BT_ASSERT(request->backlog_tokens == 0);
    request->prefill = worker->ref;
    request->uncached_tokens = rt_request_uncached(request, worker->ref);
    request->backlog_tokens = request->uncached_tokens;
    request->ahead_ns = (int64_t)rt_line_at(worker->line.line, request->uncached_tokens);
    enlist(worker, request);
    worker->backlog_tokens += request->backlog_tokens;
    worker->backlog_ns += request->ahead_ns;
    table->backlog_ns += request->ahead_ns;
    worker->done_ns = (worker->done_ns > now_ns ? worker->done_ns : now_ns) + request->ahead_ns;
    if (!worker->computing) {
        worker->computing = request;
    }
    rt_health_placed(&worker->health);
    rt_worker_reindex(table, worker);
}

/* After the oldest of the backlog is done the next has begun at `now_ns`. */
static void compute_next(struct rt_worker *worker, int64_t now_ns)
{
    struct rt_request *request = worker->first;
    while (request && request->backlog_tokens == 0) {
        request = request->on_worker[RT_ROLE_PREFILL].next;
    }
    worker->computing = request;
    worker->done_ns = now_ns + worker->backlog_ns;
}

static void uncount_prompt(struct rt_worker_table *table, struct rt_worker *worker,
                           struct rt_request *request, int64_t now_ns)
{
    if (request->backlog_tokens == 0) {
        return;
    }
    worker->backlog_tokens -= request->backlog_tokens;
    worker->backlog_ns -= request->ahead_ns;
    table->backlog_ns -= request->ahead_ns;
    request->backlog_tokens = 0;
    if (worker->computing == request) {
        compute_next(worker, now_ns);
    } else {
        worker->done_ns -= request->ahead_ns;
    }
}

void rt_worker_prompt_done(struct rt_worker_table *table, struct rt_request *request,
                           int64_t now_ns)
{
    if (request->backlog_tokens > 0) {
        struct rt_worker *worker = rt_worker_table_get(table, request->prefill);
        uncount_prompt(table, worker, request, now_ns);
        rt_worker_reindex(table, worker);
    }
}

void rt_worker_leave_prefill(struct rt_worker_table *table, struct rt_request *request,
                             int64_t now_ns)
{
    if (request->prefill != RT_NO_WORKER) {
        struct rt_worker *worker = rt_worker_table_get(table, request->prefill);
        uncount_prompt(table, worker, request, now_ns);
        left(table, worker, request);
        request->prefill = RT_NO_WORKER;
    }
}

void rt_worker_learn_line(struct rt_worker_table *table, struct rt_worker *worker, uint32_t tokens,
                          int64_t compute_ns)
{
    struct rt_line first = {(double)table->options->prefill_base_ns,
                            (double)table->options->prefill_token_ns};
    bool local = worker->info.role == RT_ROLE_DECODE;
    struct rt_prefill_line *all = local ? &table->local_line : &table->line;
    rt_prefill_line_learn(all, local ? table->line.line : first, tokens, compute_ns);
    rt_prefill_line_learn(&worker->line, all->line, tokens, compute_ns);
    rt_worker_reindex(table, worker);
}

/* ---- decode */

uint64_t rt_worker_used_pages(const struct rt_worker *worker)
{
    const struct rt_load *load = &worker->info.load;
    uint32_t free_pages =
        load->pages_free < load->pages_total ? load->pages_free : load->pages_total;
    return load->pages_total - free_pages + worker->unseen_pages;
}

uint64_t rt_worker_projected_pages(const struct rt_worker *worker)
{
    uint64_t used = rt_worker_used_pages(worker);
    uint64_t expected = worker->placed_pages + worker->foreign_pages;
    return used > expected ? used : expected;
}

uint32_t rt_worker_rows(const struct rt_worker *worker)
{
    uint64_t rows = (uint64_t)worker->info.load.running + worker->unseen_count;
    return rows < UINT32_MAX ? (uint32_t)rows : UINT32_MAX;
}

uint64_t rt_worker_kv_tokens(const struct rt_worker *worker)
{
    return worker->info.load.kv_tokens + worker->unseen_tokens;
}

/* The projection of a request that outgrows it is the rank's report. */
#define MEAN_PAGES_SPAN 256.0

static void learn_pages(struct rt_worker_table *table, uint32_t pages)
{
    if (table->mean_pages == 0) {
        table->mean_pages = pages;
    }
    table->mean_pages += (pages - table->mean_pages) / MEAN_PAGES_SPAN;
}

void rt_worker_place_decode(struct rt_worker_table *table, struct rt_worker *worker,
                            struct rt_request *request, uint32_t pages)
{
    BT_ASSERT(request->unseen_pages == 0 && pages > 0);
    request->decode = worker->ref;
    enlist(worker, request);
    request->placed_pages = request->unseen_pages = pages;
    request->unseen = (struct rt_request_link){.next = worker->unseen};
    if (worker->unseen) {
        worker->unseen->unseen.prev = request;
    }
    worker->unseen = request;
    worker->unseen_count++;
    worker->unseen_pages += pages;
    worker->unseen_tokens += request->spec.prompt_tokens;
    worker->unseen_prompts += request->local ? request->spec.prompt_tokens : 0;
    worker->placed_pages += pages;
    learn_pages(table, pages);
    rt_health_placed(&worker->health);
    rt_worker_reindex(table, worker);
}

void rt_worker_resize(struct rt_worker_table *table, struct rt_request *request, uint32_t pages)
{
    if (request->decode == RT_NO_WORKER || pages <= request->placed_pages) {
        return;
    }
    struct rt_worker *worker = rt_worker_table_get(table, request->decode);
    uint32_t more = pages - request->placed_pages;
    /* A rank can't have taken more than it has, whatever it says. */
    if (pages > worker->info.load.pages_total) {
        return;
    }
    request->placed_pages += more;
    worker->placed_pages += more;
    if (request->unseen_pages > 0) {
        request->unseen_pages += more;
        worker->unseen_pages += more;
    }
    rt_worker_reindex(table, worker);
}

void rt_worker_seen(struct rt_worker *worker, struct rt_request *request)
{
    if (request->unseen_pages == 0) {
        return;
    }
    worker->unseen_count--;
    worker->unseen_pages -= request->unseen_pages;
    worker->unseen_tokens -= request->spec.prompt_tokens;
    worker->unseen_prompts -= request->local ? request->spec.prompt_tokens : 0;
    request->unseen_pages = 0;
    struct rt_request_link *link = &request->unseen;
    *(link->prev ? &link->prev->unseen.next : &worker->unseen) = link->next;
    if (link->next) {
        link->next->unseen.prev = link->prev;
    }
    *link = (struct rt_request_link){0};
}

void rt_worker_adopted(struct rt_worker *worker, struct rt_request *request)
{
    rt_worker_seen(worker, request);
    worker->foreign_pages -= request->placed_pages < worker->foreign_pages ? request->placed_pages
                                                                           : worker->foreign_pages;
}

void rt_worker_leave_decode(struct rt_worker_table *table, struct rt_request *request)
{
    if (request->decode != RT_NO_WORKER) {
        struct rt_worker *worker = rt_worker_table_get(table, request->decode);
        rt_worker_seen(worker, request);
        worker->placed_pages -= request->placed_pages;
        request->placed_pages = 0;
        left(table, worker, request);
        request->decode = RT_NO_WORKER;
    }
}
