#include "kvtransfer/device_pool.h"

#include <stdlib.h>

#include "kvtransfer/checksum.h"

#define BLOCK ((size_t)2 << 20) /* that drivers give memory out in */
#define SPANS 4096 /* of one look at the device: some milliseconds of its time at most */

struct kvt_device_pool {
    struct bt_device *device;
    struct bt_kv_layout layout;
    uint32_t pool_pages;
    void *base;
    struct bt_stream *stream;
    struct bt_event *done;
    struct bt_page_span *host_spans, *spans; /* [SPANS], pinned and of the device */
    uint64_t *host_sums, *sums;              /* likewise */

    bool busy;
    const uint32_t *pages;
    uint32_t tokens, page_count;
    struct kvt_share share;
    uint32_t layer, logical; /* the next span */
    uint32_t out;            /* spans that the device works on */
    uint64_t sum;
};

enum bt_memory_kind kvt_pool_memory_kind(const struct bt_device *device)
{
    return device == NULL ? BT_MEMORY_HOST : device->memory;
}

static enum bt_status create_parts(struct kvt_device_pool *pool, size_t bytes,
                                   struct bt_error *error)
{
    struct bt_device *device = pool->device;
    const struct bt_stream_limits limits = {0};
    enum bt_status status = bt_device_enter(device, error);

    if (status == BT_OK) /* whole blocks: what is shared with others is the pool alone */
        status = bt_device_alloc(device, (bytes + BLOCK - 1) / BLOCK * BLOCK, error, &pool->base);
    if (status == BT_OK)
        status = bt_device_alloc(device, SPANS * sizeof(*pool->spans), error, (void *)&pool->spans);
    if (status == BT_OK)
        status = bt_device_alloc(device, SPANS * sizeof(*pool->sums), error, (void *)&pool->sums);
    if (status == BT_OK)
        status = bt_device_alloc_host(device, SPANS * sizeof(*pool->spans), error,
                                      (void *)&pool->host_spans);
    if (status == BT_OK)
        status = bt_device_alloc_host(device, SPANS * sizeof(*pool->sums), error,
                                      (void *)&pool->host_sums);
    if (status == BT_OK)
        status = bt_device_stream_create(device, &limits, NULL, error, &pool->stream);
    if (status == BT_OK)
        status = device->ops->event_create(device, error, &pool->done);
    return status;
}

enum bt_status kvt_device_pool_create(struct bt_device *device, const struct bt_kv_layout *layout,
                                      uint32_t pool_pages, size_t bytes, struct bt_error *error,
                                      struct kvt_device_pool **ret_pool)
{
    struct kvt_device_pool *pool = calloc(1, sizeof(*pool));
    enum bt_status status;

    if (pool == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a kv pool");
    pool->device = device;
    pool->layout = *layout;
    pool->pool_pages = pool_pages;
    status = create_parts(pool, bytes, error);
    if (status != BT_OK) {
        bt_error_prefix(error, "kv pool of %u pages", pool_pages);
        kvt_device_pool_destroy(pool);
        return status;
    }
    *ret_pool = pool;
    return BT_OK;
}

void kvt_device_pool_destroy(struct kvt_device_pool *pool)
{
    if (pool == NULL)
        return;
    struct bt_device *device = pool->device;
    if (pool->stream != NULL)
        (void)bt_device_synchronize(device, pool->stream, NULL);
    if (pool->done != NULL)
        device->ops->event_destroy(pool->done);
    if (pool->stream != NULL)
        bt_device_stream_destroy(device, pool->stream);
    bt_device_free_host(device, pool->host_sums);
    bt_device_free_host(device, pool->host_spans);
    bt_device_free(device, pool->sums);
    bt_device_free(device, pool->spans);
    bt_device_free(device, pool->base);
    free(pool);
}

void *kvt_device_pool_base(const struct kvt_device_pool *pool)
{
    return pool->base;
}

/* False: it was the last. */
static bool next_span(struct kvt_device_pool *pool)
{
    pool->logical += pool->share.count;
    if (pool->logical < pool->page_count)
        return true;
    pool->logical = pool->share.index;
    return ++pool->layer < pool->layout.layer_count;
}

static struct bt_page_span span_of(const struct kvt_device_pool *pool)
{
    uint32_t left = pool->tokens - pool->logical * BT_PAGE_TOKENS;
    uint32_t tokens = left < BT_PAGE_TOKENS ? left : BT_PAGE_TOKENS;

    return (struct bt_page_span){
        .offset = bt_kv_offset(&pool->layout, pool->pool_pages, pool->layer,
                               pool->pages[pool->logical], 0),
        .seed = kvt_checksum_seed(pool->layer, pool->logical),
        .bytes = (uint32_t)(tokens * bt_kv_token_bytes(&pool->layout)),
    };
}

/* Gives the device the next spans; none are left: `out` is 0. */
static void start_some(struct kvt_device_pool *pool)
{
    struct bt_device *device = pool->device;

    for (pool->out = 0; pool->layer < pool->layout.layer_count && pool->out < SPANS;) {
        pool->host_spans[pool->out++] = span_of(pool);
        if (!next_span(pool))
            break;
    }
    if (pool->out == 0)
        return;
    bt_device_copy(device, pool->stream, pool->spans, pool->host_spans,
                   pool->out * sizeof(*pool->spans));
    device->kernels->hash_pages(pool->stream, pool->base, pool->spans, pool->out, pool->sums);
    bt_device_copy(device, pool->stream, pool->host_sums, pool->sums,
                   pool->out * sizeof(*pool->sums));
    device->ops->event_record(pool->done, pool->stream);
}

void kvt_device_sum_begin(struct kvt_device_pool *pool, const uint32_t *pages, uint32_t tokens,
                          struct kvt_share share)
{
    BT_ASSERT(!pool->busy);
    if (share.count == 0)
        share = (struct kvt_share){.index = 0, .count = 1};
    pool->busy = true;
    pool->pages = pages;
    pool->tokens = tokens;
    pool->page_count = bt_kv_pages_for(tokens);
    pool->share = share;
    pool->layer = share.index < pool->page_count ? 0 : pool->layout.layer_count;
    pool->logical = share.index;
    pool->sum = 0;
    start_some(pool);
}

bool kvt_device_sum_busy(const struct kvt_device_pool *pool)
{
    return pool->busy;
}

enum bt_status kvt_device_sum_poll(struct kvt_device_pool *pool, struct bt_error *error,
                                   uint64_t *ret_sum)
{
    while (pool->out > 0) {
        if (!pool->device->ops->event_query(pool->done))
            return BT_IN_PROGRESS;
        enum bt_status status = pool->device->ops->event_synchronize(pool->done, error);
        if (status != BT_OK) {
            pool->busy = false;
            pool->out = 0;
            return status;
        }
        for (uint32_t i = 0; i < pool->out; i++)
            pool->sum += pool->host_sums[i];
        start_some(pool);
    }
    pool->busy = false;
    *ret_sum = pool->sum;
    return BT_OK;
}
