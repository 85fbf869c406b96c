#include "common/kernels/x86/ffn.h"

#include "common/kernels/x86/gemm.h"
#include "common/kernels/x86/tables.h"

/* Up to so few rows, stored tiles are expanded in pieces that stay in L1: of panels and tiles. */
#define FEW_ROWS   8
#define FEW_PANELS 3
#define FEW_TILES  8

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static bool is_int8(enum bt_dtype dtype)
{
    return dtype == BT_I8 || dtype == BT_I4;
}

static bool is_expanded(enum bt_dtype dtype)
{
    return dtype == BT_F8_E4M3 || dtype == BT_I4;
}

void BT_X86_NAME(ffn_take)(struct bt_ffn *ffn, size_t rows, size_t job_rows)
{
    struct bt_stream *stream = ffn->stream;
    size_t threads = bt_team_threads(stream->team);
    size_t in_bytes = bt_ffn_row_bytes(ffn->inputs, ffn->in_dtype);
    ffn->block_rows = bt_ffn_block_rows(job_rows);
    ffn->x = bt_scratch_take(stream, (rows + 15) / 16 * 16, in_bytes);
    ffn->x_scales = bt_scratch_take(stream, rows, sizeof(float));
    ffn->jobs = bt_scratch_take(stream, ffn->block_rows, sizeof(*ffn->jobs));
    ffn->in = bt_scratch_take(stream, ffn->block_rows, in_bytes);
    ffn->middle = bt_scratch_take(stream, is_int8(ffn->inner_dtype) ? ffn->block_rows : 0,
                                  ffn->inner * sizeof(float));
    ffn->packed =
        bt_scratch_take(stream, ffn->block_rows, bt_ffn_row_bytes(ffn->inner, ffn->inner_dtype));
    ffn->packed_scales = bt_scratch_take(stream, ffn->block_rows, sizeof(float));
    ffn->thread_bytes = bt_ffn_thread_bytes(ffn->inner);
    ffn->thread_memory = bt_scratch_take(stream, threads, ffn->thread_bytes);
    ffn->job_count = ffn->stored_rows = 0;
}

/* ---- rows of x ---- */

struct pack_call {
    const struct bt_ffn *ffn;
    const float *x;
    size_t rows;
};

static void pack_part(void *context, uint32_t part, uint32_t thread)
{
    const struct pack_call *call = context;
    const struct bt_ffn *ffn = call->ffn;
    size_t row = (size_t)part * 16, rows = least(call->rows - row, 16);
    const float *x = call->x + row * ffn->inputs;
    char *out = (char *)ffn->x + row * bt_ffn_row_bytes(ffn->inputs, ffn->in_dtype);
    (void)thread;
    if (is_int8(ffn->in_dtype)) {
        BT_X86_NAME(pack_int8)
        (x, ffn->inputs, NULL, 1, rows, ffn->inputs, out, ffn->x_scales + row);
    } else {
        BT_X86_NAME(pack_bf16)(x, ffn->inputs, NULL, 1, rows, ffn->inputs, out);
    }
}

void BT_X86_NAME(ffn_pack)(const struct bt_ffn *ffn, const float *x, size_t rows)
{
    struct pack_call call = {ffn, x, rows};
    bt_team_run(ffn->stream->team, pack_part, &call, (uint32_t)((rows + 15) / 16));
}

bool BT_X86_NAME(ffn_add)(struct bt_ffn *ffn, struct bt_ffn_job job)
{
    size_t stored = bt_ffn_stored(job.rows);
    if (ffn->stored_rows + stored > ffn->block_rows)
        return false;
    job.at = ffn->stored_rows;
    ffn->jobs[ffn->job_count++] = job;
    ffn->stored_rows += stored;
    return true;
}

/* A job's rows in one of the block's buffers, as A. */
static struct bt_tile_rows job_rows(const void *buffer, const struct bt_ffn_job *job,
                                    size_t row_bytes)
{
    size_t lines = least(job->rows, 16);
    return (struct bt_tile_rows){.data = (const char *)buffer + job->at * row_bytes,
                                 .block_stride = lines * row_bytes,
                                 .tile_stride = lines * BT_TILE_LINE,
                                 .row_stride = BT_TILE_LINE};
}

