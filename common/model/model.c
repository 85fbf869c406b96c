#include "common/model/model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

#include "common/base/log.h"
#include "common/model/weights.h"

const char *const bt_model_dtype_names[] = {"auto", "float32", "bfloat16", NULL};
const char *const bt_kv_dtype_names[] = {"auto", "f32", "bf16", "fp8", NULL};

/* One loading: the first fault sticks, and takes after it do nothing. */
struct loader {
    const char *dir;
    struct bt_model *model;
    bool *taken;               /* [tensors] */
    struct bt_weight *weights; /* [tensors] what products are made with, MTP's left out */
    size_t weight_count;
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
    char full[320];
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

static bool check_shape(struct loader *loader, const struct bt_tensor *tensor, const uint64_t *dims,
                        uint32_t dim_count)
{
    char what[256], wanted[64], found[128];
    if (tensor->dim_count == dim_count && !memcmp(tensor->dims, dims, dim_count * sizeof(*dims)))
        return true;
    format_shape(dims, dim_count, wanted, sizeof(wanted));
    format_shape(tensor->dims, tensor->dim_count, found, sizeof(found));
    snprintf(what, sizeof(what), "shape %s, config.json asks for %s", found, wanted);
    set_fault(loader, tensor, what);
    return false;
}

static bool check_float(struct loader *loader, const struct bt_tensor *tensor)
{
    static const char *const offered[] = {
        [BT_QUANTIZATION_NONE] = "F32, BF16, F16",
        [BT_QUANTIZATION_FP8] = "F32, BF16, F16; F8_E4M3 for weights of products",
        [BT_QUANTIZATION_BATON] = "F32, BF16, F16; I8 and U8 for weights of products",
    };
    char what[160];
    if (tensor->is_float)
        return true;
    snprintf(what, sizeof(what), "dtype %s is not offered here (%s)", tensor->dtype_name,
             offered[loader->model->config.quantization]);
    set_fault(loader, tensor, what);
    return false;
}

/* NULL after a fault. */
static const struct bt_tensor *require(struct loader *loader, const char *name)
{
    char full[320];
    if (loader->status != BT_OK)
        return NULL;
    const struct bt_tensor *tensor = find(loader, name, full, sizeof(full));
    if (!tensor)
        loader->status = bt_error_set(loader->error, BT_ERR_INVALID_ARGUMENT,
                                      "%s: tensor %s is missing", loader->dir, full);
    return tensor;
}

static void mark_taken(struct loader *loader, const struct bt_tensor *tensor)
{
    loader->taken[tensor - bt_safetensors_at(loader->model->checkpoint, 0)] = true;
}

static void take(struct loader *loader, const char *name, const uint64_t *dims, uint32_t dim_count,
                 struct bt_matrix *ret_matrix)
{
    const struct bt_tensor *tensor = require(loader, name);
    if (!tensor || !check_float(loader, tensor) || !check_shape(loader, tensor, dims, dim_count))
        return;
    mark_taken(loader, tensor);
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

/* F8_E4M3, I8, and U8 for I4, each where quantization_config allows it. */
static bool quantised_dtype(const struct loader *loader, const struct bt_tensor *tensor,
                            enum bt_dtype *ret_dtype)
{
    static const struct {
        const char *name;
        enum bt_quantization quantization;
        enum bt_dtype dtype;
    } known[] = {{"F8_E4M3", BT_QUANTIZATION_FP8, BT_F8_E4M3},
                 {"I8", BT_QUANTIZATION_BATON, BT_I8},
                 {"U8", BT_QUANTIZATION_BATON, BT_I4}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (known[i].quantization == loader->model->config.quantization &&
            !strcmp(known[i].name, tensor->dtype_name)) {
            *ret_dtype = known[i].dtype;
            return true;
        }
    }
    return false;
}

/* `name``ending`, of `dtype_name`; NULL after a fault. */
static const struct bt_tensor *take_beside(struct loader *loader, const char *name,
                                           const char *ending, const char *dtype_name,
                                           const uint64_t *dims, uint32_t dim_count)
{
    char full[224], what[96];
    snprintf(full, sizeof(full), "%s%s", name, ending);
    const struct bt_tensor *tensor = require(loader, full);
    if (!tensor)
        return NULL;
    if (strcmp(tensor->dtype_name, dtype_name) != 0) {
        snprintf(what, sizeof(what), "dtype %s, scales of this kind are %s", tensor->dtype_name,
                 dtype_name);
        set_fault(loader, tensor, what);
        return NULL;
    }
    if (!check_shape(loader, tensor, dims, dim_count))
        return NULL;
    mark_taken(loader, tensor);
    return tensor;
}

static const float *take_scales(struct loader *loader, const char *name, const char *ending,
                                const uint64_t *dims, uint32_t dim_count)
{
    const struct bt_tensor *tensor = take_beside(loader, name, ending, "F32", dims, dim_count);
    if (!tensor)
        return NULL;
    loader->status = bt_weight_check_scales(loader->dir, tensor, loader->error);
    return tensor->data;
}

/* The scales of a matrix whose other fields are filled. */
static void take_all_scales(struct loader *loader, const char *name, struct bt_matrix *matrix)
{
    const uint64_t rows = matrix->rows, groups = (matrix->cols + 127) / 128;
    if (matrix->dtype == BT_F8_E4M3) {
        matrix->scales =
            take_scales(loader, name, "_scale_inv", (uint64_t[]){(rows + 127) / 128, groups}, 2);
        return;
    }
    matrix->scales = take_scales(loader, name, "_scale", &rows, 1);
    if (matrix->dtype == BT_I4) {
        const struct bt_tensor *tensor =
            take_beside(loader, name, "_group_scale", "U8", (uint64_t[]){rows, groups}, 2);
        matrix->group_scales = tensor ? tensor->data : NULL;
    }
}

static void take_quantised(struct loader *loader, const char *name, const struct bt_tensor *tensor,
                           enum bt_dtype dtype, uint32_t rows, uint32_t cols,
                           struct bt_matrix *ret_matrix)
{
    uint32_t stored_cols = dtype == BT_I4 ? cols / 2 : cols;
    if (dtype == BT_I4 && cols % 128) {
        set_fault(loader, tensor, "int4 needs inputs that are a multiple of 128");
        return;
    }
    if (!check_shape(loader, tensor, (uint64_t[]){rows, stored_cols}, 2))
        return;
    mark_taken(loader, tensor);
    struct bt_matrix matrix = {.data = tensor->data, .rows = rows, .cols = cols, .dtype = dtype};
    take_all_scales(loader, name, &matrix);
    if (loader->status == BT_OK)
        *ret_matrix = matrix;
}

/* The weight of a product: of a float dtype or a quantised one. */
static void take_weight(struct loader *loader, const char *name, uint32_t rows, uint32_t cols,
                        enum bt_use use, struct bt_matrix *ret_matrix)
{
    enum bt_dtype dtype;
    const struct bt_tensor *tensor = require(loader, name);
    if (!tensor)
        return;
    if (quantised_dtype(loader, tensor, &dtype))
        take_quantised(loader, name, tensor, dtype, rows, cols, ret_matrix);
    else
        take_matrix(loader, name, rows, cols, ret_matrix);
    if (loader->status == BT_OK && !loader->model->mtp.present)
        loader->weights[loader->weight_count++] = (struct bt_weight){ret_matrix, tensor, use};
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
        take_weight(loader, "self_attn.q_a_proj.weight", c->q_lora_rank, c->hidden_size,
                    BT_USE_LINEAR, &layer->q_a);
        take_vector(loader, "self_attn.q_a_layernorm.weight", c->q_lora_rank, &layer->q_a_norm);
        take_weight(loader, "self_attn.q_b_proj.weight", q_dim, c->q_lora_rank, BT_USE_LINEAR,
                    &layer->q_b);
    } else {
        take_weight(loader, "self_attn.q_proj.weight", q_dim, c->hidden_size, BT_USE_LINEAR,
                    &layer->q);
    }
    take_weight(loader, "self_attn.kv_a_proj_with_mqa.weight",
                c->kv_lora_rank + c->qk_rope_head_dim, c->hidden_size, BT_USE_LINEAR, &layer->kv_a);
    take_vector(loader, "self_attn.kv_a_layernorm.weight", c->kv_lora_rank, &layer->kv_a_norm);
    take_weight(loader, "self_attn.kv_b_proj.weight", kv_dim, c->kv_lora_rank, BT_USE_KV_B,
                &layer->kv_b);
    take_weight(loader, "self_attn.o_proj.weight", c->hidden_size,
                c->num_attention_heads * c->v_head_dim, BT_USE_LINEAR, &layer->o);
}

/* `where`: "mlp", "mlp.shared_experts" or "mlp.experts.N". */
static void load_mlp(struct loader *loader, const char *where, uint32_t width,
                     struct bt_matrix *gate, struct bt_matrix *up, struct bt_matrix *down)
{
    uint32_t hidden = loader->model->config.hidden_size;
    char name[128];
    snprintf(name, sizeof(name), "%s.gate_proj.weight", where);
    take_weight(loader, name, width, hidden, BT_USE_LINEAR, gate);
    snprintf(name, sizeof(name), "%s.up_proj.weight", where);
    take_weight(loader, name, width, hidden, BT_USE_LINEAR, up);
    snprintf(name, sizeof(name), "%s.down_proj.weight", where);
    take_weight(loader, name, hidden, width, BT_USE_LINEAR, down);
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
    take_weight(loader, "eh_proj.weight", c->hidden_size, 2 * c->hidden_size, BT_USE_LINEAR,
                &mtp->eh_proj);
    take_vector(loader, "shared_head.norm.weight", c->hidden_size, &mtp->head_norm);
    take_weight(loader, "shared_head.head.weight", c->vocab_size, c->hidden_size, BT_USE_LINEAR,
                &mtp->head);
    load_layer(loader, index, &mtp->layer);
}

static void load_ends(struct loader *loader)
{
    struct bt_model *model = loader->model;
    const struct bt_model_config *c = &model->config;
    loader->prefix[0] = '\0';
    take_matrix(loader, "model.embed_tokens.weight", c->vocab_size, c->hidden_size, &model->embed);
    take_vector(loader, "model.norm.weight", c->hidden_size, &model->final_norm);
    if (!c->tie_word_embeddings) {
        take_weight(loader, "lm_head.weight", c->vocab_size, c->hidden_size, BT_USE_LINEAR,
                    &model->lm_head);
        return;
    }
    /* Some exports write the tied head too; it is the embedding. */
    if (has(loader, "lm_head.weight"))
        take_matrix(loader, "lm_head.weight", c->vocab_size, c->hidden_size, &model->lm_head);
    model->lm_head = model->embed;
    const struct bt_tensor *tensor = require(loader, "model.embed_tokens.weight");
    if (tensor)
        loader->weights[loader->weight_count++] =
            (struct bt_weight){&model->lm_head, tensor, BT_USE_LINEAR};
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

/* Of what is in the file. */
static uint64_t weight_bytes(const struct loader *loader)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < loader->weight_count; i++)
        bytes += loader->weights[i].tensor->bytes;
    return bytes;
}

