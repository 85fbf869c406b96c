/*
 * The four-resource model: what a step of prefill or decode needs of compute, memory, memory
 * traffic and communication. Pure arithmetic on doubles: no memory, any thread.
 *
 * Everything is in single units, operations and bytes; a multiply and an add are two operations.
 * The published tables divide by G = 1024^3 or by 10^9, not always as they say: that is for who
 * prints. The numbers in brackets are those of the published formulas, with these symbols:
 *
 *   b  sequences of a step (`batch`)        L, L_moe  layers, those with experts
 *   s  tokens of each in the step           n_h       heads
 *   s' tokens attended to (`attended`)      d_h, d_R  head without rope, rope
 *   k  experts of a token, shared included  d_c, d_qc compression of KV and of queries
 *   A  parameters that a token meets outside of attention
 *   W_dense, W_moe  parameters of experts (shared ones included) and of all else
 */
#ifndef BATON_COMMON_PLANNER_RESOURCES_H
#define BATON_COMMON_PLANNER_RESOURCES_H

#include <stdbool.h>
#include <stdint.h>

#define BT_PLAN_G 1073741824.0 /* 1024^3 */

/* The sizes of a model that resources depend on; plan_model.h fills it from a config.json. */
struct bt_plan_model {
    uint32_t layers, moe_layers;                   /* L, L_moe */
    uint32_t heads, nope_dim, rope_dim, value_dim; /* n_h, d_h, d_R; value_dim is d_h in V2, V3 */
    uint32_t kv_rank, q_rank;                      /* d_c, d_qc; q_rank 0: queries not compressed */
    uint32_t hidden, moe_intermediate;             /* d_model, d_moe */
    uint32_t routed_experts, shared_experts, experts_per_token; /* the last: routed ones */
    double active_parameters;                                   /* A; the head included */
    double attention_parameters; /* projections of all layers; 0: left out, as the tables do */
    double head_parameters;      /* of A, needed for a prompt's last token only; 0: for each */
    double dense_parameters;     /* W_dense */
    double
        embedding_parameters; /* of W_dense, looked up by rows, so that a step reads none of it */
    double moe_parameters;    /* W_moe */
    double mtp_parameters;    /* of the MTP modules, in none of these; 0: there is none */
    uint32_t sparse_tokens, indexer_heads, indexer_dim; /* DSA: k_dsa, H_I, d_I; 0: dense */
    uint32_t streams;                                   /* mHC: n; 1: a plain residual */
};

/* Peaks of a card are kept for each of these. */
enum bt_plan_number {
    BT_PLAN_BF16,
    BT_PLAN_FP8,
    BT_PLAN_INT8,
    BT_PLAN_FP4,
    BT_PLAN_NUMBERS,
};

/* Bytes of one value. */
struct bt_plan_dtypes {
    double dense_bytes, expert_bytes; /* weights; 1 is fp8, 0.5 is int4 */
    double kv_latent_bytes, kv_rope_bytes;
    double kv_scale_bytes; /* of a token in a layer, in all */
    double activation_bytes;
    double network_bytes;        /* rows to experts and sums */
    enum bt_plan_number compute; /* of the products */
    bool bf16_attention;         /* scores and sums over values are bf16, whatever the others are */
};

/* How the cards of one instance share a phase. */
struct bt_plan_layout {
    uint32_t tp; /* cards that share attention's heads */
    uint32_t dp; /* attention groups with sequences of their own; tp * dp cards in all */
    uint32_t ep; /* cards that share the experts; 1 where there are none */
};

/* One step of one attention group (its TP cards together). */
struct bt_plan_step {
    double batch;    /* b */
    double tokens;   /* s: of the prompt, or 1 */
    double attended; /* s', on average over the tokens */
};

/* Multi-head: keys and values unpacked from the latent, fewest operations where many tokens share
 * them. Absorbed: attention over the latent, fewest bytes. */
enum bt_plan_form { BT_PLAN_MULTI_HEAD, BT_PLAN_ABSORBED };

/* Whole prompts of `length` (s' = s/2), and one token of decode at a context of `length`. */
struct bt_plan_step bt_plan_prefill_step(double batch, double length);
struct bt_plan_step bt_plan_decode_step(double batch, double length);

uint32_t bt_plan_layout_cards(const struct bt_plan_layout *layout);
/* k, shared included; 0 where there are no experts. */
double bt_plan_experts_of_token(const struct bt_plan_model *model);

/* ---- compute: operations of one attention group's step, all cards together */

/* (1) 2 A b s */
double bt_plan_operations_mlp(const struct bt_plan_model *model, const struct bt_plan_step *step);
/* (2) L 2 b s' n_h (d_h + d_R + d_v) s, with d_v = d_h; (3) L 2 b s' n_h (2 d_c + d_R) s */
double bt_plan_operations_attention(const struct bt_plan_model *model, enum bt_plan_form form,
                                    const struct bt_plan_step *step);
/* 2 b s of the projections' parameters. The published formulas leave them out. */
double bt_plan_operations_projections(const struct bt_plan_model *model,
                                      const struct bt_plan_step *step);
/* DSA, one layer: 2 b H_I d_I s keys; the published form has keys = s. */
double bt_plan_operations_indexer(const struct bt_plan_model *model, double batch, double tokens,
                                  double keys);
