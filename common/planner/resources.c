#include "common/planner/resources.h"

#include <math.h>

struct bt_plan_step bt_plan_prefill_step(double batch, double length)
{
    return (struct bt_plan_step){batch, length, length / 2};
}

struct bt_plan_step bt_plan_decode_step(double batch, double length)
{
    return (struct bt_plan_step){batch, 1, length};
}

uint32_t bt_plan_layout_cards(const struct bt_plan_layout *layout)
{
    return layout->tp * layout->dp;
}

double bt_plan_experts_of_token(const struct bt_plan_model *model)
{
    return model->routed_experts ? model->experts_per_token + model->shared_experts : 0;
}

double bt_plan_operations_mlp(const struct bt_plan_model *model, const struct bt_plan_step *step)
{
    return 2 * model->active_parameters * step->batch * step->tokens;
}

double bt_plan_operations_attention(const struct bt_plan_model *model, enum bt_plan_form form,
                                    const struct bt_plan_step *step)
{
    double width = form == BT_PLAN_MULTI_HEAD
                       ? (double)model->nope_dim + model->rope_dim + model->value_dim
                       : 2.0 * model->kv_rank + model->rope_dim;
    return model->layers * 2.0 * step->batch * step->attended * model->heads * width * step->tokens;
}

double bt_plan_operations_projections(const struct bt_plan_model *model,
                                      const struct bt_plan_step *step)
{
    return 2 * model->attention_parameters * step->batch * step->tokens;
}

double bt_plan_operations_indexer(const struct bt_plan_model *model, double batch, double tokens,
                                  double keys)
{
    return 2 * batch * model->indexer_heads * model->indexer_dim * tokens * keys;
}

double bt_plan_operations_selected(const struct bt_plan_model *model, double batch, double tokens)
{
    return 2 * batch * model->hidden * tokens * model->sparse_tokens;
}

double bt_plan_operations_streams(const struct bt_plan_model *model, uint32_t iterations)
{
    double n = model->streams;
    return 2 * n * model->hidden * (n * n + 3 * n + 3) + 2 * (n * n + 2 * n) + iterations * n * n;
}

double bt_plan_weight_memory(const struct bt_plan_model *model, const struct bt_plan_dtypes *dtypes,
                             const struct bt_plan_layout *layout, uint32_t redundant)
{
    double copies = (double)model->routed_experts + model->shared_experts;
    double more = copies > 0 ? 1 + redundant / copies : 1;
    return model->dense_parameters * dtypes->dense_bytes / layout->tp +
           model->moe_parameters * dtypes->expert_bytes * more / layout->ep;
}

double bt_plan_kv_token_bytes(const struct bt_plan_model *model,
                              const struct bt_plan_dtypes *dtypes)
{
    double key = model->sparse_tokens ? model->indexer_dim * dtypes->kv_latent_bytes : 0;
    return model->kv_rank * dtypes->kv_latent_bytes + model->rope_dim * dtypes->kv_rope_bytes +
           dtypes->kv_scale_bytes + key;
}

double bt_plan_kv_memory(const struct bt_plan_model *model, const struct bt_plan_dtypes *dtypes,
                         double sequences, double tokens)
{
    return model->layers * sequences * tokens * bt_plan_kv_token_bytes(model, dtypes);
}

double bt_plan_activation_values(const struct bt_plan_model *model, enum bt_plan_form form,
                                 const struct bt_plan_step *step, double score_share)
{
    double rows = step->batch * step->tokens, hidden = model->hidden;
    double attended = form == BT_PLAN_MULTI_HEAD ? 2 * step->attended : step->attended;
    double scores = 2 * rows * model->heads * attended * score_share;
    double ffn =
        2 * rows * bt_plan_experts_of_token(model) * model->moe_intermediate + rows * hidden;
    double linear = form == BT_PLAN_MULTI_HEAD
                        ? 5 * rows * hidden
                        : rows * (model->q_rank + model->kv_rank + model->rope_dim + hidden);
    return linear + scores + ffn;
}

