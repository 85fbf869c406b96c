/*
 * Decode, second step: attention of queries in the latent space over latent pages, by mma.sync, for
 * sm_80 and up.
 *
 *     queries [row][head][Latent + rope] bf16, pages -> results bf16, or sums and states of pieces
 *
 * A block takes a piece of a row (BT_CUDA_PIECE_TOKENS tokens, or all of a row that is not shared
 * out, piece by piece) and 16, 32 or 64 heads; blocks stay and take what comes. Tiles of 32 tokens
 * go from the pages to shared memory, the next one while this one is worked on:
 *
 *     S [Heads][32] = Q K^T   a warp has 16 heads and 8 or 16 tokens; Q and K from shared memory
 *     P = 2^(S scale - max)   in f32; rounded to bf16 through shared memory; its sum is not rounded
 *     O += P V                a warp has all heads and Latent / warps columns, in registers; V is
 *                             the latent part of the tile that was K (ldmatrix.trans)
 *
 * Pools of bf16 are copied as they are (cp.async), those of e4m3 are copied raw and widened to bf16
 * from there, those of f32 are rounded on the way, without being fetched ahead. Tokens behind the
 * last are zeros and have the weight 0. A head's row of each product is made of its own query
 * alone, so neighbours do not matter, nor which heads or rows share a block.
 *
 * Shapes: kv_lora_rank 512 (16, 32 or 64 heads a block, by the number of heads) or 64 (16 heads),
 * qk_rope_head_dim a multiple of 8 up to 64. Others: mla_decode_plain.
 * Threads: 128 (16 heads), 256. Shared memory for 512 + 64: 64 heads 155 648 bytes (bf16), 160 256
 * (e4m3); 16 heads 132 000 (bf16): one block a multiprocessor, within 163 KiB of sm_80.
 * Registers: <= 255 (sm_80), <= 255 (sm_90a), <= 255 (sm_100)
 * Instructions: mma.sync.m16n8k16 bf16; ldmatrix x4, x4.trans; cp.async 16
 * Counted: moved <= 1.01, asked <= 1.16, sectors <= 1.14, conflicts <= 1.00, products <= 1.00
 * Bound: 128 heads: tensor cores and shared memory about alike (a tile of 64 heads is 1088 mma, or
 * 2176 cycles of sm_80, and 350 KB through shared memory, 2740 cycles); 16 heads: KV bytes.
 * Floors for H100, where mla_decode_wgmma takes bf16 and e4m3: see there.
 */
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/mla_piece.cuh"

#define TILE     32
#define MAX_ROPE 64
#define P_PITCH  (TILE + 8) /* odd multiples of 16 bytes: ldmatrix has no bank twice */

enum pool { POOL_BF16, POOL_E4M3, POOL_F32 };

/* Everything about a variant that is known when it is compiled. */
template <uint32_t Latent, uint32_t Heads, enum pool Pool>
struct shape {
    static const uint32_t warps = Heads == 16 ? 4 : 8; static const uint32_t threads = warps * 32;
    static const uint32_t head_tiles = Heads / 16;
    static const uint32_t tokens = TILE * head_tiles / warps; /* of a warp in S */
    static const uint32_t token_parts = TILE / tokens;
    static const uint32_t columns = Latent / warps; /* of a warp in O */
    static const uint32_t column_tiles = columns / 8;
    static const uint32_t pitch = Latent + MAX_ROPE + 8; /* elements of a row of Q and K */
    static const uint32_t stages = Pool == POOL_BF16 ? (Heads == 16 ? 3 : 2) : 2;
    /* raw bytes of a tile of e4m3 */
    static const uint32_t raw_bytes = TILE * (Latent + (Latent + 127) / 128 * 4 + 2 * MAX_ROPE);
    static const uint32_t tiles = Pool == POOL_BF16 ? stages : 1;

