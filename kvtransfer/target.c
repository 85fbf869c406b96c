#include "kvtransfer/target.h"

#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "kvtransfer/checksum.h"
#include "kvtransfer/device_pool.h"
#include "kvtransfer/progress.h"
#include "kvtransfer/transport.h"

#define SLICE_BYTES (UINT64_C(1) << 20) /* checksummed between two looks at the transport */
#define SPIN_NS     INT64_C(20000)      /* after the last sign of a writer */
#define LOOK_MS     1                   /* at the progress of expected landings */

struct job {
    enum kvt_target_event_kind kind;
    uint64_t request, epoch;
    struct kvt_cut cut;
    uint32_t *pages; /* owned */
    uint32_t tokens;
};

/* The sum of a landing as far as it got. */
struct summing {
    uint64_t epoch;
    uint32_t *pages; /* owned */
    uint32_t tokens; /* 0: forget this epoch */
    uint32_t *done;  /* [layer] pages that are summed; owned */
    uint64_t sum;
    uint32_t layer; /* where the next slice begins to look */
    uint64_t early_bytes;
    bool early;
};

struct kvt_target {
    struct kvt_target_options options;
    struct kvt_transport *transport;
    struct kvt_memory *memory;
    char *pool;
    struct kvt_device_pool *device_pool; /* that `pool` is of; NULL: the host's memory */
    void *address, *key;
    size_t address_size, key_size;
    struct kvt_choice_info info; /* written before `started` */
    struct bt_queue *jobs;
    struct bt_queue *events;
    pthread_t thread;
    sem_t started;
    enum bt_status start_status; /* written before `started` */
    struct bt_error start_error;

    _Atomic uint32_t kicks;
    _Atomic bool sleeping;
    _Atomic bool stop;
    uint64_t accepted;          /* control thread */
    _Atomic uint64_t completed; /* counted after its event was queued */

    struct bt_queue *hints;  /* struct summing, from the control thread */
    _Atomic bool forget_all; /* one that ended did not fit in there */

    bool verifying; /* from here on target thread */
    struct job current;
    struct summing summing; /* of `current` */
    struct summing expected[KVT_EXPECTED_MAX];
    uint32_t expected_count; /* the oldest first */
};

struct disconnect {
    struct kvt_target *target;
    struct kvt_cut cut;
};

static void kick(struct kvt_target *target)
{
    atomic_fetch_add(&target->kicks, 1);
    if (atomic_exchange(&target->sleeping, false))
        target->transport->ops->wake(target->transport);
}

/* ---- the target's thread ---- */

static void complete(struct kvt_target *target, const struct kvt_target_event *event)
{
    BT_ASSERT(bt_queue_try_push(target->events, event)); /* sized for max_jobs */
    atomic_fetch_add(&target->completed, 1);
}

static void on_disconnected(void *context, enum bt_status status)
{
    struct disconnect *disconnect = context;
    struct kvt_target_event event = {.kind = KVT_TARGET_DISCONNECTED,
                                     .incarnation = disconnect->cut.incarnation,
                                     .link = disconnect->cut.link};

    (void)status;
    complete(disconnect->target, &event);
    free(disconnect);
}

static void start_disconnect(struct kvt_target *target, const struct kvt_cut *cut)
{
    struct disconnect *disconnect = malloc(sizeof(*disconnect));

    BT_ASSERT(disconnect != NULL); /* a lost one would keep pages in quarantine for ever */
    *disconnect = (struct disconnect){.target = target, .cut = *cut};
    target->transport->ops->disconnect(target->transport, cut, on_disconnected, disconnect);
}

static void summing_finish(struct summing *summing)
{
    free(summing->pages);
    free(summing->done);
}

static void finish_checksum(struct kvt_target *target)
{
    struct kvt_target_event event = {.kind = KVT_TARGET_CHECKSUM,
                                     .request = target->current.request,
                                     .epoch = target->current.epoch,
                                     .checksum = target->summing.sum,
                                     .early_bytes = target->summing.early_bytes,
                                     .early = target->summing.early};

    summing_finish(&target->summing);
    target->verifying = false;
    complete(target, &event);
}