static char *line_at(struct bt_tile_rows rows, size_t row, size_t tile)
{
    return (char *)(uintptr_t)rows.data + row / 16 * rows.block_stride + tile * rows.tile_stride +
           row % 16 * rows.row_stride;
}

static void copy_line(void *to, const void *from)
{
    const float *in = from;
    bt_v16_store(to, bt_v16_load(in));
}

static void copy_row(struct bt_tile_rows to, size_t row, struct bt_tile_rows from, size_t from_row,
                     size_t tiles)
{
    char *out = line_at(to, row, 0);
    const char *in = line_at(from, from_row, 0);
    for (size_t t = 0; t < tiles; t++)
        copy_line(out + t * to.tile_stride, in + t * from.tile_stride);
}

/* Blocks of 16 rows of the largest job: parts of those phases that work on rows alone. */
static size_t row_blocks(const struct bt_ffn *ffn)
{
    size_t most = 1;
    for (size_t i = 0; i < ffn->job_count; i++)
        most = ffn->jobs[i].rows > most * 16 ? bt_tiles_of(ffn->jobs[i].rows, 16) : most;
    return most;
}

static void gather_part(void *context, uint32_t part, uint32_t thread)
{
    const struct bt_ffn *ffn = context;
    size_t blocks = row_blocks(ffn);
    const struct bt_ffn_job *job = &ffn->jobs[part / blocks];
    size_t first = part % blocks * 16, end = least(job->rows, first + 16);
    size_t bytes = bt_ffn_row_bytes(ffn->inputs, ffn->in_dtype), tiles = bytes / BT_TILE_LINE;
    struct bt_tile_rows x = {ffn->x, 16 * bytes, BT_TILE_BYTES, BT_TILE_LINE};
    struct bt_tile_rows in = job_rows(ffn->in, job, bytes);
    (void)thread;
    for (size_t row = first; row < end; row++)
        copy_row(in, row, x, job->picks[row] / ffn->per_row, tiles);
}

/* ---- products ---- */

/* One or two matrices that the same rows are multiplied by, and where their sums go. */
struct products {
    const struct bt_matrix *weights[2];
    void *sums[2]; /* [rows][stride], f32 or int32 */
    size_t count, stride;
};

static void multiply(enum bt_dtype dtype, struct bt_tile_rows a, size_t rows,
                     struct bt_tile_panels b, size_t tiles, bool accumulate, void *sums,
                     size_t stride)
{
    if (is_int8(dtype))
        BT_X86_NAME(gemm_int8)(a, rows, b, tiles, accumulate, sums, stride);
    else
        BT_X86_NAME(gemm_bf16)(a, rows, b, tiles, accumulate, sums, stride);
}

/* Tiles [first, first + tiles) of `panels` panels. */
static void step_direct(const struct bt_matrix *w, struct bt_tile_rows a, size_t rows, size_t panel,
                        size_t panels, size_t first, size_t tiles, void *sums, size_t stride)
{
    struct bt_tile_panels b = {(const char *)bt_panel(w, panel) + first * BT_TILE_BYTES,
                               bt_panel_tiles(w) * BT_TILE_BYTES, panels};
    multiply(w->dtype, a, rows, b, tiles, first > 0, sums, stride);
}

static void step_expanded(const struct bt_matrix *w, struct bt_tile_rows a, size_t rows,
                          size_t panel, size_t panels, size_t first, size_t tiles, char *expanded,
                          void *sums, size_t stride)
{
    size_t most = rows <= FEW_ROWS ? FEW_PANELS : BT_FFN_EXPAND_PANELS;
    for (size_t p = 0; p < panels; p += most) {
        size_t count = least(panels - p, most);
        for (size_t i = 0; i < count; i++)
            BT_X86_NAME(expand_tiles)
        (w, panel + p + i, first, tiles, expanded + i * tiles * BT_TILE_BYTES);
        struct bt_tile_panels b = {expanded, tiles * BT_TILE_BYTES, count};
        multiply(w->dtype, a, rows, b, tiles, first > 0, (float *)sums + p * BT_TILE_OUTS, stride);
    }
}

