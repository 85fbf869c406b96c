/*
 * Attention of a round of a prefill (mla_prefill.h) on Hopper's tensor cores: what mla_prefill.cu
 * does, by wgmma. sm_90a alone; elsewhere the kernel is empty.
 *
 * A block has 128 rows of a sequence and one head: two warpgroups of 64 rows, each of which takes
 * in tiles of 64 tokens, so that one multiplies while the other has its softmax. Queries and the
 * weights of a tile are left operands in registers; keys and values are right ones in shared
 * memory, in rows of 64 elements swizzled by 128 bytes, values with their columns contiguous. Tiles
 * come by cp.async into three buffers in turn, two ahead of the one that is worked on, with one
 * barrier a tile. Why a row's bits are its own: as in mla_prefill.cu, but a warpgroup goes through
 * the tiles that its last row sees.
 *
 * Shapes (nope, rope, v): (128, 64, 128) V2-Lite, V2, V3.
 * Shared memory: 256 * (dim + 8) + 3 * 128 * (dim + v) bytes, dim = nope + rope; 174080 with this
 * shape: one block a multiprocessor.
 * Registers: <= 16 (sm_80), <= 208 (sm_90a), <= 16 (sm_100)
 * Instructions: wgmma.mma_async m64n64k16 bf16 (sm_90a); cp.async.cg (sm_90a); ldmatrix (sm_90a);
 * ex2.approx.ftz.f32 (sm_90a)
 * Counted: moved <= 1.00, asked <= 1.11, sectors <= 1.00, conflicts <= 1.00, products <= 1.49
 * Bound: tensor cores. Floor: as in mla_prefill.cu (H100 SXM, computed): 2048 rows of a prompt from
 * its begin on with V2-Lite 22 us, with V3 174 us; as a chunk behind 30720 tokens 0.67 ms, 5.4 ms.
 */
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/mla_prefill.cuh"

#define BUFFERS     3
#define BLOCK       64                   /* columns of a block of a tile */
#define BLOCK_BYTES (TOKENS * BLOCK * 2) /* [token][128 bytes], swizzled */
#define GROUP_ROWS  64                   /* of a warpgroup */
#define EIGHT_ROWS  (8 * BLOCK * 2)      /* bytes */

/* nope, rope and v are multiples of BLOCK. A tile: blocks of keys, then blocks of values. */
template <class Shape> struct swizzled {
    static constexpr uint32_t values = Shape::dim / BLOCK * BLOCK_BYTES;
    static constexpr uint32_t size = values + Shape::v / BLOCK * BLOCK_BYTES;
    static constexpr uint32_t query_bytes = (2 * ROWS * Shape::query_pitch + 1023) / 1024 * 1024;
    static constexpr uint32_t shared_bytes = query_bytes + BUFFERS * size;
};

typedef shape<128, 64, 128> model_shape;

/* Byte of 16 bytes `chunk` of a token's row. */
BT_DEVICE uint32_t place_of(uint32_t token, uint32_t chunk)
{
    return chunk / 8 * BLOCK_BYTES + token * (BLOCK * 2) + (chunk % 8 ^ token % 8) * 16;
}

/* `Columns` columns of TOKENS rows of `pitch` elements. Block. */
template <uint32_t Columns>
BT_DEVICE void copy_columns(const uint16_t *from, size_t pitch, unsigned char *to)
{
    constexpr uint32_t chunks = Columns / 8;
#pragma unroll
    for (uint32_t i = threadIdx.x; i < TOKENS * chunks; i += THREADS)
        bt_copy_async_16(to + place_of(i / chunks, i % chunks),
                         from + i / chunks * pitch + i % chunks * 8, true);
}

/* Begins to copy the tile at `at` of the round. Block. */
template <class Shape>
BT_DEVICE void copy_tile(const struct bt_cuda_prefill &call, uint32_t at, unsigned char *to)
{
    size_t pitch = (size_t)call.heads * (Shape::nope + Shape::v);
    const uint16_t *expanded =
        (const uint16_t *)call.expanded + at * pitch + blockIdx.y * (Shape::nope + Shape::v);
    const uint16_t *keys = (const uint16_t *)call.keys + (size_t)at * Shape::rope;
    copy_columns<Shape::nope>(expanded, pitch, to);
    copy_columns<Shape::rope>(keys, Shape::rope, to + Shape::nope / BLOCK * BLOCK_BYTES);
    copy_columns<Shape::v>(expanded + Shape::nope, pitch, to + swizzled<Shape>::values);
}

/* Values that this thread copied. */
template <class Shape> BT_DEVICE void make_values_finite(unsigned char *tile_at)
{
    constexpr uint32_t chunks = Shape::v / 8;
#pragma unroll
    for (uint32_t i = threadIdx.x; i < TOKENS * chunks; i += THREADS)
        make_finite(tile_at + swizzled<Shape>::values + place_of(i / chunks, i % chunks));
}

BT_DEVICE uint64_t operand(const unsigned char *at)
{
    return bt_matrix_descriptor(at, 16, EIGHT_ROWS, BT_SWIZZLE_128);
}

