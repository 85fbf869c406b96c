/*
 * MLA in its absorbed form with kv_b in tiles. Rows are worked on in groups, so that a group reads
 * kv_b once: queries to the latent space head by head, attention, results back head by head.
 *
 * Attention goes in units: some neighbouring rows of one sequence, whose heads are the columns of
 * one product with the rows of a page, which are its A operand as they lie in memory. For the
 * product with the weights, pairs of tokens are zipped once for all columns. Each unit is split at
 * multiples of BT_DECODE_SPLIT tokens; a split is a softmax of its own, and the results of splits
 * are joined in ascending order, by whichever thread, so that they are the same for any number.
 *
 * A token that a row does not see has the weight 0. It adds nothing as long as its latent is
 * finite, and is not read at all if no row of the call that shares its unit sees it.
 */
#include <math.h>

#include "common/kernels/stream.h"
#include "common/kernels/x86/kv_page.h"
#include "common/kernels/x86/tables.h"
#include "common/kernels/x86/tiles_softmax.h"
#include "common/kernels/x86/tokens.h"

#define BLOCK_TILES (BT_DECODE_BLOCK / 32)

/* Neighbouring rows of a sequence that read pages together. */
struct unit {
    const struct bt_sequence_rows *sequence;
    size_t offset, count; /* rows in the sequence */
    size_t row;           /* of the first, in the group */
    size_t splits;        /* that the last row sees */
};

/* A sum of weighted latents and the softmax it belongs to. */
struct sums {
    float *latents;   /* [column][latent] */
    float *max, *sum; /* [column] */
};

struct call {
    const float *q; /* [row][head][nope + rope] */
    const struct bt_mla_shape *shape;
    const struct bt_matrix *kv_b;
    const struct bt_kv_layer *kv;
    float *out; /* [row][head][v] */
    struct bt_mla_tiles tiles;
    struct bt_decode_memory memory;
    struct bt_team *team;
    size_t head_dim, latent; /* floats from one padded latent to the next */
    char *latent_queries;
    struct sums group; /* a column for each head of each row of the group */
    char *threads;     /* [thread] workspaces */
    char *slots;       /* [task of a wave] */
    struct unit units[BT_DECODE_GROUP];
    size_t unit_count, rows;          /* of the group */
    uint32_t row_of[BT_DECODE_GROUP]; /* in the batch */
    size_t first_task;                /* of a wave */
};

/* One thread's memory. */
struct workspace {
    char *queries, *rows, *pairs, *weights, *inputs;
    float *scores, *product;
};

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static struct workspace workspace_of(const struct call *call, uint32_t thread)
{
    const struct bt_decode_memory *m = &call->memory;
    struct workspace w = {.queries = call->threads + thread * m->thread};
    w.rows = w.queries + m->queries;
    w.pairs = w.rows + m->rows;
    w.weights = w.pairs + m->pairs;
    w.inputs = w.weights + m->weights;
    w.scores = (float *)(w.inputs + m->inputs);
    w.product = w.scores + m->scores / sizeof(float);
    return w;
}

static size_t visible(const struct unit *unit, size_t i)
{
    return unit->sequence->start + unit->offset + i + 1;
}

/* Columns of the unit begin here in the sums of its group. */
static struct sums sums_of_unit(const struct call *call, const struct unit *unit)
{
    size_t column = unit->row * call->tiles.heads;
    return (struct sums){call->group.latents + column * call->latent, call->group.max + column,
                         call->group.sum + column};
}

static struct sums sums_of_slot(const struct call *call, size_t slot)
{
    const struct bt_decode_memory *m = &call->memory;
    char *at = call->slots + slot * (m->slot + 2 * m->slot_state);
    return (struct sums){(float *)at, (float *)(at + m->slot),
                         (float *)(at + m->slot + m->slot_state)};
}

/* ---- queries ---- */

static const float *query_of(const struct call *call, size_t row, size_t head)
{
    return call->q + (call->row_of[row] * (size_t)call->shape->heads + head) * call->head_dim;
}

