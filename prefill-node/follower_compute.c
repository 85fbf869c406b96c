#include "prefill-node/follower_compute.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/kvcache/layout.h"
#include "prefill-node/agreement.h"

struct entry {
    struct pf_follower_push push; /* serial 0: free */
    uint32_t computed;            /* tokens; the thread's */
    bool used, removed;           /* in this iteration; meanwhile */
};

struct pf_follower_compute {
    struct pf_follower_compute_options options;
    struct pf_pass *pass;
    struct bt_queue *events;
    pthread_mutex_t lock; /* of the table */
    struct entry *table;  /* [max_pushes] */
    atomic_bool stop;
    struct bt_error error; /* the thread's until FAILED */
    pthread_t thread;
    bool started;

    uint32_t *words;              /* [pf_plan_max_words] */
    struct pf_plan_chunk *chunks; /* [limits.max_chunks], of one iteration */
    struct kvt_push **pushes;     /* likewise */
    struct entry **entries;       /* likewise; NULL: no push is here */
    uint32_t chunk_count;
};

/* The queue holds all that max_pushes can cause, and one last. */
static void emit(struct pf_follower_compute *compute, enum pf_follower_event_kind kind,
                 uint64_t serial)
{
    const struct pf_follower_event event = {kind, serial, &compute->error};
    BT_ASSERT(bt_queue_try_push(compute->events, &event));
}

/* ---- the table ---- */

static struct entry *find(struct pf_follower_compute *compute, uint64_t serial)
{
    for (uint32_t i = 0; i < compute->options.max_pushes; i++) {
        if (compute->table[i].push.serial == serial) {
            return &compute->table[i];
        }
    }
    return NULL;
}

enum bt_status pf_follower_compute_add(struct pf_follower_compute *compute,
                                       const struct pf_follower_push *push, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    pthread_mutex_lock(&compute->lock);
    struct entry *free_entry = find(compute, 0);
    if (find(compute, push->serial)) {
        status = bt_error_set(error, BT_ERR_ALREADY_EXISTS, "serial %" PRIu64 " is being pushed",
                              push->serial);
    } else if (!free_entry) {
        status = bt_error_set(error, BT_ERR_EXHAUSTED, "%" PRIu32 " pushes are here already",
                              compute->options.max_pushes);
    } else {
        *free_entry = (struct entry){.push = *push, .computed = push->cached_tokens};
    }
    pthread_mutex_unlock(&compute->lock);
    return status;
}

bool pf_follower_compute_remove(struct pf_follower_compute *compute, uint64_t serial)
{
    pthread_mutex_lock(&compute->lock);
    struct entry *entry = find(compute, serial);
    bool used = entry && entry->used;
    if (used) {
        entry->removed = true;
    } else if (entry) {
        entry->push.serial = 0;
    }
    pthread_mutex_unlock(&compute->lock);
    return !used;
}

/* A chunk goes on where the one before it ended, in the pages that the push is from. */
static bool fits(const struct entry *entry, const struct pf_plan_chunk *chunk)
{
    uint32_t end = chunk->start + chunk->rows;
    return chunk->start == entry->computed && end <= entry->push.prompt_tokens &&
           chunk->is_last == (end == entry->push.prompt_tokens) &&
           memcmp(chunk->pages, entry->push.pages, bt_kv_pages_for(end) * sizeof(uint32_t)) == 0;
}

/* The pushes of the plan are in use from now on, or none of them. */
static enum bt_status take_pushes(struct pf_follower_compute *compute)
{
    enum bt_status status = BT_OK;
    pthread_mutex_lock(&compute->lock);
    for (uint32_t i = 0; i < compute->chunk_count; i++) {
        const struct pf_plan_chunk *chunk = &compute->chunks[i];
        struct entry *entry = find(compute, chunk->serial);
        if (entry && (entry->removed || !fits(entry, chunk))) {
            status = bt_error_set(&compute->error, BT_ERR_PROTOCOL,
                                  "plan: rows %" PRIu32 " to %" PRIu32 " of job %" PRIu64
                                  " do not fit its push",
                                  chunk->start, chunk->start + chunk->rows, chunk->serial);
        }
        compute->entries[i] = entry;
        compute->pushes[i] = entry ? entry->push.push : NULL;
    }
    for (uint32_t i = 0; i < compute->chunk_count && status == BT_OK; i++) {
        if (compute->entries[i]) {
            compute->entries[i]->used = true;
        }
    }
    pthread_mutex_unlock(&compute->lock);
    return status;
}

/* Final on all layers. */
static void push_cached(const struct pf_follower_compute *compute)
{
    for (uint32_t i = 0; i < compute->chunk_count; i++) {
        const struct entry *entry = compute->entries[i];
        bool first = entry && entry->computed == entry->push.cached_tokens;
        uint32_t layers =
            first && entry->computed > 0 ? compute->options.pass.layout.layer_count : 0;
        for (uint32_t layer = 0; layer < layers; layer++) {
            kvt_push_ready(compute->pushes[i], layer, entry->computed);
        }
    }
}

static void release_pushes(struct pf_follower_compute *compute)
{
    pthread_mutex_lock(&compute->lock);
    for (uint32_t i = 0; i < compute->chunk_count; i++) {
        struct entry *entry = compute->entries[i];
        if (!entry) {
            continue;
        }
        entry->computed += compute->chunks[i].rows;
        entry->used = false;
        if (entry->removed) {
            emit(compute, PF_FOLLOWER_RELEASED, entry->push.serial);
            *entry = (struct entry){0};
        }
    }
    pthread_mutex_unlock(&compute->lock);
}

