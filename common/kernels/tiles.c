#include "common/kernels/tiles.h"

#include <string.h>

#include "common/kernels/stream.h"
#include "common/kernels/weight.h"

static size_t padded_outs(const struct bt_matrix *matrix)
{
    return bt_tiles_of(matrix->rows, BT_TILE_OUTS) * BT_TILE_OUTS;
}

static bool is_quantised(enum bt_dtype dtype)
{
    return dtype == BT_F8_E4M3 || dtype == BT_I8 || dtype == BT_I4;
}

static enum bt_dtype packed_dtype(enum bt_dtype dtype)
{
    return is_quantised(dtype) ? dtype : BT_BF16;
}

static size_t scale_count(const struct bt_matrix *matrix)
{
    if (matrix->dtype == BT_F8_E4M3)
        return bt_tiles_of(matrix->rows, BT_SCALE_BLOCK) *
               bt_tiles_of(matrix->cols, BT_SCALE_BLOCK);
    return is_quantised(matrix->dtype) ? padded_outs(matrix) : 0;
}

static size_t group_scale_bytes(const struct bt_matrix *matrix)
{
    return matrix->dtype == BT_I4 ? padded_outs(matrix) * bt_tiles_of(matrix->cols, BT_SCALE_BLOCK)
                                  : 0;
}

static size_t lines(size_t bytes)
{
    return bt_tiles_of(bytes, BT_TILE_LINE) * BT_TILE_LINE;
}

static size_t tiles_bytes(const struct bt_matrix *matrix)
{
    enum bt_dtype dtype = packed_dtype(matrix->dtype);
    return bt_tiles_of(matrix->rows, BT_TILE_OUTS) *
           bt_tiles_of(matrix->cols, bt_tile_inputs(dtype)) * bt_tile_bytes(dtype);
}

/* Bytes of the three operands of one head. */
static size_t absorb_bytes(const struct bt_mla_shape *shape)
{
    return bt_tiles_of(shape->kv_lora_rank, 16) * bt_tiles_of(shape->qk_nope_head_dim, 32) *
           BT_TILE_BYTES;
}

static size_t keys_bytes(const struct bt_mla_shape *shape)
{
    return bt_tiles_of(shape->qk_nope_head_dim, 16) * bt_tiles_of(shape->kv_lora_rank, 32) *
           BT_TILE_BYTES;
}

static size_t values_bytes(const struct bt_mla_shape *shape)
{
    return bt_tiles_of(shape->v_head_dim, 16) * bt_tiles_of(shape->kv_lora_rank, 32) *
           BT_TILE_BYTES;
}

struct bt_kv_b_head bt_tiles_kv_b_head(const struct bt_matrix *kv_b,
                                       const struct bt_mla_shape *shape, size_t head)
{
    size_t absorb = absorb_bytes(shape), keys = keys_bytes(shape);
    const char *at = (const char *)kv_b->data + head * (absorb + keys + values_bytes(shape));
    return (struct bt_kv_b_head){(const uint16_t *)at, (const uint16_t *)(at + absorb),
                                 (const uint16_t *)(at + absorb + keys)};
}

size_t bt_tiles_bytes(const struct bt_matrix *matrix, enum bt_use use,
                      const struct bt_mla_shape *shape)
{
    if (use == BT_USE_KV_B)
        return shape->heads * (absorb_bytes(shape) + keys_bytes(shape) + values_bytes(shape));
    return lines(tiles_bytes(matrix)) + lines(scale_count(matrix) * sizeof(float)) +
           lines(group_scale_bytes(matrix));
}

/* Compiled for each dtype apart: what depends on it is decided once for a row. */
#define EACH_DTYPE static inline __attribute__((always_inline))