/* Tiles of one step along k: what is expanded for few rows stays in L1. */
static size_t step_tiles(enum bt_dtype dtype, size_t rows, size_t tiles)
{
    if (is_expanded(dtype) && rows <= FEW_ROWS)
        return FEW_TILES;
    if (rows <= 16)
        return is_expanded(dtype) ? BT_FFN_STEP_TILES : tiles;
    size_t steps = bt_tiles_of(tiles, BT_FFN_STEP_TILES);
    return bt_tiles_of(tiles, steps);
}

/* sums [rows][panels * 16] of `panels` panels from `panel` on. */
static void multiply_all(const struct products *w, struct bt_tile_rows a, size_t rows, size_t panel,
                         size_t panels, char *expanded)
{
    size_t tiles = bt_panel_tiles(w->weights[0]);
    bool stored = w->weights[0]->dtype == BT_I4 && rows <= BT_INT4_ROWS;
    for (size_t i = 0; stored && i < w->count; i++)
        BT_X86_NAME(gemm_int4)(a, rows, w->weights[i], panel, panels, w->sums[i], w->stride);
    if (stored)
        return;
    size_t step = step_tiles(w->weights[0]->dtype, rows, tiles);
    for (size_t first = 0; first < tiles; first += step) {
        struct bt_tile_rows in = a;
        in.data = (const char *)a.data + first * a.tile_stride;
        for (size_t i = 0; i < w->count; i++) {
            size_t count = least(tiles - first, step);
            if (is_expanded(w->weights[i]->dtype))
                step_expanded(w->weights[i], in, rows, panel, panels, first, count, expanded,
                              w->sums[i], w->stride);
            else
                step_direct(w->weights[i], in, rows, panel, panels, first, count, w->sums[i],
                            w->stride);
        }
    }
}

/* Sixteen sums as f32: of int8 with the scales of the row and of the outputs. */
BT_INLINE struct bt_v16 load_sums(const float *sums, const struct bt_matrix *w, size_t panel,
                                  float row_scale)
{
    if (!is_int8(w->dtype))
        return bt_v16_load(sums);
    struct bt_v16 scale = bt_v16_load(w->scales + panel * BT_TILE_OUTS);
    return bt_v16_mul(bt_v16_from_ints(sums), bt_v16_mul(scale, bt_v16_set(row_scale)));
}

/* ---- gate and up ---- */

/* How many panels a part has: fewer where threads would be idle. */
static size_t part_panels(const struct bt_ffn *ffn, size_t panels, size_t jobs)
{
    size_t threads = bt_team_threads(ffn->stream->team);
    size_t part = row_blocks(ffn) == 1 ? BT_FFN_FEW_ROWS_PANELS : BT_FFN_PART_PANELS;
    while (threads > 1 && part > 2 && jobs * bt_tiles_of(panels, part) < 4 * threads)
        part /= 2;
    return part;
}

/* Lanes beyond the first `count` become zeros, also where they are no numbers. */
BT_INLINE struct bt_v16 first_lanes(struct bt_v16 a, size_t count)
{
    float lanes[BT_LANES];
    bt_v16_store(lanes, a);
    return count == BT_LANES ? a : bt_v16_load_part(lanes, count);
}

/* The SwiGLU of one row, `panels` panels from `panel` on. */
static void finish_inner(const struct bt_ffn *ffn, const struct bt_ffn_job *job, size_t row,
                         size_t panel, size_t panels, const float *gate, const float *up)
{
    float scale = is_int8(ffn->in_dtype) ? ffn->x_scales[job->picks[row] / ffn->per_row] : 1;
    struct bt_tile_rows out =
        job_rows(ffn->packed, job, bt_ffn_row_bytes(ffn->inner, ffn->inner_dtype));
    for (size_t p = 0; p < panels; p++) {
        size_t at = (panel + p) * BT_TILE_OUTS, count = least(ffn->inner - at, BT_TILE_OUTS);
        struct bt_v16 y =
            bt_v16_mul(bt_v16_silu(load_sums(gate + p * BT_TILE_OUTS, job->gate, panel + p, scale)),
                       load_sums(up + p * BT_TILE_OUTS, job->up, panel + p, scale));
        if (!is_int8(ffn->inner_dtype))
            bt_v16_store_bf16(line_at(out, row, at / BT_TILE_BF16) + at % BT_TILE_BF16 * 2,
                              first_lanes(y, count));
        else if (count == BT_TILE_OUTS)
            bt_v16_store(ffn->middle + (job->at + row) * ffn->inner + at, y);
        else
            bt_v16_store_part(ffn->middle + (job->at + row) * ffn->inner + at, y, count);
    }
}

