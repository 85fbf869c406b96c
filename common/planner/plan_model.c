#include "common/planner/plan_model.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "common/model/config.h"
#include "common/planner/json_reader.h"

static const char *const weights_names[BT_PLAN_WEIGHTS_KINDS] = {"bf16", "fp8", "int8", "w4a8"};

const char *bt_plan_weights_name(enum bt_plan_weights weights)
{
    return weights_names[weights];
}

enum bt_status bt_plan_weights_parse(const char *name, struct bt_error *error,
                                     enum bt_plan_weights *ret_weights)
{
    for (int i = 0; i < BT_PLAN_WEIGHTS_KINDS; i++) {
        if (strcmp(name, weights_names[i]))
            continue;
        *ret_weights = (enum bt_plan_weights)i;
        return BT_OK;
    }
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                        "weights = %.40s: not one of bf16, fp8, int8, w4a8", name);
}

struct bt_plan_dtypes bt_plan_dtypes_of(const struct bt_plan_model *model,
                                        enum bt_plan_weights weights, bool fp8_kv)
{
    static const enum bt_plan_number compute[] = {BT_PLAN_BF16, BT_PLAN_FP8, BT_PLAN_INT8,
                                                  BT_PLAN_FP8};
    bool wide = weights == BT_PLAN_WEIGHTS_BF16;
    return (struct bt_plan_dtypes){
        .dense_bytes = wide ? 2 : 1,
        .expert_bytes = wide                              ? 2
                        : weights == BT_PLAN_WEIGHTS_W4A8 ? 0.5
                                                          : 1,
        .kv_latent_bytes = fp8_kv ? 1 : 2,
        .kv_rope_bytes = 2,
        .kv_scale_bytes = fp8_kv ? 4 * ((model->kv_rank + 127) / 128) : 0,
        .activation_bytes = wide ? 2 : 1,
        .network_bytes = 2,
        .compute = compute[weights],
    };
}

void bt_plan_dtypes_on_cpu(enum bt_plan_weights weights, struct bt_plan_dtypes *dtypes)
{
    dtypes->bf16_attention = true;
    if (weights == BT_PLAN_WEIGHTS_FP8)
        dtypes->compute = BT_PLAN_BF16;
}

static void read_attention(struct bt_plan_reader *reader, struct bt_model_config *config)
{
    const uint32_t none = 0;
    config->num_attention_heads = bt_plan_reader_u32(reader, "num_attention_heads", 1, 4096, NULL);
    config->q_lora_rank = bt_plan_reader_u32(reader, "q_lora_rank", 0, 65536, &none);
    config->kv_lora_rank = bt_plan_reader_u32(reader, "kv_lora_rank", 1, 65536, NULL);
    config->qk_nope_head_dim = bt_plan_reader_u32(reader, "qk_nope_head_dim", 1, 4096, NULL);
    config->qk_rope_head_dim = bt_plan_reader_u32(reader, "qk_rope_head_dim", 1, 4096, NULL);
    config->v_head_dim = bt_plan_reader_u32(reader, "v_head_dim", 1, 4096, NULL);
}

static void read_experts(struct bt_plan_reader *reader, struct bt_model_config *config)
{
    const uint32_t none = 0, one = 1;
    config->n_routed_experts = bt_plan_reader_u32(reader, "n_routed_experts", 0, 65536, &none);
    if (!config->n_routed_experts)
        return;
    uint32_t experts = config->n_routed_experts;
    config->n_shared_experts = bt_plan_reader_u32(reader, "n_shared_experts", 0, 64, &none);
    config->moe_intermediate_size =
        bt_plan_reader_u32(reader, "moe_intermediate_size", 1, 1 << 20, NULL);
    config->route.experts_per_token =
        bt_plan_reader_u32(reader, "num_experts_per_tok", 1, experts, NULL);
    config->first_k_dense_replace =
        bt_plan_reader_u32(reader, "first_k_dense_replace", 0, 4096, &none);
    config->moe_layer_freq = bt_plan_reader_u32(reader, "moe_layer_freq", 1, 4096, &one);
}

/* Only what sizes depend on. */
static void read_sizes(struct bt_plan_reader *reader, struct bt_model_config *config)
{
    const uint32_t none = 0;
    config->vocab_size = bt_plan_reader_u32(reader, "vocab_size", 1, 1 << 24, NULL);
    config->hidden_size = bt_plan_reader_u32(reader, "hidden_size", 1, 1 << 20, NULL);
    config->intermediate_size = bt_plan_reader_u32(reader, "intermediate_size", 1, 1 << 22, NULL);
    config->num_hidden_layers = bt_plan_reader_u32(reader, "num_hidden_layers", 1, 4096, NULL);
    config->num_nextn_predict_layers =
        bt_plan_reader_u32(reader, "num_nextn_predict_layers", 0, 16, &none);
    config->tie_word_embeddings =
        json_is_true(json_object_get(reader->object, "tie_word_embeddings"));
    read_attention(reader, config);
    read_experts(reader, config);
}

/* All three or none. */
static void read_sparse(struct bt_plan_reader *reader, struct bt_plan_model *model)
{
    if (!bt_plan_reader_has(reader, "index_topk"))
        return;
    model->sparse_tokens = bt_plan_reader_u32(reader, "index_topk", 1, 1 << 22, NULL);
    model->indexer_heads = bt_plan_reader_u32(reader, "index_n_heads", 1, 4096, NULL);
    model->indexer_dim = bt_plan_reader_u32(reader, "index_head_dim", 1, 4096, NULL);
}

