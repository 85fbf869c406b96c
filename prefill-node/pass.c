#include "prefill-node/pass.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"

struct pf_pass {
    struct pf_pass_options options;
    struct bt_forward *forward;
    struct bt_sequence_rows *sequences; /* [max_chunks] */
    uint32_t *logit_rows;               /* likewise */
    uint32_t *tokens;                   /* [max_rows] */

    const struct pf_plan_chunk *chunks; /* of the pass that runs */
    struct kvt_push *const *pushes;
    uint32_t count;
};

enum bt_status pf_pass_create(const struct pf_pass_options *options, struct bt_error *error,
                              struct pf_pass **ret_pass)
{
    struct pf_pass *pass = calloc(1, sizeof(*pass));
    if (!pass) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "prefill pass: no memory");
    }
    pass->options = *options;
    pass->sequences = calloc(options->max_chunks, sizeof(*pass->sequences));
    pass->logit_rows = calloc(options->max_chunks, sizeof(*pass->logit_rows));
    pass->tokens = calloc(options->max_rows, sizeof(*pass->tokens));
    if (!pass->sequences || !pass->logit_rows || !pass->tokens) {
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
    free(pass->sequences);
    free(pass->logit_rows);
    free(pass->tokens);
    free(pass);
}

static void layer_done(void *context, uint32_t layer)
{
    const struct pf_pass *pass = context;
    for (uint32_t i = 0; i < pass->count; i++) {
        if (pass->pushes[i]) {
            kvt_push_ready(pass->pushes[i], layer, pass->chunks[i].start + pass->chunks[i].rows);
        }
    }
}

/* The rows of the chunks, one after the other. */
static void fill(struct pf_pass *pass, struct bt_forward_batch *batch)
{
    for (uint32_t i = 0; i < pass->count; i++) {
        const struct pf_plan_chunk *chunk = &pass->chunks[i];
        memcpy(&pass->tokens[batch->rows], chunk->tokens, chunk->rows * sizeof(uint32_t));
        pass->sequences[i] = (struct bt_sequence_rows){
            .pages = chunk->pages,
            .start = chunk->start,
            .first_row = batch->rows,
            .row_count = chunk->rows,
        };
        batch->rows += chunk->rows;
        if (chunk->is_last) {
            pass->logit_rows[batch->logit_count++] = batch->rows - 1;
        }
    }
    batch->sequence_count = pass->count;
}

enum bt_status pf_pass_run(struct pf_pass *pass, const struct pf_plan_chunk *chunks,
                           struct kvt_push *const *pushes, uint32_t count, struct bt_error *error,
                           const float **ret_logits, int64_t *ret_computed_ns)
{
    BT_ASSERT(count > 0 && count <= pass->options.max_chunks);
    struct bt_forward_batch batch = {
        .form = BT_FORWARD_MULTI_HEAD,
        .tokens = pass->tokens,
        .sequences = pass->sequences,
        .kv_pool = pass->options.kv_pool,
        .layout = pass->options.layout,
        .pool_pages = pass->options.pool_pages,
        .logit_rows = pass->logit_rows,
        .layer_done = layer_done,
        .context = pass,
    };
    pass->chunks = chunks;
    pass->pushes = pushes;
    pass->count = count;
    fill(pass, &batch);
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
