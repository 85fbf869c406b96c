/*
 * Multi-head latent attention and mixture of experts as in DeepSeek-V2 (arXiv 2405.04434) and
 * DeepSeek-V3 (arXiv 2412.19437). Letters in shapes: R rows, H hidden_size, A heads,
 * N qk_nope_head_dim, P qk_rope_head_dim, V v_head_dim, L kv_lora_rank, K experts_per_token.
 */
#include "common/model/forward.h"

#include <stdlib.h>
#include <string.h>

struct bt_forward {
    const struct bt_model *model;
    const struct bt_kernels *k;
    struct bt_profile *profile; /* NULL: off */
    struct bt_stream *stream;
    struct bt_mla_shape mla;
    uint32_t max_rows, max_logits;

    float *x;      /* [R][H] the residual stream */
    float *normed; /* [R][H] */
    float *update; /* [R][H] what a block adds to x */
    float *q_a;    /* [R][q_lora_rank] */
    float *q;      /* [R][A][N + P] */
    float *kv_a;   /* [R][L + P] */
    float *heads;  /* [R][A][V] */
    struct bt_routing routing;
    float *logits;                   /* [max_logits][vocab_size] */
    struct bt_sequence_rows *wanted; /* [max_logits] */
};

/* What the layers work on: at first the whole batch, at the end only the rows with logits. */
struct rows {
    uint32_t count;
    const struct bt_sequence_rows *sequences;
    uint32_t sequence_count;
};

static float *floats(size_t rows, size_t width)
{
    return calloc(rows * width + 1, sizeof(float));
}

/* The widest input of a product. */
static uint32_t widest(const struct bt_model_config *c)
{
    uint32_t widths[] = {c->hidden_size,
                         c->intermediate_size,
                         c->q_lora_rank,
                         c->kv_lora_rank,
                         c->n_shared_experts * c->moe_intermediate_size,
                         c->num_attention_heads * c->v_head_dim};
    uint32_t most = 0;
    for (size_t i = 0; i < sizeof(widths) / sizeof(widths[0]); i++)
        most = widths[i] > most ? widths[i] : most;
    return most;
}

static bool allocate(struct bt_forward *f)
{
    const struct bt_model_config *c = &f->model->config;
    uint32_t rows = f->max_rows, heads = c->num_attention_heads;
    size_t picks = (size_t)rows * c->route.experts_per_token;

    f->x = floats(rows, c->hidden_size);
    f->normed = floats(rows, c->hidden_size);
    f->update = floats(rows, c->hidden_size);
    f->q_a = floats(rows, c->q_lora_rank);
    f->q = floats(rows, (size_t)heads * (c->qk_nope_head_dim + c->qk_rope_head_dim));
    f->kv_a = floats(rows, c->kv_lora_rank + c->qk_rope_head_dim);
    f->heads = floats(rows, (size_t)heads * c->v_head_dim);
    f->routing.experts = calloc(picks + 1, sizeof(uint32_t));
    f->routing.weights = floats(picks, 1);
    f->routing.order = calloc(picks + 1, sizeof(uint32_t));
    f->routing.begin = calloc((size_t)c->n_routed_experts + 1, sizeof(uint32_t));
    f->logits = floats(f->max_logits, c->vocab_size);
    f->wanted = calloc((size_t)f->max_logits + 1, sizeof(*f->wanted));
    return f->x && f->normed && f->update && f->q_a && f->q && f->kv_a && f->heads &&
           f->routing.experts && f->routing.weights && f->routing.order && f->routing.begin &&
           f->logits && f->wanted;
}

