/* The scratch of a dense product with weights in tiles: how much, for every table. */
#ifndef BATON_COMMON_KERNELS_X86_LINEAR_MEMORY_H
#define BATON_COMMON_KERNELS_X86_LINEAR_MEMORY_H

#include "common/kernels/stream.h"
#include "common/kernels/tiles.h"

/*
 * No bit of a result depends on these. A part is so many rows by so many panels at most; it goes
 * along k in steps, so that its rows (1 MiB) stay in L2 while the panels pass, and its outputs
 * wait in memory near it. Panels are done by groups: their sums, or their expanded tiles, are a
 * thread's scratch.
 */
#define BT_LINEAR_ROWS   512
#define BT_LINEAR_PANELS 30
#define BT_LINEAR_STEP   32 /* tiles */
#define BT_LINEAR_GROUP  6  /* panels */

/* Bytes of rows of x as A tiles, whole blocks of 16. */
static inline size_t bt_linear_packed_bytes(size_t rows, size_t cols, size_t tile_inputs)
{
    return bt_tiles_of(rows, 16) * bt_tiles_of(cols, tile_inputs) * BT_TILE_BYTES;
}

#define BT_LINEAR_SUMS     ((size_t)BT_LINEAR_ROWS * BT_LINEAR_GROUP * BT_TILE_OUTS)
#define BT_LINEAR_EXPANDED ((size_t)BT_LINEAR_GROUP * BT_LINEAR_STEP * BT_TILE_BYTES)

/* Of one thread: the sums of a group, then its expanded tiles. */
static inline size_t bt_linear_thread_bytes(void)
{
    return BT_LINEAR_SUMS * sizeof(float) + BT_LINEAR_EXPANDED;
}

static inline size_t bt_linear_bytes(size_t rows, size_t cols, size_t threads)
{
    return bt_scratch_bytes(bt_linear_packed_bytes(rows, cols, BT_TILE_BF16), 1) +
           bt_scratch_bytes(bt_linear_packed_bytes(rows, cols, BT_TILE_INT8), 1) +
           bt_scratch_bytes(rows, sizeof(float)) +
           bt_scratch_bytes(threads, bt_linear_thread_bytes());
}

#endif
