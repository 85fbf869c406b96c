/*
 * The table of kernels: coarse operations on device buffers, ordered by a stream. The forward pass
 * (common/model/forward.c) is written once against it; a backend fills it.
 *
 *     ref           plain C, double accumulation: the oracle
 *     avx2          x86 with AVX2 + FMA
 *     avx512        x86 with AVX-512 F/BW/VL/DQ
 *     avx512_bf16   with AVX512_BF16 and VNNI
 *     amx           with AMX-TILE, AMX-BF16 and AMX-INT8
 *     cuda          GPUs (device.h): activations, routing and weights are in the device's memory,
 *                   sequences, tokens and lists of rows in the host's; calls queue work
 *
 * Arithmetic is a property of the weights. A matrix in BT_LAYOUT_ROWS is multiplied in f32. One in
 * BT_LAYOUT_TILES (see `pack`) is multiplied by units that take 16- or 8-bit inputs: the rows of
 * activations are rounded to bf16 for BT_BF16 and BT_F8_E4M3 weights, and quantised to int8 with a
 * scale of their own (max |x| / 127, symmetric) for BT_I8 and BT_I4; sums are f32 or int32.
 *
 * Determinism, binding for every backend: the bits of an output row depend on that row's inputs
 * alone: not on the number of rows, the rows beside it, the chunk a row came in, the numbers of
 * the pages, or the number of threads. So each output element has one reduction order, fixed by its
 * shape; attention walks absolute 64-token pages in order, split at fixed absolute positions. avx2
 * and avx512 give the same bits as each other.
 *
 * Activations are f32, row-major, rows contiguous. Norms, router and embedding weights are always
 * BT_LAYOUT_ROWS of a float dtype, aligned to their element only. Buffers do not overlap unless
 * said. `rows` may be 0. No operation fails: scratch comes from the stream, sized before.
 */
#ifndef BATON_COMMON_KERNELS_KERNELS_H
#define BATON_COMMON_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/kernels/dtype.h"
#include "common/kernels/page_span.h"
#include "common/kernels/team.h"

#define BT_PAGE_TOKENS 64

/* Inputs of an I8 or I4 matrix at most: 128 * 127 times as many still are an int32. */
#define BT_INT8_MAX_COLS 131072

enum bt_layout {
    BT_LAYOUT_ROWS,  /* [rows][cols] as in the checkpoint */
    BT_LAYOUT_TILES, /* packed by `pack`: common/kernels/tiles.h */
};

/*
 * ROWS of F32, BF16, F16: no scales. ROWS of the others, as in a checkpoint:
 *   F8_E4M3: weight = value * scales[row / 128][col / 128], scales [ceil(rows/128)][ceil(cols/128)]
 *   I8:      weight = value * scales[row]
 *   I4:      weight = value * group_scales[row][col / 128] * scales[row]; two values a byte, the
 * even column in the low four bits, -7 … 7; cols a multiple of 128
 */
struct bt_matrix {
    const void *data; /* NULL: not there */
    uint32_t rows;    /* outputs */
    uint32_t cols;    /* inputs */
    enum bt_dtype dtype;
    enum bt_layout layout;
    const float *scales;
    const uint8_t *group_scales; /* I4; |value * group scale| <= 127 */
};

/* What a matrix is packed for. */
enum bt_use {
    BT_USE_LINEAR, /* linear, mlp, moe_experts */
    BT_USE_KV_B,   /* kv_b of mla_prefill and mla_decode */
};

/* One product of `linear`: out [row][weight->rows]. */
struct bt_linear {
    const struct bt_matrix *weight;
    float *out;
};

struct bt_mlp {
    struct bt_matrix gate, up; /* [intermediate][hidden] */
    struct bt_matrix down;     /* [hidden][intermediate] */
};

/*
 * One layer of a page pool: [page][BT_PAGE_TOKENS][token]. A token of F32 or BF16 is kv_lora_rank
 * elements of the latent, then qk_rope_head_dim of the rotated key. One of F8_E4M3 is kv_lora_rank
 * bytes of the latent, an f32 scale for every 128 of them (the last may have fewer), then the
 * rotated key in bf16.
 */
