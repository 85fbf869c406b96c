/*
 * Decode, second step, on Hopper: attention of queries in the latent space over latent pages, by
 * wgmma, bulk copies and mbarriers. sm_90a alone; elsewhere the kernel is empty.
 *
 *     queries [row][head][576] bf16, pages -> results [row][head] bf16, or sums and states
 *
 * A block takes a piece of a row (or all of a row that is not shared out, piece by piece) and 64
 * heads; blocks stay and take what comes. A tile is a page of 64 tokens, nine swizzled chunks of 64
 * columns, as wgmma reads them; the latents are K of the one product and V of the other. Three
 * warpgroups:
 *
 *     fetcher   fills a ring of two tiles. bf16: nine boxes by one thread; of a page's first tokens
 *               alone, and of e4m3, all threads load, widen and store, so that what is behind the
 *               last token is zeros.
 *     scorer    S [64][64] = Q K^T; softmax in its registers (four lanes have a row); P to shared
 *               memory for the helper; O += P V of columns 0 … 255, P from registers. The S of the
 *               next tile is queued behind that, so that the tensor cores go on.
 *     helper    O += P V of columns 256 … 511, P from shared memory.
 *
 *     full, empty [stage]  fetcher and consumers; READY, FREE: P; BOTH: queries, ends of pieces
 *
 * Threads: 384. Shared memory: 230 176 bytes of 227 KiB: Q 72 KiB, two tiles of 72 KiB, P 8 KiB.
 * setmaxnreg makes the registers 56 for the fetcher and 224 for the consumers, whose O is 128 a
 * thread.
 * Registers: <= 16 (sm_80), <= 168 (sm_90a), <= 16 (sm_100)
 * Instructions: wgmma m64n64k16 bf16 (sm_90a); wgmma m64n256k16 bf16 (sm_90a);
 * cp.async.bulk.tensor.2d (sm_90a); mbarrier (sm_90a); setmaxnreg (sm_90a); ld.global.nc.v4
 * (sm_90a)
 * Counted: moved <= 1.01, asked <= 1.36, sectors <= 1.28, conflicts <= 1.00, products <= 4.00
 *
 * Floors for H100 (3.35 TB/s; 989 TFLOP/s), 64 rows of 4096 tokens, a layer. KV is 302 MB in bf16,
 * 90 us, and 172 MB in e4m3, 51 us.
 *     V2-Lite, 16 heads:  9.1 GFLOP, 9 us (of 64 heads a block, 36.5 GFLOP, 37 us): bound by KV
 *     V3, 128 heads:     73 GFLOP, 74 us; KV 90 us, and pieces 134 MB, 40 us, as far as not in L2
 * A tile takes the tensor cores 2176 cycles, 1.2 us; with 128 heads two blocks read each tile, and
 * L2 gives a multiprocessor 72 KiB in about 1.8 us: that is the bound to be expected there. e4m3:
 * the fetcher's conversion, about 1600 issue slots of each scheduler a tile.
 */
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/mla_decode_wgmma.h"
#include "common/kernels/cuda/mla_piece.cuh"

#define GROUP       128 /* threads of a warpgroup */
#define THREADS     (3 * GROUP)
#define HEADS       64
#define TILE        64
#define LATENT      512
#define ROPE        64
#define CHUNK       8192 /* bytes of [64 rows][64 columns] */
#define CHUNKS      ((LATENT + ROPE) / 64)
#define TILE_SUM    (CHUNKS * CHUNK)
#define STAGES      2
#define HALF        (LATENT / 2) /* columns of a consumer */
#define PIECE_TILES (BT_CUDA_PIECE_TOKENS / TILE)

#define Q_AT       0
#define K_AT       (Q_AT + TILE_SUM)
#define P_AT       (K_AT + STAGES * TILE_SUM)
#define KEEP_AT    (P_AT + CHUNK)        /* [HEADS] floats: what sums so far are multiplied by */
#define END_AT     (KEEP_AT + HEADS * 4) /* [HEADS][2] floats: see ending */
#define BARRIER_AT (END_AT + HEADS * 8)
#define SHARED     (BARRIER_AT + 2 * STAGES * 8)

enum barrier { READY = 1, FREE = 2, BOTH = 3 };

/* ---- places in shared memory ---- */

