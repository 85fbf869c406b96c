/*
 * Prefill's attention, round by round (mla_prefill.h): gather latents, expand keys and values by
 * kv_b, attend. With kv_b in TILES one product of cuBLASLt in bf16 expands all heads; in ROWS the
 * product is that of `linear`, in f32.
 *
 * Rounds follow from the sequences, so a call of this operation is good for these sequences only: a
 * graph that has it captured may not be replayed for others.
 */
#include "common/kernels/cuda/mla_prefill.h"

#include "common/kernels/cuda/elementwise.h"
#include "common/kernels/cuda/grouped_gemm.h"
#include "common/kernels/cuda/table.h"
#include "common/kernels/weight.h"

/* Tokens of a round: with 16 heads of 128 + 128 expanded 16 MB, which stay in the L2 cache. Half as
 * many in f32. */
#define ROUND_TOKENS     2048
#define ROUND_TOKENS_F32 (ROUND_TOKENS / 2)

enum kernel { BY_F32, BY_MMA, BY_WGMMA };

/* What all rounds of one call share. */
struct call {
    struct bt_cuda_stream *stream;
    const struct bt_matrix *kv_b;
    const struct bt_mla_shape *shape;
    struct bt_cuda_rows rows;
    struct bt_cuda_gather_latents gather;
    struct bt_cuda_prefill attend;
    bool in_tiles; /* kv_b */
    enum kernel kernel;
};

/* Where the next round begins. */
struct walk {
    const struct bt_sequence_rows *sequences;
    uint32_t count;
    uint32_t next;  /* sequence */
    uint32_t index; /* of `next` among those with rows */
    uint32_t token; /* of `next` */
};

