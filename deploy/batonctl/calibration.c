#include "deploy/batonctl/calibration.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "deploy/batonctl/text_run.h"

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

static enum bt_status run_pieces(const struct bt_model *model, const struct bt_token_buffer *tokens,
                                 const struct ctl_calibration *c, struct bt_error *error)
{
    struct ctl_text_run *run;
    enum bt_status status = ctl_text_run_create(model, false, error, &run);
    if (status != BT_OK)
        return status;
    tap.stride = c->tokens > CTL_CALIBRATION_ROWS ? c->tokens / CTL_CALIBRATION_ROWS : 1;
    for (uint32_t at = 0; at < c->tokens; at += CTL_TEXT_WINDOW) {
        uint32_t rows = c->tokens - at < CTL_TEXT_WINDOW ? c->tokens - at : CTL_TEXT_WINDOW;
        tap.phase = at;
        ctl_text_run_piece(run, tokens->ids + at, rows);
        if (isatty(STDERR_FILENO))
            fprintf(stderr, "\rcalibrating: %u of %u tokens", at + rows, c->tokens);
    }
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\n");
    ctl_text_run_destroy(run);
    return BT_OK;
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
    enum bt_status status = ctl_text_read(model_dir, text_path, max_tokens, error, &tokens);
    if (status == BT_OK)
        status = bt_model_load(&load, error, &model);
    if (status == BT_OK)
        status = make_layers(model, &c, error);
    if (status == BT_OK) {
        c.tokens = (uint32_t)tokens.count;
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
