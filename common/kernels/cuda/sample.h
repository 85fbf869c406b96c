/* Internal to this backend: drawing tokens, see sample_draw.cu. Pointers are the device's. */
#ifndef BATON_COMMON_KERNELS_CUDA_SAMPLE_H
#define BATON_COMMON_KERNELS_CUDA_SAMPLE_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#define BT_CUDA_SAMPLE_BLOCK 128  /* tokens whose best logit is kept */
#define BT_CUDA_SAMPLE_SLICE 4096 /* tokens whose weights are summed up by one block of threads */

#ifdef __cplusplus
extern "C" {
#endif

#define BT_CUDA_MAX_TOP 20 /* BT_DRAW_MAX_TOP */

/* Structs of kernels.h, which only C reads: bt_draw, bt_adjust, bt_logprobs. */
struct bt_cuda_draw {
    uint64_t seed;
    uint32_t position;
    float temperature, top_p, min_p;
    int32_t top_k;
    uint32_t logprobs;
    uint32_t adjust_begin, bias_count, masked_count, seen_count;
    float repetition, presence, frequency;
    uint32_t newest, newest_token;
};

struct bt_cuda_adjust {
    uint32_t token;
    uint32_t value; /* bias, as bits, or outputs */
};

struct bt_cuda_logprobs {
    uint64_t sum;
    float best, logit;
    uint32_t top_count;
    struct {
        uint32_t token;
        float logit;
    } top[BT_CUDA_MAX_TOP];
};

/* A logit before its adjust. */
struct bt_cuda_adjusted {
    uint32_t token;
    float logit;
};

struct bt_cuda_sample {
    float *logits; /* [rows][vocab_size] */
    const struct bt_cuda_draw *draws;
    const struct bt_cuda_adjust *adjusts; /* of all rows */
    uint32_t rows, vocab_size;
    uint32_t blocks, slices;           /* of a row */
    uint32_t *maxima;                  /* [rows][blocks] keys of logits (sample.cuh) */
    uint64_t *sums;                    /* [rows][slices] of weights; where a row needs them */
    float *before;                     /* [adjusts] the logit before it */
    struct bt_cuda_adjusted *newest;   /* [rows] that is not in the list; where a row has one */
    uint32_t *tokens;                  /* [rows] */
    uint32_t *kept;                    /* [rows] likewise, of the draw before until then; or NULL */
    struct bt_cuda_logprobs *logprobs; /* [rows]; or NULL */
    bool raw; /* maxima and sums are those of logprobs, of rows that want them, and no draw's */
};

/* One after the other: with logprobs maxima and sums (raw), logprobs; then adjust, maxima, sums,
 * draw. */
void bt_cuda_launch_sample_logprobs(const struct bt_cuda_sample *sample, cudaStream_t stream);
void bt_cuda_launch_sample_adjust(const struct bt_cuda_sample *sample, cudaStream_t stream);
void bt_cuda_launch_sample_maxima(const struct bt_cuda_sample *sample, cudaStream_t stream);
void bt_cuda_launch_sample_sums(const struct bt_cuda_sample *sample, cudaStream_t stream);
void bt_cuda_launch_sample_draw(const struct bt_cuda_sample *sample, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
