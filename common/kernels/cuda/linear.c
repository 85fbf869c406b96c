/* Dense and grouped products, by what a weight is and what it is multiplied by. */

#include "common/base/status.h"
#include "common/kernels/cuda/grouped_gemm_wgmma.h"
#include "common/kernels/cuda/product.h"

/* Up to so many outputs cuBLASLt multiplies e4m3: rows past a multiple of 4 go through scratch. */
#define F8_MAX_OUTS 262144

static uint32_t round_up(uint32_t count, uint32_t unit)
{
    return (count + unit - 1) / unit * unit;
}

/* ---- inputs ---- */

enum bt_dtype bt_cuda_input_dtype(const struct bt_matrix *weight)
{
    if (weight->layout == BT_LAYOUT_ROWS)
        return BT_F32;
    return weight->dtype == BT_I4 ? BT_I8 : weight->dtype;
}

uint32_t bt_cuda_input_pitch(enum bt_dtype dtype, uint32_t cols)
{
    return dtype == BT_F32 ? cols : round_up(cols, dtype == BT_BF16 ? 64 : 128);
}

static size_t scratch_bytes(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

static size_t scale_count(enum bt_dtype dtype, uint32_t rows, uint32_t cols)
{
    if (dtype == BT_F8_E4M3)
        return (size_t)round_up(rows, 4) * (round_up(cols, 128) / 128);
    return dtype == BT_I8 ? rows : 0;
}

static size_t data_bytes(enum bt_dtype dtype, uint32_t rows, uint32_t cols)
{
    return (size_t)round_up(rows, 4) * bt_cuda_input_pitch(dtype, cols) * bt_dtype_bytes(dtype);
}

size_t bt_cuda_inputs_bytes(enum bt_dtype dtype, uint32_t rows, uint32_t cols)
{
    if (dtype == BT_F32)
        return 0;
    return scratch_bytes(data_bytes(dtype, rows, cols)) +
           scratch_bytes(scale_count(dtype, rows, cols) * sizeof(float));
}

struct bt_cuda_inputs bt_cuda_inputs_take(struct bt_cuda_stream *stream, enum bt_dtype dtype,
                                          uint32_t rows, uint32_t cols)
{
    struct bt_cuda_inputs inputs = {.dtype = dtype,
                                    .cols = cols,
                                    .pitch = bt_cuda_input_pitch(dtype, cols),
                                    .head = rows / 4 * 4};
    if (dtype == BT_F32)
        return inputs;
    inputs.data = bt_cuda_scratch_take(stream, data_bytes(dtype, rows, cols));
    if (dtype != BT_BF16)
        inputs.scales =
            bt_cuda_scratch_take(stream, scale_count(dtype, rows, cols) * sizeof(float));
    return inputs;
}

struct bt_cuda_inputs bt_cuda_inputs_of(struct bt_cuda_stream *stream,
                                        const struct bt_matrix *weight, const float *x,
                                        uint32_t rows)
{
    struct bt_cuda_inputs inputs =
        bt_cuda_inputs_take(stream, bt_cuda_input_dtype(weight), rows, weight->cols);
    if (inputs.dtype == BT_F32)
        inputs.data = (void *)(uintptr_t)x;
    else
        bt_cuda_launch_quantise_rows(x, NULL, 1, rows, NULL, &inputs, stream->stream);
    return inputs;
}

/* ---- own kernels ---- */

static void check_packed(const struct bt_matrix *weight, const struct bt_cuda_layout *layout)
{
    const char *data = weight->data;
    BT_ASSERT(weight->dtype == layout->dtype && (uintptr_t)data % 16 == 0);
    BT_ASSERT(!layout->scales_bytes ||
              (const char *)weight->scales == data + layout->scales_offset);
    BT_ASSERT(!layout->group_scales_bytes ||
              (const char *)weight->group_scales == data + layout->group_scales_offset);
}

/* The first group that is here; NULL: none. */
static const struct bt_matrix *first_here(const struct bt_cuda_grouped *gemm)
{
    for (uint32_t e = 0; e < gemm->groups; e++)
        if (gemm->weights[0][e].data)
            return &gemm->weights[0][e];
    return NULL;
}

static void fill_weights(const struct bt_cuda_grouped *gemm, const struct bt_matrix *like,
                         const struct bt_cuda_layout *layout, struct bt_cuda_grouped_call *call)
{
    for (uint32_t w = 0; w < call->weights; w++) {
        for (uint32_t e = 0; e < gemm->groups; e++) {
            const struct bt_matrix *weight = &gemm->weights[w][e];
            call->data[w][e] = weight->data;
            if (!weight->data)
                continue;
            BT_ASSERT(weight->rows == like->rows && weight->cols == like->cols &&
                      weight->dtype == like->dtype && weight->layout == like->layout);
            if (weight->layout == BT_LAYOUT_TILES)
                check_packed(weight, layout);
        }
    }
}

typedef void launch_fn(const struct bt_cuda_grouped_call *call, int multiprocessors,
                       cudaStream_t stream);

/* Few rows and many: the same launch, so that a row's bits stay. */
static launch_fn *launch_of(const struct bt_matrix *weight, int arch)
{
    bool wgmma = arch == 90;
    if (weight->layout == BT_LAYOUT_ROWS)
        return bt_cuda_launch_grouped_gemm_f32;
    if (weight->dtype == BT_BF16)
        return wgmma ? bt_cuda_launch_grouped_gemm_bf16_wgmma : bt_cuda_launch_grouped_gemm_bf16;
    if (weight->dtype == BT_F8_E4M3)
        return wgmma ? bt_cuda_launch_grouped_gemm_f8_wgmma : bt_cuda_launch_grouped_gemm_f8;
    if (weight->dtype == BT_I8)
        return wgmma ? bt_cuda_launch_grouped_gemm_i8_wgmma : bt_cuda_launch_grouped_gemm_i8;
    return wgmma ? bt_cuda_launch_grouped_gemm_i4_wgmma : bt_cuda_launch_grouped_gemm_i4;
}

void bt_cuda_grouped_gemm(struct bt_cuda_stream *stream, const struct bt_cuda_grouped *gemm)
{
    const struct bt_matrix *weight = first_here(gemm);
    BT_ASSERT(gemm->groups <= BT_CUDA_MAX_GROUPS);
    if (!weight || gemm->rows == 0)
        return;
    struct bt_cuda_layout layout = {.dtype = weight->dtype};
    if (weight->layout == BT_LAYOUT_TILES)
        layout = bt_cuda_layout_of(weight, BT_USE_LINEAR, NULL);
    BT_ASSERT(gemm->x.dtype == bt_cuda_input_dtype(weight) && gemm->x.cols == weight->cols);
    struct bt_cuda_grouped_call call = {.x = gemm->x.data,
                                        .x_scales = gemm->x.scales,
                                        .picks = gemm->picks,
                                        .begin = gemm->begin,
                                        .out = {gemm->out[0], gemm->out[1]},
                                        .rows = gemm->rows,
                                        .groups = gemm->groups,
                                        .weights = gemm->weights[1] ? 2 : 1,
                                        .per_row = gemm->per_row,
                                        .cols = weight->cols,
                                        .outs = weight->rows,
                                        .x_pitch = gemm->x.pitch,
                                        .head = gemm->x.head,
                                        .rounds = gemm->out_dtype == BT_BF16,
                                        .float_dtype = (uint8_t)weight->dtype,
                                        .scales_offset = layout.scales_offset,
                                        .group_scales_offset = layout.group_scales_offset};
    fill_weights(gemm, weight, &layout, &call);
    launch_of(weight, stream->device->arch)(&call, stream->device->multiprocessors, stream->stream);
}

/* ---- dense products ---- */

size_t bt_cuda_dense_bytes(uint32_t outs)
{
    return outs <= F8_MAX_OUTS ? scratch_bytes((size_t)4 * outs * sizeof(float)) : 0;
}

static struct bt_cuda_product product_of(const struct bt_cuda_inputs *x, uint32_t rows,
                                         const struct bt_matrix *weight, enum bt_dtype out_dtype,
                                         void *out)
{
    return (struct bt_cuda_product){.in = x->dtype,
                                    .out_dtype = out_dtype,
                                    .m = rows,
                                    .n = weight->rows,
                                    .k = x->pitch, /* zeros on both sides */
                                    .batch = 1,
                                    .x = x->data,
                                    .weight = weight->data,
                                    .out = out,
                                    .x_pitch = x->pitch,
                                    .weight_pitch = x->pitch,
                                    .out_pitch = weight->rows,
                                    .weight_is_k_major = true};
}

/* The last one to three rows of e4m3, of which cuBLASLt multiplies four. */
static bool multiply_tail(struct bt_cuda_stream *stream, const struct bt_cuda_product *whole,
                          const struct bt_cuda_inputs *x, uint32_t rows,
                          const struct bt_matrix *weight)
{
    size_t used = stream->used_bytes, element = bt_dtype_bytes(whole->out_dtype);
    struct bt_cuda_product tail = *whole;
    struct bt_cuda_product_scales scales = {
        weight->scales, x->scales + (size_t)x->head * (x->pitch / BT_CUDA_SCALE_BLOCK)};
    tail.m = 4;
    tail.x = (const char *)x->data + (size_t)x->head * x->pitch;
    tail.out = bt_cuda_scratch_take(stream, 4 * tail.n * element);
    stream->used_bytes = used; /* what comes next comes after it */
    if (!bt_cuda_product_try(stream, &tail, &scales))
        return false;
    (void)bt_cuda_ok(stream,
                     cudaMemcpyAsync((char *)whole->out + (size_t)x->head * tail.n * element,
                                     tail.out, (rows - x->head) * tail.n * element,
                                     cudaMemcpyDeviceToDevice, stream->stream));
    return true;
}

bool bt_cuda_f8_shape_is_fine(uint32_t outs)
{
    return outs % 16 == 0 && outs <= F8_MAX_OUTS;
}

/* By cuBLASLt on Hopper, whose scales these are. */
static bool multiply_f8(struct bt_cuda_stream *stream, const struct bt_cuda_inputs *x,
                        uint32_t rows, const struct bt_matrix *weight, enum bt_dtype out_dtype,
                        void *out)
{
    struct bt_cuda_product whole = product_of(x, x->head, weight, out_dtype, out);
    struct bt_cuda_product_scales scales = {weight->scales, x->scales};
    if (stream->device->arch != 90 || !bt_cuda_f8_shape_is_fine(weight->rows) ||
        __atomic_load_n(&stream->device->f8.way, __ATOMIC_RELAXED) == BT_CUDA_F8_OWN)
        return false;
    BT_ASSERT(x->head == rows / 4 * 4);
    if (x->head && !bt_cuda_product_try(stream, &whole, &scales))
        return false;
    return rows == x->head || multiply_tail(stream, &whole, x, rows, weight);
}

void bt_cuda_dense(struct bt_cuda_stream *stream, const struct bt_cuda_inputs *x, uint32_t rows,
                   const struct bt_matrix *weight, enum bt_dtype out_dtype, void *out)
{
    if (rows == 0)
        return;
    if (weight->layout == BT_LAYOUT_TILES && weight->dtype == BT_BF16) {
        struct bt_cuda_product product = product_of(x, rows, weight, out_dtype, out);
        if (bt_cuda_product_try(stream, &product, NULL))
            return;
    } else if (weight->layout == BT_LAYOUT_TILES && weight->dtype == BT_F8_E4M3 &&
               multiply_f8(stream, x, rows, weight, out_dtype, out)) {
        return;
    }
    bt_cuda_grouped_gemm(stream, &(struct bt_cuda_grouped){.x = *x,
                                                           .weights = {weight},
                                                           .out = {out},
                                                           .out_dtype = out_dtype,
                                                           .groups = 1,
                                                           .rows = rows});
}

/* Rows of one call are quantised once for each dtype that is needed. */
void bt_cuda_linear(struct bt_stream *stream, const float *x, uint32_t rows,
                    const struct bt_linear *linears, uint32_t linear_count)
{
    struct bt_cuda_stream *cuda = bt_cuda_stream(stream);
    struct bt_cuda_inputs inputs[BT_I4 + 1];
    bool is_there[BT_I4 + 1] = {false};
    if (rows == 0 || !bt_cuda_is_fine(cuda))
        return;
    bt_cuda_scratch_reset(cuda);
    for (uint32_t i = 0; i < linear_count; i++) {
        const struct bt_matrix *weight = linears[i].weight;
        enum bt_dtype dtype = bt_cuda_input_dtype(weight);
        BT_ASSERT(weight->cols == linears[0].weight->cols);
        if (!is_there[dtype])
            inputs[dtype] = bt_cuda_inputs_of(cuda, weight, x, rows);
        is_there[dtype] = true;
        bt_cuda_dense(cuda, &inputs[dtype], rows, weight, BT_F32, linears[i].out);
    }
}

size_t bt_cuda_linear_scratch(const struct bt_cuda_stream *stream)
{
    const struct bt_stream_limits *limits = &stream->base.limits;
    uint32_t cols = limits->max_cols > limits->hidden ? limits->max_cols : limits->hidden;
    return bt_cuda_inputs_bytes(BT_BF16, limits->max_rows, cols) +
           bt_cuda_inputs_bytes(BT_F8_E4M3, limits->max_rows, cols) +
           bt_cuda_inputs_bytes(BT_I8, limits->max_rows, cols) + bt_cuda_dense_bytes(F8_MAX_OUTS);
}
