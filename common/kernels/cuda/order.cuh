/*
 * What has an order: floats as integers, and sums of integers before a lane or a thread.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_ORDER_CUH
#define BATON_COMMON_KERNELS_CUDA_ORDER_CUH

#include "common/kernels/cuda/instructions.cuh"

/* Keys of numbers have their order; both zeros have one key, and a NaN has 0, which is less than
 * that of any number. */
#define BT_KEY_LEAST 0x007fffffu /* of minus infinity */

BT_DEVICE uint32_t bt_key_of(float number)
{
    uint32_t bits = bt_bits(bt_add(number, 0.0f));
    if (bt_is_nan(number))
        return 0;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
BT_DEVICE float bt_number_of(uint32_t key)
{
    return bt_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

/* ---- over a warp, and over a block of threads ---- */

BT_DEVICE uint64_t bt_warp_sum(uint64_t value)
{
    for (uint32_t mask = 16; mask > 0; mask /= 2)
        value += (uint64_t)bt_shuffle_xor((uint32_t)(value >> 32), mask) << 32 |
                 bt_shuffle_xor((uint32_t)value, mask);
    return value;
}
/* Of the lanes up to this one. */
BT_DEVICE uint64_t bt_warp_prefix(uint64_t value)
{
    for (uint32_t by = 1; by < 32; by *= 2) {
        uint64_t below = (uint64_t)bt_shuffle_up((uint32_t)(value >> 32), by) << 32 |
                         bt_shuffle_up((uint32_t)value, by);
        value += bt_lane() >= by ? below : 0;
    }
    return value;
}

/* scratch [32] of shared memory, free before and after. All threads, up to 1024. */
BT_DEVICE uint32_t bt_block_max(uint32_t value, uint32_t *scratch)
{
    value = bt_warp_max(value);
    if (bt_lane() == 0)
        scratch[threadIdx.x / 32] = value;
    bt_sync_block();
    value = bt_warp_max(bt_lane() < blockDim.x / 32 ? scratch[bt_lane()] : 0);
    bt_sync_block();
    return value;
}
/* The sum of the threads before this one; *ret_total of all. */
BT_DEVICE uint64_t bt_block_prefix(uint64_t value, uint64_t *scratch, uint64_t *ret_total)
{
    uint64_t prefix = bt_warp_prefix(value);
    uint32_t warp = threadIdx.x / 32;
    if (bt_lane() == 31)
        scratch[warp] = prefix;
    bt_sync_block();
    uint64_t total = bt_lane() < blockDim.x / 32 ? scratch[bt_lane()] : 0;
    uint64_t before = bt_lane() < warp ? total : 0;
    *ret_total = bt_warp_sum(total);
    before = bt_warp_sum(before);
    bt_sync_block();
    return before + prefix - value;
}

#endif