    static const uint32_t q_at = 0;
    static const uint32_t k_at = q_at + Heads * pitch * 2;
    static const uint32_t raw_at = k_at + tiles * TILE * pitch * 2;
    static const uint32_t p_at = raw_at + (Pool == POOL_E4M3 ? stages * raw_bytes : 0);
    static const uint32_t part_at = p_at + Heads * P_PITCH * 2; /* [token_parts][Heads] floats */
    static const uint32_t keep_at = part_at + token_parts * Heads * 4;
    static const uint32_t shared_bytes = keep_at + Heads * 4;
};

/* A block's place in its work: shared by the steps below, all in registers. */
template <typename Shape> struct state {
    float sums[Shape::head_tiles][Shape::column_tiles][4]; /* O */
    float max[2], weight[2]; /* of the rows lane / 4 and lane / 4 + 8 of the warp's tile of S;
                                the weight is this thread's share */
};

/* ---- from pages to shared memory ---- */

struct tile {
    const unsigned char *bytes; /* of its first token */
    uint32_t tokens;            /* at most TILE */
};

BT_DEVICE tile tile_at(const struct bt_cuda_mla_decode &call, const mla_piece &piece,
                       uint32_t position)
{
    tile t;
    uint32_t left = piece.end - position;
    t.tokens = left < TILE ? left : TILE;
    t.bytes = mla_page(call, piece.pages[position / MLA_PAGE_TOKENS]) +
              position % MLA_PAGE_TOKENS * call.token_bytes;
    return t;
}

/* bf16: 16 bytes a copy, rows of K padded. */
template <typename Shape>
BT_DEVICE void fetch_bf16(const struct bt_cuda_mla_decode &call, const tile &t, unsigned char *k)
{
    uint32_t chunks = call.token_bytes / 16;
    for (uint32_t i = threadIdx.x; i < TILE * chunks; i += Shape::threads) {
        uint32_t token = i / chunks, chunk = i - token * chunks;
        bool valid = token < t.tokens;
        bt_copy_async_16(k + token * Shape::pitch * 2 + chunk * 16,
                         t.bytes + (valid ? token * call.token_bytes + chunk * 16 : 0), valid);
    }
}

/* e4m3: all of the tile's bytes as they lie; they are a multiple of 16, and a page has them all. */
template <typename Shape>
BT_DEVICE void fetch_raw(const struct bt_cuda_mla_decode &call, const tile &t, unsigned char *raw)
{
    uint32_t bytes = TILE * call.token_bytes, valid = t.tokens * call.token_bytes;
    for (uint32_t i = threadIdx.x * 16; i < bytes; i += Shape::threads * 16)
        bt_copy_async_16(raw + i, t.bytes + (i < valid ? i : 0), i < valid);
}

/* Raw bytes to rows of K, four at a time. */
template <typename Shape, uint32_t Latent>
BT_DEVICE void widen(const struct bt_cuda_mla_decode &call, uint32_t tokens,
                     const unsigned char *raw, unsigned char *k)
{
    uint32_t rope_words = call.qk_rope_head_dim / 2, words = Latent / 4 + rope_words;
    for (uint32_t i = threadIdx.x; i < TILE * words; i += Shape::threads) {
        uint32_t token = i / words, word = i - token * words;
        const unsigned char *from = raw + token * call.token_bytes;
        uint32_t *to = (uint32_t *)(k + token * Shape::pitch * 2);
        bool valid = token < tokens;
        if (word < Latent / 4) {
            uint32_t four = *(const uint32_t *)(from + word * 4);
            float scale = *(const float *)(from + Latent + word / 32 * 4);
            uint2 pair = {mla_widened<0>(four, scale), mla_widened<2>(four, scale)};
            *(uint2 *)(to + 2 * word) = valid ? pair : uint2{0, 0};
        } else {
            word -= Latent / 4;
            uint32_t both =
                *(const uint32_t *)(from + Latent + (Latent + 127) / 128 * 4 + word * 4);
            to[Latent / 2 + word] = valid ? both : 0;
        }
    }
}

