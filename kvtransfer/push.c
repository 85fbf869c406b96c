#include "kvtransfer/push.h"

#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "kvtransfer/checksum.h"

static bool link_is(const struct kvt_push *push, enum kvt_link_state state)
{
    return atomic_load(&push->link->state) == (int)state;
}

/* How far this layer may be written. */
static uint32_t token_limit(const struct kvt_push *push, uint32_t layer)
{
    if (atomic_load(&push->finished))
        return push->prompt_tokens;
    return push->layerwise ? atomic_load(&push->ready[layer]) : 0;
}

static uint32_t tokens_of_page(const struct kvt_push *push, uint32_t logical)
{
    uint32_t left = push->prompt_tokens - logical * BT_PAGE_TOKENS;

    return left < BT_PAGE_TOKENS ? left : BT_PAGE_TOKENS;
}

static bool is_ours(const struct kvt_push *push, uint32_t logical)
{
    return logical % push->share.count == push->share.index;
}

/* Sums the layer's pages up to (not with) `end`, of which ours are complete. */
static void sum_pages(struct kvt_push *push, uint32_t layer, uint32_t end)
{
    const struct kvt_inflight *inflight = push->inflight;

    if (!inflight->checksum || inflight->device_pool != NULL)
        return;
    for (; push->summed[layer] < end; push->summed[layer]++) {
        uint32_t logical = push->summed[layer];
        if (!is_ours(push, logical))
            continue;
        const char *page = inflight->pool + bt_kv_offset(inflight->layout, inflight->pool_pages,
                                                         layer, push->source_pages[logical], 0);
        push->event.checksum += kvt_checksum_page(inflight->layout, page, layer, logical,
                                                  tokens_of_page(push, logical));
    }
}

static void finish_batch(struct kvt_push *push)
{
    uint32_t layer = push->batch.layer;

    push->posted[layer] = push->batch.token_end;
    push->progressed = true;
    if (push->posted[layer] == push->prompt_tokens)
        push->layers_posted++;
    push->next_layer = (layer + 1) % push->layer_count;
}

/* The next layer with something to write, taking turns. */
static bool plan_batch(struct kvt_push *push)
{
    struct kvt_batch *batch = &push->batch;
    struct kvt_plan_side source = {.pages = push->source_pages,
                                   .pool_pages = push->inflight->pool_pages};
    struct kvt_plan_side target = {.pages = push->target_pages,
                                   .pool_pages = push->link->pool_pages};

    for (uint32_t i = 0, first = push->next_layer; i < push->layer_count; i++) {
        uint32_t layer = (first + i) % push->layer_count;
        uint32_t begin = push->posted[layer], end = token_limit(push, layer), tokens;
        if (begin >= end)
            continue;
        batch->count = kvt_plan_layer(push->inflight->layout, layer, begin, end, &source, &target,
                                      push->share, batch->writes, KVT_BATCH_WRITES, &tokens);
        batch->next = 0;
        batch->done_bytes = 0;
        batch->layer = layer;
        batch->token = batch->writes[0].token;
        batch->token_end = begin + tokens;
        push->next_layer = layer;
        if (batch->count > 0)
            return true;
        finish_batch(push); /* others' pages alone */
    }
    return false;
}

static struct kvt_write_record *record_take(struct kvt_push *push, uint64_t bytes)
{
    struct kvt_inflight *inflight = push->inflight;
    struct kvt_write_record *record = inflight->free_records;

    if (record == NULL || inflight->bytes >= KVT_INFLIGHT_BYTES)
        return NULL;
    inflight->free_records = record->next;
    inflight->bytes += bytes;
    inflight->operations++;
    record->push = push;
    record->bytes = bytes;
    push->writes_out++;
    return record;
}

static void record_free(struct kvt_write_record *record)
{
    struct kvt_inflight *inflight = record->push->inflight;

    inflight->bytes -= record->bytes;
    inflight->operations--;
    record->push->writes_out--;
    record->next = inflight->free_records;
    inflight->free_records = record;
}

/* So many bytes are in the target's memory, or where the transport lets go of them. */
static void completed(struct kvt_push *push, uint64_t bytes, uint32_t layer, uint32_t token_begin,
                      uint32_t token_end, int64_t begin_ns)
{
    const struct kvt_push_watch *watch = push->watch;

    atomic_fetch_add(&push->bytes_done, bytes);
    if (watch != NULL)
        watch->written(watch->context, layer, token_begin, token_end, bytes, begin_ns,
                       bt_clock_now_ns());
}

static void on_written(void *context, enum bt_status status)
{
    struct kvt_write_record *record = context;

    if (status == BT_OK)
        completed(record->push, record->bytes, record->layer, record->token_begin,
                  record->token_end, record->begin_ns);
    record_free(record);
}

