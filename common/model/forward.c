/*
 * Multi-head latent attention and mixture of experts as in DeepSeek-V2 (arXiv 2405.04434) and
 * DeepSeek-V3 (arXiv 2412.19437). Letters in shapes: R rows, H hidden_size, A heads,
 * N qk_nope_head_dim, P qk_rope_head_dim, V v_head_dim, L kv_lora_rank, K experts_per_token. In a
 * tp group A are this rank's heads, and S its share of the rows; alone S is R.
 */
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/model/forward_state.h"

/* ---- between ranks ---- */

/* A group that knows no streams works on buffers of which nothing is queued any more; to measure,
 * any does. A fault shows when the run ends. */
static int64_t group_begin(const struct bt_forward *f)
{
    struct bt_error ignored;
    if (f->queues && (!f->groups_queue || f->profile))
        bt_device_synchronize(f->device, f->stream, &ignored);
    return f->profile ? bt_clock_now_ns() : 0;
}

static enum bt_status group_end(struct bt_forward *f, int64_t start_ns, enum bt_status status)
{
    if (f->profile) {
        if (status == BT_OK && f->groups_queue)
            status = bt_forward_await(f, NULL);
        f->profile->ns[BT_PROFILE_GROUP] += bt_clock_now_ns() - start_ns;
        f->profile->calls[BT_PROFILE_GROUP]++;
    }
    return status;
}

/* out [S][H] = the sum of all ranks' x [rows][H] there */
static enum bt_status reduce(struct bt_forward *f, const float *x, uint32_t rows, float *out)
{
    int64_t start_ns = group_begin(f);
    return group_end(f, start_ns,
                     bt_group_reduce_scatter(f->tp, x, rows, f->model->config.hidden_size, out));
}

/* normed [R][H] = norm(x), of the rows of all ranks */
static enum bt_status norm(struct bt_forward *f, const struct bt_matrix *weight,
                           struct bt_forward_rows rows)
{
    uint32_t hidden = f->model->config.hidden_size;
    float *mine = f->normed + (size_t)rows.mine.first * hidden;
    f->k->rms_norm(f->stream, rows.x, rows.mine.count, hidden, hidden, weight,
                   f->model->config.rms_norm_eps, mine);
    if (!f->tp)
        return BT_OK;
    int64_t start_ns = group_begin(f);
    return group_end(f, start_ns, bt_group_all_gather(f->tp, mine, rows.count, hidden, f->normed));
}

/* x += update */
static void add_update(struct bt_forward *f, struct bt_forward_rows rows)
{
    f->k->add(f->stream, rows.x, f->update, (size_t)rows.mine.count * f->model->config.hidden_size);
}

