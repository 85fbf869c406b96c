#include "prefill-node/pass.h"

#include <stdlib.h>

#include "common/base/clock.h"
#include "common/model/prompt_batch.h"
#include "prefill-node/layer_times.h"

struct pf_pass {
    struct pf_pass_options options;
    struct bt_forward *forward;
    struct bt_prompt_batch batch;

    const struct pf_plan_chunk *chunks; /* of the pass that runs */
    struct kvt_push *const *pushes;
    uint32_t count;
    bool timed; /* some chunk has times */
    struct bt_error staging_error;
};

enum bt_status pf_pass_create(const struct pf_pass_options *options, struct bt_error *error,
                              struct pf_pass **ret_pass)
{
    struct pf_pass *pass = calloc(1, sizeof(*pass));
    if (!pass) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "prefill pass: no memory");
    }
    pass->options = *options;
    if (!bt_prompt_batch_init(&pass->batch, options->max_chunks, options->max_rows)) {
        pf_pass_destroy(pass);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "prefill pass: no memory");
    }
    struct bt_forward_options forward = {.max_rows = options->max_rows,
                                         .max_logits = options->max_chunks,
                                         .max_sequences = options->max_chunks};
    if (options->rank) {
        bt_rank_forward(options->rank, &forward);
    }
    enum bt_status status = bt_forward_create(options->model, &forward, error, &pass->forward);
    if (status == BT_OK && options->rank) {
        status =
            bt_rank_start(options->rank, (struct bt_model *)options->model, pass->forward, error);
    }
    if (status != BT_OK) {
        pf_pass_destroy(pass);
        return status;
    }
    *ret_pass = pass;
    return BT_OK;
}

void pf_pass_destroy(struct pf_pass *pass)
{
    if (!pass) {
        return;
    }
    bt_forward_destroy(pass->forward);
    bt_prompt_batch_finish(&pass->batch);
    free(pass);
}

/* A layer of all chunks to the pool that is pushed from. False: the device failed. */
static bool stage(struct pf_pass *pass, uint32_t layer)
{
    struct kvt_staging *staging = pass->options.staging;
    if (!staging) {
        return true;
    }
    for (uint32_t i = 0; i < pass->count; i++) {
        const struct pf_plan_chunk *chunk = &pass->chunks[i];
        kvt_staging_out(staging, layer, chunk->pages, chunk->start, chunk->start + chunk->rows);
    }
    return kvt_staging_wait(staging, &pass->staging_error) == BT_OK;
}

static void layer_done(void *context, uint32_t layer)
{
    struct pf_pass *pass = context;
    if (pass->staging_error.status != BT_OK || !stage(pass, layer)) {
        return;
    }
    int64_t now_ns = pass->timed ? bt_clock_now_ns() : 0;
    for (uint32_t i = 0; i < pass->count; i++) {
        if (pass->chunks[i].times) {
            pf_layer_times_computed(pass->chunks[i].times, layer, now_ns);
        }
        if (pass->pushes[i]) {
            kvt_push_ready(pass->pushes[i], layer, pass->chunks[i].start + pass->chunks[i].rows);
        }
    }
}

/* Before the first layer. */
static void begin_times(struct pf_pass *pass)
{
    pass->timed = false;
    for (uint32_t i = 0; i < pass->count; i++) {
        const struct pf_plan_chunk *chunk = &pass->chunks[i];
        if (chunk->times) {
            pass->timed = true;
            pf_layer_times_chunk(chunk->times, chunk->start + chunk->rows, bt_clock_now_ns());
        }
    }
}

static enum bt_status failed(const struct pf_pass *pass, enum bt_status status,
                             struct bt_error *error)
{
    const struct bt_group *group = pass->options.rank ? bt_rank_group(pass->options.rank) : NULL;
    const char *why = group ? bt_group_error(group) : "";
    why = *why ? why : bt_forward_error(pass->forward);
    return bt_error_set(error, status, "%s", *why ? why : "ranks of different limits");
}

enum bt_status pf_pass_enter(struct pf_pass *pass, struct bt_error *error)
{
    bt_team_enter(pass->options.model->team);
    return bt_device_enter(pass->options.model->device, error);
}

bool pf_pass_draws(const struct pf_pass *pass)
{
    return bt_forward_draws(pass->forward);
}

enum bt_status pf_pass_run(struct pf_pass *pass, const struct pf_plan_chunk *chunks,
                           struct kvt_push *const *pushes, uint32_t count,
                           const struct bt_draws *draws, struct bt_error *error,
                           struct bt_forward_result *ret_result, int64_t *ret_computed_ns)
{
    BT_ASSERT(count > 0 && count <= pass->options.max_chunks);
    struct bt_forward_batch batch = {
        .kv_pool = pass->options.kv_pool,
        .layout = pass->options.layout,
        .pool_pages = pass->options.pool_pages,
        .layer_done = layer_done,
        .context = pass,
    };
    pass->chunks = chunks;
    pass->pushes = pushes;
    pass->count = count;
    bt_prompt_batch_clear(&pass->batch);
    for (uint32_t i = 0; i < count; i++) {
        const struct pf_plan_chunk *chunk = &chunks[i];
        bt_prompt_batch_add(&pass->batch, chunk->pages, chunk->start, chunk->tokens, chunk->rows,
                            chunk->is_last);
    }
    bt_prompt_batch_fill(&pass->batch, &batch);
    if (draws) {
        batch.draws = draws->draws;
        batch.adjusts = draws->adjusts;
        batch.adjust_count = draws->adjust_count;
        batch.no_logits = draws->all_here;
    }
    begin_times(pass);
    enum bt_status status = bt_forward_begin(pass->forward, &batch);
    if (status == BT_OK) {
        status = bt_forward_finish(pass->forward, ret_result);
    }
    if (status != BT_OK) {
        return failed(pass, status, error);
    }
    if (pass->staging_error.status != BT_OK) {
        return bt_error_set(error, pass->staging_error.status, "staging: %s",
                            pass->staging_error.text);
    }
    *ret_computed_ns = bt_clock_now_ns();
    for (uint32_t i = 0; i < count; i++) {
        if (chunks[i].is_last && pushes[i]) {
            kvt_push_finish(pushes[i]);
        }
    }
    return BT_OK;
}
