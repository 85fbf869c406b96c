/*
 * What a dispatch leaves for its combine, on both sides. Internal: experts.c, dispatch.c,
 * combine.c.
 *
 * A rank's picks for one destination form a list, by ascending row, then place. Both sides keep it
 * in that order, so that a y travels back without saying whose it is.
 */
#ifndef BATON_COMMON_PARALLEL_EXPERTS_H
#define BATON_COMMON_PARALLEL_EXPERTS_H

#include "common/parallel/memory_group.h"

/* Rows of one rank in one exchange: few rows go at once, many in runs that a cache holds. */
#define BT_ROWS_LATENCY    128
#define BT_ROWS_THROUGHPUT 64
/* Bytes of a combine's parcel, when all picks of an exchange fall to one rank: bounds the rows. */
#define BT_COMBINE_BYTES ((size_t)256 << 20)

/* One pick of a row on its way back. */
struct bt_summand {
    const char *y; /* [hidden] */
    uint32_t expert;
    float weight;
};

struct bt_experts {
    uint32_t rank, size, hidden, experts, k; /* k: experts per token */
    uint32_t rows_most;                      /* of one rank in one exchange */

    /* This call. */
    enum bt_dtype payload;
    uint32_t chunk_rows; /* of one rank in one exchange */
    uint32_t chunks;     /* exchanges */
    bool plain; /* many rows: written to the window plainly, own ones too, as they fall out of this
                   core's cache by themselves before they are read; few are shown (rows.h) */

    /* As the home of rows. The caller's, until its dispatch ends. */
    uint32_t rows;
    const float *x_out;
    const uint32_t *routed;      /* [row][k] experts */
    uint8_t *dest;               /* [row][k] rank that a pick went to */
    uint32_t *index;             /* [row][k] in the list of that rank */
    void *row;                   /* a rounded one */
    struct bt_summand *summands; /* [k] of the row that is being added up */
    uint32_t rows_to[BT_GROUP_RANKS_MAX], picks_to[BT_GROUP_RANKS_MAX];

    /* As the holder of experts; by source. */
    float *x;                        /* [arrived][hidden] */
    uint32_t *pick_at, *pick_expert; /* [pick] as they came */
    uint32_t *position;              /* [pick] in `order` */
    uint32_t *order, *begin;         /* of struct bt_routing */
    uint32_t *chunk_picks;           /* [chunk][source] */
    uint32_t base_row[BT_GROUP_RANKS_MAX], base_pick[BT_GROUP_RANKS_MAX];
    uint32_t rows_of[BT_GROUP_RANKS_MAX], picks_of[BT_GROUP_RANKS_MAX]; /* of the whole call */
    uint32_t rows_got[BT_GROUP_RANKS_MAX], picks_got[BT_GROUP_RANKS_MAX];
    uint32_t arrived_rows, arrived_picks; /* places given to sources */

    void *memory;
    size_t memory_bytes;
};

/* Which rank each pick of own rows goes to: dest, index, rows_to, picks_to. experts [rows][k]. */
void bt_experts_choose(struct bt_experts *e, const struct bt_ranks *ranks, const uint32_t *experts,
                       const struct bt_placement_layer *placement, uint32_t rows);
/* From the lists of all sources: order, by expert, then source, then row; position and begin. */
void bt_experts_sort(struct bt_experts *e);

/* The first row of exchange `chunk` of a rank that has `rows`, or `rows`. */
static inline uint32_t bt_chunk_first(const struct bt_experts *e, uint32_t chunk, uint32_t rows)
{
    uint64_t first = (uint64_t)chunk * e->chunk_rows;
    return first < rows ? (uint32_t)first : rows;
}

/* ---- data of a dispatch's parcel ---- */

/* Then a block for every rank of the machine, their lists, and the rows. */
struct bt_dispatch_head {
    uint32_t rows, ranks;          /* rows: of the source in the whole call */
    uint32_t payload_rows, unused; /* in this parcel */
    uint64_t payload_at;           /* byte in the data */
};

struct bt_dispatch_block {
    uint32_t rows, picks;         /* in this parcel */
    uint32_t all_rows, all_picks; /* in the whole call */
    uint64_t rows_at;             /* uint32_t [rows]: where in the payload */
    uint64_t picks_at;            /* struct bt_dispatch_pick [picks] */
};

struct bt_dispatch_pick {
    uint32_t at; /* row of the block * k + place */
    uint32_t expert;
};

/* ---- data of a combine's parcel: a block for every rank of the machine, then rows ---- */

struct bt_combine_block {
    uint32_t picks, unused;
    uint64_t at; /* byte in the data */
};

#endif
