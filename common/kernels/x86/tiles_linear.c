/* Dense products with weights in tiles. */
#include "common/kernels/x86/gemm.h"
#include "common/kernels/x86/linear_memory.h"
#include "common/kernels/x86/tables.h"

/* Up to so many rows all of k is one step: they are small beside the weights. */
#define FEW_ROWS 64
/* Up to so many, weights are expanded by so many tiles, which stay in L1. */
#define EXPAND_FEW_ROWS 8
#define EXPAND_FEW      4

/*
 * AMX reads A faster than L3 gives it, and reads and writes sums so often that outputs a power of
 * two apart would push each other out of L2. The others need neither: B of a step is in L2.
 */
#ifdef __AMX_TILE__
#define PART_ROWS  BT_LINEAR_ROWS
#define STEP_TILES BT_LINEAR_STEP
#define DIRECT     false
#else
#define PART_ROWS  128
#define STEP_TILES 64
#define DIRECT     true
#endif

/* One call. */
struct call {
    const struct bt_linear *linears;
    uint32_t linear_count, threads;
    const float *x;
    size_t rows, cols;
    void *bf16, *int8; /* x as A tiles, as far as a weight needs them */
    float *scales;     /* of int8 */
    char *thread_memory;
};

/* Some rows by some panels of one product. */
struct part {
    const struct bt_linear *linear;
    size_t row, rows, panel, panels;
};

BT_INLINE size_t least(size_t a, size_t b)
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

/* ---- one part ---- */

/* The sums of a group of panels [rows][panels * 16], in scratch or directly in `out`; its columns
 * there. */
struct group {
    float *sums;
    size_t stride, panel, outs;
    bool direct;
};

/* Sums that are not complete wait in the output: f32 or int32, bit by bit. */
static void move_sums(const struct part *part, const struct group *group, bool from_out)
{
    size_t outs = part->linear->weight->rows;
    for (size_t r = 0; !group->direct && r < part->rows; r++) {
        float *out = part->linear->out + (part->row + r) * outs + group->panel * BT_TILE_OUTS;
        float *sums = group->sums + r * group->stride;
        if (from_out)
            memcpy(sums, out, group->outs * sizeof(*out));
        else
            memcpy(out, sums, group->outs * sizeof(*out));
    }
}

/* out = (sum * scale of the row) * scale of the output. */
static void scale_sums(const struct part *part, const struct group *group, const float *scales)
{
    const struct bt_matrix *weight = part->linear->weight;
    for (size_t r = 0; r < part->rows; r++) {
        float *out = part->linear->out + (part->row + r) * weight->rows;
        struct bt_v16 scale = bt_v16_set(scales[part->row + r]);
        for (size_t n = 0; n < group->outs; n += BT_TILE_OUTS) {
            size_t at = group->panel * BT_TILE_OUTS + n;
            struct bt_v16 y = bt_v16_from_ints(group->sums + r * group->stride + n);
            y = bt_v16_mul(bt_v16_mul(y, scale), bt_v16_load(weight->scales + at));
            if (group->outs - n >= BT_TILE_OUTS)
                bt_v16_store(out + at, y);
            else
                bt_v16_store_part(out + at, y, group->outs - n);
        }
    }
}

/* The part's rows of x, from tile `first` on. */
static struct bt_tile_rows part_rows(const struct call *call, const struct part *part, size_t first)
{
    bool int8 = is_int8(part->linear->weight->dtype);
    size_t tiles = bt_panel_tiles(part->linear->weight);
    const char *packed = int8 ? call->int8 : call->bf16;
    return (struct bt_tile_rows){packed + (part->row / 16 * tiles + first) * BT_TILE_BYTES,
                                 tiles * BT_TILE_BYTES, BT_TILE_BYTES, BT_TILE_LINE};
}

/* The panels of b, whose first tile is `first` of all, and `tiles` of them; accumulates unless
 * first is 0. */
static void multiply(const struct call *call, const struct part *part, const struct group *group,
                     struct bt_tile_panels b, size_t first, size_t tiles)
{
    struct bt_tile_rows a = part_rows(call, part, first);
    void *sums = group->sums;
    if (is_int8(part->linear->weight->dtype)) {
        BT_X86_NAME(gemm_int8)(a, part->rows, b, tiles, first > 0, sums, group->stride);
    } else {
        BT_X86_NAME(gemm_bf16)(a, part->rows, b, tiles, first > 0, sums, group->stride);
    }
}

