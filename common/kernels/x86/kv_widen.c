#include "common/kernels/x86/kv_f8.h"
#include "common/kernels/x86/kv_page.h"
#include "common/kernels/x86/product.h"

static void widen_f8_token(const struct bt_kv_layer *kv, const char *token, float *out)
{
    size_t lora = kv->kv_lora_rank, rope = kv->qk_rope_head_dim, at = 0;
    for (; at + BT_LANES <= lora; at += BT_LANES)
        bt_v16_store(out + at, bt_kv_f8_latent(kv, token, at));
    if (at < lora)
        bt_v16_store_part(out + at, bt_kv_f8_latent(kv, token, at), lora - at);
    for (size_t i = 0; i < rope; i++)
        out[lora + i] = bt_kv_at(kv, token, lora + i);
    memset(out + lora + rope, 0, (bt_x86_padded(lora + rope) - lora - rope) * sizeof(*out));
}

void BT_X86_ROWS(kv_widen)(const struct bt_kv_layer *kv, uint32_t page, size_t tokens, float *out)
{
    const char *data = bt_kv_token(kv, &page, 0);
    size_t size = bt_kv_token_size(kv), width = bt_kv_width(kv);
    if (kv->dtype != BT_F8_E4M3) {
        BT_X86_NAME(widen)((struct bt_x86_weights){data, kv->dtype, tokens, width, width}, out);
        return;
    }
    for (size_t t = 0; t < tokens; t++)
        widen_f8_token(kv, data + t * size, out + t * bt_x86_padded(width));
}
