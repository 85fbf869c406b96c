/*
 * The hash of pages in device memory, as kvtransfer/checksum.h defines it, with the same bits.
 *
 *     sums[i] = hash of spans[i].bytes bytes at base + spans[i].offset, seeded with spans[i].seed
 *
 * A block hashes a span: a thread takes every 128th piece of 16 bytes, which is always the same two
 * of a stripe's eight lanes. Sums are of integers, so their order is of no matter.
 *
 * Threads: 128. Shared memory: 256 bytes.
 * Registers: <= 48 (sm_80), <= 48 (sm_90a), <= 48 (sm_100)
 * Instructions: ld.global.nc.v4
 * Counted: moved <= 1.01, asked <= 1.01, sectors <= 1.01, conflicts <= 1.00
 * Bound: memory. Floor for H100 at 3.35 TB/s, a prompt of 4096 tokens of 1152 bytes in bf16:
 * V2-Lite (27 layers, 127 MB) 38 us, V3 (61 layers, 288 MB) 86 us.
 */
#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/page_hash.h"

#define THREADS 128
#define STRIPE  64
#define LANES   8

BT_DEVICE uint64_t mix(uint64_t value)
{
    value ^= value >> 32;
    value *= 0xd6e8feb86659fd93ull;
    value ^= value >> 29;
    value *= 0xa0761d6478bd642full;
    return value ^ value >> 32;
}

/* Of lane `j` in the first stripe. */
BT_DEVICE uint64_t key_of(uint64_t seed, uint32_t j)
{
    return mix(seed + (j + 1) * 0xe7037ed1a0b428dbull);
}

BT_DEVICE uint64_t product(uint64_t lane, uint64_t key)
{
    uint64_t k = lane ^ key;
    return (k & 0xffffffffull) * (k >> 32);
}

/* 16 bytes, or what is left of them and zeros. */
BT_DEVICE uint4 load_piece(const unsigned char *from, uint32_t left)
{
    if (left >= 16)
        return bt_load_16(from);
    uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (uint32_t i = 0; i < 16; i++)
        words[i / 4] |= i < left ? (uint32_t)from[i] << (i % 4 * 8) : 0;
    return make_uint4(words[0], words[1], words[2], words[3]);
}

/* Over the lanes of the warp whose number differs in these bits alone. */
BT_DEVICE uint64_t sum_over(uint64_t value, uint32_t mask)
{
    uint32_t low = bt_shuffle_xor((uint32_t)value, mask);
    uint32_t high = bt_shuffle_xor((uint32_t)(value >> 32), mask);
    return value + ((uint64_t)high << 32 | low);
}

BT_DEVICE uint64_t finish(const uint64_t sums[][LANES], uint32_t warps, uint64_t bytes,
                          uint64_t seed)
{
    uint64_t hash = mix(seed ^ bytes * 0x9e3779b97f4a7c15ull);
    for (uint32_t j = 0; j < LANES; j++) {
        uint64_t sum = 0;
        for (uint32_t w = 0; w < warps; w++)
            sum += sums[w][j];
        hash = (hash ^ mix(sum + j)) * 0x8ebc6af09c88c6e3ull;
    }
    return mix(hash);
}

BT_KERNEL(THREADS, 8)
page_hash(const unsigned char *base, const struct bt_page_span *spans, uint64_t *sums)
{
    uint64_t(*partial)[LANES] = reinterpret_cast<uint64_t(*)[LANES]>(bt_shared());
    const struct bt_page_span span = spans[blockIdx.x];
    const unsigned char *from = base + span.offset;
    uint32_t even = threadIdx.x % 4 * 2;
    uint64_t key[2] = {key_of(span.seed, even), key_of(span.seed, even + 1)}, sum[2] = {0, 0};
    const uint64_t step = 0x9e3779b97f4a7c15ull;
    for (uint32_t at = threadIdx.x * 16; at < span.bytes; at += THREADS * 16) {
        uint4 words = load_piece(from + at, span.bytes - at);
        uint64_t lane[2] = {(uint64_t)words.y << 32 | words.x, (uint64_t)words.w << 32 | words.z};
        uint64_t moved = at / STRIPE * step;
        sum[0] += product(lane[0], key[0] + moved) + lane[1];
        sum[1] += product(lane[1], key[1] + moved) + lane[0];
    }
    /* A padded stripe is whole: of its lanes that are all zeros the products count, too. */
    uint32_t whole = (span.bytes + STRIPE - 1) / STRIPE * STRIPE;
    for (uint32_t at = (span.bytes + 15) / 16 * 16; at < whole; at += 16) {
        if (at / 16 % THREADS != threadIdx.x)
            continue;
        uint64_t moved = at / STRIPE * step;
        sum[0] += product(0, key[0] + moved);
        sum[1] += product(0, key[1] + moved);
    }
    for (uint32_t mask = 4; mask < 32; mask *= 2) {
        sum[0] = sum_over(sum[0], mask);
        sum[1] = sum_over(sum[1], mask);
    }
    if (bt_lane() < 4) {
        partial[threadIdx.x / 32][even] = sum[0];
        partial[threadIdx.x / 32][even + 1] = sum[1];
    }
    bt_sync_block();
    if (threadIdx.x == 0)
        sums[blockIdx.x] = finish(partial, THREADS / 32, span.bytes, span.seed);
}

extern "C" void bt_cuda_launch_page_hash(const void *base, const struct bt_page_span *spans,
                                         uint32_t count, uint64_t *sums, cudaStream_t stream)
{
    bt_cuda_launch(page_hash, dim3(count), THREADS, THREADS / 32 * LANES * sizeof(uint64_t), stream,
                   static_cast<const unsigned char *>(base), spans, sums);
}
