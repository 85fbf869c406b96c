#include "common/model/model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* One loading: the first fault sticks, and takes after it do nothing. */
struct loader {
    const char *dir;
    struct bt_model *model;
    bool *taken; /* [tensors] */
    struct bt_error *error;
    enum bt_status status;
    char prefix[64]; /* "model.layers.3." */
};

static void set_fault(struct loader *loader, const struct bt_tensor *tensor, const char *what)
{
    loader->status = bt_error_set(loader->error, BT_ERR_INVALID_ARGUMENT, "%s/%s: tensor %s: %s",
                                  loader->dir, tensor->file, tensor->name, what);
}

static const struct bt_tensor *find(const struct loader *loader, const char *name, char *ret_full,
                                    size_t size)
{
    snprintf(ret_full, size, "%s%s", loader->prefix, name);
    return bt_safetensors_find(loader->model->checkpoint, ret_full);
}

static bool has(const struct loader *loader, const char *name)
{
    char full[256];
    return find(loader, name, full, sizeof(full)) != NULL;
}

/* "[768, 256]" */
static void format_shape(const uint64_t *dims, uint32_t count, char *ret_text, size_t size)
{
    size_t at = (size_t)snprintf(ret_text, size, "[");
    for (uint32_t i = 0; i < count && at < size; i++)
        at += (size_t)snprintf(ret_text + at, size - at, "%s%llu", i ? ", " : "",
                               (unsigned long long)dims[i]);
    if (at < size)
        snprintf(ret_text + at, size - at, "]");
}

static bool check_tensor(struct loader *loader, const struct bt_tensor *tensor,
                         const uint64_t *dims, uint32_t dim_count)
{
    char what[256], wanted[64], found[128];
    if (!tensor->is_float) {
        snprintf(what, sizeof(what), "dtype %s is not offered (F32, BF16, F16)",
                 tensor->dtype_name);
        set_fault(loader, tensor, what);
        return false;
    }
    if (tensor->dim_count == dim_count && !memcmp(tensor->dims, dims, dim_count * sizeof(*dims)))
        return true;
    format_shape(dims, dim_count, wanted, sizeof(wanted));
    format_shape(tensor->dims, tensor->dim_count, found, sizeof(found));
    snprintf(what, sizeof(what), "shape %s, config.json asks for %s", found, wanted);
    set_fault(loader, tensor, what);
    return false;
}

static void take(struct loader *loader, const char *name, const uint64_t *dims, uint32_t dim_count,
                 struct bt_matrix *ret_matrix)
{
    if (loader->status != BT_OK)
        return;
    char full[256];
    const struct bt_tensor *tensor = find(loader, name, full, sizeof(full));
    if (!tensor) {
        loader->status = bt_error_set(loader->error, BT_ERR_INVALID_ARGUMENT,
                                      "%s: tensor %s is missing", loader->dir, full);
        return;
    }
    if (!check_tensor(loader, tensor, dims, dim_count))
        return;
    loader->taken[tensor - bt_safetensors_at(loader->model->checkpoint, 0)] = true;
    *ret_matrix = (struct bt_matrix){
        .data = tensor->data,
        .rows = dim_count == 2 ? (uint32_t)dims[0] : 1,
        .cols = (uint32_t)dims[dim_count - 1],
        .dtype = tensor->dtype,
    };
}

static void take_matrix(struct loader *loader, const char *name, uint32_t rows, uint32_t cols,
                        struct bt_matrix *ret_matrix)
{
    take(loader, name, (uint64_t[]){rows, cols}, 2, ret_matrix);
}

static void take_vector(struct loader *loader, const char *name, uint32_t dim,
                        struct bt_matrix *ret_matrix)
{
    take(loader, name, (uint64_t[]){dim}, 1, ret_matrix);
}