static void multiply_expanded(const struct call *call, const struct part *part,
                              const struct group *group, size_t panels, size_t first, size_t tiles,
                              char *expanded)
{
    const struct bt_matrix *weight = part->linear->weight;
    size_t most = part->rows <= EXPAND_FEW_ROWS ? EXPAND_FEW : BT_LINEAR_STEP;
    for (size_t done = 0, count; done < tiles; done += count) {
        count = least(tiles - done, most);
        for (size_t p = 0; p < panels; p++) {
            char *tiles_of_p = expanded + p * count * BT_TILE_BYTES;
            BT_X86_NAME(expand_tiles)(weight, group->panel + p, first + done, count, tiles_of_p);
        }
        struct bt_tile_panels b = {expanded, count * BT_TILE_BYTES, panels};
        multiply(call, part, group, b, first + done, count);
    }
}

/* Multiplied as it is stored. */
static bool is_int4(const struct part *part)
{
    return part->linear->weight->dtype == BT_I4 && part->rows <= BT_INT4_ROWS;
}

/* Panels of a group: as many as their sums have room for, unless they are expanded. */
static size_t group_panels(const struct part *part)
{
    bool expanded = is_expanded(part->linear->weight->dtype) && !is_int4(part);
    if (expanded || part->rows > FEW_ROWS)
        return BT_LINEAR_GROUP;
    return BT_LINEAR_SUMS / BT_TILE_OUTS / part->rows;
}

static void run_group(const struct call *call, const struct part *part, const struct group *group,
                      size_t panels, size_t first, size_t tiles, char *expanded)
{
    const struct bt_matrix *weight = part->linear->weight;
    size_t all = bt_panel_tiles(weight);
    if (first > 0)
        move_sums(part, group, true);
    if (is_int4(part)) {
        void *sums = group->sums;
        struct bt_tile_rows a = part_rows(call, part, 0);
        BT_X86_NAME(gemm_int4)(a, part->rows, weight, group->panel, panels, sums, group->stride);
    } else if (is_expanded(weight->dtype)) {
        multiply_expanded(call, part, group, panels, first, tiles, expanded);
    } else {
        const char *stored = (const char *)bt_panel(weight, group->panel) + first * BT_TILE_BYTES;
        struct bt_tile_panels b = {stored, all * BT_TILE_BYTES, panels};
        multiply(call, part, group, b, first, tiles);
    }
    if (is_int8(weight->dtype) && first + tiles == all)
        scale_sums(part, group, call->scales);
    else
        move_sums(part, group, false);
}

static struct group group_at(const struct part *part, size_t panel, size_t panels, char *memory)
{
    const struct bt_matrix *weight = part->linear->weight;
    size_t at = panel * BT_TILE_OUTS, outs = least(weight->rows - at, panels * BT_TILE_OUTS);
    if (DIRECT && !is_int8(weight->dtype) && outs == panels * BT_TILE_OUTS)
        return (struct group){part->linear->out + part->row * weight->rows + at, weight->rows,
                              panel, outs, true};
    return (struct group){(float *)memory, panels * BT_TILE_OUTS, panel, outs, false};
}

static void run_part(const struct call *call, const struct part *part, char *memory)
{
    const struct bt_matrix *weight = part->linear->weight;
    size_t all = bt_panel_tiles(weight), most = part->rows <= FEW_ROWS ? all : STEP_TILES;
    size_t step = group_panels(part), last = part->panel + part->panels;
    for (size_t first = 0, tiles; first < all; first += tiles) {
        tiles = least(all - first, most);
        for (size_t panel = part->panel, panels; panel < last; panel += panels) {
            panels = least(last - panel, step);
            struct group group = group_at(part, panel, panels, memory);
            run_group(call, part, &group, panels, first, tiles,
                      memory + BT_LINEAR_SUMS * sizeof(float));
        }
    }
}

/* ---- the parts of all products of a call ---- */

/* Panels of one part: few enough that each thread has some parts. */
static size_t part_panels(const struct call *call, const struct bt_matrix *weight)
{
    size_t all = bt_tiles_of(weight->rows, BT_TILE_OUTS), panels = all;
    size_t blocks = bt_tiles_of(call->rows, PART_ROWS);
    if (call->threads > 1)
        panels = bt_tiles_of(all * blocks, (size_t)call->threads * 4);
    if (call->rows > FEW_ROWS)
        panels = least(panels, BT_LINEAR_PANELS);
    return least(all, bt_tiles_of(panels, BT_LINEAR_GROUP) * BT_LINEAR_GROUP);
}