static void on_flushed(void *context, enum bt_status status)
{
    struct kvt_push *push = context;

    push->inflight->operations--;
    push->flush_out = false;
    push->flushed = status == BT_OK;
}

static bool lease_is_live(const struct kvt_push *push, int64_t *ret_now_ns)
{
    *ret_now_ns = bt_clock_now_ns();
    return *ret_now_ns < atomic_load(&push->lease_until_ns);
}

/* Copies and sums in one go what is whole pages. */
static void store(struct kvt_push *push, uint64_t source_offset, char *to, uint64_t bytes)
{
    const struct kvt_inflight *inflight = push->inflight;
    uint64_t token_bytes = bt_kv_token_bytes(inflight->layout);
    const struct kvt_batch *batch = &push->batch;
    const char *from = inflight->pool + source_offset;
    uint32_t token = batch->token, end = token + (uint32_t)(bytes / token_bytes);

    while (token < end) {
        uint32_t logical = token / BT_PAGE_TOKENS, tokens = BT_PAGE_TOKENS - token % BT_PAGE_TOKENS;
        if (tokens > end - token)
            tokens = end - token;
        if (inflight->checksum && tokens == tokens_of_page(push, logical)) {
            sum_pages(push, batch->layer, logical);
            push->event.checksum +=
                kvt_checksum_copy_page(inflight->layout, to, from, batch->layer, logical, tokens);
            push->summed[batch->layer] = logical + 1;
        } else {
            kvt_copy(to, from, tokens * token_bytes);
        }
        token += tokens;
        to += tokens * token_bytes;
        from += tokens * token_bytes;
    }
    kvt_copy_fence();
}

static uint64_t cuts_of(const struct kvt_push *push)
{
    const struct kvt_transport_ops *ops = push->inflight->ops;

    if (push->link->peer == NULL)
        return push->link->cuts;
    return ops->peer_cuts == NULL ? 0 : ops->peer_cuts(push->link->peer);
}

/* BT_OK: posted. EXHAUSTED: later. Else the link is lost. */
static enum bt_status post(struct kvt_push *push, uint64_t source_offset, uint64_t target_offset,
                           uint64_t bytes, int64_t now_ns)
{
    const struct kvt_inflight *inflight = push->inflight;
    const struct kvt_batch *batch = &push->batch;
    uint32_t token_end = batch->token + (uint32_t)(bytes / bt_kv_token_bytes(inflight->layout));
    struct kvt_write_record *record;
    enum bt_status status;

    if (!push->touched)
        push->cuts_before = cuts_of(push);
    push->touched = true;
    if (push->link->mapped != NULL) {
        store(push, source_offset, push->link->mapped + target_offset, bytes);
        completed(push, bytes, batch->layer, batch->token, token_end, now_ns);
        return BT_OK;
    }
    record = record_take(push, bytes);
    if (record == NULL)
        return BT_ERR_EXHAUSTED;
    record->layer = batch->layer;
    record->token_begin = batch->token;
    record->token_end = token_end;
    record->begin_ns = now_ns;
    status = inflight->ops->write(push->link->peer, inflight->pool + source_offset, bytes,
                                  push->link->pool_base + target_offset, on_written, record);
    if (status == BT_OK)
        completed(push, bytes, batch->layer, batch->token, token_end, now_ns);
    if (status != BT_IN_PROGRESS)
        record_free(record);
    return status < 0 ? status : BT_OK;
}

/* Of the write that is next: all, or as many whole tokens as one write may have. */
static uint64_t next_bytes(const struct kvt_push *push)
{
    const struct kvt_batch *batch = &push->batch;
    uint64_t left = batch->writes[batch->next].bytes - batch->done_bytes;
    uint64_t token_bytes = bt_kv_token_bytes(push->inflight->layout);
    /* Over a stream it makes no difference, and what is summed is sent while it is in the cache. */
    uint64_t most = push->link->ordered ? KVT_STEP_BYTES : KVT_WRITE_BYTES;
    uint64_t limit = most / token_bytes; /* tokens, ending with a page */

    limit -= (batch->token + limit) % BT_PAGE_TOKENS;
    if (limit == 0 || limit > most)
        limit = BT_PAGE_TOKENS - batch->token % BT_PAGE_TOKENS;
    return left < limit * token_bytes ? left : limit * token_bytes;
}

/* What several rails wrote they count themselves. */
static void account(struct kvt_link *link, uint64_t bytes)
{
    if (link->rail_count != 1 || link->accounts[0] == NULL)
        return;
    atomic_fetch_add_explicit(&link->accounts[0]->bytes, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&link->accounts[0]->writes, 1, memory_order_relaxed);
}

