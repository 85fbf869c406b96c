/*
 * A loaded model: config, weights mapped from the checkpoint, rope tables, kernels. Immutable after
 * loading; any thread.
 */
#ifndef BATON_COMMON_MODEL_MODEL_H
#define BATON_COMMON_MODEL_MODEL_H

#include "common/kernels/kernels.h"
#include "common/kvcache/layout.h"
#include "common/model/config.h"
#include "common/model/safetensors.h"

struct bt_layer_weights {
    struct bt_matrix input_norm, post_attention_norm;
    struct bt_matrix q_a, q_a_norm, q_b; /* with q_lora_rank */
    struct bt_matrix q;                  /* without */
    struct bt_matrix kv_a, kv_a_norm, kv_b, o;
    struct bt_mlp mlp; /* dense layers; the shared experts of MoE layers */
    struct bt_matrix router, router_bias;
    struct bt_expert_weights experts; /* .experts 0: a dense layer */
};

/* The MTP module: layer num_hidden_layers of the checkpoint. */
struct bt_mtp_weights {
    bool present;
    struct bt_matrix embed, enorm, hnorm, eh_proj, head_norm, head;
    struct bt_layer_weights layer;
};

struct bt_model {
    struct bt_model_config config;
    const struct bt_kernels *kernels;
    struct bt_safetensors *checkpoint;
    struct bt_matrix embed, final_norm, lm_head;
    struct bt_layer_weights *layers; /* [num_hidden_layers] */
    struct bt_mtp_weights mtp;
    struct bt_rope_table rope;
    uint64_t hash; /* config values that matter and bt_safetensors_hash */
};

/*
 * Loads and checks every tensor the config asks for: missing, of another shape or dtype, or left
 * over (not recognised) is an error that names file, tensor and fault. `kernels`: see
 * bt_kernels_select.
 */
enum bt_status bt_model_load(const char *model_dir, const char *kernels, struct bt_error *error,
                             struct bt_model **ret_model);
void bt_model_destroy(struct bt_model *model);

/* `dtype` BT_F32 or BT_BF16. `name`: served model name, for messages. */
struct bt_kv_layout bt_model_kv_layout(const struct bt_model *model, enum bt_dtype dtype);
void bt_model_fingerprint(const struct bt_model *model, const char *name, enum bt_dtype dtype,
                          struct bt_fingerprint *ret_fingerprint);

#endif
