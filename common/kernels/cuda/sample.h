/* Internal to this backend: drawing tokens, see sample_draw.cu. Pointers are the device's. */
#ifndef BATON_COMMON_KERNELS_CUDA_SAMPLE_H
#define BATON_COMMON_KERNELS_CUDA_SAMPLE_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#define BT_CUDA_SAMPLE_BLOCK 128  /* tokens whose best logit is kept */
#define BT_CUDA_SAMPLE_SLICE 4096 /* tokens whose weights are summed up by one block of threads */

#ifdef __cplusplus
extern "C" {
#endif

/* bt_draw of kernels.h, which only C reads. */
struct bt_cuda_draw {
    uint64_t seed;
    uint32_t position;
    float temperature, top_p, min_p;
    int32_t top_k;
};

struct bt_cuda_sample {
    const float *logits; /* [rows][vocab_size] */
    const struct bt_cuda_draw *draws;
    uint32_t rows, vocab_size;
    uint32_t blocks, slices; /* of a row */
    uint32_t *maxima;        /* [rows][blocks] keys of logits (sample.cuh) */
    uint64_t *sums;          /* [rows][slices] of weights; where a row needs them */
    uint32_t *tokens;        /* [rows] */
    uint32_t *kept;          /* [rows] likewise; or NULL */
};

/* One after the other. */
void bt_cuda_launch_sample_maxima(const struct bt_cuda_sample *sample, cudaStream_t stream);
void bt_cuda_launch_sample_sums(const struct bt_cuda_sample *sample, cudaStream_t stream);
void bt_cuda_launch_sample_draw(const struct bt_cuda_sample *sample, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
