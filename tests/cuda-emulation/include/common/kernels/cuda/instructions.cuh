/*
 * What kernels say to the hardware, on the emulated grid: the same functions as in the file of this
 * name of the real thing, with the same meaning bit for bit. Their contracts stand there.
 *
 * BT_ARCH may be given to the compiler: 800, 900 (the default) or 1000.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_INSTRUCTIONS_CUH
#define BATON_COMMON_KERNELS_CUDA_INSTRUCTIONS_CUH

#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/cuda-emulation/hardware.h"

#define BT_DEVICE                  static inline __attribute__((always_inline))
#define BT_KERNEL(threads, blocks) void

#ifndef BT_ARCH
#define BT_ARCH 900
#endif
#define BT_HAVE_WGMMA (BT_ARCH == 900)
#define BT_HAVE_BULK  (BT_ARCH >= 900)
#define BT_HAVE_E4M3  (BT_ARCH >= 890)

#define threadIdx (emulation::thread_index())
#define blockIdx  (emulation::block_index())
#define blockDim  (emulation::block_size())
#define gridDim   (emulation::grid_size())

#define BT_PLACE emulation::Place place = emulation::here()
#define BT_NEEDS(has)                                                                              \
    do {                                                                                           \
        if (!(has))                                                                                \
            emulation::missing(__func__, place);                                                   \
    } while (0)

/* ---- shared memory ---- */

BT_DEVICE unsigned char *bt_shared(void)
{
    return emulation::shared_memory();
}
BT_DEVICE uint32_t bt_shared_address(const void *shared)
{
    return emulation::shared_address(shared);
}

/* ---- threads ---- */

BT_DEVICE uint32_t bt_lane(void)
{
    return threadIdx.x & 31;
}
BT_DEVICE void bt_sync_block(BT_PLACE)
{
    emulation::sync_block(place);
}
BT_DEVICE uint32_t bt_cluster_rank(BT_PLACE)
{
    BT_NEEDS(BT_HAVE_BULK);
    return emulation::cluster_rank();
}
BT_DEVICE uint32_t bt_cluster_size(BT_PLACE)
{
    BT_NEEDS(BT_HAVE_BULK);
    return emulation::cluster_size();
}
BT_DEVICE void bt_sync_cluster(BT_PLACE)
{
    BT_NEEDS(BT_HAVE_BULK);
    emulation::sync_cluster(place);
}
BT_DEVICE void bt_sync_named(uint32_t barrier, uint32_t threads, BT_PLACE)
{
    emulation::sync_named(barrier, threads, true, place);
}
BT_DEVICE void bt_arrive_named(uint32_t barrier, uint32_t threads, BT_PLACE)
{
    emulation::sync_named(barrier, threads, false, place);
}
BT_DEVICE void bt_sync_warp(BT_PLACE)
{
    emulation::sync_warp(place);
}
BT_DEVICE uint32_t bt_shuffle_xor(uint32_t value, uint32_t mask, BT_PLACE)
{
    return emulation::shuffle(value, bt_lane() ^ mask, place);
}
BT_DEVICE float bt_shuffle_xor(float value, uint32_t mask, BT_PLACE)
{
    return __builtin_bit_cast(
        float, emulation::shuffle(__builtin_bit_cast(uint32_t, value), bt_lane() ^ mask, place));
}
BT_DEVICE uint32_t bt_shuffle(uint32_t value, uint32_t lane, BT_PLACE)
{
    return emulation::shuffle(value, lane, place);
}
BT_DEVICE float bt_shuffle(float value, uint32_t lane, BT_PLACE)
{
    return __builtin_bit_cast(float,
                              emulation::shuffle(__builtin_bit_cast(uint32_t, value), lane, place));
}
BT_DEVICE uint32_t bt_shuffle_up(uint32_t value, uint32_t by, BT_PLACE)
{
    return emulation::shuffle(value, bt_lane() < by ? bt_lane() : bt_lane() - by, place);
}
BT_DEVICE uint32_t bt_ballot(bool is, BT_PLACE)
{
    return emulation::ballot(is, place);
}

BT_DEVICE uint32_t bt_warp_max(uint32_t value, BT_PLACE)
{
    for (uint32_t mask = 16; mask > 0; mask /= 2) {
        uint32_t other = emulation::shuffle(value, bt_lane() ^ mask, place);
        value = other > value ? other : value;
    }
    return value;
}
BT_DEVICE uint32_t bt_warp_min(uint32_t value, BT_PLACE)
{
    return ~bt_warp_max(~value, place);
}

/* ---- memory ---- */

