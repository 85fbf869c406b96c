/*
 * What kernels say to the hardware, an instruction each: the only file with inline assembly, and
 * the only one that knows nvcc. Tests compile the kernels for an emulated grid with a file of the
 * same name in its place, in which each of these has the same meaning bit for bit.
 *
 * Kernels use of CUDA itself: threadIdx, blockIdx, blockDim, gridDim (x, y, z), __global__,
 * __device__, __launch_bounds__, uint4 and float4, and nothing else. Shared memory is dynamic
 * alone: bt_shared().
 *
 * Registers of fragments are uint32_t: two bf16 (the lower half has the lower index), or four
 * bytes. Fragments are laid out as the PTX ISA draws them. "Warp": all 32 lanes call, converged.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_INSTRUCTIONS_CUH
#define BATON_COMMON_KERNELS_CUDA_INSTRUCTIONS_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#define BT_DEVICE __device__ __forceinline__
/* Of a kernel: most threads of a block, least blocks of a multiprocessor. */
#define BT_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)

#ifdef __CUDA_ARCH__
#define BT_ARCH __CUDA_ARCH__ /* 800, 900, 1000 */
#else
#define BT_ARCH 0
#endif
/* wgmma, setmaxnreg: sm_90a alone. Kernels that use them have an empty body elsewhere. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define BT_HAVE_WGMMA 1
#else
#define BT_HAVE_WGMMA 0
#endif
/* mbarrier transactions, bulk copies: sm_90 and up. e4m3 conversions and mma: sm_89 and up. */
#define BT_HAVE_BULK (BT_ARCH >= 900)
#define BT_HAVE_E4M3 (BT_ARCH >= 890)

/* ---- shared memory ---- */

/* The block's dynamic shared memory, aligned to 1024. */
BT_DEVICE unsigned char *bt_shared(void)
{
    extern __shared__ __align__(1024) unsigned char bt_shared_bytes[];
    return bt_shared_bytes;
}

BT_DEVICE uint32_t bt_shared_address(const void *shared)
{
    return (uint32_t)__cvta_generic_to_shared(shared);
}

/* ---- threads ---- */

BT_DEVICE uint32_t bt_lane(void)
{
    return threadIdx.x & 31;
}

/* All threads of the block, converged. */
BT_DEVICE void bt_sync_block(void)
{
    __syncthreads();
}

/*
 * Blocks of a cluster are neighbours in x, and run at the same time; a launch without says clusters
 * of one. Shared memory of another block is named by the address of the same place in this block's
 * and by that block's rank, 0 … size - 1. Before it is used, and before a block ends whose shared
 * memory others use, the cluster has to meet. sm_90.
 */
