/*
 * config.json of a DeepSeek checkpoint (model types deepseek_v2 and deepseek_v3), validated.
 * Every value that a tensor shape, a table or a kernel depends on is checked here, with the key
 * and the value in the message; what the forward pass does not offer (attention_bias, another
 * activation, another rope scaling, another quantization) is refused here, not ignored. Absent and
 * null keys take the defaults of the model type's own configuration class; where that class tells
 * them apart (n_group, topk_group, n_shared_experts, first_k_dense_replace), null means none.
 *
 * Where the code published with the checkpoints and later ports differ, this follows the former.
 */
#ifndef BATON_COMMON_MODEL_CONFIG_H
#define BATON_COMMON_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/kernels/kernels.h"

#define BT_MAX_EOS_TOKENS 8

/* Of q_a_layernorm and kv_a_layernorm, whatever rms_norm_eps is: their classes are made without. */
#define BT_LATENT_NORM_EPS 1e-6f

struct bt_yarn {
    bool enabled;
    double factor, beta_fast, beta_slow, mscale, mscale_all_dim;
    uint32_t original_max_position_embeddings;
};

/* What the weights of the products may be, next to floats: see README.md. */
enum bt_quantization {
    BT_QUANTIZATION_NONE,
    BT_QUANTIZATION_FP8,   /* e4m3 with scales of blocks of 128 x 128 */
    BT_QUANTIZATION_BATON, /* int8 and int4, as `batonctl quantize` writes them */
};

struct bt_model_config {
    char model_type[32];
    enum bt_quantization quantization;
    bool is_bfloat16; /* torch_dtype */
    uint32_t vocab_size, hidden_size, intermediate_size, num_hidden_layers;
    uint32_t num_attention_heads, q_lora_rank /* 0: none */, kv_lora_rank;
    uint32_t qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
    uint32_t max_position_embeddings;
    uint32_t first_k_dense_replace, moe_layer_freq, moe_intermediate_size;
    uint32_t n_routed_experts /* 0: no MoE layer at all */, n_shared_experts;
    struct bt_route_shape route;
    uint32_t num_nextn_predict_layers;
    float rms_norm_eps; /* of the norms of width hidden_size */
    double rope_theta;
    struct bt_yarn yarn;
    bool tie_word_embeddings;
    int64_t bos_token_id; /* -1: none */
    uint32_t eos_token_ids[BT_MAX_EOS_TOKENS];
    uint32_t eos_token_count;
};

/* Reads `model_dir`/config.json, and eos ids from generation_config.json where it is there. */
enum bt_status bt_model_config_load(const char *model_dir, struct bt_error *error,
                                    struct bt_model_config *ret_config);

bool bt_model_layer_is_moe(const struct bt_model_config *config, uint32_t layer);
/* How many of them, the MTP module's left out. */
uint32_t bt_model_moe_layers(const struct bt_model_config *config);
struct bt_mla_shape bt_model_mla_shape(const struct bt_model_config *config);

/* Fills [positions][qk_rope_head_dim/2] cosines and sines, YaRN and its mscale included. */
void bt_model_rope_fill(const struct bt_model_config *config, uint32_t positions, float *ret_cos,
                        float *ret_sin);

#endif
