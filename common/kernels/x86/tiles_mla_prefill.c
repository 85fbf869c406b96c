/*
 * MLA in its multi-head form with kv_b in tiles. The latents of BT_PREFILL_REACH tokens are brought
 * into the order of an operand once for all heads; then each head of a group of rows, apart from
 * all others, expands the keys and values of BT_PREFILL_SPAN tokens once and takes all its rows
 * over them. So the expansion costs 2 * kv_lora_rank * (nope + v) operations for a token and head,
 * whatever the rows; what a row is does not depend on rows, groups, reach or span, since rows are
 * worked on in blocks at absolute positions and the softmax goes in blocks of absolute positions.
 *
 * A token that a row does not see has the weight 0. It adds nothing, as values are made finite when
 * they are expanded; behind the sequence's last row nothing is read at all.
 */
#include <math.h>

#include "common/kernels/stream.h"
#include "common/kernels/x86/gemm.h"
#include "common/kernels/x86/kv_page.h"
#include "common/kernels/x86/mla_memory.h"
#include "common/kernels/x86/tables.h"
#include "common/kernels/x86/tiles_softmax.h"

#define BLOCK_TILES (BT_PREFILL_BLOCK / 32)
#define SPAN_TILES  (BT_PREFILL_SPAN / 32)

struct call {
    const float *q; /* [row][head][nope + rope] */
    const struct bt_mla_shape *shape;
    const struct bt_matrix *kv_b;
    const struct bt_kv_layer *kv;
    float *out; /* [row][head][v]; between two reaches the sums so far */
    struct bt_mla_tiles tiles;
    struct bt_prefill_memory memory;
    size_t head_dim;
    char *columns, *rows;         /* of this reach */
    float *saved_max, *saved_sum; /* [head][row] between two reaches */
    char *threads;                /* [thread] workspaces */
    const struct bt_sequence_rows *sequence;
    size_t base, tokens; /* of this reach */
    size_t end;          /* tokens of the sequence */
    size_t groups, group_rows;
};

/* One thread's memory, and the rows of one head that it works on. */
struct part {
    const struct call *call;
    struct bt_kv_b_head operands;
    size_t head;
    size_t first, last; /* positions, last not included */
    char *queries, *keys, *values, *weights;
    float *product, *scores, *acc, *max, *sum;
};

