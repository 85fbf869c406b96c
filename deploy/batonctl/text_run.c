#include "deploy/batonctl/text_run.h"

#include <stdlib.h>

#include "common/base/file.h"
#include "common/model/forward.h"

#define PAGES (CTL_TEXT_WINDOW / BT_PAGE_TOKENS)

struct ctl_text_run {
    const struct bt_model *model;
    struct bt_forward *forward;
    struct bt_kv_layout layout;
    void *pool;
    bool wants_logits;
    uint32_t pages[PAGES], rows[CTL_TEXT_WINDOW];
};

enum bt_status ctl_text_read(const char *model_dir, const char *path, uint32_t max_tokens,
                             struct bt_error *error, struct bt_token_buffer *ret_tokens)
{
    struct bt_tokenizer *tokenizer = NULL;
    struct bt_token_buffer tokens = {0};
    char *text = NULL;
    size_t size = 0;
    enum bt_status status = bt_tokenizer_load(model_dir, error, &tokenizer);
    if (status == BT_OK)
        status = bt_file_read(path, BT_TOKENIZER_MAX_TEXT_BYTES, error, &text, &size);
    if (status == BT_OK)
        status = bt_tokenizer_encode(tokenizer, text, size, true, error, &tokens);
    if (status == BT_OK && tokens.count < CTL_TEXT_MIN_TOKENS)
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: %zu tokens, at least %d", path,
                              tokens.count, CTL_TEXT_MIN_TOKENS);
    free(text);
    bt_tokenizer_destroy(tokenizer);
    if (status != BT_OK) {
        free(tokens.ids);
        return status;
    }
    tokens.count = tokens.count < max_tokens ? tokens.count : max_tokens;
    *ret_tokens = tokens;
    return BT_OK;
}

enum bt_status ctl_text_run_create(const struct bt_model *model, bool wants_logits,
                                   struct bt_error *error, struct ctl_text_run **ret_run)
{
    struct ctl_text_run *run = calloc(1, sizeof(*run));
    if (!run)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "text: no memory");
    run->model = model;
    run->wants_logits = wants_logits;
    run->layout = bt_model_kv_layout(model, bt_model_kv_dtype(model, "auto"));
    for (uint32_t i = 0; i < PAGES; i++)
        run->pages[i] = i;
    for (uint32_t i = 0; i < CTL_TEXT_WINDOW; i++)
        run->rows[i] = i;
    const struct bt_forward_options options = {
        .max_rows = CTL_TEXT_WINDOW, .max_logits = wants_logits ? CTL_TEXT_WINDOW : 1};
    enum bt_status status = bt_forward_create(model, &options, error, &run->forward);
    run->pool = calloc(1, bt_kv_pool_bytes(&run->layout, PAGES));
    if (status == BT_OK && !run->pool)
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "text: no memory");
    if (status != BT_OK) {
        ctl_text_run_destroy(run);
        return status;
    }
    *ret_run = run;
    return BT_OK;
}

void ctl_text_run_destroy(struct ctl_text_run *run)
{
    if (!run)
        return;
    bt_forward_destroy(run->forward);
    free(run->pool);
    free(run);
}

static void see_nothing(void *context, int32_t layer, const float *x, const uint32_t *experts,
                        const float *weights)
{
    (void)context;
    (void)layer;
    (void)x;
    (void)experts;
    (void)weights;
}

const float *ctl_text_run_piece(struct ctl_text_run *run, const uint32_t *tokens, uint32_t count)
{
    struct bt_sequence_rows sequence = {run->pages, 0, 0, count};
    struct bt_forward_batch batch = {
        .form = BT_FORWARD_MULTI_HEAD,
        .tokens = tokens,
        .rows = count,
        .sequences = &sequence,
        .sequence_count = 1,
        .kv_pool = run->pool,
        .layout = run->layout,
        .pool_pages = PAGES,
        .logit_rows = run->rows,
        .logit_count = run->wants_logits ? count : 0,
        .probe = see_nothing, /* so that the last layer sees all rows too */
    };
    const float *logits = NULL;
    enum bt_status status = bt_forward_run(run->forward, &batch, &logits);
    BT_ASSERT(status == BT_OK); /* alone it does not fail */
    return run->wants_logits ? logits : NULL;
}
