/*
 * Multi-head latent attention and mixture of experts as in DeepSeek-V2 (arXiv 2405.04434) and
 * DeepSeek-V3 (arXiv 2412.19437). Letters in shapes: R rows, H hidden_size, A heads,
 * N qk_nope_head_dim, P qk_rope_head_dim, V v_head_dim, L kv_lora_rank, K experts_per_token. In a
 * tp group A are this rank's heads, and S its share of the rows; alone S is R.
 */
#include "common/model/forward.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/model/experts.h"

struct bt_forward {
    const struct bt_model *model;
    const struct bt_kernels *k;
    struct bt_profile *profile; /* NULL: off */
    struct bt_stream *stream;
    struct bt_mla_shape mla;
    uint32_t max_rows, max_logits;
    uint32_t share_rows;      /* S at most */
    struct bt_group *tp, *ep; /* NULL: alone */
    enum bt_dispatch_mode dispatch;
    struct bt_expert_loads *loads; /* may be NULL */

    float *x;                        /* [S][H] the residual stream */
    float *normed;                   /* [R][H] */
    float *update;                   /* [R][H] what a block adds to x */
    float *summed;                   /* [S][H] with tp: the sum of all ranks' updates */
    float *q_a;                      /* [R][q_lora_rank] */
    float *q;                        /* [R][A][N + P] */
    float *kv_a;                     /* [R][L + P] */
    float *heads;                    /* [R][A][V] */
    struct bt_routing routing;       /* of S rows */
    float *logits;                   /* [max_logits][vocab_size] */
    struct bt_sequence_rows *wanted; /* [max_logits] */
    uint32_t *wanted_mine;           /* [max_logits] those of the share, counted from its first */

    /* With ep, of MoE layers. */
    const struct bt_placement_layer **placements;
    enum bt_dtype *payloads;
    uint32_t arriving_rows; /* at most, of all ranks */
    void *y;                /* [arriving rows * K][H] of y_dtype: what experts make of them */
    enum bt_dtype y_dtype;
};

