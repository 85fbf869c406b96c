#include "common/model/config.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/json_file.h"

#define CONFIG_MAX_BYTES ((size_t)1 << 20)

/* Limits far above any published model, low enough that no product of two overflows 32 bits. */
#define MAX_VOCAB      1000000
#define MAX_HIDDEN     65536
#define MAX_LAYERS     256
#define MAX_HEADS      512
#define MAX_HEAD_DIM   1024
#define MAX_LORA       16384
#define MAX_EXPERTS    4096
#define MAX_POSITIONS  (1 << 22)
#define MAX_ROPE_CELLS (1 << 26) /* positions * qk_rope_head_dim / 2 */

/* One JSON object being read; the first fault sticks and the reads after it do nothing. */
struct reader {
    const json_t *object;
    const char *path;
    const char *prefix; /* "" or "rope_scaling." */
    struct bt_error *error;
    enum bt_status status;
};

static void refuse(struct reader *reader, enum bt_status status, const char *key, const char *what)
{
    if (reader->status != BT_OK)
        return;
    const json_t *value = json_object_get(reader->object, key);
    char *text =
        value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII) : NULL;
    reader->status = bt_error_set(reader->error, status, "%s: %s%s = %.80s: %s", reader->path,
                                  reader->prefix, key, text ? text : "(not there)", what);
    free(text);
}

static void invalid(struct reader *reader, const char *key, const char *what)
{
    refuse(reader, BT_ERR_INVALID_ARGUMENT, key, what);
}

/* NULL where the key is absent or null. */
static const json_t *get(const struct reader *reader, const char *key)
{
    const json_t *value = json_object_get(reader->object, key);
    return json_is_null(value) ? NULL : value;
}

static const json_t *require(struct reader *reader, const char *key)
{
    const json_t *value = get(reader, key);
    if (!value)
        invalid(reader, key, "required");
    return value;
}

static uint32_t integer_in(struct reader *reader, const char *key, const json_t *value,
                           uint32_t min, uint32_t max)
{
    if (!json_is_integer(value)) {
        invalid(reader, key, "not an integer");
        return 0;
    }
    json_int_t number = json_integer_value(value);
    if (number < (json_int_t)min || number > (json_int_t)max) {
        char what[64];
        snprintf(what, sizeof(what), "not in %u … %u", min, max);
        invalid(reader, key, what);
        return 0;
    }
    return (uint32_t)number;
}

static uint32_t required_u32(struct reader *reader, const char *key, uint32_t min, uint32_t max)
{
    const json_t *value = require(reader, key);
    return value ? integer_in(reader, key, value, min, max) : 0;
}

static uint32_t optional_u32(struct reader *reader, const char *key, uint32_t min, uint32_t max,
                             uint32_t otherwise)
{
    const json_t *value = get(reader, key);
    return value ? integer_in(reader, key, value, min, max) : otherwise;
}

/* (min, max] */
static double optional_real(struct reader *reader, const char *key, double above, double max,
                            double otherwise)
{
    const json_t *value = get(reader, key);
    if (!value)
        return otherwise;
    double number = json_number_value(value);
    if (!json_is_number(value) || !isfinite(number) || number <= above || number > max) {
        char what[64];
        snprintf(what, sizeof(what), "not a number above %g, up to %g", above, max);
        invalid(reader, key, what);
        return otherwise;
    }
    return number;
}

static bool optional_bool(struct reader *reader, const char *key, bool otherwise)
{
    const json_t *value = get(reader, key);
    if (!value)
        return otherwise;
    if (!json_is_boolean(value))
        invalid(reader, key, "not true or false");
    return json_is_true(value);
}

/* NULL where absent and not required, or on a fault. */
static const char *optional_string(struct reader *reader, const char *key)
{
    const json_t *value = get(reader, key);
    if (value && !json_is_string(value))
        invalid(reader, key, "not a string");
    return json_string_value(value);
}

/* Index of the string in `choices` (ends with NULL). */
static int optional_choice(struct reader *reader, const char *key, const char *const *choices,
                           int otherwise)
{
    const char *text = optional_string(reader, key);
    if (!text)
        return otherwise;
    for (int i = 0; choices[i]; i++)
        if (!strcmp(choices[i], text))
            return i;
    refuse(reader, BT_ERR_UNSUPPORTED, key, "not offered");
    return otherwise;
}