/* f32: rounded on the way. */
template <typename Shape>
BT_DEVICE void load_f32(const struct bt_cuda_mla_decode &call, const tile &t, unsigned char *k)
{
    uint32_t chunks = call.token_bytes / 16;
    for (uint32_t i = threadIdx.x; i < TILE * chunks; i += Shape::threads) {
        uint32_t token = i / chunks, chunk = i - token * chunks;
        uint2 *to = (uint2 *)(k + token * Shape::pitch * 2 + chunk * 8);
        uint4 four = {0, 0, 0, 0};
        if (token < t.tokens)
            four = bt_load_16(t.bytes + token * call.token_bytes + chunk * 16);
        *to = {bt_bf16x2_from(bt_float(four.x), bt_float(four.y)),
               bt_bf16x2_from(bt_float(four.z), bt_float(four.w))};
    }
}

/* The tile at `position`, number `index` of its piece, begins its way; nothing behind the end. */
template <typename Shape, enum pool Pool>
BT_DEVICE void fetch(const struct bt_cuda_mla_decode &call, const mla_piece &piece,
                     uint32_t position, uint32_t index)
{
    unsigned char *shared = bt_shared();
    if (Pool != POOL_F32 && position < piece.end) {
        tile t = tile_at(call, piece, position);
        if (Pool == POOL_BF16)
            fetch_bf16<Shape>(
                call, t, shared + Shape::k_at + index % Shape::stages * TILE * Shape::pitch * 2);
        else
            fetch_raw<Shape>(call, t,
                             shared + Shape::raw_at + index % Shape::stages * Shape::raw_bytes);
    }
    bt_copy_async_commit();
}

/* The queries of the block's heads; zeros for heads that are not there. */
template <typename Shape, uint32_t Heads>
BT_DEVICE void load_queries(const struct bt_cuda_mla_decode &call, uint32_t row, uint32_t head)
{
    uint32_t chunks = call.query_pitch / 8;
    const unsigned char *from =
        (const unsigned char *)call.queries +
        ((size_t)(row - call.first_row) * call.heads + head) * call.query_pitch * 2;
    for (uint32_t i = threadIdx.x; i < Heads * chunks; i += Shape::threads) {
        uint32_t h = i / chunks, chunk = i - h * chunks;
        bool valid = head + h < call.heads;
        bt_copy_async_16(bt_shared() + Shape::q_at + h * Shape::pitch * 2 + chunk * 16,
                         from + (valid ? h * call.query_pitch * 2 + chunk * 16 : 0), valid);
    }
}

/* Where rope is not a multiple of 16: what K has behind it is multiplied, too. Never written. */
template <typename Shape, uint32_t Latent>
BT_DEVICE void clear_padding(const struct bt_cuda_mla_decode &call)
{
    if (call.qk_rope_head_dim % 16 == 0)
        return;
    uint32_t column = Latent + call.qk_rope_head_dim;
    for (uint32_t i = threadIdx.x; i < Shape::tiles * TILE; i += Shape::threads)
        bt_store_shared_16(bt_shared() + Shape::k_at + (i * Shape::pitch + column) * 2,
                           uint4{0, 0, 0, 0});
}

/* ---- the steps of a tile ---- */

