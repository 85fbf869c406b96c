/* Internal to this backend: picks and their rows, see permute.cu and unpermute.cu. Pointers are the
 * device's. */
#ifndef BATON_COMMON_KERNELS_CUDA_PERMUTE_H
#define BATON_COMMON_KERNELS_CUDA_PERMUTE_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#define BT_CUDA_PERMUTE_WORDS 16 /* experts, 32 a word */

#ifdef __cplusplus
extern "C" {
#endif

/* places[order[i]] = i for i < begin[experts]; of `picks` at most. */
void bt_cuda_launch_pick_places(const uint32_t *order, const uint32_t *begin, uint32_t experts,
                                uint32_t picks, uint32_t *places, cudaStream_t stream);
/* run_begin [experts + 1]: `begin` within the run of picks `first` … first + count - 1. */
void bt_cuda_launch_run_begin(const uint32_t *begin, uint32_t experts, uint32_t first,
                              uint32_t count, uint32_t *run_begin, cudaStream_t stream);

/* out[row] = fma(weight, y, out[row]) over the row's picks in the run, in ascending order of
 * experts, of those experts that are here. */
struct bt_cuda_unpermute {
    const uint32_t *experts, *places; /* [rows][per_row] */
    const float *weights;
    const void *y; /* [count][cols] of bf16 or f32: picks first … first + count - 1 of the order */
    float *out;    /* [rows][cols] */
    const uint32_t *live; /* [1] rows that are no padding; NULL: all */
    uint32_t rows, per_row, cols, first, count;
    bool is_bf16;
    uint32_t here[BT_CUDA_PERMUTE_WORDS];
};
void bt_cuda_launch_unpermute(const struct bt_cuda_unpermute *unpermute, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