static bool is_v3(const struct bt_model_config *config)
{
    return !strcmp(config->model_type, "deepseek_v3");
}

static void read_model_type(struct reader *reader, struct bt_model_config *config)
{
    static const char *const types[] = {"deepseek_v2", "deepseek_v3", NULL};
    if (!require(reader, "model_type"))
        return;
    int type = optional_choice(reader, "model_type", types, 0);
    snprintf(config->model_type, sizeof(config->model_type), "%s", types[type]);
}

/* What would change the results and is not computed here. */
static void refuse_unsupported(struct reader *reader)
{
    static const char *const activations[] = {"silu", NULL};
    if (optional_bool(reader, "attention_bias", false))
        refuse(reader, BT_ERR_UNSUPPORTED, "attention_bias", "not offered");
    if (optional_bool(reader, "mlp_bias", false))
        refuse(reader, BT_ERR_UNSUPPORTED, "mlp_bias", "not offered");
    if (!optional_bool(reader, "rope_interleave", true))
        refuse(reader, BT_ERR_UNSUPPORTED, "rope_interleave", "only interleaved is offered");
    optional_choice(reader, "hidden_act", activations, 0);
}

static void read_fp8(struct reader *quantization)
{
    static const char *const formats[] = {"e4m3", NULL};
    static const char *const schemes[] = {"dynamic", NULL};
    const json_t *size = require(quantization, "weight_block_size");
    optional_choice(quantization, "fmt", formats, 0);
    optional_choice(quantization, "activation_scheme", schemes, 0);
    if (size && (json_array_size(size) != 2 || json_integer_value(json_array_get(size, 0)) != 128 ||
                 json_integer_value(json_array_get(size, 1)) != 128))
        refuse(quantization, BT_ERR_UNSUPPORTED, "weight_block_size", "only [128, 128] is offered");
}

/* Which tensors are quantised, and how, their own dtypes say. */
static void read_quantization(struct reader *reader, struct bt_model_config *config)
{
    static const char *const methods[] = {"fp8", "baton", NULL};
    const json_t *object = get(reader, "quantization_config");
    if (!object || reader->status != BT_OK)
        return;
    if (!json_is_object(object)) {
        invalid(reader, "quantization_config", "not an object");
        return;
    }
    struct reader quantization = *reader;
    quantization.object = object;
    quantization.prefix = "quantization_config.";
    if (require(&quantization, "quant_method") &&
        optional_choice(&quantization, "quant_method", methods, 0) == 1) {
        config->quantization = BT_QUANTIZATION_BATON;
        if (optional_u32(&quantization, "group_size", 1, 1024, 128) != 128)
            refuse(&quantization, BT_ERR_UNSUPPORTED, "group_size", "only 128 is offered");
    } else {
        config->quantization = BT_QUANTIZATION_FP8;
        read_fp8(&quantization);
    }
    reader->status = quantization.status;
}

/* Newer writers say "dtype". Only advice for the choice of arithmetic: other names are fine. */
static void read_torch_dtype(struct reader *reader, struct bt_model_config *config)
{
    const char *name =
        optional_string(reader, get(reader, "torch_dtype") ? "torch_dtype" : "dtype");
    config->is_bfloat16 = name && !strcmp(name, "bfloat16");
}

static void read_sizes(struct reader *reader, struct bt_model_config *config)
{
    config->vocab_size = required_u32(reader, "vocab_size", 1, MAX_VOCAB);
    config->hidden_size = required_u32(reader, "hidden_size", 1, MAX_HIDDEN);
    config->intermediate_size = required_u32(reader, "intermediate_size", 1, 4 * MAX_HIDDEN);
    config->num_hidden_layers = required_u32(reader, "num_hidden_layers", 1, MAX_LAYERS);
    config->max_position_embeddings =
        required_u32(reader, "max_position_embeddings", 1, MAX_POSITIONS);
    config->num_nextn_predict_layers = optional_u32(reader, "num_nextn_predict_layers", 0, 16, 0);
    config->rms_norm_eps = (float)optional_real(reader, "rms_norm_eps", 0, 1, 1e-6);
    config->tie_word_embeddings = optional_bool(reader, "tie_word_embeddings", false);
}