static size_t round_up(size_t count, size_t unit)
{
    return (count + unit - 1) / unit * unit;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- rounds ---- */

static struct bt_cuda_prefill_range range_of(const struct walk *walk, uint32_t room)
{
    const struct bt_sequence_rows *sequence = &walk->sequences[walk->next];
    size_t end = (size_t)sequence->start + sequence->row_count;
    return (struct bt_cuda_prefill_range){
        .sequence = walk->index,
        .start = sequence->start,
        .first_row = sequence->first_row,
        .row_count = sequence->row_count,
        .begin = walk->token,
        .end = (uint32_t)least(end, (size_t)walk->token + room),
    };
}

/* False: there is nothing left. room: tokens, a multiple of a page's; rows: of a block. */
static bool take_round(struct walk *walk, uint32_t room, uint32_t rows,
                       struct bt_cuda_prefill_round *round)
{
    round->count = round->tokens = round->blocks = 0;
    while (walk->next < walk->count && round->count < BT_CUDA_PREFILL_RANGES &&
           round->tokens < room) {
        const struct bt_sequence_rows *sequence = &walk->sequences[walk->next];
        if (sequence->row_count == 0) {
            walk->next++;
            continue;
        }
        struct bt_cuda_prefill_range range = range_of(walk, room - round->tokens);
        range.at = round->tokens;
        range.first_block = round->blocks;
        round->tokens += (uint32_t)round_up(range.end - range.begin, BT_PAGE_TOKENS);
        round->blocks += (sequence->row_count + rows - 1) / rows;
        round->ranges[round->count++] = range;
        walk->token = range.end;
        if (range.end == sequence->start + sequence->row_count) {
            walk->next++;
            walk->index++;
            walk->token = 0;
        }
    }
    return round->count > 0;
}

/* ---- a round ---- */

static void expand(const struct call *call, uint32_t tokens)
{
    const struct bt_cuda_gather_latents *gather = &call->gather;
    void *out = (void *)(uintptr_t)call->attend.expanded;
    if (!call->in_tiles) {
        struct bt_cuda_inputs x = {.dtype = BT_F32,
                                   .data = gather->latents,
                                   .cols = gather->lora,
                                   .pitch = gather->latent_pitch};
        bt_cuda_dense(call->stream, &x, tokens, call->kv_b, BT_F32, out);
        return;
    }
    struct bt_cuda_kv_b kv_b = bt_cuda_kv_b_of(call->kv_b, call->shape);
    uint32_t outs = call->shape->heads * (kv_b.nope_rows + kv_b.v_rows);
    struct bt_cuda_product product = {.in = BT_BF16,
                                      .out_dtype = BT_BF16,
                                      .m = tokens,
                                      .n = outs,
                                      .k = kv_b.pitch,
                                      .batch = 1,
                                      .x = gather->latents,
                                      .weight = kv_b.keys,
                                      .out = out,
                                      .x_pitch = gather->latent_pitch,
                                      .weight_pitch = kv_b.pitch,
                                      .out_pitch = outs,
                                      .weight_is_k_major = true};
    bt_cuda_product(call->stream, &product);
}

static void attend(const struct call *call, const struct bt_cuda_prefill_round *round)
{
    cudaStream_t stream = call->stream->stream;
    if (call->kernel == BY_WGMMA)
        bt_cuda_launch_mla_prefill_wgmma(&call->attend, round, stream);
    else if (call->kernel == BY_MMA)
        bt_cuda_launch_mla_prefill(&call->attend, round, stream);
    else
        bt_cuda_launch_mla_prefill_f32(&call->attend, round, call->in_tiles, stream);
}

static void run_rounds(const struct call *call, const struct bt_sequence_rows *sequences,
                       uint32_t sequence_count)
{
    struct walk walk = {.sequences = sequences, .count = sequence_count};
    struct bt_cuda_prefill_round round;
    uint32_t room = call->in_tiles ? ROUND_TOKENS : ROUND_TOKENS_F32;
    uint32_t rows = call->kernel == BY_F32 ? BT_CUDA_PREFILL_F32_ROWS : BT_CUDA_PREFILL_ROWS;
    while (take_round(&walk, room, rows, &round)) {
        bt_cuda_launch_gather_latents(&call->gather, &round, &call->rows, call->stream->stream);
        expand(call, round.tokens);
        attend(call, &round);
        (void)bt_cuda_ok(call->stream, cudaGetLastError());
    }
}

/* ---- memory ---- */

/* Shapes and pitches; no memory yet. */
static struct call call_of(const struct bt_mla_shape *shape, bool in_tiles)
{
    uint32_t nope = shape->qk_nope_head_dim, v = shape->v_head_dim;
    uint32_t lora = shape->kv_lora_rank, rope = shape->qk_rope_head_dim;
    struct call call = {.shape = shape, .in_tiles = in_tiles};
    call.gather.lora = lora;
    call.gather.rope = rope;
    call.gather.out_dtype = in_tiles ? BT_BF16 : BT_F32;
    call.gather.latent_pitch = in_tiles ? (uint32_t)round_up(lora, 64) : lora;
    call.gather.key_pitch = in_tiles ? (uint32_t)round_up(rope, 8) : rope;
    call.attend.heads = shape->heads;
    call.attend.nope = nope;
    call.attend.rope = rope;
    call.attend.v = v;
    call.attend.nope_rows = in_tiles ? (uint32_t)round_up(nope, 8) : nope;
    call.attend.v_rows = in_tiles ? (uint32_t)round_up(v, 8) : v;
    call.attend.key_pitch = call.gather.key_pitch;
    call.attend.scale = shape->softmax_scale;
    return call;
}

/* Bytes of the five blocks of scratch of a call. */
struct blocks {
    size_t latents, keys, expanded, max, sum;
};

static struct blocks blocks_of(const struct call *call, uint32_t rows)
{
    size_t element = bt_dtype_bytes(call->gather.out_dtype);
    size_t tokens = call->in_tiles ? ROUND_TOKENS : ROUND_TOKENS_F32;
    size_t outs = (size_t)call->attend.heads * (call->attend.nope_rows + call->attend.v_rows);
    size_t states = (size_t)rows * call->attend.heads * sizeof(float);
    return (struct blocks){
        .latents = round_up(tokens * call->gather.latent_pitch * element, 256),
        .keys = round_up(tokens * call->gather.key_pitch * element, 256),
        .expanded = round_up(tokens * outs * element, 256),
        .max = round_up(states, 256),
        .sum = round_up(states * 4, 256),
    };
}

static size_t scratch_of(const struct bt_mla_shape *shape, uint32_t rows, bool in_tiles)
{
    struct call call = call_of(shape, in_tiles);
    struct blocks blocks = blocks_of(&call, rows);
    return blocks.latents + blocks.keys + blocks.expanded + blocks.max + blocks.sum;
}

size_t bt_cuda_mla_prefill_scratch(const struct bt_cuda_stream *stream)
{
    const struct bt_mla_shape *shape = &stream->base.limits.mla;
    uint32_t rows = stream->base.limits.max_rows;
    uint32_t outs = shape->heads * (shape->qk_nope_head_dim + shape->v_head_dim);
    size_t in_rows = scratch_of(shape, rows, false) + bt_cuda_dense_bytes(outs);
    size_t in_tiles = scratch_of(shape, rows, true);
    if (shape->heads == 0)
        return 0;
    return in_rows > in_tiles ? in_rows : in_tiles;
}

static void take_scratch(struct call *call, uint32_t rows)
{
    struct blocks blocks = blocks_of(call, rows);
    bt_cuda_scratch_reset(call->stream);
    call->gather.latents = bt_cuda_scratch_take(call->stream, blocks.latents);
    call->gather.keys = bt_cuda_scratch_take(call->stream, blocks.keys);
    call->attend.expanded = bt_cuda_scratch_take(call->stream, blocks.expanded);
    call->attend.max = bt_cuda_scratch_take(call->stream, blocks.max);
    call->attend.sum = bt_cuda_scratch_take(call->stream, blocks.sum);
    call->attend.keys = call->gather.keys;
}

/* What kernel it is follows from the shape and the device. */
static enum kernel kernel_of(const struct call *call)
{
    const struct bt_cuda_prefill *shape = &call->attend;
    if (!call->in_tiles)
        return BY_F32;
    if (call->stream->device->arch == 90 &&
        bt_cuda_mla_prefill_wgmma_has(shape->nope, shape->rope, shape->v))
        return BY_WGMMA;
    return bt_cuda_mla_prefill_has(shape->nope, shape->rope, shape->v) ? BY_MMA : BY_F32;
}

/* Rows that are in a sequence; those behind them are padding, whose results are zeros. */
static uint32_t live_rows(const struct bt_sequence_rows *sequences, uint32_t sequence_count)
{
    uint32_t rows = 0;
    for (uint32_t s = 0; s < sequence_count; s++) {
        uint32_t end = sequences[s].first_row + sequences[s].row_count;
        rows = sequences[s].row_count && end > rows ? end : rows;
    }
    return rows;
}

void bt_cuda_mla_prefill(struct bt_stream *base, const float *q, const struct bt_mla_shape *shape,
                         const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                         uint32_t sequence_count, const struct bt_kv_layer *kv, float *out)
{
    struct call call = call_of(shape, kv_b->layout == BT_LAYOUT_TILES);
    uint32_t rows = live_rows(sequences, sequence_count);
    call.stream = bt_cuda_stream(base);
    call.kv_b = kv_b;
    call.kernel = kernel_of(&call);
    call.rows = bt_cuda_rows_of(call.stream, sequences, sequence_count);
    if (!bt_cuda_is_fine(call.stream))
        return;
    call.gather.pool = kv->data;
    call.gather.dtype = kv->dtype;
    call.gather.token_bytes = (uint32_t)bt_kv_token_size(kv);
    call.gather.rope_offset = (uint32_t)bt_kv_rope_offset(kv);
    call.attend.q = q;
    call.attend.out = out;
    take_scratch(&call, rows);
    run_rounds(&call, sequences, sequence_count);
    if (call.rows.rows > rows) {
        size_t row = (size_t)shape->heads * shape->v_head_dim;
        bt_cuda_launch_zero(out + rows * row, (call.rows.rows - rows) * row, call.stream->stream);
        (void)bt_cuda_ok(call.stream, cudaGetLastError());
    }
}
