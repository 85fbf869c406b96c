#include "common/model/loader.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/experts.h"
#include "common/model/slice.h"
#include "common/model/weights.h"

/* One loading: the first fault sticks, and takes after it do nothing. */
struct loader {
    const char *dir;
    const struct bt_model *model;
    bool *taken;               /* [tensors] */
    struct bt_weight *weights; /* [tensors] what products are made with here, MTP's left out */
    size_t weight_count;
    uint64_t product_bytes; /* in the file, those of all ranks */
    bool *here;             /* [n_routed_experts] of the layer that is being loaded */
    bool is_mtp;            /* taken as it is in the file */
    bool is_elsewhere;      /* checked, not read: another rank's */
    bool experts_apart;     /* each in a block of its own */
    bool in_block;          /* weights go into block number `block` */
    uint32_t block;
    uint32_t moe_index; /* of the layer that is being loaded */
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

/* Rows that stay as they are in the file: where the host's memory is not the device's, they are
 * copied there. `matrix` was taken, or is without data after a fault. */
static void keep_rows(struct loader *loader, const char *name, struct bt_matrix *matrix)
{
    const struct bt_tensor *tensor = require(loader, name);
    if (tensor && !loader->is_mtp && bt_model_is_remote(loader->model))
        loader->weights[loader->weight_count++] =
            (struct bt_weight){.matrix = matrix, .tensor = tensor, .as_it_is = true};
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
    if (!loader->is_elsewhere)
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
    if (dtype != BT_F8_E4M3 && cols > BT_INT8_MAX_COLS) {
        set_fault(loader, tensor, "too many inputs for sums of int8");
        return;
    }
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

/* This rank's part of a weight. False: the cut would go through a block of scales. */
static bool cut(struct loader *loader, enum bt_split split, struct bt_weight *weight)
{
    struct bt_matrix *matrix = weight->matrix;
    const struct bt_shard *shard = &loader->model->shard;
    uint32_t whole = split == BT_SPLIT_OUTPUTS ? matrix->rows : matrix->cols;
    uint32_t count = whole / shard->tp_size, first = count * shard->tp_rank;
    uint32_t step = bt_slice_step(matrix->dtype, split);
    if (split == BT_SPLIT_NONE || shard->tp_size == 1)
        return true;
    if (count % step) {
        char what[160];
        snprintf(what, sizeof(what), "%u %s for each of %u ranks of a tp group, %s is cut by %u",
                 count, split == BT_SPLIT_OUTPUTS ? "outputs" : "inputs", shard->tp_size,
                 bt_dtype_name(matrix->dtype), step);
        set_fault(loader, weight->tensor, what);
        return false;
    }
    if (split == BT_SPLIT_OUTPUTS) {
        *matrix = bt_slice_outputs(matrix, first, count);
        return true;
    }
    weight->whole = *matrix;
    weight->first_input = first;
    matrix->cols = count;
    return true;
}

/* The weight of a product: of a float dtype or a quantised one. `split`: over the tp ranks. */
static void take_weight(struct loader *loader, const char *name, uint32_t rows, uint32_t cols,
                        enum bt_use use, enum bt_split split, struct bt_matrix *ret_matrix)
{
    enum bt_dtype dtype;
    const struct bt_tensor *tensor = require(loader, name);
    struct bt_weight weight = {
        .matrix = ret_matrix, .tensor = tensor, .use = use, .moe_index = loader->moe_index};
    if (!tensor)
        return;
    if (quantised_dtype(loader, tensor, &dtype))
        take_quantised(loader, name, tensor, dtype, rows, cols, ret_matrix);
    else
        take_matrix(loader, name, rows, cols, ret_matrix);
    if (loader->status != BT_OK || loader->is_mtp)
        return;
    loader->product_bytes += tensor->bytes;
    if (loader->is_elsewhere) {
        *ret_matrix = (struct bt_matrix){
            .rows = ret_matrix->rows, .cols = ret_matrix->cols, .dtype = ret_matrix->dtype};
        return;
    }
    weight.block = loader->in_block ? loader->block : 0;
    if (cut(loader, split, &weight))
        loader->weights[loader->weight_count++] = weight;
}

static void take_vector(struct loader *loader, const char *name, uint32_t dim,
                        struct bt_matrix *ret_matrix)
{
    take(loader, name, (uint64_t[]){dim}, 1, ret_matrix);
    keep_rows(loader, name, ret_matrix);
}

static void load_attention(struct loader *loader, struct bt_layer_weights *layer)
{
    const struct bt_model_config *c = &loader->model->config;
    uint32_t q_dim = c->num_attention_heads * (c->qk_nope_head_dim + c->qk_rope_head_dim);
    uint32_t kv_dim = c->num_attention_heads * (c->qk_nope_head_dim + c->v_head_dim);

    if (c->q_lora_rank) {
        take_weight(loader, "self_attn.q_a_proj.weight", c->q_lora_rank, c->hidden_size,
                    BT_USE_LINEAR, BT_SPLIT_NONE, &layer->q_a);
        take_vector(loader, "self_attn.q_a_layernorm.weight", c->q_lora_rank, &layer->q_a_norm);
        take_weight(loader, "self_attn.q_b_proj.weight", q_dim, c->q_lora_rank, BT_USE_LINEAR,
                    BT_SPLIT_OUTPUTS, &layer->q_b);
    } else {
        take_weight(loader, "self_attn.q_proj.weight", q_dim, c->hidden_size, BT_USE_LINEAR,
                    BT_SPLIT_OUTPUTS, &layer->q);
    }
    take_weight(loader, "self_attn.kv_a_proj_with_mqa.weight",
                c->kv_lora_rank + c->qk_rope_head_dim, c->hidden_size, BT_USE_LINEAR, BT_SPLIT_NONE,
                &layer->kv_a);
    take_vector(loader, "self_attn.kv_a_layernorm.weight", c->kv_lora_rank, &layer->kv_a_norm);
    take_weight(loader, "self_attn.kv_b_proj.weight", kv_dim, c->kv_lora_rank, BT_USE_KV_B,
                BT_SPLIT_OUTPUTS, &layer->kv_b);
    take_weight(loader, "self_attn.o_proj.weight", c->hidden_size,
                c->num_attention_heads * c->v_head_dim, BT_USE_LINEAR, BT_SPLIT_INPUTS, &layer->o);
}

/* Weights that one operation multiplies with are packed alike. `a` and `b`: of a MLP of `where_a`
 * and `where_b`. */
static void check_alike(struct loader *loader, const char *where_a, const char *part_a,
                        const struct bt_matrix *a, const char *where_b, const char *part_b,
                        const struct bt_matrix *b)
{
    char name[128], what[320];
    bool plain = !bt_dtype_is_quantised(a->dtype) && !bt_dtype_is_quantised(b->dtype);
    if (loader->status != BT_OK || plain || a->dtype == b->dtype)
        return;
    snprintf(name, sizeof(name), "%s.%s_proj.weight", where_b, part_b);
    snprintf(what, sizeof(what), "%s, but %s%s.%s_proj.weight, which it is multiplied with, is %s",
             bt_dtype_name(b->dtype), loader->prefix, where_a, part_a, bt_dtype_name(a->dtype));
    const struct bt_tensor *tensor = require(loader, name);
    if (tensor)
        set_fault(loader, tensor, what);
}

/* `where`: "mlp", "mlp.shared_experts" or "mlp.experts.N". */
static void load_mlp(struct loader *loader, const char *where, uint32_t width,
                     struct bt_matrix *gate, struct bt_matrix *up, struct bt_matrix *down)
{
    uint32_t hidden = loader->model->config.hidden_size;
    char name[128];
    snprintf(name, sizeof(name), "%s.gate_proj.weight", where);
    take_weight(loader, name, width, hidden, BT_USE_LINEAR, BT_SPLIT_NONE, gate);
    snprintf(name, sizeof(name), "%s.up_proj.weight", where);
    take_weight(loader, name, width, hidden, BT_USE_LINEAR, BT_SPLIT_NONE, up);
    snprintf(name, sizeof(name), "%s.down_proj.weight", where);
    take_weight(loader, name, hidden, width, BT_USE_LINEAR, BT_SPLIT_NONE, down);
    check_alike(loader, where, "gate", gate, where, "up", up);
}

/* Of the layer of the loader's prefix, into [3][n_routed_experts] matrices. */
static void load_experts(struct loader *loader, struct bt_matrix *matrices)
{
    const struct bt_model_config *c = &loader->model->config;
    static const char first[] = "mlp.experts.0";
    uint32_t count = c->n_routed_experts;
    loader->in_block = loader->block > 0;
    for (uint32_t i = 0; i < count && loader->status == BT_OK; i++) {
        char where[64];
        snprintf(where, sizeof(where), "mlp.experts.%u", i);
        loader->is_elsewhere = !loader->is_mtp && !loader->here[i];
        loader->block += loader->experts_apart;
        load_mlp(loader, where, c->moe_intermediate_size, &matrices[i], &matrices[count + i],
                 &matrices[2 * (size_t)count + i]);
        check_alike(loader, first, "gate", &matrices[0], where, "gate", &matrices[i]);
        check_alike(loader, first, "down", &matrices[2 * (size_t)count], where, "down",
                    &matrices[2 * (size_t)count + i]);
    }
    loader->is_elsewhere = loader->in_block = false;
}

/* One block for the three arrays; experts.gate is its start. */
static struct bt_matrix *make_experts(struct loader *loader, struct bt_expert_weights *experts)
{
    uint32_t count = loader->model->config.n_routed_experts;
    struct bt_matrix *block = calloc(3 * (size_t)count, sizeof(*block));
    if (block)
        *experts =
            (struct bt_expert_weights){block, block + count, block + 2 * (size_t)count, count};
    else if (loader->status == BT_OK)
        loader->status = bt_error_set(loader->error, BT_ERR_NO_MEMORY, "experts: no memory");
    return block;
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
    keep_rows(loader, "mlp.gate.weight", &layer->router);
    if (c->route.method == BT_TOPK_NOAUX_TC)
        take_vector(loader, "mlp.gate.e_score_correction_bias", c->n_routed_experts,
                    &layer->router_bias);
    if (c->n_shared_experts)
        load_mlp(loader, "mlp.shared_experts", c->n_shared_experts * c->moe_intermediate_size,
                 &layer->mlp.gate, &layer->mlp.up, &layer->mlp.down);
    struct bt_matrix *experts = make_experts(loader, &layer->experts);
    if (experts)
        load_experts(loader, experts);
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
    mtp->present = loader->is_mtp = true;
    take_matrix(loader, "embed_tokens.weight", c->vocab_size, c->hidden_size, &mtp->embed);
    take_vector(loader, "enorm.weight", c->hidden_size, &mtp->enorm);
    take_vector(loader, "hnorm.weight", c->hidden_size, &mtp->hnorm);
    take_weight(loader, "eh_proj.weight", c->hidden_size, 2 * c->hidden_size, BT_USE_LINEAR,
                BT_SPLIT_NONE, &mtp->eh_proj);
    take_vector(loader, "shared_head.norm.weight", c->hidden_size, &mtp->head_norm);
    take_weight(loader, "shared_head.head.weight", c->vocab_size, c->hidden_size, BT_USE_LINEAR,
                BT_SPLIT_NONE, &mtp->head);
    load_layer(loader, index, &mtp->layer);
}

static void load_ends(struct loader *loader, struct bt_model *model)
{
    const struct bt_model_config *c = &model->config;
    loader->prefix[0] = '\0';
    take_matrix(loader, "model.embed_tokens.weight", c->vocab_size, c->hidden_size, &model->embed);
    keep_rows(loader, "model.embed_tokens.weight", &model->embed);
    take_vector(loader, "model.norm.weight", c->hidden_size, &model->final_norm);
    if (!c->tie_word_embeddings) {
        take_weight(loader, "lm_head.weight", c->vocab_size, c->hidden_size, BT_USE_LINEAR,
                    BT_SPLIT_NONE, &model->lm_head);
        return;
    }
    /* Some exports write the tied head too; it is the embedding. */
    if (has(loader, "lm_head.weight"))
        take_matrix(loader, "lm_head.weight", c->vocab_size, c->hidden_size, &model->lm_head);
    model->lm_head = model->embed;
    const struct bt_tensor *tensor = require(loader, "model.embed_tokens.weight");
    if (tensor) {
        loader->product_bytes += tensor->bytes;
        loader->weights[loader->weight_count++] =
            (struct bt_weight){.matrix = &model->lm_head, .tensor = tensor, .use = BT_USE_LINEAR};
    }
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

static enum bt_model_dtype choose_dtype(const struct loader *loader, enum bt_model_dtype wanted)
{
    const struct bt_model_config *c = &loader->model->config;
    if (wanted != BT_MODEL_AUTO)
        return wanted;
    return (c->is_bfloat16 || c->quantization != BT_QUANTIZATION_NONE) &&
                   loader->product_bytes >= BT_MODEL_SMALL_BYTES
               ? BT_MODEL_BFLOAT16
               : BT_MODEL_FLOAT32;
}

static bool loader_init(struct loader *loader, const struct bt_model *model, struct bt_error *error)
{
    size_t tensors = bt_safetensors_count(model->checkpoint);
    *loader = (struct loader){.dir = model->dir, .model = model, .error = error};
    loader->taken = calloc(tensors, sizeof(*loader->taken));
    loader->weights = calloc(tensors + 1, sizeof(*loader->weights)); /* a tied head counts twice */
    loader->here = calloc((size_t)model->config.n_routed_experts + 1, sizeof(*loader->here));
    return loader->taken && loader->weights && loader->here;
}

static void loader_finish(struct loader *loader)
{
    free(loader->taken);
    free(loader->weights);
    free(loader->here);
}

enum bt_status bt_load_tensors(struct bt_model *model, const struct bt_model_options *options,
                               struct bt_error *error)
{
    struct loader loader;
    uint32_t layers = model->config.num_hidden_layers, moe_index = 0;
    model->layers = calloc(layers, sizeof(*model->layers));
    if (!loader_init(&loader, model, error) || !model->layers) {
        loader.status =
            bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for the layers", model->dir);
        goto out;
    }
    /* Where they may be let go of, and memory comes back by whole allocations alone. */
    loader.experts_apart = bt_model_is_remote(model) && options->placement;
    loader.block = loader.experts_apart;
    load_ends(&loader, model);
    for (uint32_t i = 0; i < layers; i++) {
        model->layers[i].moe_index = loader.moe_index = moe_index;
        if (bt_model_layer_is_moe(&model->config, i))
            bt_model_experts_here(model, options->placement, moe_index++, loader.here);
        load_layer(&loader, i, &model->layers[i]);
    }
    load_mtp(&loader, &model->mtp);
    check_left_over(&loader);
    if (loader.status != BT_OK)
        goto out;
    model->dtype = choose_dtype(&loader, options->dtype);
    const struct bt_preparation preparation = {.model = model,
                                               .team = model->team,
                                               .weights = loader.weights,
                                               .count = loader.weight_count,
                                               .limit_bytes = options->memory_bytes,
                                               .tells = true};
    loader.status = bt_weights_prepare(&preparation, error, &model->memory, &model->expert_memory);
out:
    loader_finish(&loader);
    return loader.status;
}

enum bt_status bt_load_experts(const struct bt_model *model, uint32_t layer, const bool *here,
                               uint64_t limit_bytes, const atomic_bool *cancel,
                               struct bt_error *error, struct bt_matrix *ret_matrices,
                               struct bt_expert_memory **ret_blocks)
{
    struct loader loader;
    struct bt_weight_memory memory = {0};
    if (!loader_init(&loader, model, error)) {
        loader.status =
            bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for the experts", model->dir);
        goto out;
    }
    loader.experts_apart = bt_model_is_remote(model);
    loader.block = 1;
    loader.moe_index = model->layers[layer].moe_index;
    memcpy(loader.here, here, model->config.n_routed_experts * sizeof(*here));
    snprintf(loader.prefix, sizeof(loader.prefix), "model.layers.%u.", layer);
    load_experts(&loader, ret_matrices);
    if (loader.status != BT_OK)
        goto out;
    const struct bt_preparation preparation = {.model = model,
                                               .weights = loader.weights,
                                               .count = loader.weight_count,
                                               .limit_bytes = limit_bytes,
                                               .cancel = cancel};
    loader.status = bt_weights_prepare(&preparation, error, &memory, ret_blocks);
    BT_ASSERT(!memory.data);
out:
    loader_finish(&loader);
    return loader.status;
}
