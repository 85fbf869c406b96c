#include "deploy/batonctl/sensitivity.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "deploy/batonctl/text_run.h"

struct measurement {
    struct bt_model *exact, *rounded;
    struct ctl_text_run *run; /* of `exact` */
    struct bt_token_buffer tokens;
    float *expected; /* [CTL_TEXT_WINDOW][vocab] */
};

static void compare(struct measurement *m, const uint32_t *tokens, uint32_t count,
                    struct bt_divergence *divergence)
{
    uint32_t vocab = m->exact->config.vocab_size;
    const float *logits = ctl_text_run_piece(m->run, tokens, count);
    for (size_t row = 0; row < count; row++)
        bt_divergence_add(divergence, m->expected + row * vocab, logits + row * vocab, vocab);
}

static void measure_piece(struct measurement *m, const uint32_t *tokens, uint32_t count,
                          struct bt_divergence *layers, struct bt_divergence *all)
{
    struct bt_model *exact = m->exact;
    struct bt_layer_weights *own_layers = exact->layers;
    const struct bt_matrix own_head = exact->lm_head;
    const float *logits = ctl_text_run_piece(m->run, tokens, count);
    memcpy(m->expected, logits, (size_t)count * exact->config.vocab_size * sizeof(*logits));
    for (uint32_t i = 0; i < exact->config.num_hidden_layers; i++) {
        const struct bt_layer_weights own = own_layers[i];
        own_layers[i] = m->rounded->layers[i];
        compare(m, tokens, count, &layers[i]);
        own_layers[i] = own;
    }
    exact->layers = m->rounded->layers;
    exact->lm_head = m->rounded->lm_head;
    compare(m, tokens, count, all);
    exact->layers = own_layers;
    exact->lm_head = own_head;
}

static enum bt_status prepare(struct measurement *m, const char *exact_dir, const char *rounded_dir,
                              const char *text_path, struct bt_team *team, struct bt_error *error)
{
    struct bt_model_options load = {
        .dir = exact_dir, .kernels = "auto", .dtype = BT_MODEL_BFLOAT16, .team = team};
    enum bt_status status =
        ctl_text_read(exact_dir, text_path, CTL_SENSITIVITY_TOKENS, error, &m->tokens);
    if (status == BT_OK)
        status = bt_model_load(&load, error, &m->exact);
    load.dir = rounded_dir;
    if (status == BT_OK)
        status = bt_model_load(&load, error, &m->rounded);
    if (status == BT_OK)
        status = ctl_text_run_create(m->exact, true, error, &m->run);
    if (status != BT_OK)
        return status;
    m->expected =
        calloc((size_t)CTL_TEXT_WINDOW * m->exact->config.vocab_size, sizeof(*m->expected));
    return m->expected ? BT_OK : bt_error_set(error, BT_ERR_NO_MEMORY, "sensitivity: no memory");
}

enum bt_status ctl_sensitivity_measure(const char *exact_dir, const char *rounded_dir,
                                       const char *text_path, struct bt_team *team,
                                       struct bt_error *error, struct bt_divergence *ret_layers,
                                       struct bt_divergence *ret_all)
{
    struct measurement m = {0};
    bool tells = isatty(STDERR_FILENO);
    enum bt_status status = prepare(&m, exact_dir, rounded_dir, text_path, team, error);
    for (size_t at = 0; status == BT_OK && at < m.tokens.count; at += CTL_TEXT_WINDOW) {
        size_t left = m.tokens.count - at;
        uint32_t count = left < CTL_TEXT_WINDOW ? (uint32_t)left : CTL_TEXT_WINDOW;
        measure_piece(&m, m.tokens.ids + at, count, ret_layers, ret_all);
        if (tells)
            fprintf(stderr, "\rmeasuring layers: %zu of %zu tokens", at + count, m.tokens.count);
    }
    if (tells)
        fprintf(stderr, "\n");
    ctl_text_run_destroy(m.run);
    bt_model_destroy(m.rounded);
    bt_model_destroy(m.exact);
    free(m.tokens.ids);
    free(m.expected);
    return status;
}
