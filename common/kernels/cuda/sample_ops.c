/* Drawing tokens: kernels.h. */
#include "common/kernels/cuda/sample.h"
#include "common/kernels/cuda/table.h"

_Static_assert(sizeof(struct bt_cuda_draw) == sizeof(struct bt_draw) &&
                   offsetof(struct bt_cuda_draw, seed) == offsetof(struct bt_draw, seed) &&
                   offsetof(struct bt_cuda_draw, position) == offsetof(struct bt_draw, position) &&
                   offsetof(struct bt_cuda_draw, temperature) ==
                       offsetof(struct bt_draw, temperature) &&
                   offsetof(struct bt_cuda_draw, top_p) == offsetof(struct bt_draw, top_p) &&
                   offsetof(struct bt_cuda_draw, min_p) == offsetof(struct bt_draw, min_p) &&
                   offsetof(struct bt_cuda_draw, top_k) == offsetof(struct bt_draw, top_k),
               "bt_cuda_draw is bt_draw");

static uint32_t parts_of(uint32_t vocab_size, uint32_t each)
{
    return (vocab_size + each - 1) / each;
}

size_t bt_cuda_draw_scratch(const struct bt_cuda_stream *stream)
{
    const struct bt_stream_limits *limits = &stream->base.limits;
    size_t rows = limits->max_rows;
    return rows * parts_of(limits->vocab_size, BT_CUDA_SAMPLE_BLOCK) * sizeof(uint32_t) +
           rows * parts_of(limits->vocab_size, BT_CUDA_SAMPLE_SLICE) * sizeof(uint64_t) + 2 * 256;
}

void bt_cuda_draw(struct bt_stream *stream, const float *logits, uint32_t rows, uint32_t vocab_size,
                  const struct bt_draw *draws, uint32_t *tokens)
{
    struct bt_cuda_stream *cuda = bt_cuda_stream(stream);
    BT_ASSERT(rows <= stream->limits.max_rows && vocab_size <= stream->limits.vocab_size);
    if (rows == 0)
        return;
    struct bt_cuda_sample sample = {
        .logits = logits,
        .draws = (const struct bt_cuda_draw *)(const void *)bt_cuda_draws_of(cuda, draws, rows),
        .rows = rows,
        .vocab_size = vocab_size,
        .blocks = parts_of(vocab_size, BT_CUDA_SAMPLE_BLOCK),
        .slices = parts_of(vocab_size, BT_CUDA_SAMPLE_SLICE),
        .tokens = tokens,
        .kept = bt_cuda_drawn(cuda),
    };
    bt_cuda_scratch_reset(cuda);
    sample.maxima =
        bt_cuda_scratch_take(cuda, (size_t)rows * sample.blocks * sizeof(*sample.maxima));
    sample.sums = bt_cuda_scratch_take(cuda, (size_t)rows * sample.slices * sizeof(*sample.sums));
    bt_cuda_launch_sample_maxima(&sample, cuda->stream);
    bt_cuda_launch_sample_sums(&sample, cuda->stream);
    bt_cuda_launch_sample_draw(&sample, cuda->stream);
}