static void read_weights(struct bt_plan_reader *reader, struct bt_plan_model_file *file)
{
    const json_t *object = json_object_get(reader->object, "quantization_config");
    file->weights = BT_PLAN_WEIGHTS_BF16;
    if (!object || json_is_null(object))
        return;
    const char *method = json_string_value(json_object_get(object, "quant_method"));
    if (!method)
        bt_plan_reader_refuse(reader, "quantization_config", "has no quant_method");
    else if (!strcmp(method, "fp8"))
        file->weights = BT_PLAN_WEIGHTS_FP8;
    else if (!strcmp(method, "baton") || !strcmp(method, "awq") || !strcmp(method, "gptq"))
        file->weights = BT_PLAN_WEIGHTS_W4A8;
    else
        bt_plan_reader_refuse(reader, "quantization_config", "unknown quant_method");
}

static double attention_of_layer(const struct bt_model_config *config,
                                 const struct bt_plan_model *model)
{
    double hidden = config->hidden_size, heads = config->num_attention_heads;
    double qk = (double)config->qk_nope_head_dim + config->qk_rope_head_dim;
    double q_in = config->q_lora_rank ? config->q_lora_rank : hidden;
    double q = q_in * heads * qk + (config->q_lora_rank ? hidden * q_in : 0);
    double kv = hidden * (config->kv_lora_rank + config->qk_rope_head_dim) +
                config->kv_lora_rank * heads * (config->qk_nope_head_dim + config->v_head_dim);
    double indexer = q_in * model->indexer_heads * model->indexer_dim +
                     hidden * (model->indexer_dim + model->indexer_heads);
    return q + kv + heads * config->v_head_dim * hidden + (model->sparse_tokens ? indexer : 0);
}

static void count_parameters(const struct bt_model_config *config, struct bt_plan_model *model)
{
    double hidden = config->hidden_size, layers = config->num_hidden_layers;
    double moe_layers = bt_model_moe_layers(config);
    double expert = 3 * hidden * config->moe_intermediate_size;
    double experts = (double)config->n_routed_experts + config->n_shared_experts;
    double router = hidden * config->n_routed_experts;
    double dense_ffn = (layers - moe_layers) * 3 * hidden * config->intermediate_size;
    double vocabulary = hidden * config->vocab_size;
    double attention = attention_of_layer(config, model);

    model->attention_parameters = layers * attention;
    model->head_parameters = vocabulary;
    model->active_parameters =
        dense_ffn + moe_layers * (bt_plan_experts_of_token(model) * expert + router) + vocabulary;
    model->dense_parameters = model->attention_parameters + dense_ffn + moe_layers * router +
                              vocabulary * (config->tie_word_embeddings ? 1 : 2);
    model->embedding_parameters = config->tie_word_embeddings ? 0 : vocabulary;
    model->moe_parameters = moe_layers * experts * expert;
    model->mtp_parameters = config->num_nextn_predict_layers *
                            (attention + experts * expert + router + 2 * hidden * hidden);
}

static void fill(const struct bt_model_config *config, struct bt_plan_model *model)
{
    model->layers = config->num_hidden_layers;
    model->moe_layers = bt_model_moe_layers(config);
    model->heads = config->num_attention_heads;
    model->nope_dim = config->qk_nope_head_dim;
    model->rope_dim = config->qk_rope_head_dim;
    model->value_dim = config->v_head_dim;
    model->kv_rank = config->kv_lora_rank;
    model->q_rank = config->q_lora_rank;
    model->hidden = config->hidden_size;
    model->moe_intermediate = config->moe_intermediate_size;
    model->routed_experts = model->moe_layers ? config->n_routed_experts : 0;
    model->shared_experts = model->moe_layers ? config->n_shared_experts : 0;
    model->experts_per_token = model->moe_layers ? config->route.experts_per_token : 0;
    model->streams = 1;
    count_parameters(config, model);
}

/* `dir` is empty where only the JSON file can be read. */
static enum bt_status read_model(const char *dir, const char *path, json_t *root,
                                 struct bt_error *error, struct bt_plan_model_file *ret_file)
{
    struct bt_plan_reader reader = {.object = root, .path = path, .error = error};
    struct bt_plan_model_file file = {0};
    struct bt_model_config config = {0};
    struct bt_error refusal = {BT_OK, "not named config.json in a model's directory"};

    file.runs = *dir && bt_model_config_load(dir, &refusal, &config) == BT_OK;
    if (!file.runs) {
        snprintf(file.refusal, sizeof(file.refusal), "%s", refusal.text);
        memset(&config, 0, sizeof(config));
        read_sizes(&reader, &config);
    }
    read_sparse(&reader, &file.model);
    read_weights(&reader, &file);
    if (reader.status != BT_OK)
        return reader.status;
    if (file.model.sparse_tokens && file.runs) {
        file.runs = false;
        snprintf(file.refusal, sizeof(file.refusal), "%.400s: index_topk: sparse attention", path);
    }
    fill(&config, &file.model);
    *ret_file = file;
    return BT_OK;
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && !strcmp(text + length - tail, end);
}

enum bt_status bt_plan_model_load(const char *path, struct bt_error *error,
                                  struct bt_plan_model_file *ret_file)
{
    char file[PATH_MAX], dir[PATH_MAX] = "";
    bool is_file = ends_with(path, ".json");
    int length = snprintf(file, sizeof(file), "%s%s", path, is_file ? "" : "/config.json");
    if (length >= PATH_MAX)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "model: path too long");
    if (!strcmp(file, "config.json"))
        snprintf(dir, sizeof(dir), ".");
    else if (ends_with(file, "/config.json"))
        snprintf(dir, sizeof(dir), "%.*s", (int)(strrchr(file, '/') - file), file);

    json_t *root;
    enum bt_status status = bt_plan_json_load(file, error, &root);
    if (status != BT_OK)
        return status;
    status = read_model(dir, file, root, error, ret_file);
    json_decref(root);
    return status;
}