BT_DEVICE uint32_t bt_cluster_rank(void)
{
    uint32_t rank = 0;
#if BT_HAVE_BULK
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}
BT_DEVICE uint32_t bt_cluster_size(void)
{
    uint32_t size = 1;
#if BT_HAVE_BULK
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
    return size;
}
/* All threads of the cluster, converged: as bt_sync_block, for the memory of all its blocks. */
BT_DEVICE void bt_sync_cluster(void)
{
#if BT_HAVE_BULK
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* `threads` of the block (a multiple of 32) meet at barrier 1 … 15. Arrive does not wait. */
BT_DEVICE void bt_sync_named(uint32_t barrier, uint32_t threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
BT_DEVICE void bt_arrive_named(uint32_t barrier, uint32_t threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

BT_DEVICE void bt_sync_warp(void)
{
    __syncwarp();
}

/* Warp. */
BT_DEVICE float bt_shuffle_xor(float value, uint32_t mask)
{
    return __shfl_xor_sync(0xffffffffu, value, (int)mask);
}
BT_DEVICE uint32_t bt_shuffle_xor(uint32_t value, uint32_t mask)
{
    return __shfl_xor_sync(0xffffffffu, value, (int)mask);
}
BT_DEVICE float bt_shuffle(float value, uint32_t lane)
{
    return __shfl_sync(0xffffffffu, value, (int)lane);
}
BT_DEVICE uint32_t bt_shuffle(uint32_t value, uint32_t lane)
{
    return __shfl_sync(0xffffffffu, value, (int)lane);
}
/* Of the lane `by` below; lanes below `by` keep their own. */
BT_DEVICE uint32_t bt_shuffle_up(uint32_t value, uint32_t by)
{
    return __shfl_up_sync(0xffffffffu, value, by);
}
BT_DEVICE uint32_t bt_ballot(bool is)
{
    return __ballot_sync(0xffffffffu, is);
}
/* The largest, and the smallest, of all lanes. */
BT_DEVICE uint32_t bt_warp_max(uint32_t value)
{
    return __reduce_max_sync(0xffffffffu, value);
}
BT_DEVICE uint32_t bt_warp_min(uint32_t value)
{
    return __reduce_min_sync(0xffffffffu, value);
}

/* ---- memory ---- */

/* Relaxed; the old value. In shared or global memory. */
BT_DEVICE uint32_t bt_atomic_add(uint32_t *at, uint32_t value)
{
    return atomicAdd(at, value);
}
BT_DEVICE uint32_t bt_atomic_max(uint32_t *at, uint32_t value)
{
    return atomicMax(at, value);
}
/* Orders this thread's accesses before those after it, for the block, or for the device. */
BT_DEVICE void bt_fence_block(void)
{
    __threadfence_block();
}
BT_DEVICE void bt_fence_device(void)
{
    __threadfence();
}

/* 16 bytes at an address that is a multiple of 16, of global memory that nobody writes meanwhile;
 * not kept in L1. */
BT_DEVICE uint4 bt_load_16(const void *global)
{
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(global));
    return value;
}
/* 16 bytes to such an address. */
BT_DEVICE void bt_store_16(void *global, uint4 value)
{
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(value.x),
                 "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
}
/* The same in shared memory. */
BT_DEVICE uint4 bt_load_shared_16(const void *shared)
{
    uint4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(bt_shared_address(shared))
                 : "memory");
    return value;
}
BT_DEVICE void bt_store_shared_16(void *shared, uint4 value)
{
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(bt_shared_address(shared)),
                 "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
}

/* 16 bytes from global to shared memory, both aligned to 16; without `valid` zeros, and nothing is
 * read. Done when the group that it was committed in has been waited for. */
BT_DEVICE void bt_copy_async_16(void *shared, const void *global, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(bt_shared_address(shared)),
                 "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}
/* The same of 4 bytes, aligned to 4. */
BT_DEVICE void bt_copy_async_4(void *shared, const void *global, bool valid)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(bt_shared_address(shared)),
                 "l"(global), "r"(valid ? 4 : 0)
                 : "memory");
}
/* This thread's copies so far are a group. */
BT_DEVICE void bt_copy_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Until at most `Left` of this thread's newest groups are under way. For other threads' eyes a
 * barrier must follow. */
template <int Left> BT_DEVICE void bt_copy_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

/* ---- mbarriers and bulk copies: sm_90 ---- */

/* `mbarrier`: 8 bytes of shared memory. A phase ends when `count` have arrived and all bytes that
 * were expected have come. By one thread, before a fence and a barrier of the block. */
BT_DEVICE void bt_mbarrier_init(uint64_t *mbarrier, uint32_t count)
{
#if BT_HAVE_BULK
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bt_shared_address(mbarrier)),
                 "r"(count)
                 : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
BT_DEVICE void bt_mbarrier_arrive(uint64_t *mbarrier)
{
#if BT_HAVE_BULK
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bt_shared_address(mbarrier))
                 : "memory");
#endif
}
/* Arrives, and the phase expects so many bytes more. */
BT_DEVICE void bt_mbarrier_arrive_expect(uint64_t *mbarrier, uint32_t bytes)
{
#if BT_HAVE_BULK
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bt_shared_address(mbarrier)),
        "r"(bytes)
        : "memory");
