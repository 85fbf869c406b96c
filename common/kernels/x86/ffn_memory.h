/* The scratch of the feed-forward networks of ffn.h: how much, for every table. */
#ifndef BATON_COMMON_KERNELS_X86_FFN_MEMORY_H
#define BATON_COMMON_KERNELS_X86_FFN_MEMORY_H

#include "common/kernels/stream.h"
#include "common/kernels/tiles.h"

/* Rows of one job, and stored rows of all jobs of one block at most. No bit of a result depends on
 * these. */
#define BT_FFN_JOB_ROWS   256
#define BT_FFN_BLOCK_ROWS 512
/* Outputs of one part at most, as panels; more of them where no job has more than 16 rows. */
#define BT_FFN_PART_PANELS     6
#define BT_FFN_FEW_ROWS_PANELS 24
/* Tiles of one step along k: that of a job's rows stays in L2. */
#define BT_FFN_STEP_TILES 64
/* Panels whose stored tiles are expanded together. */
#define BT_FFN_EXPAND_PANELS 6

struct bt_ffn_job {
    const struct bt_matrix *gate, *up, *down;
    const uint32_t *picks; /* [rows]; the row of x is pick / per_row */
    size_t rows;           /* 1 … BT_FFN_JOB_ROWS */
    size_t at;             /* where its rows are stored in the block's buffers */
};

/* A job of few rows has tiles of so many lines, others of 16. */
static inline size_t bt_ffn_stored(size_t rows)
{
    return rows < 16 ? rows : (rows + 15) / 16 * 16;
}

/* Stored rows of a block where a call has so many rows in all of its jobs: at most twice that. */
static inline size_t bt_ffn_block_rows(size_t job_rows)
{
    return job_rows < BT_FFN_BLOCK_ROWS / 2 ? 2 * job_rows : BT_FFN_BLOCK_ROWS;
}

/* Bytes of a packed row, bf16 or int8. */
static inline size_t bt_ffn_row_bytes(size_t cols, enum bt_dtype dtype)
{
    return bt_tiles_of(cols, bt_tile_inputs(dtype)) * BT_TILE_LINE;
}

/* Of one thread: sums of gate and up, then tiles that are expanded or a block of 16 packed rows. */
#define BT_FFN_SUMS ((size_t)BT_FFN_JOB_ROWS * BT_FFN_PART_PANELS * BT_TILE_OUTS)
static inline size_t bt_ffn_thread_bytes(size_t inner)
{
    size_t expanded = (size_t)BT_FFN_EXPAND_PANELS * BT_FFN_STEP_TILES * BT_TILE_BYTES;
    size_t packed = bt_ffn_row_bytes(inner, BT_I8) * 16;
    return 2 * BT_FFN_SUMS * sizeof(float) + (expanded > packed ? expanded : packed);
}

/* What bt_ffn_take takes at most. */
static inline size_t bt_ffn_bytes(size_t rows, size_t job_rows, size_t inputs, size_t inner,
                                  size_t threads)
{
    size_t block_rows = bt_ffn_block_rows(job_rows);
    return bt_scratch_bytes((rows + 15) / 16 * 16, bt_ffn_row_bytes(inputs, BT_BF16)) +
           bt_scratch_bytes(rows, sizeof(float)) +
           bt_scratch_bytes(block_rows, sizeof(struct bt_ffn_job)) +
           bt_scratch_bytes(block_rows, bt_ffn_row_bytes(inputs, BT_BF16)) +
           bt_scratch_bytes(block_rows, inner * sizeof(float)) +
           bt_scratch_bytes(block_rows, bt_ffn_row_bytes(inner, BT_BF16)) +
           bt_scratch_bytes(block_rows, sizeof(float)) +
           bt_scratch_bytes(threads, bt_ffn_thread_bytes(inner));
}

#endif
