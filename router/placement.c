#include "router/placement.h"

#include <math.h>

#include "common/kvcache/layout.h"

/* ---- what a request needs */

uint32_t rt_request_pages(const struct rt_request *request, uint32_t output_tokens)
{
    uint32_t output = request->spec.max_tokens;
    if (!request->full && output > output_tokens) {
        output = output_tokens;
    }
    return bt_kv_pages_for((uint64_t)request->spec.prompt_tokens + output);
}

uint32_t rt_request_full_pages(const struct rt_request_spec *spec)
{
    return bt_kv_pages_for((uint64_t)spec->prompt_tokens + spec->max_tokens);
}

/* The last token of a prompt is always computed: it gives the first logits. */
static uint32_t uncached(const struct rt_request_spec *spec, uint32_t cached_tokens)
{
    return cached_tokens < spec->prompt_tokens ? spec->prompt_tokens - cached_tokens : 1;
}

uint32_t rt_request_uncached(const struct rt_request *request, rt_worker_ref worker)
{
    for (uint32_t i = 0; i < request->spec.cached_count; i++) {
        if (request->cached[i].worker == worker) {
            return uncached(&request->spec, request->cached[i].tokens);
        }
    }
    return request->spec.prompt_tokens;
}

uint32_t rt_request_least_uncached(const struct rt_request_spec *spec)
{
    return spec->cached_count > 0 ? uncached(spec, spec->cached[0].tokens) : spec->prompt_tokens;
}

bool rt_placement_refused(const struct rt_worker *worker, const struct rt_request *request)
{
    for (uint32_t i = 0; i < request->refusal_count; i++) {
        if (request->refusals[i].worker == worker->ref) {
            return request->refusals[i].load_serial == worker->load_serial;
        }
    }
    return false;
}

/* ---- sizes: what a worker could hold if it had nothing else to do */

enum { SIZE_MINUS_LENGTH, SIZE_MINUS_PAGES, SIZE_MINUS_PROMPT };

static double length_limit(const struct rt_worker *worker)
{
    return worker->info.max_model_len == 0 ? INFINITY : worker->info.max_model_len;
}

void rt_placement_size_key(const struct rt_worker *worker, struct rt_index_key *ret_key)
{
    *ret_key =
        (struct rt_index_key){{[SIZE_MINUS_LENGTH] = -length_limit(worker),
                               [SIZE_MINUS_PAGES] = -(double)worker->info.load.pages_total,
                               [SIZE_MINUS_PROMPT] = -(double)worker->info.local_prefill_tokens}};
}

struct size_request {
    double tokens, pages;
    double prompt; /* to be computed there; 0: elsewhere */
};

static double size_score(const struct rt_index_key *key, const void *context)
{
    const struct size_request *request = context;
    bool fits = request->tokens <= -key->field[SIZE_MINUS_LENGTH] &&
                request->pages <= -key->field[SIZE_MINUS_PAGES] &&
                request->prompt <= -key->field[SIZE_MINUS_PROMPT];
    return fits ? 0 : INFINITY;
}

bool rt_placement_possible(const struct rt_worker_table *table, enum rt_role role,
                           const struct rt_request_spec *spec)
{
    struct size_request request = {
        .tokens = (double)spec->prompt_tokens + spec->max_tokens,
        .pages = role == RT_ROLE_DECODE ? rt_request_full_pages(spec) : 0,
    };
    struct rt_index_query query = {.score = size_score, .request = &request};
    return table->live_count[role] == 0 ||
           rt_worker_index_next(&table->live[role], &query, 0) != NULL;
}

bool rt_placement_local_possible(const struct rt_worker_table *table,
                                 const struct rt_request_spec *spec)
{
    struct size_request request = {
        .tokens = (double)spec->prompt_tokens + spec->max_tokens,
        .pages = rt_request_full_pages(spec),
        .prompt = spec->prompt_tokens,
    };
    struct rt_index_query query = {.score = size_score, .request = &request};
    return table->live_count[RT_ROLE_DECODE] == 0 ||
           rt_worker_index_next(&table->live[RT_ROLE_DECODE], &query, 0) != NULL;
}

uint32_t rt_placement_longest_local(const struct rt_worker_table *table)
{
    const struct rt_worker_index *live = &table->live[RT_ROLE_DECODE];
    return table->live_count[RT_ROLE_DECODE] > 0
               ? (uint32_t)-live->nodes[1].field[SIZE_MINUS_PROMPT]
               : 0;
}

uint32_t rt_placement_largest_pool(const struct rt_worker_table *table)
{
    const struct rt_worker_index *live = &table->live[RT_ROLE_DECODE];
    return table->live_count[RT_ROLE_DECODE] > 0 ? (uint32_t)-live->nodes[1].field[SIZE_MINUS_PAGES]
                                                 : 0;
}

