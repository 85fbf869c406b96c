/*
 * Weights are read (from the mapped checkpoint) and converted by the threads of the stream's team
 * into one of two pinned buffers, while the GPU fetches what is in the other: reading, conversion
 * and transfer overlap, and only who needs a buffer that is still being fetched waits for it.
 */
#include "common/kernels/cuda/pack.h"

#include <stdlib.h>

#include "common/kernels/cuda/device_ops.h"
#include "common/kernels/cuda/table.h"
#include "common/kernels/cuda/weights.h"
#include "common/kernels/team.h"

#define BUFFERS     2
#define ALIGN_BYTES ((size_t)256)

struct buffer {
    unsigned char *memory; /* pinned */
    size_t bytes, used_bytes;
    cudaEvent_t fetched;
    bool is_fetching;
};

struct bt_cuda_staging {
    struct buffer buffers[BUFFERS];
    unsigned current; /* that is being filled */
};

/* ---- buffers ---- */

static bool staging_create(struct bt_cuda_stream *stream)
{
    stream->staging = calloc(1, sizeof(*stream->staging));
    if (!stream->staging)
        return bt_cuda_ok(stream, cudaErrorMemoryAllocation);
    for (unsigned i = 0; i < BUFFERS; i++) {
        cudaEvent_t *event = &stream->staging->buffers[i].fetched;
        if (!bt_cuda_ok(stream, cudaEventCreateWithFlags(event, cudaEventDisableTiming)))
            return false;
    }
    return true;
}

void bt_cuda_staging_destroy(struct bt_cuda_stream *stream)
{
    struct bt_cuda_staging *staging = stream->staging;
    for (unsigned i = 0; staging && i < BUFFERS; i++) {
        struct buffer *buffer = &staging->buffers[i];
        if (buffer->fetched)
            bt_cuda_let_go(cudaEventDestroy(buffer->fetched));
        if (buffer->memory)
            bt_cuda_let_go(cudaFreeHost(buffer->memory));
    }
    free(staging);
    stream->staging = NULL;
}

/* Nobody reads it any more, and it has room. */
static bool make_ready(struct bt_cuda_stream *stream, struct buffer *buffer, size_t bytes)
{
    void *memory = NULL;
    if (buffer->is_fetching) {
        bt_cuda_count_wait(stream->device);
        if (!bt_cuda_ok(stream, cudaEventSynchronize(buffer->fetched)))
            return false;
        buffer->is_fetching = false;
    }
    if (buffer->bytes >= bytes)
        return true;
    if (buffer->memory)
        bt_cuda_let_go(cudaFreeHost(buffer->memory));
    *buffer = (struct buffer){.fetched = buffer->fetched};
    bytes = bytes > BT_CUDA_STAGING_BYTES ? bytes : BT_CUDA_STAGING_BYTES;
    if (!bt_cuda_ok(stream, cudaHostAlloc(&memory, bytes, cudaHostAllocPortable)))
        return false;
    buffer->memory = memory;
    buffer->bytes = bytes;
    return true;
}

/* It is full: the other one is next. */
static struct buffer *turn_over(struct bt_cuda_stream *stream)
{
    struct bt_cuda_staging *staging = stream->staging;
    struct buffer *full = &staging->buffers[staging->current];
    full->is_fetching = bt_cuda_ok(stream, cudaEventRecord(full->fetched, stream->stream));
    full->used_bytes = 0;
    staging->current = (staging->current + 1) % BUFFERS;
    return &staging->buffers[staging->current];
}

/* Room to fill next, behind what was filled before; NULL after a fault. */
static unsigned char *take_room(struct bt_cuda_stream *stream, size_t bytes)
{
    if (stream->fault != cudaSuccess || (!stream->staging && !staging_create(stream)))
        return NULL;
    struct buffer *buffer = &stream->staging->buffers[stream->staging->current];
    bytes = (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    if (buffer->used_bytes > 0 && bytes > buffer->bytes - buffer->used_bytes)
        buffer = turn_over(stream);
    if (buffer->used_bytes == 0 && !make_ready(stream, buffer, bytes))
        return NULL;
    unsigned char *room = buffer->memory + buffer->used_bytes;
    buffer->used_bytes += bytes;
    return room;
}

/* ---- packing ---- */

struct job {
    const struct bt_matrix *matrix;
    enum bt_use use;
    const struct bt_mla_shape *shape;
    size_t chunk_bytes;
    uint32_t first;
    unsigned char *out;
};

static void pack_chunk(void *context, uint32_t part, uint32_t thread)
{
    const struct job *job = context;
    (void)thread;
    bt_cuda_pack_chunks(job->matrix, job->use, job->shape, job->first + part, 1,
                        job->out + part * job->chunk_bytes);
}

static bool send_chunks(struct bt_cuda_stream *stream, struct job *job,
                        const struct bt_cuda_layout *layout, unsigned char *out)
{
    size_t fit = BT_CUDA_STAGING_BYTES / layout->chunk_bytes;
    uint32_t each = fit > 0 ? (uint32_t)fit : 1;
    for (job->first = 0; job->first < layout->chunks; job->first += each) {
        uint32_t left = layout->chunks - job->first, count = left < each ? left : each;
        job->out = take_room(stream, count * layout->chunk_bytes);
        if (!job->out)
            return false;
        bt_team_run(stream->base.team, pack_chunk, job, count);
        bt_cuda_copy(&stream->base, out + job->first * layout->chunk_bytes, job->out,
                     count * layout->chunk_bytes);
    }
    return true;
}

size_t bt_cuda_packed_bytes(const struct bt_matrix *matrix, enum bt_use use,
                            const struct bt_mla_shape *shape)
{
    return bt_cuda_layout_of(matrix, use, shape).bytes;
}

void bt_cuda_pack(struct bt_stream *base, const struct bt_matrix *matrix, enum bt_use use,
                  const struct bt_mla_shape *shape, void *out, struct bt_matrix *ret_packed)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    const struct bt_cuda_layout layout = bt_cuda_layout_of(matrix, use, shape);
    size_t rest = layout.bytes - layout.scales_offset;
    struct job job = {
        .matrix = matrix, .use = use, .shape = shape, .chunk_bytes = layout.chunk_bytes};
    unsigned char *room = NULL;
    if (layout.dtype == BT_F8_E4M3)
        bt_cuda_f8_note(stream->device, matrix->rows, layout.pitch);
    if (send_chunks(stream, &job, &layout, out) && rest > 0)
        room = take_room(stream, rest);
    if (room) {
        bt_cuda_pack_scales(matrix, use, shape, room);
        bt_cuda_copy(base, (unsigned char *)out + layout.scales_offset, room, rest);
    }
    *ret_packed = bt_cuda_packed_at(matrix, use, shape, out);
}