#endif
}
/* Until the phase of this parity (0 for the first) has ended. */
BT_DEVICE void bt_mbarrier_wait(uint64_t *mbarrier, uint32_t parity)
{
#if BT_HAVE_BULK
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra over;\n"
                 "bra again;\n"
                 "over:\n"
                 "}\n" ::"r"(bt_shared_address(mbarrier)),
                 "r"(parity)
                 : "memory");
#endif
}
/* The same at the mbarrier of another block: this thread has read what it needs. What it has
 * written others of the cluster are shown by bt_sync_cluster alone. */
BT_DEVICE void bt_mbarrier_arrive_cluster(uint64_t *mbarrier, uint32_t rank)
{
#if BT_HAVE_BULK
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}\n" ::"r"(bt_shared_address(mbarrier)),
                 "r"(rank)
                 : "memory");
#endif
}
/* `bytes` (a multiple of 16; both addresses, too) from global to shared memory, by one thread. */
BT_DEVICE void bt_bulk_copy(void *shared, const void *global, uint32_t bytes, uint64_t *mbarrier)
{
#if BT_HAVE_BULK
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                 "%2, [%3];" ::"r"(bt_shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(bt_shared_address(mbarrier))
                 : "memory");
#endif
}
/* From this block's shared memory to the same place in another's, whose mbarrier is told. Nobody
 * changes the source until that says so. */
BT_DEVICE void bt_bulk_copy_cluster(const void *shared, uint32_t bytes, uint64_t *mbarrier,
                                    uint32_t rank)
{
#if BT_HAVE_BULK
    asm volatile("{\n"
                 ".reg .b32 to, told;\n"
                 "mapa.shared::cluster.u32 to, %0, %3;\n"
                 "mapa.shared::cluster.u32 told, %2, %3;\n"
                 "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [to], "
                 "[%0], %1, [told];\n"
                 "}\n" ::"r"(bt_shared_address(shared)),
                 "r"(bytes), "r"(bt_shared_address(mbarrier)), "r"(rank)
                 : "memory");
#endif
}
/* A box of a tensor of two dimensions at element (x, y), x the contiguous one; `map` is a
 * __grid_constant__ parameter or in global memory (tensor_map.h), which also tells the swizzle. */
BT_DEVICE void bt_bulk_copy_box(void *shared, const void *map, uint32_t x, uint32_t y,
                                uint64_t *mbarrier)
{
#if BT_HAVE_BULK
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%2, %3}], [%4];" ::"r"(bt_shared_address(shared)),
        "l"(map), "r"(x), "r"(y), "r"(bt_shared_address(mbarrier))
        : "memory");
#endif
}
/* What this thread stored in shared memory is seen by wgmma and bulk copies that follow. */
BT_DEVICE void bt_fence_async(void)
{
#if BT_HAVE_BULK
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* ---- matrices, warp ---- */

/* Four (two) 8 x 8 matrices of 16-bit elements; lane 8 m + r gives the address (a multiple of 16)
 * of row r of matrix m. trans: each matrix transposed. */
BT_DEVICE void bt_ldmatrix_x4(uint32_t out[4], const void *shared)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(bt_shared_address(shared))
                 : "memory");
}
BT_DEVICE void bt_ldmatrix_x4_trans(uint32_t out[4], const void *shared)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(bt_shared_address(shared))
                 : "memory");
}
BT_DEVICE void bt_ldmatrix_x2(uint32_t out[2], const void *shared)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(bt_shared_address(shared))
                 : "memory");
}
BT_DEVICE void bt_ldmatrix_x2_trans(uint32_t out[2], const void *shared)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(bt_shared_address(shared))
                 : "memory");
}