/* ---- prefill */

/* done: when the backlog is expected to be done; tail: of it, what can't have been begun; offset:
 * what comes on top for a prompt of any length. Nanoseconds. */
enum { PREFILL_DONE, PREFILL_TAIL, PREFILL_OFFSET, PREFILL_SLOPE, PREFILL_MINUS_LENGTH };

static double foreign_ns(const struct rt_worker *worker)
{
    return worker->line.line.token_ns * (double)worker->foreign_tokens;
}

static int64_t tail_ns(const struct rt_worker *worker)
{
    return worker->computing ? worker->backlog_ns - worker->computing->ahead_ns : 0;
}

int64_t rt_placement_ahead_ns(const struct rt_worker *worker, int64_t now_ns)
{
    int64_t rest_ns = worker->computing ? worker->done_ns - now_ns : 0;
    int64_t least_ns = tail_ns(worker);
    return (rest_ns > least_ns ? rest_ns : least_ns) + (int64_t)foreign_ns(worker);
}

double rt_placement_local_ahead_ns(const struct rt_worker *worker)
{
    uint64_t tokens = worker->info.load.waiting_tokens + worker->unseen_prompts;
    return worker->line.line.token_ns * (double)tokens;
}

void rt_placement_prefill_key(const struct rt_worker *worker, struct rt_index_key *ret_key)
{
    double foreign = foreign_ns(worker);
    /* Others' work is ahead like ours: it counts against the depth through both of the first. */
    *ret_key = (struct rt_index_key){
        {[PREFILL_DONE] = worker->computing ? (double)worker->done_ns + foreign : 0,
         [PREFILL_TAIL] = (double)tail_ns(worker) + foreign,
         [PREFILL_OFFSET] = worker->line.line.base_ns,
         [PREFILL_SLOPE] = worker->line.line.token_ns,
         [PREFILL_MINUS_LENGTH] = -length_limit(worker)}};
}

struct prefill_request {
    const struct rt_request *request;
    double now_ns, depth_ns, tokens, length;
};

static double prefill_score(const struct rt_index_key *key, const void *context)
{
    const struct prefill_request *request = context;
    double ahead = key->field[PREFILL_DONE] - request->now_ns;
    ahead = ahead > key->field[PREFILL_TAIL] ? ahead : key->field[PREFILL_TAIL];
    if (ahead >= request->depth_ns || request->length > -key->field[PREFILL_MINUS_LENGTH]) {
        return INFINITY;
    }
    return ahead + key->field[PREFILL_OFFSET] + key->field[PREFILL_SLOPE] * request->tokens;
}

static bool prefill_accept(void *worker, const void *context)
{
    const struct prefill_request *request = context;
    return !rt_placement_refused(worker, request->request);
}

/* Those that have a part of the prompt are scored one by one, as the index knows nothing of it. */
static struct rt_worker *best_cached(const struct rt_worker_table *table,
                                     struct prefill_request *prefill, double *score)
{
    const struct rt_worker_index *willing = &table->willing[RT_ROLE_PREFILL];
    const struct rt_request *request = prefill->request;
    struct rt_worker *best = NULL;
    for (uint32_t i = 0; i < request->spec.cached_count; i++) {
        struct rt_worker *worker = rt_worker_table_get(table, request->cached[i].worker);
        if (!worker || worker->info.role != RT_ROLE_PREFILL ||
            rt_placement_refused(worker, request)) {
            continue;
        }
        prefill->tokens = uncached(&request->spec, request->cached[i].tokens);
        double own = prefill_score(&willing->nodes[willing->capacity + worker->slot], prefill);
        if (own < *score) {
            *score = own;
            best = worker;
        }
    }
    prefill->tokens = request->spec.prompt_tokens;
    return best;
}

struct rt_worker *rt_placement_prefill(const struct rt_worker_table *table,
                                       const struct rt_request *request, int64_t now_ns,
                                       int64_t *ret_predicted_ns)
{
    const struct rt_request_spec *spec = &request->spec;
    struct prefill_request prefill = {.request = request,
                                      .now_ns = (double)now_ns,
                                      .depth_ns = (double)table->options->prefill_depth_ns,
                                      .tokens = spec->prompt_tokens,
                                      .length = (double)spec->prompt_tokens + spec->max_tokens};
    struct rt_index_query query = {
        .score = prefill_score, .accept = prefill_accept, .request = &prefill};
    double score = INFINITY, cached_score = INFINITY;
    struct rt_worker *best = rt_worker_index_best(&table->willing[RT_ROLE_PREFILL], &query, &score);
    struct rt_worker *cached = best_cached(table, &prefill, &cached_score);
    if (cached && cached_score <= score) {
        best = cached;
        score = cached_score;
    }
    if (best) {
        *ret_predicted_ns = (int64_t)score;
    }
    return best;
}