/* Sums pages of this layer up to `end`, one slice at most. Returns the bytes. */
static uint64_t sum_layer(const struct kvt_target *target, struct summing *summing, uint32_t layer,
                          uint32_t end)
{
    const struct bt_kv_layout *layout = &target->options.layout;
    uint64_t bytes = 0;

    for (; summing->done[layer] < end && bytes < SLICE_BYTES; bytes += bt_kv_page_bytes(layout)) {
        uint32_t logical = summing->done[layer]++;
        uint32_t left = summing->tokens - logical * BT_PAGE_TOKENS;
        const char *page = target->pool + bt_kv_offset(layout, target->options.pool_pages, layer,
                                                       summing->pages[logical], 0);
        summing->sum += kvt_checksum_page(layout, page, layer, logical,
                                          left < BT_PAGE_TOKENS ? left : BT_PAGE_TOKENS);
    }
    return bytes;
}

static void checksum_slice(struct kvt_target *target)
{
    struct summing *summing = &target->summing;
    uint32_t page_count = bt_kv_pages_for(summing->tokens);

    for (uint64_t bytes = 0; bytes < SLICE_BYTES;) {
        bytes += sum_layer(target, summing, summing->layer, page_count);
        if (summing->done[summing->layer] < page_count)
            continue;
        if (++summing->layer == target->options.layout.layer_count) {
            finish_checksum(target);
            return;
        }
    }
}

static bool read_progress(const struct kvt_target *target, const struct summing *summing,
                          uint32_t share, struct kvt_progress *ret_progress)
{
    const struct bt_kv_layout *layout = &target->options.layout;
    uint64_t slot = kvt_progress_offset(layout, target->options.pool_pages, summing->pages[share]);

    return kvt_progress_read(target->pool + slot, summing->epoch, layout->layer_count,
                             summing->tokens, ret_progress);
}

/* How far all shares of a landing are; returns how many there are, 0 when not all have begun. */
static uint32_t read_shares(const struct kvt_target *target, const struct summing *summing,
                            struct kvt_progress *ret_shares)
{
    uint32_t pages = bt_kv_pages_for(summing->tokens), count = 1;

    for (uint32_t i = 0; i < count; i++) {
        if (!read_progress(target, summing, i, &ret_shares[i]))
            return 0;
        if (i == 0 && ret_shares[0].shares > 1)
            count = ret_shares[0].shares < pages ? ret_shares[0].shares : pages;
    }
    return count;
}

/* Whole pages only: the last one may still grow. One slice. */
static bool sum_early(const struct kvt_target *target, struct summing *summing)
{
    struct kvt_progress shares[KVT_SHARES_MAX];
    uint32_t count = read_shares(target, summing, shares);

    for (uint32_t layer = 0; count > 0 && layer < target->options.layout.layer_count; layer++) {
        uint32_t least = UINT32_MAX;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t tokens =
                layer < shares[i].layers ? shares[i].tokens_ahead : shares[i].tokens_behind;
            least = tokens < least ? tokens : least;
        }
        uint64_t bytes = sum_layer(target, summing, layer, least / BT_PAGE_TOKENS);
        summing->early_bytes += bytes;
        if (bytes > 0)
            return true;
    }
    return false;
}

static void expected_remove(struct kvt_target *target, uint32_t at)
{
    target->expected_count--;
    memmove(&target->expected[at], &target->expected[at + 1],
            (target->expected_count - at) * sizeof(target->expected[0]));
}

/* Takes what is known of this epoch out of the list. */
static bool expected_take(struct kvt_target *target, uint64_t epoch, struct summing *ret_summing)
{
    for (uint32_t i = 0; i < target->expected_count; i++) {
        if (target->expected[i].epoch != epoch)
            continue;
        *ret_summing = target->expected[i];
        expected_remove(target, i);
        return true;
    }
    return false;
}

static void take_hints(struct kvt_target *target)
{
    struct summing hint, old;
    bool forget_all = atomic_exchange(&target->forget_all, false);

    while (forget_all && target->expected_count > 0)
        summing_finish(&target->expected[--target->expected_count]);
    while (bt_queue_try_pop(target->hints, &hint)) {
        if (expected_take(target, hint.epoch, &old))
            summing_finish(&old);
        if (hint.tokens == 0)
            continue;
        if (target->expected_count == KVT_EXPECTED_MAX) {
            summing_finish(&target->expected[0]);
            expected_remove(target, 0);
        }
        target->expected[target->expected_count++] = hint;
    }
}

