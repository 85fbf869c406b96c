/*
 * Products of the amx table: TDPBF16PS and TDPBSSD over blocks of 2 x 2 tiles: four of sums, two of
 * A, two of B, so that each tile that is loaded (8 cycles from L1) is used twice (16 cycles each).
 *
 * A tile instruction adds the product of one tile of A and one of B to the sums; which block a row
 * is in changes nothing about it. Rows of a last block that are not there are not loaded: the
 * tiles of the second block of 16 are configured with the rows that it has.
 */
#include "common/kernels/x86/gemm.h"

/* Tiles. 2, 3 and 5 are the second block's, or those of a block alone. */
#define SUMS_00 0
#define SUMS_01 1
#define SUMS_10 2
#define SUMS_11 3
#define ROWS_0  4
#define ROWS_1  5
#define OUTS_0  6
#define OUTS_1  7

/* Tiles along k that are done for all rows before the next: 2 panels of them stay in L1. */
#define STEP_TILES 16
/* The last rows meet B as it comes from memory: so many tiles of it are asked for ahead. */
#define AHEAD_TILES 8

struct config {
    uint8_t palette, start_row, reserved[14];
    uint16_t line_bytes[16];
    uint8_t lines[16];
};

/* Rows of tiles 2, 3 and 5 as they are configured. */
static _Thread_local size_t configured;

static void configure(size_t rows)
{
    if (configured == rows)
        return;
    struct config config = {.palette = 1};
    for (size_t i = 0; i < 8; i++) {
        config.line_bytes[i] = BT_TILE_LINE;
        config.lines[i] = 16;
    }
    config.lines[SUMS_10] = config.lines[SUMS_11] = config.lines[ROWS_1] = (uint8_t)rows;
    /* the compiler does not see that the instruction reads what was stored */
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
    configured = rows;
}

void BT_X86_NAME(gemm_begin)(void)
{
    configured = 0;
    configure(16);
}

void BT_X86_NAME(gemm_end)(void)
{
    _tile_release();
    configured = 0;
}

/* One or two blocks of 16 rows, the second (or the only one) at `a1`; one or two panels. */
struct block {
    const char *a0, *a1, *b;
    size_t tile_stride, row_stride, panel_stride, tiles;
    bool accumulate;
    char *c0, *c1;
    size_t c_bytes; /* from row to row */
};

/* Lines to ask for: `lines` of two panels with each tile; from tile `turn` on those of `next`. */
struct ahead {
    const char *now, *next;
    size_t lines, turn;
};

BT_INLINE void load_sums(const struct block *s, bool two_rows, bool two_outs)
{
    if (!s->accumulate) {
        if (two_rows)
            _tile_zero(SUMS_00);
        if (two_rows && two_outs)
            _tile_zero(SUMS_01);
        _tile_zero(SUMS_10);
        if (two_outs)
            _tile_zero(SUMS_11);
        return;
    }
    if (two_rows)
        _tile_loadd(SUMS_00, s->c0, s->c_bytes);
    if (two_rows && two_outs)
        _tile_loadd(SUMS_01, s->c0 + BT_TILE_LINE, s->c_bytes);
    _tile_loadd(SUMS_10, s->c1, s->c_bytes);
    if (two_outs)
        _tile_loadd(SUMS_11, s->c1 + BT_TILE_LINE, s->c_bytes);
}

BT_INLINE void store_sums(const struct block *s, bool two_rows, bool two_outs)
{
    if (two_rows)
        _tile_stored(SUMS_00, s->c0, s->c_bytes);
    if (two_rows && two_outs)
        _tile_stored(SUMS_01, s->c0 + BT_TILE_LINE, s->c_bytes);
    _tile_stored(SUMS_10, s->c1, s->c_bytes);
    if (two_outs)
        _tile_stored(SUMS_11, s->c1 + BT_TILE_LINE, s->c_bytes);
}

#define DOT(int8, sums, rows, outs)                                                                \
    do {                                                                                           \
        if (int8)                                                                                  \
            _tile_dpbssd(sums, rows, outs);                                                        \
        else                                                                                       \
            _tile_dpbf16ps(sums, rows, outs);                                                      \
    } while (0)

/* two_rows, two_outs, int8 and near are constants where this is inlined. */
BT_INLINE void block_of(const struct block *s, struct ahead ahead, bool two_rows, bool two_outs,
                        bool int8, bool near)
{
    const char *a0 = s->a0, *a1 = s->a1, *b0 = s->b, *b1 = s->b + s->panel_stride;
    size_t row_stride = s->row_stride, panel_stride = s->panel_stride;

    load_sums(s, two_rows, two_outs);
    for (size_t t = 0; t < s->tiles; t++) {
        _tile_loadd(OUTS_0, b0, BT_TILE_LINE);
        if (two_rows) {
            _tile_loadd(ROWS_0, a0, row_stride);
            DOT(int8, SUMS_00, ROWS_0, OUTS_0);
        }
        _tile_loadd(ROWS_1, a1, row_stride);
        DOT(int8, SUMS_10, ROWS_1, OUTS_0);
        if (two_outs) {
            _tile_loadd(OUTS_1, b1, BT_TILE_LINE);
            if (two_rows)
                DOT(int8, SUMS_01, ROWS_0, OUTS_1);
            DOT(int8, SUMS_11, ROWS_1, OUTS_1);
        }
        if (t == ahead.turn)
            ahead.now = ahead.next;
        for (size_t i = 0; i < ahead.lines; i++, ahead.now += BT_TILE_LINE) {
            _mm_prefetch(ahead.now, near ? _MM_HINT_T0 : _MM_HINT_T1);
            if (two_outs)
                _mm_prefetch(ahead.now + panel_stride, near ? _MM_HINT_T0 : _MM_HINT_T1);
        }
        a0 += s->tile_stride;
        a1 += s->tile_stride;
        b0 += BT_TILE_BYTES;
        b1 += BT_TILE_BYTES;
    }
    store_sums(s, two_rows, two_outs);
}

