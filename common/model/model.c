#include "common/model/model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/base/log.h"
#include "common/model/loader.h"
#include "common/model/upload.h"
#include "common/model/weights.h"

const char *const bt_model_dtype_names[] = {"auto", "float32", "bfloat16", NULL};
const char *const bt_kv_dtype_names[] = {"auto", "f32", "bf16", "fp8", NULL};

static enum bt_status upload_rope(struct bt_model *model, float *to, const float *tables,
                                  size_t bytes, struct bt_error *error)
{
    const struct bt_stream_limits none = {0};
    struct bt_stream *stream = NULL;
    struct bt_upload *upload = NULL;
    enum bt_status status =
        bt_device_stream_create(model->device, &none, model->team, error, &stream);
    if (status == BT_OK)
        status = bt_upload_create(model->device, stream, error, &upload);
    if (status == BT_OK)
        status = bt_upload_bytes(upload, to, tables, bytes, model->team, error);
    if (status == BT_OK)
        status = bt_device_synchronize(model->device, stream, error);
    bt_upload_destroy(upload);
    bt_device_stream_destroy(model->device, stream);
    return status;
}

static enum bt_status fill_rope(struct bt_model *model, const char *dir, struct bt_error *error)
{
    const struct bt_model_config *c = &model->config;
    uint32_t half = c->qk_rope_head_dim / 2;
    size_t cells = (size_t)model->max_tokens * half, bytes = 2 * cells * sizeof(float);
    void *memory;
    enum bt_status status = bt_device_alloc(model->device, bytes, error, &memory);
    if (status != BT_OK)
        return status;
    float *tables = memory;
    model->rope = (struct bt_rope_table){tables, tables + cells, half, model->max_tokens};
    if (!bt_model_is_remote(model)) {
        bt_model_rope_fill(c, model->max_tokens, tables, tables + cells);
        return BT_OK;
    }
    float *host = malloc(bytes);
    if (!host)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for rope tables", dir);
    bt_model_rope_fill(c, model->max_tokens, host, host + cells);
    status = upload_rope(model, tables, host, bytes, error);
    free(host);
    return status;
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

enum bt_status bt_model_check_placement(const struct bt_model *model,
                                        const struct bt_placement *placement,
                                        struct bt_error *error)
{
    uint32_t layers = bt_model_moe_layers(&model->config);
    if (placement->layers == layers && placement->experts == model->config.n_routed_experts &&
        model->shard.ep_rank < placement->ranks)
        return BT_OK;
    return bt_error_set(
        error, BT_ERR_INVALID_ARGUMENT,
        "%s: has %u MoE layers of %u experts, and this is ep rank %u; the placement "
        "is for %u layers of %u experts on %u ranks",
        model->dir, layers, model->config.n_routed_experts, model->shard.ep_rank, placement->layers,
        placement->experts, placement->ranks);
}

/* Which part this is, and of how many heads. */
static enum bt_status take_shard(struct bt_model *model, const struct bt_model_options *options,
                                 struct bt_error *error)
{
    uint32_t size = options->tp_size ? options->tp_size : 1;
    uint32_t heads = model->config.num_attention_heads;
    model->shard = (struct bt_shard){options->tp_rank, size, options->ep_rank};
    if (options->tp_rank >= size)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: tp rank %u of %u", model->dir,
                            options->tp_rank, size);
    if (heads % size)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s: num_attention_heads %u is not a multiple of %u tp ranks",
                            model->dir, heads, size);
    model->mla = bt_model_mla_shape(&model->config);
    model->mla.heads = heads / size;
    return options->placement ? bt_model_check_placement(model, options->placement, error) : BT_OK;
}

static enum bt_status take_device(struct bt_model *model, const struct bt_model_options *options,
                                  struct bt_error *error)
{
    enum bt_status status = BT_OK;
    model->device = options->device;
    if (!model->device)
        status = bt_device_open("cpu", options->kernels, error, &model->device);
    if (status == BT_OK)
        model->kernels = model->device->kernels;
    return status;
}

static enum bt_status load(struct bt_model *model, const struct bt_model_options *options,
                           struct bt_error *error)
{
    enum bt_status status = take_device(model, options, error);
    if (status == BT_OK)
        status = bt_model_config_load(options->dir, error, &model->config);
    if (status == BT_OK)
        status = take_shard(model, options, error);
    if (status != BT_OK)
        return status;
    uint32_t longest = model->config.max_position_embeddings;
    model->max_tokens =
        options->max_tokens && options->max_tokens < longest ? options->max_tokens : longest;
    status = bt_safetensors_open(options->dir, error, &model->checkpoint);
    if (status != BT_OK)
        return status;
    model->hash = hash_model(model);
    status = bt_load_tensors(model, options, error);
    return status == BT_OK ? fill_rope(model, options->dir, error) : status;
}

static void say_loaded(const struct bt_model *model)
{
    char part[64] = "";
    bool remote = bt_model_is_remote(model);
    if (model->shard.tp_size > 1)
        snprintf(part, sizeof(part), ", tp rank %u of %u", model->shard.tp_rank,
                 model->shard.tp_size);
    bt_log_info(0, "loaded %s: %s arithmetic, %s%s, %u threads%s", model->dir,
                bt_model_arithmetic(model), remote ? "on " : "kernels ",
                remote ? model->device->name : model->kernels->name, bt_team_threads(model->team),
                part);
}

enum bt_status bt_model_load(const struct bt_model_options *options, struct bt_error *error,
                             struct bt_model **ret_model)
{
    struct bt_model *model = calloc(1, sizeof(*model));
    if (!model)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", options->dir);
    model->team = options->team;
    model->memory_limit = options->memory_bytes;
    model->dir = strdup(options->dir);
    enum bt_status status =
        model->dir ? load(model, options, error)
                   : bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", options->dir);
    if (status != BT_OK) {
        bt_model_destroy(model);
        return status;
    }
    say_loaded(model);
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
    if (model->device) {
        bt_device_free(model->device, (void *)model->rope.cos);
        bt_weight_memory_free(model, &model->memory);
        bt_expert_memory_free(model, model->expert_memory);
    }
    bt_safetensors_close(model->checkpoint);
    free(model->dir);
    free(model);
}

const char *bt_model_dtype_name(enum bt_model_dtype dtype)
{
    return bt_model_dtype_names[dtype];
}

const char *bt_model_arithmetic(const struct bt_model *model)
{
    struct bt_device *device = model->device;
    if (model->dtype != BT_MODEL_BFLOAT16 || !model->kernels->f8_inputs ||
        model->config.quantization != BT_QUANTIZATION_FP8)
        return bt_model_dtype_name(model->dtype);
    return device && device->ops->f8_is_own && device->ops->f8_is_own(device) ? "bfloat16+fp8_own"
                                                                              : "bfloat16+fp8";
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
             bt_model_arithmetic(model));
    snprintf(ret_fingerprint->model_name, sizeof(ret_fingerprint->model_name), "%s", name);
}