/* DSA, one layer, as published: 2 b d_model s k_dsa */
double bt_plan_operations_selected(const struct bt_plan_model *model, double batch, double tokens);
/* mHC, one token at one residual connection: 2 n d (n^2 + 3n + 3) + 2 (n^2 + 2n) + I n^2 */
double bt_plan_operations_streams(const struct bt_plan_model *model, uint32_t iterations);

/* ---- memory: bytes on one card */

/* (6) W_dense/TP + W_moe/EP. `redundant` copies of routed experts, over all EP cards, add to it. */
double bt_plan_weight_memory(const struct bt_plan_model *model, const struct bt_plan_dtypes *dtypes,
                             const struct bt_plan_layout *layout, uint32_t redundant);
/* (d_c + d_R) values, scales, and DSA's key: of one token in one layer. */
double bt_plan_kv_token_bytes(const struct bt_plan_model *model,
                              const struct bt_plan_dtypes *dtypes);
/* (7) L b (s_in + s_out) of these; the same on every TP card. */
double bt_plan_kv_memory(const struct bt_plan_model *model, const struct bt_plan_dtypes *dtypes,
                         double sequences, double tokens);
/*
 * (9) and (10): values of one layer, its peak. `score_share`: how much of the scores (n_h s' s, for
 * scores and probabilities) is written to memory: 1 in the published tables, 0 with fused
 * attention. The multi-head form counts s^2, as published; a step that is not a whole prompt is
 * counted by its attended tokens, 2 s' instead of s.
 */
double bt_plan_activation_values(const struct bt_plan_model *model, enum bt_plan_form form,
                                 const struct bt_plan_step *step, double score_share);

/* ---- memory traffic: bytes of one card in a step */

/*
 * k' of (13), in experts of each layer that a card reads.
 * UNEVEN: all k on one card. AVERAGE: shared + k/EP, each token's experts spread evenly; right for
 * one token. EXPECTED: different experts that `tokens` tokens of the EP group hit, on average, of
 * one card's E/EP: shared + E/EP (1 - (1 - k/E)^tokens); AVERAGE is its first term.
 */
enum bt_plan_routing {
    BT_PLAN_ROUTING_EXPECTED,
    BT_PLAN_ROUTING_AVERAGE,
    BT_PLAN_ROUTING_UNEVEN,
    BT_PLAN_ROUTINGS,
};
double bt_plan_experts_read(const struct bt_plan_model *model, const struct bt_plan_layout *layout,
                            enum bt_plan_routing routing, double tokens);
/* (13), (14): W_dense/TP + W_moe/(E + shared) k', the embedding left out of W_dense */
double bt_plan_weight_traffic(const struct bt_plan_model *model,
                              const struct bt_plan_dtypes *dtypes,
                              const struct bt_plan_layout *layout, double experts_read);
/* (15) L b s' (d_c + d_R); with DSA L b (s' d_I + min(s', k_dsa) (d_c + d_R)) */
double bt_plan_kv_traffic(const struct bt_plan_model *model, const struct bt_plan_dtypes *dtypes,
                          const struct bt_plan_step *step);
/* DSA, as published: (s d_I + k_dsa d_c) / (s d_c), of bytes read for a decoded token. */
double bt_plan_sparse_traffic_share(const struct bt_plan_model *model, double context);
/* (16)-(25): 2 L of a layer's activations, written and read once. */
double bt_plan_activation_traffic(const struct bt_plan_model *model,
                                  const struct bt_plan_dtypes *dtypes, enum bt_plan_form form,
                                  const struct bt_plan_step *step, double score_share);
/* mHC, values of one token: the residual's state, 2 n d; and reading and writing it at one
 * connection, (8n + 2) d + 2 n^2 + 4n against 3 d of a plain one. */
double bt_plan_stream_state_values(const struct bt_plan_model *model);
double bt_plan_stream_traffic_values(const struct bt_plan_model *model);

/* ---- communication: bytes that one attention group's step sends */

/* (27) L_moe 2 b s d_model (k - 1): dispatch and combine, no expert on the token's own card; 0
 * where EP is 1. k - 1 is the routed ones where there is one shared expert. */
double bt_plan_expert_bytes(const struct bt_plan_model *model, const struct bt_plan_dtypes *dtypes,
                            const struct bt_plan_layout *layout, const struct bt_plan_step *step);
/* (28) L 2 b s d_model (TP - 1)/TP: reduce-scatter and all-gather. */
double bt_plan_tensor_bytes(const struct bt_plan_model *model, const struct bt_plan_dtypes *dtypes,
                            const struct bt_plan_layout *layout, const struct bt_plan_step *step);
/* Shares of these that leave the node. Experts: any card may be meant, the own one too: 1 -
 * node/EP. Tensor: the own card is left out already: (TP - node)/(TP - 1). */
double bt_plan_expert_crossing(uint32_t ep, uint32_t node_cards);
double bt_plan_tensor_crossing(uint32_t tp, uint32_t node_cards);
/* L s (d_c + d_R): the KV of a prompt, from prefill to decode. */
double bt_plan_handoff_bytes(const struct bt_plan_model *model, const struct bt_plan_dtypes *dtypes,
                             double tokens);

#endif