/* Byte of 16-byte unit `unit` of a row of a chunk, as swizzled by 128 bytes. */
BT_DEVICE uint32_t swizzled(uint32_t row, uint32_t unit)
{
    return row * 128 + (unit ^ row % 8) * 16;
}

BT_DEVICE unsigned char *tile_of(uint32_t index)
{
    return bt_shared() + K_AT + index % STAGES * TILE_SUM;
}
BT_DEVICE uint64_t *full_of(uint32_t index)
{
    return (uint64_t *)(bt_shared() + BARRIER_AT) + index % STAGES;
}
BT_DEVICE uint64_t *empty_of(uint32_t index)
{
    return (uint64_t *)(bt_shared() + BARRIER_AT) + STAGES + index % STAGES;
}
BT_DEVICE uint32_t parity_of(uint32_t index)
{
    return index / STAGES % 2;
}

/* Of an operand whose contiguous dimension is K, from its first element on. */
BT_DEVICE uint64_t k_major(const unsigned char *chunks)
{
    return bt_matrix_descriptor(chunks, 16, 1024, BT_SWIZZLE_128);
}
/* Of V: columns are contiguous, chunk after chunk; from the first token on. */
BT_DEVICE uint64_t n_major(const unsigned char *chunks)
{
    return bt_matrix_descriptor(chunks, CHUNK, 1024, BT_SWIZZLE_128);
}
/* What is added to them for K's elements from 16 `step` on: addresses count 16 bytes. */
BT_DEVICE uint64_t k_step(uint32_t step)
{
    return (step / 4 * CHUNK + step % 4 * 32) / 16;
}
BT_DEVICE uint64_t n_step(uint32_t step)
{
    return step * 16 * 128 / 16;
}

/* ---- the work of a block, as all three warpgroups walk through it ---- */

struct work {
    mla_piece piece;
    uint32_t head, tiles;
};

BT_DEVICE work work_at(const struct bt_cuda_mla_decode &call, uint32_t item)
{
    const uint32_t head_blocks = (call.heads + HEADS - 1) / HEADS;
    work w;
    w.piece = mla_piece_at(call, item / head_blocks);
    w.head = item % head_blocks * HEADS;
    w.tiles = (w.piece.end - w.piece.begin + TILE - 1) / TILE;
    return w;
}

BT_DEVICE uint32_t item_count(const struct bt_cuda_mla_decode &call)
{
    return mla_piece_count(call) * ((call.heads + HEADS - 1) / HEADS);
}

BT_DEVICE uint32_t tokens_of(const work &w, uint32_t tile)
{
    uint32_t left = w.piece.end - w.piece.begin - tile * TILE;
    return left < TILE ? left : TILE;
}

/* Whether a piece ends with this tile; there may be others after it in the same work. */
BT_DEVICE bool ends_piece(const work &w, uint32_t tile)
{
    return tile + 1 == w.tiles || (tile + 1) * TILE % BT_CUDA_PIECE_TOKENS == 0;
}

/* ---- fetcher ---- */

/* The tokens that there are, and zeros behind them. */
BT_DEVICE void load_tile_bf16(const unsigned char *page, uint32_t tokens, unsigned char *tile)
{
    const uint32_t units = (LATENT + ROPE) / 8;
    for (uint32_t i = threadIdx.x % GROUP; i < TILE * units; i += GROUP) {
        uint32_t token = i / units, unit = i % units;
        uint4 value = {0, 0, 0, 0};
        if (token < tokens)
            value = bt_load_16(page + (size_t)i * 16);
        bt_store_shared_16(tile + unit / 8 * CHUNK + swizzled(token, unit % 8), value);
    }
}

/* Eight elements of e4m3 as the 16-byte unit at `to`. */
BT_DEVICE void store_widened(unsigned char *to, uint2 bytes, float scale)
{
    bt_store_shared_16(to, {mla_widened<0>(bytes.x, scale), mla_widened<2>(bytes.x, scale),
                            mla_widened<0>(bytes.y, scale), mla_widened<2>(bytes.y, scale)});
}

/* A warp takes a token's latent, four tokens at a time: eight lanes have the 128 elements of a
 * scale, so that they store a row of a chunk, and then one of the next. Then the rotated keys,
 * which are bf16, eight lanes a token. */
