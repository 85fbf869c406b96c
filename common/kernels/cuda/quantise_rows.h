/*
 * Rows of activations as weights multiply them. The dtype of inputs follows from the weight:
 *
 *     weight               inputs      data                                scales
 *     ROWS                 F32         the rows themselves, any alignment  none
 *     TILES of BF16        BF16        [row][pitch], pitch: cols to 64     none
 *     TILES of F8_E4M3     F8_E4M3     [row][pitch], pitch: cols to 128    bt_cuda_scale_at: [block
 *                                      of 128 inputs][head] of the first rows, a multiple of 4 (as
 *                                      cuBLASLt wants them), then [block][4] of the last, if any
 *     TILES of I8, I4      I8          [row][pitch], pitch: cols to 128    [row]
 *
 * Inputs beyond cols are zeros. Scales as kernels.h says: of F8_E4M3 max |x| / 448 and at least
 * FLT_MIN, 1 when all are 0; of I8 max |x| / 127 and at least FLT_MIN, 1 when all are 0. Where
 * something is not finite the scale is a NaN, and so is all that comes of it. Elements are x /
 * scale, correctly rounded, then rounded to nearest even.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_QUANTISE_ROWS_H
#define BATON_COMMON_KERNELS_CUDA_QUANTISE_ROWS_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#include "common/kernels/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

/* In device memory, 256-byte aligned but for F32. */
struct bt_cuda_inputs {
    enum bt_dtype dtype;
    void *data;
    float *scales;
    uint32_t cols, pitch; /* elements */
    uint32_t head;        /* of F8_E4M3: rows / 4 * 4 of the rows that there is room for */
};

/* Index of the scale of a row's block, of F8_E4M3; blocks: pitch / 128. Also for kernels. */
#ifdef __CUDACC__
#define BT_CUDA_BOTH __host__ __device__
#else
#define BT_CUDA_BOTH
#endif
static inline BT_CUDA_BOTH size_t bt_cuda_scale_at(uint32_t head, uint32_t blocks, uint32_t row,
                                                   uint32_t block)
{
    if (row < head)
        return (size_t)block * head + row;
    return (size_t)blocks * head + 4 * (size_t)block + row - head;
}

/*
 * Fills inputs of BF16, F8_E4M3 or I8: row i is row picks[i] / per_row of x (picks NULL: row i), so
 * rows can be expanded on the way. live NULL, or [1] of the device: rows from *live on are zeros
 * with scales of 1, and neither x nor picks is read for them.
 */
void bt_cuda_launch_quantise_rows(const float *x, const uint32_t *picks, uint32_t per_row,
                                  uint32_t rows, const uint32_t *live,
                                  const struct bt_cuda_inputs *inputs, cudaStream_t stream);

#ifndef __cplusplus
struct bt_cuda_stream;
struct bt_matrix;

/* Of a weight's inputs. */
enum bt_dtype bt_cuda_input_dtype(const struct bt_matrix *weight);
uint32_t bt_cuda_input_pitch(enum bt_dtype dtype, uint32_t cols);
/* What bt_cuda_inputs_take takes of the scratch; 0 for F32. */
size_t bt_cuda_inputs_bytes(enum bt_dtype dtype, uint32_t rows, uint32_t cols);
/* Room for so many rows (padded to 4), of the scratch. For F32 data is NULL. */
struct bt_cuda_inputs bt_cuda_inputs_take(struct bt_cuda_stream *stream, enum bt_dtype dtype,
                                          uint32_t rows, uint32_t cols);
/* x, rows of f32 with `weight`'s cols, as inputs of weights of that dtype and layout: those that
 * are there themselves for ROWS, else out of the scratch and filled by a launch. */
struct bt_cuda_inputs bt_cuda_inputs_of(struct bt_cuda_stream *stream,
                                        const struct bt_matrix *weight, const float *x,
                                        uint32_t rows);
#endif

#ifdef __cplusplus
}
#endif

#endif
