/*
 * down(silu(gate(x)) * up(x)) in tile arithmetic, for a dense MLP and for experts alike: a job is
 * one such network with some rows. Jobs of one block are worked on together, in phases with all
 * threads: the rows of each job side by side; gate and up, SwiGLU in their epilogue, the inner row
 * straight into A tiles (int8: after its maximum is known); down, the result into the output.
 */
#ifndef BATON_COMMON_KERNELS_X86_FFN_H
#define BATON_COMMON_KERNELS_X86_FFN_H

#include "common/kernels/x86/ffn_memory.h"
#include "common/kernels/x86/lanes.h"

struct bt_ffn {
    struct bt_stream *stream;
    size_t inputs, inner, outs, per_row;
    enum bt_dtype in_dtype, inner_dtype; /* of gate and up, and of down */
    const float *weights;                /* by pick; NULL: a dense one, or to y */
    float *out;                          /* [row][outs]: set if dense, else added to */
    uint16_t *y;                         /* [place in order][outs], bf16; NULL: to out */
    const uint32_t *order;               /* with y: picks of all jobs point into it */

    void *x; /* rows of x as A tiles; BF16 or I8 by in_dtype */
    float *x_scales;
    struct bt_ffn_job *jobs; /* [block_rows] */
    size_t job_count;
    size_t block_rows, stored_rows; /* the most, and those of these jobs */
    void *in;                       /* [block_rows] of x as A tiles, job by job; may be x itself */
    float *middle;                  /* [block_rows][inner]: before they are quantised */
    void *packed;                   /* [block_rows] of inner as A tiles */
    float *packed_scales;
    char *thread_memory;
    size_t thread_bytes;
};

/* Takes the scratch of a ffn whose shape is filled in: for `rows` rows of x that are packed at
 * once, and jobs of `job_rows` rows in all. */
void BT_X86_NAME(ffn_take)(struct bt_ffn *ffn, size_t rows, size_t job_rows);
/* Packs rows of x [row][inputs] as ffn->x. */
void BT_X86_NAME(ffn_pack)(const struct bt_ffn *ffn, const float *x, size_t rows);
/* Adds a job; false: the block has no room for it. */
bool BT_X86_NAME(ffn_add)(struct bt_ffn *ffn, struct bt_ffn_job job);
/* Runs the jobs of the block and empties it. Jobs that share a row are added in their order. */
void BT_X86_NAME(ffn_run)(struct bt_ffn *ffn);

#endif
