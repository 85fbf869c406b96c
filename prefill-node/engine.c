#include "prefill-node/engine.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"

struct pf_engine {
    struct pf_engine_options options;
    struct bt_forward *forward;
    struct bt_sampler *sampler;
    struct pf_job **jobs; /* [max_jobs] */
    uint32_t job_count;

    /* One iteration. */
    struct pf_schedule_job *waiting;    /* [max_jobs] */
    struct pf_chunk *chunks;            /* [limits.max_jobs] */
    struct bt_sequence_rows *sequences; /* likewise */
    uint32_t *logit_rows;               /* likewise */
    uint32_t *tokens;                   /* [limits.budget_tokens] */
    struct pf_job **moved;              /* likewise: started, then finished ones */
    uint32_t chunk_count;
};

static bool engine_alloc(struct pf_engine *engine)
{
    uint32_t max_jobs = engine->options.max_jobs;
    uint32_t share = engine->options.limits.max_jobs;
    engine->jobs = calloc(max_jobs, sizeof(*engine->jobs));
    engine->waiting = calloc(max_jobs, sizeof(*engine->waiting));
    engine->chunks = calloc(share, sizeof(*engine->chunks));
    engine->sequences = calloc(share, sizeof(*engine->sequences));
    engine->logit_rows = calloc(share, sizeof(*engine->logit_rows));
    engine->tokens = calloc(engine->options.limits.budget_tokens, sizeof(*engine->tokens));
    engine->moved = calloc(share, sizeof(*engine->moved));
    const struct bt_model_config *config = &engine->options.model->config;
    engine->sampler =
        bt_sampler_create(config->vocab_size, config->eos_token_ids, config->eos_token_count);
    return engine->jobs && engine->waiting && engine->chunks && engine->sequences &&
           engine->logit_rows && engine->tokens && engine->moved && engine->sampler;
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
    const struct bt_forward_options forward = {.max_rows = options->limits.budget_tokens,
                                               .max_logits = options->limits.max_jobs};
    enum bt_status status = bt_forward_create(options->model, &forward, error, &engine->forward);
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
    bt_forward_destroy(engine->forward);
    bt_sampler_destroy(engine->sampler);
    free(engine->jobs);
    free(engine->waiting);
    free(engine->chunks);
    free(engine->sequences);
    free(engine->logit_rows);
    free(engine->tokens);
    free(engine->moved);
    free(engine);
}

void pf_engine_enter(struct pf_engine *engine)
{
    bt_team_enter(engine->options.model->team);
}

void pf_engine_add(struct pf_engine *engine, struct pf_job *job)
{
    BT_ASSERT(engine->job_count < engine->options.max_jobs);
    BT_ASSERT(job->token_count > 0);
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

static void engine_schedule(struct pf_engine *engine)
{
    for (uint32_t i = 0; i < engine->job_count; i++) {
        const struct pf_job *job = engine->jobs[i];
        engine->waiting[i] = (struct pf_schedule_job){
            job->token_count, atomic_load_explicit(&job->computed, memory_order_relaxed),
            job->arrival_ns};
    }
    engine->chunk_count =
        pf_schedule(engine->waiting, engine->job_count, &engine->options.limits, engine->chunks);
}

/* The rows of the chunks, one after the other; a chunk that ends its prompt wants its last logits.
 */
static void engine_batch(struct pf_engine *engine, struct bt_forward_batch *batch)
{
    for (uint32_t i = 0; i < engine->chunk_count; i++) {
        const struct pf_chunk *chunk = &engine->chunks[i];
        const struct pf_job *job = engine->jobs[chunk->job];
        uint32_t row_count = chunk->end - chunk->begin;
        memcpy(&engine->tokens[batch->rows], &job->tokens[chunk->begin],
               row_count * sizeof(uint32_t));
        engine->sequences[i] = (struct bt_sequence_rows){
            .pages = job->pages,
            .start = chunk->begin,
            .first_row = batch->rows,
            .row_count = row_count,
        };
        batch->rows += row_count;
        if (chunk->end == job->token_count) {
            engine->logit_rows[batch->logit_count++] = batch->rows - 1;
        }
    }
    batch->sequence_count = engine->chunk_count;
}

static void engine_layer_done(void *context, uint32_t layer)
{
    struct pf_engine *engine = context;
    for (uint32_t i = 0; i < engine->chunk_count; i++) {
        const struct pf_chunk *chunk = &engine->chunks[i];
        struct pf_job *job = engine->jobs[chunk->job];
        if (job->push) {
            kvt_push_ready(job->push, layer, chunk->end);
        }
    }
}

void pf_engine_begin(struct pf_engine *engine, struct pf_jobs *ret_started)
{
    BT_ASSERT(engine->job_count > 0);
    engine_schedule(engine);
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

/* All pushes are finished before the first token is drawn: the last pages go out meanwhile. */
static void engine_advance(struct pf_engine *engine, struct pf_jobs *finished)
{
    int64_t now_ns = bt_clock_now_ns();
    for (uint32_t i = 0; i < engine->chunk_count; i++) {
        const struct pf_chunk *chunk = &engine->chunks[i];
        struct pf_job *job = engine->jobs[chunk->job];
        atomic_store_explicit(&job->computed, chunk->end, memory_order_relaxed);
        if (chunk->end == job->token_count) {
            job->computed_ns = now_ns;
            if (job->push) {
                kvt_push_finish(job->push);
            }
            finished->jobs[finished->count++] = job;
        }
    }
}

void pf_engine_run(struct pf_engine *engine, struct pf_jobs *ret_finished)
{
    BT_ASSERT(engine->chunk_count > 0);
    struct bt_forward_batch batch = {
        .form = BT_FORWARD_MULTI_HEAD,
        .tokens = engine->tokens,
        .sequences = engine->sequences,
        .kv_pool = engine->options.kv_pool,
        .layout = engine->options.layout,
        .pool_pages = engine->options.pool_pages,
        .logit_rows = engine->logit_rows,
        .layer_done = engine_layer_done,
        .context = engine,
    };
    engine_batch(engine, &batch);
    const float *logits = NULL;
    enum bt_status status = bt_forward_run(engine->forward, &batch, &logits);
    BT_ASSERT(status == BT_OK); /* alone it does not fail */

    *ret_finished = (struct pf_jobs){.jobs = engine->moved};
    engine_advance(engine, ret_finished);
    size_t vocab_size = engine->options.model->config.vocab_size;
    for (uint32_t i = 0; i < ret_finished->count; i++) {
        struct pf_job *job = ret_finished->jobs[i];
        bt_sampler_draw(engine->sampler, &logits[i * vocab_size], job->sampling, job->history, 0,
                        &job->first);
        BT_ASSERT(pf_engine_remove(engine, job->serial) == job);
    }
    engine->chunk_count = 0;
}
