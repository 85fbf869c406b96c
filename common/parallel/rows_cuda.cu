/*
 * Rows on their way between ranks: rounded to the payload, expanded again, moved, added up; and the
 * sums of reductions.
 *
 * Blocks of 128 threads: a row each, or a row's run of 128 columns (round_f8: 8 bytes of shared
 * memory), or 512 floats (sum_ranks). Bound by memory: a row of hidden 7168 in f32 is read at 28
 * KB, 64 of them with 8 picks each are 4.4 µs of H100's 3.35 TB/s; computed, not measured.
 *
 * Registers: <= 64 (sm_80), <= 64 (sm_90a), <= 40 (sm_100)
 */
#include "common/parallel/rows_cuda.h"

#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/launch.cuh"

#define SCALED  128
#define THREADS 128
#define SUMS    512 /* of a block of sum_ranks */

BT_DEVICE float from_payload(int payload, const void *row, uint32_t i)
{
    return payload == 0 ? ((const float *)row)[i] : bt_from_bf16(((const uint16_t *)row)[i]);
}

/* The row that goes to this block's place; NULL: zeros do. */
BT_DEVICE const float *row_of(const float *x, const uint32_t *list, uint32_t rows, uint32_t hidden)
{
    uint32_t row = list ? list[blockIdx.x] : blockIdx.x;
    return row < rows ? x + (size_t)row * hidden : nullptr;
}

static BT_KERNEL(THREADS, 1) round_f8(const float *x, const uint32_t *list, uint32_t rows,
                                      uint32_t hidden, uint32_t row_bytes, uint8_t *out)
{
    uint32_t *largest = (uint32_t *)bt_shared();
    uint32_t column = blockIdx.y * SCALED + threadIdx.x;
    const float *in = row_of(x, list, rows, hidden);
    uint8_t *row = out + (size_t)blockIdx.x * row_bytes;
    float value = in && column < hidden ? in[column] : 0.0f;
    uint32_t size = bt_bits(value) & 0x7fffffffu;
    if (threadIdx.x == 0)
        *largest = 0;
    bt_sync_block();
    bt_atomic_max(largest, size > 0x7f800000u ? 0 : size);
    bt_sync_block();
    float scale = *largest == 0 ? 1.0f : bt_divide(bt_float(*largest), 448.0f);
    if (scale < 1.17549435e-38f)
        scale = 1.17549435e-38f;
    if (column < hidden) {
        float quotient = bt_divide(value, scale);
        row[column] = bt_is_nan(quotient) ? (uint8_t)(bt_bits(quotient) >> 24 & 0x80) | 0x7f
                                          : bt_e4m3_from(quotient);
    }
    if (threadIdx.x == 0)
        ((float *)(row + (hidden + 3) / 4 * 4))[blockIdx.y] = scale;
}

static BT_KERNEL(THREADS, 1)
    round_plain(int payload, const float *x, const uint32_t *list, uint32_t rows, uint32_t hidden,
                uint32_t row_bytes, unsigned char *out)
{
    const float *in = row_of(x, list, rows, hidden);
    unsigned char *row = out + (size_t)blockIdx.x * row_bytes;
    for (uint32_t i = threadIdx.x; i < hidden; i += THREADS) {
        if (payload == 0)
            ((float *)row)[i] = in ? in[i] : 0.0f;
        else
            ((uint16_t *)row)[i] = in ? bt_bf16_from(in[i]) : 0;
    }
}

static BT_KERNEL(THREADS, 1)
    expand(int payload, const unsigned char *in, uint32_t hidden, uint32_t row_bytes, float *out)
{
    const unsigned char *row = in + (size_t)blockIdx.x * row_bytes;
    const float *scales = (const float *)(row + (hidden + 3) / 4 * 4);
    float *to = out + (size_t)blockIdx.x * hidden;
    for (uint32_t i = threadIdx.x; i < hidden; i += THREADS)
        to[i] = payload == 2 ? bt_mul(bt_from_e4m3(row[i]), scales[i / SCALED])
                             : from_payload(payload, row, i);
}