static void read_attention(struct reader *reader, struct bt_model_config *config)
{
    config->num_attention_heads = required_u32(reader, "num_attention_heads", 1, MAX_HEADS);
    config->q_lora_rank = optional_u32(reader, "q_lora_rank", 0, MAX_LORA, 0);
    config->kv_lora_rank = required_u32(reader, "kv_lora_rank", 1, MAX_LORA);
    config->qk_nope_head_dim = required_u32(reader, "qk_nope_head_dim", 1, MAX_HEAD_DIM);
    config->qk_rope_head_dim = required_u32(reader, "qk_rope_head_dim", 2, MAX_HEAD_DIM);
    config->v_head_dim = required_u32(reader, "v_head_dim", 1, MAX_HEAD_DIM);
    if (config->qk_rope_head_dim % 2)
        invalid(reader, "qk_rope_head_dim", "not even");
    if ((uint64_t)config->max_position_embeddings * config->qk_rope_head_dim / 2 > MAX_ROPE_CELLS)
        invalid(reader, "max_position_embeddings", "rope table too large");
    uint32_t heads = config->num_attention_heads;
    if (optional_u32(reader, "num_key_value_heads", 1, MAX_HEADS, heads) != heads)
        invalid(reader, "num_key_value_heads", "differs from num_attention_heads");
    uint32_t qk = config->qk_nope_head_dim + config->qk_rope_head_dim;
    if (optional_u32(reader, "qk_head_dim", 1, 2 * MAX_HEAD_DIM, qk) != qk)
        invalid(reader, "qk_head_dim", "is not qk_nope_head_dim + qk_rope_head_dim");
}

/* `absent` where the file has no such key, `null` where it says null: V3's class tells them apart.
 */
static uint32_t defaulted_u32(struct reader *reader, const char *key, uint32_t min, uint32_t max,
                              uint32_t absent, uint32_t null)
{
    if (!json_object_get(reader->object, key))
        return absent;
    return optional_u32(reader, key, min, max, null);
}

/* Groups limit the choice for the two methods that have them; greedy ignores n_group. */
static void read_groups(struct reader *reader, bool v3, struct bt_route_shape *route)
{
    uint32_t groups = defaulted_u32(reader, "n_group", 1, MAX_EXPERTS, v3 ? 8 : 1, 1);
    uint32_t kept = defaulted_u32(reader, "topk_group", 1, MAX_EXPERTS, v3 ? 4 : 0, 0);
    route->groups = route->groups_per_token = 1;
    if (reader->status != BT_OK || route->method == BT_TOPK_GREEDY || groups == 1)
        return;
    if (kept == 0)
        invalid(reader, "topk_group", "required with n_group > 1");
    else if (kept > groups)
        invalid(reader, "topk_group", "above n_group");
    else if (route->experts % groups)
        invalid(reader, "n_group", "does not divide n_routed_experts");
    else if (route->method == BT_TOPK_NOAUX_TC && route->experts / groups < 2)
        invalid(reader, "n_group", "noaux_tc needs two experts in a group");
    else if (route->experts_per_token > kept * (route->experts / groups))
        invalid(reader, "num_experts_per_tok", "more than the experts of topk_group groups");
    route->groups = groups;
    route->groups_per_token = kept;
}

/*
 * V3's weights are normalised, then scaled. V2's are one or the other, and a single expert is not
 * normalised; no published checkpoint of V2 asks for it.
 */
static void read_weighting(struct reader *reader, bool v3, struct bt_route_shape *route)
{
    route->normalize = optional_bool(reader, "norm_topk_prob", v3);
    route->scale = (float)optional_real(reader, "routed_scaling_factor", 0, 1e4, v3 ? 2.5 : 1.0);
    if (v3)
        return;
    route->normalize = route->normalize && route->experts_per_token > 1;
    if (route->normalize)
        route->scale = 1;
}

/* "gready" is the word of V2's own class for it. */
static enum bt_topk_method read_method(struct reader *reader, bool v3)
{
    static const char *const names[] = {"greedy", "gready", "group_limited_greedy", "noaux_tc",
                                        NULL};
    static const enum bt_topk_method methods[] = {BT_TOPK_GREEDY, BT_TOPK_GREEDY,
                                                  BT_TOPK_GROUP_LIMITED, BT_TOPK_NOAUX_TC};
    return methods[optional_choice(reader, "topk_method", names, v3 ? 3 : 0)];
}

