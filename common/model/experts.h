/*
 * Which experts a model holds, and how that changes while it is used: what is missing is loaded
 * into fresh memory beside the running model, put in between two steps, and what is not needed any
 * more is let go of. Layers are those of placements: the MoE layers, counted from 0.
 */
#ifndef BATON_COMMON_MODEL_EXPERTS_H
#define BATON_COMMON_MODEL_EXPERTS_H

#include <stdatomic.h>

#include "common/model/model.h"

/* here [n_routed_experts]: those that `placement` (NULL: all) gives to the model's ep rank. */
void bt_model_experts_here(const struct bt_model *model, const struct bt_placement *placement,
                           uint32_t moe_index, bool *ret_here);

/* Experts of one layer on their way into a model. */
struct bt_expert_change;

/*
 * Loads what the model lacks of a layer by `to`, with the calling thread alone: any thread, while
 * another runs the model, but one change at a time. NO_MEMORY (also where the weights would exceed
 * the model's memory_bytes), or what bt_model_load says of the tensors; CANCELLED: *cancel (may be
 * NULL) became true, which is looked at before every tensor. The model is as before then.
 */
enum bt_status bt_model_load_experts(const struct bt_model *model, uint32_t moe_index,
                                     const struct bt_placement *to, const atomic_bool *cancel,
                                     struct bt_error *error, struct bt_expert_change **ret_change);
/*
 * The model holds those of `to` from now on; the memory of the others is freed. Between two steps
 * of everything that runs the model, by the thread that does; bt_forward_set_placement belongs to
 * it. Frees the change.
 */
void bt_model_switch_experts(struct bt_model *model, struct bt_expert_change *change);
/* One that is not wanted after all; NULL is fine. */
void bt_expert_change_destroy(struct bt_expert_change *change);

#endif