/* scores [64][TOKENS] = queries times keys of a tile. Warpgroup. */
template <class Shape>
BT_DEVICE void multiply_keys(const uint32_t q[Shape::dim / 16][4], const unsigned char *tile_at,
                             float (&scores)[TOKENS / 2])
{
    bt_wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < Shape::dim / 16; k++)
        bt_wgmma_n64_bf16_registers<0>(scores, q[k],
                                       operand(tile_at + k / 4 * BLOCK_BYTES + k % 4 * 32), k > 0);
    bt_wgmma_commit();
    bt_wgmma_wait<0>();
    bt_wgmma_hold(scores);
}

/* acc += weights times values of a tile. Warpgroup. */
template <class Shape>
BT_DEVICE void multiply_values(const float weights[TOKENS / 2], const unsigned char *tile_at,
                               struct state<Shape> *state)
{
    uint32_t left[TOKENS / 16][4];
#pragma unroll
    for (uint32_t k = 0; k < TOKENS / 16; k++)
        pack_weights(weights + 8 * k, left[k]);
#pragma unroll
    for (uint32_t k = 0; k < TOKENS / 16; k++)
        bt_wgmma_hold(left[k]);
    bt_wgmma_hold(state->acc);
    bt_wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < TOKENS / 16; k++) {
#pragma unroll
        for (uint32_t n = 0; n < Shape::v / BLOCK; n++)
            bt_wgmma_n64_bf16_registers<1>(
                state->acc + n * BLOCK / 2, left[k],
                operand(tile_at + swizzled<Shape>::values + n * BLOCK_BYTES + k * 2 * EIGHT_ROWS),
                true);
    }
    bt_wgmma_commit();
    bt_wgmma_wait<0>();
    bt_wgmma_hold(state->acc);
}

template <class Shape>
BT_KERNEL(THREADS, 1)
mla_prefill_wgmma(const __grid_constant__ struct bt_cuda_prefill call,
                  const __grid_constant__ struct bt_cuda_prefill_round round)
{
#if BT_HAVE_WGMMA
    struct rows_of_block rows = rows_of(round);
    if (rows.begin >= rows.end)
        return; /* all of these rows ended in an earlier round */
    unsigned char *tiles = bt_shared() + swizzled<Shape>::query_bytes;
    uint32_t group_first = rows.first + threadIdx.x / 128 * GROUP_ROWS;
    uint32_t group_last = rows.start + group_first + GROUP_ROWS - 1;  /* position */
    uint32_t first = rows.start + rows.first + threadIdx.x / 32 * 16; /* of the warp's row 0 */
    uint32_t q[Shape::dim / 16][4];
    struct state<Shape> state;
    float scale = bt_mul(call.scale, LOG2_E);

    for (uint32_t i = 0; i + 1 < BUFFERS; i++) {
        if (rows.begin + i * TOKENS < rows.end)
            copy_tile<Shape>(call, rows.at + i * TOKENS, tiles + i * swizzled<Shape>::size);
        bt_copy_async_commit();
    }
    take_queries<Shape>(call, rows, (uint16_t *)bt_shared());
    begin_rows<Shape>(call, rows, &state);
    bt_sync_block();
    load_queries<Shape>((const uint16_t *)bt_shared(), q);
    uint32_t now = 0, next = BUFFERS - 1;
    for (uint32_t token = rows.begin; token < rows.end; token += TOKENS) {
        unsigned char *tile_at = tiles + now * swizzled<Shape>::size;
        uint32_t ahead = token + (BUFFERS - 1) * TOKENS;
        bt_copy_async_wait<BUFFERS - 2>();
        make_values_finite<Shape>(tile_at);
        bt_fence_async();
        bt_sync_block(); /* this tile is there, and nobody works on the one before */
        if (ahead < rows.end)
            copy_tile<Shape>(call, rows.at + ahead - rows.begin,
                             tiles + next * swizzled<Shape>::size);
        bt_copy_async_commit();
        now = now + 1 < BUFFERS ? now + 1 : 0;
        next = next + 1 < BUFFERS ? next + 1 : 0;
        if (group_first > rows.last || token > group_last)
            continue; /* none of these rows sees it */
        float scores[TOKENS / 2];
        multiply_keys<Shape>(q, tile_at, scores);
        if (token + TOKENS > first + 1)
            mask(first, token, scores);
        weigh<Shape>(scale, scores, &state);
        multiply_values<Shape>(scores, tile_at, &state);
    }
    end_rows<Shape>(call, rows, state);
#else
    (void)call;
    (void)round;
#endif
}

bool bt_cuda_mla_prefill_wgmma_has(uint32_t nope, uint32_t rope, uint32_t v)
{
    return nope == model_shape::nope && rope == model_shape::rope && v == model_shape::v;
}

void bt_cuda_launch_mla_prefill_wgmma(const struct bt_cuda_prefill *call,
                                      const struct bt_cuda_prefill_round *round,
                                      cudaStream_t stream)
{
    bt_cuda_launch(mla_prefill_wgmma<model_shape>, dim3(round->blocks, call->heads, 1), THREADS,
                   swizzled<model_shape>::shared_bytes, stream, *call, *round);
}
