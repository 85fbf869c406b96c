/*
 * Which picks go where, worked out on a GPU (arrivals_cuda.cu), with the same results as experts.c.
 * A pick is a word: expert | rank << 16; the lists of all ranks have room for the same number of
 * rows. All pointers are the device's; work is queued on `stream`, a cudaStream_t. Internal to this
 * folder.
 */
#ifndef BATON_COMMON_PARALLEL_ARRIVALS_CUDA_H
#define BATON_COMMON_PARALLEL_ARRIVALS_CUDA_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BT_NO_PICK 0xffffffffu

/* A layer's placement, as one rank sees it. */
struct bt_cuda_copies {
    const uint32_t *first; /* [experts + 1] of each expert in `ranks` */
    const uint32_t *flags; /* [experts] */
    const uint32_t *ranks; /* that may be asked for it */
    bool choices;          /* some experts have several copies */
};
#define BT_COPIES_ONE  1u /* the expert has one copy */
#define BT_COPIES_HERE 2u /* this rank has one */

/* Own picks. */
struct bt_cuda_choice {
    const uint32_t *experts; /* [rows][per_row] */
    const uint32_t *live;    /* [1] picks that are no padding; NULL: all are none */
    struct bt_cuda_copies copies;
    uint32_t rows, slots, per_row; /* rows <= slots */
    uint32_t rank;
    uint32_t *words; /* [slots][per_row] */
};
void bt_arrivals_cuda_choose(void *stream, const struct bt_cuda_choice *choice);

/* Those of all ranks that come here. */
struct bt_cuda_arrivals {
    const uint32_t *words; /* [ranks][slots][per_row] */
    const uint32_t *flags; /* of struct bt_cuda_copies */
    uint32_t picks, rank, experts;
    uint32_t *counts;        /* [experts] */
    uint32_t *order, *begin; /* of struct bt_routing; order: places in `words` */
    uint32_t *faults;        /* [experts] pinned: 1 where picks came for one that is not here */
};
void bt_arrivals_cuda_sort(void *stream, const struct bt_cuda_arrivals *arrivals);

/* out row order[i] = y row i, for i < *count <= picks; `halves` 16-bit words each. */
void bt_arrivals_cuda_return(void *stream, const uint16_t *y, const uint32_t *order,
                             const uint32_t *count, uint32_t picks, uint32_t halves, uint16_t *out);

/* out row += weights * y over its picks by ascending expert, fused; payload: 0 f32, 1 bf16. */
struct bt_cuda_sum {
    const void *y;         /* [rank][slots][per_row][hidden] from each rank its own picks */
    const uint32_t *words; /* [slots][per_row] */
    const float *weights;  /* [rows][per_row] */
    uint32_t rows, slots, per_row, hidden;
    int payload;
    float *out; /* [rows][hidden] */
};
void bt_arrivals_cuda_sum(void *stream, const struct bt_cuda_sum *sum);

#ifdef __cplusplus
}
#endif

#endif