static bool expected_step(struct kvt_target *target)
{
    bool any = false;

    take_hints(target);
    for (uint32_t i = 0; i < target->expected_count; i++)
        any = sum_early(target, &target->expected[i]) || any;
    return any;
}

/* From the hint on, where there is one that fits; from zero else. */
static void start_checksum(struct kvt_target *target)
{
    struct job *job = &target->current;
    struct summing *summing = &target->summing;

    take_hints(target);
    target->verifying = true;
    if (target->device_pool != NULL) {
        *summing = (struct summing){.epoch = job->epoch, .pages = job->pages};
        kvt_device_sum_begin(target->device_pool, job->pages, job->tokens, (struct kvt_share){0});
        return;
    }
    if (expected_take(target, job->epoch, summing)) {
        if (summing->tokens == job->tokens &&
            memcmp(summing->pages, job->pages,
                   bt_kv_pages_for(job->tokens) * sizeof(*job->pages)) == 0) {
            free(job->pages);
            return;
        }
        summing_finish(summing);
    }
    *summing = (struct summing){.epoch = job->epoch, .pages = job->pages, .tokens = job->tokens};
    summing->done = calloc(target->options.layout.layer_count, sizeof(*summing->done));
    BT_ASSERT(summing->done != NULL); /* some hundred bytes; a lost job would block its landing */
}

/* A device that fails has no right sum: one that fits nothing. */
static bool checksum_on_device(struct kvt_target *target)
{
    struct bt_error error = {0};
    enum bt_status status = kvt_device_sum_poll(target->device_pool, &error, &target->summing.sum);

    if (status == BT_IN_PROGRESS)
        return false;
    if (status != BT_OK) {
        bt_log_error(target->current.request, "landing: the pages could not be summed: %s",
                     error.text);
        target->summing.sum = UINT64_MAX;
    }
    finish_checksum(target);
    return true;
}

static bool jobs_step(struct kvt_target *target)
{
    if (target->verifying && target->device_pool != NULL)
        return checksum_on_device(target);
    if (target->verifying) {
        checksum_slice(target);
        return true;
    }
    if (!bt_queue_try_pop(target->jobs, &target->current))
        return false;
    if (target->current.kind == KVT_TARGET_DISCONNECTED) {
        start_disconnect(target, &target->current.cut);
        return true;
    }
    start_checksum(target);
    return true;
}

static void run(struct kvt_target *target)
{
    const struct kvt_transport_ops *ops = target->transport->ops;
    int64_t busy_ns = 0;

    while (!atomic_load(&target->stop)) {
        uint32_t kicks = atomic_load(&target->kicks);
        int64_t now_ns = bt_clock_now_ns();
        bool any = ops->progress(target->transport);
        any = jobs_step(target) || any;
        if (expected_step(target) || any) {
            busy_ns = now_ns;
            continue;
        }
        if (now_ns - busy_ns < SPIN_NS)
            continue;
        atomic_store(&target->sleeping, true);
        if (atomic_load(&target->kicks) == kicks)
            ops->wait(target->transport,
                      target->expected_count > 0 || target->verifying ? LOOK_MS : -1);
        atomic_store(&target->sleeping, false);
    }
}

static enum bt_status make_pool(struct kvt_target *target, uint64_t bytes, struct bt_error *error)
{
    const struct kvt_target_options *options = &target->options;
    const struct kvt_transport_ops *ops = target->transport->ops;
    enum bt_status status;

    if (kvt_pool_memory_kind(options->pool_device) == BT_MEMORY_HOST)
        return ops->memory_alloc(target->transport, bytes, error, &target->memory);
    status = kvt_device_pool_create(options->pool_device, &options->layout, options->pool_pages,
                                    bytes, error, &target->device_pool);
    if (status != BT_OK)
        return status;
    return ops->memory_register(target->transport, kvt_device_pool_base(target->device_pool), bytes,
                                error, &target->memory);
}