/* An element of ROWS as it is stored: i8 and i4 as integers, f8 without its scale. */
EACH_DTYPE float stored_at(const struct bt_matrix *matrix, enum bt_dtype dtype, size_t index)
{
    if (dtype == BT_F8_E4M3)
        return bt_f8_e4m3_to_f32(((const uint8_t *)matrix->data)[index]);
    if (dtype == BT_I8)
        return ((const int8_t *)matrix->data)[index];
    if (dtype == BT_I4) {
        uint8_t byte = ((const uint8_t *)matrix->data)[index / 2];
        int value = index % 2 ? byte >> 4 : byte & 15;
        return (float)(value >= 8 ? value - 16 : value);
    }
    return bt_element_load(matrix->data, dtype, index);
}

static float block_scale(const struct bt_matrix *matrix, size_t row, size_t col)
{
    size_t blocks = bt_tiles_of(matrix->cols, BT_SCALE_BLOCK);
    return matrix->scales[row / BT_SCALE_BLOCK * blocks + col / BT_SCALE_BLOCK];
}

static float round_bf16(float value)
{
    return bt_bf16_to_f32(bt_f32_to_bf16(value));
}

static size_t bf16_offset(size_t n, size_t k)
{
    return k / 2 * BT_TILE_LINE + n * 4 + k % 2 * 2;
}

static size_t int8_offset(size_t n, size_t k)
{
    return k / 4 * BT_TILE_LINE + n * 4 + k % 4;
}

/*
 * Copies `units` of `bytes` each of sixteen rows to lines: unit j of row n becomes unit n of line
 * j. A unit is what one output has in a line: two bf16, four int8, two e4m3.
 */
static inline void put_units(const uint8_t *const rows[BT_TILE_OUTS], size_t units, size_t bytes,
                             uint8_t *tile)
{
    for (size_t j = 0; j < units; j++) {
        for (size_t n = 0; n < BT_TILE_OUTS; n++)
            memcpy(tile + (j * BT_TILE_OUTS + n) * bytes, rows[n] + j * bytes, bytes);
    }
}

/* The four nibbles of x in the low halves of four bytes. */
static inline uint32_t spread_nibbles(uint32_t x)
{
    x = (x | x << 8) & 0x00ff00ffu;
    return (x | x << 4) & 0x0f0f0f0fu;
}

/* Rows of 32 bytes, 64 inputs. Inputs 4j … are unit j of the low half, 32 + 4j … of the high one.
 */
static void put_i4(const uint8_t *const rows[BT_TILE_OUTS], uint8_t *tile)
{
    for (size_t j = 0; j < 8; j++) {
        for (size_t n = 0; n < BT_TILE_OUTS; n++) {
            uint16_t low, high;
            memcpy(&low, rows[n] + 2 * j, 2);
            memcpy(&high, rows[n] + 16 + 2 * j, 2);
            uint32_t unit = spread_nibbles(low) | spread_nibbles(high) << 4;
            memcpy(tile + j * BT_TILE_LINE + n * 4, &unit, sizeof(unit));
        }
    }
}

/* Elements of a row from `col` on as they are stored, zeros behind the last: a tile's inputs. */
static void stage_row(const struct bt_matrix *matrix, size_t row, size_t col, uint8_t *out)
{
    size_t inputs = bt_tile_inputs(packed_dtype(matrix->dtype)), left = matrix->cols - col;
    size_t count = left < inputs ? left : inputs, index = row * matrix->cols + col;
    memset(out, 0, BT_TILE_LINE);
    if (is_quantised(matrix->dtype) || matrix->dtype == BT_BF16) {
        size_t bits = bt_dtype_bits(matrix->dtype);
        memcpy(out, (const uint8_t *)matrix->data + index * bits / 8, count * bits / 8);
        return;
    }
    for (size_t k = 0; k < count; k++) {
        uint16_t rounded = bt_f32_to_bf16(bt_weight_at(matrix, index + k));
        memcpy(out + 2 * k, &rounded, sizeof(rounded));
    }
}

