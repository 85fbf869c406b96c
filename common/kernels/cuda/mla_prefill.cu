/*
 * Attention of a round of a prefill (mla_prefill.h) on tensor cores: for each row and head the
 * softmax of q [nope + rope] times keys, times values [v], causal, in f32 over bf16 products.
 *
 * A block has 128 rows of a sequence and one head: 8 warps of 16 rows. Its queries are brought to
 * shared memory once, rounded to bf16, and stay in registers. Tiles of 64 tokens, at absolute
 * positions and in order, come by cp.async into two buffers in turn: the next while one is worked
 * on, with one barrier a tile. Keys are the expanded ones and, of all heads, the rotated ones; both
 * products take them and the values as they lie, by ldmatrix. Scores become weights in registers,
 * those of a tile the left operand of the product with its values.
 *
 * A row's bits are its own: a tile adds to a row by an order that is fixed, one that the row does
 * not see adds nothing (weights of 0, a factor of 1, values made finite on their way), and sums
 * between two rounds are kept unrounded. Blocks are begun from the last rows, which take longest.
 *
 * Shapes (nope, rope, v): (128, 64, 128) V2-Lite, V2, V3; (32, 16, 32), a small model of tests.
 * Shared memory: 2 * (256 * (dim + 8) + 128 * (v + 8)) bytes, dim = nope + rope; 137216 at 192,
 * 128: one block a multiprocessor. Rows are padded by 16 bytes, so that the eight
 * of an ldmatrix are in different banks.
 * Registers: <= 216 (sm_80), <= 224 (sm_90a), <= 255 (sm_100)
 * Instructions: mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32; ldmatrix; cp.async.cg;
 * ex2.approx.ftz.f32
 * Counted: moved <= 1.00, asked <= 1.11, sectors <= 1.00, conflicts <= 1.00, products <= 1.49
 * Bound: tensor cores, at what mma.sync gives of them, which on H100 is less than wgmma would.
 * Floor (H100 SXM, computed): 640 operations for a row, token and head that it sees: 2048 rows of a
 * prompt from its begin on (half of all pairs) with V2-Lite (16 heads) 21 GFLOP, 22 us; with V3
 * (128 heads) 172 GFLOP, 174 us; the same rows as a chunk behind 30720 tokens 666 GFLOP, 0.67 ms,
 * and 5.3 TFLOP, 5.4 ms.
 */
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/mla_prefill.cuh"

/* Where a tile is in shared memory: rows of keys, then rows of values; elements. */
template <class Shape> struct tile {
    static constexpr uint32_t key_pitch = Shape::dim + PAD, value_pitch = Shape::v + PAD;
    static constexpr uint32_t values = TOKENS * key_pitch;
    static constexpr uint32_t size = values + TOKENS * value_pitch;
    static constexpr uint32_t shared_bytes = 2 * (ROWS * Shape::query_pitch + 2 * size);
};

/* Columns `Columns` of TOKENS rows of `pitch` elements, to rows of Pitch. Block. */
template <uint32_t Columns, uint32_t Pitch>
BT_DEVICE void copy_columns(const uint16_t *from, size_t pitch, uint16_t *to)
{
    constexpr uint32_t chunks = Columns / 8;
#pragma unroll
    for (uint32_t i = threadIdx.x; i < TOKENS * chunks; i += THREADS)
        bt_copy_async_16(to + i / chunks * Pitch + i % chunks * 8,
                         from + i / chunks * pitch + i % chunks * 8, true);
}

/* Begins to copy the tile at `at` of the round. Block. */
template <class Shape>
BT_DEVICE void copy_tile(const struct bt_cuda_prefill &call, uint32_t at, uint16_t *to)
{
    size_t pitch = (size_t)call.heads * (Shape::nope + Shape::v);
    const uint16_t *expanded =
        (const uint16_t *)call.expanded + at * pitch + blockIdx.y * (Shape::nope + Shape::v);
    const uint16_t *keys = (const uint16_t *)call.keys + (size_t)at * Shape::rope;
    copy_columns<Shape::nope, tile<Shape>::key_pitch>(expanded, pitch, to);
    copy_columns<Shape::rope, tile<Shape>::key_pitch>(keys, Shape::rope, to + Shape::nope);
    copy_columns<Shape::v, tile<Shape>::value_pitch>(expanded + Shape::nope, pitch,
                                                     to + tile<Shape>::values);
}

/* Values that this thread copied. */
template <class Shape> BT_DEVICE void make_values_finite(uint16_t *tile_at)
{
    constexpr uint32_t chunks = Shape::v / 8;
#pragma unroll
    for (uint32_t i = threadIdx.x; i < TOKENS * chunks; i += THREADS)
        make_finite(tile_at + tile<Shape>::values + i / chunks * tile<Shape>::value_pitch +
                    i % chunks * 8);
}