static char *latent_query_of(const struct call *call, size_t row, size_t head)
{
    return call->latent_queries +
           (row * call->tiles.heads + head) * call->tiles.token * BT_TILE_LINE;
}

/* One head's queries of all rows of the group. */
static void absorb(void *context, uint32_t head, uint32_t thread)
{
    const struct call *call = context;
    const struct bt_mla_tiles *t = &call->tiles;
    struct workspace w = workspace_of(call, thread);
    struct bt_tile_rows a = {w.inputs, t->nope * BT_TILE_BYTES, BT_TILE_BYTES, BT_TILE_LINE};
    size_t nope = call->shape->qk_nope_head_dim, lora = call->shape->kv_lora_rank;
    struct bt_kv_b_head operands = bt_tiles_kv_b_head(call->kv_b, call->shape, head);
    struct bt_tile_panels b = {operands.absorb, t->nope * BT_TILE_BYTES, bt_tiles_of(lora, 16)};

    for (size_t r = 0; r < call->rows; r++)
        bt_bf16_row(query_of(call, r, head), nope,
                    w.inputs + r / 16 * a.block_stride + r % 16 * BT_TILE_LINE, BT_TILE_BYTES);
    BT_X86_NAME(gemm_begin)();
    BT_X86_NAME(gemm_bf16)(a, call->rows, b, t->nope, false, w.product, call->latent);
    BT_X86_NAME(gemm_end)();
    for (size_t r = 0; r < call->rows; r++) {
        char *out = latent_query_of(call, r, head);
        bt_bf16_row(w.product + r * call->latent, lora, out, BT_TILE_LINE);
        bt_bf16_row(query_of(call, r, head) + nope, call->shape->qk_rope_head_dim,
                    out + t->latent * BT_TILE_LINE, BT_TILE_LINE);
    }
}

/* The unit's queries as panels of 16 columns. */
static void load_queries(const struct call *call, const struct unit *unit, char *out)
{
    static const uint32_t zeros[16];
    for (size_t r = 0; r < unit->count; r++) {
        for (size_t head = 0; head < call->tiles.heads; head += 16) {
            for (size_t tile = 0; tile < call->tiles.token; tile++, out += BT_TILE_BYTES) {
                const void *lines[16];
                for (size_t i = 0; i < 16; i++)
                    lines[i] =
                        head + i < call->shape->heads
                            ? latent_query_of(call, unit->row + r, head + i) + tile * BT_TILE_LINE
                            : (const char *)zeros;
                bt_transpose16(lines, out, BT_TILE_LINE);
            }
        }
    }
}

/* ---- attention ---- */

/* x [16][call->latent] */
static void scale_columns(const struct call *call, float *x, const float *by)
{
    for (size_t i = 0; i < 16; i++, x += call->latent) {
        for (size_t l = 0; l < call->tiles.latent * 32; l += BT_LANES)
            bt_v16_store(x + l, bt_v16_mul(bt_v16_load(x + l), bt_v16_set(by[i])));
    }
}

/* The tokens of a unit from `position` on, as far as they are one block. */
static size_t block_tokens(const struct unit *unit, size_t position)
{
    return least(visible(unit, unit->count - 1) - position, BT_DECODE_BLOCK);
}

static void look_ahead(const struct call *call, const struct unit *unit, size_t position,
                       struct bt_ahead *ahead)
{
    size_t tokens = block_tokens(unit, position), size = bt_kv_token_size(call->kv);
    for (size_t at = 0; at < tokens; at += BT_PAGE_TOKENS) {
        size_t page = at / BT_PAGE_TOKENS, count = least(tokens - at, BT_PAGE_TOKENS);
        ahead->at[page] = bt_kv_token(call->kv, unit->sequence->pages, (uint32_t)(position + at));
        ahead->lines[page] = bt_tiles_of(count * size, BT_TILE_LINE);
    }
}

/* The block at `position`; meanwhile the one after it, or the first of the unit that this thread
 * will likely get, is on its way from memory. */
