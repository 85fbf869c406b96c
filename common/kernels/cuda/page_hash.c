#include "common/kernels/cuda/page_hash.h"

#include "common/kernels/cuda/table.h"

void bt_cuda_hash_pages(struct bt_stream *stream, const void *base,
                        const struct bt_page_span *spans, uint32_t count, uint64_t *sums)
{
    struct bt_cuda_stream *s = bt_cuda_stream(stream);
    if (!bt_cuda_is_fine(s))
        return;
    bt_cuda_launch_page_hash(base, spans, count, sums, s->stream);
    (void)bt_cuda_is_fine(s);
}
