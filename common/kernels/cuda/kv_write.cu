/*
 * kv_a [row][lora + rope] -> the pages of its sequence, straight: RMS-normed latent and turned key,
 * made finite, rounded to the pool's dtype. Rows of padding write nothing.
 *
 * A warp a row, 4 warps a block. The row is brought to shared memory, where it stays until it is
 * stored. The arithmetic is that of the CPUs' vector tables, bit for bit: sixteen lanes sum up the
 * squares of every sixteenth element, and are added as a tree, 8 apart first; root, quotients and
 * products are rounded one by one. (`ref` sums in double: its bits are others.)
 *
 * Accesses of 16 bytes where rows, tokens and their parts are aligned so, as they are at all shapes
 * of models; else by element or byte.
 * Shared memory: 16 * (lora + 2 * rope) bytes; 10 KiB at lora 512, rope 64.
 * Registers: <= 56 (sm_80), <= 56 (sm_90a), <= 64 (sm_100)
 * Instructions: ld.global.v4.f32; st.global.v4; shfl.sync.bfly
 * Counted: moved <= 1.04, asked <= 1.72, sectors <= 1.02, conflicts <= 1.02
 * Bound: memory; of few rows, latency. Floor (H100 SXM, computed): V2-Lite and V3 alike read 2304
 * bytes a row and write 1152 (bf16) or 656 (e4m3): 2048 rows 7 MB, 2.1 us; 64 rows less than a
 * launch.
 */
#include "common/kernels/cuda/elements.cuh"
#include "common/kernels/cuda/kv_write.h"
#include "common/kernels/cuda/launch.cuh"

#define WARPS       4
#define PAGE_TOKENS 64          /* BT_PAGE_TOKENS */
#define SCALE_DIMS  128         /* BT_KV_SCALE_DIMS */
#define LARGEST     0x1.fep127f /* BT_KV_LARGEST */
#define SMALLEST    0x1p-126f   /* of a scale: FLT_MIN */

BT_DEVICE float finite(float value)
{
    value = bt_is_nan(value) ? 0.0f : value;
    value = value > LARGEST ? LARGEST : value;
    return value < -LARGEST ? -LARGEST : value;
}

BT_DEVICE float norm_weight(const struct bt_cuda_kv_write &call, uint32_t i)
{
    if (call.norm_dtype == BT_F32)
        return bt_element_of<BT_F32>(call.norm, i);
    return call.norm_dtype == BT_BF16 ? bt_element_of<BT_BF16>(call.norm, i)
                                      : bt_element_of<BT_F16>(call.norm, i);
}

/* latent [lora] in place. Warp. */
BT_DEVICE void normalise(const struct bt_cuda_kv_write &call, float *latent)
{
    uint32_t lane = bt_lane();
    float sum = 0;
    for (uint32_t i = lane; lane < 16 && i < call.lora; i += 16)
        sum = bt_fma(latent[i], latent[i], sum);
    for (uint32_t mask = 8; mask > 0; mask /= 2)
        sum = bt_add(sum, bt_shuffle_xor(sum, mask));
    sum = bt_shuffle(sum, 0);
    bt_sync_warp(); /* the others' elements are written now */
    float mean = bt_divide(sum, (float)call.lora);
    float scale = bt_divide(1.0f, bt_sqrt(bt_add(mean, call.eps)));
    for (uint32_t i = lane; i < call.lora; i += 32)
        latent[i] = finite(bt_mul(norm_weight(call, i), bt_mul(latent[i], scale)));
}

/* key [rope] = in [rope] turned. Warp. */
BT_DEVICE void turn(const struct bt_cuda_kv_write &call, const float *in, uint32_t position,
                    float *key)
{
    uint32_t half = call.rope / 2;
    const float *cosines = call.cosines + (size_t)position * half;
    const float *sines = call.sines + (size_t)position * half;
    for (uint32_t i = bt_lane(); i < half; i += 32) {
        float even = in[2 * i], odd = in[2 * i + 1], c = cosines[i], s = sines[i];
        key[i] = finite(bt_add(bt_mul(even, c), -bt_mul(odd, s)));
        key[i + half] = finite(bt_add(bt_mul(odd, c), bt_mul(even, s)));
    }
}

/* ---- stores: x in shared memory, `to` of any alignment unless wide. Warp. ---- */

BT_DEVICE void store_f32(const float *x, uint32_t count, bool wide, unsigned char *to)
{
    for (uint32_t i = bt_lane() * 4; i < count; i += 128)
        bt_elements_store((float *)to, i, count, wide, bt_elements_of<BT_F32>(x, i, count, wide));
}

BT_DEVICE void store_bf16(const float *x, uint32_t count, bool wide, unsigned char *to)
{
    for (uint32_t i = bt_lane() * 4; wide && i < count; i += 128) {
        float4 four = *(const float4 *)(x + i);
        *(uint2 *)(to + 2 * i) = {bt_bf16x2_from(four.x, four.y), bt_bf16x2_from(four.z, four.w)};
    }
    for (uint32_t i = bt_lane(); !wide && i < count; i += 32) {
        uint16_t bits = bt_bf16_from(x[i]);
        to[2 * i] = (unsigned char)bits;
        to[2 * i + 1] = (unsigned char)(bits >> 8);
    }
}