static void load_attention(struct loader *loader, struct bt_layer_weights *layer)
{
    const struct bt_model_config *c = &loader->model->config;
    uint32_t q_dim = c->num_attention_heads * (c->qk_nope_head_dim + c->qk_rope_head_dim);
    uint32_t kv_dim = c->num_attention_heads * (c->qk_nope_head_dim + c->v_head_dim);

    if (c->q_lora_rank) {
        take_matrix(loader, "self_attn.q_a_proj.weight", c->q_lora_rank, c->hidden_size,
                    &layer->q_a);
        take_vector(loader, "self_attn.q_a_layernorm.weight", c->q_lora_rank, &layer->q_a_norm);
        take_matrix(loader, "self_attn.q_b_proj.weight", q_dim, c->q_lora_rank, &layer->q_b);
    } else {
        take_matrix(loader, "self_attn.q_proj.weight", q_dim, c->hidden_size, &layer->q);
    }
    take_matrix(loader, "self_attn.kv_a_proj_with_mqa.weight",
                c->kv_lora_rank + c->qk_rope_head_dim, c->hidden_size, &layer->kv_a);
    take_vector(loader, "self_attn.kv_a_layernorm.weight", c->kv_lora_rank, &layer->kv_a_norm);
    take_matrix(loader, "self_attn.kv_b_proj.weight", kv_dim, c->kv_lora_rank, &layer->kv_b);
    take_matrix(loader, "self_attn.o_proj.weight", c->hidden_size,
                c->num_attention_heads * c->v_head_dim, &layer->o);
}

/* `where`: "mlp", "mlp.shared_experts" or "mlp.experts.N". */
static void load_mlp(struct loader *loader, const char *where, uint32_t width,
                     struct bt_matrix *gate, struct bt_matrix *up, struct bt_matrix *down)
{
    uint32_t hidden = loader->model->config.hidden_size;
    char name[128];
    snprintf(name, sizeof(name), "%s.gate_proj.weight", where);
    take_matrix(loader, name, width, hidden, gate);
    snprintf(name, sizeof(name), "%s.up_proj.weight", where);
    take_matrix(loader, name, width, hidden, up);
    snprintf(name, sizeof(name), "%s.down_proj.weight", where);
    take_matrix(loader, name, hidden, width, down);
}

/* One block for the three arrays; experts.gate is its start. */
static void load_experts(struct loader *loader, struct bt_expert_weights *experts)
{
    const struct bt_model_config *c = &loader->model->config;
    uint32_t count = c->n_routed_experts;
    struct bt_matrix *block = calloc(3 * (size_t)count, sizeof(*block));
    if (!block) {
        if (loader->status == BT_OK)
            loader->status = bt_error_set(loader->error, BT_ERR_NO_MEMORY, "experts: no memory");
        return;
    }
    *experts = (struct bt_expert_weights){block, block + count, block + 2 * (size_t)count, count};
    for (uint32_t i = 0; i < count && loader->status == BT_OK; i++) {
        char where[64];
        snprintf(where, sizeof(where), "mlp.experts.%u", i);
        load_mlp(loader, where, c->moe_intermediate_size, &block[i], &block[count + i],
                 &block[2 * (size_t)count + i]);
    }
}

static void load_layer(struct loader *loader, uint32_t index, struct bt_layer_weights *layer)
{
    const struct bt_model_config *c = &loader->model->config;
    if (loader->status != BT_OK)
        return;
    snprintf(loader->prefix, sizeof(loader->prefix), "model.layers.%u.", index);
    take_vector(loader, "input_layernorm.weight", c->hidden_size, &layer->input_norm);
    take_vector(loader, "post_attention_layernorm.weight", c->hidden_size,
                &layer->post_attention_norm);
    load_attention(loader, layer);
    if (!bt_model_layer_is_moe(c, index)) {
        load_mlp(loader, "mlp", c->intermediate_size, &layer->mlp.gate, &layer->mlp.up,
                 &layer->mlp.down);
        return;
    }
    take_matrix(loader, "mlp.gate.weight", c->n_routed_experts, c->hidden_size, &layer->router);
    if (c->route.method == BT_TOPK_NOAUX_TC)
        take_vector(loader, "mlp.gate.e_score_correction_bias", c->n_routed_experts,
                    &layer->router_bias);
    if (c->n_shared_experts)
        load_mlp(loader, "mlp.shared_experts", c->n_shared_experts * c->moe_intermediate_size,
                 &layer->mlp.gate, &layer->mlp.up, &layer->mlp.down);
    load_experts(loader, &layer->experts);
}

