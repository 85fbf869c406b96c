/*
 * Multi-head attention of a prefill on a GPU: what mla_prefill_ops.c tells its kernels. Pointers
 * are the device's.
 *
 * The context is worked on in rounds. A round brings a range of tokens of one or several sequences
 * together, expands their keys and values, and takes all rows over them; between two rounds of a
 * sequence the sums of its rows are kept as they are. So scratch memory does not grow with the
 * context. Ranges begin at multiples of a page's tokens, and a row goes through absolute pages in
 * order: its bits do not depend on where rounds begin.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_MLA_PREFILL_H
#define BATON_COMMON_KERNELS_CUDA_MLA_PREFILL_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/kernels/cuda/rows.h"
#include "common/kernels/dtype.h"

#define BT_CUDA_PREFILL_RANGES 32
/* Rows of a block of each kernel. */
#define BT_CUDA_PREFILL_ROWS     128
#define BT_CUDA_PREFILL_F32_ROWS 4

/* Of one sequence in a round. */
struct bt_cuda_prefill_range {
    uint32_t sequence; /* among those with rows: bt_cuda_rows */
    uint32_t start, first_row, row_count;
    uint32_t begin, end;  /* tokens; begin is a multiple of BT_PAGE_TOKENS */
    uint32_t at;          /* of its first token in the round, likewise */
    uint32_t first_block; /* of rows, in the grid */
};

struct bt_cuda_prefill_round {
    struct bt_cuda_prefill_range ranges[BT_CUDA_PREFILL_RANGES];
    uint32_t count;
    uint32_t tokens; /* ranges padded to whole pages, one after the other */
    uint32_t blocks; /* of rows */
};

/* From pages to rows that products read: latents [token][latent_pitch] and keys [token][key_pitch],
 * both BF16, or both F32; zeros behind a sequence's last token and in the columns of padding. */
struct bt_cuda_gather_latents {
    const unsigned char *pool;
    enum bt_dtype dtype, out_dtype;
    uint32_t lora, rope, token_bytes, rope_offset;
    void *latents, *keys;
    uint32_t latent_pitch, key_pitch;
};

/* Attention of a round. Element types: BF16, or F32 all. */
struct bt_cuda_prefill {
    const float *q;       /* [row][head][nope + rope] */
    float *out;           /* [row][head][v]; between two rounds sums that are not divided yet */
    const void *expanded; /* [token][head][nope_rows + v_rows]: keys, then values */
    const void *keys;     /* [token][key_pitch]: their rotated part */
    float *max;           /* [row][head] between two rounds, of scores before the scale */
    float *sum;           /* [row][head][4] likewise: what a lane has summed up */
    uint32_t heads, nope, rope, v;
    uint32_t nope_rows, v_rows, key_pitch;
    float scale;
};

#ifdef __cplusplus
extern "C" {
#endif

void bt_cuda_launch_gather_latents(const struct bt_cuda_gather_latents *call,
                                   const struct bt_cuda_prefill_round *round,
                                   const struct bt_cuda_rows *rows, cudaStream_t stream);

/* Whether bt_cuda_launch_mla_prefill does this shape. */
bool bt_cuda_mla_prefill_has(uint32_t nope, uint32_t rope, uint32_t v);
void bt_cuda_launch_mla_prefill(const struct bt_cuda_prefill *call,
                                const struct bt_cuda_prefill_round *round, cudaStream_t stream);
/* Likewise, on sm_90 alone. */
bool bt_cuda_mla_prefill_wgmma_has(uint32_t nope, uint32_t rope, uint32_t v);
void bt_cuda_launch_mla_prefill_wgmma(const struct bt_cuda_prefill *call,
                                      const struct bt_cuda_prefill_round *round,
                                      cudaStream_t stream);
/* Any shape. rounds: keys and values are BF16, queries and weights of the softmax are rounded to
 * it; else F32. */
void bt_cuda_launch_mla_prefill_f32(const struct bt_cuda_prefill *call,
                                    const struct bt_cuda_prefill_round *round, bool rounds,
                                    cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
