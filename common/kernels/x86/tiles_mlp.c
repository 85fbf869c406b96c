/* Dense MLPs with weights in tiles. */
#include "common/kernels/x86/ffn.h"
#include "common/kernels/x86/tables.h"

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Rows in jobs of about the same size: only a job of all rows can have less than 16, and others are
 * stored as they were packed. */
static void add_rows(struct bt_ffn *ffn, const struct bt_mlp *mlp, const uint32_t *numbers,
                     size_t rows)
{
    size_t jobs = bt_tiles_of(rows, BT_FFN_JOB_ROWS);
    size_t each = bt_ffn_stored(bt_tiles_of(rows, jobs));
    for (size_t row = 0; row < rows; row += each) {
        struct bt_ffn_job job = {
            &mlp->gate, &mlp->up, &mlp->down, numbers + row, least(rows - row, each), 0};
        bool added = BT_X86_NAME(ffn_add)(ffn, job);
        BT_ASSERT(added);
    }
}

void BT_X86_NAME(mlp)(struct bt_stream *stream, const float *x, uint32_t rows,
                      const struct bt_mlp *mlp, float *out)
{
    if (mlp->gate.layout == BT_LAYOUT_ROWS) {
        BT_X86_ROWS(rows_mlp)(stream, x, rows, mlp, out);
        return;
    }
    struct bt_ffn ffn = {.stream = stream,
                         .inputs = mlp->gate.cols,
                         .inner = mlp->gate.rows,
                         .outs = mlp->down.rows,
                         .per_row = 1,
                         .in_dtype = mlp->gate.dtype,
                         .inner_dtype = mlp->down.dtype};
    uint32_t numbers[BT_FFN_BLOCK_ROWS];
    for (uint32_t i = 0; i < BT_FFN_BLOCK_ROWS; i++)
        numbers[i] = i;
    bt_scratch_reset(stream);
    size_t at_once = least(rows, BT_FFN_BLOCK_ROWS);
    BT_X86_NAME(ffn_take)(&ffn, at_once, at_once);
    void *in = ffn.in;
    for (size_t first = 0; first < rows; first += BT_FFN_BLOCK_ROWS) {
        size_t count = least(rows - first, BT_FFN_BLOCK_ROWS);
        ffn.in = count < 16 ? in : ffn.x;
        ffn.out = out + first * ffn.outs;
        BT_X86_NAME(ffn_pack)(&ffn, x + first * ffn.inputs, count);
        add_rows(&ffn, mlp, numbers, count);
        BT_X86_NAME(ffn_run)(&ffn);
    }
}
