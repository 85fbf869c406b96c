/*
 * The scratch of MLA and of what belongs to it: sizes from which both the stream's arena is sized
 * and each call divides it. None grows with the length of a sequence. In bytes, each a multiple of
 * 64, so that threads share no line.
 */
#ifndef BATON_COMMON_KERNELS_X86_MLA_MEMORY_H
#define BATON_COMMON_KERNELS_X86_MLA_MEMORY_H

#include "common/kernels/stream.h"
#include "common/kernels/tiles.h"
#include "common/kernels/x86/x86.h"

/* Absolute positions: bits depend on these four. */
#define BT_PREFILL_ROWS  64   /* rows that share one product of scores */
#define BT_PREFILL_BLOCK 256  /* tokens of one step of the softmax; a multiple of the rows */
#define BT_DECODE_BLOCK  128  /* likewise; a multiple of a page */
#define BT_DECODE_SPLIT  1024 /* tokens that one thread takes; a multiple of the block */

/* No bit depends on these. */
#define BT_PREFILL_SPAN                                                                            \
    1024 /* tokens whose keys and values of a head are held: a multiple of                         \
            BT_PREFILL_BLOCK */
#define BT_PREFILL_REACH                                                                           \
    4096 /* tokens whose latents are held for all heads: a multiple of the span */
#define BT_PREFILL_GROUP 2048 /* most rows of one part: a multiple of BT_PREFILL_ROWS */
#define BT_DECODE_GROUP  32   /* rows that share one read of kv_b */
#define BT_DECODE_COLS   128 /* heads of rows that share one read of a page, when heads are fewer */
#define BT_DECODE_SLOTS  4   /* splits in flight for each thread */
#define BT_DECODE_TILES  3   /* latent tiles whose tokens are zipped together */
/* Between two panels of zipped tokens: a line more than they take, so that the lines of a token do
 * not all fall into one set of a cache. */
#define BT_DECODE_PAIRS_STRIDE (BT_DECODE_BLOCK / 32 * BT_TILE_BYTES + BT_TILE_LINE)

struct bt_mla_tiles {
    size_t latent, rope, nope; /* tiles of 32 inputs */
    size_t token;              /* latent + rope */
    size_t key;                /* nope + rope */
    size_t v;                  /* v_head_dim in whole panels */
    size_t heads;              /* in whole panels */
};

static inline struct bt_mla_tiles bt_mla_tiles_of(const struct bt_mla_shape *shape)
{
    struct bt_mla_tiles t = {.latent = bt_tiles_of(shape->kv_lora_rank, 32),
                             .rope = bt_tiles_of(shape->qk_rope_head_dim, 32),
                             .nope = bt_tiles_of(shape->qk_nope_head_dim, 32),
                             .v = bt_tiles_of(shape->v_head_dim, 16) * 16,
                             .heads = bt_tiles_of(shape->heads, 16) * 16};
    t.token = t.latent + t.rope;
    t.key = t.nope + t.rope;
    return t;
}

/* With kv_b in tiles. Of one thread: */
struct bt_prefill_memory {
    size_t queries; /* [block of rows][16 rows of a tile][key tile] A */
    size_t keys;    /* [panel of 16 tokens][key tile] B */
    size_t values;  /* [panel of 16 v dims][tile of 32 tokens] B */
    size_t product; /* [nope, or page token][…] f32: what becomes keys or values */
    size_t scores;  /* [row of a block][token of a block] f32 */
    size_t weights; /* the same as A */
    size_t acc;     /* [row][v] f32 */
    size_t state;   /* [row] f32, of two */
    size_t thread;  /* all of these */
    /* for all threads */
    size_t columns; /* [panel of 16 tokens][token tile] B */
    size_t rows;    /* [token][token tile] A */
    size_t saved;   /* [head][row] f32, of two */
};