static enum bt_status post_next(struct kvt_push *push, int64_t now_ns, uint64_t *ret_bytes)
{
    struct kvt_batch *batch = &push->batch;
    const struct kvt_write *write = &batch->writes[batch->next];
    uint64_t bytes = next_bytes(push);
    enum bt_status status = post(push, write->source_offset + batch->done_bytes,
                                 write->target_offset + batch->done_bytes, bytes, now_ns);

    if (status != BT_OK)
        return status;
    push->event.writes++;
    push->event.bytes += bytes;
    account(push->link, bytes);
    batch->token += (uint32_t)(bytes / bt_kv_token_bytes(push->inflight->layout));
    batch->done_bytes += bytes;
    push->posted[batch->layer] = batch->token;
    push->progressed = true;
    sum_pages(push, batch->layer,
              batch->token == push->prompt_tokens ? bt_kv_pages_for(batch->token)
                                                  : batch->token / BT_PAGE_TOKENS);
    if (batch->done_bytes == write->bytes) {
        batch->next++;
        batch->done_bytes = 0;
        if (batch->next < batch->count)
            batch->token = batch->writes[batch->next].token;
    }
    *ret_bytes = bytes;
    return BT_OK;
}

static void on_record(void *context, enum bt_status status)
{
    struct kvt_push *push = context;

    (void)status; /* the writes and the flush say it, too */
    push->inflight->operations--;
    push->record_out = false;
}

static void fill_record(struct kvt_push *push)
{
    struct kvt_progress *record = &push->record;

    *record = (struct kvt_progress){
        .epoch = push->event.epoch,
        .tokens_ahead = push->posted[0],
        .tokens_behind = push->posted[0],
        .shares = push->share.count,
    };
    while (record->layers < push->layer_count &&
           push->posted[record->layers] >= record->tokens_ahead)
        record->layers++;
    for (uint32_t layer = record->layers; layer < push->layer_count; layer++)
        if (push->posted[layer] < record->tokens_behind)
            record->tokens_behind = push->posted[layer];
    kvt_progress_seal(record);
}

/* Once what it speaks of is written, or will be before it; under the lease, as it goes into the
 * landing, too. */
static enum bt_status post_record(struct kvt_push *push)
{
    struct kvt_link *link = push->link;
    enum bt_status status;
    uint64_t offset;
    int64_t now_ns;

    if (push->share.index >= bt_kv_pages_for(push->prompt_tokens))
        return BT_OK; /* nothing of it is ours */
    offset = kvt_progress_offset(push->inflight->layout, link->pool_pages,
                                 push->target_pages[push->share.index]);
    if (!push->progressed || push->record_out || (push->writes_out > 0 && !link->ordered) ||
        !lease_is_live(push, &now_ns))
        return BT_OK;
    fill_record(push);
    push->progressed = false;
    if (link->mapped != NULL) {
        memcpy(link->mapped + offset, &push->record, sizeof(push->record));
        return BT_OK;
    }
    push->inflight->operations++;
    push->record_out = true;
    status = push->inflight->ops->write(link->peer, &push->record, sizeof(push->record),
                                        link->pool_base + offset, on_record, push);
    if (status != BT_IN_PROGRESS)
        on_record(push, status);
    push->progressed = status == BT_ERR_EXHAUSTED;
    return status < 0 && status != BT_ERR_EXHAUSTED ? status : BT_OK;
}

/* Posts what is ready. The lease is looked at before every write. */
static bool post_ready(struct kvt_push *push, bool *ret_link_lost)
{
    struct kvt_batch *batch = &push->batch;
    uint32_t layers_posted = push->layers_posted;
    uint64_t step_bytes = 0, bytes;
    int64_t now_ns;

    while (step_bytes < KVT_STEP_BYTES) {
        if (batch->next == batch->count && !plan_batch(push))
            break;
        if (atomic_load(&push->cancelled) || !lease_is_live(push, &now_ns))
            return true; /* the next turn sees why */
        if (push->event.first_write_ns == 0)
            push->event.first_write_ns = now_ns;
        enum bt_status status = post_next(push, now_ns, &bytes);
        if (status == BT_ERR_EXHAUSTED)
            break;
        if (status != BT_OK) {
            *ret_link_lost = true;
            return true;
        }
        step_bytes += bytes;
        if (batch->next == batch->count)
            finish_batch(push);
        if (batch->next == batch->count && post_record(push) != BT_OK) {
            *ret_link_lost = true;
            return true;
        }
    }
    if (post_record(push) != BT_OK) /* its writes may have completed since */
        *ret_link_lost = true;
    return step_bytes > 0 || push->layers_posted != layers_posted || *ret_link_lost;
}

static void start_flushing(struct kvt_push *push, enum bt_status status, int64_t now_ns)
{
    push->phase = KVT_PUSH_FLUSHING;
    push->event.status = status;
    push->flush_deadline_ns = now_ns + KVT_FLUSH_NS;
}