/* ---- the thread ---- */

static enum bt_status take_plan(struct pf_follower_compute *compute, uint32_t word_count)
{
    struct bt_group *group = bt_rank_group(compute->options.pass.rank);
    size_t bytes = word_count * sizeof(uint32_t), came;
    if (word_count > pf_plan_max_words(&compute->options.limits)) {
        return bt_error_set(&compute->error, BT_ERR_PROTOCOL, "plan: %" PRIu32 " words",
                            word_count);
    }
    enum bt_status status = bt_group_broadcast(group, 0, compute->words, bytes, &came);
    if (status == BT_ERR_EXHAUSTED || (status == BT_OK && came != bytes)) {
        return bt_error_set(&compute->error, BT_ERR_PROTOCOL, "plan: %s than was agreed",
                            status == BT_OK ? "shorter" : "longer");
    }
    if (status != BT_OK) {
        return bt_error_set(&compute->error, status, "%s", bt_group_error(group));
    }
    return pf_plan_decode(compute->words, word_count, &compute->options.limits, &compute->error,
                          compute->chunks, &compute->chunk_count);
}

static enum bt_status follow(struct pf_follower_compute *compute, uint32_t word_count)
{
    struct bt_forward_result nothing;
    int64_t computed_ns;
    enum bt_status status = take_plan(compute, word_count);
    if (status == BT_OK) {
        status = take_pushes(compute);
    }
    if (status == BT_OK) {
        push_cached(compute);
        status = pf_pass_run(compute->pass, compute->chunks, compute->pushes, compute->chunk_count,
                             NULL, &compute->error, &nothing, &computed_ns);
        release_pushes(compute);
    }
    return status;
}

static void *compute_main(void *argument)
{
    struct pf_follower_compute *compute = argument;
    enum bt_status status = pf_pass_enter(compute->pass, &compute->error);
    struct pf_intent all = {0};
    while (status == BT_OK && !all.leave) {
        const struct pf_intent mine = {
            .stop = atomic_load_explicit(&compute->stop, memory_order_relaxed)};
        status = pf_agree(compute->options.pass.rank, &mine, &compute->error, &all);
        if (status == BT_OK && all.plan_words > 0) {
            status = follow(compute, all.plan_words);
        }
    }
    emit(compute, status == BT_OK ? PF_FOLLOWER_LEFT : PF_FOLLOWER_FAILED, 0);
    return NULL;
}

static void compute_free(struct pf_follower_compute *compute)
{
    pf_pass_destroy(compute->pass);
    bt_queue_destroy(compute->events);
    pthread_mutex_destroy(&compute->lock);
    free(compute->table);
    free(compute->words);
    free(compute->chunks);
    free(compute->pushes);
    free(compute->entries);
    free(compute);
}

static bool compute_alloc(struct pf_follower_compute *compute)
{
    const struct pf_plan_limits *limits = &compute->options.limits;
    compute->table = calloc(compute->options.max_pushes, sizeof(*compute->table));
    compute->events =
        bt_queue_create((size_t)compute->options.max_pushes + 1, sizeof(struct pf_follower_event));
    compute->words = calloc(pf_plan_max_words(limits), sizeof(uint32_t));
    compute->chunks = calloc(limits->max_chunks, sizeof(*compute->chunks));
    compute->pushes = calloc(limits->max_chunks, sizeof(struct kvt_push *));
    compute->entries = calloc(limits->max_chunks, sizeof(struct entry *));
    return compute->table && compute->events && compute->words && compute->chunks &&
           compute->pushes && compute->entries;
}

enum bt_status pf_follower_compute_create(const struct pf_follower_compute_options *options,
                                          struct bt_error *error,
                                          struct pf_follower_compute **ret_compute)
{
    struct pf_follower_compute *compute = calloc(1, sizeof(*compute));
    if (!compute) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "compute thread: no memory");
    }
    compute->options = *options;
    pthread_mutex_init(&compute->lock, NULL);
    enum bt_status status = compute_alloc(compute) ? BT_OK : BT_ERR_NO_MEMORY;
    if (status == BT_OK) {
        status = pf_pass_create(&options->pass, error, &compute->pass);
    } else {
        bt_error_set(error, status, "compute thread: no memory");
    }
    if (status != BT_OK) {
        compute_free(compute);
        return status;
    }
    *ret_compute = compute;
    return BT_OK;
}

enum bt_status pf_follower_compute_start(struct pf_follower_compute *compute,
                                         struct bt_error *error)
{
    if (pthread_create(&compute->thread, NULL, compute_main, compute) != 0) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "compute thread: no thread");
    }
    compute->started = true;
    return BT_OK;
}

void pf_follower_compute_destroy(struct pf_follower_compute *compute)
{
    if (!compute) {
        return;
    }
    if (compute->started) {
        pthread_join(compute->thread, NULL);
    }
    compute_free(compute);
}

void pf_follower_compute_stop(struct pf_follower_compute *compute)
{
    atomic_store_explicit(&compute->stop, true, memory_order_relaxed);
}

struct bt_queue *pf_follower_compute_events(const struct pf_follower_compute *compute)
{
    return compute->events;
}
