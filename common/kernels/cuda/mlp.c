/*
 * Dense networks, shared experts among them: kernels.h. In runs of rows, so that scratch is
 * bounded; no row's bits depend on them.
 *
 * Each run reads all weights anew, and its last tiles leave multiprocessors idle. Computed for H100
 * SXM, 1024 rows: shared experts of V2-Lite (2048 x 2816, bf16) are 36 us of products for 10 us of
 * weights, but gate's and up's outputs only 88 tiles of 128 x 256 for 132 multiprocessors; V3's
 * dense layers (7168 x 18432, e4m3) 410 us for 118 us. So runs are as long as the scratch of other
 * operations lets them, of which routed experts have most; LEAST_ROWS whatever those need.
 */
#include "common/kernels/cuda/grouped_gemm.h"
#include "common/kernels/cuda/silu.h"
#include "common/kernels/cuda/table.h"

#define LEAST_ROWS 1024
#define RUN_UNIT   64 /* rows: keeps those of the next run aligned, and whole fours of e4m3 */

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static size_t most(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t round_up(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

static size_t most_inputs(uint32_t rows, uint32_t cols)
{
    return most(bt_cuda_inputs_bytes(BT_BF16, rows, cols),
                most(bt_cuda_inputs_bytes(BT_F8_E4M3, rows, cols),
                     bt_cuda_inputs_bytes(BT_I8, rows, cols)));
}

size_t bt_cuda_mlp_scratch(const struct bt_cuda_stream *stream)
{
    const struct bt_stream_limits *limits = &stream->base.limits;
    uint32_t rows = least(limits->max_rows, LEAST_ROWS);
    uint32_t cols = (uint32_t)most(limits->max_cols, limits->hidden);
    return 2 * most_inputs(rows, cols) + 2 * round_up((size_t)rows * cols * sizeof(float)) +
           bt_cuda_dense_bytes(cols);
}

static size_t run_bytes(const struct bt_mlp *mlp, uint32_t rows)
{
    uint32_t inner = mlp->gate.rows;
    return bt_cuda_inputs_bytes(bt_cuda_input_dtype(&mlp->gate), rows, mlp->gate.cols) +
           bt_cuda_inputs_bytes(bt_cuda_input_dtype(&mlp->down), rows, inner) +
           2 * round_up((size_t)rows * inner * sizeof(float)) +
           bt_cuda_dense_bytes((uint32_t)most(inner, mlp->down.rows));
}

/* Of runs of about the same length, as few as there is room for. */
static uint32_t run_length(const struct bt_cuda_stream *stream, const struct bt_mlp *mlp,
                           uint32_t rows)
{
    uint32_t run = rows;
    for (uint32_t runs = 2; run_bytes(mlp, run) > stream->scratch_bytes; runs++) {
        BT_ASSERT(run > RUN_UNIT);
        run = ((rows + runs - 1) / runs + RUN_UNIT - 1) / RUN_UNIT * RUN_UNIT;
    }
    return run;
}

static void run_rows(struct bt_cuda_stream *stream, const float *x, uint32_t rows,
                     const struct bt_mlp *mlp, float *out)
{
    uint32_t inner = mlp->gate.rows;
    size_t bytes = (size_t)rows * inner * sizeof(float);
    bt_cuda_scratch_reset(stream);
    struct bt_cuda_inputs in = bt_cuda_inputs_of(stream, &mlp->gate, x, rows);
    struct bt_cuda_inputs middle =
        bt_cuda_inputs_take(stream, bt_cuda_input_dtype(&mlp->down), rows, inner);
    float *gate = bt_cuda_scratch_take(stream, bytes), *up = bt_cuda_scratch_take(stream, bytes);
    if (middle.dtype == BT_F32)
        middle.data = gate;
    bt_cuda_dense(stream, &in, rows, &mlp->gate, BT_F32, gate);
    bt_cuda_dense(stream, &in, rows, &mlp->up, BT_F32, up);
    bt_cuda_launch_silu(gate, up, rows, NULL, &middle, stream->device->multiprocessors,
                        stream->stream);
    bt_cuda_dense(stream, &middle, rows, &mlp->down, BT_F32, out);
}

void bt_cuda_mlp(struct bt_stream *stream, const float *x, uint32_t rows, const struct bt_mlp *mlp,
                 float *out)
{
    BT_ASSERT(rows <= stream->limits.max_rows && mlp->up.rows == mlp->gate.rows &&
              mlp->down.cols == mlp->gate.rows && mlp->up.cols == mlp->gate.cols);
    BT_ASSERT(bt_cuda_input_dtype(&mlp->up) == bt_cuda_input_dtype(&mlp->gate));
    if (!bt_cuda_is_fine(bt_cuda_stream(stream)))
        return;
    uint32_t run = run_length(bt_cuda_stream(stream), mlp, rows);
    for (uint32_t first = 0; first < rows; first += run)
        run_rows(bt_cuda_stream(stream), x + (size_t)first * mlp->gate.cols,
                 least(rows - first, run), mlp, out + (size_t)first * mlp->down.rows);
}