/* Whole or not at all: its projection decides whether the checkpoint has the module. */
static void load_mtp(struct loader *loader, struct bt_mtp_weights *mtp)
{
    const struct bt_model_config *c = &loader->model->config;
    uint32_t index = c->num_hidden_layers;
    snprintf(loader->prefix, sizeof(loader->prefix), "model.layers.%u.", index);
    if (loader->status != BT_OK || c->num_nextn_predict_layers == 0 ||
        !has(loader, "eh_proj.weight"))
        return;
    mtp->present = true;
    take_matrix(loader, "embed_tokens.weight", c->vocab_size, c->hidden_size, &mtp->embed);
    take_vector(loader, "enorm.weight", c->hidden_size, &mtp->enorm);
    take_vector(loader, "hnorm.weight", c->hidden_size, &mtp->hnorm);
    take_matrix(loader, "eh_proj.weight", c->hidden_size, 2 * c->hidden_size, &mtp->eh_proj);
    take_vector(loader, "shared_head.norm.weight", c->hidden_size, &mtp->head_norm);
    take_matrix(loader, "shared_head.head.weight", c->vocab_size, c->hidden_size, &mtp->head);
    load_layer(loader, index, &mtp->layer);
}

static void load_ends(struct loader *loader)
{
    struct bt_model *model = loader->model;
    const struct bt_model_config *c = &model->config;
    loader->prefix[0] = '\0';
    take_matrix(loader, "model.embed_tokens.weight", c->vocab_size, c->hidden_size, &model->embed);
    take_vector(loader, "model.norm.weight", c->hidden_size, &model->final_norm);
    if (!c->tie_word_embeddings || has(loader, "lm_head.weight"))
        take_matrix(loader, "lm_head.weight", c->vocab_size, c->hidden_size, &model->lm_head);
    if (c->tie_word_embeddings)
        model->lm_head = model->embed;
}

/* The layer number in "model.layers.N.…", or -1. */
static int64_t layer_of(const char *name)
{
    static const char start[] = "model.layers.";
    if (strncmp(name, start, sizeof(start) - 1))
        return -1;
    char *end;
    unsigned long layer = strtoul(name + sizeof(start) - 1, &end, 10);
    return end != name + sizeof(start) - 1 && *end == '.' && layer < 100000 ? (int64_t)layer : -1;
}

/* Buffers of old exports, MTP modules that are not used (beyond the first, or not configured), and
 * the shared experts without an element that transformers writes with n_shared_experts 0. */
static bool may_be_left(struct loader *loader, const struct bt_tensor *tensor)
{
    static const char buffer[] = ".rotary_emb.inv_freq";
    const char *name = tensor->name;
    size_t length = strlen(name);
    if (tensor->bytes == 0 && strstr(name, ".mlp.shared_experts."))
        return true;
    if (length > sizeof(buffer) - 1 && !strcmp(name + length - (sizeof(buffer) - 1), buffer))
        return true;
    int64_t layer = layer_of(name);
    if (layer < loader->model->config.num_hidden_layers ||
        (loader->model->mtp.present && layer == loader->model->config.num_hidden_layers))
        return false;
    snprintf(loader->prefix, sizeof(loader->prefix), "model.layers.%lld.", (long long)layer);
    return has(loader, "eh_proj.weight");
}

static void check_left_over(struct loader *loader)
{
    const struct bt_safetensors *file = loader->model->checkpoint;
    for (size_t i = 0; i < bt_safetensors_count(file) && loader->status == BT_OK; i++) {
        const struct bt_tensor *tensor = bt_safetensors_at(file, i);
        if (!loader->taken[i] && !may_be_left(loader, tensor))
            set_fault(loader, tensor, "not a tensor of this model");
    }
}

static enum bt_status load_tensors(struct bt_model *model, const char *dir, struct bt_error *error)
{
    struct loader loader = {.dir = dir, .model = model, .error = error};
    loader.taken = calloc(bt_safetensors_count(model->checkpoint), sizeof(*loader.taken));
    model->layers = calloc(model->config.num_hidden_layers, sizeof(*model->layers));
    if (!loader.taken || !model->layers) {
        free(loader.taken);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for the layers", dir);
    }
    load_ends(&loader);
    for (uint32_t i = 0; i < model->config.num_hidden_layers; i++)
        load_layer(&loader, i, &model->layers[i]);
    load_mtp(&loader, &model->mtp);
    check_left_over(&loader);
    free(loader.taken);
    return loader.status;
}