#define BLOCK_FN(name, two_rows, int8, near)                                                       \
    static void name(const struct block *s, struct ahead ahead, bool two_outs)                     \
    {                                                                                              \
        if (two_outs)                                                                              \
            block_of(s, ahead, two_rows, true, int8, near);                                        \
        else                                                                                       \
            block_of(s, ahead, two_rows, false, int8, near);                                       \
    }
BLOCK_FN(many_bf16, true, false, false)
BLOCK_FN(many_int8, true, true, false)
BLOCK_FN(two_bf16, true, false, true)
BLOCK_FN(two_int8, true, true, true)
BLOCK_FN(one_bf16, false, false, true)
BLOCK_FN(one_int8, false, true, true)

/* A product as it was called. */
struct product {
    struct bt_tile_rows a;
    struct bt_tile_panels b;
    size_t tiles;
    bool accumulate, int8;
    char *c;
    size_t c_bytes;
};

/* Tiles [tile, tile + tiles) of rows from `row` on (a multiple of 16) and the panels from `panel`
 * on. */
static struct block block_at(const struct product *p, size_t row, size_t panel, size_t tile,
                             size_t tiles)
{
    const char *a =
        (const char *)p->a.data + row / 16 * p->a.block_stride + tile * p->a.tile_stride;
    char *c = p->c + row * p->c_bytes + panel * BT_TILE_LINE;
    return (struct block){
        .a0 = a,
        .a1 = a + p->a.block_stride,
        .b = (const char *)p->b.data + panel * p->b.panel_stride + tile * BT_TILE_BYTES,
        .tile_stride = p->a.tile_stride,
        .row_stride = p->a.row_stride,
        .panel_stride = p->b.panel_stride,
        .tiles = tiles,
        .accumulate = p->accumulate || tile > 0,
        .c0 = c,
        .c1 = c + 16 * p->c_bytes,
        .c_bytes = p->c_bytes,
    };
}

/* Pairs of whole blocks. While they pass a step of two panels, the next step comes to L2. */
static void gemm_pairs(const struct product *p, size_t pairs)
{
    configure(16);
    for (size_t panel = 0; panel < p->b.panels; panel += 2) {
        for (size_t tile = 0, tiles; tile < p->tiles; tile += tiles) {
            tiles = p->tiles - tile < STEP_TILES ? p->tiles - tile : STEP_TILES;
            const char *next = (const char *)p->b.data + panel * p->b.panel_stride +
                               (tile + tiles) * BT_TILE_BYTES;
            if (tile + tiles == p->tiles)
                next = (const char *)p->b.data + (panel + 2) * p->b.panel_stride;
            struct ahead ahead = {next, next, (16 + pairs - 1) / pairs, SIZE_MAX};
            for (size_t i = 0; i < pairs; i++) {
                struct block block = block_at(p, i * 32, panel, tile, tiles);
                (p->int8 ? many_int8 : many_bf16)(&block, ahead, panel + 1 < p->b.panels);
                ahead.now += tiles * ahead.lines * BT_TILE_LINE;
                if (ahead.now >= next + tiles * BT_TILE_BYTES)
                    ahead.lines = 0;
            }
        }
    }
}

/* The last 1 … 31 rows, from `row` on; B comes from memory, in the order in which it lies there. */
static void gemm_rest(const struct product *p, size_t row, size_t rows)
{
    bool two = rows > 16;
    configure(two ? rows - 16 : rows);
    for (size_t panel = 0; panel < p->b.panels; panel += 2) {
        struct block block = block_at(p, row, panel, 0, p->tiles);
        const char *next = block.b + 2 * p->b.panel_stride;
        struct ahead ahead = {block.b + AHEAD_TILES * BT_TILE_BYTES, next, 16,
                              p->tiles > AHEAD_TILES ? p->tiles - AHEAD_TILES : 0};
        if (!two) {
            block.a1 = block.a0;
            block.c1 = block.c0;
        }
        if (two)
            (p->int8 ? two_int8 : two_bf16)(&block, ahead, panel + 1 < p->b.panels);
        else
            (p->int8 ? one_int8 : one_bf16)(&block, ahead, panel + 1 < p->b.panels);
    }
}

static void gemm(const struct product *p, size_t rows)
{
    /* tile loads are opaque: what the caller stored has to be in memory */
    __asm__ volatile("" : : : "memory");
    size_t pairs = rows / 32;
    if (pairs)
        gemm_pairs(p, pairs);
    if (rows % 32)
        gemm_rest(p, pairs * 32, rows % 32);
}

void BT_X86_NAME(gemm_bf16)(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b,
                            size_t tiles, bool accumulate, float *c, size_t c_stride)
{
    struct product p = {a, b, tiles, accumulate, false, (char *)c, c_stride * sizeof(*c)};
    gemm(&p, rows);
}

void BT_X86_NAME(gemm_int8)(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b,
                            size_t tiles, bool accumulate, int32_t *c, size_t c_stride)
{
    struct product p = {a, b, tiles, accumulate, true, (char *)c, c_stride * sizeof(*c)};
    gemm(&p, rows);
}