static void put_tile(const struct bt_matrix *matrix, size_t out_at, size_t in_at, uint8_t *tile)
{
    enum bt_dtype dtype = packed_dtype(matrix->dtype);
    size_t inputs = bt_tile_inputs(dtype), bits = bt_dtype_bits(dtype);
    bool direct = dtype == matrix->dtype && in_at + inputs <= matrix->cols;
    uint8_t staged[BT_TILE_OUTS][BT_TILE_LINE];
    const uint8_t *rows[BT_TILE_OUTS];
    for (size_t n = 0; n < BT_TILE_OUTS; n++) {
        size_t row = out_at + n;
        rows[n] = staged[n];
        if (row >= matrix->rows)
            memset(staged[n], 0, sizeof(staged[n]));
        else if (direct)
            rows[n] = (const uint8_t *)matrix->data + (row * matrix->cols + in_at) * bits / 8;
        else
            stage_row(matrix, row, in_at, staged[n]);
    }
    if (dtype == BT_I4)
        put_i4(rows, tile);
    else if (dtype == BT_F8_E4M3)
        put_units(rows, 16, 2, tile);
    else
        put_units(rows, 16, 4, tile);
}

static void pack_scales(const struct bt_matrix *matrix, char *out, struct bt_matrix *packed)
{
    size_t groups = bt_tiles_of(matrix->cols, BT_SCALE_BLOCK), count = scale_count(matrix);
    float *scales = (float *)(out + lines(tiles_bytes(matrix)));
    uint8_t *group_scales = (uint8_t *)scales + lines(count * sizeof(float));
    memset(scales, 0, lines(count * sizeof(float)) + lines(group_scale_bytes(matrix)));
    if (count)
        packed->scales = scales;
    for (size_t i = 0; i < count; i++)
        scales[i] = matrix->dtype == BT_F8_E4M3 || i < matrix->rows ? matrix->scales[i] : 0;
    if (matrix->dtype != BT_I4)
        return;
    packed->group_scales = group_scales;
    for (size_t row = 0; row < matrix->rows; row++) {
        for (size_t g = 0; g < groups; g++)
            group_scales[(row / 16 * groups + g) * 16 + row % 16] =
                matrix->group_scales[row * groups + g];
    }
}

/* What the parts of one call of pack share. */
struct job {
    const struct bt_matrix *matrix;
    const struct bt_matrix *packed;
    const struct bt_mla_shape *shape; /* of KV_B */
};

static void pack_panel(void *context, uint32_t panel, uint32_t thread)
{
    const struct job *job = context;
    size_t inputs = bt_tile_inputs(job->packed->dtype), bytes = bt_tile_bytes(job->packed->dtype);
    uint8_t *tile = (uint8_t *)(uintptr_t)bt_panel(job->packed, panel);
    (void)thread;
    for (size_t col = 0; col < job->matrix->cols; col += inputs, tile += bytes)
        put_tile(job->matrix, (size_t)panel * BT_TILE_OUTS, col, tile);
}

static void pack_linear(struct bt_team *team, const struct bt_matrix *matrix, void *out,
                        struct bt_matrix *ret_packed)
{
    struct bt_matrix packed = {.data = out,
                               .rows = matrix->rows,
                               .cols = matrix->cols,
                               .dtype = packed_dtype(matrix->dtype),
                               .layout = BT_LAYOUT_TILES};
    struct job job = {matrix, &packed, NULL};
    bt_team_run(team, pack_panel, &job, (uint32_t)bt_tiles_of(matrix->rows, BT_TILE_OUTS));
    pack_scales(matrix, out, &packed);
    *ret_packed = packed;
}

/* The weight itself, of any dtype in ROWS. */
static float weight_of(const struct bt_matrix *matrix, size_t row, size_t col)
{
    float value = stored_at(matrix, matrix->dtype, row * matrix->cols + col);
    if (matrix->dtype == BT_F8_E4M3)
        return value * block_scale(matrix, row, col);
    if (matrix->dtype == BT_I4)
        value *= matrix->group_scales[row * bt_tiles_of(matrix->cols, BT_SCALE_BLOCK) +
                                      col / BT_SCALE_BLOCK];
    return is_quantised(matrix->dtype) ? value * matrix->scales[row] : value;
}

