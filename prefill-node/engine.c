#include "prefill-node/engine.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/model/draws.h"
#include "prefill-node/pass.h"

struct pf_engine {
    struct pf_engine_options options;
    struct pf_pass *pass;
    struct bt_sampler *sampler;
    struct pf_job **jobs; /* [max_jobs] */
    uint32_t job_count;
    struct bt_error error;

    /* One iteration. */
    struct bt_prompt_job *waiting;  /* [max_jobs] */
    struct bt_prompt_chunk *chunks; /* [limits.max_jobs] */
    struct pf_plan_chunk *plan;     /* likewise */
    struct kvt_push **pushes;       /* likewise */
    struct pf_job **moved;          /* likewise: started, then finished ones */
    struct bt_draws draws;          /* likewise: of those that end, where the device draws */
    bool *by_device;                /* likewise */
    uint32_t chunk_count;
    uint32_t *words; /* the plan for other ranks; NULL: there are none */
};

static struct pf_plan_limits plan_limits(const struct pf_engine_options *options)
{
    return (struct pf_plan_limits){.max_chunks = options->limits.max_jobs,
                                   .max_rows = options->limits.budget_tokens,
                                   .max_tokens = options->max_tokens,
                                   .pool_pages = options->pool_pages};
}

static bool engine_alloc(struct pf_engine *engine)
{
    uint32_t max_jobs = engine->options.max_jobs;
    uint32_t share = engine->options.limits.max_jobs;
    const struct pf_plan_limits limits = plan_limits(&engine->options);
    engine->jobs = calloc(max_jobs, sizeof(*engine->jobs));
    engine->waiting = calloc(max_jobs, sizeof(*engine->waiting));
    engine->chunks = calloc(share, sizeof(*engine->chunks));
    engine->plan = calloc(share, sizeof(*engine->plan));
    engine->pushes = calloc(share, sizeof(struct kvt_push *));
    engine->moved = calloc(share, sizeof(*engine->moved));
    engine->by_device = calloc(share, sizeof(*engine->by_device));
    const struct bt_model_config *config = &engine->options.model->config;
    engine->sampler =
        bt_sampler_create(config->vocab_size, config->eos_token_ids, config->eos_token_count);
    if (pf_engine_in_group(engine)) {
        engine->words = calloc(pf_plan_max_words(&limits), sizeof(uint32_t));
    }
    return engine->jobs && engine->waiting && engine->chunks && engine->plan && engine->pushes &&
           engine->moved && bt_draws_init(&engine->draws, share) && engine->by_device &&
           engine->sampler && (engine->words || !pf_engine_in_group(engine));
}

enum bt_status pf_engine_create(const struct pf_engine_options *options, struct bt_error *error,
                                struct pf_engine **ret_engine)
{
    struct pf_engine *engine = calloc(1, sizeof(*engine));
    if (!engine) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "prefill engine: no memory");
    }
    engine->options = *options;
    if (!engine_alloc(engine)) {
        pf_engine_destroy(engine);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "prefill engine: no memory");
    }
    const struct pf_pass_options pass = {
        .model = options->model,
        .rank = options->rank,
        .layout = options->layout,
        .kv_pool = options->kv_pool,
        .staging = options->staging,
        .pool_pages = options->pool_pages,
        .max_chunks = options->limits.max_jobs,
        .max_rows = options->limits.budget_tokens,
    };
    enum bt_status status = pf_pass_create(&pass, error, &engine->pass);
    if (status != BT_OK) {
        pf_engine_destroy(engine);
        return status;
    }
    *ret_engine = engine;
    return BT_OK;
}

void pf_engine_destroy(struct pf_engine *engine)
{
    if (!engine) {
        return;
    }
    pf_pass_destroy(engine->pass);
    bt_sampler_destroy(engine->sampler);
    free(engine->jobs);
    free(engine->waiting);
    free(engine->chunks);
    free(engine->plan);
    free(engine->pushes);
    free(engine->moved);
    bt_draws_finish(&engine->draws);
    free(engine->by_device);
    free(engine->words);
    free(engine);
}