static void load_block(const struct call *call, const struct workspace *w, const struct unit *unit,
                       size_t position, struct bt_token_block *block)
{
    size_t row_bytes = call->tiles.token * BT_TILE_LINE, next = position + BT_DECODE_BLOCK;
    const struct unit *other = unit + bt_team_threads(call->team);
    *block = (struct bt_token_block){.tokens = block_tokens(unit, position)};
    for (size_t at = 0; at < block->tokens; at += BT_PAGE_TOKENS)
        block->pages[at / BT_PAGE_TOKENS] = BT_X86_NAME(kv_rows)(
            call->kv, unit->sequence->pages[(position + at) / BT_PAGE_TOKENS],
            least(block->tokens - at, BT_PAGE_TOKENS), w->rows + at * row_bytes);
    if (next < visible(unit, unit->count - 1))
        look_ahead(call, unit, next, &block->ahead);
    else if (other < call->units + call->unit_count)
        look_ahead(call, other, 0, &block->ahead);
}

/* Weights of the heads of row r; what was summed up before goes to their new maximum. */
static void weigh_row(const struct call *call, const struct workspace *w, size_t r, size_t tokens,
                      size_t cols, bool first, const struct sums *sums)
{
    float scale = call->shape->softmax_scale * BT_LOG2_E, keep[16];
    for (size_t head = 0; head < call->tiles.heads; head += 16) {
        size_t column = r * call->tiles.heads + head;
        bool rescale = bt_softmax_columns(w->scores + column, cols, tokens, scale,
                                          sums->max + column, sums->sum + column, keep,
                                          w->weights + column / 16 * BLOCK_TILES * BT_TILE_BYTES);
        if (rescale && !first)
            scale_columns(call, sums->latents + column * call->latent, keep);
    }
}

/* The rows of the unit take in the block at `position`. */
static void take_block(const struct call *call, const struct workspace *w, const struct unit *unit,
                       size_t position, bool first, const struct sums *sums)
{
    const struct bt_mla_tiles *t = &call->tiles;
    size_t cols = unit->count * t->heads, row = 0;
    struct bt_token_block block;
    load_block(call, w, unit, position, &block);
    while (visible(unit, row) <= position)
        row++;
    size_t column = row * t->heads;
    struct bt_tile_panels queries = {w->queries + column / 16 * t->token * BT_TILE_BYTES,
                                     t->token * BT_TILE_BYTES, (cols - column) / 16};
    BT_X86_NAME(token_scores)(&block, queries, t->token, w->scores + column, cols);
    for (size_t r = row; r < unit->count; r++)
        weigh_row(call, w, r, least(visible(unit, r) - position, block.tokens), cols, first, sums);
    struct bt_token_sums weighted = {
        .weights = w->weights + column / 16 * BLOCK_TILES * BT_TILE_BYTES,
        .rows = unit->count - row,
        .seen = visible(unit, row) - position,
        .cols = t->heads,
        .heads = call->shape->heads,
        .panels = bt_tiles_of(call->shape->kv_lora_rank, 16),
        .accumulate = !first,
        .sums = sums->latents + column * call->latent,
        .stride = call->latent,
        .pairs = w->pairs,
    };
    BT_X86_NAME(token_sums)(&block, &weighted);
}

/* One split of a unit; rows that see nothing of it are left alone. */
static void take_split(const struct call *call, const struct workspace *w, const struct unit *unit,
                       size_t split, const struct sums *sums)
{
    size_t begin = split * BT_DECODE_SPLIT, cols = unit->count * call->tiles.heads;
    size_t end = least(visible(unit, unit->count - 1), begin + BT_DECODE_SPLIT);
    for (size_t i = 0; i < cols; i++) {
        sums->max[i] = -INFINITY;
        sums->sum[i] = 0;
    }
    for (size_t position = begin; position < end; position += BT_DECODE_BLOCK)
        take_block(call, w, unit, position, position == begin, sums);
}