static bool step_running(struct kvt_push *push, int64_t now_ns, bool *ret_link_lost)
{
    int64_t lease_until_ns = atomic_load(&push->lease_until_ns);

    if (atomic_load(&push->cancelled)) {
        start_flushing(push, BT_ERR_CANCELLED, now_ns);
    } else if (link_is(push, KVT_LINK_FAILED)) {
        start_flushing(push, BT_ERR_PEER_LOST, now_ns);
    } else if (push->layers_posted == push->layer_count && atomic_load(&push->finished)) {
        start_flushing(push, BT_OK, now_ns);
    } else if (lease_until_ns != 0 && bt_clock_now_ns() >= lease_until_ns) {
        start_flushing(push, BT_ERR_DEADLINE, now_ns);
    } else if (lease_until_ns == 0 || !link_is(push, KVT_LINK_READY)) {
        return false;
    } else {
        return post_ready(push, ret_link_lost);
    }
    return true;
}

/* What the target has not acknowledged, and in any case what failed under this push: its writes
 * were repeated, so that what the target summed early may have been written again. */
static uint64_t cuts_to_tell(const struct kvt_push *push)
{
    uint64_t cuts = cuts_of(push);

    return cuts & ~(atomic_load(&push->link->cuts_over) & push->cuts_before);
}

static void end(struct kvt_push *push, enum bt_status status, bool quiesced)
{
    struct kvt_push_event *event = &push->event;

    push->phase = KVT_PUSH_ENDED;
    if (push->touched && quiesced)
        event->cut_lines = cuts_to_tell(push);
    event->status = status;
    event->quiesced = quiesced;
    event->end_ns = bt_clock_now_ns();
    if (atomic_load(&push->finished)) {
        event->finish_ns = push->finish_ns;
        event->hidden_bytes = push->hidden_bytes;
    }
}

/* What the host can't read the device sums, when all has been computed. True: nothing is left to
 * be done. */
static bool sum_on_device(struct kvt_push *push)
{
    struct kvt_device_pool *pool = push->inflight->device_pool;
    struct bt_error error = {0};
    enum bt_status status;

    if (pool == NULL || !push->inflight->checksum || push->event.status != BT_OK)
        return true;
    if (!push->summing && kvt_device_sum_busy(pool))
        return false; /* with another push */
    if (!push->summing)
        kvt_device_sum_begin(pool, push->source_pages, push->prompt_tokens, push->share);
    status = kvt_device_sum_poll(pool, &error, &push->event.checksum);
    push->summing = status == BT_IN_PROGRESS;
    if (status == BT_OK || status == BT_IN_PROGRESS)
        return status == BT_OK;
    bt_log_error(push->event.request, "push: the pages could not be summed: %s", error.text);
    push->event.status = BT_ERR_PEER_LOST;
    return true;
}

static bool step_flushing(struct kvt_push *push, int64_t now_ns, bool *ret_link_lost)
{
    enum bt_status status;

    if (!push->touched || (push->flushed && push->writes_out == 0 && !push->record_out)) {
        if (!sum_on_device(push))
            return false;
        end(push, push->event.status, true);
        return true;
    }
    if (link_is(push, KVT_LINK_FAILED)) {
        BT_ASSERT(push->writes_out == 0 && !push->flush_out &&
                  !push->record_out); /* closing the peer completed them */
        end(push, BT_ERR_PEER_LOST, false);
        return true;
    }
    if (now_ns >= push->flush_deadline_ns) {
        *ret_link_lost = true;
        return true;
    }
    if (push->flush_out || push->flushed)
        return false;
    push->inflight->operations++;
    push->flush_out = true;
    status = push->inflight->ops->flush(push->link->peer, on_flushed, push);
    if (status == BT_IN_PROGRESS)
        return true;
    on_flushed(push, status);
    if (status != BT_OK && status != BT_ERR_EXHAUSTED)
        *ret_link_lost = true;
    return status != BT_ERR_EXHAUSTED;
}

bool kvt_push_step(struct kvt_push *push, int64_t now_ns, bool *ret_link_lost)
{
    switch (push->phase) {
    case KVT_PUSH_RUNNING:
        return step_running(push, now_ns, ret_link_lost);
    case KVT_PUSH_FLUSHING:
        return step_flushing(push, now_ns, ret_link_lost);
    case KVT_PUSH_ENDED:
        break;
    }
    return false;
}

int64_t kvt_push_next_deadline_ns(const struct kvt_push *push)
{
    int64_t lease_until_ns = atomic_load(&push->lease_until_ns);

    if (push->phase == KVT_PUSH_FLUSHING && push->flushed)
        return bt_clock_now_ns() + BT_NS_PER_MS; /* the device sums */
    if (push->phase == KVT_PUSH_FLUSHING)
        return push->flush_deadline_ns;
    return lease_until_ns == 0 ? BT_NEVER_NS : lease_until_ns;
}