/* The last tile of an inner row in bf16 may be half a panel: outputs that are not there are 0. */
static void pad_inner(const struct bt_ffn *ffn, const struct bt_ffn_job *job, size_t panels)
{
    struct bt_tile_rows out =
        job_rows(ffn->packed, job, bt_ffn_row_bytes(ffn->inner, ffn->inner_dtype));
    if (is_int8(ffn->inner_dtype) || panels % 2 == 0)
        return;
    for (size_t row = 0; row < job->rows; row++)
        memset(line_at(out, row, panels / 2) + BT_TILE_LINE / 2, 0, BT_TILE_LINE / 2);
}

static void gate_up_part(void *context, uint32_t part, uint32_t thread)
{
    const struct bt_ffn *ffn = context;
    size_t all = bt_tiles_of(ffn->inner, BT_TILE_OUTS);
    size_t each = part_panels(ffn, all, ffn->job_count), blocks = bt_tiles_of(all, each);
    const struct bt_ffn_job *job = &ffn->jobs[part / blocks];
    size_t panel = part % blocks * each, panels = least(all - panel, each);
    float *gate = (float *)(ffn->thread_memory + thread * ffn->thread_bytes);
    float *up = gate + BT_FFN_SUMS;
    struct products w = {{job->gate, job->up}, {gate, up}, 2, panels * BT_TILE_OUTS};

    BT_X86_NAME(gemm_begin)();
    multiply_all(&w, job_rows(ffn->in, job, bt_ffn_row_bytes(ffn->inputs, ffn->in_dtype)),
                 job->rows, panel, panels, (char *)(up + BT_FFN_SUMS));
    BT_X86_NAME(gemm_end)();
    for (size_t row = 0; row < job->rows; row++)
        finish_inner(ffn, job, row, panel, panels, gate + row * w.stride, up + row * w.stride);
    if (panel + panels == all)
        pad_inner(ffn, job, all);
}

/* ---- the inner row ---- */

static void quantise_block(const struct bt_ffn *ffn, const struct bt_ffn_job *job, size_t row,
                           void *block)
{
    size_t bytes = bt_ffn_row_bytes(ffn->inner, ffn->inner_dtype), at = job->at + row;
    size_t rows = least(job->rows - row, 16);
    bool whole = job->rows >= 16;
    struct bt_tile_rows out = job_rows(ffn->packed, job, bytes);
    struct bt_tile_rows from = {block, 0, BT_TILE_BYTES, BT_TILE_LINE};
    BT_X86_NAME(pack_int8)
    (ffn->middle + at * ffn->inner, ffn->inner, NULL, 1, rows, ffn->inner,
     whole ? line_at(out, row, 0) : block, ffn->packed_scales + at);
    for (size_t i = 0; !whole && i < rows; i++)
        copy_row(out, i, from, i, bytes / BT_TILE_LINE);
}

static void quantise_part(void *context, uint32_t part, uint32_t thread)
{
    const struct bt_ffn *ffn = context;
    char *memory = ffn->thread_memory + thread * ffn->thread_bytes;
    size_t blocks = row_blocks(ffn), row = part % blocks * 16;
    const struct bt_ffn_job *job = &ffn->jobs[part / blocks];
    if (row < job->rows)
        quantise_block(ffn, job, row, memory + 2 * BT_FFN_SUMS * sizeof(float));
}

/* ---- down ---- */

BT_INLINE void put(float *out, struct bt_v16 y, size_t count)
{
    if (count == BT_TILE_OUTS)
        bt_v16_store(out, y);
    else
        bt_v16_store_part(out, y, count);
}