/* What the layers work on: at first the whole batch, at the end only the rows with logits. */
struct rows {
    uint32_t count;
    const struct bt_sequence_rows *sequences;
    uint32_t sequence_count;
    struct bt_share mine;
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

static bool allocate_routing(struct bt_forward *f)
{
    const struct bt_model_config *c = &f->model->config;
    size_t picks = (size_t)f->share_rows * c->route.experts_per_token;
    f->routing.experts = calloc(picks + 1, sizeof(uint32_t));
    f->routing.weights = floats(picks, 1);
    f->routing.order = calloc(picks + 1, sizeof(uint32_t));
    f->routing.begin = calloc((size_t)c->n_routed_experts + 1, sizeof(uint32_t));
    return f->routing.experts && f->routing.weights && f->routing.order && f->routing.begin;
}

/* Of y, which has room for the worst case, only what is written is ever touched. */
static bool allocate_exchange(struct bt_forward *f)
{
    const struct bt_model_config *c = &f->model->config;
    size_t layers = bt_model_moe_layers(c), row = c->hidden_size * bt_dtype_bytes(f->y_dtype);
    if (f->tp)
        f->summed = floats(f->share_rows, c->hidden_size);
    if (f->ep) {
        f->placements = calloc(layers + 1, sizeof(const struct bt_placement_layer *));
        f->payloads = calloc(layers + 1, sizeof(*f->payloads));
        f->y = calloc((size_t)f->arriving_rows * c->route.experts_per_token + 1, row);
    }
    return (!f->tp || f->summed) && (!f->ep || (f->placements && f->payloads && f->y));
}

static bool allocate(struct bt_forward *f)
{
    const struct bt_model_config *c = &f->model->config;
    uint32_t rows = f->max_rows, heads = f->mla.heads;

    f->x = floats(f->share_rows, c->hidden_size);
    f->normed = floats(rows, c->hidden_size);
    f->update = floats(rows, c->hidden_size);
    f->q_a = floats(rows, c->q_lora_rank);
    f->q = floats(rows, (size_t)heads * (c->qk_nope_head_dim + c->qk_rope_head_dim));
    f->kv_a = floats(rows, c->kv_lora_rank + c->qk_rope_head_dim);
    f->heads = floats(rows, (size_t)heads * c->v_head_dim);
    f->logits = floats(f->model->shard.tp_rank == 0 ? f->max_logits : 0, c->vocab_size);
    f->wanted = calloc((size_t)f->max_logits + 1, sizeof(*f->wanted));
    f->wanted_mine = calloc((size_t)f->max_logits + 1, sizeof(*f->wanted_mine));
    return f->x && f->normed && f->update && f->q_a && f->q && f->kv_a && f->heads && f->logits &&
           f->wanted && f->wanted_mine && allocate_routing(f) && allocate_exchange(f);
}

static uint32_t share_of(uint32_t rows, uint32_t size)
{
    return rows / size + (rows % size > 0);
}

static bool is_int8(enum bt_dtype dtype)
{
    return dtype == BT_I8 || dtype == BT_I4;
}

/* Of the layer's rows on their way to the experts; the same on all ranks. */
static enum bt_dtype payload_of(const struct bt_model *model, const struct bt_layer_weights *w,
                                enum bt_forward_payload payload)
{
    if (payload != BT_PAYLOAD_EXACT)
        return payload == BT_PAYLOAD_BF16 ? BT_BF16 : BT_F8_E4M3;
    bool rounds = model->dtype == BT_MODEL_BFLOAT16;
    for (uint32_t e = 0; e < w->experts.experts; e++)
        rounds = rounds && !is_int8(w->experts.gate[e].dtype) && !is_int8(w->experts.up[e].dtype);
    return rounds ? BT_BF16 : BT_F32;
}

static void fill_exchange(struct bt_forward *f, const struct bt_forward_options *options)
{
    for (uint32_t i = 0; f->ep && i < f->model->config.num_hidden_layers; i++) {
        const struct bt_layer_weights *w = &f->model->layers[i];
        if (!w->experts.experts)
            continue;
        f->placements[w->moe_index] = &options->placement->layer[w->moe_index];
        f->payloads[w->moe_index] = payload_of(f->model, w, options->payload);
    }
}

/* ---- groups, placement and the model's part belong together ---- */

static enum bt_status check_tp(const struct bt_model *model, const struct bt_group *tp,
                               struct bt_error *error)
{
    uint32_t rank = tp ? bt_group_rank(tp) : 0, size = tp ? bt_group_size(tp) : 1;
    const struct bt_shard *shard = &model->shard;
    if (rank == shard->tp_rank && size == shard->tp_size)
        return BT_OK;
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                        "forward pass: tp rank %u of %u with the weights of rank %u of %u", rank,
                        size, shard->tp_rank, shard->tp_size);
}

static enum bt_status check_ep(const struct bt_model *model,
                               const struct bt_forward_options *options, struct bt_error *error)
{
    const struct bt_group *ep = options->ep;
    if (!ep)
        return BT_OK;
    if (!options->placement)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "forward pass: ep without a placement");
    if (bt_group_rank(ep) == model->shard.ep_rank && bt_group_size(ep) == options->placement->ranks)
        return bt_model_check_placement(model, options->placement, error);
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                        "forward pass: ep rank %u of %u with experts of rank %u and a placement "
                        "on %u ranks",
                        bt_group_rank(ep), bt_group_size(ep), model->shard.ep_rank,
                        options->placement->ranks);
}

static enum bt_status check_experts(const struct bt_model *model,
                                    const struct bt_placement *placement, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    bool *here = calloc((size_t)model->config.n_routed_experts + 1, sizeof(*here));
    if (!here)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "forward pass: no memory");
    for (uint32_t i = 0; i < model->config.num_hidden_layers; i++) {
        const struct bt_layer_weights *w = &model->layers[i];
        if (w->experts.experts)
            bt_model_experts_here(model, placement, w->moe_index, here);
        for (uint32_t e = 0; status == BT_OK && e < w->experts.experts; e++)
            if (here[e] && !w->experts.gate[e].data)
                status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                      "forward pass: expert %u of layer %u was not loaded", e, i);
    }
    free(here);
    return status;
}

static enum bt_status check_options(const struct bt_model *model,
                                    const struct bt_forward_options *options,
                                    struct bt_error *error)
{
    enum bt_status status = check_tp(model, options->tp, error);
    if (status == BT_OK)
        status = check_ep(model, options, error);
    return status == BT_OK ? check_experts(model, options->ep ? options->placement : NULL, error)
                           : status;
}