/* x += update, which is a part of the sum where heads are shared out; normed [S][H] = norm(x) */
static enum bt_status add_norm(struct bt_forward *f, const struct bt_matrix *weight,
                               struct bt_forward_rows rows)
{
    const float *update = f->update;
    if (f->tp) {
        enum bt_status status = reduce(f, f->update, rows.count, rows.summed);
        if (status != BT_OK)
            return status;
        update = rows.summed;
    }
    f->k->add_rms_norm(f->stream, rows.x, update, rows.mine.count, f->model->config.hidden_size,
                       weight, f->model->config.rms_norm_eps, f->normed);
    return BT_OK;
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
static void write_kv(struct bt_forward *f, const struct bt_layer_weights *w,
                     struct bt_forward_rows rows, const struct bt_kv_layer *kv)
{
    f->k->kv_write(f->stream, f->kv_a, &w->kv_a_norm, BT_LATENT_NORM_EPS, &f->model->rope,
                   rows.sequences, rows.sequence_count, kv);
}

/* q [R][A][N + P], its last P rotated. */
static void make_queries(struct bt_forward *f, const struct bt_layer_weights *w,
                         struct bt_forward_rows rows)
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
static void attend(struct bt_forward *f, const struct bt_layer_weights *w,
                   struct bt_forward_rows rows, enum bt_forward_form form,
                   const struct bt_kv_layer *kv)
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

/* update = shared experts(normed) */
static void shared_experts(struct bt_forward *f, const struct bt_layer_weights *w, uint32_t rows)
{
    const struct bt_model_config *c = &f->model->config;
    if (c->n_shared_experts)
        f->k->mlp(f->stream, f->normed, rows, &w->mlp, f->update);
    else
        f->k->zero(f->stream, f->update, (size_t)rows * c->hidden_size);
}

/* Another rank's limits and placement are ours, or it would send what has no place here. Of queued
 * ones the group says so when they are awaited. */
static enum bt_status check_arrivals(const struct bt_forward *f, const struct bt_layer_weights *w,
                                     const struct bt_arrivals *arrivals)
{
    const uint32_t *begin = arrivals->begin;
    const uint32_t picks = f->model->config.route.experts_per_token;
    bool fits =
        arrivals->rows <= f->arriving_rows && arrivals->picks <= (uint64_t)f->arriving_rows * picks;
    for (uint32_t e = 0; fits && !arrivals->on_device && e < w->experts.experts; e++)
        fits = begin[e + 1] == begin[e] || w->experts.gate[e].data;
    if (fits)
        return BT_OK;
    bt_log_error(0, "ep rank %u: rows of other limits or of another placement than ours came",
                 f->model->shard.ep_rank);
    return BT_ERR_MISMATCH;
}

/* Rows travel to the ranks of their experts, meanwhile the shared ones compute, and what the others
 * make of the rows travels back. */
static enum bt_status exchange(struct bt_forward *f, const struct bt_layer_weights *w,
                               uint32_t rows)
{
    struct bt_arrivals arrivals;
    int64_t start_ns = group_begin(f);
    enum bt_status status =
        bt_group_dispatch_begin(f->ep, f->dispatch, f->normed, rows, &f->routing,
                                f->placements[w->moe_index], f->payloads[w->moe_index]);
    if (group_end(f, start_ns, status) != BT_OK)
        return status;
    shared_experts(f, w, rows);
    start_ns = group_begin(f);
    status = group_end(f, start_ns, bt_group_dispatch_finish(f->ep, &arrivals));
    if (status == BT_OK)
        status = check_arrivals(f, w, &arrivals);
    if (status != BT_OK)
        return status;
    f->k->moe_expert_rows(f->stream, arrivals.x, arrivals.rows, &f->model->config.route,
                          &arrivals.routing, &w->experts, f->y);
    start_ns = group_begin(f);
    return group_end(f, start_ns,
                     bt_group_combine(f->ep, f->y, f->y_dtype, &f->routing, f->update));
}

/* update = shared experts(normed) + the routed experts' weighted sum */
static enum bt_status moe(struct bt_forward *f, const struct bt_layer_weights *w, uint32_t rows)
{
    const struct bt_model_config *c = &f->model->config;
    if (f->loads) /* counts the picks of each layer when the run is over */
        f->routing.begin = f->begins + (size_t)w->moe_index * (c->n_routed_experts + 1);
    f->k->moe_route(f->stream, f->normed, rows, &w->router, &w->router_bias, &c->route,
                    &f->routing);
    if (f->ep)
        return exchange(f, w, rows);
    shared_experts(f, w, rows);
    f->k->moe_experts(f->stream, f->normed, rows, &c->route, &f->routing, &w->experts, f->update);
    return BT_OK;
}

/* Of this rank's rows; without any it meets the others all the same. */
static enum bt_status feed_forward(struct bt_forward *f, const struct bt_layer_weights *w,
                                   struct bt_forward_rows rows)
{
    enum bt_status status = BT_OK;
    if (w->experts.experts)
        status = moe(f, w, rows.mine.count);
    else
        f->k->mlp(f->stream, f->normed, rows.mine.count, &w->mlp, f->update);
    if (status == BT_OK)
        add_update(f, rows);
    return status;
}

/* The rows with logits, by the sequences that the run made of them. */
static struct bt_forward_rows wanted_rows(struct bt_forward *f, const struct bt_forward_pass *pass,
                                          const struct bt_forward_rows *rows)
{
    return (struct bt_forward_rows){
        .count = pass->padded_wanted,
        .sequences = f->wanted,
        .sequence_count = pass->wanted_sequence_count,
        .mine = bt_forward_share(f, pass->padded_wanted),
        .x = rows->x,
        .summed = rows->summed,
    };
}

/*
 * In a tp group the shares of the rows with logits are others: each rank puts what it has among
 * zeros, and the sum of all is the rows themselves.
 */
static enum bt_status narrow_shares(struct bt_forward *f, const struct bt_forward_batch *batch,
                                    struct bt_forward_rows *rows)
{
    uint32_t hidden = f->model->config.hidden_size, first = 0, count = 0;
    struct bt_share mine = rows->mine;
    float *kept = rows->summed;
    while (first < batch->logit_count && batch->logit_rows[first] < mine.first)
        first++;
    for (uint32_t i = first;
         i < batch->logit_count && batch->logit_rows[i] - mine.first < mine.count; i++)
        f->wanted_mine[count++] = batch->logit_rows[i] - mine.first;
    f->k->gather_rows(f->stream, rows->x, hidden, f->wanted_mine, count);
    f->k->zero(f->stream, f->update, (size_t)batch->logit_count * hidden);
    f->k->add(f->stream, f->update + (size_t)first * hidden, rows->x, (size_t)count * hidden);
    enum bt_status status = reduce(f, f->update, batch->logit_count, kept);
    rows->summed = rows->x;
    rows->x = kept;
    return status;
}

/* x keeps only the rows whose logits are wanted. Where these are all, shares stay what they are, of
 * which a group that queues makes use: a list of its own would have to be copied. */
static enum bt_status narrow(struct bt_forward *f, const struct bt_forward_pass *pass,
                             struct bt_forward_rows *rows)
{
    enum bt_status status = BT_OK;
    bool all = f->groups_queue && pass->batch->logit_count == pass->batch->rows;
    if (f->tp && pass->batch->logit_count > 0 && !all)
        status = narrow_shares(f, pass->batch, rows);
    else if (!f->tp || !all)
        f->k->gather_rows(f->stream, rows->x, f->model->config.hidden_size, pass->batch->logit_rows,
                          pass->padded_wanted);
    *rows = wanted_rows(f, pass, rows);
    return status;
}

/* normed = the layer's input, of all rows. Embeddings need nobody else. */
static enum bt_status layer_input(struct bt_forward *f, const struct bt_forward_batch *batch,
                                  uint32_t layer, struct bt_forward_rows rows)
{
    const struct bt_matrix *weight = &f->model->layers[layer].input_norm;
    uint32_t hidden = f->model->config.hidden_size;
    if (layer > 0 || !f->tp)
        return norm(f, weight, rows);
    f->k->embed(f->stream, &f->model->embed, batch->tokens, rows.count, f->update);
    f->k->rms_norm(f->stream, f->update, rows.count, hidden, hidden, weight,
                   f->model->config.rms_norm_eps, f->normed);
    return BT_OK;
}

/*
 * After the last layer's KV is written only rows with logits matter: what follows is done for them
 * alone, unless all rows are to be seen.
 */
static enum bt_status run_attention(struct bt_forward *f, const struct bt_forward_pass *pass,
                                    uint32_t layer, struct bt_forward_rows *rows)
{
    const struct bt_forward_batch *batch = pass->batch;
    const struct bt_layer_weights *w = &f->model->layers[layer];
    uint32_t hidden = f->model->config.hidden_size;
    struct bt_kv_layer kv = kv_layer(batch, layer);
    bool last = layer + 1 == f->model->config.num_hidden_layers && !pass->every_row;
    struct bt_linear products[] = {kv_product(f, w), q_product(f, w)};
    enum bt_status status = layer_input(f, batch, layer, *rows);
    if (status != BT_OK)
        return status;
    f->k->linear(f->stream, f->normed, rows->count, products, last ? 1 : 2);
    write_kv(f, w, *rows, &kv);
    if (last) {
        f->k->gather_rows(f->stream, f->normed, hidden, batch->logit_rows, pass->padded_wanted);
        status = narrow(f, pass, rows);
        if (status != BT_OK || rows->count == 0)
            return status;
        f->k->linear(f->stream, f->normed, rows->count, products + 1, 1);
    }
    attend(f, w, *rows, batch->form, &kv);
    return add_norm(f, &w->post_attention_norm, *rows);
}

static enum bt_status run_layer(struct bt_forward *f, const struct bt_forward_pass *pass,
                                uint32_t layer, struct bt_forward_rows *rows)
{
    enum bt_status status = BT_OK;
    if (rows->count)
        status = run_attention(f, pass, layer, rows);
    if (status == BT_OK && (rows->mine.count || f->ep))
        status = feed_forward(f, &f->model->layers[layer], *rows);
    return status;
}

/* Logits and tokens of all rows that are left, by tp rank 0. */
static enum bt_status run_head(struct bt_forward *f, const struct bt_forward_pass *pass,
                               struct bt_forward_rows rows)
{
    enum bt_status status = BT_OK;
    if (rows.count)
        status = norm(f, &f->model->final_norm, rows);
    if (status != BT_OK || f->model->shard.tp_rank != 0)
        return status;
    f->k->linear(f->stream, f->normed, rows.count,
                 &(struct bt_linear){&f->model->lm_head, f->logits}, 1);
    if (pass->batch->draws)
        f->k->draw(f->stream, f->logits, rows.count, f->model->config.vocab_size,
                   pass->batch->draws, pass->batch->adjusts, f->drawn, f->logprobs);
    return BT_OK;
}

/* Tests alone: what is queued is waited for. */
static enum bt_status probe(struct bt_forward *f, const struct bt_forward_pass *pass, int32_t layer,
                            struct bt_forward_rows rows)
{
    const struct bt_forward_batch *batch = pass->batch;
    const struct bt_model_config *c = &f->model->config;
    bool is_moe = layer >= 0 && f->model->layers[layer].experts.experts > 0;
    if (!batch->probe)
        return BT_OK;
    if (!f->queues) {
        batch->probe(batch->context, layer, rows.x, is_moe ? f->routing.experts : NULL,
                     is_moe ? f->routing.weights : NULL);
        return BT_OK;
    }
    size_t picks = (size_t)rows.mine.count * c->route.experts_per_token;
    bt_device_copy(f->device, f->stream, f->probed_x, rows.x,
                   (size_t)rows.mine.count * c->hidden_size * sizeof(float));
    bt_device_copy(f->device, f->stream, f->probed_experts, f->routing.experts,
                   picks * sizeof(uint32_t));
    bt_device_copy(f->device, f->stream, f->probed_weights, f->routing.weights,
                   picks * sizeof(float));
    enum bt_status status = bt_device_synchronize(f->device, f->stream, &f->error);
    if (status == BT_OK)
        batch->probe(batch->context, layer, f->probed_x, is_moe ? f->probed_experts : NULL,
                     is_moe ? f->probed_weights : NULL);
    return status;
}

/* The layer's KV is in the pages: of what is queued, an event says so. In a group, which was waited
 * for, the layers before this one are done. */
static void layer_is_done(struct bt_forward *f, const struct bt_forward_pass *pass, uint32_t layer)
{
    struct bt_forward_slot *slot = pass->slot;
    if (!pass->batch->layer_done)
        return;
    if (!f->queues) {
        pass->batch->layer_done(pass->batch->context, layer);
        return;
    }
    f->device->ops->event_record(f->layer_done[layer], f->stream);
    while ((f->tp || f->ep) && slot->told < layer &&
           f->device->ops->event_query(f->layer_done[slot->told]))
        pass->batch->layer_done(pass->batch->context, slot->told++);
}

/* x of this rank's share. A device that queues has the whole list of tokens, and no part of it. */
static void embed(struct bt_forward *f, const uint32_t *tokens, struct bt_forward_rows rows)
{
    size_t hidden = f->model->config.hidden_size;
    if (!f->tp || !f->queues) {
        f->k->embed(f->stream, &f->model->embed, tokens + rows.mine.first, rows.mine.count, rows.x);
        return;
    }
    f->k->embed(f->stream, &f->model->embed, tokens, rows.count, f->update);
    bt_device_copy(f->device, f->stream, rows.x, f->update + rows.mine.first * hidden,
                   rows.mine.count * hidden * sizeof(float));
}

enum bt_status bt_forward_layers(struct bt_forward *f, const struct bt_forward_pass *pass)
{
    const struct bt_forward_batch *batch = pass->batch;
    struct bt_forward_rows rows = {
        .count = pass->padded_rows,
        .sequences = batch->sequences,
        .sequence_count = batch->sequence_count,
        .mine = bt_forward_share(f, pass->padded_rows),
        .x = f->x,
        .summed = f->summed,
    };
    embed(f, batch->tokens, rows);
    enum bt_status status = probe(f, pass, -1, rows);
    for (uint32_t layer = 0; layer < f->model->config.num_hidden_layers && status == BT_OK;
         layer++) {
        status = run_layer(f, pass, layer, &rows);
        if (status == BT_OK)
            status = probe(f, pass, (int32_t)layer, rows);
        if (status == BT_OK)
            layer_is_done(f, pass, layer);
    }
    if (status == BT_OK && pass->every_row)
        status = narrow(f, pass, &rows);
    return status == BT_OK ? run_head(f, pass, rows) : status;
}

/* Of the share of `rows`, those that are no padding. */
static uint32_t routed(const struct bt_forward *f, uint32_t padded, uint32_t live)
{
    struct bt_share mine = bt_forward_share(f, padded);
    uint32_t left = live > mine.first ? live - mine.first : 0;
    return left < mine.count ? left : mine.count;
}

void bt_forward_count_routed(const struct bt_forward *f, const struct bt_forward_pass *pass)
{
    uint32_t layers = f->model->config.num_hidden_layers;
    for (uint32_t i = 0; i < layers && f->loads; i++) {
        const struct bt_layer_weights *w = &f->model->layers[i];
        bool narrowed = i + 1 == layers && !pass->every_row;
        if (w->experts.experts)
            pass->slot->routed[w->moe_index] =
                narrowed ? routed(f, pass->padded_wanted, pass->batch->logit_count)
                         : routed(f, pass->padded_rows, pass->batch->rows);
    }
}
