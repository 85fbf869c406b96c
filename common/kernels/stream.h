/*
 * The inside of a stream, for the backends: one arena that each operation divides anew. It is sized
 * at creation to the largest need of any operation of any backend within the limits, so that taking
 * from it can't fail; an operation outside the limits is a programmer's error and asserts.
 */
#ifndef BATON_COMMON_KERNELS_STREAM_H
#define BATON_COMMON_KERNELS_STREAM_H

#include "common/kernels/kernels.h"

#define BT_SCRATCH_ALIGN 64

struct bt_stream {
    struct bt_stream_limits limits;
    struct bt_team *team; /* may be NULL */
    unsigned char *arena;
    size_t arena_bytes;
    size_t used_bytes;
};

/* INVALID_ARGUMENT names the limit that is nonsense. For every backend's streams. */
enum bt_status bt_stream_check_limits(const struct bt_stream_limits *limits,
                                      struct bt_error *error);

/* What one block of `count` elements takes out of the arena. */
static inline size_t bt_scratch_bytes(size_t count, size_t element_bytes)
{
    return (count * element_bytes + BT_SCRATCH_ALIGN - 1) / BT_SCRATCH_ALIGN * BT_SCRATCH_ALIGN;
}

/* An operation calls this first: the whole arena is free again. */
static inline void bt_scratch_reset(struct bt_stream *stream)
{
    stream->used_bytes = 0;
}

/* Aligned to BT_SCRATCH_ALIGN, contents undefined, valid until the operation returns. */
static inline void *bt_scratch_take(struct bt_stream *stream, size_t count, size_t element_bytes)
{
    size_t bytes = bt_scratch_bytes(count, element_bytes);
    BT_ASSERT(bytes <= stream->arena_bytes - stream->used_bytes);
    void *block = stream->arena + stream->used_bytes;
    stream->used_bytes += bytes;
    return block;
}

#endif
