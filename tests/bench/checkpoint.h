/*
 * Synthetic checkpoints: real shapes, random weights, the files of a checkpoint but the tokenizer.
 * For benchmarks, which need every byte of a model and no sense in it.
 */
#ifndef BATON_TESTS_BENCH_CHECKPOINT_H
#define BATON_TESTS_BENCH_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"

/* What the weights of the products are stored as; embedding, norms and router stay bf16. */
enum checkpoint_dtype {
    CHECKPOINT_BF16,
    CHECKPOINT_FP8,  /* e4m3 with scales of 128 x 128 blocks; head and kv_b bf16 */
    CHECKPOINT_INT8, /* a scale for each output; kv_b bf16 */
    CHECKPOINT_W4,   /* experts int4 with groups of 128, the rest int8; kv_b bf16 */
};

struct checkpoint_shape {
    const char *name;
    const char *model_type;
    uint32_t layers, dense_layers, hidden, heads, q_lora_rank, kv_lora_rank, nope, rope, v;
    uint32_t intermediate, moe_intermediate, experts, shared_experts, experts_per_token;
    uint32_t groups, groups_per_token, vocab;
    uint32_t max_position_embeddings;
};

/* "lite-slice": DeepSeek-V2-Lite with 6 of its 27 layers. "v3-slice": DeepSeek-V3 with 2 layers
 * (one dense), 32 routed experts, a vocabulary of 16384. "lite": all of V2-Lite. NULL: unknown. */
const struct checkpoint_shape *checkpoint_shape_find(const char *name);

/* Writes config.json and model.safetensors into `dir`, which exists. */
enum bt_status checkpoint_write(const char *dir, const struct checkpoint_shape *shape,
                                enum checkpoint_dtype dtype, uint64_t seed, struct bt_error *error);

/* "bf16", "fp8", "int8", "w4"; false: unknown. */
bool checkpoint_dtype_find(const char *name, enum checkpoint_dtype *ret_dtype);

#endif