static void read_moe(struct reader *reader, struct bt_model_config *config)
{
    static const char *const scorings[] = {
        [BT_SCORING_SOFTMAX] = "softmax", [BT_SCORING_SIGMOID] = "sigmoid", NULL};
    struct bt_route_shape *route = &config->route;
    bool v3 = is_v3(config);

    config->n_routed_experts = optional_u32(reader, "n_routed_experts", 0, MAX_EXPERTS, 0);
    config->first_k_dense_replace =
        defaulted_u32(reader, "first_k_dense_replace", 0, MAX_LAYERS, v3 ? 3 : 0, 0);
    config->moe_layer_freq = optional_u32(reader, "moe_layer_freq", 1, MAX_LAYERS, 1);
    if (config->n_routed_experts == 0)
        return;
    config->n_shared_experts = defaulted_u32(reader, "n_shared_experts", 0, 64, v3 ? 1 : 0, 0);
    config->moe_intermediate_size = required_u32(reader, "moe_intermediate_size", 1, MAX_HIDDEN);
    route->experts = config->n_routed_experts;
    route->experts_per_token = required_u32(reader, "num_experts_per_tok", 1, 64);
    if (route->experts_per_token > route->experts)
        invalid(reader, "num_experts_per_tok", "above n_routed_experts");
    route->scoring = (enum bt_scoring)optional_choice(reader, "scoring_func", scorings,
                                                      v3 ? BT_SCORING_SIGMOID : BT_SCORING_SOFTMAX);
    route->method = read_method(reader, v3);
    read_weighting(reader, v3, route);
    read_groups(reader, v3, route);
}

/* rope_scaling of published checkpoints, or rope_parameters of newer transformers; or NULL. */
static const json_t *rope_object(struct reader *reader, const char **ret_key)
{
    static const char *const keys[] = {"rope_scaling", "rope_parameters"};
    for (int i = 0; i < 2; i++) {
        const json_t *value = get(reader, keys[i]);
        if (!value)
            continue;
        if (!json_is_object(value))
            invalid(reader, keys[i], "not an object");
        *ret_key = keys[i];
        return value;
    }
    return NULL;
}

static void read_yarn_values(struct reader *rope, struct bt_yarn *yarn)
{
    if (!require(rope, "factor"))
        return;
    yarn->enabled = true;
    yarn->factor = optional_real(rope, "factor", 0, 1e6, 1);
    if (yarn->factor < 1)
        invalid(rope, "factor", "below 1");
    yarn->beta_fast = optional_real(rope, "beta_fast", 0, 1e6, 32);
    yarn->beta_slow = optional_real(rope, "beta_slow", 0, 1e6, 1);
    if (yarn->beta_slow > yarn->beta_fast)
        invalid(rope, "beta_slow", "above beta_fast");
    /* 0 is a value of both, so the open bound is just below it. */
    yarn->mscale = optional_real(rope, "mscale", -1e-300, 100, 1);
    yarn->mscale_all_dim = optional_real(rope, "mscale_all_dim", -1e-300, 100, 0);
    yarn->original_max_position_embeddings =
        required_u32(rope, "original_max_position_embeddings", 1, MAX_POSITIONS);
    if (get(rope, "attention_factor"))
        refuse(rope, BT_ERR_UNSUPPORTED, "attention_factor", "not offered: use mscale");
    if (!optional_bool(rope, "truncate", true))
        refuse(rope, BT_ERR_UNSUPPORTED, "truncate", "not offered");
}

static void read_rope(struct reader *reader, struct bt_model_config *config)
{
    static const char *const types[] = {"default", "yarn", NULL};
    const char *key = "";
    const json_t *object = rope_object(reader, &key);
    struct reader rope = *reader;
    char prefix[32];
    snprintf(prefix, sizeof(prefix), "%s.", key);
    rope.object = object;
    rope.prefix = prefix;

    double theta = object ? optional_real(&rope, "rope_theta", 1, 1e15, 10000) : 10000;
    config->rope_theta = optional_real(reader, "rope_theta", 1, 1e15, theta);
    if (object && reader->status == BT_OK) {
        const char *name = get(&rope, "rope_type") ? "rope_type" : "type";
        int type = require(&rope, name) ? optional_choice(&rope, name, types, 0) : 0;
        if (get(&rope, "type") && optional_choice(&rope, "type", types, 0) != type)
            invalid(&rope, "type", "differs from rope_type");
        if (type == 1 && rope.status == BT_OK)
            read_yarn_values(&rope, &config->yarn);
    }
    if (reader->status == BT_OK)
        reader->status = rope.status;
}