static inline struct bt_prefill_memory bt_prefill_memory(const struct bt_mla_shape *shape,
                                                         size_t rows)
{
    struct bt_mla_tiles t = bt_mla_tiles_of(shape);
    size_t group = rows < BT_PREFILL_GROUP ? rows : BT_PREFILL_GROUP;
    /* the first block and the last may be parts of one */
    size_t group_blocks = group / BT_PREFILL_ROWS + 2;
    size_t wide = 32 * t.nope > t.v ? 32 * t.nope : t.v;
    struct bt_prefill_memory m = {
        .queries = group_blocks * BT_PREFILL_ROWS * t.key * BT_TILE_LINE,
        .keys = BT_PREFILL_SPAN / 16 * t.key * BT_TILE_BYTES,
        .values = t.v / 16 * (BT_PREFILL_SPAN / 32) * BT_TILE_BYTES,
        .product = wide * BT_PAGE_TOKENS * sizeof(float),
        .scores = BT_PREFILL_ROWS * BT_PREFILL_BLOCK * sizeof(float),
        .weights = BT_PREFILL_ROWS * BT_PREFILL_BLOCK * sizeof(uint16_t),
        .acc = group * t.v * sizeof(float),
        .state = bt_scratch_bytes(group, sizeof(float)),
        .columns = BT_PREFILL_REACH / 16 * t.token * BT_TILE_BYTES,
        .rows = BT_PREFILL_REACH * t.token * BT_TILE_LINE,
        .saved = bt_scratch_bytes(shape->heads * rows, sizeof(float)),
    };
    m.thread =
        m.queries + m.keys + m.values + m.product + m.scores + m.weights + m.acc + 2 * m.state;
    return m;
}

static inline size_t bt_prefill_bytes(const struct bt_mla_shape *shape, size_t rows, size_t threads)
{
    struct bt_prefill_memory m = bt_prefill_memory(shape, rows);
    return m.columns + m.rows + 2 * m.saved + threads * m.thread;
}

struct bt_decode_memory {
    /* of one thread */
    size_t queries; /* [panel of 16 columns][token tile] B */
    size_t rows;    /* [token of a block][token tile] A */
    size_t pairs;   /* [panel of BT_DECODE_TILES][tile of 32 tokens] B */
    size_t scores;  /* [token of a block][column] f32 */
    size_t weights; /* [16 columns][tile of 32 tokens] A */
    size_t inputs;  /* [row of a group][tile of nope, or of latent] A */
    size_t product; /* [row of a group][latent, or v] f32 */
    size_t thread;  /* all of these */
    /* for all threads */
    size_t latent_queries; /* [row of a group][head][token tile] bf16 */
    size_t latents;        /* [row of a group][head][padded latent] f32 */
    size_t state;          /* [row of a group][head] f32, of two */
    size_t slot;           /* [column][padded latent] f32 */
    size_t slot_state;     /* [column] f32, of two */
};

static inline size_t bt_decode_unit_rows(const struct bt_mla_tiles *t)
{
    return t->heads > 0 && t->heads < BT_DECODE_COLS ? BT_DECODE_COLS / t->heads : 1;
}

/* Floats from one column's latent sums to the next one's: a line more than they take, as above. */
static inline size_t bt_decode_stride(const struct bt_mla_tiles *t)
{
    return t->latent * 32 + BT_TILE_LINE / sizeof(float);
}

static inline struct bt_decode_memory bt_decode_memory(const struct bt_mla_shape *shape,
                                                       size_t rows)
{
    struct bt_mla_tiles t = bt_mla_tiles_of(shape);
    size_t group = rows < BT_DECODE_GROUP ? rows : BT_DECODE_GROUP;
    size_t unit = bt_decode_unit_rows(&t) < group ? bt_decode_unit_rows(&t) : group;
    size_t cols = unit * t.heads, latent = bt_decode_stride(&t);
    size_t widest = t.nope > t.latent ? t.nope : t.latent;
    size_t outs = latent > t.v ? latent : t.v;
    struct bt_decode_memory m = {
        .queries = cols * t.token * BT_TILE_LINE,
        .rows = BT_DECODE_BLOCK * t.token * BT_TILE_LINE,
        .pairs = BT_DECODE_TILES * 2 * BT_DECODE_PAIRS_STRIDE,
        .scores = BT_DECODE_BLOCK * cols * sizeof(float),
        .weights = cols * BT_DECODE_BLOCK * sizeof(uint16_t),
        .inputs = bt_tiles_of(group, 16) * 16 * widest * BT_TILE_LINE,
        .product = group * outs * sizeof(float),
        .latent_queries = group * t.heads * t.token * BT_TILE_LINE,
        .latents = group * t.heads * latent * sizeof(float),
        .state = bt_scratch_bytes(group * t.heads, sizeof(float)),
        .slot = cols * latent * sizeof(float),
        .slot_state = bt_scratch_bytes(cols, sizeof(float)),
    };
    m.thread = m.queries + m.rows + m.pairs + m.scores + m.weights + m.inputs + m.product;
    return m;
}