/* Packs rows x cols of matrix from row `first` on; transposed: outputs are its columns. */
static void pack_panels(const struct bt_matrix *matrix, size_t first, size_t outs, size_t inputs,
                        bool transposed, uint8_t *out)
{
    size_t tiles = bt_tiles_of(inputs, BT_TILE_BF16);
    for (size_t n = 0; n < outs; n++) {
        for (size_t k = 0; k < inputs; k++) {
            size_t row = first + (transposed ? k : n), col = transposed ? n : k;
            uint16_t bits = bt_f32_to_bf16(weight_of(matrix, row, col));
            memcpy(out + (n / 16 * tiles + k / 32) * BT_TILE_BYTES + bf16_offset(n % 16, k % 32),
                   &bits, sizeof(bits));
        }
    }
}

/* A tiles: rows of 64 bytes. */
static void pack_rows(const struct bt_matrix *matrix, size_t first, size_t rows, uint8_t *out)
{
    size_t tiles = bt_tiles_of(matrix->cols, BT_TILE_BF16);
    for (size_t r = 0; r < rows; r++) {
        for (size_t k = 0; k < matrix->cols; k++) {
            uint16_t bits = bt_f32_to_bf16(weight_of(matrix, first + r, k));
            memcpy(out + (r / 16 * tiles + k / 32) * BT_TILE_BYTES + r % 16 * BT_TILE_LINE +
                       k % 32 * 2,
                   &bits, sizeof(bits));
        }
    }
}

static void pack_head(void *context, uint32_t h, uint32_t thread)
{
    const struct job *job = context;
    const struct bt_mla_shape *shape = job->shape;
    size_t nope = shape->qk_nope_head_dim, v = shape->v_head_dim, lora = shape->kv_lora_rank;
    struct bt_kv_b_head head = bt_tiles_kv_b_head(job->packed, shape, h);
    uint8_t *absorb = (uint8_t *)(uintptr_t)head.absorb, *keys = (uint8_t *)(uintptr_t)head.keys;
    uint8_t *values = (uint8_t *)(uintptr_t)head.values;
    size_t first = h * (nope + v);
    (void)thread;
    memset(absorb, 0, absorb_bytes(shape) + keys_bytes(shape) + values_bytes(shape));
    pack_panels(job->matrix, first, lora, nope, true, absorb);
    pack_rows(job->matrix, first, nope, keys);
    pack_panels(job->matrix, first + nope, v, lora, false, values);
}

static void pack_kv_b(struct bt_team *team, const struct bt_matrix *matrix,
                      const struct bt_mla_shape *shape, void *out, struct bt_matrix *ret_packed)
{
    struct bt_matrix packed = {.data = out,
                               .rows = matrix->rows,
                               .cols = matrix->cols,
                               .dtype = BT_BF16,
                               .layout = BT_LAYOUT_TILES};
    struct job job = {matrix, &packed, shape};
    bt_team_run(team, pack_head, &job, shape->heads);
    *ret_packed = packed;
}

void bt_tiles_pack(struct bt_stream *stream, const struct bt_matrix *matrix, enum bt_use use,
                   const struct bt_mla_shape *shape, void *out, struct bt_matrix *ret_packed)
{
    struct bt_team *team = stream ? stream->team : NULL;
    BT_ASSERT(matrix->layout == BT_LAYOUT_ROWS && (uintptr_t)out % BT_TILE_LINE == 0);
    if (use == BT_USE_KV_B)
        pack_kv_b(team, matrix, shape, out, ret_packed);
    else
        pack_linear(team, matrix, out, ret_packed);
}

/* What arithmetic sees of a weight in ROWS. dtype, here and below: the matrix's, a constant where
 * this is inlined. */
EACH_DTYPE float row_at(const struct bt_matrix *matrix, enum bt_dtype dtype, size_t row, size_t col)
{
    float value = stored_at(matrix, dtype, row * matrix->cols + col);
    if (dtype == BT_F8_E4M3)
        return round_bf16(value * block_scale(matrix, row, col));
    if (dtype == BT_I4)
        value *= matrix->group_scales[row * bt_tiles_of(matrix->cols, BT_SCALE_BLOCK) +
                                      col / BT_SCALE_BLOCK];
    return value;
}

