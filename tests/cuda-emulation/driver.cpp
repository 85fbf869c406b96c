/* cuTensorMapEncodeTiled for maps of two dimensions, with what the real one refuses. */
#include <cstring>

#include <cuda.h>

#include "tests/cuda-emulation/grid.h"
#include "tests/cuda-emulation/runtime.h"

using emulation::TensorMap;

CUresult emulation_tensor_map(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                              void *base, const cuuint64_t *dims, const cuuint64_t *strides,
                              const cuuint32_t *box, const cuuint32_t *element_strides,
                              CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                              CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill);

static uint32_t element_bytes(CUtensorMapDataType type)
{
    switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
        return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
        return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
        return 4;
    default:
        return 0;
    }
}

/* Bytes that a row of the box may have at most. */
static uint32_t swizzle_span(CUtensorMapSwizzle swizzle)
{
    switch (swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_NONE:
        return UINT32_MAX;
    case CU_TENSOR_MAP_SWIZZLE_32B:
        return 32;
    case CU_TENSOR_MAP_SWIZZLE_64B:
        return 64;
    case CU_TENSOR_MAP_SWIZZLE_128B:
        return 128;
    default:
        return 0;
    }
}

CUresult emulation_tensor_map(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                              void *base, const cuuint64_t *dims, const cuuint64_t *strides,
                              const cuuint32_t *box, const cuuint32_t *element_strides,
                              CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                              CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill)
{
    const uint64_t largest = UINT64_C(1) << 32;
    uint32_t bytes = element_bytes(type);
    (void)promotion;
    if (emulation::arch() < 90 || rank != 2 || bytes == 0 ||
        interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!map || (uintptr_t)map % 64 != 0 || !base || (uintptr_t)base % 16 != 0 ||
        strides[0] % 16 != 0 || strides[0] >= UINT64_C(1) << 40)
        return CUDA_ERROR_INVALID_VALUE;
    for (int i = 0; i < 2; i++)
        if (dims[i] == 0 || dims[i] > largest || box[i] == 0 || box[i] > 256 ||
            element_strides[i] != 1)
            return CUDA_ERROR_INVALID_VALUE;
    if (box[0] * bytes % 16 != 0 || box[0] * bytes > swizzle_span(swizzle))
        return CUDA_ERROR_INVALID_VALUE;
    TensorMap encoded = {};
    encoded.magic = TensorMap::kMagic;
    encoded.base = base;
    encoded.pitch = strides[0];
    encoded.element_bytes = bytes;
    encoded.swizzle = (uint32_t)swizzle;
    for (int i = 0; i < 2; i++) {
        encoded.size[i] = dims[i];
        encoded.box[i] = box[i];
    }
    memset(map, 0, sizeof(*map));
    memcpy(map, &encoded, sizeof(encoded));
    return CUDA_SUCCESS;
}