/* The result of one row as bf16. */
static void finish_rounded(const struct bt_ffn *ffn, const struct bt_ffn_job *job, size_t row,
                           size_t panel, size_t panels, const float *sums)
{
    float scale = is_int8(ffn->inner_dtype) ? ffn->packed_scales[job->at + row] : 1;
    uint16_t *out = ffn->y + (size_t)(job->picks + row - ffn->order) * ffn->outs;
    for (size_t p = 0; p < panels; p++) {
        size_t at = (panel + p) * BT_TILE_OUTS, count = least(ffn->outs - at, BT_TILE_OUTS);
        uint16_t rounded[BT_TILE_OUTS];
        struct bt_v16 y = load_sums(sums + p * BT_TILE_OUTS, job->down, panel + p, scale);
        bt_v16_store_bf16(count == BT_TILE_OUTS ? out + at : rounded, y);
        if (count < BT_TILE_OUTS)
            memcpy(out + at, rounded, count * sizeof(*out));
    }
}

/* The result of one row to the output: rounded and weighted if it is an expert's. */
static void finish_row(const struct bt_ffn *ffn, const struct bt_ffn_job *job, size_t row,
                       size_t panel, size_t panels, const float *sums)
{
    float scale = is_int8(ffn->inner_dtype) ? ffn->packed_scales[job->at + row] : 1;
    float *out = ffn->out + job->picks[row] / ffn->per_row * ffn->outs;
    struct bt_v16 weight = bt_v16_set(ffn->weights ? ffn->weights[job->picks[row]] : 1);
    for (size_t p = 0; p < panels; p++) {
        size_t at = (panel + p) * BT_TILE_OUTS, count = least(ffn->outs - at, BT_TILE_OUTS);
        struct bt_v16 y = load_sums(sums + p * BT_TILE_OUTS, job->down, panel + p, scale);
        if (ffn->weights) {
            struct bt_v16 sum =
                count == BT_TILE_OUTS ? bt_v16_load(out + at) : bt_v16_load_part(out + at, count);
            y = bt_v16_fma(weight, bt_v16_round_bf16(y), sum);
        }
        put(out + at, y, count);
    }
}

/* All jobs, one after the other, for some columns of the output: sums in the order of the jobs. */
static void down_part(void *context, uint32_t part, uint32_t thread)
{
    const struct bt_ffn *ffn = context;
    size_t all = bt_tiles_of(ffn->outs, BT_TILE_OUTS), each = part_panels(ffn, all, 1);
    size_t panel = part * each, panels = least(all - panel, each);
    float *sums = (float *)(ffn->thread_memory + thread * ffn->thread_bytes);
    for (size_t i = 0; i < ffn->job_count; i++) {
        const struct bt_ffn_job *job = &ffn->jobs[i];
        struct products w = {{job->down}, {sums}, 1, panels * BT_TILE_OUTS};
        BT_X86_NAME(gemm_begin)();
        multiply_all(&w, job_rows(ffn->packed, job, bt_ffn_row_bytes(ffn->inner, ffn->inner_dtype)),
                     job->rows, panel, panels, (char *)(sums + 2 * BT_FFN_SUMS));
        BT_X86_NAME(gemm_end)();
        for (size_t row = 0; row < job->rows && ffn->y; row++)
            finish_rounded(ffn, job, row, panel, panels, sums + row * w.stride);
        for (size_t row = 0; row < job->rows && !ffn->y; row++)
            finish_row(ffn, job, row, panel, panels, sums + row * w.stride);
    }
}

void BT_X86_NAME(ffn_run)(struct bt_ffn *ffn)
{
    struct bt_team *team = ffn->stream->team;
    size_t inner = bt_tiles_of(ffn->inner, BT_TILE_OUTS), outs = bt_tiles_of(ffn->outs, 16);
    size_t inner_parts = bt_tiles_of(inner, part_panels(ffn, inner, ffn->job_count));
    size_t row_parts = ffn->job_count * row_blocks(ffn);
    if (ffn->job_count == 0)
        return;
    if (ffn->in != ffn->x)
        bt_team_run(team, gather_part, ffn, (uint32_t)row_parts);
    bt_team_run(team, gate_up_part, ffn, (uint32_t)(ffn->job_count * inner_parts));
    if (is_int8(ffn->inner_dtype))
        bt_team_run(team, quantise_part, ffn, (uint32_t)row_parts);
    bt_team_run(team, down_part, ffn, (uint32_t)bt_tiles_of(outs, part_panels(ffn, outs, 1)));
    ffn->job_count = ffn->stored_rows = 0;
}