static void add_eos(struct reader *reader, const json_t *value, struct bt_model_config *config)
{
    uint32_t token = integer_in(reader, "eos_token_id", value, 0, config->vocab_size - 1);
    for (uint32_t i = 0; i < config->eos_token_count; i++)
        if (config->eos_token_ids[i] == token)
            return;
    if (config->eos_token_count == BT_MAX_EOS_TOKENS) {
        invalid(reader, "eos_token_id", "too many tokens");
        return;
    }
    config->eos_token_ids[config->eos_token_count++] = token;
}

/* An integer or a list of them; added to what is there. */
static void read_eos(struct reader *reader, struct bt_model_config *config)
{
    const json_t *value = get(reader, "eos_token_id");
    if (reader->status != BT_OK || !value)
        return;
    if (!json_is_array(value)) {
        add_eos(reader, value, config);
        return;
    }
    for (size_t i = 0; i < json_array_size(value) && reader->status == BT_OK; i++)
        add_eos(reader, json_array_get(value, i), config);
}

static void read_special_tokens(struct reader *reader, struct bt_model_config *config)
{
    config->bos_token_id = -1;
    if (reader->status == BT_OK && get(reader, "bos_token_id"))
        config->bos_token_id = optional_u32(reader, "bos_token_id", 0, config->vocab_size - 1, 0);
    read_eos(reader, config);
}

static enum bt_status read_config(const char *path, struct bt_error *error,
                                  struct bt_model_config *config)
{
    json_t *root;
    enum bt_status status = bt_json_object_load(path, CONFIG_MAX_BYTES, error, &root);
    if (status != BT_OK)
        return status;
    struct reader reader = {.object = root, .path = path, .prefix = "", .error = error};
    read_model_type(&reader, config);
    refuse_unsupported(&reader);
    read_quantization(&reader, config);
    read_torch_dtype(&reader, config);
    read_sizes(&reader, config);
    read_attention(&reader, config);
    if (reader.status == BT_OK)
        read_moe(&reader, config);
    read_rope(&reader, config);
    read_special_tokens(&reader, config);
    json_decref(root);
    return reader.status;
}

/* Absent is fine: older checkpoints have none. */
static enum bt_status read_generation_config(const char *path, struct bt_error *error,
                                             struct bt_model_config *config)
{
    json_t *root;
    enum bt_status status = bt_json_object_load(path, CONFIG_MAX_BYTES, error, &root);
    if (status == BT_ERR_NOT_FOUND)
        return BT_OK;
    if (status != BT_OK)
        return status;
    struct reader reader = {.object = root, .path = path, .prefix = "", .error = error};
    read_eos(&reader, config);
    json_decref(root);
    return reader.status;
}

enum bt_status bt_model_config_load(const char *model_dir, struct bt_error *error,
                                    struct bt_model_config *ret_config)
{
    char path[PATH_MAX], generation[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s/config.json", model_dir) >= PATH_MAX ||
        snprintf(generation, sizeof(generation), "%s/generation_config.json", model_dir) >=
            PATH_MAX)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "model directory: path too long");
    struct bt_model_config config = {0};
    enum bt_status status = read_config(path, error, &config);
    if (status == BT_OK)
        status = read_generation_config(generation, error, &config);
    if (status == BT_OK)
        *ret_config = config;
    return status;
}

bool bt_model_layer_is_moe(const struct bt_model_config *config, uint32_t layer)
{
    return config->n_routed_experts > 0 && layer >= config->first_k_dense_replace &&
           layer % config->moe_layer_freq == 0;
}

uint32_t bt_model_moe_layers(const struct bt_model_config *config)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++)
        count += bt_model_layer_is_moe(config, i);
    return count;
}