/* sums = sums joined with `more`, which follows it. */
static void join(const struct call *call, const struct unit *unit, size_t split,
                 const struct sums *sums, const struct sums *more)
{
    for (size_t r = 0; r < unit->count; r++) {
        if (visible(unit, r) <= split * BT_DECODE_SPLIT)
            continue;
        for (size_t h = 0; h < call->shape->heads; h++) {
            size_t i = r * call->tiles.heads + h;
            float max = sums->max[i] > more->max[i] ? sums->max[i] : more->max[i];
            float a = bt_exp2(sums->max[i] - max), b = bt_exp2(more->max[i] - max);
            float *x = sums->latents + i * call->latent;
            const float *y = more->latents + i * call->latent;
            for (size_t l = 0; l < call->tiles.latent * 32; l += BT_LANES)
                bt_v16_store(x + l, bt_v16_fma(bt_v16_load(y + l), bt_v16_set(b),
                                               bt_v16_mul(bt_v16_load(x + l), bt_v16_set(a))));
            sums->sum[i] = sums->sum[i] * a + more->sum[i] * b;
            sums->max[i] = max;
        }
    }
}

/* All splits of a unit, one after the other. */
static void attend_unit(void *context, uint32_t index, uint32_t thread)
{
    const struct call *call = context;
    const struct unit *unit = &call->units[index];
    struct workspace w = workspace_of(call, thread);
    struct sums sums = sums_of_unit(call, unit), more = sums_of_slot(call, thread);
    load_queries(call, unit, w.queries);
    BT_X86_NAME(gemm_begin)();
    take_split(call, &w, unit, 0, &sums);
    for (size_t split = 1; split < unit->splits; split++) {
        take_split(call, &w, unit, split, &more);
        join(call, unit, split, &sums, &more);
    }
    BT_X86_NAME(gemm_end)();
}

/* The unit and the split of a task: units in order, splits of each in order. */
static const struct unit *task_at(const struct call *call, size_t task, size_t *ret_split)
{
    const struct unit *unit = call->units;
    for (; task >= unit->splits; unit++)
        task -= unit->splits;
    *ret_split = task;
    return unit;
}

static void attend_task(void *context, uint32_t index, uint32_t thread)
{
    const struct call *call = context;
    size_t split;
    const struct unit *unit = task_at(call, call->first_task + index, &split);
    struct workspace w = workspace_of(call, thread);
    struct sums sums = split ? sums_of_slot(call, index) : sums_of_unit(call, unit);
    load_queries(call, unit, w.queries);
    BT_X86_NAME(gemm_begin)();
    take_split(call, &w, unit, split, &sums);
    BT_X86_NAME(gemm_end)();
}

/* Fewer units than would keep all threads busy: their splits are shared out too, in waves. */
static void attend_waves(struct call *call)
{
    size_t tasks = 0, slots = BT_DECODE_SLOTS * bt_team_threads(call->team);
    for (size_t u = 0; u < call->unit_count; u++)
        tasks += call->units[u].splits;
    for (call->first_task = 0; call->first_task < tasks; call->first_task += slots) {
        size_t wave = least(tasks - call->first_task, slots);
        bt_team_run(call->team, attend_task, call, (uint32_t)wave);
        for (size_t i = 0; i < wave; i++) {
            size_t split;
            const struct unit *unit = task_at(call, call->first_task + i, &split);
            struct sums sums = sums_of_unit(call, unit), more = sums_of_slot(call, i);
            if (split)
                join(call, unit, split, &sums, &more);
        }
    }
}

/* ---- results ---- */

