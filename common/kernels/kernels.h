/*
 * The table of kernels: coarse operations on device buffers, ordered by a stream. The forward pass
 * (common/model/forward.c) is written once against it; a backend fills it.
 *
 *     ref      plain C, double accumulation: the oracle
 *     avx2     x86 with AVX2 + FMA
 *     avx512   x86 with AVX-512 F/BW/VL
 *
 * Determinism, binding for every backend: the bits of an output row depend on that row's inputs
 * alone: not on the number of rows, the rows beside it, the chunk a row came in, or the numbers of
 * the pages. So each output element has one reduction order, fixed by its shape; attention walks
 * absolute 64-token pages in order. avx2 and avx512 give the same bits as each other.
 *
 * Activations are f32, row-major, rows contiguous. Weights are [out][in] row-major as in the
 * checkpoint, in any bt_dtype, read in place, aligned to their element only. Buffers do not overlap
 * unless said. `rows` may be 0. No operation fails: scratch comes from the stream, sized before.
 */
#ifndef BATON_COMMON_KERNELS_KERNELS_H
#define BATON_COMMON_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/kernels/dtype.h"

#define BT_PAGE_TOKENS 64

struct bt_matrix {
    const void *data; /* [rows][cols]; NULL: not there */
    uint32_t rows;    /* outputs */
    uint32_t cols;    /* inputs */
    enum bt_dtype dtype;
};

/* One layer of a page pool: [page][BT_PAGE_TOKENS][kv_lora_rank + qk_rope_head_dim]. */
struct bt_kv_layer {
    void *data;
    enum bt_dtype dtype; /* BT_F32 or BT_BF16 */
    uint32_t kv_lora_rank;
    uint32_t qk_rope_head_dim;
};

/* Rows of one sequence inside a batch. Row i has position `start + i` and sees KV 0 … start + i. */
struct bt_sequence_rows {
    const uint32_t *pages; /* page numbers, in token order, covering start + row_count tokens */
    uint32_t start;        /* tokens of this sequence before the first row */
    uint32_t first_row;    /* in the batch */
    uint32_t row_count;
};

struct bt_mla_shape {
    uint32_t heads;
    uint32_t qk_nope_head_dim;
    uint32_t qk_rope_head_dim;
    uint32_t v_head_dim;
    uint32_t kv_lora_rank;
    float softmax_scale; /* 1/sqrt(nope + rope), times the YaRN factor */
};

/* Cosine and sine by position, [max_position][qk_rope_head_dim / 2] each, YaRN included. */
struct bt_rope_table {
    const float *cos;
    const float *sin;
    uint32_t half_dim;
    uint32_t max_position;
};

enum bt_scoring { BT_SCORING_SOFTMAX, BT_SCORING_SIGMOID };

enum bt_topk_method {
    BT_TOPK_GREEDY,              /* best k of all */
    BT_TOPK_GROUP_LIMITED,       /* V2: group score = its best expert */
    BT_TOPK_NOAUX_TC,            /* V3: score + bias chooses; group score = sum of its two best */
};

struct bt_route_shape {
    uint32_t experts;
    uint32_t experts_per_token;
    uint32_t groups;           /* n_group; 1: no limit */
    uint32_t groups_per_token; /* topk_group */
    enum bt_scoring scoring;
    enum bt_topk_method method;
    bool normalize; /* norm_topk_prob: divide by (sum + 1e-20) */
    float scale;    /* routed_scaling_factor */
};

/* The expert weights of one layer, arrays of `experts` matrices. */
struct bt_expert_weights {
    const struct bt_matrix *gate; /* [moe_intermediate][hidden] */
    const struct bt_matrix *up;   /* [moe_intermediate][hidden] */
    const struct bt_matrix *down; /* [hidden][moe_intermediate] */
    uint32_t experts;
};

struct bt_stream;

struct bt_kernels {
    const char *name;

    /* out[row][hidden] = table[tokens[row]]; tokens were checked against table->rows. */
    void (*embed)(struct bt_stream *stream, const struct bt_matrix *table, const uint32_t *tokens,
                  uint32_t rows, float *out);

    /* out = weight * (x * rsqrt(mean(x²) + eps)); out may be x. x rows are `stride` floats apart,
     * out rows `dim`. weight: [1][dim]. */
    void (*rms_norm)(struct bt_stream *stream, const float *x, uint32_t rows, uint32_t dim,
                     uint32_t stride, const struct bt_matrix *weight, float eps, float *out);

