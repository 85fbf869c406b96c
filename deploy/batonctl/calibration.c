#include "deploy/batonctl/calibration.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/file.h"
#include "common/model/forward.h"
#include "common/model/model.h"
#include "common/text/tokenizer.h"

#define MIN_TOKENS 64

/*
 * The model runs with a table whose moe_experts looks at its input first. Operations of a table
 * have no context, so there is one calibration at a time.
 */
static struct {
    struct bt_kernels table;
    const struct bt_kernels *original;
    const struct bt_model *model;
    struct ctl_calibration *calibration;
    uint32_t stride; /* every so many rows is kept */
    uint32_t phase;  /* of the piece's first row */
} tap;

static void keep_row(struct ctl_calibration_layer *layer, const float *x, const uint32_t *experts)
{
    const struct ctl_calibration *c = tap.calibration;
    if (layer->rows == CTL_CALIBRATION_ROWS)
        return;
    memcpy(layer->x + (size_t)layer->rows * c->hidden, x, c->hidden * sizeof(*x));
    memcpy(layer->experts + (size_t)layer->rows * c->experts_per_token, experts,
           c->experts_per_token * sizeof(*experts));
    layer->rows++;
}

static void tapped_moe_experts(struct bt_stream *stream, const float *x, uint32_t rows,
                               const struct bt_route_shape *shape, const struct bt_routing *routing,
                               const struct bt_expert_weights *experts, float *out)
{
    for (uint32_t i = 0; i < tap.calibration->layer_count; i++) {
        if (&tap.model->layers[i].experts != experts)
            continue;
        for (uint32_t row = 0; row < rows; row++) {
            if ((tap.phase + row) % tap.stride == 0)
                keep_row(&tap.calibration->layers[i], x + (size_t)row * tap.calibration->hidden,
                         routing->experts + (size_t)row * shape->experts_per_token);
        }
    }
    tap.original->moe_experts(stream, x, rows, shape, routing, experts, out);
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

static enum bt_status make_layers(const struct bt_model *model, struct ctl_calibration *c,
                                  struct bt_error *error)
{
    c->layer_count = model->config.num_hidden_layers;
    c->hidden = model->config.hidden_size;
    c->experts_per_token = model->config.route.experts_per_token;
    c->layers = calloc(c->layer_count, sizeof(*c->layers));
    if (!c->layers)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "calibration: no memory");
    for (uint32_t i = 0; i < c->layer_count; i++) {
        struct ctl_calibration_layer *layer = &c->layers[i];
        if (!bt_model_layer_is_moe(&model->config, i))
            continue;
        layer->x = calloc((size_t)CTL_CALIBRATION_ROWS * c->hidden, sizeof(float));
        layer->experts =
            calloc((size_t)CTL_CALIBRATION_ROWS * c->experts_per_token, sizeof(uint32_t));
        if (!layer->x || !layer->experts)
            return bt_error_set(error, BT_ERR_NO_MEMORY, "calibration: no memory");
    }
    return BT_OK;
}

/* The text in independent pieces through the tapped model; KV of each piece in the same pages. */
static enum bt_status run_pieces(struct bt_model *model, const struct bt_token_buffer *tokens,
                                 struct ctl_calibration *c, struct bt_error *error)
{
    uint32_t pages[CTL_CALIBRATION_WINDOW / BT_PAGE_TOKENS];
    struct bt_kv_layout layout = bt_model_kv_layout(model, BT_F32);
    uint32_t page_count = sizeof(pages) / sizeof(pages[0]);
    struct bt_forward *forward = NULL;
    const struct bt_forward_options options = {.max_rows = CTL_CALIBRATION_WINDOW, .max_logits = 1};
    enum bt_status status = bt_forward_create(model, &options, error, &forward);
    void *pool = calloc(1, bt_kv_pool_bytes(&layout, page_count));
    if (status == BT_OK && !pool)
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "calibration: no memory");
    for (uint32_t i = 0; i < page_count; i++)
        pages[i] = i;
    tap.stride = c->tokens > CTL_CALIBRATION_ROWS ? c->tokens / CTL_CALIBRATION_ROWS : 1;
    for (uint32_t at = 0; status == BT_OK && at < c->tokens; at += CTL_CALIBRATION_WINDOW) {
        uint32_t rows =
            c->tokens - at < CTL_CALIBRATION_WINDOW ? c->tokens - at : CTL_CALIBRATION_WINDOW;
        struct bt_sequence_rows sequence = {pages, 0, 0, rows};
        struct bt_forward_batch batch = {
            .form = BT_FORWARD_MULTI_HEAD,
            .tokens = tokens->ids + at,
            .rows = rows,
            .sequences = &sequence,
            .sequence_count = 1,
            .kv_pool = pool,
            .layout = layout,
            .pool_pages = page_count,
            .probe = see_nothing, /* so that the last layer sees all rows too */
        };
        const float *logits;
        tap.phase = at;
        status = bt_forward_run(forward, &batch, &logits);
        if (isatty(STDERR_FILENO))
            fprintf(stderr, "\rcalibrating: %u of %u tokens", at + rows, c->tokens);
    }
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\n");
    free(pool);
    bt_forward_destroy(forward);
    return status;
}

static enum bt_status read_tokens(const char *model_dir, const char *text_path,
                                  struct bt_error *error, struct bt_token_buffer *ret_tokens)
{
    struct bt_tokenizer *tokenizer = NULL;
    char *text = NULL;
    size_t size = 0;
    enum bt_status status = bt_tokenizer_load(model_dir, error, &tokenizer);
    if (status == BT_OK)
        status = bt_file_read(text_path, BT_TOKENIZER_MAX_TEXT_BYTES, error, &text, &size);
    if (status == BT_OK)
        status = bt_tokenizer_encode(tokenizer, text, size, true, error, ret_tokens);
    if (status == BT_OK && ret_tokens->count < MIN_TOKENS)
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: %zu tokens, at least %d",
                              text_path, ret_tokens->count, MIN_TOKENS);
    free(text);
    bt_tokenizer_destroy(tokenizer);
    return status;
}

enum bt_status ctl_calibrate(const char *model_dir, const char *text_path, uint32_t max_tokens,
                             struct bt_team *team, struct bt_error *error,
                             struct ctl_calibration *ret_calibration)
{
    struct ctl_calibration c = {0};
    struct bt_token_buffer tokens = {0};
    struct bt_model *model = NULL;
    const struct bt_model_options load = {
        .dir = model_dir, .kernels = "auto", .dtype = BT_MODEL_AUTO, .team = team};
    enum bt_status status = read_tokens(model_dir, text_path, error, &tokens);
    if (status == BT_OK)
        status = bt_model_load(&load, error, &model);
    if (status == BT_OK)
        status = make_layers(model, &c, error);
    if (status == BT_OK) {
        c.tokens = tokens.count < max_tokens ? (uint32_t)tokens.count : max_tokens;
        tap.original = model->kernels;
        tap.table = *model->kernels;
        tap.table.moe_experts = tapped_moe_experts;
        tap.model = model;
        tap.calibration = &c;
        model->kernels = &tap.table;
        status = run_pieces(model, &tokens, &c, error);
    }
    bt_model_destroy(model);
    free(tokens.ids);
    if (status != BT_OK)
        ctl_calibration_finish(&c);
    else
        *ret_calibration = c;
    return status;
}

void ctl_calibration_finish(struct ctl_calibration *c)
{
    for (uint32_t i = 0; c->layers && i < c->layer_count; i++) {
        free(c->layers[i].x);
        free(c->layers[i].experts);
    }
    free(c->layers);
    *c = (struct ctl_calibration){0};
}
