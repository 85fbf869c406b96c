/* Stored tiles of quantised weights as the tiles that are multiplied. */
#include "common/kernels/x86/gemm.h"

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
