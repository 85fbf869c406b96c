/*
 * The products that tile arithmetic is made of. One interface, an implementation for each
 * instruction set (gemm_*.c); everything above is written once against it and compiled for each.
 *
 *     c[r][n] (+)= sum over k of a[r][k] * b[n][k]
 *
 * A: bf16 or int8, addressed in tiles of 16 rows by 64 bytes; inputs beyond the last are zero. Rows
 * beyond `rows` of the last block are read by nobody. B: panels of 16 outputs (common/kernels/
 * tiles.h), 64-byte aligned. C: f32 or int32, row-major.
 *
 * The bits of c[r][n] depend on row r of a, on output n of b and on the number of tiles alone.
 * Products in steps along k (accumulate) give the bits of one product, when all steps begin at the
 * same tiles.
 *
 * oneDNN 2.6 (tests/bench/gemm_peer) with AVX512_BF16: 0.6 to 1.0 of this up to 32 rows, 1.0
 * to 1.07 of it at 512; it promises no order of sums that is the same for every number of rows, so
 * no.
 */
#ifndef BATON_COMMON_KERNELS_X86_GEMM_H
#define BATON_COMMON_KERNELS_X86_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/kernels/tiles.h"
#include "common/kernels/x86/lanes.h"

/*
 * Row r, tile t begins at data + r / 16 * block_stride + t * tile_stride + r % 16 * row_stride.
 * Packed activations: row_stride 64, tile_stride 1024, block_stride tiles * 1024. A page of latents
 * as A: row_stride the token's bytes, tile_stride 64, block_stride 16 * row_stride.
 */
struct bt_tile_rows {
    const void *data;
    size_t block_stride, tile_stride, row_stride; /* bytes */
};

/* Panel p, tile t begins at data + p * panel_stride + t * 1024. */
struct bt_tile_panels {
    const void *data;
    size_t panel_stride; /* bytes */
    size_t panels;
};

/* Before the first product of an operation on a thread, and after the last. Cheap; no other code
 * that uses tile registers may run between. */
void BT_X86_NAME(gemm_begin)(void);
void BT_X86_NAME(gemm_end)(void);

/* c [rows][c_stride]: writes rows x panels * 16. */
void BT_X86_NAME(gemm_bf16)(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b,
                            size_t tiles, bool accumulate, float *c, size_t c_stride);
void BT_X86_NAME(gemm_int8)(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b,
                            size_t tiles, bool accumulate, int32_t *c, size_t c_stride);

/* As gemm_int8 over all tiles of `panels` panels of an I4 matrix, from `panel` on, as they are
 * stored: the same integers. Up to BT_INT4_ROWS rows: as many as are not faster with tiles that
 * were expanded. */
#if defined(__AVX512VNNI__) && !defined(__AMX_TILE__)
#define BT_INT4_ROWS 32
#else
#define BT_INT4_ROWS 8
#endif
void BT_X86_NAME(gemm_int4)(struct bt_tile_rows a, size_t rows, const struct bt_matrix *b,
                            size_t panel, size_t panels, int32_t *c, size_t c_stride);

/*
 * Packs f32 rows as A tiles of bf16, rounded to nearest even, inputs padded with zeros: out is
 * [block of 16 rows][tile][16][64 bytes]; rows of a last block that are not there are left as they
 * are. `picks` NULL: row i; else the source of row i is row picks[i] / per_row.
 */
void BT_X86_NAME(pack_bf16)(const float *x, size_t stride, const uint32_t *picks, size_t per_row,
                            size_t rows, size_t cols, void *out);
/* The same as int8, x / scale rounded to nearest even; scales [rows]: max |x| / 127 and at least
 * FLT_MIN; 1 for a row of zeros, NaN for a row with something that is not finite. */
void BT_X86_NAME(pack_int8)(const float *x, size_t stride, const uint32_t *picks, size_t per_row,
                            size_t rows, size_t cols, void *out, float *scales);

/* Expands stored tiles [first, first + count) of a panel of a F8_E4M3 or I4 matrix to 1024-byte
 * tiles of bf16 or int8. */
void BT_X86_NAME(expand_tiles)(const struct bt_matrix *matrix, size_t panel, size_t first,
                               size_t count, void *out);

#endif
