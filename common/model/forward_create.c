#include <stdlib.h>
#include <string.h>

#include "common/model/experts.h"
#include "common/model/forward_state.h"

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

/* Of memory that a run has. */
struct block {
    void **memory; /* where it is to be named */
    size_t bytes;
    bool wanted;
};

static size_t of_floats(size_t rows, size_t width)
{
    return rows * width * sizeof(float);
}

static size_t begins_bytes(const struct bt_forward *f)
{
    const struct bt_model_config *c = &f->model->config;
    size_t layers = f->loads ? bt_model_moe_layers(c) : 1;
    return (layers > 0 ? layers : 1) * ((size_t)c->n_routed_experts + 1) * sizeof(uint32_t);
}

/* Of y, which has room for the worst case, only what is written is ever touched. */
static enum bt_status allocate_device(struct bt_forward *f, struct bt_error *error)
{
    const struct bt_model_config *c = &f->model->config;
    size_t rows = f->max_rows, heads = f->mla.heads, hidden = c->hidden_size;
    size_t picks = (size_t)f->share_rows * c->route.experts_per_token;
    size_t arriving = (size_t)f->arriving_rows * c->route.experts_per_token;
    uint32_t logits = f->model->shard.tp_rank == 0 ? f->max_logits : 0;
    const struct block blocks[] = {
        {(void **)&f->x, of_floats(f->share_rows, hidden), true},
        {(void **)&f->normed, of_floats(rows, hidden), true},
        {(void **)&f->update, of_floats(rows, hidden), true},
        {(void **)&f->summed, of_floats(f->share_rows, hidden), f->tp},
        {(void **)&f->q_a, of_floats(rows, c->q_lora_rank), true},
        {(void **)&f->q, of_floats(rows, heads * (c->qk_nope_head_dim + c->qk_rope_head_dim)),
         true},
        {(void **)&f->kv_a, of_floats(rows, c->kv_lora_rank + c->qk_rope_head_dim), true},
        {(void **)&f->heads, of_floats(rows, heads * c->v_head_dim), true},
        {(void **)&f->routing.experts, picks * sizeof(uint32_t), true},
        {(void **)&f->routing.weights, of_floats(picks, 1), true},
        {(void **)&f->routing.order, picks * sizeof(uint32_t), true},
        {(void **)&f->begins, begins_bytes(f), true},
        {(void **)&f->logits, of_floats(logits, c->vocab_size), true},
        {(void **)&f->drawn, logits * sizeof(uint32_t), f->k->draw},
        {(void **)&f->logprobs, logits * sizeof(struct bt_logprobs), f->k->draw},
        {&f->y, arriving * hidden * bt_dtype_bytes(f->y_dtype), f->ep},
    };
    enum bt_status status = BT_OK;
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]) && status == BT_OK; i++)
        if (blocks[i].wanted)
            status = bt_device_alloc(f->device, blocks[i].bytes + 1, error, blocks[i].memory);
    f->routing.begin = f->begins;
    return status;
}

/* What the device writes for the host to read. */
static enum bt_status allocate_results(struct bt_forward *f, struct bt_error *error)
{
    uint32_t logits = f->model->shard.tp_rank == 0 ? f->max_logits : 0;
    struct bt_forward_slot *slots = f->slots;
    const struct block blocks[] = {
        {(void **)&f->host_logits, of_floats(logits, f->model->config.vocab_size), true},
        {(void **)&slots[0].tokens, logits * sizeof(uint32_t), f->k->draw},
        {(void **)&slots[1].tokens, logits * sizeof(uint32_t), f->k->draw},
        {(void **)&slots[0].logprobs, logits * sizeof(struct bt_logprobs), f->k->draw},
        {(void **)&slots[1].logprobs, logits * sizeof(struct bt_logprobs), f->k->draw},
        {(void **)&slots[0].begins, begins_bytes(f), f->loads},
        {(void **)&slots[1].begins, begins_bytes(f), f->loads},
    };
    _Static_assert(BT_FORWARD_DEPTH == 2, "slots");
    enum bt_status status = BT_OK;
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]) && status == BT_OK; i++)
        if (blocks[i].wanted)
            status =
                f->device->ops->alloc_host(f->device, blocks[i].bytes + 1, error, blocks[i].memory);
    return status;
}

/* Without a device that queues, what it would write for the host is where it is already. */
static enum bt_status allocate_queueing(struct bt_forward *f, struct bt_error *error)
{
    uint32_t layers = f->model->config.num_hidden_layers;
    if (!f->queues) {
        f->host_logits = f->logits;
        for (uint32_t i = 0; i < BT_FORWARD_DEPTH; i++)
            f->slots[i].begins = f->begins;
        return BT_OK;
    }
    enum bt_status status = allocate_results(f, error);
    f->layer_done = calloc(layers, sizeof(struct bt_event *));
    if (f->device->ops->capture_begin)
        f->graphs = calloc(BT_FORWARD_GRAPHS, sizeof(*f->graphs));
    if (status == BT_OK && (!f->layer_done || (f->device->ops->capture_begin && !f->graphs)))
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "forward pass: no memory");
    for (uint32_t i = 0; i < layers && status == BT_OK; i++)
        status = f->device->ops->event_create(f->device, error, &f->layer_done[i]);
    for (uint32_t i = 0; i < BT_FORWARD_DEPTH && status == BT_OK; i++)
        status = f->device->ops->event_create(f->device, error, &f->slots[i].done);
    if (status == BT_OK)
        status = f->device->ops->event_create(f->device, error, &f->here);
    return status;
}