static size_t part_count(const struct call *call, const struct bt_matrix *weight)
{
    return bt_tiles_of(bt_tiles_of(weight->rows, BT_TILE_OUTS), part_panels(call, weight)) *
           bt_tiles_of(call->rows, PART_ROWS);
}

/* Rows outside: while a block of them is near, all panels pass. */
static struct part part_at(const struct call *call, const struct bt_linear *linear, size_t index)
{
    size_t all = bt_tiles_of(linear->weight->rows, BT_TILE_OUTS);
    size_t each = part_panels(call, linear->weight), columns = bt_tiles_of(all, each);
    size_t row = index / columns * PART_ROWS, panel = index % columns * each;
    return (struct part){linear, row, least(call->rows - row, PART_ROWS), panel,
                         least(all - panel, each)};
}

static void multiply_part(void *context, uint32_t index, uint32_t thread)
{
    const struct call *call = context;
    const struct bt_linear *linear = call->linears;
    size_t left = index;
    for (size_t count; left >= (count = part_count(call, linear->weight)); linear++)
        left -= count;
    struct part part = part_at(call, linear, left);
    BT_X86_NAME(gemm_begin)();
    run_part(call, &part, call->thread_memory + thread * bt_linear_thread_bytes());
    BT_X86_NAME(gemm_end)();
}

static void pack_part(void *context, uint32_t part, uint32_t thread)
{
    (void)thread;
    const struct call *call = context;
    size_t row = (size_t)part * 16, rows = least(call->rows - row, 16), cols = call->cols;
    const float *x = call->x + row * cols;
    if (call->bf16) {
        char *out = (char *)call->bf16 + part * bt_linear_packed_bytes(16, cols, BT_TILE_BF16);
        BT_X86_NAME(pack_bf16)(x, cols, NULL, 1, rows, cols, out);
    }
    if (call->int8) {
        char *out = (char *)call->int8 + part * bt_linear_packed_bytes(16, cols, BT_TILE_INT8);
        BT_X86_NAME(pack_int8)(x, cols, NULL, 1, rows, cols, out, call->scales + row);
    }
}

static void tiles_linear(struct bt_stream *stream, const float *x, uint32_t rows,
                         const struct bt_linear *linears, uint32_t linear_count)
{
    struct call call = {.linears = linears,
                        .linear_count = linear_count,
                        .threads = bt_team_threads(stream->team),
                        .x = x,
                        .rows = rows,
                        .cols = linears[0].weight->cols};
    size_t parts = 0;
    bool int8 = false, bf16 = false;
    for (uint32_t i = 0; i < linear_count; i++) {
        parts += part_count(&call, linears[i].weight);
        int8 |= is_int8(linears[i].weight->dtype);
        bf16 |= !is_int8(linears[i].weight->dtype);
    }
    bt_scratch_reset(stream);
    if (bf16)
        call.bf16 =
            bt_scratch_take(stream, bt_linear_packed_bytes(rows, call.cols, BT_TILE_BF16), 1);
    if (int8)
        call.int8 =
            bt_scratch_take(stream, bt_linear_packed_bytes(rows, call.cols, BT_TILE_INT8), 1);
    call.scales = bt_scratch_take(stream, rows, sizeof(float));
    call.thread_memory = bt_scratch_take(stream, call.threads, bt_linear_thread_bytes());
    bt_team_run(stream->team, pack_part, &call, (uint32_t)bt_tiles_of(rows, 16));
    bt_team_run(stream->team, multiply_part, &call, (uint32_t)parts);
}

void BT_X86_NAME(linear)(struct bt_stream *stream, const float *x, uint32_t rows,
                         const struct bt_linear *linears, uint32_t linear_count)
{
    uint32_t i = 0, first = 0;
    if (rows == 0)
        return;
    /* neighbours in tiles are one call: x is packed once, and their parts are shared out together
     */
    for (; i < linear_count; i++) {
        BT_ASSERT(linears[i].weight->cols == linears[0].weight->cols);
        if (linears[i].weight->layout == BT_LAYOUT_TILES)
            continue;
        if (i > first)
            tiles_linear(stream, x, rows, linears + first, i - first);
        BT_X86_ROWS(rows_linear)(stream, x, rows, linears[i].weight, linears[i].out);
        first = i + 1;
    }
    if (i > first)
        tiles_linear(stream, x, rows, linears + first, i - first);
}