    /* out[row][n] = sum_k x[row][k] * weight[n][k]. */
    void (*linear)(struct bt_stream *stream, const float *x, uint32_t rows,
                   const struct bt_matrix *weight, float *out);

    /* x[i] += y[i]. */
    void (*add)(struct bt_stream *stream, float *x, const float *y, size_t count);

    /* out[i] = silu(gate[i]) * up[i]; out may be gate. */
    void (*swiglu)(struct bt_stream *stream, const float *gate, const float *up, size_t count,
                   float *out);

    /*
     * Rotates the last `qk_rope_head_dim` of each head of q in place, q [row][head][nope + rope].
     * Stored pairs are interleaved (2i, 2i+1); the result has the halves one after the other:
     * out[i] = x[2i] cos - x[2i+1] sin, out[i + half] = x[2i+1] cos + x[2i] sin.
     */
    void (*rope_q)(struct bt_stream *stream, float *q, const struct bt_mla_shape *shape,
                   const struct bt_rope_table *rope, const struct bt_sequence_rows *sequences,
                   uint32_t sequence_count);

    /*
     * kv_a [row][kv_lora_rank + rope] -> pages: RMS-normed latent, then rotated k_pe (halves),
     * rounded to the pool's dtype, at position start + i of each sequence.
     */
    void (*kv_write)(struct bt_stream *stream, const float *kv_a, const struct bt_matrix *norm,
                     float eps, const struct bt_rope_table *rope,
                     const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                     const struct bt_kv_layer *kv);

    /*
     * Multi-head form of MLA (prefill): keys and values are expanded from the pages by kv_b
     * [heads * (nope + v)][kv_lora_rank] (head h: nope rows, then v rows). q [row][head][nope+rope]
     * rotated, out [row][head][v]. Causal. KV of these rows is in the pages already.
     */
    void (*mla_prefill)(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                        const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                        uint32_t sequence_count, const struct bt_kv_layer *kv, float *out);

    /*
     * Absorbed form of MLA (decode): queries go to the latent space by kv_b's key rows, attention
     * reads latents only, the result comes back by kv_b's value rows. Same arguments; row_count may
     * be > 1, with the same bits as one row at a time.
     */
    void (*mla_decode)(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                       const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                       uint32_t sequence_count, const struct bt_kv_layer *kv, float *out);

    /*
     * Scores = x · gate^T, then softmax or sigmoid; choice by method; out_experts
     * [row][experts_per_token] in the order of choice (best first; ties: the lower index),
     * out_weights likewise, normalised and scaled. bias: [1][experts] or data NULL.
     */
    void (*moe_route)(struct bt_stream *stream, const float *x, uint32_t rows,
                      const struct bt_matrix *gate, const struct bt_matrix *bias,
                      const struct bt_route_shape *shape, uint32_t *out_experts,
                      float *out_weights);

    /*
     * out[row] += sum over the row's experts, in ascending expert order, of
     * weight * down(silu(gate(x)) * up(x)). Rows are grouped by expert inside. An expert whose gate
     * has no data is another rank's: it adds nothing here.
     */
    void (*moe_experts)(struct bt_stream *stream, const float *x, uint32_t rows,
                        const struct bt_route_shape *shape, const uint32_t *experts,
                        const float *weights, const struct bt_expert_weights *expert_weights,
                        float *out);
};

/*
 * `name`: "auto" (the best this CPU has), "ref", "avx2", "avx512". UNSUPPORTED when the CPU or the
 * build lacks it, naming what is missing. The table is static.
 */
enum bt_status bt_kernels_select(const char *name, struct bt_error *error,
                                 const struct bt_kernels **ret_kernels);

/* The names that bt_kernels_select accepts here, "auto" left out, ends with NULL. */
const char *const *bt_kernels_available(void);

/*
 * A stream orders operations and owns scratch memory. On a CPU operations are done on return. One
 * thread at a time.
 */
struct bt_stream_limits {
    uint32_t max_rows; /* of one call */
    /* hidden: the row width of moe_experts, exactly; the others are maxima. experts 0: no MoE. */
    uint32_t hidden, moe_intermediate, experts, experts_per_token;
    struct bt_mla_shape mla;
};
enum bt_status bt_stream_create(const struct bt_stream_limits *limits, struct bt_error *error,
                                struct bt_stream **ret_stream);
void bt_stream_destroy(struct bt_stream *stream);

#endif