/* This warp's scores [16 heads][tokens]. */
template <typename Shape>
BT_DEVICE void score(const unsigned char *k, uint32_t k_steps, uint32_t warp,
                     float scores[Shape::tokens / 8][4])
{
    const uint32_t lane = bt_lane();
    const uint32_t head = warp / Shape::token_parts * 16;
    const uint32_t token = warp % Shape::token_parts * Shape::tokens;
    const unsigned char *a =
        bt_shared() + Shape::q_at + ((head + lane % 16) * Shape::pitch + lane / 16 * 8) * 2;
    const unsigned char *b;
    if (Shape::tokens == 16)
        b = k + ((token + lane / 16 * 8 + lane % 8) * Shape::pitch + lane / 8 % 2 * 8) * 2;
    else
        b = k + ((token + lane % 8) * Shape::pitch + lane / 8 % 2 * 8) * 2;
    for (uint32_t i = 0; i < Shape::tokens / 8; i++) {
        for (uint32_t j = 0; j < 4; j++)
            scores[i][j] = 0;
    }
#pragma unroll 4
    for (uint32_t step = 0; step < k_steps; step++) {
        uint32_t q[4], keys[4];
        bt_ldmatrix_x4(q, a + step * 32);
        if (Shape::tokens == 16)
            bt_ldmatrix_x4(keys, b + step * 32);
        else
            bt_ldmatrix_x2(keys, b + step * 32);
        bt_mma_bf16(scores[0], q, keys);
        if (Shape::tokens == 16)
            bt_mma_bf16(scores[Shape::tokens / 8 - 1], q, keys + 2);
    }
}

/* Tokens from `tokens` of the tile on weigh nothing; the most of each row goes to where the other
 * warps of these heads see it. */
template <typename Shape, uint32_t Heads>
BT_DEVICE void share_maximum(uint32_t tokens, uint32_t warp, float scores[Shape::tokens / 8][4])
{
    float *part = (float *)(bt_shared() + Shape::part_at);
    const uint32_t lane = bt_lane(), head = warp / Shape::token_parts * 16 + lane / 4;
    const uint32_t share = warp % Shape::token_parts;
    float most[2] = {MLA_NEGATIVE_INFINITY, MLA_NEGATIVE_INFINITY};
#pragma unroll
    for (uint32_t i = 0; i < Shape::tokens / 8; i++) {
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t token = share * Shape::tokens + i * 8 + lane % 4 * 2 + j % 2;
            if (token >= tokens)
                scores[i][j] = MLA_NEGATIVE_INFINITY;
            most[j / 2] = fmaxf(most[j / 2], scores[i][j]);
        }
    }
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        most[r] = fmaxf(most[r], bt_shuffle_xor(most[r], 1));
        most[r] = fmaxf(most[r], bt_shuffle_xor(most[r], 2));
        if (lane % 4 == 0)
            part[share * Heads + head + 8 * r] = most[r];
    }
}

/* Scores become weights, for all warps to see, and the state what it is with them. */
template <typename Shape, uint32_t Heads>
BT_DEVICE void weigh(float scale, uint32_t warp, float scores[Shape::tokens / 8][4],
                     state<Shape> &s)
{
    const float *part = (const float *)(bt_shared() + Shape::part_at);
    float *keeps = (float *)(bt_shared() + Shape::keep_at);
    const uint32_t lane = bt_lane(), head = warp / Shape::token_parts * 16 + lane / 4;
    const uint32_t share = warp % Shape::token_parts;
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        float most = part[head + 8 * r];
        for (uint32_t i = 1; i < Shape::token_parts; i++)
            most = fmaxf(most, part[i * Heads + head + 8 * r]);
        most = fmaxf(s.max[r], bt_mul(most, scale));
        float keep = bt_exp2_fast(bt_add(s.max[r], -most)), sum = 0;
        uint32_t *p = (uint32_t *)(bt_shared() + Shape::p_at +
                                   ((head + 8 * r) * P_PITCH + share * Shape::tokens) * 2);
#pragma unroll
        for (uint32_t i = 0; i < Shape::tokens / 8; i++) {
            float low = bt_exp2_fast(bt_fma(scores[i][2 * r], scale, -most));
            float high = bt_exp2_fast(bt_fma(scores[i][2 * r + 1], scale, -most));
            p[i * 4 + lane % 4] = bt_bf16x2_from(low, high);
            sum = bt_add(sum, bt_add(low, high));
        }
        s.weight[r] = bt_fma(s.weight[r], keep, sum);
        s.max[r] = most;
        if (share == 0 && lane % 4 == 0)
            keeps[head + 8 * r] = keep;
    }
}