/* The same of what is packed. */
EACH_DTYPE float packed_at(const struct bt_matrix *matrix, enum bt_dtype dtype, size_t row,
                           size_t col)
{
    size_t inputs = bt_tile_inputs(dtype), n = row % BT_TILE_OUTS, k = col % inputs;
    const uint8_t *tile =
        (const uint8_t *)bt_panel(matrix, row / BT_TILE_OUTS) + col / inputs * bt_tile_bytes(dtype);
    size_t offset = int8_offset(n, k);
    if (dtype == BT_F8_E4M3)
        return round_bf16(bt_f8_e4m3_to_f32(tile[bf16_offset(n, k) / 2]) *
                          block_scale(matrix, row, col));
    if (dtype == BT_I8)
        return (int8_t)tile[offset];
    if (dtype == BT_I4) {
        int value = offset < 512 ? tile[offset] & 15 : tile[offset - 512] >> 4;
        size_t groups = bt_tiles_of(matrix->cols, BT_SCALE_BLOCK);
        return (float)((value >= 8 ? value - 16 : value) *
                       matrix->group_scales[(row / 16 * groups + col / BT_SCALE_BLOCK) * 16 + n]);
    }
    uint16_t bits;
    memcpy(&bits, tile + bf16_offset(n, k), sizeof(bits));
    return bt_bf16_to_f32(bits);
}

EACH_DTYPE void read_as(const struct bt_matrix *matrix, enum bt_dtype dtype, size_t row, size_t col,
                        size_t count, float *out)
{
    bool packed = matrix->layout == BT_LAYOUT_TILES;
    for (size_t i = 0; i < count && packed; i++)
        out[i] = packed_at(matrix, dtype, row, col + i);
    for (size_t i = 0; i < count && !packed; i++)
        out[i] = row_at(matrix, dtype, row, col + i);
}

void bt_tiles_read(const struct bt_matrix *matrix, size_t row, size_t col, size_t count, float *out)
{
    switch (matrix->dtype) {
    case BT_F32:
        return read_as(matrix, BT_F32, row, col, count, out);
    case BT_BF16:
        return read_as(matrix, BT_BF16, row, col, count, out);
    case BT_F16:
        return read_as(matrix, BT_F16, row, col, count, out);
    case BT_F8_E4M3:
        return read_as(matrix, BT_F8_E4M3, row, col, count, out);
    case BT_I8:
        return read_as(matrix, BT_I8, row, col, count, out);
    case BT_I4:
        return read_as(matrix, BT_I4, row, col, count, out);
    }
}

float bt_tiles_at(const struct bt_matrix *matrix, size_t row, size_t col)
{
    float value = 0;
    bt_tiles_read(matrix, row, col, 1, &value);
    return value;
}

void bt_tiles_read_kv_b(const struct bt_matrix *kv_b, const struct bt_mla_shape *shape, size_t head,
                        size_t row, bool absorbed, float *out)
{
    struct bt_kv_b_head operands = bt_tiles_kv_b_head(kv_b, shape, head);
    size_t nope = shape->qk_nope_head_dim, lora = shape->kv_lora_rank;
    size_t tiles = bt_tiles_of(lora, BT_TILE_BF16);
    for (size_t l = 0; l < lora; l++) {
        const uint16_t *from = operands.keys;
        size_t at = (row / 16 * tiles + l / 32) * 512 + row % 16 * 32 + l % 32;
        if (row >= nope) {
            size_t n = row - nope;
            from = operands.values;
            at = (n / 16 * tiles + l / 32) * 512 + bf16_offset(n % 16, l % 32) / 2;
        } else if (absorbed) {
            from = operands.absorb;
            at = (l / 16 * bt_tiles_of(nope, 32) + row / 32) * 512 +
                 bf16_offset(l % 16, row % 32) / 2;
        }
        out[l] = bt_bf16_to_f32(from[at]);
    }
}
