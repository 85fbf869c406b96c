/* Tokens that are not known on the host yet (bt_stage, token_from). Pointers are the device's. */
#ifndef BATON_COMMON_KERNELS_CUDA_RESOLVE_TOKENS_H
#define BATON_COMMON_KERNELS_CUDA_RESOLVE_TOKENS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* out[i] = from[i] is BT_TOKEN_GIVEN ? tokens[i] : drawn[from[i]]. */
void bt_cuda_launch_resolve_tokens(const uint32_t *tokens, const uint32_t *from,
                                   const uint32_t *drawn, uint32_t rows, uint32_t *out,
                                   cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