BT_DEVICE uint32_t bt_atomic_add(uint32_t *at, uint32_t value, BT_PLACE)
{
    return emulation::atomic_add(at, value, place);
}
BT_DEVICE uint32_t bt_atomic_max(uint32_t *at, uint32_t value, BT_PLACE)
{
    return emulation::atomic_max(at, value, place);
}
BT_DEVICE void bt_fence_block(void)
{
}
BT_DEVICE void bt_fence_device(void)
{
    emulation::fence_device();
}
BT_DEVICE uint4 bt_load_16(const void *global, BT_PLACE)
{
    emulation::check_global(global, false, true, place);
    uint4 value;
    __builtin_memcpy(&value, global, 16);
    return value;
}
BT_DEVICE void bt_store_16(void *global, uint4 value, BT_PLACE)
{
    emulation::check_global(global, true, false, place);
    __builtin_memcpy(global, &value, 16);
}
BT_DEVICE uint4 bt_load_shared_16(const void *shared, BT_PLACE)
{
    emulation::check_shared(shared, false, place);
    uint4 value;
    __builtin_memcpy(&value, shared, 16);
    return value;
}
BT_DEVICE void bt_store_shared_16(void *shared, uint4 value, BT_PLACE)
{
    emulation::check_shared(shared, true, place);
    __builtin_memcpy(shared, &value, 16);
}
BT_DEVICE void bt_copy_async_16(void *shared, const void *global, bool valid, BT_PLACE)
{
    emulation::copy_async(shared, global, 16, valid, place);
}
BT_DEVICE void bt_copy_async_4(void *shared, const void *global, bool valid, BT_PLACE)
{
    emulation::copy_async(shared, global, 4, valid, place);
}
BT_DEVICE void bt_copy_async_commit(void)
{
    emulation::copy_async_commit();
}
template <int Left> BT_DEVICE void bt_copy_async_wait(void)
{
    emulation::copy_async_wait(Left);
}

/* ---- mbarriers and bulk copies: sm_90 ---- */

BT_DEVICE void bt_mbarrier_init(uint64_t *mbarrier, uint32_t count, BT_PLACE)
{
    BT_NEEDS(BT_HAVE_BULK);
    emulation::mbarrier_init(mbarrier, count, place);
}
BT_DEVICE void bt_mbarrier_arrive(uint64_t *mbarrier, BT_PLACE)
{
    BT_NEEDS(BT_HAVE_BULK);
    emulation::mbarrier_arrive(mbarrier, 0, place);
}
BT_DEVICE void bt_mbarrier_arrive_expect(uint64_t *mbarrier, uint32_t bytes, BT_PLACE)
{
    BT_NEEDS(BT_HAVE_BULK);
    emulation::mbarrier_arrive(mbarrier, bytes, place);
}
BT_DEVICE void bt_mbarrier_wait(uint64_t *mbarrier, uint32_t parity, BT_PLACE)
{
    BT_NEEDS(BT_HAVE_BULK);
    emulation::mbarrier_wait(mbarrier, parity, place);
}
BT_DEVICE void bt_bulk_copy(void *shared, const void *global, uint32_t bytes, uint64_t *mbarrier,
                            BT_PLACE)
{
    BT_NEEDS(BT_HAVE_BULK);
    emulation::bulk_copy(shared, global, bytes, mbarrier, place);
}
BT_DEVICE void bt_mbarrier_arrive_cluster(uint64_t *mbarrier, uint32_t rank, BT_PLACE)
{
    BT_NEEDS(BT_HAVE_BULK);
    emulation::mbarrier_arrive_cluster(mbarrier, rank, place);
}
BT_DEVICE void bt_bulk_copy_cluster(const void *shared, uint32_t bytes, uint64_t *mbarrier,
                                    uint32_t rank, BT_PLACE)
{
    BT_NEEDS(BT_HAVE_BULK);
    emulation::bulk_copy_cluster(shared, bytes, mbarrier, rank, place);
}
BT_DEVICE void bt_bulk_copy_box(void *shared, const void *map, uint32_t x, uint32_t y,
                                uint64_t *mbarrier, BT_PLACE)
{
    BT_NEEDS(BT_HAVE_BULK);
    emulation::bulk_copy_box(shared, map, x, y, mbarrier, place);
}
BT_DEVICE void bt_fence_async(BT_PLACE)
{
    BT_NEEDS(BT_HAVE_BULK);
    emulation::fence_async();
}

/* ---- matrices, warp ---- */