static BT_KERNEL(THREADS, 1)
    gather(const uint16_t *y, const uint32_t *list, uint32_t halves, uint16_t *out)
{
    for (uint32_t i = threadIdx.x; i < halves; i += THREADS)
        out[(size_t)blockIdx.x * halves + i] = y[(size_t)list[blockIdx.x] * halves + i];
}

static BT_KERNEL(THREADS, 1) add(int payload, const void *y, const uint32_t *slots,
                                 const float *weights, uint32_t k, uint32_t hidden, float *out)
{
    size_t bytes = (size_t)hidden * (payload == 0 ? 4 : 2);
    for (uint32_t i = threadIdx.x; i < hidden; i += THREADS) {
        float sum = out[(size_t)blockIdx.x * hidden + i];
        for (uint32_t j = 0; j < k; j++) {
            uint32_t slot = slots[(size_t)blockIdx.x * k + j];
            sum = bt_fma(weights[(size_t)blockIdx.x * k + j],
                         from_payload(payload, (const char *)y + slot * bytes, i), sum);
        }
        out[(size_t)blockIdx.x * hidden + i] = sum;
    }
}

static BT_KERNEL(THREADS, 1) sum_ranks(const float *parts, size_t pitch, const float *own,
                                       uint32_t rank, uint32_t ranks, size_t count, float *out)
{
    for (uint32_t i = threadIdx.x; i < SUMS; i += THREADS) {
        size_t at = (size_t)blockIdx.x * SUMS + i;
        if (at >= count)
            return;
        float total = rank == 0 ? own[at] : parts[at];
        for (uint32_t r = 1; r < ranks; r++)
            total = bt_add(total, r == rank ? own[at] : parts[r * pitch + at]);
        out[at] = total;
    }
}

void bt_rows_cuda_round(void *stream, int payload, const float *x, uint32_t rows,
                        const uint32_t *list, uint32_t places, uint32_t hidden, uint32_t row_bytes,
                        void *out)
{
    cudaStream_t on = (cudaStream_t)stream;
    if (payload == 2)
        bt_cuda_launch(round_f8, dim3(places, (hidden + SCALED - 1) / SCALED), SCALED, 8, on, x,
                       list, rows, hidden, row_bytes, (uint8_t *)out);
    else
        bt_cuda_launch(round_plain, dim3(places), THREADS, 0, on, payload, x, list, rows, hidden,
                       row_bytes, (unsigned char *)out);
}

void bt_rows_cuda_expand(void *stream, int payload, const void *in, uint32_t rows, uint32_t hidden,
                         uint32_t row_bytes, float *out)
{
    bt_cuda_launch(expand, dim3(rows), THREADS, 0, (cudaStream_t)stream, payload,
                   (const unsigned char *)in, hidden, row_bytes, out);
}

void bt_rows_cuda_gather(void *stream, const uint16_t *y, const uint32_t *list, uint32_t rows,
                         uint32_t halves, uint16_t *out)
{
    bt_cuda_launch(gather, dim3(rows), THREADS, 0, (cudaStream_t)stream, y, list, halves, out);
}

void bt_rows_cuda_add(void *stream, int payload, const void *y, const uint32_t *slots,
                      const float *weights, uint32_t rows, uint32_t k, uint32_t hidden, float *out)
{
    bt_cuda_launch(add, dim3(rows), THREADS, 0, (cudaStream_t)stream, payload, y, slots, weights, k,
                   hidden, out);
}

void bt_rows_cuda_sum(void *stream, const float *parts, size_t pitch, const float *own,
                      uint32_t rank, uint32_t ranks, size_t count, float *out)
{
    bt_cuda_launch(sum_ranks, dim3((unsigned)((count + SUMS - 1) / SUMS)), THREADS, 0,
                   (cudaStream_t)stream, parts, pitch, own, rank, ranks, count, out);
}