/* One head's results of all rows of the group. Adding 0 makes -0 to 0. */
static void give_back(void *context, uint32_t head, uint32_t thread)
{
    const struct call *call = context;
    const struct bt_mla_tiles *t = &call->tiles;
    struct workspace w = workspace_of(call, thread);
    struct bt_tile_rows a = {w.inputs, t->latent * BT_TILE_BYTES, BT_TILE_BYTES, BT_TILE_LINE};
    struct bt_kv_b_head operands = bt_tiles_kv_b_head(call->kv_b, call->shape, head);
    struct bt_tile_panels b = {operands.values, t->latent * BT_TILE_BYTES, t->v / 16};
    size_t v = call->shape->v_head_dim, lora = call->shape->kv_lora_rank;

    for (size_t r = 0; r < call->rows; r++) {
        size_t column = r * t->heads + head;
        float *x = call->group.latents + column * call->latent;
        struct bt_v16 by = bt_v16_set(1.0f / call->group.sum[column]);
        for (size_t l = 0; l < call->tiles.latent * 32; l += BT_LANES)
            bt_v16_store(x + l, bt_v16_fma(bt_v16_load(x + l), by, bt_v16_zero()));
        bt_bf16_row(x, lora, w.inputs + r / 16 * a.block_stride + r % 16 * BT_TILE_LINE,
                    BT_TILE_BYTES);
    }
    BT_X86_NAME(gemm_begin)();
    BT_X86_NAME(gemm_bf16)(a, call->rows, b, t->latent, false, w.product, t->v);
    BT_X86_NAME(gemm_end)();
    for (size_t r = 0; r < call->rows; r++)
        memcpy(call->out + (call->row_of[r] * (size_t)call->shape->heads + head) * v,
               w.product + r * t->v, v * sizeof(float));
}

static void run_group(struct call *call)
{
    uint32_t threads = bt_team_threads(call->team);
    bt_team_run(call->team, absorb, call, call->shape->heads);
    if (threads == 1 || call->unit_count >= 4 * (size_t)threads)
        bt_team_run(call->team, attend_unit, call, (uint32_t)call->unit_count);
    else
        attend_waves(call);
    bt_team_run(call->team, give_back, call, call->shape->heads);
    call->unit_count = call->rows = 0;
}

/* Rows of the sequence from `offset` on that the group has room for, as one more unit. */
static size_t add_unit(struct call *call, const struct bt_sequence_rows *sequence, size_t offset)
{
    size_t count = least(sequence->row_count - offset, bt_decode_unit_rows(&call->tiles));
    count = least(count, BT_DECODE_GROUP - call->rows);
    struct unit unit = {sequence, offset, count, call->rows};
    unit.splits = bt_tiles_of(visible(&unit, count - 1), BT_DECODE_SPLIT);
    call->units[call->unit_count++] = unit;
    for (size_t i = 0; i < count; i++)
        call->row_of[call->rows++] = (uint32_t)(sequence->first_row + offset + i);
    return count;
}

void BT_X86_NAME(mla_decode)(struct bt_stream *stream, const float *q,
                             const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                             const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                             const struct bt_kv_layer *kv, float *out)
{
    if (kv_b->layout == BT_LAYOUT_ROWS) {
        BT_X86_ROWS(rows_mla_decode)(stream, q, shape, kv_b, sequences, sequence_count, kv, out);
        return;
    }
    struct call call = {.q = q, .shape = shape, .kv_b = kv_b, .kv = kv, .out = out};
    size_t rows = 0, threads = bt_team_threads(stream->team);
    for (uint32_t s = 0; s < sequence_count; s++)
        rows += sequences[s].row_count;
    call.tiles = bt_mla_tiles_of(shape);
    call.memory = bt_decode_memory(shape, rows);
    call.team = stream->team;
    call.head_dim = (size_t)shape->qk_nope_head_dim + shape->qk_rope_head_dim;
    call.latent = bt_decode_stride(&call.tiles);
    bt_scratch_reset(stream);
    call.latent_queries = bt_scratch_take(stream, call.memory.latent_queries, 1);
    call.group.latents = bt_scratch_take(stream, call.memory.latents, 1);
    call.group.max = bt_scratch_take(stream, call.memory.state, 1);
    call.group.sum = bt_scratch_take(stream, call.memory.state, 1);
    call.threads = bt_scratch_take(stream, threads, call.memory.thread);
    call.slots = bt_scratch_take(stream, threads * BT_DECODE_SLOTS,
                                 call.memory.slot + 2 * call.memory.slot_state);
    for (uint32_t s = 0; s < sequence_count; s++) {
        for (size_t i = 0; i < sequences[s].row_count;) {
            i += add_unit(&call, &sequences[s], i);
            if (call.rows == BT_DECODE_GROUP)
                run_group(&call);
        }
    }
    if (call.rows)
        run_group(&call);
}
