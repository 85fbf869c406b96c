/*
 * Grouped products (grouped_gemm.h) of int8 rows by int4 weights with scales of groups of 128
 * inputs (W4A8): weights become int8 in registers, exactly, sums are int32, then (sum * scale of
 * the row) * scale of the output, each rounded to f32, on Hopper: few rows and many. sm_90a alone;
 * elsewhere the kernel is empty.
 *
 * A consumer's warp unpacks its 16 outputs by 128 inputs while the other consumer's products are
 * under way; they are the left operand from registers.
 *
 * Tiles of 16, 64, 128 or 256 rows x 128 outputs (64 where there are few tiles), 4 stages of 41
 * KiB, 171 KiB with the list of tiles: one block of 384 threads a multiprocessor. Any shape: inputs
 * are padded to 128 and outputs to 64 (weights.h, quantise_rows.h). setmaxnreg makes the registers
 * 72 for the fetcher and 216 for the consumers.
 * Registers: <= 16 (sm_80), <= 168 (sm_90a), <= 16 (sm_100)
 * Instructions: wgmma m64n16k32 s8 (sm_90a); wgmma m64n64k32 s8 (sm_90a); wgmma m64n128k32 s8
 * (sm_90a); wgmma m64n256k32 s8 (sm_90a); cp.async.bulk (sm_90a); ld.shared.v4 (sm_90a);
 * cp.async.cg (sm_90a); mbarrier (sm_90a); cp.async.bulk.shared::cluster.shared::cta (sm_90a); mapa
 * (sm_90a); barrier.cluster (sm_90a); setmaxnreg (sm_90a)
 *
 * Counted: moved <= 1.05, asked <= 1.46, sectors <= 1.21, conflicts <= 1.00, products <= 8.00
 * Bound: few rows: the bytes of the weights of experts that have rows, each read once. Many: 1979
 * TOP/s, if L2 kept up: a step of a full tile is 40 KiB for 1024 cycles of products, of which a
 * block of a cluster fetches 24 KiB. At the 41 GB/s (23 bytes a cycle) of a multiprocessor that
 * mla_decode_wgmma.cu counts with, they take 1070: both bind. The other 16 KiB are copied from the
 * other block, at a rate that no specification says. Below 65 rows a group on average there are no
 * clusters: then the weights bind, at HBM's rate.
 *
 * Floor for H100 SXM at 3.35 TB/s of HBM3, in us, gate and up + down, experts drawn evenly
 * (computed):
 *              1 row         16             64             256            8192 rows
 *     V2-Lite  5.2 + 2.6     44.4 + 22.2    55.8 + 27.9    56.0 + 28.0    286 + 143
 *     V3       35.6 + 17.8   454 + 227      990 + 495      1139 + 570     1945 + 972
 */
#include "common/kernels/cuda/grouped_gemm_wgmma.cuh"

BT_KERNEL(384, 1)
grouped_gemm_i4_wgmma(const __grid_constant__ bt_cuda_grouped_call call, uint32_t panels)
{
#if BT_HAVE_WGMMA
    bt_grouped_wgmma<BT_GROUPED_I4>::run(call, panels);
#else
    (void)call;
    (void)panels;
#endif
}

extern "C" void bt_cuda_launch_grouped_gemm_i4_wgmma(const struct bt_cuda_grouped_call *call,
                                                     int multiprocessors, cudaStream_t stream)
{
    bt_grouped_launch_wgmma<BT_GROUPED_I4>(grouped_gemm_i4_wgmma, call, multiprocessors, stream);
}