BT_DEVICE uint32_t four_f8(float4 x, float scale)
{
    return bt_e4m3_from(bt_divide(x.x, scale)) |
           (uint32_t)bt_e4m3_from(bt_divide(x.y, scale)) << 8 |
           (uint32_t)bt_e4m3_from(bt_divide(x.z, scale)) << 16 |
           (uint32_t)bt_e4m3_from(bt_divide(x.w, scale)) << 24;
}

/* A block of `count` elements with one scale, at element `first` of a latent of `lora`. */
BT_DEVICE void store_f8_block(const float *x, uint32_t first, uint32_t count, uint32_t lora,
                              bool wide, unsigned char *token)
{
    float most = 0;
    for (uint32_t i = bt_lane(); i < count; i += 32)
        most = bt_max(most, x[first + i] < 0 ? -x[first + i] : x[first + i]);
    for (uint32_t mask = 16; mask > 0; mask /= 2)
        most = bt_max(most, bt_shuffle_xor(most, mask));
    float scale = most > 0 ? bt_max(bt_divide(most, 448.0f), SMALLEST) : 1.0f;
    unsigned char *scale_at = token + lora + first / SCALE_DIMS * 4;
    if (wide) {
        uint32_t i = bt_lane() * 4;
        if (i < count)
            *(uint32_t *)(token + first + i) = four_f8(*(const float4 *)(x + first + i), scale);
    } else {
        for (uint32_t i = bt_lane(); i < count; i += 32)
            token[first + i] = bt_e4m3_from(bt_divide(x[first + i], scale));
    }
    if (bt_lane() < 4)
        scale_at[bt_lane()] = (unsigned char)(bt_bits(scale) >> 8 * bt_lane());
}

BT_DEVICE void store_f8(const float *x, uint32_t lora, bool wide, unsigned char *token)
{
    for (uint32_t first = 0; first < lora; first += SCALE_DIMS)
        store_f8_block(x, first, lora - first < SCALE_DIMS ? lora - first : SCALE_DIMS, lora, wide,
                       token);
}

static BT_KERNEL(WARPS * 32, 8)
    kv_write(const __grid_constant__ struct bt_cuda_kv_write call,
             const __grid_constant__ struct bt_cuda_rows rows, bool wide_in, bool wide_out)
{
    uint32_t row = blockIdx.x * WARPS + threadIdx.x / 32, width = call.lora + call.rope;
    if (row >= rows.rows || rows.position[row] == BT_CUDA_NO_POSITION)
        return;
    uint32_t position = rows.position[row];
    uint32_t page = rows.pages[rows.page_begin[rows.sequence[row]] + position / PAGE_TOKENS];
    size_t slot = (size_t)page * PAGE_TOKENS + position % PAGE_TOKENS;
    unsigned char *token = call.pool + slot * call.token_bytes;
    float *latent = (float *)bt_shared() + threadIdx.x / 32 * (width + call.rope);
    float *key = latent + width;

    for (uint32_t i = bt_lane() * 4; i < width; i += 128)
        bt_elements_store(
            latent, i, width, wide_in,
            bt_elements_of<BT_F32>(call.kv_a + (size_t)row * width, i, width, wide_in));
    bt_sync_warp();
    normalise(call, latent);
    turn(call, latent + call.lora, position, key);
    bt_sync_warp();
    if (call.dtype == BT_F32) {
        store_f32(latent, call.lora, wide_out, token);
        store_f32(key, call.rope, wide_out, token + call.rope_offset);
        return;
    }
    if (call.dtype == BT_F8_E4M3)
        store_f8(latent, call.lora, wide_out, token);
    else
        store_bf16(latent, call.lora, wide_out, token);
    store_bf16(key, call.rope, wide_out, token + call.rope_offset);
}

void bt_cuda_launch_kv_write(const struct bt_cuda_kv_write *call, const struct bt_cuda_rows *rows,
                             cudaStream_t stream)
{
    uint32_t width = call->lora + call->rope, step = call->dtype == BT_F32 ? 4 : 8;
    /* Rows of a block in shared memory begin at multiples of 16 bytes as well then. */
    bool wide_in = (uintptr_t)call->kv_a % 16 == 0 && (call->lora | call->rope) % 4 == 0;
    bool wide_out = wide_in && (call->lora | call->rope) % step == 0 &&
                    ((uintptr_t)call->pool | call->token_bytes | call->rope_offset) % 16 == 0;
    bt_cuda_launch(kv_write, dim3((rows->rows + WARPS - 1) / WARPS, 1, 1), WARPS * 32,
                   WARPS * (width + call->rope) * sizeof(float), stream, *call, *rows, wide_in,
                   wide_out);
}