BT_DEVICE void bt_ldmatrix_x4(uint32_t out[4], const void *shared, BT_PLACE)
{
    emulation::ldmatrix(out, shared, 4, false, place);
}
BT_DEVICE void bt_ldmatrix_x4_trans(uint32_t out[4], const void *shared, BT_PLACE)
{
    emulation::ldmatrix(out, shared, 4, true, place);
}
BT_DEVICE void bt_ldmatrix_x2(uint32_t out[2], const void *shared, BT_PLACE)
{
    emulation::ldmatrix(out, shared, 2, false, place);
}
BT_DEVICE void bt_ldmatrix_x2_trans(uint32_t out[2], const void *shared, BT_PLACE)
{
    emulation::ldmatrix(out, shared, 2, true, place);
}
BT_DEVICE void bt_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], BT_PLACE)
{
    emulation::mma_bf16(d, a, b, place);
}
BT_DEVICE void bt_mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2], BT_PLACE)
{
    emulation::mma_s8(d, a, b, place);
}
BT_DEVICE void bt_mma_e4m3(float d[4], const uint32_t a[4], const uint32_t b[2], BT_PLACE)
{
    BT_NEEDS(BT_HAVE_E4M3);
    emulation::mma_e4m3(d, a, b, place);
}

/* ---- matrices, warpgroup: sm_90a ---- */

enum bt_swizzle { BT_SWIZZLE_NONE = 0, BT_SWIZZLE_128 = 1, BT_SWIZZLE_64 = 2, BT_SWIZZLE_32 = 3 };

BT_DEVICE uint64_t bt_matrix_descriptor(const void *shared, uint32_t leading, uint32_t stride,
                                        enum bt_swizzle swizzle)
{
    return (uint64_t)((bt_shared_address(shared) & 0x3ffff) >> 4) |
           (uint64_t)((leading & 0x3ffff) >> 4) << 16 | (uint64_t)((stride & 0x3ffff) >> 4) << 32 |
           (uint64_t)swizzle << 62;
}
BT_DEVICE void bt_wgmma_fence(BT_PLACE)
{
    BT_NEEDS(BT_HAVE_WGMMA);
    emulation::wgmma_fence(place);
}
BT_DEVICE void bt_wgmma_commit(BT_PLACE)
{
    BT_NEEDS(BT_HAVE_WGMMA);
    emulation::wgmma_commit(place);
}
template <int Left> BT_DEVICE void bt_wgmma_wait(BT_PLACE)
{
    BT_NEEDS(BT_HAVE_WGMMA);
    emulation::wgmma_wait(Left, place);
}

template <int N> BT_DEVICE void bt_wgmma_hold(float (&)[N])
{
}
template <int N> BT_DEVICE void bt_wgmma_hold(uint32_t (&)[N])
{
}
template <int N> BT_DEVICE void bt_wgmma_hold(int32_t (&)[N])
{
}

#define BT_WGMMA(N)                                                                                \
    template <int TransposeA, int TransposeB>                                                      \
    BT_DEVICE void bt_wgmma_n##N##_bf16(float d[N / 2], uint64_t a, uint64_t b, bool more,         \
                                        BT_PLACE)                                                  \
    {                                                                                              \
        BT_NEEDS(BT_HAVE_WGMMA);                                                                   \
        emulation::wgmma({d, nullptr, a, b, N, more, TransposeA != 0, TransposeB != 0,             \
                          emulation::Element::bf16},                                               \
                         place);                                                                   \
    }
#define BT_WGMMA_REGISTERS(N)                                                                      \
    template <int TransposeB>                                                                      \
    BT_DEVICE void bt_wgmma_n##N##_bf16_registers(float d[N / 2], const uint32_t a[4], uint64_t b, \
                                                  bool more, BT_PLACE)                             \
    {                                                                                              \
        BT_NEEDS(BT_HAVE_WGMMA);                                                                   \
        emulation::wgmma({d, a, 0, b, N, more, false, TransposeB != 0, emulation::Element::bf16},  \
                         place);                                                                   \
    }
BT_WGMMA(16)
BT_WGMMA(64)
BT_WGMMA(128)
BT_WGMMA(256)
BT_WGMMA_REGISTERS(64)
BT_WGMMA_REGISTERS(128)
BT_WGMMA_REGISTERS(256)

#define BT_WGMMA_E4M3(N)                                                                           \
    BT_DEVICE void bt_wgmma_n##N##_e4m3(float d[N / 2], uint64_t a, uint64_t b, bool more,         \
                                        BT_PLACE)                                                  \
    {                                                                                              \
        BT_NEEDS(BT_HAVE_WGMMA);                                                                   \
        emulation::wgmma({d, nullptr, a, b, N, more, false, false, emulation::Element::e4m3},      \
                         place);                                                                   \
    }
BT_WGMMA_E4M3(16)
BT_WGMMA_E4M3(64)
BT_WGMMA_E4M3(128)

