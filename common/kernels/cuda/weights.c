#include "common/kernels/cuda/weights.h"

#include <string.h>

#include "common/kernels/weight.h"

static size_t round_up(size_t count, size_t unit)
{
    return (count + unit - 1) / unit * unit;
}

static bool is_quantised(enum bt_dtype dtype)
{
    return dtype == BT_F8_E4M3 || dtype == BT_I8 || dtype == BT_I4;
}

static size_t scale_blocks(const struct bt_matrix *matrix)
{
    return round_up(matrix->cols, BT_CUDA_SCALE_BLOCK) / BT_CUDA_SCALE_BLOCK;
}

static void lay_out_linear(const struct bt_matrix *matrix, struct bt_cuda_layout *layout)
{
    size_t outs = round_up(matrix->rows, BT_CUDA_PANEL), blocks = scale_blocks(matrix);
    layout->dtype = is_quantised(matrix->dtype) ? matrix->dtype : BT_BF16;
    layout->pitch = (uint32_t)round_up(matrix->cols, layout->dtype == BT_BF16 ? 64 : 128);
    layout->chunks = (uint32_t)(outs / BT_CUDA_PANEL);
    layout->chunk_bytes = (size_t)BT_CUDA_PANEL * layout->pitch * bt_dtype_bits(layout->dtype) / 8;
    if (layout->dtype == BT_F8_E4M3)
        layout->scales_bytes = round_up(matrix->rows, BT_CUDA_SCALE_BLOCK) / BT_CUDA_SCALE_BLOCK *
                               round_up(blocks, 4) * sizeof(float);
    else if (layout->dtype != BT_BF16)
        layout->scales_bytes = outs * sizeof(float);
    if (layout->dtype == BT_I4)
        layout->group_scales_bytes = outs * blocks;
}

struct bt_cuda_layout bt_cuda_layout_of(const struct bt_matrix *matrix, enum bt_use use,
                                        const struct bt_mla_shape *shape)
{
    struct bt_cuda_layout layout = {.dtype = BT_BF16};
    if (use == BT_USE_KV_B) {
        layout.pitch = (uint32_t)round_up(shape->kv_lora_rank, 64);
        layout.chunks = shape->heads;
        layout.chunk_bytes =
            (round_up(shape->qk_nope_head_dim, 8) + round_up(shape->v_head_dim, 8)) * layout.pitch *
            sizeof(uint16_t);
    } else {
        lay_out_linear(matrix, &layout);
    }
    layout.scales_offset = round_up(layout.chunks * layout.chunk_bytes, 256);
    layout.group_scales_offset = layout.scales_offset + round_up(layout.scales_bytes, 256);
    layout.bytes = layout.group_scales_offset + round_up(layout.group_scales_bytes, 256);
    return layout;
}

/* ---- elements of a matrix in ROWS ---- */

static int nibble_at(const struct bt_matrix *matrix, size_t row, size_t col)
{
    uint8_t byte = ((const uint8_t *)matrix->data)[(row * matrix->cols + col) / 2];
    int value = col % 2 ? byte >> 4 : byte & 15;
    return value >= 8 ? value - 16 : value;
}

/* The weight itself. */
static float value_at(const struct bt_matrix *matrix, size_t row, size_t col)
{
    size_t index = row * matrix->cols + col;
    if (matrix->dtype == BT_F8_E4M3)
        return bt_f8_e4m3_to_f32(((const uint8_t *)matrix->data)[index]) *
               matrix->scales[row / 128 * scale_blocks(matrix) + col / 128];
    if (matrix->dtype == BT_I8)
        return ((const int8_t *)matrix->data)[index] * matrix->scales[row];
    if (matrix->dtype == BT_I4)
        return (float)(nibble_at(matrix, row, col) *
                       matrix->group_scales[row * scale_blocks(matrix) + col / 128]) *
               matrix->scales[row];
    return bt_weight_at(matrix, index);
}