enum bt_status pf_engine_enter(struct pf_engine *engine)
{
    return pf_pass_enter(engine->pass, &engine->error);
}

void pf_engine_add(struct pf_engine *engine, struct pf_job *job)
{
    BT_ASSERT(engine->job_count < engine->options.max_jobs);
    uint32_t computed = atomic_load_explicit(&job->computed, memory_order_relaxed);
    BT_ASSERT(computed < job->token_count && computed % BT_PAGE_TOKENS == 0);
    engine->jobs[engine->job_count++] = job;
}

/* The order of jobs is kept: it breaks ties of the scheduler. */
static void jobs_erase(struct pf_engine *engine, uint32_t index)
{
    engine->job_count--;
    memmove(&engine->jobs[index], &engine->jobs[index + 1],
            (engine->job_count - index) * sizeof(struct pf_job *));
}

struct pf_job *pf_engine_remove(struct pf_engine *engine, uint64_t serial)
{
    for (uint32_t i = 0; i < engine->job_count; i++) {
        struct pf_job *job = engine->jobs[i];
        if (job->serial == serial) {
            jobs_erase(engine, i);
            return job;
        }
    }
    return NULL;
}

uint32_t pf_engine_job_count(const struct pf_engine *engine)
{
    return engine->job_count;
}

struct pf_job *pf_engine_first(const struct pf_engine *engine)
{
    return engine->job_count > 0 ? engine->jobs[0] : NULL;
}

bool pf_engine_in_group(const struct pf_engine *engine)
{
    return engine->options.rank && bt_rank_size(engine->options.rank) > 1;
}

int64_t pf_engine_heartbeat_ns(const struct pf_engine *engine)
{
    return engine->options.heartbeat_ns;
}

const struct bt_error *pf_engine_error(const struct pf_engine *engine)
{
    return &engine->error;
}

static void engine_schedule(struct pf_engine *engine)
{
    for (uint32_t i = 0; i < engine->job_count; i++) {
        const struct pf_job *job = engine->jobs[i];
        engine->waiting[i] = (struct bt_prompt_job){
            job->token_count, atomic_load_explicit(&job->computed, memory_order_relaxed),
            job->arrival_ns};
    }
    engine->chunk_count = bt_prompt_schedule(engine->waiting, engine->job_count,
                                             &engine->options.limits, engine->chunks);
}

static void engine_plan(struct pf_engine *engine)
{
    for (uint32_t i = 0; i < engine->chunk_count; i++) {
        const struct bt_prompt_chunk *chunk = &engine->chunks[i];
        const struct pf_job *job = engine->jobs[chunk->job];
        engine->plan[i] = (struct pf_plan_chunk){
            .serial = job->serial,
            .start = chunk->begin,
            .rows = chunk->end - chunk->begin,
            .is_last = chunk->end == job->token_count,
            .pages = job->pages,
            .tokens = &job->tokens[chunk->begin],
            .times = job->times,
        };
        engine->pushes[i] = job->push;
    }
}

void pf_engine_begin(struct pf_engine *engine, struct pf_jobs *ret_started)
{
    BT_ASSERT(engine->job_count > 0);
    engine_schedule(engine);
    engine_plan(engine);
    *ret_started = (struct pf_jobs){.jobs = engine->moved};
    int64_t now_ns = bt_clock_now_ns();
    for (uint32_t i = 0; i < engine->chunk_count; i++) {
        struct pf_job *job = engine->jobs[engine->chunks[i].job];
        if (job->started_ns == 0) {
            job->started_ns = now_ns;
            ret_started->jobs[ret_started->count++] = job;
        }
    }
}