/* d [16][8] += a [16][16] b [16][8], bf16 into f32: mma.sync m16n8k16 row.col. */
BT_DEVICE void bt_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* d [16][8] += a [16][32] b [32][8], int8 into int32: m16n8k32. */
BT_DEVICE void bt_mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* The same shape of e4m3 into f32: BT_HAVE_E4M3. */
BT_DEVICE void bt_mma_e4m3(float d[4], const uint32_t a[4], const uint32_t b[2])
{
#if BT_HAVE_E4M3
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/* ---- matrices, warpgroup (128 threads, the first a multiple of 128): sm_90a ---- */

enum bt_swizzle { BT_SWIZZLE_NONE = 0, BT_SWIZZLE_128 = 1, BT_SWIZZLE_64 = 2, BT_SWIZZLE_32 = 3 };

/*
 * Of an operand in shared memory; offsets in bytes, multiples of 16. A core matrix is 8 rows of 16
 * contiguous bytes, without a swizzle 128 bytes in a row; with one, 8 rows of the swizzle's S bytes
 * are a pattern that begins at a multiple of 8 S.
 *     K contiguous, no swizzle: `leading` from 8 k to the next 8, `stride` from 8 rows to the next
 *     K contiguous, swizzle: `leading` is not looked at; `stride` from 8 rows to the next. The next
 *         16 k are 32 bytes on: `shared` may point into a pattern's first row, by multiples of 16
 *     K not contiguous, no swizzle: `leading` from 8 k to the next 8, `stride` from 8 rows (which
 *         are contiguous) to the next
 *     K not contiguous, swizzle: `leading` from S / 2 rows (contiguous) to the next, `stride` from
 *         8 k to the next
 */
BT_DEVICE uint64_t bt_matrix_descriptor(const void *shared, uint32_t leading, uint32_t stride,
                                        enum bt_swizzle swizzle)
{
    return (uint64_t)((bt_shared_address(shared) & 0x3ffff) >> 4) |
           (uint64_t)((leading & 0x3ffff) >> 4) << 16 | (uint64_t)((stride & 0x3ffff) >> 4) << 32 |
           (uint64_t)swizzle << 62;
}

/* Registers and shared memory of before are ready for the wgmma that follow. */
BT_DEVICE void bt_wgmma_fence(void)
{
#if BT_HAVE_WGMMA
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
BT_DEVICE void bt_wgmma_commit(void)
{
#if BT_HAVE_WGMMA
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int Left> BT_DEVICE void bt_wgmma_wait(void)
{
#if BT_HAVE_WGMMA
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
#endif
}

/* After a wait, and before bt_wgmma_fence where they were changed: the compiler moves no use of
 * these accumulators, or of a left operand in registers, over it. A change behind the fence is
 * undefined, and only this keeps one that stands before it there. */
template <int N> BT_DEVICE void bt_wgmma_hold(float (&d)[N])
{
#if BT_HAVE_WGMMA
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(d[i])::"memory");
#endif
}
template <int N> BT_DEVICE void bt_wgmma_hold(uint32_t (&a)[N])
{
#if BT_HAVE_WGMMA
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(a[i])::"memory");
#endif
}
template <int N> BT_DEVICE void bt_wgmma_hold(int32_t (&d)[N])
{
#if BT_HAVE_WGMMA
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(d[i])::"memory");
#endif
}

#define BT_D8(i)                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define BT_D32(i) BT_D8(i), BT_D8(i + 8), BT_D8(i + 16), BT_D8(i + 24)
#define BT_R32_0                                                                                   \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "   \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BT_R32_1                                                                                   \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "   \
    "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define BT_R32_2                                                                                   \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "   \
    "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define BT_R32_3                                                                                   \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "   \
    "%127"

/*
 * d [64][N] (+)= a [64][16] b [16][N], bf16 into f32, by descriptors; `more` false: d is
 * overwritten. TransposeA, TransposeB: the operand's contiguous dimension is not K. d as PTX draws
 * it: N / 2 floats a thread. Done when its group has been waited for.
 */
