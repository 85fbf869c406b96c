/* See mla_decode.h, of whose kernels this is the one for sm_90. */
#ifndef BATON_COMMON_KERNELS_CUDA_MLA_DECODE_WGMMA_H
#define BATON_COMMON_KERNELS_CUDA_MLA_DECODE_WGMMA_H

#include "common/kernels/cuda/mla_decode.h"
#include "common/kernels/cuda/tensor_map.h"

#ifdef __cplusplus
extern "C" {
#endif

/* kv_lora_rank 512, qk_rope_head_dim 64, tile arithmetic, pool BF16 or F8_E4M3. `map`: of the
 * layer's tokens, boxes of 64 of them; of BF16 alone, else all zeros. */
void bt_cuda_launch_mla_decode_wgmma(const struct bt_cuda_mla_decode *call, const CUtensorMap *map,
                                     uint32_t blocks, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
