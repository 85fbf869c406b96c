/*
 * The x86 backends. The files of f32 arithmetic are compiled twice, for AVX2 and for AVX-512, with
 * the same bits: lanes.h gives both the same 16 lanes, fused multiply-add and order of sums. The
 * files of tile arithmetic and table.c are compiled for each table, with the gemm_* and tokens_*
 * that its instructions need.
 */
#ifndef BATON_COMMON_KERNELS_X86_X86_H
#define BATON_COMMON_KERNELS_X86_X86_H

#include "common/kernels/kernels.h"

extern const struct bt_kernels bt_kernels_avx2;
extern const struct bt_kernels bt_kernels_avx512;
extern const struct bt_kernels bt_kernels_avx512_bf16;
extern const struct bt_kernels bt_kernels_amx;

/* NULL, or the names of what this CPU (or its operating system) lacks. */
const char *bt_x86_missing_avx2(void);
const char *bt_x86_missing_avx512(void);
const char *bt_x86_missing_avx512_bf16(void);
/* Asks the operating system for the tile registers, once for the process. */
const char *bt_x86_missing_amx(void);

/* The largest scratch of one operation within the limits, of any table. */
size_t bt_x86_scratch_bytes(const struct bt_stream_limits *limits, uint32_t threads);

/* Weights converted to f32 for many rows: a panel of at most these, so that it stays in L2. */
#define BT_X86_PANEL_FLOATS (128u * 1024)
#define BT_X86_PANEL_OUTS   64
/* Behind the panel: a block of the rows, and the lanes of its sums until all columns are done. */
#define BT_X86_BLOCK_ROWS   9
#define BT_X86_BLOCK_FLOATS (6u * 2048)
#define BT_X86_PRODUCT_FLOATS                                                                      \
    (BT_X86_PANEL_FLOATS + BT_X86_BLOCK_FLOATS + BT_X86_BLOCK_ROWS * BT_X86_PANEL_OUTS * 16)
/* From so many rows on, converting the weights first pays. */
#define BT_X86_PANEL_MIN_ROWS 8

/* Rows worked on together. No bit of a result depends on these. */
#define BT_X86_PREFILL_ROWS 64
#define BT_X86_DECODE_ROWS  16
#define BT_X86_ROUTE_ROWS   64
#define BT_X86_EXPERT_ROWS  256

/* Rounded up to whole vectors of 16. */
static inline size_t bt_x86_padded(size_t count)
{
    return (count + 15) / 16 * 16;
}

#endif