template <int TransposeA, int TransposeB>
BT_DEVICE void bt_wgmma_n64_bf16(float d[32], uint64_t a, uint64_t b, bool more)
{
#if BT_HAVE_WGMMA
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" BT_R32_0
                 "}, %32, %33, p, 1, 1, %35, %36;\n}\n"
                 : BT_D32(0)
                 : "l"(a), "l"(b), "r"((int)more), "n"(TransposeA), "n"(TransposeB));
#endif
}
template <int TransposeA, int TransposeB>
BT_DEVICE void bt_wgmma_n128_bf16(float d[64], uint64_t a, uint64_t b, bool more)
{
#if BT_HAVE_WGMMA
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" BT_R32_0 ", " BT_R32_1
                 "}, %64, %65, p, 1, 1, %67, %68;\n}\n"
                 : BT_D32(0), BT_D32(32)
                 : "l"(a), "l"(b), "r"((int)more), "n"(TransposeA), "n"(TransposeB));
#endif
}
template <int TransposeA, int TransposeB>
BT_DEVICE void bt_wgmma_n256_bf16(float d[128], uint64_t a, uint64_t b, bool more)
{
#if BT_HAVE_WGMMA
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" BT_R32_0 ", " BT_R32_1
                 ", " BT_R32_2 ", " BT_R32_3 "}, %128, %129, p, 1, 1, %131, %132;\n}\n"
                 : BT_D32(0), BT_D32(32), BT_D32(64), BT_D32(96)
                 : "l"(a), "l"(b), "r"((int)more), "n"(TransposeA), "n"(TransposeB));
#endif
}
/* a from registers: fragments as PTX draws them. */
template <int TransposeB>
BT_DEVICE void bt_wgmma_n64_bf16_registers(float d[32], const uint32_t a[4], uint64_t b, bool more)
{
#if BT_HAVE_WGMMA
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" BT_R32_0
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
                 : BT_D32(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)more),
                   "n"(TransposeB));
#endif
}
template <int TransposeB>
BT_DEVICE void bt_wgmma_n128_bf16_registers(float d[64], const uint32_t a[4], uint64_t b, bool more)
{
#if BT_HAVE_WGMMA
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" BT_R32_0 ", " BT_R32_1
                 "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}\n"
                 : BT_D32(0), BT_D32(32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)more),
                   "n"(TransposeB));
#endif
}
template <int TransposeB>
BT_DEVICE void bt_wgmma_n256_bf16_registers(float d[128], const uint32_t a[4], uint64_t b,
                                            bool more)
{
#if BT_HAVE_WGMMA
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" BT_R32_0 ", " BT_R32_1
        ", " BT_R32_2 ", " BT_R32_3 "}, {%128, %129, %130, %131}, %132, p, 1, 1, %134;\n}\n"
        : BT_D32(0), BT_D32(32), BT_D32(64), BT_D32(96)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)more), "n"(TransposeB));
#endif
}

/*
 * The same with N = 16, and of bytes: d [64][N] (+)= a [64][32] b [32][N], K contiguous on both
 * sides: e4m3 into f32, int8 into int32 (which wraps around). `leading` of descriptors is then from
 * 16 k to the next 16.
 */
#define BT_DI8(i)                                                                                  \
    "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]),    \
        "+r"(d[i + 6]), "+r"(d[i + 7])
#define BT_DI32(i) BT_DI8(i), BT_DI8(i + 8), BT_DI8(i + 16), BT_DI8(i + 24)
#define BT_R16     "%0, %1, %2, %3, %4, %5, %6, %7"
#define BT_R64     BT_R32_0
#define BT_R128    BT_R32_0 ", " BT_R32_1
#define BT_R256    BT_R32_0 ", " BT_R32_1 ", " BT_R32_2 ", " BT_R32_3
#define BT_DF16    BT_D8(0)
#define BT_DF64    BT_D32(0)
#define BT_DF128   BT_D32(0), BT_D32(32)
#define BT_DS16    BT_DI8(0)
#define BT_DS64    BT_DI32(0)
#define BT_DS128   BT_DI32(0), BT_DI32(32)
#define BT_DS256   BT_DI32(0), BT_DI32(32), BT_DI32(64), BT_DI32(96)
/* A, B, C, …: the numbers of operands behind those of d. */
#if BT_HAVE_WGMMA
#define BT_WGMMA_E4M3(N, A, B, C)                                                                  \
    BT_DEVICE void bt_wgmma_n##N##_e4m3(float d[N / 2], uint64_t a, uint64_t b, bool more)         \
    {                                                                                              \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #C ", 0;\n"                              \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" BT_R##N          \
                     "}, %" #A ", %" #B ", p, 1, 1;\n}\n"                                          \
                     : BT_DF##N                                                                    \
                     : "l"(a), "l"(b), "r"((int)more));                                            \
    }