BT_DEVICE void load_tile_e4m3(const unsigned char *page, uint32_t tokens, unsigned char *tile)
{
    const uint32_t lane = bt_lane(), warp = threadIdx.x % GROUP / 32;
    const uint32_t token_bytes = LATENT + LATENT / 128 * 4 + 2 * ROPE;
#pragma unroll 1
    for (uint32_t at = warp * 4; at < TILE; at += 16) {
        uint2 low[4], high[4];
        uint4 key = {0, 0, 0, 0};
        float scales[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const unsigned char *token = page + (at + i) * token_bytes;
            const unsigned char *own = token + lane / 8 * 128 + lane % 8 * 8;
            low[i] = high[i] = uint2{0, 0};
            scales[i] = 0;
            if (at + i < tokens) {
                low[i] = *(const uint2 *)own;
                high[i] = *(const uint2 *)(own + 64);
                scales[i] = *(const float *)(token + LATENT + lane / 8 * 4);
            }
        }
        if (at + lane / 8 < tokens)
            key = bt_load_16(page + (at + lane / 8) * token_bytes + LATENT + LATENT / 128 * 4 +
                             lane % 8 * 16);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            /* swizzled(at + i, lane % 8), with fewer registers */
            unsigned char *to =
                tile + lane / 8 * 2 * CHUNK + (at + i) * 128 + (lane % 8 ^ (warp % 2 * 4 + i)) * 16;
            store_widened(to, low[i], scales[i]);
            store_widened(to + CHUNK, high[i], scales[i]);
        }
        bt_store_shared_16(tile + (CHUNKS - 1) * CHUNK + swizzled(at + lane / 8, lane % 8), key);
    }
}

template <bool E4m3>
BT_DEVICE void fetch_tile(const struct bt_cuda_mla_decode &call, const CUtensorMap *map,
                          const work &w, uint32_t tile, uint32_t index)
{
    uint32_t page = w.piece.pages[w.piece.begin / TILE + tile], tokens = tokens_of(w, tile);
    unsigned char *to = tile_of(index);
    uint64_t *full = full_of(index);
    if (index >= STAGES)
        bt_mbarrier_wait(empty_of(index), parity_of(index) ^ 1);
    if (!E4m3 && tokens == TILE) {
        if (threadIdx.x % GROUP == 0) {
            bt_mbarrier_arrive_expect(full, TILE_SUM);
            for (uint32_t i = 0; i < CHUNKS; i++)
                bt_bulk_copy_box(to + i * CHUNK, map, i * 64, page * TILE, full);
        } else {
            bt_mbarrier_arrive(full);
        }
        return;
    }
    if (E4m3)
        load_tile_e4m3(mla_page(call, page), tokens, to);
    else
        load_tile_bf16(mla_page(call, page), tokens, to);
    bt_fence_async();
    bt_mbarrier_arrive(full);
}

template <bool E4m3>
BT_DEVICE void fetch_all(const struct bt_cuda_mla_decode &call, const CUtensorMap *map)
{
    uint32_t index = 0;
    for (uint32_t item = blockIdx.x; item < item_count(call); item += gridDim.x) {
        work w = work_at(call, item);
        for (uint32_t tile = 0; tile < w.tiles; tile++, index++)
            fetch_tile<E4m3>(call, map, w, tile, index);
    }
}

/* ---- consumers ---- */

/* Row of a fragment of 64 rows that this thread has; the other is 8 further. */
BT_DEVICE uint32_t fragment_row(void)
{
    return threadIdx.x % GROUP / 32 * 16 + bt_lane() / 4;
}

/* Both consumers: the queries of the block's heads, zeros for heads that are not there. */
BT_DEVICE void load_queries(const struct bt_cuda_mla_decode &call, const work &w)
{
    const uint32_t units = (LATENT + ROPE) / 8;
    const unsigned char *from =
        (const unsigned char *)call.queries +
        ((size_t)(w.piece.row - call.first_row) * call.heads + w.head) * call.query_pitch * 2;
    bt_sync_named(BOTH, 2 * GROUP); /* the ones before have been read */
    for (uint32_t i = threadIdx.x - GROUP; i < HEADS * units; i += 2 * GROUP) {
        uint32_t head = i / units, unit = i % units;
        uint4 value = {0, 0, 0, 0};
        if (w.head + head < call.heads)
            value = bt_load_16(from + (size_t)i * 16);
        bt_store_shared_16(bt_shared() + Q_AT + unit / 8 * CHUNK + swizzled(head, unit % 8), value);
    }
    bt_fence_async();
    bt_sync_named(BOTH, 2 * GROUP);
}