struct bt_kv_layer {
    void *data;
    enum bt_dtype dtype; /* BT_F32, BT_BF16 or BT_F8_E4M3 */
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
    BT_TOPK_GREEDY,        /* best k of all */
    BT_TOPK_GROUP_LIMITED, /* V2: group score = its best expert */
    BT_TOPK_NOAUX_TC,      /* V3: score + bias chooses; group score = sum of its two best */
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

/* Which experts the rows of a batch chose. A pick is row * experts_per_token + place. */
struct bt_routing {
    uint32_t *experts; /* [row][experts_per_token] best first; ties: the lower index */
    float *weights;    /* likewise, normalised and scaled */
    uint32_t *order;   /* [rows * experts_per_token] picks by ascending expert, then row */
    uint32_t *begin;   /* [experts + 1] where each expert's picks begin in `order` */
};

/* A token whose logit is changed before a draw. */
struct bt_adjust {
    uint32_t token; /* < vocab_size */
    union {
        float bias;
        uint32_t outputs; /* how often it was generated; 0: it is in the prompt alone */
    };
};

/* A generated token that the row's list does not count yet. */
enum bt_newest {
    BT_NEWEST_NONE,
    BT_NEWEST_GIVEN, /* newest_token */
    BT_NEWEST_DRAWN, /* that of row newest_token of the last `draw` of this stream */
};

/* Best tokens at most that `draw` tells of. */
#define BT_DRAW_MAX_TOP 20

/* How a row's token is drawn: common/model/sampler.h, common/model/draws.h. All 0: the best. */
struct bt_draw {
    uint64_t seed;
    uint32_t position; /* tokens generated before this one */
    float temperature; /* 0: the best */
    float top_p, min_p;
    int32_t top_k;     /* <= 0: off */
    uint32_t logprobs; /* 0: not wanted; n: with the n - 1 best tokens, <= BT_DRAW_MAX_TOP + 1 */
    /* Its part of the list of adjusts, in the order in which they apply: to each of bias_count its
     * bias is added, each of masked_count becomes -inf, each of seen_count is penalised by its
     * outputs. A token is in each of the three once at most. */
    uint32_t adjust_begin, bias_count, masked_count, seen_count;
    /* Of those seen, the newest one included: logit > 0 ? logit / repetition : logit * repetition,
     * then less outputs * frequency + presence where there are outputs; f32, each rounded. */
    float repetition, presence, frequency;
    uint32_t newest; /* enum bt_newest */
    uint32_t newest_token;
};

/* What logprobs of a row are made of (bt_sample_logprobs): of its logits before adjusts. */
struct bt_logprobs {
    uint64_t sum;       /* of the weights e^(logit - best), in units of 2^-35; exact */
    float best;         /* -inf: none is more, and the sum is 0 */
    float logit;        /* of the token that was drawn */
    uint32_t top_count; /* min(n - 1, vocab_size) */
    struct {
        uint32_t token;
        float logit;        /* -inf for a NaN */
    } top[BT_DRAW_MAX_TOP]; /* best first, of equals the lower token; the others are undefined */
};

/*
 * A batch whose pass comes next. With padded_rows > rows the pass works on so many rows, those past
 * `rows` being padding: their KV is not written, they have no experts, and what becomes of them
 * elsewhere is any finite number; likewise padded_wanted. A pass of the same padded counts may be
 * captured in a graph and replayed after another `stage`. All arrays are read during the call.
 */
struct bt_stage {
    const uint32_t *tokens; /* [rows] */
    /* [rows] the row of the last `draw` of this stream whose token it is, or BT_TOKEN_GIVEN:
     * tokens[row]. NULL: all are given. */
    const uint32_t *token_from;
    uint32_t rows, padded_rows;
    const struct bt_sequence_rows *sequences; /* covering all rows in order */
    uint32_t sequence_count;
    const uint32_t *wanted; /* [wanted_count] ascending: what gather_rows keeps */
    uint32_t wanted_count, padded_wanted;
    const struct bt_sequence_rows *wanted_sequences; /* covering the wanted rows in order */
    uint32_t wanted_sequence_count;
    const struct bt_draw *draws;     /* [wanted_count], or NULL */
    const struct bt_adjust *adjusts; /* [adjust_count] of all draws */
    uint32_t adjust_count;           /* <= max_adjusts of the stream */
};
#define BT_TOKEN_GIVEN 0xffffffffu

struct bt_stream;

struct bt_kernels {
    const char *name;
    /* Rows for F8_E4M3 weights in TILES are not rounded to bf16 but quantised to e4m3, with a scale
     * (max |x| / 448, 1 when all are 0) for every 128 inputs; weights keep their own scales, which
     * multiply the f32 sum of each 128 inputs. */
    bool f8_inputs;