enum bt_status bt_forward_create(const struct bt_model *model, uint32_t max_rows,
                                 uint32_t max_logits, struct bt_error *error,
                                 struct bt_forward **ret_forward)
{
    const struct bt_model_config *c = &model->config;
    struct bt_forward *f = calloc(1, sizeof(*f));
    if (!f)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "forward pass: no memory");
    f->model = model;
    f->k = model->kernels;
    f->mla = model->mla;
    f->max_rows = max_rows;
    f->max_logits = max_logits;
    if (!allocate(f)) {
        bt_forward_destroy(f);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "forward pass: no memory for %u rows",
                            max_rows);
    }
    struct bt_stream_limits limits = {
        .max_rows = max_rows,
        .max_cols = widest(c),
        .max_tokens = model->max_tokens,
        .hidden = c->hidden_size,
        .moe_intermediate = c->moe_intermediate_size,
        .experts = c->n_routed_experts,
        .experts_per_token = c->route.experts_per_token,
        .mla = f->mla,
    };
    enum bt_status status = bt_stream_create(&limits, model->team, error, &f->stream);
    if (status != BT_OK) {
        bt_forward_destroy(f);
        return status;
    }
    *ret_forward = f;
    return BT_OK;
}

void bt_forward_destroy(struct bt_forward *f)
{
    if (!f)
        return;
    void *buffers[] = {f->x,
                       f->normed,
                       f->update,
                       f->q_a,
                       f->q,
                       f->kv_a,
                       f->heads,
                       f->routing.experts,
                       f->routing.weights,
                       f->routing.order,
                       f->routing.begin,
                       f->logits,
                       f->wanted};
    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++)
        free(buffers[i]);
    if (f->stream)
        bt_stream_destroy(f->stream);
    free(f);
}

void bt_forward_profile(struct bt_forward *f, struct bt_profile *profile)
{
    f->profile = profile;
}

/* normed = norm(x) */
static void norm(struct bt_forward *f, const struct bt_matrix *weight, uint32_t rows)
{
    uint32_t hidden = f->model->config.hidden_size;
    f->k->rms_norm(f->stream, f->x, rows, hidden, hidden, weight, f->model->config.rms_norm_eps,
                   f->normed);
}

/* x += update */
static void add_update(struct bt_forward *f, uint32_t rows)
{
    f->k->add(f->stream, f->x, f->update, (size_t)rows * f->model->config.hidden_size);
}

/* x += update; normed = norm(x) */
static void add_norm(struct bt_forward *f, const struct bt_matrix *weight, uint32_t rows)
{
    f->k->add_rms_norm(f->stream, f->x, f->update, rows, f->model->config.hidden_size, weight,
                       f->model->config.rms_norm_eps, f->normed);
}

static struct bt_kv_layer kv_layer(const struct bt_forward_batch *batch, uint32_t layer)
{
    return (struct bt_kv_layer){
        .data =
            (char *)batch->kv_pool + bt_kv_offset(&batch->layout, batch->pool_pages, layer, 0, 0),
        .dtype = batch->layout.dtype,
        .kv_lora_rank = batch->layout.kv_lora_rank,
        .qk_rope_head_dim = batch->layout.qk_rope_head_dim,
    };
}

/* The layer's first products of `normed`. */
static struct bt_linear kv_product(struct bt_forward *f, const struct bt_layer_weights *w)
{
    return (struct bt_linear){&w->kv_a, f->kv_a};
}

static struct bt_linear q_product(struct bt_forward *f, const struct bt_layer_weights *w)
{
    if (f->model->config.q_lora_rank)
        return (struct bt_linear){&w->q_a, f->q_a};
    return (struct bt_linear){&w->q, f->q};
}

/* The rows' latents and rotated keys to their pages. */
static void write_kv(struct bt_forward *f, const struct bt_layer_weights *w, struct rows rows,
                     const struct bt_kv_layer *kv)
{
    f->k->kv_write(f->stream, f->kv_a, &w->kv_a_norm, BT_LATENT_NORM_EPS, &f->model->rope,
                   rows.sequences, rows.sequence_count, kv);
}

