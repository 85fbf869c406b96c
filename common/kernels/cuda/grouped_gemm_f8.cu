/*
 * By mma.sync, of sm_80 and sm_100, as grouped_gemm_f8_wgmma.cu is of sm_90.
 *
 * Grouped products (grouped_gemm.h) of e4m3 by e4m3 into f32, with a scale for 128 inputs of a row
 * and one for 128 x 128 weights.
 *
 * The f32 sum of each 128 inputs begins at 0 and is added by one fused multiply-add with the
 * product of both scales, so that what tensor cores keep of long sums does not matter. sm_80 has no
 * e4m3: bytes are widened to bf16 in registers, exactly.
 *
 * grouped_gemm_f8_few: tiles of 16 rows x 64 outputs, 4 warps side by side, 5 stages, 54 KiB; for
 * groups of few rows (decode). grouped_gemm_f8_many: 64 rows x 128 outputs, 2 x 4 warps, 4 stages,
 * 100 KiB; for many (prefill). Any shape: inputs are padded to 128 and outputs to 64 (weights.h,
 * quantise_rows.h).
 *
 * Registers: grouped_gemm_f8_few: <= 128 (sm_80), <= 120 (sm_90a), <= 120 (sm_100)
 * Registers: grouped_gemm_f8_many: <= 255 (sm_80), <= 176 (sm_90a), <= 192 (sm_100)
 * Instructions: ldmatrix x4; cp.async 16; mma.sync m16n8k16 bf16 (sm_80)
 * Instructions: mma.sync m16n8k32 e4m3 (sm_90a); mma.sync m16n8k32 e4m3 (sm_100)
 * Counted: grouped_gemm_f8_few: moved <= 1.01, asked <= 1.07, sectors <= 1.01, conflicts <= 1.00,
 * products <= 8.00
 * Counted: grouped_gemm_f8_many: moved <= 1.01, asked <= 2.40, sectors <= 1.25, conflicts <= 1.00,
 * products <= 1.60
 *
 * Bound: few rows: the bytes of the weights of experts that have rows, each read once; many:
 * 1979 TFLOP/s of wgmma, which mma.sync does not reach.
 *
 * Floor for H100 SXM at 3.35 TB/s of HBM3, in us, gate and up + down, experts drawn evenly
 * (computed):
 *              1 row         16             64             256            8192 rows
 *     V2-Lite  10.3 + 5.2    87.4 + 43.7    110.0 + 55.0   110.2 + 55.1   286 + 143
 *     V3       70.1 + 35.1   894 + 447      1950 + 975     2243 + 1122    1945 + 972
 */
#include "common/kernels/cuda/grouped_gemm.cuh"

/* For weights' bytes, and for arithmetic. */
typedef bt_grouped<BT_GROUPED_F8, 16, 64, 1, 4, 5> few_rows;
typedef bt_grouped<BT_GROUPED_F8, 64, 128, 2, 4, 4> many_rows;
#define FEW_BLOCKS  3 /* of a multiprocessor */
#define MANY_BLOCKS 1

BT_KERNEL(few_rows::THREADS, FEW_BLOCKS)
grouped_gemm_f8_few(const __grid_constant__ bt_cuda_grouped_call call)
{
    few_rows::run(call);
}

BT_KERNEL(many_rows::THREADS, MANY_BLOCKS)
grouped_gemm_f8_many(const __grid_constant__ bt_cuda_grouped_call call)
{
    many_rows::run(call);
}

extern "C" void bt_cuda_launch_grouped_gemm_f8(const struct bt_cuda_grouped_call *call,
                                               int multiprocessors, cudaStream_t stream)
{
    if (bt_grouped_is_small(call))
        bt_cuda_launch(grouped_gemm_f8_few,
                       bt_grouped_grid(call, multiprocessors, FEW_BLOCKS, 16, 64),
                       few_rows::THREADS, few_rows::SHARED_BYTES, stream, *call);
    else
        bt_cuda_launch(grouped_gemm_f8_many,
                       bt_grouped_grid(call, multiprocessors, MANY_BLOCKS, 64, 128),
                       many_rows::THREADS, many_rows::SHARED_BYTES, stream, *call);
}