/* O = O keep + P V of this warp's columns. */
template <typename Shape>
BT_DEVICE void add_values(const unsigned char *k, uint32_t warp, state<Shape> &s)
{
    const float *keeps = (const float *)(bt_shared() + Shape::keep_at);
    const uint32_t lane = bt_lane();
    const unsigned char *a = bt_shared() + Shape::p_at + (lane % 16 * P_PITCH + lane / 16 * 8) * 2;
    const unsigned char *b =
        k + (lane % 16 * Shape::pitch + warp * Shape::columns + lane / 16 * 8) * 2;
#pragma unroll
    for (uint32_t m = 0; m < Shape::head_tiles; m++) {
        float low = keeps[m * 16 + lane / 4], high = keeps[m * 16 + lane / 4 + 8];
#pragma unroll
        for (uint32_t n = 0; n < Shape::column_tiles; n++) {
            s.sums[m][n][0] = bt_mul(s.sums[m][n][0], low);
            s.sums[m][n][1] = bt_mul(s.sums[m][n][1], low);
            s.sums[m][n][2] = bt_mul(s.sums[m][n][2], high);
            s.sums[m][n][3] = bt_mul(s.sums[m][n][3], high);
        }
    }
#pragma unroll
    for (uint32_t step = 0; step < TILE / 16; step++) {
        uint32_t p[Shape::head_tiles][4];
#pragma unroll
        for (uint32_t m = 0; m < Shape::head_tiles; m++)
            bt_ldmatrix_x4(p[m], a + (m * 16 * P_PITCH + step * 16) * 2);
#pragma unroll
        for (uint32_t n = 0; n < Shape::column_tiles; n += 2) {
            uint32_t v[4];
            bt_ldmatrix_x4_trans(v, b + (step * 16 * Shape::pitch + n * 8) * 2);
#pragma unroll
            for (uint32_t m = 0; m < Shape::head_tiles; m++) {
                bt_mma_bf16(s.sums[m][n], p[m], v);
                bt_mma_bf16(s.sums[m][n + 1], p[m], v + 2);
            }
        }
    }
}

/* ---- the end of a piece ---- */

template <typename Shape> BT_DEVICE void begin_sums(state<Shape> &s)
{
#pragma unroll
    for (uint32_t m = 0; m < Shape::head_tiles; m++) {
#pragma unroll
        for (uint32_t n = 0; n < Shape::column_tiles; n++) {
            for (uint32_t j = 0; j < 4; j++)
                s.sums[m][n][j] = 0;
        }
    }
    for (uint32_t r = 0; r < 2; r++) {
        s.max[r] = MLA_NEGATIVE_INFINITY;
        s.weight[r] = 0;
    }
}

/* All heads' maxima to `keep`'s place, their whole weights to `part`'s. */
template <typename Shape, uint32_t Heads>
BT_DEVICE void share_state(uint32_t warp, const state<Shape> &s)
{
    float *part = (float *)(bt_shared() + Shape::part_at);
    float *max = (float *)(bt_shared() + Shape::keep_at);
    const uint32_t lane = bt_lane(), head = warp / Shape::token_parts * 16 + lane / 4;
    const uint32_t share = warp % Shape::token_parts;
    bt_sync_block(); /* the last tile has been read */
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        float weight = bt_add(s.weight[r], bt_shuffle_xor(s.weight[r], 1));
        weight = bt_add(weight, bt_shuffle_xor(weight, 2));
        if (lane % 4 == 0)
            part[share * Heads + head + 8 * r] = weight;
        if (lane % 4 == 0 && share == 0)
            max[head + 8 * r] = s.max[r];
    }
    bt_sync_block();
}

