/* Internal to this backend: see kv_write.cu. Pointers are the device's. */
#ifndef BATON_COMMON_KERNELS_CUDA_KV_WRITE_H
#define BATON_COMMON_KERNELS_CUDA_KV_WRITE_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "common/kernels/cuda/rows.h"
#include "common/kernels/dtype.h"

/* One call of kernels.h, kv_write. */
struct bt_cuda_kv_write {
    const float *kv_a;        /* [rows][lora + rope] */
    const void *norm;         /* [lora] */
    enum bt_dtype norm_dtype; /* a float dtype */
    float eps;
    const float *cosines, *sines; /* [position][rope / 2] */
    uint32_t lora, rope;
    unsigned char *pool; /* [page][BT_PAGE_TOKENS][token_bytes] */
    enum bt_dtype dtype;
    uint32_t token_bytes, rope_offset; /* of the key in a token */
};

#ifdef __cplusplus
extern "C" {
#endif

void bt_cuda_launch_kv_write(const struct bt_cuda_kv_write *call, const struct bt_cuda_rows *rows,
                             cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