/* Rows of a part between two multiples of BT_PREFILL_ROWS. */
struct block {
    size_t position, count; /* of the first */
    size_t row;             /* of the first, in the part */
    size_t end;             /* the multiple behind them */
    struct bt_tile_rows queries;
};

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t most(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t floor_to(size_t value, size_t step)
{
    return value / step * step;
}

static struct block block_at(const struct part *part, size_t position)
{
    const struct call *call = part->call;
    size_t from = floor_to(position, BT_PREFILL_ROWS);
    size_t index = from / BT_PREFILL_ROWS - part->first / BT_PREFILL_ROWS;
    size_t block_bytes = BT_PREFILL_ROWS * call->tiles.key * BT_TILE_LINE;
    struct block block = {.position = position, .row = position - part->first};
    block.end = from + BT_PREFILL_ROWS;
    block.count = least(block.end, part->last) - position;
    block.queries =
        (struct bt_tile_rows){part->queries + index * block_bytes, call->tiles.key * BT_TILE_BYTES,
                              BT_TILE_BYTES, BT_TILE_LINE};
    return block;
}

static void pack_page(void *context, uint32_t index, uint32_t thread)
{
    const struct call *call = context;
    size_t at = (size_t)index * BT_PAGE_TOKENS, position = call->base + at;
    size_t tokens = least(call->end - position, BT_PAGE_TOKENS);
    (void)thread;
    struct bt_tile_rows rows =
        BT_X86_NAME(kv_rows)(call->kv, call->sequence->pages[position / BT_PAGE_TOKENS], tokens,
                             call->rows + at * call->tiles.token * BT_TILE_LINE);
    BT_X86_NAME(kv_columns)
    (rows, tokens, call->tiles.token, call->columns + at / 16 * call->tiles.token * BT_TILE_BYTES);
}

/* Keys of the page at `at` of the reach become those at `to` of the span. */
static void expand_keys(const struct part *part, size_t at, size_t to)
{
    const struct bt_mla_tiles *t = &part->call->tiles;
    size_t nope = part->call->shape->qk_nope_head_dim;
    const char *columns = part->call->columns + at / 16 * t->token * BT_TILE_BYTES;
    struct bt_tile_rows a = {part->operands.keys, t->latent * BT_TILE_BYTES, BT_TILE_BYTES,
                             BT_TILE_LINE};
    struct bt_tile_panels b = {columns, t->token * BT_TILE_BYTES, BT_PAGE_TOKENS / 16};
    const float *product = part->product;

    BT_X86_NAME(gemm_bf16)(a, nope, b, t->latent, false, part->product, BT_PAGE_TOKENS);
    memset(part->product + nope * BT_PAGE_TOKENS, 0,
           (t->nope * 32 - nope) * BT_PAGE_TOKENS * sizeof(float));
    for (size_t p = 0; p < BT_PAGE_TOKENS / 16; p++) {
        char *out = part->keys + (to / 16 + p) * t->key * BT_TILE_BYTES;
        for (size_t j = 0; j < t->nope * 16; j++) {
            const float *row = product + 2 * j * BT_PAGE_TOKENS + p * 16;
            bt_bf16_pairs(bt_v16_load(row), bt_v16_load(row + BT_PAGE_TOKENS),
                          out + j * BT_TILE_LINE);
        }
        memcpy(out + t->nope * BT_TILE_BYTES, columns + (p * t->token + t->latent) * BT_TILE_BYTES,
               t->rope * BT_TILE_BYTES);
    }
}

/* Values of large latents may be none of f32. A NaN becomes -BT_KV_LARGEST. */
static struct bt_v16 load_finite(const float *x)
{
    struct bt_v16 least = bt_v16_set(-BT_KV_LARGEST), largest = bt_v16_set(BT_KV_LARGEST);
    return bt_v16_min(bt_v16_max(bt_v16_load(x), least), largest);
}

static void expand_values(const struct part *part, size_t at, size_t to, size_t tokens)
{
    const struct call *call = part->call;
    const struct bt_mla_tiles *t = &call->tiles;
    uint32_t page = call->sequence->pages[(call->base + at) / BT_PAGE_TOKENS];
    size_t row = t->token * BT_TILE_LINE;
    struct bt_tile_rows a = {call->rows + at * row, 16 * row, BT_TILE_LINE, row};
    struct bt_tile_panels b = {part->operands.values, t->latent * BT_TILE_BYTES, t->v / 16};
    const float *product = part->product;

    if (bt_x86_kv_direct(call->kv))
        a = BT_X86_NAME(kv_rows)(call->kv, page, tokens, NULL);
    BT_X86_NAME(gemm_bf16)(a, tokens, b, t->latent, false, part->product, t->v);
    memset(part->product + tokens * t->v, 0, (BT_PAGE_TOKENS - tokens) * t->v * sizeof(float));
    for (size_t j = 0; j < BT_PAGE_TOKENS / 2; j++) {
        char *out = part->values + to / 32 * BT_TILE_BYTES + j * BT_TILE_LINE;
        for (size_t p = 0; p < t->v / 16; p++, out += SPAN_TILES * BT_TILE_BYTES) {
            const float *two = product + 2 * j * t->v + p * 16;
            bt_bf16_pairs(load_finite(two), load_finite(two + t->v), out);
        }
    }
}

static void scale_row(float *x, size_t count, float by)
{
    for (size_t i = 0; i < count; i++)
        x[i] *= by;
}

/* The rows of a block take in the tokens from `position` on, at `at` of the span. */
static void take_tokens(const struct part *part, const struct block *block, size_t position,
                        size_t at)
{
    const struct bt_mla_tiles *t = &part->call->tiles;
    size_t count = least(block->end - position, BT_PREFILL_BLOCK);
    float *acc = part->acc + block->row * t->v;
    float scale = part->call->shape->softmax_scale * BT_LOG2_E;
    struct bt_tile_panels keys = {part->keys + at / 16 * t->key * BT_TILE_BYTES,
                                  t->key * BT_TILE_BYTES, count / 16};
    struct bt_tile_rows weights = {part->weights, BLOCK_TILES * BT_TILE_BYTES, BT_TILE_BYTES,
                                   BT_TILE_LINE};
    struct bt_tile_panels values = {part->values + at / 32 * BT_TILE_BYTES,
                                    SPAN_TILES * BT_TILE_BYTES, t->v / 16};

    BT_X86_NAME(gemm_bf16)
    (block->queries, block->count, keys, t->key, false, part->scores, BT_PREFILL_BLOCK);
    for (size_t i = 0; i < block->count; i++) {
        size_t seen = least(block->position + i + 1 - position, count), row = block->row + i;
        float keep = bt_softmax_row(
            part->scores + i * BT_PREFILL_BLOCK, seen, count, scale, &part->max[row],
            &part->sum[row], part->weights + i / 16 * weights.block_stride + i % 16 * BT_TILE_LINE,
            BT_TILE_BYTES);
        if (keep != 1.0f && position > 0)
            scale_row(acc + i * t->v, t->v, keep);
    }
    BT_X86_NAME(gemm_bf16)
    (weights, block->count, values, count / 32, position > 0, acc, t->v);
}

static void take_span(const struct part *part, size_t at, size_t tokens)
{
    const struct call *call = part->call;
    size_t base = call->base + at;
    for (size_t i = 0; i < tokens; i += BT_PAGE_TOKENS) {
        expand_keys(part, at + i, i);
        expand_values(part, at + i, i, least(call->end - base - i, BT_PAGE_TOKENS));
    }
    for (size_t position = most(part->first, base); position < part->last;) {
        struct block block = block_at(part, position);
        for (size_t i = 0; i < BT_PREFILL_SPAN && base + i < block.end; i += BT_PREFILL_BLOCK)
            take_tokens(part, &block, base + i, i);
        position += block.count;
    }
}

static float *out_of(const struct part *part, size_t position)
{
    const struct call *call = part->call;
    size_t row = call->sequence->first_row + position - call->sequence->start;
    return call->out + (row * call->shape->heads + part->head) * call->shape->v_head_dim;
}

static size_t saved_at(const struct part *part, size_t position)
{
    return part->head * part->call->sequence->row_count + position - part->call->sequence->start;
}

static void begin_row(const struct part *part, const struct block *block, size_t i)
{
    const struct call *call = part->call;
    size_t position = block->position + i, nope = call->shape->qk_nope_head_dim;
    size_t row = call->sequence->first_row + position - call->sequence->start;
    const float *q = call->q + (row * call->shape->heads + part->head) * call->head_dim;
    char *packed = (char *)(uintptr_t)block->queries.data + i / 16 * block->queries.block_stride +
                   i % 16 * BT_TILE_LINE;
    bt_bf16_row(q, nope, packed, BT_TILE_BYTES);
    bt_bf16_row(q + nope, call->shape->qk_rope_head_dim, packed + call->tiles.nope * BT_TILE_BYTES,
                BT_TILE_BYTES);

    size_t at = block->row + i, saved = saved_at(part, position);
    part->max[at] = call->base ? call->saved_max[saved] : -INFINITY;
    part->sum[at] = call->base ? call->saved_sum[saved] : 0;
    if (call->base)
        memcpy(part->acc + at * call->tiles.v, out_of(part, position),
               call->shape->v_head_dim * sizeof(float));
}

/* Adding 0 makes -0 to 0: products with weights of 0 can have either sign. */
static void end_row(const struct part *part, size_t position)
{
    const struct call *call = part->call;
    size_t at = position - part->first, v = call->shape->v_head_dim, i = 0;
    const float *acc = part->acc + at * call->tiles.v;
    float *out = out_of(part, position);
    if (floor_to(position, BT_PREFILL_ROWS) >= call->base + BT_PREFILL_REACH) {
        memcpy(out, acc, v * sizeof(*out));
        call->saved_max[saved_at(part, position)] = part->max[at];
        call->saved_sum[saved_at(part, position)] = part->sum[at];
        return;
    }
    struct bt_v16 by = bt_v16_set(1.0f / part->sum[at]);
    for (; i + BT_LANES <= v; i += BT_LANES)
        bt_v16_store(out + i, bt_v16_fma(bt_v16_load(acc + i), by, bt_v16_zero()));
    if (i < v)
        bt_v16_store_part(out + i, bt_v16_fma(bt_v16_load(acc + i), by, bt_v16_zero()), v - i);
}

static struct part part_of(const struct call *call, uint32_t index, uint32_t thread)
{
    const struct bt_prefill_memory *m = &call->memory;
    const struct bt_sequence_rows *sequence = call->sequence;
    struct part part = {.call = call, .head = index / call->groups};
    size_t begin =
        floor_to(sequence->start, BT_PREFILL_ROWS) + index % call->groups * call->group_rows;
    part.operands = bt_tiles_kv_b_head(call->kv_b, call->shape, part.head);
    part.first = most(most(begin, sequence->start), call->base);
    part.last = least(begin + call->group_rows, call->end);
    part.queries = call->threads + thread * m->thread;
    part.keys = part.queries + m->queries;
    part.values = part.keys + m->keys;
    part.weights = part.values + m->values;
    part.product = (float *)(part.weights + m->weights);
    part.scores = part.product + m->product / sizeof(float);
    part.acc = part.scores + m->scores / sizeof(float);
    part.max = part.acc + m->acc / sizeof(float);
    part.sum = part.max + m->state / sizeof(float);
    return part;
}

/* One head of one group of rows takes in the reach. */
static void attend(void *context, uint32_t index, uint32_t thread)
{
    const struct call *call = context;
    struct part part = part_of(call, index, thread);
    if (part.first >= part.last)
        return;
    for (size_t position = part.first; position < part.last;) {
        struct block block = block_at(&part, position);
        for (size_t i = 0; i < block.count; i++)
            begin_row(&part, &block, i);
        position += block.count;
    }
    BT_X86_NAME(gemm_begin)();
    size_t tokens = least(call->tokens, part.last - call->base);
    for (size_t at = 0; at < tokens; at += BT_PREFILL_SPAN)
        take_span(&part, at, least(tokens - at, BT_PREFILL_SPAN));
    BT_X86_NAME(gemm_end)();
    for (size_t position = part.first; position < part.last; position++)
        end_row(&part, position);
}

/* Groups are as large as they may be, but there is a part for every thread. */
static void divide_rows(struct call *call, uint32_t threads)
{
    const struct bt_sequence_rows *sequence = call->sequence;
    size_t rows = call->end - floor_to(sequence->start, BT_PREFILL_ROWS);
    size_t groups = bt_tiles_of(threads, call->shape->heads);
    size_t wanted = bt_tiles_of(bt_tiles_of(rows, groups), BT_PREFILL_ROWS) * BT_PREFILL_ROWS;
    call->group_rows = least(wanted, BT_PREFILL_GROUP);
    call->groups = bt_tiles_of(rows, call->group_rows);
}

static void attend_sequence(struct bt_stream *stream, struct call *call)
{
    call->end = (size_t)call->sequence->start + call->sequence->row_count;
    divide_rows(call, bt_team_threads(stream->team));
    for (call->base = 0; call->base < call->end; call->base += BT_PREFILL_REACH) {
        call->tokens = least(call->end - call->base, BT_PREFILL_REACH);
        bt_team_run(stream->team, pack_page, call,
                    (uint32_t)bt_tiles_of(call->tokens, BT_PAGE_TOKENS));
        bt_team_run(stream->team, attend, call, (uint32_t)(call->shape->heads * call->groups));
    }
}

void BT_X86_NAME(mla_prefill)(struct bt_stream *stream, const float *q,
                              const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                              const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                              const struct bt_kv_layer *kv, float *out)
{
    if (kv_b->layout == BT_LAYOUT_ROWS) {
        BT_X86_ROWS(rows_mla_prefill)(stream, q, shape, kv_b, sequences, sequence_count, kv, out);
        return;
    }
    struct call call = {.q = q, .shape = shape, .kv_b = kv_b, .kv = kv, .out = out};
    size_t rows = 0;
    for (uint32_t s = 0; s < sequence_count; s++)
        rows = most(rows, sequences[s].row_count);
    call.tiles = bt_mla_tiles_of(shape);
    call.memory = bt_prefill_memory(shape, rows);
    call.head_dim = (size_t)shape->qk_nope_head_dim + shape->qk_rope_head_dim;
    bt_scratch_reset(stream);
    call.columns = bt_scratch_take(stream, call.memory.columns, 1);
    call.rows = bt_scratch_take(stream, call.memory.rows, 1);
    call.saved_max = bt_scratch_take(stream, call.memory.saved, 1);
    call.saved_sum = bt_scratch_take(stream, call.memory.saved, 1);
    call.threads = bt_scratch_take(stream, bt_team_threads(stream->team), call.memory.thread);
    for (uint32_t s = 0; s < sequence_count; s++) {
        call.sequence = &sequences[s];
        if (sequences[s].row_count)
            attend_sequence(stream, &call);
    }
}