/* Where a head's sums go. */
struct ending {
    bool is_whole, is_first; /* of several pieces that this block takes */
    uint32_t slot, head;     /* the block's first head */
    uint16_t *results;       /* of that head */
};

/* Four sums of one head. */
BT_DEVICE void give_four(const struct bt_cuda_mla_decode &call, const ending &end, uint32_t head,
                         uint32_t column, const mla_join &join, float inverse, float4 x)
{
    if (end.is_whole) {
        *(uint2 *)(end.results + (size_t)head * call.result_pitch +
                   column) = {bt_bf16x2_from(bt_mul(x.x, inverse), bt_mul(x.y, inverse)),
                              bt_bf16x2_from(bt_mul(x.z, inverse), bt_mul(x.w, inverse))};
        return;
    }
    float *sums = mla_sums(call, end.slot, end.head + head) + column;
    if (!end.is_first) {
        float4 before = *(const float4 *)sums;
        x.x = mla_joined(join, before.x, x.x);
        x.y = mla_joined(join, before.y, x.y);
        x.z = mla_joined(join, before.z, x.z);
        x.w = mla_joined(join, before.w, x.w);
    }
    bt_store_16(sums, mla_bits_of(x));
}

/* The sums of the piece to results, or to its slot, joined with what is there. */
template <typename Shape, uint32_t Heads>
BT_DEVICE void end_piece(const struct bt_cuda_mla_decode &call, const ending &end, uint32_t warp,
                         state<Shape> &s)
{
    const float *part = (const float *)(bt_shared() + Shape::part_at);
    const float *maxima = (const float *)(bt_shared() + Shape::keep_at);
    const uint32_t lane = bt_lane();
    share_state<Shape, Heads>(warp, s);
#pragma unroll
    for (uint32_t m = 0; m < Shape::head_tiles; m++) {
        uint32_t head = m * 16 + lane / 4 + lane % 2 * 8;
        bool is_there = end.head + head < call.heads;
        float weight = part[head], inverse;
        for (uint32_t i = 1; i < Shape::token_parts; i++)
            weight = bt_add(weight, part[i * Heads + head]);
        inverse = bt_divide(1.0f, weight);
        mla_join join = {maxima[head], 0, 1};
        float *of_slot = mla_state(call, end.slot, is_there ? end.head + head : 0);
        if (!end.is_whole && !end.is_first && is_there) {
            join = mla_join_of(of_slot[0], maxima[head]);
            weight = mla_joined(join, of_slot[1], weight);
        }
#pragma unroll
        for (uint32_t n = 0; n < Shape::column_tiles; n++) {
            float4 x = mla_four_columns(s.sums[m][n]);
            if (is_there)
                give_four(call, end, head, warp * Shape::columns + n * 8 + lane % 4 / 2 * 4, join,
                          inverse, x);
        }
        bt_sync_block(); /* all warps have read the slot's state */
        if (!end.is_whole && is_there && warp == 0 && lane % 4 < 2) {
            of_slot[0] = join.max;
            of_slot[1] = weight;
        }
    }
}

/* ---- the kernel ---- */

