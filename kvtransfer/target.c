#include "kvtransfer/target.h"

#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "kvtransfer/checksum.h"
#include "kvtransfer/transport.h"

#define SLICE_BYTES (UINT64_C(1) << 20) /* checksummed between two looks at the transport */
#define SPIN_NS     INT64_C(20000)      /* after the last sign of a writer */

struct job {
    enum kvt_target_event_kind kind;
    uint64_t request, epoch;
    uint64_t incarnation;
    uint32_t *pages; /* owned */
    uint32_t tokens;
};

struct kvt_target {
    struct kvt_target_options options;
    struct kvt_transport *transport;
    struct kvt_memory *memory;
    char *pool;
    void *address, *key;
    size_t address_size, key_size;
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

    bool verifying; /* target thread: `current`, up to (layer, logical page) */
    struct job current;
    uint32_t layer, logical;
    uint64_t sum;
};

struct cut {
    struct kvt_target *target;
    uint64_t incarnation;
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
    struct cut *cut = context;
    struct kvt_target_event event = {.kind = KVT_TARGET_DISCONNECTED,
                                     .incarnation = cut->incarnation};

    (void)status;
    complete(cut->target, &event);
    free(cut);
}

static void start_disconnect(struct kvt_target *target, uint64_t incarnation)
{
    struct cut *cut = malloc(sizeof(*cut));

    BT_ASSERT(cut != NULL); /* a lost disconnect would keep pages in quarantine for ever */
    *cut = (struct cut){.target = target, .incarnation = incarnation};
    target->transport->ops->disconnect(target->transport, incarnation, on_disconnected, cut);
}

static void finish_checksum(struct kvt_target *target)
{
    struct kvt_target_event event = {.kind = KVT_TARGET_CHECKSUM,
                                     .request = target->current.request,
                                     .epoch = target->current.epoch,
                                     .checksum = target->sum};

    free(target->current.pages);
    target->verifying = false;
    complete(target, &event);
}

static void checksum_slice(struct kvt_target *target)
{
    const struct bt_kv_layout *layout = &target->options.layout;
    const struct job *job = &target->current;
    uint32_t page_count = bt_kv_pages_for(job->tokens);

    for (uint64_t bytes = 0; bytes < SLICE_BYTES; bytes += bt_kv_page_bytes(layout)) {
        uint32_t left = job->tokens - target->logical * BT_PAGE_TOKENS;
        const char *page =
            target->pool + bt_kv_offset(layout, target->options.pool_pages, target->layer,
                                        job->pages[target->logical], 0);
        target->sum += kvt_checksum_page(layout, page, target->layer, target->logical,
                                         left < BT_PAGE_TOKENS ? left : BT_PAGE_TOKENS);
        if (++target->logical < page_count)
            continue;
        target->logical = 0;
        if (++target->layer == layout->layer_count) {
            finish_checksum(target);
            return;
        }
    }
}

static bool jobs_step(struct kvt_target *target)
{
    if (target->verifying) {
        checksum_slice(target);
        return true;
    }
    if (!bt_queue_try_pop(target->jobs, &target->current))
        return false;
    if (target->current.kind == KVT_TARGET_DISCONNECTED) {
        start_disconnect(target, target->current.incarnation);
        return true;
    }
    target->verifying = true;
    target->layer = target->logical = 0;
    target->sum = 0;
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
        if (jobs_step(target) || any) {
            busy_ns = now_ns;
            continue;
        }
        if (now_ns - busy_ns < SPIN_NS)
            continue;
        atomic_store(&target->sleeping, true);
        if (atomic_load(&target->kicks) == kicks)
            ops->wait(target->transport, -1);
        atomic_store(&target->sleeping, false);
    }
}

static enum bt_status start_parts(struct kvt_target *target, struct bt_error *error)
{
    const struct kvt_transport_ops *ops = target->transport->ops;
    uint64_t bytes = bt_kv_pool_bytes(&target->options.layout, target->options.pool_pages);
    enum bt_status status;

    status = ops->memory_alloc(target->transport, bytes, error, &target->memory);
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
                                                         target->options.forbid_fallback};
        status = kvt_transport_create(&wanted, error, &target->transport);
        if (status != BT_OK)
            return status;
    }
    status = start_parts(target, error);
    if (status != BT_OK)
        target->transport->ops->destroy(target->transport); /* frees the pool, too */
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
    target->transport->ops->destroy(target->transport); /* frees the pool, too */
    return NULL;
}

/* ---- the control thread ---- */

static void target_free(struct kvt_target *target)
{
    struct job job;

    while (target->jobs != NULL && bt_queue_try_pop(target->jobs, &job))
        free(job.pages);
    if (target->verifying)
        free(target->current.pages);
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
    if (target->jobs == NULL || target->events == NULL) {
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

enum bt_status kvt_target_disconnect(struct kvt_target *target, uint64_t incarnation)
{
    struct job job = {.kind = KVT_TARGET_DISCONNECTED, .incarnation = incarnation};

    if (!has_room(target))
        return BT_ERR_EXHAUSTED;
    submit(target, &job);
    return BT_OK;
}
