/*
 * out [row][dim] = weight * (x [row] * 1/sqrt(mean(x²) + eps)); the same after x [row] += y [row].
 *
 * A block a row: a thread for every four elements, 512 at most, of which thread t sums up the
 * squares of elements 4 t … 4 t + 3, then those 4 * threads behind them, and so on; lanes are added
 * by a tree, warps in order. So the order of a sum is that of dim alone. Roots and quotients are
 * correctly rounded. The row is read again, from L1, for the result; out may be x.
 *
 * Accesses of 16 bytes where all rows are aligned so and dim is a multiple of four, else element by
 * element, in the same order.
 * Shared memory: 64 bytes (a sum for each of 16 warps).
 * Registers: <= 40 (sm_80), <= 40 (sm_90a), <= 40 (sm_100)
 * Instructions: ld.global.v4.f32; st.global.v4.f32; shfl.sync.bfly
 * Counted: moved <= 1.00, asked <= 1.99, sectors <= 1.00, conflicts <= 1.00
 * Bound: memory; of few rows, latency. Floor (H100 SXM, computed): add_rms_norm reads x and y and
 * writes x and out: 2048 rows of V2-Lite (hidden 2048) 67 MB, 20 us; of V3 (7168) 235 MB, 70 us; a
 * decode batch of 64 rows of V3 7 MB, 2.2 us.
 */
#include "common/kernels/cuda/elements.cuh"
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/rms_norm.h"

#define MAX_THREADS 512
#define MAX_WARPS   (MAX_THREADS / 32)

/* Of all threads' values, the same in each. */
BT_DEVICE float sum_of_block(float value)
{
    float *sums = (float *)bt_shared(), sum = 0;
    for (uint32_t mask = 16; mask > 0; mask /= 2)
        value = bt_add(value, bt_shuffle_xor(value, mask));
    if (bt_lane() == 0)
        sums[threadIdx.x / 32] = value;
    bt_sync_block();
    for (uint32_t warp = 0; warp < blockDim.x / 32; warp++)
        sum = bt_add(sum, sums[warp]);
    return sum;
}

BT_DEVICE float4 scaled(float4 x, float scale, float4 weight)
{
    return {bt_mul(weight.x, bt_mul(x.x, scale)), bt_mul(weight.y, bt_mul(x.y, scale)),
            bt_mul(weight.z, bt_mul(x.z, scale)), bt_mul(weight.w, bt_mul(x.w, scale))};
}

/* x and out may be the same memory. sum: where x + y goes, x itself; with Add. */
template <enum bt_dtype Type, bool Add>
BT_KERNEL(MAX_THREADS, 2)
rms_norm(const float *x, const float *y, float *sum, uint32_t dim, uint32_t stride,
         const void *weight, float eps, bool wide, float *out)
{
    const float *in = x + (size_t)blockIdx.x * stride;
    float *to = out + (size_t)blockIdx.x * dim;
    uint32_t first = threadIdx.x * 4, step = blockDim.x * 4;
    float squares = 0;
    for (uint32_t i = first; i < dim; i += step) {
        float4 v = bt_elements_of<BT_F32>(in, i, dim, wide);
        if (Add) {
            float4 w = bt_elements_of<BT_F32>(y + (size_t)blockIdx.x * dim, i, dim, wide);
            v = {bt_add(v.x, w.x), bt_add(v.y, w.y), bt_add(v.z, w.z), bt_add(v.w, w.w)};
            bt_elements_store(sum + (size_t)blockIdx.x * dim, i, dim, wide, v);
        }
        squares = bt_fma(v.x, v.x, squares);
        squares = bt_fma(v.y, v.y, squares);
        squares = bt_fma(v.z, v.z, squares);
        squares = bt_fma(v.w, v.w, squares);
    }
    float mean = bt_divide(sum_of_block(squares), (float)dim);
    float scale = bt_divide(1.0f, bt_sqrt(bt_add(mean, eps)));
    for (uint32_t i = first; i < dim; i += step) {
        float4 v = bt_elements_of<BT_F32>(in, i, dim, wide);
        float4 w = bt_elements_of<Type>(weight, i, dim, wide);
        bt_elements_store(to, i, dim, wide, scaled(v, scale, w));
    }
}

static unsigned threads_of(uint32_t dim)
{
    uint32_t threads = (dim + 127) / 128 * 32;
    return threads < MAX_THREADS ? threads : MAX_THREADS;
}

template <bool Add>
static void launch(const float *x, const float *y, float *sum, uint32_t rows, uint32_t dim,
                   uint32_t stride, const void *weight, enum bt_dtype dtype, float eps, float *out,
                   cudaStream_t stream)
{
    uintptr_t addresses = (uintptr_t)x | (uintptr_t)y | (uintptr_t)weight | (uintptr_t)out;
    bool wide = (addresses | (dim | stride) * sizeof(float)) % 16 == 0;
    auto kernel = dtype == BT_F32    ? rms_norm<BT_F32, Add>
                  : dtype == BT_BF16 ? rms_norm<BT_BF16, Add>
                                     : rms_norm<BT_F16, Add>;
    bt_cuda_launch(kernel, dim3(rows, 1, 1), threads_of(dim), MAX_WARPS * sizeof(float), stream, x,
                   y, sum, dim, stride, weight, eps, wide, out);
}

void bt_cuda_launch_rms_norm(const float *x, uint32_t rows, uint32_t dim, uint32_t stride,
                             const void *weight, enum bt_dtype dtype, float eps, float *out,
                             cudaStream_t stream)
{
    launch<false>(x, nullptr, nullptr, rows, dim, stride, weight, dtype, eps, out, stream);
}

void bt_cuda_launch_add_rms_norm(float *x, const float *y, uint32_t rows, uint32_t dim,
                                 const void *weight, enum bt_dtype dtype, float eps, float *out,
                                 cudaStream_t stream)
{
    launch<true>(x, y, x, rows, dim, dim, weight, dtype, eps, out, stream);
}
