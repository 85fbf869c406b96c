/*
 * By mma.sync, of sm_80 and sm_100, as grouped_gemm_i8_wgmma.cu is of sm_90.
 *
 * Grouped products (grouped_gemm.h) of int8 by int8 into int32: exact, then (sum * scale of the
 * row) * scale of the output, each rounded to f32.
 *
 * grouped_gemm_i8_few: tiles of 16 rows x 64 outputs, 4 warps side by side, 5 stages, 54 KiB; for
 * groups of few rows (decode). grouped_gemm_i8_many: 128 rows x 128 outputs, 2 x 4 warps, 4 stages,
 * 132 KiB; for many (prefill). Any shape: inputs are padded to 128 and outputs to 64 (weights.h,
 * quantise_rows.h).
 *
 * Registers: grouped_gemm_i8_few: <= 112 (sm_80), <= 112 (sm_90a), <= 120 (sm_100)
 * Registers: grouped_gemm_i8_many: <= 152 (sm_80), <= 160 (sm_90a), <= 200 (sm_100)
 * Instructions: mma.sync m16n8k32 s8; ldmatrix x4; cp.async 16
 * Counted: grouped_gemm_i8_few: moved <= 1.02, asked <= 1.09, sectors <= 1.01, conflicts <= 1.00,
 * products <= 8.00
 * Counted: grouped_gemm_i8_many: moved <= 1.01, asked <= 2.00, sectors <= 1.32, conflicts <= 1.00,
 * products <= 1.60
 *
 * Bound: few rows: the bytes of the weights of experts that have rows, each read once; many:
 * 1979 TOP/s of wgmma, of which mma.sync can reach a part only.
 *
 * Floor for H100 SXM at 3.35 TB/s of HBM3, in us, gate and up + down, experts drawn evenly
 * (computed):
 *              1 row         16             64             256            8192 rows
 *     V2-Lite  10.3 + 5.2    87.4 + 43.7    110.0 + 55.0   110.2 + 55.1   286 + 143
 *     V3       70.1 + 35.1   894 + 447      1950 + 975     2243 + 1122    1945 + 972
 */
#include "common/kernels/cuda/grouped_gemm.cuh"

/* For weights' bytes, and for arithmetic. */
typedef bt_grouped<BT_GROUPED_I8, 16, 64, 1, 4, 5> few_rows;
typedef bt_grouped<BT_GROUPED_I8, 128, 128, 2, 4, 4> many_rows;
#define FEW_BLOCKS  3 /* of a multiprocessor */
#define MANY_BLOCKS 1

BT_KERNEL(few_rows::THREADS, FEW_BLOCKS)
grouped_gemm_i8_few(const __grid_constant__ bt_cuda_grouped_call call)
{
    few_rows::run(call);
}

BT_KERNEL(many_rows::THREADS, MANY_BLOCKS)
grouped_gemm_i8_many(const __grid_constant__ bt_cuda_grouped_call call)
{
    many_rows::run(call);
}

extern "C" void bt_cuda_launch_grouped_gemm_i8(const struct bt_cuda_grouped_call *call,
                                               int multiprocessors, cudaStream_t stream)
{
    if (bt_grouped_is_small(call))
        bt_cuda_launch(grouped_gemm_i8_few,
                       bt_grouped_grid(call, multiprocessors, FEW_BLOCKS, 16, 64),
                       few_rows::THREADS, few_rows::SHARED_BYTES, stream, *call);
    else
        bt_cuda_launch(grouped_gemm_i8_many,
                       bt_grouped_grid(call, multiprocessors, MANY_BLOCKS, 128, 128),
                       many_rows::THREADS, many_rows::SHARED_BYTES, stream, *call);
}