/* q [R][A][N + P], its last P rotated. */
static void make_queries(struct bt_forward *f, const struct bt_layer_weights *w, struct rows rows)
{
    uint32_t rank = f->model->config.q_lora_rank;
    if (rank) {
        f->k->rms_norm(f->stream, f->q_a, rows.count, rank, rank, &w->q_a_norm, BT_LATENT_NORM_EPS,
                       f->q_a);
        f->k->linear(f->stream, f->q_a, rows.count, &(struct bt_linear){&w->q_b, f->q}, 1);
    }
    f->k->rope_q(f->stream, f->q, &f->mla, &f->model->rope, rows.sequences, rows.sequence_count);
}

/* update = attention(normed); the KV of all rows is in the pages. */
static void attend(struct bt_forward *f, const struct bt_layer_weights *w, struct rows rows,
                   enum bt_forward_form form, const struct bt_kv_layer *kv)
{
    make_queries(f, w, rows);
    if (form == BT_FORWARD_MULTI_HEAD)
        f->k->mla_prefill(f->stream, f->q, &f->mla, &w->kv_b, rows.sequences, rows.sequence_count,
                          kv, f->heads);
    else
        f->k->mla_decode(f->stream, f->q, &f->mla, &w->kv_b, rows.sequences, rows.sequence_count,
                         kv, f->heads);
    f->k->linear(f->stream, f->heads, rows.count, &(struct bt_linear){&w->o, f->update}, 1);
}

/* update = shared experts(normed) + the routed experts' weighted sum */
static void moe(struct bt_forward *f, const struct bt_layer_weights *w, uint32_t rows)
{
    const struct bt_model_config *c = &f->model->config;
    f->k->moe_route(f->stream, f->normed, rows, &w->router, &w->router_bias, &c->route,
                    &f->routing);
    if (c->n_shared_experts)
        f->k->mlp(f->stream, f->normed, rows, &w->mlp, f->update);
    else
        f->k->zero(f->stream, f->update, (size_t)rows * c->hidden_size);
    f->k->moe_experts(f->stream, f->normed, rows, &c->route, &f->routing, &w->experts, f->update);
}

static void feed_forward(struct bt_forward *f, const struct bt_layer_weights *w, uint32_t rows)
{
    add_norm(f, &w->post_attention_norm, rows);
    if (w->experts.experts)
        moe(f, w, rows);
    else
        f->k->mlp(f->stream, f->normed, rows, &w->mlp, f->update);
    add_update(f, rows);
}

/* The batch's wanted rows as sequences of their own, neighbouring rows in one. */
static struct rows wanted_rows(struct bt_forward *f, const struct bt_forward_batch *batch)
{
    const struct bt_sequence_rows *sequence = batch->sequences;
    uint32_t count = 0, last_row = 0;
    for (uint32_t i = 0; i < batch->logit_count; i++) {
        uint32_t row = batch->logit_rows[i];
        bool same = count > 0 && row == last_row + 1;
        for (; row >= sequence->first_row + sequence->row_count; sequence++)
            same = false;
        last_row = row;
        if (same) {
            f->wanted[count - 1].row_count++;
            continue;
        }
        f->wanted[count++] = (struct bt_sequence_rows){
            .pages = sequence->pages,
            .start = sequence->start + (row - sequence->first_row),
            .first_row = i,
            .row_count = 1,
        };
    }
    return (struct rows){batch->logit_count, f->wanted, count};
}

/* x and normed keep only the rows whose logits are wanted. */
static struct rows narrow(struct bt_forward *f, const struct bt_forward_batch *batch)
{
    uint32_t hidden = f->model->config.hidden_size;
    f->k->gather_rows(f->stream, f->x, hidden, batch->logit_rows, batch->logit_count);
    f->k->gather_rows(f->stream, f->normed, hidden, batch->logit_rows, batch->logit_count);
    return wanted_rows(f, batch);
}

/*
 * After the last layer's KV is written only rows with logits matter: what follows is done for them
 * alone. A probe wants to see all rows.
 */
