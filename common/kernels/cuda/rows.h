/*
 * The rows of a batch as kernels see them: arrays in device memory, copied there by `stage` once
 * for all operations of a pass (kernels.h), at addresses that stay, so that a graph may be replayed
 * for other rows. Sequences that were not staged are copied when an operation names them.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_ROWS_H
#define BATON_COMMON_KERNELS_CUDA_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#define BT_CUDA_NO_POSITION 0xffffffffu

/*
 * Attention of decode is split at multiples of so many tokens, whoever works on it: the softmax of
 * each piece is one of its own, and a row's pieces are joined in ascending order. So the bits do
 * not depend on what is worked on at the same time.
 */
#define BT_CUDA_PIECE_TOKENS 1024
/* Decode works on so many rows at a time, which bounds its memory. */
#define BT_CUDA_PIECE_ROWS 256
/* Rows of a sequence with more rows than this are busy enough as they are: one entry each. */
#define BT_CUDA_PIECE_SPLIT_ROWS 16

/* Passed to kernels by value. Pointers are the device's. */
struct bt_cuda_rows {
    const uint32_t *position;   /* [rows] in its sequence; BT_CUDA_NO_POSITION: a row of padding */
    const uint32_t *sequence;   /* [rows] whose row it is */
    const uint32_t *pages;      /* the page numbers of all sequences, one after the other */
    const uint32_t *page_begin; /* [sequence] where its page numbers begin in `pages` */
    const uint32_t *start, *first_row, *row_count; /* [sequence], as bt_sequence_rows */
    const uint32_t *live;                          /* [2] rows that are no padding; sequences */
    uint32_t rows;                                 /* with padding */
    uint32_t sequences;                            /* room for so many; live[1] there are */
    /* Of decode: pieces of attention, row by row, then by absolute position. A row that is not
     * shared out has one entry of all its pieces, 0 … end, which are joined by whoever takes it. */
    const uint32_t *pieces;      /* [piece][4]: row, first token, end token, number in its row */
    const uint32_t *piece_count; /* [1] */
    const uint32_t *piece_begin; /* [rows + 1] where a row's pieces begin in `pieces` */
    uint32_t group_pieces;       /* most of BT_CUDA_PIECE_ROWS rows from a multiple of that on */
};

/* Most pieces of a group of rows that some streams may have: what scratch is sized for. */
static inline uint32_t bt_cuda_group_pieces(uint32_t max_rows, uint32_t max_page_numbers)
{
    uint32_t pages = BT_CUDA_PIECE_TOKENS / 64, extra = (max_page_numbers + pages - 1) / pages;
    extra = max_page_numbers == 0 ? 64 : extra < 768 ? extra : 768;
    return (max_rows < BT_CUDA_PIECE_ROWS ? max_rows : BT_CUDA_PIECE_ROWS) + extra;
}

#ifndef __cplusplus
struct bt_cuda_stream;
struct bt_cuda_rows_memory;
struct bt_adjust;
struct bt_draw;
struct bt_sequence_rows;
struct bt_stage;
struct bt_stream;

/* At creation and destruction of the stream. False: no memory. */
bool bt_cuda_rows_create(struct bt_cuda_stream *stream);
void bt_cuda_rows_destroy(struct bt_cuda_stream *stream);
/* kernels.h */
void bt_cuda_stage(struct bt_stream *stream, const struct bt_stage *stage);
/* Of these sequences: as staged, or copied now. */
struct bt_cuda_rows bt_cuda_rows_of(struct bt_cuda_stream *stream,
                                    const struct bt_sequence_rows *sequences,
                                    uint32_t sequence_count);
/* The device's copy of a list of the host's (`tokens`, `wanted`): as staged, or copied now, in
 * place of the one copied before. Past what is live, `wanted` has each place's own number, tokens
 * are 0. */
const uint32_t *bt_cuda_list_of(struct bt_cuda_stream *stream, const uint32_t *list,
                                uint32_t count);
/* Likewise of draws and their adjusts: the device's copies. Past what is live: all 0. */
struct bt_cuda_draws {
    const struct bt_draw *draws;
    const struct bt_adjust *adjusts;
};
struct bt_cuda_draws bt_cuda_draws_of(struct bt_cuda_stream *stream, const struct bt_draw *draws,
                                      const struct bt_adjust *adjusts, uint32_t count);
/* [max_rows] of the device: where `draw` keeps its tokens. */
uint32_t *bt_cuda_drawn(struct bt_cuda_stream *stream);
/* [1] of the device: rows of the staged batch that are no padding, where `rows` is its padded
 * count, or wanted rows that are none, where it is theirs; else NULL: all are live. */
const uint32_t *bt_cuda_live_rows(struct bt_cuda_stream *stream, uint32_t rows);
#endif

#endif
