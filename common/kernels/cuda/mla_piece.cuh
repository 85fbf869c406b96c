/*
 * What the kernels of pieces share: which piece a block takes, how two neighbouring ones are
 * joined, and what pages hold. A row's bits follow from these alone, so each is the same wherever
 * it is done.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_MLA_PIECE_CUH
#define BATON_COMMON_KERNELS_CUDA_MLA_PIECE_CUH

#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/mla_decode.h"

#define MLA_PAGE_TOKENS       64 /* MLA_PAGE_TOKENS */
#define MLA_NEGATIVE_INFINITY bt_float(0xff800000u)

/* An entry of the table of pieces, and whose it is. */
struct mla_piece {
    uint32_t row, begin, end; /* the row in the batch; tokens */
    uint32_t slot;            /* of the group's pieces */
    bool is_whole;            /* the row has no other piece: its result is final */
    const uint32_t *pages;    /* of its sequence */
};

BT_DEVICE uint32_t mla_piece_count(const struct bt_cuda_mla_decode &call)
{
    const uint32_t *begin = call.rows.piece_begin + call.first_row;
    return begin[call.row_count] - begin[0];
}

BT_DEVICE mla_piece mla_piece_at(const struct bt_cuda_mla_decode &call, uint32_t slot)
{
    const uint32_t *entry =
        call.rows.pieces + 4 * (size_t)(call.rows.piece_begin[call.first_row] + slot);
    mla_piece piece;
    piece.row = entry[0];
    piece.begin = entry[1];
    piece.end = entry[2];
    piece.slot = slot;
    piece.is_whole = call.rows.position[piece.row] < BT_CUDA_PIECE_TOKENS;
    piece.pages = call.rows.pages + call.rows.page_begin[call.rows.sequence[piece.row]];
    return piece;
}

/* First byte of a page. */
BT_DEVICE const unsigned char *mla_page(const struct bt_cuda_mla_decode &call, uint32_t page)
{
    return (const unsigned char *)call.pages + (size_t)page * MLA_PAGE_TOKENS * call.token_bytes;
}

/* Sums of a head in the memory of a slot, and their maximum and weight. */
BT_DEVICE float *mla_sums(const struct bt_cuda_mla_decode &call, uint32_t slot, uint32_t head)
{
    return call.sums + ((size_t)slot * call.heads + head) * call.kv_lora_rank;
}
BT_DEVICE float *mla_state(const struct bt_cuda_mla_decode &call, uint32_t slot, uint32_t head)
{
    return call.states + ((size_t)slot * call.heads + head) * 2;
}

/* What sums so far, and those of the piece after them, are multiplied by, in that order. */
struct mla_join {
    float max, before, behind;
};
BT_DEVICE mla_join mla_join_of(float max_before, float max_behind)
{
    mla_join join;
    join.max = fmaxf(max_before, max_behind);
    join.before = bt_exp2_fast(bt_add(max_before, -join.max));
    join.behind = bt_exp2_fast(bt_add(max_behind, -join.max));
    return join;
}
BT_DEVICE float mla_joined(const mla_join &join, float before, float behind)
{
    return bt_fma(behind, join.behind, bt_mul(before, join.before));
}

/* ---- numbers ---- */

/* A byte of e4m3 that is no NaN, as kv_write leaves none; the bytes of a word count from 0. */
template <uint32_t Byte> BT_DEVICE float mla_from_e4m3(uint32_t four)
{
    uint32_t bits = (uint32_t)((int32_t)(four << (24 - 8 * Byte)) >> 4);
    /* sign, exponent and fraction are in place; the exponent's bias is made right by a product that
     * is exact */
    return bt_mul(bt_float(bits & 0x87f00000u), 0x1p120f);
}

/* Bytes First and First + 1 of a word, times their scale, rounded to bf16. */
template <uint32_t First> BT_DEVICE uint32_t mla_widened(uint32_t four, float scale)
{
    return bt_bf16x2_from(bt_mul(mla_from_e4m3<First>(four), scale),
                          bt_mul(mla_from_e4m3<First + 1>(four), scale));
}

/* Four neighbouring columns of one row out of a fragment: even lanes get row lane / 4, odd ones the
 * eighth behind it. The columns begin at lane % 4 / 2 * 4. */
BT_DEVICE float4 mla_four_columns(const float d[4])
{
    bool odd = bt_lane() & 1;
    float x = bt_shuffle_xor(odd ? d[0] : d[2], 1), y = bt_shuffle_xor(odd ? d[1] : d[3], 1);
    return odd ? float4{x, y, d[2], d[3]} : float4{d[0], d[1], x, y};
}

BT_DEVICE uint4 mla_bits_of(float4 x)
{
    return uint4{bt_bits(x.x), bt_bits(x.y), bt_bits(x.z), bt_bits(x.w)};
}

#endif