    /*
     * NULL where nothing is gained: CPUs. Until the next stage, operations that are given these
     * very lists (tokens, sequences, wanted, wanted_sequences, draws: the same pointers) use what
     * was staged of them; any other list is copied in the call.
     */
    void (*stage)(struct bt_stream *stream, const struct bt_stage *stage);

    /*
     * Bytes that `pack` needs for a matrix in ROWS (64-byte aligned). `shape` for BT_USE_KV_B.
     * F32 and F16 are packed as BF16; KV_B of any dtype is.
     */
    size_t (*packed_bytes)(const struct bt_matrix *matrix, enum bt_use use,
                           const struct bt_mla_shape *shape);
    /* Packs into `out`, which *ret_packed then points into: the source is not needed any more. */
    void (*pack)(struct bt_stream *stream, const struct bt_matrix *matrix, enum bt_use use,
                 const struct bt_mla_shape *shape, void *out, struct bt_matrix *ret_packed);

    /* out[row][hidden] = table[tokens[row]]; tokens were checked against table->rows. */
    void (*embed)(struct bt_stream *stream, const struct bt_matrix *table, const uint32_t *tokens,
                  uint32_t rows, float *out);

    /* out = weight * (x * rsqrt(mean(x²) + eps)); out may be x. x rows are `stride` floats apart,
     * out rows `dim`. weight: [1][dim]. */
    void (*rms_norm)(struct bt_stream *stream, const float *x, uint32_t rows, uint32_t dim,
                     uint32_t stride, const struct bt_matrix *weight, float eps, float *out);

    /* x += y, then out = rms_norm(x); the sum is that of f32 addition. Rows contiguous. */
    void (*add_rms_norm)(struct bt_stream *stream, float *x, const float *y, uint32_t rows,
                         uint32_t dim, const struct bt_matrix *weight, float eps, float *out);

    /* For each of `linears`: out[row][n] = sum_k x[row][k] * weight[n][k]. Equal cols. */
    void (*linear)(struct bt_stream *stream, const float *x, uint32_t rows,
                   const struct bt_linear *linears, uint32_t linear_count);

    /*
     * out[row] = down(silu(gate(x)) * up(x)). In tile arithmetic the inner row is rounded (or
     * quantised) like any other input of a product.
     */
    void (*mlp)(struct bt_stream *stream, const float *x, uint32_t rows, const struct bt_mlp *mlp,
                float *out);

    /* x[i] += y[i]. */
    void (*add)(struct bt_stream *stream, float *x, const float *y, size_t count);
    void (*zero)(struct bt_stream *stream, float *x, size_t count);
    /* Row wanted[i] of x [row][dim] to row i, in place; wanted is strictly ascending. */
    void (*gather_rows)(struct bt_stream *stream, float *x, uint32_t dim, const uint32_t *wanted,
                        uint32_t count);

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
     * rounded to the pool's dtype (F8_E4M3: scale max |x| / 448 for every 128, 1 when all are 0),
     * at position start + i of each sequence. What it writes is finite: a NaN becomes 0, a value
     * beyond the largest finite bf16 becomes that, with its sign, in each dtype.
     */
    void (*kv_write)(struct bt_stream *stream, const float *kv_a, const struct bt_matrix *norm,
                     float eps, const struct bt_rope_table *rope,
                     const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                     const struct bt_kv_layer *kv);

    /*
     * Multi-head form of MLA (prefill): keys and values are expanded from the pages by kv_b
     * [heads * (nope + v)][kv_lora_rank] (head h: nope rows, then v rows). q [row][head][nope+rope]
     * rotated, out [row][head][v]. Causal. KV of these rows is in the pages already, and whatever
     * the sequences have in pages is finite, as kv_write leaves it. With kv_b in TILES, queries,
     * expanded keys and values and probabilities are rounded to bf16.
     */
    void (*mla_prefill)(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                        const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                        uint32_t sequence_count, const struct bt_kv_layer *kv, float *out);

    /*
     * Absorbed form of MLA (decode): queries go to the latent space by kv_b's key rows, attention
     * reads latents only, the result comes back by kv_b's value rows. Same arguments; row_count may
     * be > 1, with the same bits as one row at a time. With kv_b in TILES, queries in the latent
     * space, latents, probabilities and results in the latent space are rounded to bf16.
     */
    void (*mla_decode)(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                       const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                       uint32_t sequence_count, const struct bt_kv_layer *kv, float *out);

