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
                                         .max_logits = options->max_chunks};
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

static void layer_done(void *context, uint32_t layer)
{
    const struct pf_pass *pass = context;
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

enum bt_status pf_pass_run(struct pf_pass *pass, const struct pf_plan_chunk *chunks,
                           struct kvt_push *const *pushes, uint32_t count, struct bt_error *error,
                           const float **ret_logits, int64_t *ret_computed_ns)
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
    begin_times(pass);
    enum bt_status status = bt_forward_run(pass->forward, &batch, ret_logits);
    if (status != BT_OK) {
        const char *why = bt_group_error(bt_rank_group(pass->options.rank));
        return bt_error_set(error, status, "%s", why[0] ? why : "ranks of different limits");
    }
    *ret_computed_ns = bt_clock_now_ns();
    for (uint32_t i = 0; i < count; i++) {
        if (chunks[i].is_last && pushes[i]) {
            kvt_push_finish(pushes[i]);
        }
    }
    return BT_OK;
}