static enum bt_model_dtype choose_dtype(const struct loader *loader, enum bt_model_dtype wanted)
{
    const struct bt_model_config *c = &loader->model->config;
    if (wanted != BT_MODEL_AUTO)
        return wanted;
    return (c->is_bfloat16 || c->quantization != BT_QUANTIZATION_NONE) &&
                   weight_bytes(loader) >= BT_MODEL_SMALL_BYTES
               ? BT_MODEL_BFLOAT16
               : BT_MODEL_FLOAT32;
}

static void prepare_weights(struct loader *loader, const struct bt_model_options *options)
{
    if (loader->status != BT_OK)
        return;
    loader->model->dtype = choose_dtype(loader, options->dtype);
    loader->status = bt_weights_prepare(loader->model, loader->dir, loader->weights,
                                        loader->weight_count, options->memory_bytes, loader->error);
}

static enum bt_status load_tensors(struct bt_model *model, const struct bt_model_options *options,
                                   struct bt_error *error)
{
    const char *dir = options->dir;
    struct loader loader = {.dir = dir, .model = model, .error = error};
    size_t tensors = bt_safetensors_count(model->checkpoint);
    loader.taken = calloc(tensors, sizeof(*loader.taken));
    loader.weights = calloc(tensors + 1, sizeof(*loader.weights)); /* a tied head counts twice */
    model->layers = calloc(model->config.num_hidden_layers, sizeof(*model->layers));
    if (!loader.taken || !loader.weights || !model->layers) {
        loader.status = bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for the layers", dir);
        goto out;
    }
    load_ends(&loader);
    for (uint32_t i = 0; i < model->config.num_hidden_layers; i++)
        load_layer(&loader, i, &model->layers[i]);
    load_mtp(&loader, &model->mtp);
    check_left_over(&loader);
    prepare_weights(&loader, options);
out:
    free(loader.taken);
    free(loader.weights);
    return loader.status;
}

