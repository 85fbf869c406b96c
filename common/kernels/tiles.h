/*
 * BT_LAYOUT_TILES: weights in the order in which matrix units read them, the same for every CPU
 * backend. A tile is 16 outputs by 64 bytes of inputs (32 bf16, 64 int8): 16 lines of 64 bytes;
 * line j holds, output after output, the inputs 2j and 2j + 1 (bf16) or 4j … 4j + 3 (int8).
 *
 *     BT_USE_LINEAR   [panel of 16 outputs][tile of inputs][tile], outputs and inputs padded with 0
 *         BF16     1024 bytes a tile
 *         I8       1024 bytes a tile; scales [rows padded to 16], after the tiles
 *         F8_E4M3   512 bytes a tile, in the order of BF16, one byte an element; the scales of the
 *                  128 x 128 blocks as in ROWS, after the tiles
 *         I4        512 bytes a tile of 64 inputs: byte i holds byte i of the I8 tile in its low
 *                  four bits and byte i + 512 in its high ones (two's complement); group_scales
 *                  [panel][group of 128 inputs][16], scales as I8, both after the tiles
 *
 * F8_E4M3 is multiplied as bf16(value * scale), I4 as int8(value * group scale): exact, since it is
 * at most 127.
 *
 *     BT_USE_KV_B     for each head three operands, all bf16, one after the other:
 *         absorb   [panel of 16 latent dims][tile of nope]: B of q_lat = q_nope * K
 *         keys     [block of 16 nope dims][tile of latent]: A tiles (16 rows of 64 bytes), rows are
 *                  nope dims: A of K^T = keys * latents^T
 *         values   [panel of 16 v dims][tile of latent]: B of v = latent * V^T
 */
#ifndef BATON_COMMON_KERNELS_TILES_H
#define BATON_COMMON_KERNELS_TILES_H

#include "common/kernels/kernels.h"

#define BT_TILE_OUTS   16
#define BT_TILE_BYTES  1024
#define BT_TILE_LINE   64
#define BT_TILE_BF16   32 /* inputs of a bf16 tile */
#define BT_TILE_INT8   64 /* inputs of an int8 tile */
#define BT_SCALE_BLOCK 128

static inline size_t bt_tiles_of(size_t count, size_t each)
{
    return (count + each - 1) / each;
}

/* Inputs of one tile of a packed dtype. */
static inline size_t bt_tile_inputs(enum bt_dtype dtype)
{
    return dtype == BT_I8 || dtype == BT_I4 ? BT_TILE_INT8 : BT_TILE_BF16;
}

/* Bytes of one tile as stored. */
static inline size_t bt_tile_bytes(enum bt_dtype dtype)
{
    return dtype == BT_F8_E4M3 || dtype == BT_I4 ? BT_TILE_BYTES / 2 : BT_TILE_BYTES;
}

/* Tiles of one panel. */
static inline size_t bt_panel_tiles(const struct bt_matrix *matrix)
{
    return bt_tiles_of(matrix->cols, bt_tile_inputs(matrix->dtype));
}

/* One panel's stored tiles. LINEAR only. */
static inline const void *bt_panel(const struct bt_matrix *matrix, size_t panel)
{
    return (const char *)matrix->data +
           panel * bt_panel_tiles(matrix) * bt_tile_bytes(matrix->dtype);
}

/* The operands of one head of a KV_B matrix. */
struct bt_kv_b_head {
    const uint16_t *absorb, *keys, *values;
};
struct bt_kv_b_head bt_tiles_kv_b_head(const struct bt_matrix *kv_b,
                                       const struct bt_mla_shape *shape, size_t head);

/* As packed_bytes and pack of the table. */
size_t bt_tiles_bytes(const struct bt_matrix *matrix, enum bt_use use,
                      const struct bt_mla_shape *shape);
void bt_tiles_pack(struct bt_stream *stream, const struct bt_matrix *matrix, enum bt_use use,
                   const struct bt_mla_shape *shape, void *out, struct bt_matrix *ret_packed);

/*
 * The weights that arithmetic sees (scales of rows left out for I8 and I4), for ref and tests:
 * columns col … col + count - 1 of a row, of any layout of LINEAR.
 */
void bt_tiles_read(const struct bt_matrix *matrix, size_t row, size_t col, size_t count,
                   float *out);
float bt_tiles_at(const struct bt_matrix *matrix, size_t row, size_t col);

/* Row `row` (0 … nope + v - 1) of a head of a KV_B matrix, out [kv_lora_rank]: from keys and
 * values, or (absorbed) the first nope ones from absorb. */
void bt_tiles_read_kv_b(const struct bt_matrix *kv_b, const struct bt_mla_shape *shape, size_t head,
                        size_t row, bool absorbed, float *out);

#endif
