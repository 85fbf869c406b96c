#include "common/parallel/rows_cuda.h"

#include <cuda_runtime.h>

#define SCALED  128
#define THREADS 256

__device__ static uint16_t to_bf16(float x)
{
    uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

__device__ static float from_bf16(uint16_t x)
{
    return __uint_as_float((uint32_t)x << 16);
}

__device__ static uint8_t to_e4m3(float value)
{
    uint32_t bits = __float_as_uint(value), sign = bits >> 24 & 0x80;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return (uint8_t)(sign | 0x7f);
    if (bits < 0x3c800000u)
        return (uint8_t)(sign |
                         (__float_as_uint(__fadd_rn(__uint_as_float(bits), 16384.0f)) & 0x0f));
    uint32_t rounded = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120u << 3);
    return (uint8_t)(sign | (rounded > 0x7e ? 0x7e : rounded));
}

__device__ static float from_e4m3(uint32_t value)
{
    uint32_t sign = (value & 0x80) << 24, magnitude = value & 0x7f;
    if (magnitude == 0x7f)
        return __uint_as_float(sign | 0x7fc00000u);
    if (magnitude < 8)
        return __uint_as_float(sign | __float_as_uint((float)magnitude * 0x1p-9f));
    return __uint_as_float(sign | ((magnitude << 20) + (120u << 23)));
}

/* A block of SCALED threads for each row and run of SCALED columns. */
__global__ static void round_f8(const float *x, const uint32_t *list, uint32_t hidden,
                                uint32_t row_bytes, uint8_t *out)
{
    __shared__ uint32_t largest;
    uint32_t column = blockIdx.y * SCALED + threadIdx.x;
    const float *in = x + (size_t)list[blockIdx.x] * hidden;
    uint8_t *row = out + (size_t)blockIdx.x * row_bytes;
    float value = column < hidden ? in[column] : 0.0f;
    uint32_t magnitude = __float_as_uint(value) & 0x7fffffffu;
    if (threadIdx.x == 0)
        largest = 0;
    __syncthreads();
    atomicMax(&largest, magnitude > 0x7f800000u ? 0 : magnitude);
    __syncthreads();
    float scale = largest == 0
                      ? 1.0f
                      : fmaxf(__fdiv_rn(__uint_as_float(largest), 448.0f), 1.17549435e-38f);
    if (column < hidden)
        row[column] = to_e4m3(__fdiv_rn(value, scale));
    if (threadIdx.x == 0)
        ((float *)(row + (hidden + 3) / 4 * 4))[blockIdx.y] = scale;
}

__global__ static void round_plain(int payload, const float *x, const uint32_t *list,
                                   uint32_t hidden, uint32_t row_bytes, char *out)
{
    const float *in = x + (size_t)list[blockIdx.x] * hidden;
    char *row = out + (size_t)blockIdx.x * row_bytes;
    for (uint32_t i = threadIdx.x; i < hidden; i += blockDim.x) {
        if (payload == 0)
            ((float *)row)[i] = in[i];
        else
            ((uint16_t *)row)[i] = to_bf16(in[i]);
    }
}

__global__ static void expand(int payload, const char *in, uint32_t hidden, uint32_t row_bytes,
                              float *out)
{
    const char *row = in + (size_t)blockIdx.x * row_bytes;
    const float *scales = (const float *)(row + (hidden + 3) / 4 * 4);
    float *to = out + (size_t)blockIdx.x * hidden;
    for (uint32_t i = threadIdx.x; i < hidden; i += blockDim.x) {
        if (payload == 0)
            to[i] = ((const float *)row)[i];
        else if (payload == 1)
            to[i] = from_bf16(((const uint16_t *)row)[i]);
        else
            to[i] = __fmul_rn(from_e4m3((uint8_t)row[i]), scales[i / SCALED]);
    }
}

__global__ static void gather(const uint16_t *y, const uint32_t *list, uint32_t halves,
                              uint16_t *out)
{
    for (uint32_t i = threadIdx.x; i < halves; i += blockDim.x)
        out[(size_t)blockIdx.x * halves + i] = y[(size_t)list[blockIdx.x] * halves + i];
}

__global__ static void add(int payload, const void *y, const uint32_t *slots, const float *weights,
                           uint32_t k, uint32_t hidden, float *out)
{
    for (uint32_t i = threadIdx.x; i < hidden; i += blockDim.x) {
        float sum = out[(size_t)blockIdx.x * hidden + i];
        for (uint32_t j = 0; j < k; j++) {
            size_t at = (size_t)slots[(size_t)blockIdx.x * k + j] * hidden + i;
            float value =
                payload == 0 ? ((const float *)y)[at] : from_bf16(((const uint16_t *)y)[at]);
            sum = __fmaf_rn(weights[(size_t)blockIdx.x * k + j], value, sum);
        }
        out[(size_t)blockIdx.x * hidden + i] = sum;
    }
}

void bt_rows_cuda_round(void *stream, int payload, const float *x, const uint32_t *list,
                        uint32_t rows, uint32_t hidden, uint32_t row_bytes, void *out)
{
    if (rows == 0)
        return;
    if (payload == 2)
        round_f8<<<dim3(rows, (hidden + SCALED - 1) / SCALED), SCALED, 0, (cudaStream_t)stream>>>(
            x, list, hidden, row_bytes, (uint8_t *)out);
    else
        round_plain<<<rows, THREADS, 0, (cudaStream_t)stream>>>(payload, x, list, hidden, row_bytes,
                                                               (char *)out);
}

void bt_rows_cuda_expand(void *stream, int payload, const void *in, uint32_t rows, uint32_t hidden,
                         uint32_t row_bytes, float *out)
{
    if (rows > 0)
        expand<<<rows, THREADS, 0, (cudaStream_t)stream>>>(payload, (const char *)in, hidden,
                                                          row_bytes, out);
}

void bt_rows_cuda_gather(void *stream, const uint16_t *y, const uint32_t *list, uint32_t rows,
                         uint32_t halves, uint16_t *out)
{
    if (rows > 0)
        gather<<<rows, THREADS, 0, (cudaStream_t)stream>>>(y, list, halves, out);
}

void bt_rows_cuda_add(void *stream, int payload, const void *y, const uint32_t *slots,
                      const float *weights, uint32_t rows, uint32_t k, uint32_t hidden, float *out)
{
    if (rows > 0)
        add<<<rows, THREADS, 0, (cudaStream_t)stream>>>(payload, y, slots, weights, k, hidden, out);
}
