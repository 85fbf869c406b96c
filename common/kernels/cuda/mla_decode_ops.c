/*
 * Decode's attention, a group of rows after the other: queries to the latent space, pieces, their
 * joining, results out of it. With kv_b in TILES both ends are products of bf16, a head a batch; in
 * ROWS all is f32. Which kernel takes the pieces follows from shape, pool and device, not from the
 * rows.
 */
#include "common/kernels/cuda/mla_decode.h"
#include "common/kernels/cuda/mla_decode_wgmma.h"
#include "common/kernels/cuda/table.h"
#include "common/kernels/cuda/weights.h"
#include "common/kernels/weight.h"

#define LOG2_E 0x1.715476p+0f

static uint32_t round_up(uint32_t count, uint32_t to)
{
    return (count + to - 1) / to * to;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t query_pitch(const struct bt_mla_shape *shape)
{
    return round_up(shape->kv_lora_rank + shape->qk_rope_head_dim, 16);
}

static uint32_t result_pitch(const struct bt_mla_shape *shape)
{
    return round_up(shape->kv_lora_rank, 16);
}

static uint32_t nope_pitch(const struct bt_mla_shape *shape)
{
    return round_up(shape->qk_nope_head_dim, 8);
}

/* Of one group, in the larger arithmetic. */
size_t bt_cuda_mla_decode_scratch(const struct bt_cuda_stream *stream)
{
    const struct bt_stream_limits *limits = &stream->base.limits;
    const struct bt_mla_shape *shape = &limits->mla;
    size_t rows = least(limits->max_rows, BT_CUDA_PIECE_ROWS), heads = rows * shape->heads;
    size_t pieces = bt_cuda_group_pieces(limits->max_rows, limits->max_page_numbers);
    size_t bytes = heads * (query_pitch(shape) + result_pitch(shape)) * sizeof(float) +
                   heads * nope_pitch(shape) * sizeof(uint16_t) +
                   heads * round_up(shape->v_head_dim, 8) * sizeof(float) +
                   pieces * shape->heads * (shape->kv_lora_rank + 2) * sizeof(float);
    return bytes + (size_t)6 * 256; /* each is rounded up */
}

/* Tensor cores: what mla_decode.cu says of shapes; pages are copied 16 bytes at a time. */
static bool takes_tensor_cores(const struct bt_cuda_mla_decode *call)
{
    return call->is_rounded && (call->kv_lora_rank == 512 || call->kv_lora_rank == 64) &&
           call->qk_rope_head_dim % 8 == 0 && call->qk_rope_head_dim <= 64 &&
           (uintptr_t)call->pages % 16 == 0;
}

/* Hopper's: what mla_decode_wgmma.cu says. */
static bool takes_wgmma(const struct bt_cuda_stream *stream, const struct bt_cuda_mla_decode *call)
{
    return stream->device->arch == 90 && takes_tensor_cores(call) && call->kv_lora_rank == 512 &&
           call->qk_rope_head_dim == 64 && call->pool != BT_F32;
}

static void launch_wgmma(struct bt_cuda_stream *stream, const struct bt_cuda_mla_decode *call,
                         uint32_t blocks)
{
    CUtensorMap map;
    memset(&map, 0, sizeof(map));
    if (call->pool != BT_BF16 ||
        bt_cuda_ok(stream,
                   bt_cuda_tensor_map(call->pages, call->kv_lora_rank + call->qk_rope_head_dim,
                                      BT_PAGE_TOKENS, &map)))
        bt_cuda_launch_mla_decode_wgmma(call, &map, blocks, stream->stream);
}

static void launch_pieces(struct bt_cuda_stream *stream, const struct bt_cuda_mla_decode *call)
{
    uint32_t most = call->rows.group_pieces * call->heads;
    uint32_t blocks = (uint32_t)stream->device->multiprocessors;
    if (takes_wgmma(stream, call))
        launch_wgmma(stream, call, least(most, blocks));
    else if (takes_tensor_cores(call))
        bt_cuda_launch_mla_decode(call, least(most, blocks), stream->stream);
    else
        bt_cuda_launch_mla_decode_plain(call, least(most, 8 * blocks), stream->stream);
    bt_cuda_launch_mla_combine(call, stream->stream);
}

/* ---- tile arithmetic ---- */

static void absorb(struct bt_cuda_stream *stream, const struct bt_cuda_mla_decode *call,
                   const float *q, struct bt_cuda_mla_dims dims, const struct bt_cuda_kv_b *kv_b)
{
    uint32_t pitch = kv_b->nope_rows, rows = call->row_count;
    uint16_t *nope =
        bt_cuda_scratch_take(stream, (size_t)rows * dims.heads * pitch * sizeof(*nope));
    bt_cuda_launch_mla_queries(q, rows, dims, nope, pitch, (uint16_t *)call->queries,
                               call->query_pitch, stream->stream);
    bt_cuda_product(stream, &(struct bt_cuda_product){
                                .in = BT_BF16,
                                .out_dtype = BT_BF16,
                                .m = rows,
                                .n = dims.lora,
                                .k = pitch,
                                .batch = dims.heads,
                                .x = nope,
                                .x_pitch = dims.heads * pitch,
                                .x_distance = pitch,
                                .weight = kv_b->keys,
                                .weight_pitch = kv_b->pitch,
                                .weight_distance = kv_b->distance,
                                .out = (void *)call->queries,
                                .out_pitch = dims.heads * call->query_pitch,
                                .out_distance = call->query_pitch,
                                .weight_is_k_major = false,
                            });
}

/* To out [row][head][pitch], `n` of each. */
static void multiply_values(struct bt_cuda_stream *stream, const struct bt_cuda_mla_decode *call,
                            uint32_t heads, const struct bt_cuda_kv_b *kv_b, uint32_t n, float *out)
{
    bt_cuda_product(stream, &(struct bt_cuda_product){
                                .in = BT_BF16,
                                .out_dtype = BT_F32,
                                .m = call->row_count,
                                .n = n,
                                .k = call->result_pitch,
                                .batch = heads,
                                .x = call->results,
                                .x_pitch = heads * call->result_pitch,
                                .x_distance = call->result_pitch,
                                .weight = kv_b->values,
                                .weight_pitch = kv_b->pitch,
                                .weight_distance = kv_b->distance,
                                .out = out,
                                .out_pitch = heads * n,
                                .out_distance = n,
                                .weight_is_k_major = true,
                            });
}

/* Heads that do not begin at multiples of 16 bytes get there by way of padded ones. */
static void give_back(struct bt_cuda_stream *stream, const struct bt_cuda_mla_decode *call,
                      struct bt_cuda_mla_dims dims, const struct bt_cuda_kv_b *kv_b, float *out)
{
    size_t heads = (size_t)call->row_count * dims.heads, bytes = dims.v * sizeof(float);
    size_t padded_bytes = kv_b->v_rows * sizeof(float);
    if (dims.v % 4 == 0) {
        multiply_values(stream, call, dims.heads, kv_b, dims.v, out);
        return;
    }
    float *padded = bt_cuda_scratch_take(stream, heads * padded_bytes);
    multiply_values(stream, call, dims.heads, kv_b, kv_b->v_rows, padded);
    bt_cuda_ok(stream, cudaMemcpy2DAsync(out, bytes, padded, padded_bytes, bytes, heads,
                                         cudaMemcpyDeviceToDevice, stream->stream));
}

/* ---- groups ---- */

/* Rows from `call->first_row` on; the group's memory is taken. q and out are the group's. */
static void run_group(struct bt_cuda_stream *stream, const struct bt_cuda_mla_decode *call,
                      const float *q, const struct bt_mla_shape *shape,
                      const struct bt_matrix *kv_b, float *out)
{
    struct bt_cuda_mla_dims dims = {shape->heads, shape->qk_nope_head_dim, shape->qk_rope_head_dim,
                                    shape->v_head_dim, shape->kv_lora_rank};
    uint32_t rows = call->row_count;
    if (call->is_rounded) {
        struct bt_cuda_kv_b operands = bt_cuda_kv_b_of(kv_b, shape);
        absorb(stream, call, q, dims, &operands);
        launch_pieces(stream, call);
        give_back(stream, call, dims, &operands, out);
        return;
    }
    struct bt_cuda_mla_weights weights = {kv_b->data, kv_b->dtype, kv_b->scales};
    BT_ASSERT(kv_b->dtype != BT_I8 && kv_b->dtype != BT_I4);
    bt_cuda_launch_mla_absorb(q, rows, dims, weights, (float *)call->queries, call->query_pitch,
                              stream->stream);
    launch_pieces(stream, call);
    bt_cuda_launch_mla_give_back(call->results, call->result_pitch, rows, dims, weights, out,
                                 stream->stream);
}

/* The memory of a group. */
static void take_scratch(struct bt_cuda_stream *stream, struct bt_cuda_mla_decode *call)
{
    size_t heads = (size_t)call->row_count * call->heads;
    size_t pieces = (size_t)call->rows.group_pieces * call->heads;
    size_t element = call->is_rounded ? sizeof(uint16_t) : sizeof(float);
    bt_cuda_scratch_reset(stream);
    call->queries = bt_cuda_scratch_take(stream, heads * call->query_pitch * element);
    call->results = bt_cuda_scratch_take(stream, heads * call->result_pitch * element);
    call->sums = bt_cuda_scratch_take(stream, pieces * call->kv_lora_rank * sizeof(float));
    call->states = bt_cuda_scratch_take(stream, pieces * 2 * sizeof(float));
}

void bt_cuda_mla_decode(struct bt_stream *base, const float *q, const struct bt_mla_shape *shape,
                        const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                        uint32_t sequence_count, const struct bt_kv_layer *kv, float *out)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    struct bt_cuda_mla_decode call = {
        .rows = bt_cuda_rows_of(stream, sequences, sequence_count),
        .is_rounded = kv_b->layout == BT_LAYOUT_TILES,
        .heads = shape->heads,
        .kv_lora_rank = shape->kv_lora_rank,
        .qk_rope_head_dim = shape->qk_rope_head_dim,
        .scale = shape->softmax_scale * LOG2_E,
        .query_pitch = query_pitch(shape),
        .result_pitch = result_pitch(shape),
        .pages = kv->data,
        .pool = kv->dtype,
        .token_bytes = (uint32_t)bt_kv_token_size(kv),
    };
    size_t q_row = (size_t)shape->heads * (shape->qk_nope_head_dim + shape->qk_rope_head_dim);
    size_t out_row = (size_t)shape->heads * shape->v_head_dim;
    for (uint32_t row = 0; row < call.rows.rows && bt_cuda_is_fine(stream); row += call.row_count) {
        call.first_row = row;
        call.row_count = least(call.rows.rows - row, BT_CUDA_PIECE_ROWS);
        take_scratch(stream, &call);
        run_group(stream, &call, q + row * q_row, shape, kv_b, out + row * out_row);
    }
}
