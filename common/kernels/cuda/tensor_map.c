#include "common/kernels/cuda/tensor_map.h"

#include <string.h>

typedef CUresult encode_fn(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *base,
                           const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                           const cuuint32_t *element_strides, CUtensorMapInterleave interleave,
                           CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                           CUtensorMapFloatOOBfill fill);

/* The driver's function, so that the module needs no libcuda to be loaded. */
static cudaError_t find_encode(encode_fn **ret_encode)
{
    static void *found; /* atomic */
    enum cudaDriverEntryPointQueryResult result;
    void *symbol = __atomic_load_n(&found, __ATOMIC_RELAXED);
    if (!symbol) {
        cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol,
                                                              12000, cudaEnableDefault, &result);
        if (status != cudaSuccess)
            return status;
        if (result != cudaDriverEntryPointSuccess || !symbol)
            return cudaErrorSymbolNotFound;
        __atomic_store_n(&found, symbol, __ATOMIC_RELAXED);
    }
    memcpy(ret_encode, &symbol, sizeof(symbol));
    return cudaSuccess;
}

cudaError_t bt_cuda_tensor_map(const void *base, uint32_t columns, uint32_t box_rows,
                               CUtensorMap *ret_map)
{
    const cuuint64_t dims[2] = {columns, (cuuint64_t)1 << 31}, strides[1] = {2 * columns};
    const cuuint32_t box[2] = {64, box_rows}, steps[2] = {1, 1};
    encode_fn *encode;
    cudaError_t status = find_encode(&encode);
    if (status != cudaSuccess)
        return status;
    if (encode(ret_map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)(uintptr_t)base, dims, strides,
               box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
        return cudaErrorInvalidValue;
    return cudaSuccess;
}