double bt_plan_experts_read(const struct bt_plan_model *model, const struct bt_plan_layout *layout,
                            enum bt_plan_routing routing, double tokens)
{
    double experts = model->routed_experts, chosen = model->experts_per_token;
    if (experts <= 0)
        return 0;
    switch (routing) {
    case BT_PLAN_ROUTING_UNEVEN:
        return model->shared_experts + chosen;
    case BT_PLAN_ROUTING_AVERAGE:
        return model->shared_experts + chosen / layout->ep;
    default:
        return model->shared_experts +
               experts / layout->ep * (1 - pow(1 - chosen / experts, tokens));
    }
}

double bt_plan_weight_traffic(const struct bt_plan_model *model,
                              const struct bt_plan_dtypes *dtypes,
                              const struct bt_plan_layout *layout, double experts_read)
{
    double experts = (double)model->routed_experts + model->shared_experts;
    double each = experts > 0 ? model->moe_parameters / experts : 0;
    return (model->dense_parameters - model->embedding_parameters) * dtypes->dense_bytes /
               layout->tp +
           each * experts_read * dtypes->expert_bytes;
}

double bt_plan_kv_traffic(const struct bt_plan_model *model, const struct bt_plan_dtypes *dtypes,
                          const struct bt_plan_step *step)
{
    double token = bt_plan_kv_token_bytes(model, dtypes), read = step->attended * token;
    if (model->sparse_tokens) {
        double key = model->indexer_dim * dtypes->kv_latent_bytes;
        read = step->attended * key + fmin(step->attended, model->sparse_tokens) * (token - key);
    }
    return model->layers * step->batch * read;
}

double bt_plan_sparse_traffic_share(const struct bt_plan_model *model, double context)
{
    double latent = model->kv_rank;
    return (context * model->indexer_dim + model->sparse_tokens * latent) / (context * latent);
}

double bt_plan_activation_traffic(const struct bt_plan_model *model,
                                  const struct bt_plan_dtypes *dtypes, enum bt_plan_form form,
                                  const struct bt_plan_step *step, double score_share)
{
    return 2.0 * model->layers * dtypes->activation_bytes *
           bt_plan_activation_values(model, form, step, score_share);
}

double bt_plan_stream_state_values(const struct bt_plan_model *model)
{
    return 2.0 * model->streams * model->hidden;
}

double bt_plan_stream_traffic_values(const struct bt_plan_model *model)
{
    double n = model->streams;
    return (8 * n + 2) * model->hidden + 2 * n * n + 4 * n;
}

double bt_plan_expert_bytes(const struct bt_plan_model *model, const struct bt_plan_dtypes *dtypes,
                            const struct bt_plan_layout *layout, const struct bt_plan_step *step)
{
    if (layout->ep <= 1)
        return 0;
    return model->moe_layers * 2.0 * step->batch * step->tokens * model->hidden *
           model->experts_per_token * dtypes->network_bytes;
}

double bt_plan_tensor_bytes(const struct bt_plan_model *model, const struct bt_plan_dtypes *dtypes,
                            const struct bt_plan_layout *layout, const struct bt_plan_step *step)
{
    double tp = layout->tp;
    return model->layers * 2.0 * step->batch * step->tokens * model->hidden *
           dtypes->network_bytes * (tp - 1) / tp;
}

double bt_plan_expert_crossing(uint32_t ep, uint32_t node_cards)
{
    return ep <= node_cards ? 0 : 1 - (double)node_cards / ep;
}

double bt_plan_tensor_crossing(uint32_t tp, uint32_t node_cards)
{
    return tp <= node_cards ? 0 : (double)(tp - node_cards) / (tp - 1);
}

double bt_plan_handoff_bytes(const struct bt_plan_model *model, const struct bt_plan_dtypes *dtypes,
                             double tokens)
{
    return model->layers * tokens * bt_plan_kv_token_bytes(model, dtypes);
}
