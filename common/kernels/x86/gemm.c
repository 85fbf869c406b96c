#include "common/kernels/x86/gemm.h"

#include <math.h>
#include <string.h>

void BT_X86_NAME(gemm_begin)(void)
{
}

void BT_X86_NAME(gemm_end)(void)
{
}

static const char *row_at(const struct bt_tile_rows *a, size_t row)
{
    return (const char *)a->data + row / 16 * a->block_stride + row % 16 * a->row_stride;
}

void BT_X86_NAME(gemm_bf16)(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b,
                            size_t tiles, bool accumulate, float *c, size_t c_stride)
{
    for (size_t r = 0; r < rows; r++) {
        for (size_t p = 0; p < b.panels; p++) {
            float sums[16] = {0};
            if (accumulate)
                memcpy(sums, c + r * c_stride + p * 16, sizeof(sums));
            for (size_t t = 0; t < tiles; t++) {
                const uint16_t *in = (const uint16_t *)(row_at(&a, r) + t * a.tile_stride);
                const uint16_t *w =
                    (const uint16_t *)((const char *)b.data + p * b.panel_stride + t * 1024);
                for (size_t k = 0; k < 32; k++)
                    for (size_t n = 0; n < 16; n++)
                        sums[n] +=
                            bt_bf16_to_f32(in[k]) * bt_bf16_to_f32(w[k / 2 * 32 + n * 2 + k % 2]);
            }
            memcpy(c + r * c_stride + p * 16, sums, sizeof(sums));
        }
    }
}

void BT_X86_NAME(gemm_int8)(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b,
                            size_t tiles, bool accumulate, int32_t *c, size_t c_stride)
{
    for (size_t r = 0; r < rows; r++) {
        for (size_t p = 0; p < b.panels; p++) {
            int32_t sums[16] = {0};
            if (accumulate)
                memcpy(sums, c + r * c_stride + p * 16, sizeof(sums));
            for (size_t t = 0; t < tiles; t++) {
                const int8_t *in = (const int8_t *)(row_at(&a, r) + t * a.tile_stride);
                const int8_t *w = (const int8_t *)b.data + p * b.panel_stride + t * 1024;
                for (size_t k = 0; k < 64; k++)
                    for (size_t n = 0; n < 16; n++)
                        sums[n] += in[k] * w[k / 4 * 64 + n * 4 + k % 4];
            }
            memcpy(c + r * c_stride + p * 16, sums, sizeof(sums));
        }
    }
}

static const float *source_row(const float *x, size_t stride, const uint32_t *picks, size_t per_row,
                               size_t row)
{
    return x + (picks ? picks[row] / per_row : row) * stride;
}

void BT_X86_NAME(pack_bf16)(const float *x, size_t stride, const uint32_t *picks, size_t per_row,
                            size_t rows, size_t cols, void *out)
{
    size_t tiles = bt_tiles_of(cols, BT_TILE_BF16);
    for (size_t r = 0; r < rows; r++) {
        const float *in = source_row(x, stride, picks, per_row, r);
        for (size_t k = 0; k < tiles * 32; k++) {
            uint16_t bits = k < cols ? bt_f32_to_bf16(in[k]) : 0;
            memcpy((char *)out + (r / 16 * tiles + k / 32) * 1024 + r % 16 * 64 + k % 32 * 2, &bits,
                   sizeof(bits));
        }
    }
}

void BT_X86_NAME(pack_int8)(const float *x, size_t stride, const uint32_t *picks, size_t per_row,
                            size_t rows, size_t cols, void *out, float *scales)
{
    size_t tiles = bt_tiles_of(cols, BT_TILE_INT8);
    for (size_t r = 0; r < rows; r++) {
        const float *in = source_row(x, stride, picks, per_row, r);
        float max = 0;
        for (size_t k = 0; k < cols; k++)
            max = fabsf(in[k]) > max ? fabsf(in[k]) : max;
        scales[r] = max > 0 ? max / 127 : 1;
        for (size_t k = 0; k < tiles * 64; k++)
            ((int8_t *)out)[(r / 16 * tiles + k / 64) * 1024 + r % 16 * 64 + k % 64] =
                (int8_t)(k < cols ? rintf(in[k] / scales[r]) : 0);
    }
}

static void put_bf16(float value, void *out)
{
    uint16_t bits = bt_f32_to_bf16(value);
    memcpy(out, &bits, sizeof(bits));
}

void BT_X86_NAME(expand_tiles)(const struct bt_matrix *matrix, size_t panel, size_t first,
                               size_t count, void *out)
{
    for (size_t t = 0; t < count; t++) {
        const uint8_t *in = (const uint8_t *)bt_panel(matrix, panel) + (first + t) * 512;
        uint8_t *to = (uint8_t *)out + t * 1024;
        size_t blocks = bt_tiles_of(matrix->cols, BT_SCALE_BLOCK);
        for (size_t i = 0; i < 512; i++) {
            if (matrix->dtype == BT_F8_E4M3) {
                size_t block = panel * 16 / 128 * blocks + (first + t) * 32 / 128;
                put_bf16(bt_f8_e4m3_to_f32(in[i]) * matrix->scales[block], to + 2 * i);
            } else {
                size_t n = i % 64 / 4;
                int scale =
                    matrix->group_scales[(panel * blocks + (first + t) * 64 / 128) * 16 + n];
                int low = in[i] & 15, high = in[i] >> 4;
                to[i] = (uint8_t)((low >= 8 ? low - 16 : low) * scale);
                to[i + 512] = (uint8_t)((high >= 8 ? high - 16 : high) * scale);
            }
        }
    }
}