/* scores [16][TOKENS] = queries times keys of a tile. */
template <class Shape>
BT_DEVICE void multiply_keys(const uint32_t q[Shape::dim / 16][4], const uint16_t *tile_at,
                             float scores[TOKENS / 2])
{
    uint32_t lane = bt_lane();
    const uint16_t *from =
        tile_at + (lane / 16 * 8 + lane % 8) * tile<Shape>::key_pitch + lane / 8 % 2 * 8;
#pragma unroll
    for (uint32_t i = 0; i < TOKENS / 2; i++)
        scores[i] = 0;
#pragma unroll
    for (uint32_t k = 0; k < Shape::dim / 16; k++) {
#pragma unroll
        for (uint32_t n = 0; n < TOKENS / 8; n += 2) {
            uint32_t keys[4];
            bt_ldmatrix_x4(keys, from + n * 8 * tile<Shape>::key_pitch + k * 16);
            bt_mma_bf16(scores + n * 4, q[k], keys);
            bt_mma_bf16(scores + n * 4 + 4, q[k], keys + 2);
        }
    }
}

/* acc += weights times values of a tile. */
template <class Shape>
BT_DEVICE void multiply_values(const float weights[TOKENS / 2], const uint16_t *tile_at,
                               struct state<Shape> *state)
{
    uint32_t lane = bt_lane();
    const uint16_t *from =
        tile_at + tile<Shape>::values + lane % 16 * tile<Shape>::value_pitch + lane / 16 * 8;
#pragma unroll
    for (uint32_t k = 0; k < TOKENS / 16; k++) {
        uint32_t left[4];
        pack_weights(weights + 8 * k, left);
#pragma unroll
        for (uint32_t n = 0; n < Shape::v / 8; n += 2) {
            uint32_t values[4];
            bt_ldmatrix_x4_trans(values, from + k * 16 * tile<Shape>::value_pitch + n * 8);
            bt_mma_bf16(state->acc + n * 4, left, values);
            bt_mma_bf16(state->acc + n * 4 + 4, left, values + 2);
        }
    }
}

template <class Shape>
BT_KERNEL(THREADS, 1)
mla_prefill(const __grid_constant__ struct bt_cuda_prefill call,
            const __grid_constant__ struct bt_cuda_prefill_round round)
{
    struct rows_of_block rows = rows_of(round);
    if (rows.begin >= rows.end)
        return; /* all of these rows ended in an earlier round */
    uint16_t *queries = (uint16_t *)bt_shared(), *tiles = queries + ROWS * Shape::query_pitch;
    uint32_t warp_first = rows.first + threadIdx.x / 32 * 16;
    uint32_t first = rows.start + warp_first; /* position of the warp's row 0 */
    uint32_t q[Shape::dim / 16][4];
    struct state<Shape> state;
    float scale = bt_mul(call.scale, LOG2_E);

    copy_tile<Shape>(call, rows.at, tiles);
    bt_copy_async_commit();
    take_queries<Shape>(call, rows, queries);
    begin_rows<Shape>(call, rows, &state);
    bt_sync_block();
    load_queries<Shape>(queries, q);
    for (uint32_t token = rows.begin, i = 0; token < rows.end; token += TOKENS, i ^= 1) {
        uint16_t *now = tiles + i * tile<Shape>::size, *next = tiles + (i ^ 1) * tile<Shape>::size;
        bt_copy_async_wait<0>();
        make_values_finite<Shape>(now);
        bt_sync_block(); /* this tile is there, and nobody works on the one before */
        if (token + TOKENS < rows.end)
            copy_tile<Shape>(call, rows.at + token + TOKENS - rows.begin, next);
        bt_copy_async_commit();
        if (warp_first > rows.last || token > first + 15)
            continue; /* none of these rows sees it */
        float scores[TOKENS / 2];
        multiply_keys<Shape>(q, now, scores);
        if (token + TOKENS > first + 1)
            mask(first, token, scores);
        weigh<Shape>(scale, scores, &state);
        multiply_values<Shape>(scores, now, &state);
    }
    end_rows<Shape>(call, rows, state);
}

template <class Shape>
static void launch(const struct bt_cuda_prefill *call, const struct bt_cuda_prefill_round *round,
                   cudaStream_t stream)
{
    bt_cuda_launch(mla_prefill<Shape>, dim3(round->blocks, call->heads, 1), THREADS,
                   tile<Shape>::shared_bytes, stream, *call, *round);
}

typedef shape<128, 64, 128> model_shape;
typedef shape<32, 16, 32> small_shape;

template <class Shape> static bool is_shape(uint32_t nope, uint32_t rope, uint32_t v)
{
    return nope == Shape::nope && rope == Shape::rope && v == Shape::v;
}

bool bt_cuda_mla_prefill_has(uint32_t nope, uint32_t rope, uint32_t v)
{
    return is_shape<model_shape>(nope, rope, v) || is_shape<small_shape>(nope, rope, v);
}

void bt_cuda_launch_mla_prefill(const struct bt_cuda_prefill *call,
                                const struct bt_cuda_prefill_round *round, cudaStream_t stream)
{
    if (is_shape<model_shape>(call->nope, call->rope, call->v))
        launch<model_shape>(call, round, stream);
    else
        launch<small_shape>(call, round, stream);
}