#define BT_WGMMA_S8(N, A, B, C, D, E, F)                                                           \
    BT_DEVICE void bt_wgmma_n##N##_s8(int32_t d[N / 2], uint64_t a, uint64_t b, bool more)         \
    {                                                                                              \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #C ", 0;\n"                              \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8 {" BT_R##N              \
                     "}, %" #A ", %" #B ", p;\n}\n"                                                \
                     : BT_DS##N                                                                    \
                     : "l"(a), "l"(b), "r"((int)more));                                            \
    }                                                                                              \
    BT_DEVICE void bt_wgmma_n##N##_s8_registers(int32_t d[N / 2], const uint32_t a[4], uint64_t b, \
                                                bool more)                                         \
    {                                                                                              \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #F ", 0;\n"                              \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8 {" BT_R##N              \
                     "}, {%" #A ", %" #B ", %" #C ", %" #D "}, %" #E ", p;\n}\n"                   \
                     : BT_DS##N                                                                    \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)more));        \
    }
#else
#define BT_WGMMA_E4M3(N, A, B, C)                                                                  \
    BT_DEVICE void bt_wgmma_n##N##_e4m3(float[N / 2], uint64_t, uint64_t, bool)                    \
    {                                                                                              \
    }
#define BT_WGMMA_S8(N, A, B, C, D, E, F)                                                           \
    BT_DEVICE void bt_wgmma_n##N##_s8(int32_t[N / 2], uint64_t, uint64_t, bool)                    \
    {                                                                                              \
    }                                                                                              \
    BT_DEVICE void bt_wgmma_n##N##_s8_registers(int32_t[N / 2], const uint32_t[4], uint64_t, bool) \
    {                                                                                              \
    }
#endif
template <int TransposeA, int TransposeB>
BT_DEVICE void bt_wgmma_n16_bf16(float d[8], uint64_t a, uint64_t b, bool more)
{
#if BT_HAVE_WGMMA
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {" BT_R16
                 "}, %8, %9, p, 1, 1, %11, %12;\n}\n"
                 : BT_D8(0)
                 : "l"(a), "l"(b), "r"((int)more), "n"(TransposeA), "n"(TransposeB));
#endif
}
BT_WGMMA_E4M3(16, 8, 9, 10)
BT_WGMMA_E4M3(64, 32, 33, 34)
BT_WGMMA_E4M3(128, 64, 65, 66)
BT_WGMMA_S8(16, 8, 9, 10, 11, 12, 13)
BT_WGMMA_S8(64, 32, 33, 34, 35, 36, 37)
BT_WGMMA_S8(128, 64, 65, 66, 67, 68, 69)
BT_WGMMA_S8(256, 128, 129, 130, 131, 132, 133)

/* Registers a thread of this warpgroup may use from here on; N is a multiple of 8, from 24 to 256.
 * What one lowers goes to the block's pool, and raise waits until that has enough. The block has
 * at its launch what its launch bounds leave, so those say one block a multiprocessor. Warps of a
 * warpgroup meet between two of these. */
