#include "common/kernels/stream.h"

#include <stdint.h>
#include <stdlib.h>

#include "common/kernels/ref/ref.h"
#ifdef BT_HAVE_X86_KERNELS
#include "common/kernels/x86/x86.h"
#endif

/* Beyond these the sizes are nonsense, and their products could wrap. */
#define MAX_ROWS     (1u << 20)
#define MAX_DIM      (1u << 20)
#define MAX_HEADS    (1u << 12)
#define MAX_EXPERTS  (1u << 14)
#define MAX_HEAD_DIM (1u << 14)

static enum bt_status check(struct bt_error *error, const char *name, uint32_t value, uint32_t max)
{
    if (value <= max)
        return BT_OK;
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "stream limits: %s is %u, the most is %u",
                        name, value, max);
}

static enum bt_status check_limits(const struct bt_stream_limits *limits, struct bt_error *error)
{
    const struct {
        const char *name;
        uint32_t value, max;
    } checks[] = {
        {"max_rows", limits->max_rows, MAX_ROWS},
        {"max_expert_rows", limits->max_expert_rows, MAX_ROWS},
        {"max_cols", limits->max_cols, MAX_DIM},
        {"hidden", limits->hidden, MAX_DIM},
        {"moe_intermediate", limits->moe_intermediate, MAX_DIM},
        {"experts", limits->experts, MAX_EXPERTS},
        {"experts_per_token", limits->experts_per_token, limits->experts},
        {"heads", limits->mla.heads, MAX_HEADS},
        {"qk_nope_head_dim", limits->mla.qk_nope_head_dim, MAX_HEAD_DIM},
        {"qk_rope_head_dim", limits->mla.qk_rope_head_dim, MAX_HEAD_DIM},
        {"v_head_dim", limits->mla.v_head_dim, MAX_HEAD_DIM},
        {"kv_lora_rank", limits->mla.kv_lora_rank, MAX_HEAD_DIM},
    };
    for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
        enum bt_status status = check(error, checks[i].name, checks[i].value, checks[i].max);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}

static size_t arena_bytes(const struct bt_stream_limits *limits, uint32_t threads)
{
    size_t bytes = bt_ref_scratch_bytes(limits);
    (void)threads;
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
    enum bt_status status = check_limits(limits, error);
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
