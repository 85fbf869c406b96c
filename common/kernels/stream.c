#include "common/kernels/stream.h"

#include <stdint.h>
#include <stdlib.h>

#include "common/kernels/ref/ref.h"
#ifdef BT_HAVE_X86_KERNELS
#include "common/kernels/x86/x86.h"
#endif

static size_t arena_bytes(const struct bt_stream_limits *limits, uint32_t threads)
{
    size_t bytes = bt_ref_scratch_bytes(limits);
#ifdef BT_HAVE_X86_KERNELS
    size_t x86_bytes = bt_x86_scratch_bytes(limits, threads);
    if (x86_bytes > bytes)
        bytes = x86_bytes;
#else
    (void)threads;
#endif
    return bt_scratch_bytes(bytes + BT_SCRATCH_ALIGN, 1);
}

enum bt_status bt_stream_create(const struct bt_stream_limits *limits, struct bt_team *team,
                                struct bt_error *error, struct bt_stream **ret_stream)
{
    enum bt_status status = bt_stream_check_limits(limits, error);
    if (status != BT_OK)
        return status;

    struct bt_stream *stream = calloc(1, sizeof(*stream));
    if (!stream)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "stream: out of memory");
    stream->limits = *limits;
    stream->team = team;
    stream->arena_bytes = arena_bytes(limits, bt_team_threads(team));
    stream->arena = aligned_alloc(BT_SCRATCH_ALIGN, stream->arena_bytes);
    if (!stream->arena) {
        status =
            bt_error_set(error, BT_ERR_NO_MEMORY, "stream: out of memory for %zu bytes of scratch",
                         stream->arena_bytes);
        goto err_stream;
    }
    *ret_stream = stream;
    return BT_OK;

err_stream:
    free(stream);
    return status;
}

void bt_stream_destroy(struct bt_stream *stream)
{
    if (!stream)
        return;
    free(stream->arena);
    free(stream);
}