enum bt_status pf_engine_agree(struct pf_engine *engine, const struct pf_intent *mine,
                               struct pf_intent *ret_all)
{
    struct bt_rank *rank = engine->options.rank;
    struct pf_intent intent = *mine;
    if (!rank) {
        *ret_all = intent;
        return BT_OK;
    }
    if (engine->words && engine->chunk_count > 0) {
        const struct pf_plan_limits limits = plan_limits(&engine->options);
        intent.plan_words =
            pf_plan_encode(engine->plan, engine->chunk_count, &limits, engine->words);
    }
    enum bt_status status = pf_agree(rank, &intent, &engine->error, ret_all);
    if (status == BT_OK && intent.plan_words > 0) {
        struct bt_group *group = bt_rank_group(rank);
        status =
            bt_group_broadcast(group, 0, engine->words, intent.plan_words * sizeof(uint32_t), NULL);
        if (status != BT_OK) {
            bt_error_set(&engine->error, status, "%s", bt_group_error(group));
        }
    }
    return status;
}

static void engine_advance(struct pf_engine *engine, int64_t now_ns, struct pf_jobs *finished)
{
    for (uint32_t i = 0; i < engine->chunk_count; i++) {
        const struct bt_prompt_chunk *chunk = &engine->chunks[i];
        struct pf_job *job = engine->jobs[chunk->job];
        atomic_store_explicit(&job->computed, chunk->end, memory_order_relaxed);
        if (chunk->end == job->token_count) {
            job->computed_ns = now_ns;
            finished->jobs[finished->count++] = job;
        }
    }
}

/* Which first tokens the device is to draw. */
static void ask_draws(struct pf_engine *engine)
{
    uint32_t count = 0;
    bt_draws_clear(&engine->draws);
    for (uint32_t i = 0; i < engine->chunk_count; i++) {
        if (engine->plan[i].is_last) {
            const struct pf_job *job = engine->jobs[engine->chunks[i].job];
            const struct bt_draw_ask ask = {.sampling = job->sampling, .history = job->history};
            engine->by_device[count++] = bt_draws_add(&engine->draws, engine->sampler, &ask);
        }
    }
}

/* job->first, that of row `index` of the logits */
static void draw_first(struct pf_engine *engine, const struct bt_forward_result *result,
                       uint32_t index, struct pf_job *job)
{
    size_t vocab_size = engine->options.model->config.vocab_size;
    if (result->tokens && engine->by_device[index]) {
        BT_ASSERT(result->tokens[index] < vocab_size);
        bt_draw_sample(job->sampling, result->tokens[index],
                       result->logprobs ? &result->logprobs[index] : NULL, &job->first);
        return;
    }
    bt_sampler_draw(engine->sampler, &result->logits[index * vocab_size], job->sampling,
                    job->history, 0, &job->first);
}

/* All pushes are finished before the host draws a first token: the last pages go out meanwhile. */
enum bt_status pf_engine_run(struct pf_engine *engine, struct pf_jobs *ret_finished)
{
    BT_ASSERT(engine->chunk_count > 0);
    struct bt_forward_result result;
    bool by_device = pf_pass_draws(engine->pass);
    int64_t computed_ns = 0;
    if (by_device) {
        ask_draws(engine);
    }
    enum bt_status status =
        pf_pass_run(engine->pass, engine->plan, engine->pushes, engine->chunk_count,
                    by_device ? &engine->draws : NULL, &engine->error, &result, &computed_ns);
    if (status != BT_OK) {
        return status;
    }
    *ret_finished = (struct pf_jobs){.jobs = engine->moved};
    engine_advance(engine, computed_ns, ret_finished);
    for (uint32_t i = 0; i < ret_finished->count; i++) {
        struct pf_job *job = ret_finished->jobs[i];
        draw_first(engine, &result, i, job);
        BT_ASSERT(pf_engine_remove(engine, job->serial) == job);
    }
    engine->chunk_count = 0;
    return BT_OK;
}
