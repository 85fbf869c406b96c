#include "common/kernels/x86/kv_page.h"

#include "common/kernels/x86/bf16.h"
#include "common/kernels/x86/kv_f8.h"

static const uint16_t zeros[32];

static void latent_row_f8(const struct bt_kv_layer *kv, const char *token, char *out)
{
    for (size_t at = 0; at < kv->kv_lora_rank; at += 32, out += BT_TILE_LINE)
        bt_bf16_line(bt_kv_f8_latent(kv, token, at), bt_kv_f8_latent(kv, token, at + 16), out);
}

static void copy_row(const void *x, size_t count, enum bt_dtype dtype, size_t tiles, char *out)
{
    if (dtype == BT_F32) {
        bt_bf16_row(x, count, out, BT_TILE_LINE);
    } else {
        memset(out, 0, tiles * BT_TILE_LINE);
        memcpy(out, x, count * sizeof(uint16_t));
    }
}

static void convert_token(const struct bt_kv_layer *kv, const char *token, char *out)
{
    size_t lora = kv->kv_lora_rank, rope = kv->qk_rope_head_dim;
    size_t latent_tiles = bt_x86_latent_tiles(lora);
    enum bt_dtype rope_dtype = kv->dtype == BT_F8_E4M3 ? BT_BF16 : kv->dtype;
    if (kv->dtype == BT_F8_E4M3)
        latent_row_f8(kv, token, out);
    else
        copy_row(token, lora, kv->dtype, latent_tiles, out);
    copy_row(token + bt_kv_rope_offset(kv), rope, rope_dtype,
             bt_x86_token_tiles(lora, rope) - latent_tiles, out + latent_tiles * BT_TILE_LINE);
}

struct bt_tile_rows BT_X86_NAME(kv_rows)(const struct bt_kv_layer *kv, uint32_t page, size_t tokens,
                                         void *buffer)
{
    const char *data = bt_kv_token(kv, &page, 0);
    size_t size = bt_kv_token_size(kv);
    if (bt_x86_kv_direct(kv))
        return (struct bt_tile_rows){data, 16 * size, BT_TILE_LINE, size};
    size_t row = bt_x86_token_tiles(kv->kv_lora_rank, kv->qk_rope_head_dim) * BT_TILE_LINE;
    for (size_t t = 0; t < tokens; t++)
        convert_token(kv, data + t * size, (char *)buffer + t * row);
    return (struct bt_tile_rows){buffer, 16 * row, BT_TILE_LINE, row};
}

static const void *line_of(const struct bt_tile_rows *rows, size_t tokens, size_t t, size_t tile)
{
    if (t >= tokens)
        return zeros;
    return (const char *)rows->data + t * rows->row_stride + tile * BT_TILE_LINE;
}

void BT_X86_NAME(kv_columns)(struct bt_tile_rows rows, size_t tokens, size_t tiles, void *out)
{
    char *to = out;
    for (size_t first = 0; first < BT_PAGE_TOKENS; first += 16) {
        for (size_t tile = 0; tile < tiles; tile++, to += BT_TILE_BYTES) {
            const void *lines[16];
            for (size_t i = 0; i < 16; i++)
                lines[i] = line_of(&rows, tokens, first + i, tile);
            bt_transpose16(lines, to, BT_TILE_LINE);
        }
    }
}

void BT_X86_NAME(kv_pairs)(struct bt_tile_rows rows, size_t tokens, size_t tiles, void *out,
                           size_t panel_stride)
{
    size_t count = bt_tiles_of(tokens, BT_TILE_BF16) * BT_TILE_BF16;
    char *to = out;
    for (size_t tile = 0; tile < tiles; tile++, to += 2 * panel_stride) {
        for (size_t t = 0; t < count; t += 2) {
            char *line = to + t / 2 * BT_TILE_LINE;
            bt_bf16_zip(line_of(&rows, tokens, t, tile), line_of(&rows, tokens, t + 1, tile), line,
                        line + panel_stride);
        }
    }
}
