/* Rows on a GPU (rows_cuda.cu): as rows.h, with the same bits. All pointers are the device's; work
 * is queued on `stream`, a cudaStream_t. Internal to this folder. */
#ifndef BATON_COMMON_PARALLEL_ROWS_CUDA_H
#define BATON_COMMON_PARALLEL_ROWS_CUDA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* payload: 0 f32, 1 bf16, 2 f8_e4m3. x has `rows` rows. out row i, for each of the places, of
 * row_bytes, = round(x row list[i]); without a list row i, zeros where there is none. */
void bt_rows_cuda_round(void *stream, int payload, const float *x, uint32_t rows,
                        const uint32_t *list, uint32_t places, uint32_t hidden, uint32_t row_bytes,
                        void *out);
/* out row i = expand(row i). */
void bt_rows_cuda_expand(void *stream, int payload, const void *in, uint32_t rows, uint32_t hidden,
                         uint32_t row_bytes, float *out);
/* out row i = y row list[i]; `halves` 16-bit words each. */
void bt_rows_cuda_gather(void *stream, const uint16_t *y, const uint32_t *list, uint32_t rows,
                         uint32_t halves, uint16_t *out);
/* out row r += weights[r][j] * y row slots[r][j], j ascending, fused. payload: 0 or 1. */
void bt_rows_cuda_add(void *stream, int payload, const void *y, const uint32_t *slots,
                      const float *weights, uint32_t rows, uint32_t k, uint32_t hidden, float *out);

/* out [count] = the sum of all ranks' floats in ascending order: those of `rank` are `own`, those
 * of another r are at parts + r * pitch. out may be own. */
void bt_rows_cuda_sum(void *stream, const float *parts, size_t pitch, const float *own,
                      uint32_t rank, uint32_t ranks, size_t count, float *out);

#ifdef __cplusplus
}
#endif

#endif
