/*
 * BT_LAYOUT_TILES on a GPU: weights in the order in which this backend reads them. Host code; pure
 * functions of shapes, and the conversion on the host, which pack.c does in chunks, with several
 * threads, into pinned memory that is copied to the device.
 *
 * A packed matrix is one block of memory, 256-byte aligned: panels of BT_CUDA_PANEL (64) outputs,
 * one after the other, the last one filled up with zeros; then scales; then group scales, each
 * begun at a multiple of 256. Where they begin is a function of rows, cols and dtype alone, so that
 * the address of the data tells all.
 *
 *     BT_USE_LINEAR
 *         BF16     [output][pitch] bf16, row-major; pitch: inputs padded with zeros to 64
 *         F8_E4M3  [output][pitch] bytes, pitch: to 128; scales [ceil(rows / 128)][blocks of 128
 *                  inputs, padded to 4], as cuBLASLt wants them of 128 x 128 blocks
 *         I8       [output][pitch] bytes, pitch: to 128; scales [outputs padded to 64]
 *         I4       [panel][group of 128 inputs][8 outputs][512 bytes]: the 16 bytes of lane l are
 *                  what it multiplies of output l / 4 of the eight: word w has inputs
 *                  32 w + 4 (l % 4) + i in the low four bits of byte i, those 16 further in the
 *                  high ones, each 8 more than it means; scales as I8; group_scales
 *                  [panel][group][64]
 *     BT_USE_KV_B  BF16, [head][keys, then values][pitch]: rows of kv_lora_rank padded with zeros
 *                  to 64; nope key rows padded with rows of zeros to a multiple of 8, then v value
 *                  rows likewise. With bt_cuda_product, for each head:
 *                      q in latent space = q_nope * keys       n = kv_lora_rank, k = nope, not
 * k-major keys of tokens    = latents * keys^T    n = nope, k = kv_lora_rank, k-major values =
 * latents * values^T  n = v,    k = kv_lora_rank, k-major
 *
 * Padding is there to be multiplied: inputs beyond the last are zeros on both sides.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_WEIGHTS_H
#define BATON_COMMON_KERNELS_CUDA_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

#define BT_CUDA_PANEL 64
#define BT_CUDA_SCALE_BLOCK                                                                        \
    128 /* inputs, and outputs, of one scale of F8_E4M3; inputs of a group */

#ifndef __cplusplus

#include "common/kernels/kernels.h"

/* All that is to know of a packed matrix; bytes. */
struct bt_cuda_layout {
    enum bt_dtype dtype; /* as it is stored: BF16 for F32 and F16, and for KV_B */
    uint32_t pitch;      /* elements of an output's row, padding included */
    uint32_t chunks;     /* panels of LINEAR, heads of KV_B: what is packed at once */
    size_t chunk_bytes;  /* each chunk is contiguous */
    size_t scales_offset, scales_bytes;
    size_t group_scales_offset, group_scales_bytes;
    size_t bytes; /* of all, a multiple of 256 */
};
struct bt_cuda_layout bt_cuda_layout_of(const struct bt_matrix *matrix, enum bt_use use,
                                        const struct bt_mla_shape *shape);

/* Chunks `first` … first + count - 1 of a matrix in ROWS (the host's), to `out` (the host's),
 * which belongs at first * chunk_bytes. Reads and writes nothing else: any threads, any order. */
void bt_cuda_pack_chunks(const struct bt_matrix *matrix, enum bt_use use,
                         const struct bt_mla_shape *shape, uint32_t first, uint32_t count,
                         void *out);
/* All that comes after the chunks, bytes - scales_offset, which belongs at scales_offset; nothing
 * where scales_offset is bytes. */
void bt_cuda_pack_scales(const struct bt_matrix *matrix, enum bt_use use,
                         const struct bt_mla_shape *shape, void *out);
/* The packed matrix at this address. */
struct bt_matrix bt_cuda_packed_at(const struct bt_matrix *matrix, enum bt_use use,
                                   const struct bt_mla_shape *shape, void *data);

/* The operands of a KV_B matrix: of head h, both `distance` elements times h further. */
struct bt_cuda_kv_b {
    const uint16_t *keys, *values; /* [nope_rows][pitch], [v_rows][pitch] of head 0 */
    size_t distance;
    uint32_t nope_rows, v_rows; /* with padding */
    uint32_t pitch;
};
struct bt_cuda_kv_b bt_cuda_kv_b_of(const struct bt_matrix *kv_b, const struct bt_mla_shape *shape);

#endif

#endif