BT_DEVICE void clear(float sums[128])
{
#pragma unroll
    for (uint32_t i = 0; i < 128; i++)
        sums[i] = 0;
}

/* sums [64][HALF] times what each row is to be kept with. */
BT_DEVICE void keep_sums(float sums[128], float low, float high)
{
#pragma unroll
    for (uint32_t i = 0; i < 128; i += 4) {
        sums[i] = bt_mul(sums[i], low);
        sums[i + 1] = bt_mul(sums[i + 1], low);
        sums[i + 2] = bt_mul(sums[i + 2], high);
        sums[i + 3] = bt_mul(sums[i + 3], high);
    }
}

/* This warp's part of the tile has been read. */
BT_DEVICE void release(uint32_t index)
{
    bt_sync_warp();
    if (bt_lane() == 0)
        bt_mbarrier_arrive(empty_of(index));
}

/*
 * How a piece ends for a head: what its sums are multiplied by, and what those that are in the slot
 * already are. Whole rows: 1 / weight, to results.
 */
struct ending {
    float before, behind;
};

/* One consumer's half of a piece's sums. `is_first`: of several in one slot. */
BT_DEVICE void give_sums(const struct bt_cuda_mla_decode &call, const work &w, bool is_first,
                         uint32_t half, const float sums[128])
{
    const uint32_t lane = bt_lane(), head = fragment_row() + lane % 2 * 8;
    const bool is_there = w.head + head < call.heads;
    const float *end = (const float *)(bt_shared() + END_AT) + head * 2;
    const mla_join join = {0, end[0], end[1]};
    const uint32_t column = half * HALF + lane % 4 / 2 * 4;
    float *to = mla_sums(call, w.piece.slot, is_there ? w.head + head : 0) + column;
    uint32_t *result =
        (uint32_t *)((uint16_t *)call.results +
                     ((size_t)(w.piece.row - call.first_row) * call.heads + w.head + head) *
                         call.result_pitch +
                     column);
#pragma unroll
    for (uint32_t i = 0; i < HALF / 8; i++) {
        float4 x = mla_four_columns(sums + 4 * i);
        if (!is_there)
            continue;
        if (w.piece.is_whole) {
            *(uint2 *)(result + 4 * i) = {
                bt_bf16x2_from(bt_mul(x.x, join.behind), bt_mul(x.y, join.behind)),
                bt_bf16x2_from(bt_mul(x.z, join.behind), bt_mul(x.w, join.behind))};
            continue;
        }
        if (!is_first) {
            float4 before = *(const float4 *)(to + 8 * i);
            x.x = mla_joined(join, before.x, x.x);
            x.y = mla_joined(join, before.y, x.y);
            x.z = mla_joined(join, before.z, x.z);
            x.w = mla_joined(join, before.w, x.w);
        }
        bt_store_16(to + 8 * i, mla_bits_of(x));
    }
}

/* ---- scorer ---- */

/* A row of the softmax is four neighbouring lanes'; each thread has two rows. */
struct softmax {
    float max[2], weight[2]; /* the weight: this thread's share */
};

BT_DEVICE void begin_softmax(softmax &state)
{
    for (uint32_t r = 0; r < 2; r++) {
        state.max[r] = MLA_NEGATIVE_INFINITY;
        state.weight[r] = 0;
    }
}

/* Queues S of the tile. */
BT_DEVICE void queue_scores(uint32_t index, float scores[32])
{
    /* `index` is never so large: the addresses of Q are to be made anew each time, as there are no
     * registers to keep them in */
    const uint64_t q = k_major(bt_shared() + Q_AT + (index >> 31)), k = k_major(tile_of(index));
    bt_mbarrier_wait(full_of(index), parity_of(index));
    bt_wgmma_fence();
#pragma unroll
    for (uint32_t step = 0; step < CHUNKS * 4; step++)
        bt_wgmma_n64_bf16<0, 0>(scores, q + k_step(step), k + k_step(step), step > 0);
    bt_wgmma_commit();
}

