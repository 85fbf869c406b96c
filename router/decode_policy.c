/* Which decode rank: one key and one score a policy, all of them searched alike. */
#include <math.h>
#include <string.h>

#include "common/base/random.h"
#include "router/placement.h"

const char *const rt_decode_policy_names[] = {"kv-utilization", "round-robin",  "remaining-slots",
                                              "mean-kv-length", "power-of-two", NULL};

/* load: what the policy compares; scale: it is divided by it; prompt: the longest that it would
 * compute itself now. */
enum {
    DECODE_LOAD,
    DECODE_MINUS_SCALE,
    DECODE_MINUS_FREE,
    DECODE_MINUS_LENGTH,
    DECODE_MINUS_PROMPT,
};

/* Sequences stand below the unit of a load, and so decide between equal ones only. */
#define ROWS_UNIT 1048576.0

static double rows_below(const struct rt_worker *worker)
{
    uint32_t rows = rt_worker_rows(worker);
    return rows < ROWS_UNIT ? rows : ROWS_UNIT - 1;
}

/* How many more sequences of the usual size would run at once, by pages and by rows. */
static double remaining_slots(const struct rt_worker_table *table, const struct rt_worker *worker,
                              double free_pages)
{
    double slots = floor(free_pages / (table->mean_pages >= 1 ? table->mean_pages : 1));
    if (worker->info.load.max_running > 0) {
        double rows = (double)worker->info.load.max_running - rt_worker_rows(worker);
        slots = rows < slots ? rows : slots;
    }
    return slots;
}

static double mean_kv_tokens(const struct rt_worker *worker)
{
    uint32_t rows = rt_worker_rows(worker);
    return rows > 0 ? floor((double)rt_worker_kv_tokens(worker) / rows) : 0;
}

static double prompt_below(const struct rt_worker_table *table, const struct rt_worker *worker)
{
    bool room = rt_placement_local_ahead_ns(worker) < (double)table->options->prefill_depth_ns;
    return room ? worker->info.local_prefill_tokens : 0;
}

void rt_placement_decode_key(const struct rt_worker_table *table, const struct rt_worker *worker,
                             struct rt_index_key *ret_key)
{
    double total = worker->info.load.pages_total;
    double free_pages = total - (double)rt_worker_projected_pages(worker);
    double load = (double)rt_worker_used_pages(worker);
    double scale = total > 0 ? total : 1;
    if (table->options->decode_policy == RT_DECODE_REMAINING_SLOTS) {
        load = -remaining_slots(table, worker, free_pages);
        scale = 1;
    } else if (table->options->decode_policy == RT_DECODE_MEAN_KV_LENGTH) {
        load = mean_kv_tokens(worker);
        scale = 1;
    }
    double length = worker->info.max_model_len == 0 ? INFINITY : worker->info.max_model_len;
    *ret_key = (struct rt_index_key){{[DECODE_LOAD] = load * ROWS_UNIT + rows_below(worker),
                                      [DECODE_MINUS_SCALE] = -scale,
                                      [DECODE_MINUS_FREE] = -free_pages,
                                      [DECODE_MINUS_LENGTH] = -length,
                                      [DECODE_MINUS_PROMPT] = -prompt_below(table, worker)}};
}

struct decode_request {
    const struct rt_request *request;
    double pages, length;
    double prompt; /* to be computed there; 0: elsewhere */
    double more;   /* load that the request adds */
};

static double decode_score(const struct rt_index_key *key, const void *context)
{
    const struct decode_request *request = context;
    if (request->pages > -key->field[DECODE_MINUS_FREE] ||
        request->length > -key->field[DECODE_MINUS_LENGTH] ||
        request->prompt > -key->field[DECODE_MINUS_PROMPT]) {
        return INFINITY;
    }
    return (key->field[DECODE_LOAD] + request->more) / -key->field[DECODE_MINUS_SCALE];
}

static bool decode_accept(void *worker, const void *context)
{
    const struct decode_request *request = context;
    return !rt_placement_refused(worker, request->request);
}

static struct rt_worker *round_robin(const struct rt_worker_index *ranks,
                                     const struct rt_index_query *query,
                                     struct rt_decode_turns *turns)
{
    struct rt_worker *worker = rt_worker_index_next(ranks, query, turns->next_slot);
    if (worker) {
        turns->next_slot = worker->slot + 1;
    }
    return worker;
}

static struct rt_worker *draw(const struct rt_worker_table *table,
                              const struct rt_index_query *query, struct rt_decode_turns *turns)
{
    const struct rt_worker_index *ranks = &table->willing[RT_ROLE_DECODE];
    uint64_t random = bt_random_u64(table->options->seed, turns->draws++, 0);
    uint32_t from = ranks->used > 0 ? (uint32_t)(random % ranks->used) : 0;
    return rt_worker_index_next(ranks, query, from);
}

static struct rt_worker *power_of_two(const struct rt_worker_table *table,
                                      const struct rt_index_query *query,
                                      struct rt_decode_turns *turns)
{
    const struct rt_worker_index *ranks = &table->willing[RT_ROLE_DECODE];
    struct rt_worker *a = draw(table, query, turns);
    struct rt_worker *b = draw(table, query, turns);
    if (!a || !b) {
        return a ? a : b;
    }
    double score_a = decode_score(&ranks->nodes[ranks->capacity + a->slot], query->request);
    double score_b = decode_score(&ranks->nodes[ranks->capacity + b->slot], query->request);
    return score_b < score_a ? b : a;
}

struct rt_worker *rt_placement_decode(const struct rt_worker_table *table,
                                      const struct rt_request *request, uint32_t pages, bool local,
                                      struct rt_decode_turns *turns)
{
    const struct rt_worker_index *ranks = &table->willing[RT_ROLE_DECODE];
    struct decode_request decode = {
        .request = request,
        .pages = pages,
        .length = (double)request->spec.prompt_tokens + request->spec.max_tokens,
        .prompt = local ? request->spec.prompt_tokens : 0,
        .more = pages * ROWS_UNIT,
    };
    struct rt_index_query query = {
        .score = decode_score, .accept = decode_accept, .request = &decode};
    double score;
    switch (table->options->decode_policy) {
    case RT_DECODE_ROUND_ROBIN:
        return round_robin(ranks, &query, turns);
    case RT_DECODE_POWER_OF_TWO:
        return power_of_two(table, &query, turns);
    case RT_DECODE_REMAINING_SLOTS:
    case RT_DECODE_MEAN_KV_LENGTH:
        decode.more = 0;
        break;
    case RT_DECODE_KV_UTILIZATION:
        break;
    }
    return rt_worker_index_best(ranks, &query, &score);
}