    /*
     * Scores = x · gate^T in f32, then softmax or sigmoid; choice by method; fills all of
     * `routing`. bias: [1][experts] or data NULL.
     */
    void (*moe_route)(struct bt_stream *stream, const float *x, uint32_t rows,
                      const struct bt_matrix *gate, const struct bt_matrix *bias,
                      const struct bt_route_shape *shape, const struct bt_routing *routing);

    /*
     * For each of the row's experts, in ascending expert order: out[row] = fma(weight, y, out[row])
     * in f32, with y = down(silu(gate(x)) * up(x)); in tile arithmetic y is rounded to bf16 (so
     * that ranks may send it so). An expert whose gate has no data is another rank's: it adds
     * nothing here.
     */
    void (*moe_experts)(struct bt_stream *stream, const float *x, uint32_t rows,
                        const struct bt_route_shape *shape, const struct bt_routing *routing,
                        const struct bt_expert_weights *expert_weights, float *out);

    /*
     * The same experts without the sum: y [picks][hidden], a row for each of routing->order, F32
     * for weights in ROWS and BF16 for those in TILES; adding them up as above has the bits of
     * moe_experts. routing->experts and ->weights are not read, and not all rows need have
     * experts_per_token picks. Rows of y whose expert has no data are left as they are.
     */
    void (*moe_expert_rows)(struct bt_stream *stream, const float *x, uint32_t rows,
                            const struct bt_route_shape *shape, const struct bt_routing *routing,
                            const struct bt_expert_weights *expert_weights, void *y);

    /*
     * NULL on CPUs. tokens[row] = the token that bt_sampler_draw (common/model/sampler.h) draws
     * from the same logits [rows][vocab_size], and logprobs[row] what its logprobs are made of,
     * where the row wants them; other rows are left as they are; NULL: no row does. Logits of
     * tokens that are adjusted may be changed. draws [rows] and adjusts are the host's, staged
     * together or both not; tokens and logprobs the device's. Tokens are also kept by the stream,
     * for token_from and newest.
     */
    void (*draw)(struct bt_stream *stream, float *logits, uint32_t rows, uint32_t vocab_size,
                 const struct bt_draw *draws, const struct bt_adjust *adjusts, uint32_t *tokens,
                 struct bt_logprobs *logprobs);

    /*
     * NULL on CPUs. sums[i] = the hash of kvtransfer/checksum.h, of spans[i].bytes bytes at base +
     * spans[i].offset, seeded with spans[i].seed. All memory is the device's.
     */
    void (*hash_pages)(struct bt_stream *stream, const void *base, const struct bt_page_span *spans,
                       uint32_t count, uint64_t *sums);
};

/*
 * `name`: "auto" (the best this CPU has) or one of the names above. UNSUPPORTED when the CPU or the
 * build lacks it, naming what is missing. The table is static.
 */
enum bt_status bt_kernels_select(const char *name, struct bt_error *error,
                                 const struct bt_kernels **ret_kernels);

/* The names that bt_kernels_select accepts here, "auto" left out, ends with NULL. */
const char *const *bt_kernels_available(void);

/*
 * A stream orders operations and owns scratch memory. On a CPU operations are done on return; they
 * use the threads of `team` (NULL: the caller's alone), which is borrowed and may be shared by
 * streams that are used one at a time. One calling thread at a time.
 */
struct bt_stream_limits {
    uint32_t max_rows; /* of one call */
    uint32_t max_cols; /* widest input of linear and mlp, inner row included */
    /* Of one call of moe_expert_rows, whose rows come from several ranks; 0: max_rows. */
    uint32_t max_expert_rows;
    /* hidden: the row width of moe_experts, exactly; the others are maxima. experts 0: no MoE. */
    uint32_t hidden, moe_intermediate, experts, experts_per_token;
    struct bt_mla_shape mla;
    /* Of one batch on a GPU, page numbers of all its sequences; 0: room is made as it is needed,
     * and nothing can be captured. */
    uint32_t max_page_numbers;
    uint32_t vocab_size;  /* of `draw`; 0: none */
    uint32_t max_adjusts; /* of one draw */
};
enum bt_status bt_stream_create(const struct bt_stream_limits *limits, struct bt_team *team,
                                struct bt_error *error, struct bt_stream **ret_stream);
void bt_stream_destroy(struct bt_stream *stream);

#endif