static inline size_t bt_decode_bytes(const struct bt_mla_shape *shape, size_t rows, size_t threads)
{
    struct bt_decode_memory m = bt_decode_memory(shape, rows);
    return m.latent_queries + m.latents + 2 * m.state +
           threads * (m.thread + BT_DECODE_SLOTS * (m.slot + 2 * m.slot_state));
}

static inline size_t bt_mla_floats(size_t count)
{
    return bt_scratch_bytes(count, sizeof(float));
}

/* With kv_b in rows, of one thread. */
struct bt_rows_prefill_memory {
    size_t weights; /* [nope + v][padded lora]: kv_b of a head */
    size_t latents; /* [page token][padded lora + rope] */
    size_t keys;    /* [page token][padded nope + rope] */
    size_t values;  /* [page token][padded v] */
    size_t scores;  /* [BT_X86_PREFILL_ROWS][page token] */
    size_t acc;     /* [row of the sequence][padded v] */
    size_t state;   /* [row of the sequence], of two */
    size_t thread;  /* all of these */
};

static inline struct bt_rows_prefill_memory bt_rows_prefill_memory(const struct bt_mla_shape *shape,
                                                                   size_t rows)
{
    size_t nope = shape->qk_nope_head_dim, lora = bt_x86_padded(shape->kv_lora_rank);
    size_t v = bt_x86_padded(shape->v_head_dim);
    struct bt_rows_prefill_memory m = {
        .weights = bt_mla_floats((nope + shape->v_head_dim) * lora),
        .latents = bt_mla_floats(
            BT_PAGE_TOKENS * bt_x86_padded((size_t)shape->kv_lora_rank + shape->qk_rope_head_dim)),
        .keys = bt_mla_floats(BT_PAGE_TOKENS * bt_x86_padded(nope + shape->qk_rope_head_dim)),
        .values = bt_mla_floats(BT_PAGE_TOKENS * v),
        .scores = bt_mla_floats(BT_X86_PREFILL_ROWS * BT_PAGE_TOKENS),
        .acc = bt_mla_floats(rows * v),
        .state = bt_mla_floats(rows),
    };
    m.thread = m.weights + m.latents + m.keys + m.values + m.scores + m.acc + 2 * m.state;
    return m;
}

struct bt_rows_decode_memory {
    /* of one thread */
    size_t page;   /* [page token][padded lora + rope] */
    size_t scores; /* [head][page token] */
    size_t state;  /* [head], of two */
    size_t thread; /* all of these */
    /* for all threads */
    size_t queries; /* [group row][head][padded lora + rope]: q_lat, then q_pe */
    size_t latents; /* [group row][head][padded lora]: the result in the latent space */
};

static inline struct bt_rows_decode_memory bt_rows_decode_memory(const struct bt_mla_shape *shape)
{
    size_t heads = shape->heads, lora = shape->kv_lora_rank;
    size_t key = bt_x86_padded(lora + shape->qk_rope_head_dim);
    struct bt_rows_decode_memory m = {
        .page = bt_mla_floats(BT_PAGE_TOKENS * key),
        .scores = bt_mla_floats(heads * BT_PAGE_TOKENS),
        .state = bt_mla_floats(heads),
        .queries = bt_mla_floats(BT_X86_DECODE_ROWS * heads * key),
        .latents = bt_mla_floats(BT_X86_DECODE_ROWS * heads * bt_x86_padded(lora)),
    };
    m.thread = m.page + m.scores + 2 * m.state;
    return m;
}

/* rope_q and kv_write, of one thread: a latent and a rotated key. */
static inline size_t bt_rope_thread_bytes(size_t kv_lora_rank, size_t qk_rope_head_dim)
{
    return bt_mla_floats(kv_lora_rank) + bt_mla_floats(qk_rope_head_dim);
}

/* The most that any of them takes. */
static inline size_t bt_mla_bytes(const struct bt_mla_shape *shape, size_t rows, size_t threads)
{
    struct bt_rows_decode_memory decode = bt_rows_decode_memory(shape);
    size_t most = 0,
           needs[] = {
               bt_prefill_bytes(shape, rows, threads),
               bt_decode_bytes(shape, rows, threads),
               threads * bt_rows_prefill_memory(shape, rows).thread,
               threads * decode.thread + decode.queries + decode.latents,
               threads * bt_rope_thread_bytes(shape->kv_lora_rank, shape->qk_rope_head_dim),
           };
    for (size_t i = 0; i < sizeof(needs) / sizeof(needs[0]); i++)
        most = needs[i] > most ? needs[i] : most;
    return most;
}

#endif