/* A row's piece, or pieces, and the block's heads. */
template <uint32_t Latent, uint32_t Heads, enum pool Pool>
BT_DEVICE void take_piece(const struct bt_cuda_mla_decode &call, const mla_piece &piece,
                          uint32_t head)
{
    typedef shape<Latent, Heads, Pool> Shape;
    const uint32_t warp = threadIdx.x / 32, k_steps = call.query_pitch / 16;
    unsigned char *shared = bt_shared(), *keys = shared + Shape::k_at;
    state<Shape> s;
    ending end = {piece.is_whole, true, piece.slot, head,
                  (uint16_t *)call.results +
                      ((size_t)(piece.row - call.first_row) * call.heads + head) *
                          call.result_pitch};

    begin_sums(s);
    load_queries<Shape, Heads>(call, piece.row, head);
    for (uint32_t i = 0; i + 1 < Shape::stages; i++)
        fetch<Shape, Pool>(call, piece, piece.begin + i * TILE, i);
    for (uint32_t index = 0, at = piece.begin; at < piece.end; index++, at += TILE) {
        uint32_t tokens = piece.end - at < TILE ? piece.end - at : TILE;
        float scores[Shape::tokens / 8][4];
        if (at != piece.begin && at % BT_CUDA_PIECE_TOKENS == 0) {
            end_piece<Shape, Heads>(call, end, warp, s);
            begin_sums(s);
            end.is_first = false;
        }
        bt_copy_async_wait<Shape::stages - 2>();
        bt_sync_block(); /* the tile is there, and the one before it has been read */
        fetch<Shape, Pool>(call, piece, at + (Shape::stages - 1) * TILE, index + Shape::stages - 1);
        if (Pool == POOL_BF16)
            keys = shared + Shape::k_at + index % Shape::stages * TILE * Shape::pitch * 2;
        if (Pool == POOL_E4M3)
            widen<Shape, Latent>(call, tokens,
                                 shared + Shape::raw_at + index % Shape::stages * Shape::raw_bytes,
                                 keys);
        if (Pool == POOL_F32)
            load_f32<Shape>(call, tile_at(call, piece, at), keys);
        if (Pool != POOL_BF16)
            bt_sync_block();

        score<Shape>(keys, k_steps, warp, scores);
        share_maximum<Shape, Heads>(tokens, warp, scores);
        bt_sync_block();
        weigh<Shape, Heads>(call.scale, warp, scores, s);
        bt_sync_block();
        add_values<Shape>(keys, warp, s);
    }
    bt_copy_async_wait<0>();
    end_piece<Shape, Heads>(call, end, warp, s);
    bt_sync_block();
}

template <uint32_t Latent, uint32_t Heads, enum pool Pool>
BT_KERNEL((shape<Latent, Heads, Pool>::threads), 1)
mla_decode(const struct bt_cuda_mla_decode call)
{
    const uint32_t head_blocks = (call.heads + Heads - 1) / Heads;
    const uint32_t count = mla_piece_count(call) * head_blocks;
    clear_padding<shape<Latent, Heads, Pool>, Latent>(call);
    for (uint32_t i = blockIdx.x; i < count; i += gridDim.x)
        take_piece<Latent, Heads, Pool>(call, mla_piece_at(call, i / head_blocks),
                                        i % head_blocks * Heads);
}

template <uint32_t Latent, uint32_t Heads, enum pool Pool>
static void launch_of(const struct bt_cuda_mla_decode *call, uint32_t blocks, cudaStream_t stream)
{
    typedef shape<Latent, Heads, Pool> Shape;
    bt_cuda_launch(mla_decode<Latent, Heads, Pool>, dim3(blocks, 1, 1), Shape::threads,
                   Shape::shared_bytes, stream, *call);
}

template <uint32_t Latent, uint32_t Heads>
static void launch_pool(const struct bt_cuda_mla_decode *call, uint32_t blocks, cudaStream_t stream)
{
    if (call->pool == BT_BF16)
        launch_of<Latent, Heads, POOL_BF16>(call, blocks, stream);
    else if (call->pool == BT_F8_E4M3)
        launch_of<Latent, Heads, POOL_E4M3>(call, blocks, stream);
    else
        launch_of<Latent, Heads, POOL_F32>(call, blocks, stream);
}

void bt_cuda_launch_mla_decode(const struct bt_cuda_mla_decode *call, uint32_t blocks,
                               cudaStream_t stream)
{
    if (call->kv_lora_rank == 64)
        launch_pool<64, 16>(call, blocks, stream);
    else if (call->heads <= 16)
        launch_pool<512, 16>(call, blocks, stream);
    else if (call->heads <= 32)
        launch_pool<512, 32>(call, blocks, stream);
    else
        launch_pool<512, 64>(call, blocks, stream);
}