static enum bt_status make_stream(struct bt_forward *f, struct bt_error *error)
{
    const struct bt_model_config *c = &f->model->config;
    struct bt_stream_limits limits = {
        .max_rows = f->max_rows,
        .max_expert_rows = f->arriving_rows,
        .max_cols = widest(c),
        .hidden = c->hidden_size,
        .moe_intermediate = c->moe_intermediate_size,
        .experts = c->n_routed_experts,
        .experts_per_token = c->route.experts_per_token,
        .mla = f->mla,
    };
    return bt_stream_create(&limits, f->model->team, error, &f->stream);
}

enum bt_status bt_forward_create(const struct bt_model *model,
                                 const struct bt_forward_options *options, struct bt_error *error,
                                 struct bt_forward **ret_forward)
{
    enum bt_status status = check_options(model, options, error);
    if (status != BT_OK)
        return status;
    struct bt_forward *f = calloc(1, sizeof(*f));
    if (!f)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "forward pass: no memory");
    f->model = model;
    f->k = model->kernels;
    f->mla = model->mla;
    f->max_rows = options->max_rows;
    f->max_logits = options->max_logits;
    f->tp = model->shard.tp_size > 1 ? options->tp : NULL;
    f->ep = model->config.n_routed_experts ? options->ep : NULL;
    f->dispatch = options->dispatch;
    f->loads = options->loads;
    f->share_rows = share_of(options->max_rows, model->shard.tp_size);
    f->arriving_rows = f->ep ? f->share_rows * bt_group_size(f->ep) : 0;
    f->y_dtype = model->dtype == BT_MODEL_BFLOAT16 ? BT_BF16 : BT_F32;
    if (!allocate(f))
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "forward pass: no memory for %u rows",
                              f->max_rows);
    else
        status = make_stream(f, error);
    if (status != BT_OK) {
        bt_forward_destroy(f);
        return status;
    }
    fill_exchange(f, options);
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
                       f->summed,
                       f->q_a,
                       f->q,
                       f->kv_a,
                       f->heads,
                       f->routing.experts,
                       f->routing.weights,
                       f->routing.order,
                       f->routing.begin,
                       f->logits,
                       f->wanted,
                       f->wanted_mine,
                       f->placements,
                       f->payloads,
                       f->y};
    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++)
        free(buffers[i]);
    if (f->stream)
        bt_stream_destroy(f->stream);
    free(f);
}

struct bt_group_limits bt_forward_group_limits(const struct bt_model_config *config,
                                               uint32_t max_rows, uint32_t tp_size)
{
    bool is_moe = bt_model_moe_layers(config) > 0;
    return (struct bt_group_limits){
        .floats = tp_size > 1 ? (size_t)max_rows * config->hidden_size : 0,
        .rows = is_moe ? share_of(max_rows, tp_size) : 0,
        .hidden = config->hidden_size,
        .experts = config->n_routed_experts,
        .experts_per_token = config->route.experts_per_token,
    };
}

void bt_forward_set_placement(struct bt_forward *f, uint32_t moe_index,
                              const struct bt_placement *placement)
{
    BT_ASSERT(f->ep && moe_index < bt_model_moe_layers(&f->model->config));
    BT_ASSERT(bt_model_check_placement(f->model, placement, NULL) == BT_OK &&
              placement->ranks == bt_group_size(f->ep));
    f->placements[moe_index] = &placement->layer[moe_index];
}

void bt_forward_profile(struct bt_forward *f, struct bt_profile *profile)
{
    f->profile = profile;
}

/* ---- between ranks ---- */

static int64_t group_begin(const struct bt_forward *f)
{
    return f->profile ? bt_clock_now_ns() : 0;
}