#define BT_WGMMA_S8(N)                                                                             \
    BT_DEVICE void bt_wgmma_n##N##_s8(int32_t d[N / 2], uint64_t a, uint64_t b, bool more,         \
                                      BT_PLACE)                                                    \
    {                                                                                              \
        BT_NEEDS(BT_HAVE_WGMMA);                                                                   \
        emulation::wgmma({d, nullptr, a, b, N, more, false, false, emulation::Element::s8},        \
                         place);                                                                   \
    }                                                                                              \
    BT_DEVICE void bt_wgmma_n##N##_s8_registers(int32_t d[N / 2], const uint32_t a[4], uint64_t b, \
                                                bool more, BT_PLACE)                               \
    {                                                                                              \
        BT_NEEDS(BT_HAVE_WGMMA);                                                                   \
        emulation::wgmma({d, a, 0, b, N, more, false, false, emulation::Element::s8}, place);      \
    }
BT_WGMMA_S8(16)
BT_WGMMA_S8(64)
BT_WGMMA_S8(128)
BT_WGMMA_S8(256)

template <int N> BT_DEVICE void bt_registers_raise(BT_PLACE)
{
    BT_NEEDS(BT_HAVE_WGMMA);
    emulation::set_registers(N, true, place);
}
template <int N> BT_DEVICE void bt_registers_lower(BT_PLACE)
{
    BT_NEEDS(BT_HAVE_WGMMA);
    emulation::set_registers(N, false, place);
}

/* ---- numbers ---- */

BT_DEVICE uint32_t bt_bits_set(uint32_t bits)
{
    return (uint32_t)__builtin_popcount(bits);
}
BT_DEVICE uint32_t bt_bits(float value)
{
    return __builtin_bit_cast(uint32_t, value);
}
BT_DEVICE float bt_float(uint32_t bits)
{
    return __builtin_bit_cast(float, bits);
}
BT_DEVICE uint16_t bt_bf16_from(float value)
{
    uint32_t bits = bt_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return 0x7fff;
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
BT_DEVICE uint32_t bt_bf16x2_from(float low, float high)
{
    return (uint32_t)bt_bf16_from(high) << 16 | bt_bf16_from(low);
}
BT_DEVICE float bt_from_bf16(uint16_t half)
{
    return bt_float((uint32_t)half << 16);
}
BT_DEVICE float bt_bf16x2_low(uint32_t both)
{
    return bt_float(both << 16);
}
BT_DEVICE float bt_bf16x2_high(uint32_t both)
{
    return bt_float(both & 0xffff0000u);
}
BT_DEVICE uint32_t bt_bf16x2_clamp(uint32_t both, uint32_t limits)
{
    float low = fminf(fmaxf(bt_bf16x2_low(both), -bt_bf16x2_low(limits)), bt_bf16x2_low(limits));
    float high =
        fminf(fmaxf(bt_bf16x2_high(both), -bt_bf16x2_high(limits)), bt_bf16x2_high(limits));
    return bt_bf16x2_from(low, high);
}
BT_DEVICE uint8_t bt_e4m3_from(float value)
{
    return emulation::e4m3_from(value);
}
BT_DEVICE float bt_from_e4m3(uint8_t byte)
{
    uint32_t sign = (uint32_t)(byte & 0x80) << 24, size = byte & 0x7f;
    if (size == 0x7f)
        return bt_float(0x7fffffffu);
    return bt_float(bt_bits(bt_float(size << 20) * 0x1p120f) | sign);
}
BT_DEVICE float bt_mul(float x, float y)
{
    return x * y;
}
BT_DEVICE float bt_add(float x, float y)
{
    return x + y;
}
BT_DEVICE float bt_fma(float x, float y, float z)
{
    emulation::fused();
    return fmaf(x, y, z);
}
BT_DEVICE float bt_divide(float x, float y)
{
    return x / y;
}
BT_DEVICE float bt_sqrt(float x)
{
    return sqrtf(x);
}
BT_DEVICE int32_t bt_int_nearest(float x)
{
    if (x != x)
        return 0;
    if (x >= 0x1p31f)
        return INT32_MAX;
    return x < -0x1p31f ? INT32_MIN : (int32_t)rintf(x);
}
BT_DEVICE float bt_exp2_fast(float x)
{
    return emulation::exp2_fast(x);
}
BT_DEVICE float bt_exp(float x)
{
    return expf(x);
}
BT_DEVICE float bt_max(float x, float y)
{
    return fmaxf(x, y);
}
BT_DEVICE bool bt_is_nan(float x)
{
    return x != x;
}

#endif
