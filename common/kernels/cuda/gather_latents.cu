/*
 * Pages -> rows of latents and rows of rotated keys of the tokens of a round (mla_prefill.h), in
 * bf16 as the operands of a product, or in f32. A latent of e4m3 is value times scale, rounded
 * once.
 *
 * A warp a token, 4 warps a block, the grid over the tokens of the round. Accesses of 16 bytes
 * where a pool of bf16 or e4m3 becomes bf16 and all parts of tokens are aligned so (every shape of
 * models); else element by element. No shared memory.
 * Registers: <= 48 (sm_80), <= 48 (sm_90a), <= 48 (sm_100)
 * Instructions: ld.global.nc.L1::no_allocate.v4.u32; st.global.v4.u32
 * Counted: moved <= 2.51, asked <= 1.09, sectors <= 1.03
 * Bound: memory. Floor (H100 SXM, computed): V2-Lite and V3 alike 1152 + 1152 bytes a token (bf16),
 * 656 + 1152 (e4m3): 2048 tokens 4.7 MB, 1.4 us.
 */
#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/mla_prefill.h"

#define WARPS       4
#define PAGE_TOKENS 64  /* BT_PAGE_TOKENS */
#define SCALE_DIMS  128 /* BT_KV_SCALE_DIMS */

BT_DEVICE uint32_t bytes_2(const unsigned char *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8;
}

/* The scale of element i of a latent; of any alignment. */
BT_DEVICE float scale_of(const struct bt_cuda_gather_latents &call, const unsigned char *token,
                         uint32_t i)
{
    const unsigned char *at = token + call.lora + i / SCALE_DIMS * 4;
    return bt_float(bytes_2(at) | bytes_2(at + 2) << 16);
}

BT_DEVICE float latent_of(const struct bt_cuda_gather_latents &call, const unsigned char *token,
                          uint32_t i)
{
    if (call.dtype == BT_F32)
        return ((const float *)token)[i];
    if (call.dtype == BT_BF16)
        return bt_from_bf16(((const uint16_t *)token)[i]);
    return bt_mul(bt_from_e4m3(token[i]), scale_of(call, token, i));
}

BT_DEVICE float key_of(const struct bt_cuda_gather_latents &call, const unsigned char *token,
                       uint32_t i)
{
    if (call.dtype == BT_F32)
        return ((const float *)token)[call.lora + i];
    return bt_from_bf16((uint16_t)bytes_2(token + call.rope_offset + 2 * i));
}

BT_DEVICE void store(const struct bt_cuda_gather_latents &call, void *out, size_t index,
                     float value)
{
    if (call.out_dtype == BT_F32)
        ((float *)out)[index] = value;
    else
        ((uint16_t *)out)[index] = bt_bf16_from(value);
}

/* token NULL: zeros. */
BT_DEVICE void take_elements(const struct bt_cuda_gather_latents &call, const unsigned char *token,
                             uint32_t to)
{
    for (uint32_t i = bt_lane(); i < call.latent_pitch; i += 32)
        store(call, call.latents, (size_t)to * call.latent_pitch + i,
              token && i < call.lora ? latent_of(call, token, i) : 0.0f);
    for (uint32_t i = bt_lane(); i < call.key_pitch; i += 32)
        store(call, call.keys, (size_t)to * call.key_pitch + i,
              token && i < call.rope ? key_of(call, token, i) : 0.0f);
}

/* Four e4m3 as four bf16. */
BT_DEVICE void widen(uint32_t four, float scale, uint32_t *low, uint32_t *high)
{
    *low = bt_bf16x2_from(bt_mul(bt_from_e4m3((uint8_t)four), scale),
                          bt_mul(bt_from_e4m3((uint8_t)(four >> 8)), scale));
    *high = bt_bf16x2_from(bt_mul(bt_from_e4m3((uint8_t)(four >> 16)), scale),
                           bt_mul(bt_from_e4m3((uint8_t)(four >> 24)), scale));
}

/* Bytes of bf16, 16 at a time, zeros behind them. */
BT_DEVICE void copy_wide(const unsigned char *from, uint32_t bytes, uint32_t padded_bytes,
                         unsigned char *to)
{
    for (uint32_t i = bt_lane() * 16; i < padded_bytes; i += 512) {
        uint4 value = {0, 0, 0, 0};
        if (from && i < bytes)
            value = bt_load_16(from + i);
        bt_store_16(to + i, value);
    }
}

/* Eight elements of e4m3 at a time; lora is a multiple of 16. */
BT_DEVICE void widen_wide(const unsigned char *token, uint32_t lora, uint32_t pitch, uint16_t *to)
{
    for (uint32_t i = bt_lane() * 8; i < pitch; i += 256) {
        uint4 value = {0, 0, 0, 0};
        if (token && i < lora) {
            uint2 bytes = *(const uint2 *)(token + i);
            float scale = *(const float *)(token + lora + i / SCALE_DIMS * 4);
            widen(bytes.x, scale, &value.x, &value.y);
            widen(bytes.y, scale, &value.z, &value.w);
        }
        bt_store_16(to + i, value);
    }
}

static BT_KERNEL(WARPS * 32, 8)
    gather_latents(const __grid_constant__ struct bt_cuda_gather_latents call,
                   const __grid_constant__ struct bt_cuda_prefill_round round,
                   const __grid_constant__ struct bt_cuda_rows rows, bool wide)
{
    uint32_t to = blockIdx.x * WARPS + threadIdx.x / 32, i = 0;
    if (to >= round.tokens)
        return;
    while (i + 1 < round.count && round.ranges[i + 1].at <= to)
        i++;
    uint32_t position = round.ranges[i].begin + to - round.ranges[i].at;
    const unsigned char *token = nullptr;
    if (position < round.ranges[i].end) {
        uint32_t first = rows.page_begin[round.ranges[i].sequence];
        uint32_t page = rows.pages[first + position / PAGE_TOKENS];
        size_t slot = (size_t)page * PAGE_TOKENS + position % PAGE_TOKENS;
        token = call.pool + slot * call.token_bytes;
    }
    if (!wide) {
        take_elements(call, token, to);
        return;
    }
    uint16_t *latent = (uint16_t *)call.latents + (size_t)to * call.latent_pitch;
    uint16_t *key = (uint16_t *)call.keys + (size_t)to * call.key_pitch;
    if (call.dtype == BT_BF16)
        copy_wide(token, call.lora * 2, call.latent_pitch * 2, (unsigned char *)latent);
    else
        widen_wide(token, call.lora, call.latent_pitch, latent);
    copy_wide(token ? token + call.rope_offset : nullptr, call.rope * 2, call.key_pitch * 2,
              (unsigned char *)key);
}

void bt_cuda_launch_gather_latents(const struct bt_cuda_gather_latents *call,
                                   const struct bt_cuda_prefill_round *round,
                                   const struct bt_cuda_rows *rows, cudaStream_t stream)
{
    uint32_t step = call->dtype == BT_BF16 ? 8 : 16;
    bool wide = call->dtype != BT_F32 && call->out_dtype == BT_BF16 && call->lora % step == 0 &&
                call->rope % 8 == 0 && call->latent_pitch % 16 == 0 && call->key_pitch % 8 == 0 &&
                ((uintptr_t)call->pool | call->token_bytes | call->rope_offset) % 16 == 0;
    bt_cuda_launch(gather_latents, dim3((round->tokens + WARPS - 1) / WARPS, 1, 1), WARPS * 32, 0,
                   stream, *call, *round, *rows, wide);
}
