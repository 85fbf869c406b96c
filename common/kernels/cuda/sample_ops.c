/* Drawing tokens: kernels.h. */
#include "common/kernels/cuda/sample.h"
#include "common/kernels/cuda/table.h"

#define SAME(field) offsetof(struct bt_cuda_draw, field) == offsetof(struct bt_draw, field)
_Static_assert(sizeof(struct bt_cuda_draw) == sizeof(struct bt_draw) && SAME(seed) &&
                   SAME(position) && SAME(temperature) && SAME(top_p) && SAME(min_p) &&
                   SAME(top_k) && SAME(logprobs) && SAME(adjust_begin) && SAME(bias_count) &&
                   SAME(masked_count) && SAME(seen_count) && SAME(repetition) && SAME(presence) &&
                   SAME(frequency) && SAME(newest) && SAME(newest_token),
               "bt_cuda_draw is bt_draw");
#undef SAME
_Static_assert(sizeof(struct bt_cuda_adjust) == sizeof(struct bt_adjust) &&
                   offsetof(struct bt_cuda_adjust, value) == offsetof(struct bt_adjust, bias) &&
                   offsetof(struct bt_cuda_adjust, value) == offsetof(struct bt_adjust, outputs),
               "bt_cuda_adjust is bt_adjust");
#define SAME(field) offsetof(struct bt_cuda_logprobs, field) == offsetof(struct bt_logprobs, field)
_Static_assert(sizeof(struct bt_cuda_logprobs) == sizeof(struct bt_logprobs) && SAME(sum) &&
                   SAME(best) && SAME(logit) && SAME(top_count) && SAME(top[0].token) &&
                   SAME(top[0].logit) && SAME(top[1].token) && BT_CUDA_MAX_TOP == BT_DRAW_MAX_TOP,
               "bt_cuda_logprobs is bt_logprobs");
#undef SAME

static uint32_t parts_of(uint32_t vocab_size, uint32_t each)
{
    return (vocab_size + each - 1) / each;
}

size_t bt_cuda_draw_scratch(const struct bt_cuda_stream *stream)
{
    const struct bt_stream_limits *limits = &stream->base.limits;
    size_t rows = limits->max_rows;
    return rows * parts_of(limits->vocab_size, BT_CUDA_SAMPLE_BLOCK) * sizeof(uint32_t) +
           rows * parts_of(limits->vocab_size, BT_CUDA_SAMPLE_SLICE) * sizeof(uint64_t) +
           rows * sizeof(struct bt_cuda_adjusted) + limits->max_adjusts * sizeof(float) + 4 * 256;
}

/* Kernels that do nothing for a row leave it at once: one graph is that of all draws. */
void bt_cuda_draw(struct bt_stream *stream, float *logits, uint32_t rows, uint32_t vocab_size,
                  const struct bt_draw *draws, const struct bt_adjust *adjusts, uint32_t *tokens,
                  struct bt_logprobs *logprobs)
{
    struct bt_cuda_stream *cuda = bt_cuda_stream(stream);
    const struct bt_stream_limits *limits = &stream->limits;
    BT_ASSERT(rows <= limits->max_rows && vocab_size <= limits->vocab_size);
    if (rows == 0)
        return;
    const struct bt_cuda_draws there = bt_cuda_draws_of(cuda, draws, adjusts, rows);
    if (!bt_cuda_is_fine(cuda))
        return;
    struct bt_cuda_sample sample = {
        .logits = logits,
        .draws = (const struct bt_cuda_draw *)(const void *)there.draws,
        .adjusts = (const struct bt_cuda_adjust *)(const void *)there.adjusts,
        .rows = rows,
        .vocab_size = vocab_size,
        .blocks = parts_of(vocab_size, BT_CUDA_SAMPLE_BLOCK),
        .slices = parts_of(vocab_size, BT_CUDA_SAMPLE_SLICE),
        .tokens = tokens,
        .kept = bt_cuda_drawn(cuda),
        .logprobs = (struct bt_cuda_logprobs *)(void *)logprobs,
    };
    bt_cuda_scratch_reset(cuda);
    sample.maxima =
        bt_cuda_scratch_take(cuda, (size_t)rows * sample.blocks * sizeof(*sample.maxima));
    sample.sums = bt_cuda_scratch_take(cuda, (size_t)rows * sample.slices * sizeof(*sample.sums));
    sample.newest = bt_cuda_scratch_take(cuda, rows * sizeof(*sample.newest));
    sample.before = bt_cuda_scratch_take(cuda, limits->max_adjusts * sizeof(*sample.before));
    if (logprobs) {
        sample.raw = true;
        bt_cuda_launch_sample_maxima(&sample, cuda->stream);
        bt_cuda_launch_sample_sums(&sample, cuda->stream);
        bt_cuda_launch_sample_logprobs(&sample, cuda->stream);
        sample.raw = false;
    }
    bt_cuda_launch_sample_adjust(&sample, cuda->stream);
    bt_cuda_launch_sample_maxima(&sample, cuda->stream);
    bt_cuda_launch_sample_sums(&sample, cuda->stream);
    bt_cuda_launch_sample_draw(&sample, cuda->stream);
}