static enum bt_status group_end(struct bt_forward *f, int64_t start_ns, enum bt_status status)
{
    if (f->profile) {
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

static struct bt_share share(const struct bt_forward *f, uint32_t rows)
{
    return f->tp ? bt_group_share(f->tp, bt_group_rank(f->tp), rows) : (struct bt_share){0, rows};
}

/* normed [R][H] = norm(x), of the rows of all ranks */
static enum bt_status norm(struct bt_forward *f, const struct bt_matrix *weight, struct rows rows)
{
    uint32_t hidden = f->model->config.hidden_size;
    float *mine = f->normed + (size_t)rows.mine.first * hidden;
    f->k->rms_norm(f->stream, f->x, rows.mine.count, hidden, hidden, weight,
                   f->model->config.rms_norm_eps, mine);
    if (!f->tp)
        return BT_OK;
    int64_t start_ns = group_begin(f);
    return group_end(f, start_ns, bt_group_all_gather(f->tp, mine, rows.count, hidden, f->normed));
}

/* x += update */
static void add_update(struct bt_forward *f, uint32_t rows)
{
    f->k->add(f->stream, f->x, f->update, (size_t)rows * f->model->config.hidden_size);
}

/* x += update, which is a part of the sum where heads are shared out; normed [S][H] = norm(x) */
static enum bt_status add_norm(struct bt_forward *f, const struct bt_matrix *weight,
                               struct rows rows)
{
    const float *update = f->update;
    if (f->tp) {
        enum bt_status status = reduce(f, f->update, rows.count, f->summed);
        if (status != BT_OK)
            return status;
        update = f->summed;
    }
    f->k->add_rms_norm(f->stream, f->x, update, rows.mine.count, f->model->config.hidden_size,
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

/* update = shared experts(normed) */
static void shared_experts(struct bt_forward *f, const struct bt_layer_weights *w, uint32_t rows)
{
    const struct bt_model_config *c = &f->model->config;
    if (c->n_shared_experts)
        f->k->mlp(f->stream, f->normed, rows, &w->mlp, f->update);
    else
        f->k->zero(f->stream, f->update, (size_t)rows * c->hidden_size);
}

/* Another rank's limits and placement are ours, or it would send what has no place here. */
static enum bt_status check_arrivals(const struct bt_forward *f, const struct bt_layer_weights *w,
                                     const struct bt_arrivals *arrivals)
{
    const uint32_t *begin = arrivals->routing.begin;
    const uint32_t picks = f->model->config.route.experts_per_token;
    bool fits =
        arrivals->rows <= f->arriving_rows && arrivals->picks <= (uint64_t)f->arriving_rows * picks;
    for (uint32_t e = 0; fits && e < w->experts.experts; e++)
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
    f->k->moe_route(f->stream, f->normed, rows, &w->router, &w->router_bias, &c->route,
                    &f->routing);
    if (f->loads)
        bt_expert_loads_add(f->loads, w->moe_index, f->routing.begin, rows);
    if (f->ep)
        return exchange(f, w, rows);
    shared_experts(f, w, rows);
    f->k->moe_experts(f->stream, f->normed, rows, &c->route, &f->routing, &w->experts, f->update);
    return BT_OK;
}

/* Of this rank's rows; without any it meets the others all the same. */
static enum bt_status feed_forward(struct bt_forward *f, const struct bt_layer_weights *w,
                                   uint32_t rows)
{
    enum bt_status status = BT_OK;
    if (w->experts.experts)
        status = moe(f, w, rows);
    else
        f->k->mlp(f->stream, f->normed, rows, &w->mlp, f->update);
    if (status == BT_OK)
        add_update(f, rows);
    return status;
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
    return (struct rows){batch->logit_count, f->wanted, count, share(f, batch->logit_count)};
}

/*
 * x keeps only the rows whose logits are wanted. In a tp group their shares are others: each rank
 * puts what it has among zeros, and the sum of all is the rows themselves.
 */
static enum bt_status narrow_x(struct bt_forward *f, const struct bt_forward_batch *batch,
                               struct bt_share mine)
{
    uint32_t hidden = f->model->config.hidden_size, first = 0, count = 0;
    if (!f->tp || batch->logit_count == 0) {
        f->k->gather_rows(f->stream, f->x, hidden, batch->logit_rows, batch->logit_count);
        return BT_OK;
    }
    while (first < batch->logit_count && batch->logit_rows[first] < mine.first)
        first++;
    for (uint32_t i = first;
         i < batch->logit_count && batch->logit_rows[i] - mine.first < mine.count; i++)
        f->wanted_mine[count++] = batch->logit_rows[i] - mine.first;
    f->k->gather_rows(f->stream, f->x, hidden, f->wanted_mine, count);
    f->k->zero(f->stream, f->update, (size_t)batch->logit_count * hidden);
    f->k->add(f->stream, f->update + (size_t)first * hidden, f->x, (size_t)count * hidden);
    enum bt_status status = reduce(f, f->update, batch->logit_count, f->summed);
    float *kept = f->summed;
    f->summed = f->x;
    f->x = kept;
    return status;
}

static enum bt_status narrow(struct bt_forward *f, const struct bt_forward_batch *batch,
                             struct rows *rows)
{
    enum bt_status status = narrow_x(f, batch, rows->mine);
    *rows = wanted_rows(f, batch);
    return status;
}

/* normed = the layer's input, of all rows. Embeddings need nobody else. */
static enum bt_status layer_input(struct bt_forward *f, const struct bt_forward_batch *batch,
                                  uint32_t layer, struct rows rows)
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
 * alone. A probe wants to see all rows.
 */
static enum bt_status run_attention(struct bt_forward *f, const struct bt_forward_batch *batch,
                                    uint32_t layer, struct rows *rows)
{
    const struct bt_layer_weights *w = &f->model->layers[layer];
    uint32_t hidden = f->model->config.hidden_size;
    struct bt_kv_layer kv = kv_layer(batch, layer);
    bool last = layer + 1 == f->model->config.num_hidden_layers && !batch->probe;
    struct bt_linear products[] = {kv_product(f, w), q_product(f, w)};
    enum bt_status status = layer_input(f, batch, layer, *rows);
    if (status != BT_OK)
        return status;
    f->k->linear(f->stream, f->normed, rows->count, products, last ? 1 : 2);
    write_kv(f, w, *rows, &kv);
    if (last) {
        f->k->gather_rows(f->stream, f->normed, hidden, batch->logit_rows, batch->logit_count);
        status = narrow(f, batch, rows);
        if (status != BT_OK || rows->count == 0)
            return status;
        f->k->linear(f->stream, f->normed, rows->count, products + 1, 1);
    }
    attend(f, w, *rows, batch->form, &kv);
    return add_norm(f, &w->post_attention_norm, *rows);
}

static enum bt_status run_layer(struct bt_forward *f, const struct bt_forward_batch *batch,
                                uint32_t layer, struct rows *rows)
{
    enum bt_status status = BT_OK;
    if (rows->count)
        status = run_attention(f, batch, layer, rows);
    if (status == BT_OK && (rows->mine.count || f->ep))
        status = feed_forward(f, &f->model->layers[layer], rows->mine.count);
    return status;
}

/* Of all rows that are left, by tp rank 0. */
static enum bt_status run_head(struct bt_forward *f, struct rows rows, const float **ret_logits)
{
    enum bt_status status = BT_OK;
    if (rows.count)
        status = norm(f, &f->model->final_norm, rows);
    if (status != BT_OK)
        return status;
    bool mine = f->model->shard.tp_rank == 0;
    if (mine)
        f->k->linear(f->stream, f->normed, rows.count,
                     &(struct bt_linear){&f->model->lm_head, f->logits}, 1);
    *ret_logits = mine ? f->logits : NULL;
    return BT_OK;
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

enum bt_status bt_forward_run(struct bt_forward *f, const struct bt_forward_batch *batch,
                              const float **ret_logits)
{
    enum bt_status status = BT_OK;
    check_batch(f, batch);
    f->k = f->profile ? bt_profile_kernels(f->model->kernels, &f->model->lm_head, f->profile)
                      : f->model->kernels;
    struct rows rows = {batch->rows, batch->sequences, batch->sequence_count,
                        share(f, batch->rows)};
    f->k->embed(f->stream, &f->model->embed, batch->tokens + rows.mine.first, rows.mine.count,
                f->x);
    probe(f, batch, -1);
    for (uint32_t layer = 0; layer < f->model->config.num_hidden_layers; layer++) {
        status = run_layer(f, batch, layer, &rows);
        if (status != BT_OK)
            return status;
        probe(f, batch, (int32_t)layer);
        if (batch->layer_done)
            batch->layer_done(batch->context, layer);
    }
    if (batch->probe)
        status = narrow(f, batch, &rows);
    return status == BT_OK ? run_head(f, rows, ret_logits) : status;
}