/* The pool is the transport's until that has closed its connections. */
static void close_all(struct kvt_target *target)
{
    target->transport->ops->destroy(target->transport);
    kvt_device_pool_destroy(target->device_pool);
}

static enum bt_status start_parts(struct kvt_target *target, struct bt_error *error)
{
    const struct kvt_transport_ops *ops = target->transport->ops;
    uint64_t bytes = kvt_progress_memory_bytes(&target->options.layout, target->options.pool_pages);
    enum bt_status status;

    status = make_pool(target, bytes, error);
    if (status != BT_OK)
        return status;
    target->pool = ops->memory_base(target->memory);
    status = ops->memory_pack_key(target->transport, target->memory, error, &target->key,
                                  &target->key_size);
    if (status != BT_OK)
        return status;
    return ops->address(target->transport, error, &target->address, &target->address_size);
}

static enum bt_status start(struct kvt_target *target, struct bt_error *error)
{
    enum bt_status status;

    target->transport = target->options.given;
    if (target->transport == NULL) {
        const struct kvt_transport_options wanted = {.name = target->options.transport,
                                                     .bind_host = target->options.bind_host,
                                                     .device = target->options.device,
                                                     .forbid_fallback =
                                                         target->options.forbid_fallback,
                                                     .pool_device = target->options.pool_device};
        status = kvt_transport_create(&wanted, error, &target->transport);
        if (status != BT_OK)
            return status;
    }
    status = start_parts(target, error);
    if (status != BT_OK)
        close_all(target);
    else if (target->transport->ops->choice_info != NULL)
        target->transport->ops->choice_info(target->transport, &target->info);
    return status;
}

static void *thread_main(void *arg)
{
    struct kvt_target *target = arg;
    enum bt_status status = start(target, &target->start_error);

    target->start_status = status;
    sem_post(&target->started);
    if (status != BT_OK)
        return NULL;
    run(target);
    close_all(target);
    return NULL;
}

/* ---- the control thread ---- */

static void target_free(struct kvt_target *target)
{
    struct job job;
    struct summing hint;

    while (target->jobs != NULL && bt_queue_try_pop(target->jobs, &job))
        free(job.pages);
    while (target->hints != NULL && bt_queue_try_pop(target->hints, &hint))
        summing_finish(&hint);
    while (target->expected_count > 0)
        summing_finish(&target->expected[--target->expected_count]);
    if (target->verifying)
        summing_finish(&target->summing);
    bt_queue_destroy(target->hints);
    bt_queue_destroy(target->jobs);
    bt_queue_destroy(target->events);
    sem_destroy(&target->started);
    free(target->address);
    free(target->key);
    free(target);
}

static struct kvt_target *target_alloc(const struct kvt_target_options *options)
{
    struct kvt_target *target = calloc(1, sizeof(*target));

    if (target == NULL)
        return NULL;
    target->options = *options;
    sem_init(&target->started, 0, 0);
    target->jobs = bt_queue_create(options->max_jobs, sizeof(struct job));
    target->events = bt_queue_create(options->max_jobs, sizeof(struct kvt_target_event));
    target->hints = bt_queue_create(KVT_EXPECTED_MAX, sizeof(struct summing));
    if (target->hints == NULL || target->jobs == NULL || target->events == NULL) {
        target_free(target);
        return NULL;
    }
    return target;
}