/* ---- chunks ---- */

/* A row as bf16, padded with zeros. */
static void put_bf16_row(const struct bt_matrix *matrix, size_t row, size_t pitch, uint16_t *out)
{
    size_t cols = matrix->cols;
    if (matrix->dtype == BT_BF16) {
        memcpy(out, (const uint16_t *)matrix->data + row * cols, cols * sizeof(*out));
    } else {
        for (size_t col = 0; col < cols; col++)
            out[col] = bt_f32_to_bf16(value_at(matrix, row, col));
    }
    memset(out + cols, 0, (pitch - cols) * sizeof(*out));
}

static void put_row(const struct bt_matrix *matrix, const struct bt_cuda_layout *layout, size_t row,
                    unsigned char *out)
{
    size_t pitch = layout->pitch;
    if (row >= matrix->rows) {
        memset(out, 0, pitch * bt_dtype_bytes(layout->dtype));
    } else if (layout->dtype == BT_BF16) {
        put_bf16_row(matrix, row, pitch, (uint16_t *)(void *)out);
    } else {
        memcpy(out, (const unsigned char *)matrix->data + row * matrix->cols, matrix->cols);
        memset(out + matrix->cols, 0, pitch - matrix->cols);
    }
}

/* Four values of a row from `col` on, a byte each, 8 more than they mean; 8 where there is none. */
static uint32_t four_at(const struct bt_matrix *matrix, size_t row, size_t col)
{
    uint32_t four = 0;
    for (size_t i = 0; i < 4; i++) {
        bool is_there = row < matrix->rows && col + i < matrix->cols;
        four |= (uint32_t)(is_there ? nibble_at(matrix, row, col + i) + 8 : 8) << 8 * i;
    }
    return four;
}

/* A group of 128 inputs of a panel. */
static void put_i4_group(const struct bt_matrix *matrix, size_t panel, size_t group, uint32_t *out)
{
    for (size_t n = 0; n < BT_CUDA_PANEL; n++) {
        for (size_t part = 0; part < 4; part++) {
            for (size_t word = 0; word < 4; word++) {
                size_t row = panel * BT_CUDA_PANEL + n;
                size_t col = group * BT_CUDA_SCALE_BLOCK + 32 * word + 4 * part;
                out[(n * 4 + part) * 4 + word] =
                    four_at(matrix, row, col) | four_at(matrix, row, col + 16) << 4;
            }
        }
    }
}

static void put_panel(const struct bt_matrix *matrix, const struct bt_cuda_layout *layout,
                      size_t panel, unsigned char *out)
{
    size_t groups = scale_blocks(matrix);
    if (layout->dtype == BT_I4) {
        for (size_t g = 0; g < groups; g++)
            put_i4_group(matrix, panel, g,
                         (uint32_t *)(void *)(out + g * layout->chunk_bytes / groups));
        return;
    }
    for (size_t n = 0; n < BT_CUDA_PANEL; n++)
        put_row(matrix, layout, panel * BT_CUDA_PANEL + n,
                out + n * layout->pitch * bt_dtype_bytes(layout->dtype));
}

/* `count` rows of bf16 from `first` on, then rows of zeros up to `padded`. */
static uint16_t *put_part(const struct bt_matrix *matrix, size_t first, size_t count, size_t padded,
                          size_t pitch, uint16_t *out)
{
    for (size_t r = 0; r < count; r++)
        put_bf16_row(matrix, first + r, pitch, out + r * pitch);
    memset(out + count * pitch, 0, (padded - count) * pitch * sizeof(*out));
    return out + padded * pitch;
}

static void put_head(const struct bt_matrix *matrix, const struct bt_mla_shape *shape, size_t head,
                     size_t pitch, uint16_t *out)
{
    size_t nope = shape->qk_nope_head_dim, v = shape->v_head_dim, first = head * (nope + v);
    out = put_part(matrix, first, nope, round_up(nope, 8), pitch, out);
    put_part(matrix, first + nope, v, round_up(v, 8), pitch, out);
}