static struct rows run_layer(struct bt_forward *f, const struct bt_forward_batch *batch,
                             uint32_t layer, struct rows rows)
{
    const struct bt_layer_weights *w = &f->model->layers[layer];
    struct bt_kv_layer kv = kv_layer(batch, layer);
    bool last = layer + 1 == f->model->config.num_hidden_layers && !batch->probe;
    struct bt_linear products[] = {kv_product(f, w), q_product(f, w)};
    norm(f, &w->input_norm, rows.count);
    f->k->linear(f->stream, f->normed, rows.count, products, last ? 1 : 2);
    write_kv(f, w, rows, &kv);
    if (last) {
        rows = narrow(f, batch);
        f->k->linear(f->stream, f->normed, rows.count, products + 1, 1);
    }
    if (rows.count) {
        attend(f, w, rows, batch->form, &kv);
        feed_forward(f, w, rows.count);
    }
    return rows;
}

static void check_sequence(const struct bt_forward *f, const struct bt_forward_batch *batch,
                           const struct bt_sequence_rows *sequence)
{
    uint64_t end = (uint64_t)sequence->start + sequence->row_count;
    BT_ASSERT(end <= f->model->rope.max_position);
    for (uint32_t i = 0; i < bt_kv_pages_for(end); i++)
        BT_ASSERT(sequence->pages[i] < batch->pool_pages);
}

static void check_batch(const struct bt_forward *f, const struct bt_forward_batch *batch)
{
    BT_ASSERT(batch->rows <= f->max_rows && batch->logit_count <= f->max_logits);
    BT_ASSERT(batch->layout.layer_count == f->model->config.num_hidden_layers);
    BT_ASSERT(batch->layout.kv_lora_rank == f->mla.kv_lora_rank);
    BT_ASSERT(batch->layout.qk_rope_head_dim == f->mla.qk_rope_head_dim);
    uint32_t row = 0;
    for (uint32_t i = 0; i < batch->sequence_count; i++) {
        BT_ASSERT(batch->sequences[i].first_row == row);
        check_sequence(f, batch, &batch->sequences[i]);
        row += batch->sequences[i].row_count;
    }
    BT_ASSERT(row == batch->rows);
    for (uint32_t i = 0; i < batch->rows; i++)
        BT_ASSERT(batch->tokens[i] < f->model->config.vocab_size);
    for (uint32_t i = 0; i < batch->logit_count; i++)
        BT_ASSERT(batch->logit_rows[i] < batch->rows &&
                  (i == 0 || batch->logit_rows[i] > batch->logit_rows[i - 1]));
}

static void probe(const struct bt_forward *f, const struct bt_forward_batch *batch, int32_t layer)
{
    if (!batch->probe)
        return;
    bool is_moe = layer >= 0 && f->model->layers[layer].experts.experts > 0;
    batch->probe(batch->context, layer, f->x, is_moe ? f->routing.experts : NULL,
                 is_moe ? f->routing.weights : NULL);
}

void bt_forward_run(struct bt_forward *f, const struct bt_forward_batch *batch,
                    const float **ret_logits)
{
    check_batch(f, batch);
    f->k = f->profile ? bt_profile_kernels(f->model->kernels, &f->model->lm_head, f->profile)
                      : f->model->kernels;
    struct rows rows = {batch->rows, batch->sequences, batch->sequence_count};
    f->k->embed(f->stream, &f->model->embed, batch->tokens, batch->rows, f->x);
    probe(f, batch, -1);
    for (uint32_t layer = 0; layer < f->model->config.num_hidden_layers; layer++) {
        rows = run_layer(f, batch, layer, rows);
        probe(f, batch, (int32_t)layer);
        if (batch->layer_done)
            batch->layer_done(batch->context, layer);
    }
    if (batch->probe)
        rows = narrow(f, batch);
    norm(f, &f->model->final_norm, rows.count);
    f->k->linear(f->stream, f->normed, rows.count,
                 &(struct bt_linear){&f->model->lm_head, f->logits}, 1);
    *ret_logits = f->logits;
}