static enum bt_status fill_rope(struct bt_model *model, const char *dir, struct bt_error *error)
{
    const struct bt_model_config *c = &model->config;
    uint32_t half = c->qk_rope_head_dim / 2;
    size_t cells = (size_t)model->max_tokens * half;
    float *tables = malloc(2 * cells * sizeof(*tables));
    if (!tables)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for rope tables", dir);
    bt_model_rope_fill(c, model->max_tokens, tables, tables + cells);
    model->rope = (struct bt_rope_table){tables, tables + cells, half, model->max_tokens};
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

static enum bt_status load(struct bt_model *model, const struct bt_model_options *options,
                           struct bt_error *error)
{
    const char *kernels = options->kernels ? options->kernels : "auto";
    enum bt_status status = bt_kernels_select(kernels, error, &model->kernels);
    if (status == BT_OK)
        status = bt_model_config_load(options->dir, error, &model->config);
    if (status != BT_OK)
        return status;
    uint32_t longest = model->config.max_position_embeddings;
    model->max_tokens =
        options->max_tokens && options->max_tokens < longest ? options->max_tokens : longest;
    status = bt_safetensors_open(options->dir, error, &model->checkpoint);
    if (status != BT_OK)
        return status;
    model->hash = hash_model(model);
    status = load_tensors(model, options, error);
    return status == BT_OK ? fill_rope(model, options->dir, error) : status;
}

enum bt_status bt_model_load(const struct bt_model_options *options, struct bt_error *error,
                             struct bt_model **ret_model)
{
    struct bt_model *model = calloc(1, sizeof(*model));
    if (!model)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", options->dir);
    model->team = options->team;
    enum bt_status status = load(model, options, error);
    if (status != BT_OK) {
        bt_model_destroy(model);
        return status;
    }
    bt_log_info(0, "loaded %s: %s arithmetic, kernels %s, %u threads", options->dir,
                bt_model_dtype_name(model->dtype), model->kernels->name,
                bt_team_threads(model->team));
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
    if (model->memory.data)
        munmap(model->memory.data, model->memory.bytes);
    bt_safetensors_close(model->checkpoint);
    free(model);
}

const char *bt_model_dtype_name(enum bt_model_dtype dtype)
{
    return bt_model_dtype_names[dtype];
}

enum bt_dtype bt_model_kv_dtype(const struct bt_model *model, const char *name)
{
    if (!strcmp(name, "auto"))
        return model->dtype == BT_MODEL_BFLOAT16 ? BT_BF16 : BT_F32;
    return !strcmp(name, "fp8") ? BT_F8_E4M3 : !strcmp(name, "bf16") ? BT_BF16 : BT_F32;
}

struct bt_kv_layout bt_model_kv_layout(const struct bt_model *model, enum bt_dtype dtype)
{
    BT_ASSERT(dtype == BT_F32 || dtype == BT_BF16 || dtype == BT_F8_E4M3);
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
    snprintf(ret_fingerprint->arithmetic, sizeof(ret_fingerprint->arithmetic), "%s",
             bt_model_dtype_name(model->dtype));
    snprintf(ret_fingerprint->model_name, sizeof(ret_fingerprint->model_name), "%s", name);
}