static int start_thread(struct kvt_target *target)
{
    sigset_t all, before;
    int code;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    code = pthread_create(&target->thread, NULL, thread_main, target);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

enum bt_status kvt_target_create(const struct kvt_target_options *options, struct bt_error *error,
                                 struct kvt_target **ret_target)
{
    struct kvt_target *target;
    enum bt_status status;

    BT_ASSERT(options->max_jobs > 0 && options->pool_pages > 0);
    target = target_alloc(options);
    if (target == NULL || start_thread(target) != 0) {
        if (target != NULL)
            target_free(target);
        if (options->given != NULL)
            options->given->ops->destroy(options->given);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory or thread for the kv target");
    }
    while (sem_wait(&target->started) != 0)
        continue;
    if (target->start_status != BT_OK) {
        pthread_join(target->thread, NULL);
        status = target->start_status;
        if (error != NULL)
            *error = target->start_error;
        target_free(target);
        return status;
    }
    *ret_target = target;
    return BT_OK;
}

void kvt_target_destroy(struct kvt_target *target)
{
    if (target == NULL)
        return;
    atomic_store(&target->stop, true);
    kick(target);
    pthread_join(target->thread, NULL);
    target_free(target);
}

void *kvt_target_pool(const struct kvt_target *target)
{
    return target->pool;
}

void kvt_target_address(const struct kvt_target *target, const void **ret_address, size_t *ret_size)
{
    *ret_address = target->address;
    *ret_size = target->address_size;
}

void kvt_target_key(const struct kvt_target *target, const void **ret_key, size_t *ret_size)
{
    *ret_key = target->key;
    *ret_size = target->key_size;
}

const char *kvt_target_offers(const struct kvt_target *target)
{
    return target->info.offers;
}

struct bt_queue *kvt_target_events(const struct kvt_target *target)
{
    return target->events;
}

/* Jobs that are not over plus events that were not taken stay within max_jobs. */
static bool has_room(const struct kvt_target *target)
{
    uint64_t pending = target->accepted - atomic_load(&target->completed);

    return pending + bt_queue_size(target->events) < target->options.max_jobs;
}

static void submit(struct kvt_target *target, const struct job *job)
{
    target->accepted++;
    BT_ASSERT(bt_queue_try_push(target->jobs, job));
    kick(target);
}

enum bt_status kvt_target_checksum(struct kvt_target *target, uint64_t request, uint64_t epoch,
                                   const uint32_t *pages, uint32_t tokens)
{
    struct job job = {
        .kind = KVT_TARGET_CHECKSUM, .request = request, .epoch = epoch, .tokens = tokens};
    size_t bytes = bt_kv_pages_for(tokens) * sizeof(*pages);

    BT_ASSERT(tokens > 0);
    for (uint32_t i = 0; i < bt_kv_pages_for(tokens); i++)
        BT_ASSERT(pages[i] < target->options.pool_pages);
    if (!has_room(target))
        return BT_ERR_EXHAUSTED;
    job.pages = malloc(bytes);
    if (job.pages == NULL)
        return BT_ERR_NO_MEMORY;
    memcpy(job.pages, pages, bytes);
    submit(target, &job);
    return BT_OK;
}

void kvt_target_expect(struct kvt_target *target, uint64_t epoch, const uint32_t *pages,
                       uint32_t tokens)
{
    size_t bytes = bt_kv_pages_for(tokens) * sizeof(*pages);
    struct summing hint = {.epoch = epoch, .tokens = tokens, .early = true};

    BT_ASSERT(tokens > 0);
    for (uint32_t i = 0; i < bt_kv_pages_for(tokens); i++)
        BT_ASSERT(pages[i] < target->options.pool_pages);
    if (target->device_pool != NULL)
        return;
    hint.pages = malloc(bytes);
    hint.done = calloc(target->options.layout.layer_count, sizeof(*hint.done));
    if (hint.pages != NULL)
        memcpy(hint.pages, pages, bytes);
    if (hint.pages == NULL || hint.done == NULL || !bt_queue_try_push(target->hints, &hint))
        summing_finish(&hint);
    else
        kick(target);
}

void kvt_target_forget(struct kvt_target *target, uint64_t epoch)
{
    struct summing hint = {.epoch = epoch};

    if (!bt_queue_try_push(target->hints, &hint))
        atomic_store(&target->forget_all, true); /* hints all: the others are summed at the end */
    kick(target);
}

enum bt_status kvt_target_cut(struct kvt_target *target, const struct kvt_cut *cut)
{
    struct job job = {.kind = KVT_TARGET_DISCONNECTED, .cut = *cut};

    if (!has_room(target))
        return BT_ERR_EXHAUSTED;
    submit(target, &job);
    return BT_OK;
}

enum bt_status kvt_target_disconnect(struct kvt_target *target, uint64_t incarnation)
{
    const struct kvt_cut all = {
        .incarnation = incarnation, .link = KVT_ANY_LINK, .lines = KVT_ALL_LINES};

    return kvt_target_cut(target, &all);
}