/* Scores become weights, here and for the helper; those of tokens from `tokens` on are 0. Returns
 * in keep what sums so far are multiplied by. */
BT_DEVICE void weigh(float scale, uint32_t tokens, float scores[32], softmax &state, float keep[2],
                     uint32_t weights[16])
{
    const uint32_t lane = bt_lane(), row = fragment_row();
    float most[2] = {MLA_NEGATIVE_INFINITY, MLA_NEGATIVE_INFINITY};
#pragma unroll
    for (uint32_t i = 0; i < 32; i++) {
        if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= tokens)
            scores[i] = MLA_NEGATIVE_INFINITY;
        most[i / 2 % 2] = fmaxf(most[i / 2 % 2], scores[i]);
    }
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        float sum = 0;
        most[r] = fmaxf(most[r], bt_shuffle_xor(most[r], 1));
        most[r] = fmaxf(most[r], bt_shuffle_xor(most[r], 2));
        most[r] = fmaxf(state.max[r], bt_mul(most[r], scale));
        keep[r] = bt_exp2_fast(bt_add(state.max[r], -most[r]));
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            float low = bt_exp2_fast(bt_fma(scores[4 * i + 2 * r], scale, -most[r]));
            float high = bt_exp2_fast(bt_fma(scores[4 * i + 2 * r + 1], scale, -most[r]));
            weights[2 * i + r] = bt_bf16x2_from(low, high);
            sum = bt_add(sum, bt_add(low, high));
        }
        state.weight[r] = bt_fma(state.weight[r], keep[r], sum);
        state.max[r] = most[r];
    }
    bt_sync_named(FREE, 2 * GROUP); /* the helper is done with the weights before */
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            *(uint32_t *)(bt_shared() + P_AT + swizzled(row + 8 * r, i) + lane % 4 * 4) =
                weights[2 * i + r];
        if (lane % 4 == 0)
            ((float *)(bt_shared() + KEEP_AT))[row + 8 * r] = keep[r];
    }
    bt_fence_async();
    bt_arrive_named(READY, 2 * GROUP);
}

/* O += P V of the first half of the columns. */
BT_DEVICE void queue_values(uint32_t index, uint32_t (&weights)[16], float (&sums)[128])
{
    const uint64_t v = n_major(tile_of(index));
    bt_wgmma_hold(weights);
    bt_wgmma_hold(sums);
    bt_wgmma_fence();
#pragma unroll
    for (uint32_t step = 0; step < TILE / 16; step++)
        bt_wgmma_n256_bf16_registers<1>(sums, weights + 4 * step, v + n_step(step), true);
    bt_wgmma_commit();
}

/* The state of the slot, and for all threads what the ending is. */
BT_DEVICE void end_softmax(const struct bt_cuda_mla_decode &call, const work &w, bool is_first,
                           const softmax &state)
{
    ending *ends = (ending *)(bt_shared() + END_AT);
    const uint32_t row = fragment_row();
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        uint32_t head = w.head + row + 8 * r;
        float weight = bt_add(state.weight[r], bt_shuffle_xor(state.weight[r], 1)), max;
        weight = bt_add(weight, bt_shuffle_xor(weight, 2));
        max = state.max[r];
        if (bt_lane() % 4 != 0)
            continue;
        mla_join join = {max, 0, 1};
        if (w.piece.is_whole) {
            join.behind = bt_divide(1.0f, weight);
        } else if (head < call.heads) {
            float *of_slot = mla_state(call, w.piece.slot, head);
            if (!is_first) {
                join = mla_join_of(of_slot[0], max);
                weight = mla_joined(join, of_slot[1], weight);
            }
            of_slot[0] = join.max;
            of_slot[1] = weight;
        }
        ends[row + 8 * r].before = join.before;
        ends[row + 8 * r].behind = join.behind;
    }
}

/* What only ends of pieces need of the work is read again there, to have the registers till then.
 */
