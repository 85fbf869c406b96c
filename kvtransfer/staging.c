#include "kvtransfer/staging.h"

#include <stdatomic.h>
#include <stdlib.h>

struct kvt_staging {
    struct kvt_staging_options options;
    void *pool;
    struct bt_stream *stream;
    bool pinned;
    _Atomic uint64_t out_bytes, in_bytes;
};

static enum bt_status create_parts(struct kvt_staging *staging, struct bt_error *error)
{
    const struct kvt_staging_options *options = &staging->options;
    const struct bt_stream_limits limits = {0};
    uint64_t bytes = bt_kv_pool_bytes(&options->layout, options->pool_pages);
    enum bt_status status = bt_device_enter(options->device, error);

    if (status == BT_OK)
        status = bt_device_alloc(options->device, bytes, error, &staging->pool);
    if (status == BT_OK)
        status = bt_device_register_host(options->device, options->host_pool, bytes, error);
    staging->pinned = status == BT_OK;
    if (status == BT_OK)
        status = bt_device_stream_create(options->device, &limits, NULL, error, &staging->stream);
    return status;
}

enum bt_status kvt_staging_create(const struct kvt_staging_options *options, struct bt_error *error,
                                  struct kvt_staging **ret_staging)
{
    struct kvt_staging *staging = calloc(1, sizeof(*staging));
    enum bt_status status;

    if (staging == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a staged kv pool");
    staging->options = *options;
    status = create_parts(staging, error);
    if (status != BT_OK) {
        bt_error_prefix(error, "staged kv pool of %u pages", options->pool_pages);
        kvt_staging_destroy(staging);
        return status;
    }
    *ret_staging = staging;
    return BT_OK;
}

void kvt_staging_destroy(struct kvt_staging *staging)
{
    if (staging == NULL)
        return;
    struct bt_device *device = staging->options.device;
    if (staging->stream != NULL) {
        (void)bt_device_synchronize(device, staging->stream, NULL);
        bt_device_stream_destroy(device, staging->stream);
    }
    if (staging->pinned)
        bt_device_unregister_host(device, staging->options.host_pool);
    bt_device_free(device, staging->pool);
    free(staging);
}

void *kvt_staging_pool(const struct kvt_staging *staging)
{
    return staging->pool;
}

/* Tokens that lie one after the other in both pools: the end of the run from `begin` on. */
static uint32_t run_end(const uint32_t *pages, uint32_t begin, uint32_t end)
{
    uint32_t last = begin / BT_PAGE_TOKENS;

    while ((last + 1) * BT_PAGE_TOKENS < end && pages[last + 1] == pages[last] + 1)
        last++;
    return (last + 1) * BT_PAGE_TOKENS < end ? (last + 1) * BT_PAGE_TOKENS : end;
}

/* Returns the bytes. */
static uint64_t copy_tokens(struct kvt_staging *staging, struct bt_stream *stream, bool in,
                            uint32_t layer, const uint32_t *pages, uint32_t begin, uint32_t end)
{
    const struct kvt_staging_options *options = &staging->options;
    uint64_t token_bytes = bt_kv_token_bytes(&options->layout), sum = 0;

    while (begin < end) {
        uint32_t until = run_end(pages, begin, end);
        uint64_t offset = bt_kv_offset(&options->layout, options->pool_pages, layer,
                                       pages[begin / BT_PAGE_TOKENS], begin % BT_PAGE_TOKENS);
        uint64_t bytes = (until - begin) * token_bytes;
        char *host = (char *)options->host_pool + offset, *device = (char *)staging->pool + offset;
        bt_device_copy(options->device, stream, in ? device : host, in ? host : device, bytes);
        sum += bytes;
        begin = until;
    }
    return sum;
}

void kvt_staging_out(struct kvt_staging *staging, uint32_t layer, const uint32_t *pages,
                     uint32_t begin, uint32_t end)
{
    uint64_t bytes = copy_tokens(staging, staging->stream, false, layer, pages, begin, end);

    atomic_fetch_add_explicit(&staging->out_bytes, bytes, memory_order_relaxed);
}

enum bt_status kvt_staging_wait(struct kvt_staging *staging, struct bt_error *error)
{
    return bt_device_synchronize(staging->options.device, staging->stream, error);
}

void kvt_staging_in(struct kvt_staging *staging, struct bt_stream *stream, const uint32_t *pages,
                    uint32_t tokens)
{
    uint64_t bytes = 0;

    for (uint32_t layer = 0; layer < staging->options.layout.layer_count; layer++)
        bytes += copy_tokens(staging, stream, true, layer, pages, 0, tokens);
    atomic_fetch_add_explicit(&staging->in_bytes, bytes, memory_order_relaxed);
}

void kvt_staging_bytes(const struct kvt_staging *staging, uint64_t *ret_out, uint64_t *ret_in)
{
    *ret_out = atomic_load_explicit(&staging->out_bytes, memory_order_relaxed);
    *ret_in = atomic_load_explicit(&staging->in_bytes, memory_order_relaxed);
}