void bt_cuda_pack_chunks(const struct bt_matrix *matrix, enum bt_use use,
                         const struct bt_mla_shape *shape, uint32_t first, uint32_t count,
                         void *out)
{
    struct bt_cuda_layout layout = bt_cuda_layout_of(matrix, use, shape);
    unsigned char *to = out;
    BT_ASSERT(matrix->layout == BT_LAYOUT_ROWS && first + count <= layout.chunks);
    for (uint32_t i = first; i < first + count; i++, to += layout.chunk_bytes) {
        if (use == BT_USE_KV_B)
            put_head(matrix, shape, i, layout.pitch, (uint16_t *)(void *)to);
        else
            put_panel(matrix, &layout, i, to);
    }
}

/* ---- scales ---- */

static void put_block_scales(const struct bt_matrix *matrix, float *out)
{
    size_t blocks = scale_blocks(matrix), pitch = round_up(blocks, 4);
    for (size_t row = 0; row < (matrix->rows + 127u) / 128; row++)
        memcpy(out + row * pitch, matrix->scales + row * blocks, blocks * sizeof(*out));
}

static void put_group_scales(const struct bt_matrix *matrix, uint8_t *out)
{
    size_t groups = scale_blocks(matrix);
    for (size_t row = 0; row < matrix->rows; row++) {
        for (size_t g = 0; g < groups; g++)
            out[(row / BT_CUDA_PANEL * groups + g) * BT_CUDA_PANEL + row % BT_CUDA_PANEL] =
                matrix->group_scales[row * groups + g];
    }
}

void bt_cuda_pack_scales(const struct bt_matrix *matrix, enum bt_use use,
                         const struct bt_mla_shape *shape, void *out)
{
    struct bt_cuda_layout layout = bt_cuda_layout_of(matrix, use, shape);
    unsigned char *group_scales =
        (unsigned char *)out + (layout.group_scales_offset - layout.scales_offset);
    memset(out, 0, layout.bytes - layout.scales_offset);
    if (layout.dtype == BT_F8_E4M3)
        put_block_scales(matrix, out);
    else if (layout.dtype != BT_BF16)
        memcpy(out, matrix->scales, matrix->rows * sizeof(float));
    if (layout.dtype == BT_I4)
        put_group_scales(matrix, group_scales);
}

struct bt_matrix bt_cuda_packed_at(const struct bt_matrix *matrix, enum bt_use use,
                                   const struct bt_mla_shape *shape, void *data)
{
    struct bt_cuda_layout layout = bt_cuda_layout_of(matrix, use, shape);
    unsigned char *at = data;
    struct bt_matrix packed = {.data = data,
                               .rows = matrix->rows,
                               .cols = matrix->cols,
                               .dtype = layout.dtype,
                               .layout = BT_LAYOUT_TILES};
    if (layout.scales_bytes)
        packed.scales = (const float *)(void *)(at + layout.scales_offset);
    if (layout.group_scales_bytes)
        packed.group_scales = at + layout.group_scales_offset;
    return packed;
}

struct bt_cuda_kv_b bt_cuda_kv_b_of(const struct bt_matrix *kv_b, const struct bt_mla_shape *shape)
{
    struct bt_cuda_layout layout = bt_cuda_layout_of(kv_b, BT_USE_KV_B, shape);
    struct bt_cuda_kv_b parts = {.keys = kv_b->data,
                                 .distance = layout.chunk_bytes / sizeof(uint16_t),
                                 .nope_rows = (uint32_t)round_up(shape->qk_nope_head_dim, 8),
                                 .v_rows = (uint32_t)round_up(shape->v_head_dim, 8),
                                 .pitch = layout.pitch};
    parts.values = parts.keys + (size_t)parts.nope_rows * parts.pitch;
    return parts;
}