BT_DEVICE void score_work(const struct bt_cuda_mla_decode &call, uint32_t item, const work &w,
                          uint32_t index)
{
    float sums[128], scores[32], keep[2];
    uint32_t weights[16];
    softmax state;
    load_queries(call, w);
    begin_softmax(state);
    clear(sums);
    queue_scores(index, scores);
    bt_wgmma_wait<0>();
    bt_wgmma_hold(scores);
    for (uint32_t tile = 0; tile < w.tiles; tile++, index++) {
        weigh(call.scale, tokens_of(w, tile), scores, state, keep, weights);
        keep_sums(sums, keep[0], keep[1]);
        queue_values(index, weights, sums);
        if (tile + 1 < w.tiles) {
            queue_scores(index + 1, scores);
            bt_wgmma_wait<1>();
        } else {
            bt_wgmma_wait<0>();
        }
        bt_wgmma_hold(sums);
        release(index);
        if (ends_piece(w, tile)) {
            const work again = work_at(call, item);
            end_softmax(call, again, tile < PIECE_TILES, state);
            bt_sync_named(BOTH, 2 * GROUP);
            give_sums(call, again, tile < PIECE_TILES, 0, sums);
            bt_sync_named(BOTH, 2 * GROUP);
            begin_softmax(state);
            clear(sums);
        }
        bt_wgmma_wait<0>();
        bt_wgmma_hold(scores);
    }
}

/* ---- helper ---- */

BT_DEVICE void help_work(const struct bt_cuda_mla_decode &call, uint32_t item, const work &w,
                         uint32_t index)
{
    const float *keep = (const float *)(bt_shared() + KEEP_AT) + fragment_row();
    float sums[128];
    load_queries(call, w);
    clear(sums);
    for (uint32_t tile = 0; tile < w.tiles; tile++, index++) {
        bt_mbarrier_wait(full_of(index), parity_of(index));
        bt_sync_named(READY, 2 * GROUP);
        keep_sums(sums, keep[0], keep[8]);
        const uint64_t p = k_major(bt_shared() + P_AT);
        const uint64_t v = n_major(tile_of(index) + HALF / 64 * CHUNK);
        bt_wgmma_hold(sums);
        bt_wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < TILE / 16; step++)
            bt_wgmma_n256_bf16<0, 1>(sums, p + k_step(step), v + n_step(step), true);
        bt_wgmma_commit();
        bt_wgmma_wait<0>();
        bt_wgmma_hold(sums);
        bt_arrive_named(FREE, 2 * GROUP);
        release(index);
        if (ends_piece(w, tile)) {
            const work again = work_at(call, item);
            bt_sync_named(BOTH, 2 * GROUP);
            give_sums(call, again, tile < PIECE_TILES, 1, sums);
            bt_sync_named(BOTH, 2 * GROUP);
            clear(sums);
        }
    }
}

/* ---- the kernel ---- */

BT_DEVICE void begin_barriers(void)
{
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < STAGES; i++) {
            bt_mbarrier_init(full_of(i), GROUP);
            bt_mbarrier_init(empty_of(i), 2 * GROUP / 32);
        }
        bt_fence_async();
    }
    bt_sync_block();
}

template <bool E4m3>
BT_KERNEL(THREADS, 1)
mla_decode_wgmma(const struct bt_cuda_mla_decode call, const __grid_constant__ CUtensorMap map)
{
#if BT_HAVE_WGMMA
    const uint32_t role = threadIdx.x / GROUP;
    begin_barriers();
    if (role == 0) {
        bt_registers_lower<56>();
        fetch_all<E4m3>(call, &map);
        return;
    }
    bt_registers_raise<224>();
    uint32_t index = 0;
    if (role == 2)
        bt_arrive_named(FREE, 2 * GROUP);
    for (uint32_t item = blockIdx.x; item < item_count(call); item += gridDim.x) {
        work w = work_at(call, item);
        if (role == 1)
            score_work(call, item, w, index);
        else
            help_work(call, item, w, index);
        index += w.tiles;
    }
    if (role == 1)
        bt_sync_named(FREE, 2 * GROUP); /* nobody leaves while another waits for him */
#else
    (void)call;
    (void)map;
#endif
}

void bt_cuda_launch_mla_decode_wgmma(const struct bt_cuda_mla_decode *call, const CUtensorMap *map,
                                     uint32_t blocks, cudaStream_t stream)
{
    if (call->pool == BT_F8_E4M3)
        bt_cuda_launch(mla_decode_wgmma<true>, dim3(blocks, 1, 1), THREADS, SHARED, stream, *call,
                       *map);
    else
        bt_cuda_launch(mla_decode_wgmma<false>, dim3(blocks, 1, 1), THREADS, SHARED, stream, *call,
                       *map);
}