template <int N> BT_DEVICE void bt_registers_raise(void)
{
#if BT_HAVE_WGMMA
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N> BT_DEVICE void bt_registers_lower(void)
{
#if BT_HAVE_WGMMA
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

/* ---- numbers ---- */

BT_DEVICE uint32_t bt_bits_set(uint32_t bits) /* how many */
{
    return (uint32_t)__popc(bits);
}
BT_DEVICE uint32_t bt_bits(float value)
{
    return __float_as_uint(value);
}
BT_DEVICE float bt_float(uint32_t bits)
{
    return __uint_as_float(bits);
}

/* Rounded to nearest even; a NaN stays one. */
BT_DEVICE uint16_t bt_bf16_from(float value)
{
    uint16_t half;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}
/* Both in one register, `low` in the lower half. */
BT_DEVICE uint32_t bt_bf16x2_from(float low, float high)
{
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
BT_DEVICE float bt_from_bf16(uint16_t half)
{
    return __uint_as_float((uint32_t)half << 16);
}
BT_DEVICE float bt_bf16x2_low(uint32_t both)
{
    return __uint_as_float(both << 16);
}
BT_DEVICE float bt_bf16x2_high(uint32_t both)
{
    return __uint_as_float(both & 0xffff0000u);
}
/* Each half moved into -limit … limit, limit being both halves of `limits`; a NaN becomes -limit.
 */
BT_DEVICE uint32_t bt_bf16x2_clamp(uint32_t both, uint32_t limits)
{
    uint32_t clamped;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(clamped) : "r"(both), "r"(limits | 0x80008000u));
    asm("min.bf16x2 %0, %1, %2;" : "=r"(clamped) : "r"(clamped), "r"(limits));
    return clamped;
}

/* e4m3: rounded to nearest even, beyond 448 it is 448; a NaN is 0x7f. Any architecture. */
BT_DEVICE uint8_t bt_e4m3_from(float value)
{
#if BT_HAVE_E4M3
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(value));
    return (uint8_t)pair;
#else
    uint32_t bits = __float_as_uint(value), sign = bits >> 24 & 0x80, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u)
        return 0x7f;
    if (size >= 0x43e00000u) /* 448 */
        return (uint8_t)(sign | 0x7e);
    if (size < 0x3c800000u) /* 2^-6: steps of 2^-9 */
        return (uint8_t)(sign | (uint32_t)__float2int_rn(__uint_as_float(size) * 512.0f));
    return (uint8_t)(sign | ((size + 0x7ffffu + (size >> 20 & 1)) >> 20) - (120u << 3));
#endif
}
BT_DEVICE float bt_from_e4m3(uint8_t byte)
{
    uint32_t sign = (uint32_t)(byte & 0x80) << 24, size = byte & 0x7f;
    if (size == 0x7f)
        return __uint_as_float(0x7fffffffu);
    /* The exponent's bias is made right by a product that is exact. */
    return __uint_as_float(__float_as_uint(__uint_as_float(size << 20) * 0x1p120f) | sign);
}

/* Products and sums that the compiler leaves apart, rounded to nearest even; and the fused one. */
BT_DEVICE float bt_mul(float x, float y)
{
    return __fmul_rn(x, y);
}
BT_DEVICE float bt_add(float x, float y)
{
    return __fadd_rn(x, y);
}
BT_DEVICE float bt_fma(float x, float y, float z)
{
    return __fmaf_rn(x, y, z);
}
/* Correctly rounded. */
BT_DEVICE float bt_divide(float x, float y)
{
    return __fdiv_rn(x, y);
}
BT_DEVICE float bt_sqrt(float x)
{
    return __fsqrt_rn(x);
}
BT_DEVICE int32_t bt_int_nearest(float x) /* ties to even */
{
    return __float2int_rn(x);
}
/* 2^x: of the special unit, within 2 ulp; 0 for results below 2^-126. */
BT_DEVICE float bt_exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* Within 2 ulp. */
BT_DEVICE float bt_exp(float x)
{
    return expf(x);
}
/* Of a number and a NaN the number. */
BT_DEVICE float bt_max(float x, float y)
{
    return fmaxf(x, y);
}
BT_DEVICE bool bt_is_nan(float x)
{
    return x != x;
}

#endif