static bool allocate_host(struct bt_forward *f)
{
    size_t layers = bt_model_moe_layers(&f->model->config);
    bool fine = true;
    f->wanted = calloc((size_t)f->max_logits + 1, sizeof(*f->wanted));
    f->wanted_mine = calloc((size_t)f->max_logits + 1, sizeof(*f->wanted_mine));
    for (uint32_t i = 0; i < BT_FORWARD_DEPTH; i++) {
        f->slots[i].routed = calloc(layers + 1, sizeof(uint32_t));
        fine = fine && f->slots[i].routed;
    }
    if (f->ep) {
        f->placements = calloc(layers + 1, sizeof(const struct bt_placement_layer *));
        f->payloads = calloc(layers + 1, sizeof(*f->payloads));
        fine = fine && f->placements && f->payloads;
    }
    return fine && f->wanted && f->wanted_mine;
}

static enum bt_status allocate(struct bt_forward *f, struct bt_error *error)
{
    if (!allocate_host(f))
        return bt_error_set(error, BT_ERR_NO_MEMORY, "forward pass: no memory for %u rows",
                            f->max_rows);
    enum bt_status status = allocate_device(f, error);
    return status == BT_OK ? allocate_queueing(f, error) : status;
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
    size_t page_numbers = (size_t)f->max_sequences * bt_kv_pages_for(f->model->max_tokens);
    struct bt_stream_limits limits = {
        .max_rows = f->max_rows,
        .max_expert_rows = f->arriving_rows,
        .max_cols = widest(c),
        .hidden = c->hidden_size,
        .moe_intermediate = c->moe_intermediate_size,
        .experts = c->n_routed_experts,
        .experts_per_token = c->route.experts_per_token,
        .mla = f->mla,
        .max_page_numbers = page_numbers < UINT32_MAX ? (uint32_t)page_numbers : UINT32_MAX,
        .vocab_size = c->vocab_size,
        .max_adjusts = f->k->draw ? f->max_logits * BT_DRAWS_ADJUSTS : 0,
    };
    return bt_device_stream_create(f->device, &limits, f->model->team, error, &f->stream);
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
    f->device = model->device;
    f->queues = f->device->memory != BT_MEMORY_HOST;
    f->k = model->kernels;
    f->mla = model->mla;
    f->max_rows = options->max_rows;
    f->max_logits = options->max_logits;
    f->max_sequences = options->max_sequences ? options->max_sequences : options->max_rows;
    f->tp = model->shard.tp_size > 1 ? options->tp : NULL;
    f->ep = model->config.n_routed_experts ? options->ep : NULL;
    f->dispatch = options->dispatch;
    f->loads = options->loads;
    f->share_rows = share_of(options->max_rows, model->shard.tp_size);
    f->arriving_rows = f->ep ? f->share_rows * bt_group_size(f->ep) : 0;
    f->y_dtype = model->dtype == BT_MODEL_BFLOAT16 ? BT_BF16 : BT_F32;
    status = allocate(f, error);
    if (status == BT_OK)
        status = make_stream(f, error);
    if (status != BT_OK) {
        bt_forward_destroy(f);
        return status;
    }
    fill_exchange(f, options);
    *ret_forward = f;
    return BT_OK;
}

static void free_queueing(struct bt_forward *f)
{
    const struct bt_device_ops *ops = f->device->ops;
    bt_forward_forget_graphs(f);
    if (f->here)
        ops->event_destroy(f->here);
    for (uint32_t i = 0; f->layer_done && i < f->model->config.num_hidden_layers; i++)
        if (f->layer_done[i])
            ops->event_destroy(f->layer_done[i]);
    for (uint32_t i = 0; i < BT_FORWARD_DEPTH; i++) {
        if (f->slots[i].done)
            ops->event_destroy(f->slots[i].done);
        ops->free_host(f->device, f->slots[i].tokens);
        ops->free_host(f->device, f->slots[i].logprobs);
        ops->free_host(f->device, f->slots[i].begins);
    }
    ops->free_host(f->device, f->host_logits);
    free(f->layer_done);
    free(f->graphs);
}

/* They wait for what is on the stream. */
static void leave_groups(struct bt_forward *f)
{
    if (f->tp)
        bt_group_use_stream(f->tp, NULL);
    if (f->ep)
        bt_group_use_stream(f->ep, NULL);
}

void bt_forward_destroy(struct bt_forward *f)
{
    struct bt_error ignored;
    if (!f)
        return;
    if (f->groups_queue)
        leave_groups(f);
    if (f->queues && f->stream)
        bt_device_synchronize(f->device, f->stream, &ignored);
    if (f->queues)
        free_queueing(f);
    void *device[] = {f->x,
                      f->normed,
                      f->update,
                      f->summed,
                      f->q_a,
                      f->q,
                      f->kv_a,
                      f->heads,
                      f->begins,
                      f->routing.experts,
                      f->routing.weights,
                      f->routing.order,
                      f->logits,
                      f->drawn,
                      f->logprobs,
                      f->y};
    void *host[] = {f->wanted,          f->wanted_mine,    f->slots[0].routed,
                    f->slots[1].routed, f->placements,     f->payloads,
                    f->probed_x,        f->probed_experts, f->probed_weights};
    for (size_t i = 0; i < sizeof(device) / sizeof(device[0]); i++)
        bt_device_free(f->device, device[i]);
    for (size_t i = 0; i < sizeof(host) / sizeof(host[0]); i++)
        free(host[i]);
    if (f->stream)
        bt_device_stream_destroy(f->device, f->stream);
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
    bt_forward_forget_graphs(f); /* they have the experts' weights in them */
    f->placements[moe_index] = &placement->layer[moe_index];
}

void bt_forward_profile(struct bt_forward *f, struct bt_profile *profile)
{
    f->profile = profile;
}
