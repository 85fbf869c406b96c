/*
 * The tensors of a checkpoint, checked, as matrices of a model: those that fall to its rank.
 * Inside common/model only.
 */
#ifndef BATON_COMMON_MODEL_LOADER_H
#define BATON_COMMON_MODEL_LOADER_H

#include <stdatomic.h>

#include "common/model/model.h"

/* All of them, into a model whose config, checkpoint, kernels, team and shard are there. */
enum bt_status bt_load_tensors(struct bt_model *model, const struct bt_model_options *options,
                               struct bt_error *error);

/*
 * Experts of one MoE layer, those with here[expert]: matrices [3][n_routed_experts] as in struct
 * bt_expert_weights (gate, up, down), without data where they are elsewhere. What is packed lies in
 * *ret_blocks, limit_bytes at most (0: what is free). By the calling thread alone, whatever else
 * the model does. CANCELLED: *cancel, which may be NULL, became true.
 */
enum bt_status bt_load_experts(const struct bt_model *model, uint32_t layer, const bool *here,
                               uint64_t limit_bytes, const atomic_bool *cancel,
                               struct bt_error *error, struct bt_matrix *ret_matrices,
                               struct bt_expert_memory **ret_blocks);

#endif