static enum bt_status fill_rope(struct bt_model *model, const char *dir, struct bt_error *error)
{
    const struct bt_model_config *c = &model->config;
    uint32_t half = c->qk_rope_head_dim / 2;
    size_t cells = (size_t)c->max_position_embeddings * half;
    float *tables = malloc(2 * cells * sizeof(*tables));
    if (!tables)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for rope tables", dir);
    bt_model_rope_fill(c, c->max_position_embeddings, tables, tables + cells);
    model->rope = (struct bt_rope_table){tables, tables + cells, half, c->max_position_embeddings};
    return BT_OK;
}

/* Everything that changes the KV or the logits; not the end tokens, which only stop them. */
static uint64_t hash_model(const struct bt_model *model)
{
    const struct bt_model_config *c = &model->config;
    char text[1024];
    int length = snprintf(
        text, sizeof(text),
        "%s v%u h%u i%u l%u a%u q%u k%u n%u r%u v%u p%u d%u f%u m%u e%u s%u t%u g%u,%u sc%d me%d "
        "no%d x%a eps%a th%a y%d %a %a %a %a %a %u tie%d %llx",
        c->model_type, c->vocab_size, c->hidden_size, c->intermediate_size, c->num_hidden_layers,
        c->num_attention_heads, c->q_lora_rank, c->kv_lora_rank, c->qk_nope_head_dim,
        c->qk_rope_head_dim, c->v_head_dim, c->max_position_embeddings, c->first_k_dense_replace,
        c->moe_layer_freq, c->moe_intermediate_size, c->n_routed_experts, c->n_shared_experts,
        c->route.experts_per_token, c->route.groups, c->route.groups_per_token,
        (int)c->route.scoring, (int)c->route.method, (int)c->route.normalize,
        (double)c->route.scale, (double)c->rms_norm_eps, c->rope_theta, (int)c->yarn.enabled,
        c->yarn.factor, c->yarn.beta_fast, c->yarn.beta_slow, c->yarn.mscale,
        c->yarn.mscale_all_dim, c->yarn.original_max_position_embeddings,
        (int)c->tie_word_embeddings, (unsigned long long)bt_safetensors_hash(model->checkpoint));
    BT_ASSERT(length > 0 && (size_t)length < sizeof(text));
    return XXH3_64bits(text, (size_t)length);
}

enum bt_status bt_model_load(const char *model_dir, const char *kernels, struct bt_error *error,
                             struct bt_model **ret_model)
{
    struct bt_model *model = calloc(1, sizeof(*model));
    if (!model)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", model_dir);
    enum bt_status status = bt_kernels_select(kernels, error, &model->kernels);
    if (status == BT_OK)
        status = bt_model_config_load(model_dir, error, &model->config);
    if (status == BT_OK)
        status = bt_safetensors_open(model_dir, error, &model->checkpoint);
    if (status == BT_OK)
        status = load_tensors(model, model_dir, error);
    if (status == BT_OK)
        status = fill_rope(model, model_dir, error);
    if (status != BT_OK) {
        bt_model_destroy(model);
        return status;
    }
    model->hash = hash_model(model);
    *ret_model = model;
    return BT_OK;
}

void bt_model_destroy(struct bt_model *model)
{
    if (!model)
        return;
    for (uint32_t i = 0; model->layers && i < model->config.num_hidden_layers; i++)
        free((void *)model->layers[i].experts.gate);
    free((void *)model->mtp.layer.experts.gate);
    free(model->layers);
    free((void *)model->rope.cos);
    bt_safetensors_close(model->checkpoint);
    free(model);
}

struct bt_kv_layout bt_model_kv_layout(const struct bt_model *model, enum bt_dtype dtype)
{
    BT_ASSERT(dtype == BT_F32 || dtype == BT_BF16);
    return (struct bt_kv_layout){
        .layer_count = model->config.num_hidden_layers,
        .kv_lora_rank = model->config.kv_lora_rank,
        .qk_rope_head_dim = model->config.qk_rope_head_dim,
        .dtype = dtype,
    };
}

void bt_model_fingerprint(const struct bt_model *model, const char *name, enum bt_dtype dtype,
                          struct bt_fingerprint *ret_fingerprint)
{
    *ret_fingerprint = (struct bt_fingerprint){
        .layout_version = BT_KV_LAYOUT_VERSION,
        .model_hash = model->hash,
        .layout = bt_model_kv_layout(model, dtype),
    };
    snprintf(ret_fingerprint->model_name, sizeof(ret_fingerprint->model_name), "%s", name);
}
