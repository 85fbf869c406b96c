/*
 * A loaded model, or one rank's part of it: config, weights, rope tables, kernels. Immutable after
 * loading (but see experts.h); any thread.
 *
 * Weights stay mapped from the checkpoint where the kernels take them as they are; what is packed
 * or dequantised lies in one block of huge pages, near to the team's cpus, and its source in the
 * file is let go of, so that a model needs its weights once. On a device with memory of its own
 * all of them lie there, but the MTP module's.
 */
#ifndef BATON_COMMON_MODEL_MODEL_H
#define BATON_COMMON_MODEL_MODEL_H

#include "common/kernels/device.h"
#include "common/kvcache/layout.h"
#include "common/model/config.h"
#include "common/model/safetensors.h"
#include "common/parallel/placement.h"

/*
 * What products are computed in (--dtype). KV and logits of the two differ, so that workers of one
 * cluster must have the same.
 */
enum bt_model_dtype {
    /* bfloat16 where the checkpoint is bfloat16 or quantised, and has BT_MODEL_SMALL_BYTES or more;
     * float32 else: exact arithmetic costs a small model nothing. */
    BT_MODEL_AUTO,
    /* Weights in rows as in the file, f32 arithmetic; quantised ones are dequantised to f32: the
     * exact model of what was quantised, at four to eight times the memory. */
    BT_MODEL_FLOAT32,
    /* Weights packed in tiles, each in the dtype that it has in the file (F32 and F16 as BF16):
     * the arithmetic of BT_LAYOUT_TILES. */
    BT_MODEL_BFLOAT16,
};

#define BT_MODEL_SMALL_BYTES ((uint64_t)256 << 20)

/* "auto", "float32", "bfloat16". */
const char *bt_model_dtype_name(enum bt_model_dtype dtype);
/* The names in the order of the values, ends with NULL. */
extern const char *const bt_model_dtype_names[];

struct bt_layer_weights {
    struct bt_matrix input_norm, post_attention_norm;
    struct bt_matrix q_a, q_a_norm, q_b; /* with q_lora_rank */
    struct bt_matrix q;                  /* without */
    struct bt_matrix kv_a, kv_a_norm, kv_b, o;
    struct bt_mlp mlp; /* dense layers; the shared experts of MoE layers */
    struct bt_matrix router, router_bias;
    /* .experts 0: a dense layer. An expert of another rank has no data, but its shape, and the
     * dtype that it has in the file. */
    struct bt_expert_weights experts;
    uint32_t moe_index; /* of a MoE layer: how many are before it; the layer of placements */
};

/* The MTP module: layer num_hidden_layers of the checkpoint. As in the file: nothing runs it. */
struct bt_mtp_weights {
    bool present;
    struct bt_matrix embed, enorm, hnorm, eh_proj, head_norm, head;
    struct bt_layer_weights layer;
};

/* Packed and dequantised weights. */
struct bt_weight_memory {
    void *data; /* NULL: none */
    size_t bytes;
};

/* Memory of experts that can be let go of: of those that came later (experts.h), and on a device
 * with memory of its own of each one, where there is a placement. */
struct bt_expert_memory {
    struct bt_weight_memory memory;
    uint32_t moe_index;
    struct bt_expert_memory *next;
};

/*
 * What of the model a rank holds. Attention heads tp_rank * heads / tp_size … of q or q_b, of kv_b
 * and of o's inputs; the experts that a placement gives to ep_rank; all of the rest.
 */
struct bt_shard {
    uint32_t tp_rank, tp_size; /* 0, 1: all heads */
    uint32_t ep_rank;
};

struct bt_model {
    char *dir;
    struct bt_model_config config;
    struct bt_shard shard;
    struct bt_mla_shape mla;          /* of this rank's heads */
    struct bt_device *device;         /* where the weights are and the kernels run */
    const struct bt_kernels *kernels; /* the device's */
    struct bt_team *team;             /* may be NULL */
    enum bt_model_dtype dtype;        /* not AUTO */
    uint32_t max_tokens;              /* of a sequence */
    struct bt_safetensors *checkpoint;
    struct bt_weight_memory memory;
    uint64_t memory_limit;                  /* as in the options */
    uint64_t let_go_bytes;                  /* of `memory`: experts that went */
    struct bt_expert_memory *expert_memory; /* list */
    struct bt_matrix embed, final_norm, lm_head;
    struct bt_layer_weights *layers; /* [num_hidden_layers] */
    struct bt_mtp_weights mtp;
    struct bt_rope_table rope; /* max_tokens positions */
    uint64_t hash;             /* config values that matter and bt_safetensors_hash */
};

struct bt_model_options {
    const char *dir;
    struct bt_device
        *device;         /* borrowed as long as the model lives; NULL: the CPU, with `kernels` */
    const char *kernels; /* see bt_kernels_select; NULL: auto; not with a device */
    enum bt_model_dtype dtype;
    uint32_t max_tokens; /* longest sequence; 0, or more than config.json's: as config.json says */
    /* That weights may take beside the file, experts that come later (experts.h) included; 0: what
     * is free here, or on the device. */
    uint64_t memory_bytes;
    struct bt_team *team; /* borrowed as long as the model lives; NULL: the caller's thread alone */
    uint32_t tp_rank, tp_size; /* tp_size 0: 1 */
    /* Layers: the MoE layers. Read while loading only. NULL: all experts; ep_rank is not used. */
    const struct bt_placement *placement;
    uint32_t ep_rank;
};

/*
 * Loads and checks every tensor the config asks for: missing, of another shape or dtype, or left
 * over (not recognised) is an error that names file, tensor and fault. NO_MEMORY with both sizes
 * where the weights would not fit. Logs progress and speed. Of a rank's part only that is read and
 * needs memory; heads that the tp ranks don't divide, or weights whose parts would cut a block of
 * scales, are refused by name and sizes.
 */
enum bt_status bt_model_load(const struct bt_model_options *options, struct bt_error *error,
                             struct bt_model **ret_model);
void bt_model_destroy(struct bt_model *model);

/* INVALID_ARGUMENT where `placement` is not one of this model, or has no such ep rank. */
enum bt_status bt_model_check_placement(const struct bt_model *model,
                                        const struct bt_placement *placement,
                                        struct bt_error *error);

/* Of fingerprints: the dtype's name, or "bfloat16+fp8" where rows are quantised for f8 weights,
 * with
 * "_own" where no library multiplies them (bt_device_ops.f8_is_own). */
const char *bt_model_arithmetic(const struct bt_model *model);

/* Of --kv-cache-dtype: "f32", "bf16", "fp8"; "auto" is bf16 with bfloat16 arithmetic, else f32. */
enum bt_dtype bt_model_kv_dtype(const struct bt_model *model, const char *name);
/* The names, ends with NULL. */
extern const char *const bt_kv_dtype_names[];

/* `dtype` BT_F32, BT_BF16 or BT_F8_E4M3. `name`: served model name, for messages. */
struct bt_kv_layout bt_model_kv_layout(const struct bt_model *model, enum bt_dtype dtype);
/* The same for all parts of a model: ranks of any tp and ep may exchange KV. */
void bt_model_fingerprint(const struct bt_model *model, const char *name, enum bt_dtype dtype,
                          struct bt_fingerprint *ret_fingerprint);

#endif
