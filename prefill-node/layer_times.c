#include "prefill-node/layer_times.h"

#include <stdatomic.h>
#include <stdlib.h>

struct entry {
    int64_t compute_begin_ns, compute_end_ns; /* compute thread */
    int64_t push_begin_ns, push_end_ns;       /* pushing thread */
    uint64_t bytes;
};

struct pf_layer_times {
    struct kvt_push_watch watch;
    uint32_t layer_count, max_chunks;
    uint32_t *chunk_ends; /* [max_chunks] tokens, ascending */
    _Atomic uint32_t chunk_count;
    struct entry *entries; /* [max_chunks][layer_count] */
    int64_t layer_begin_ns;
    bool full; /* the chunk that is computed has no entry */
    Baton__V1__LayerTime *messages;
    Baton__V1__LayerTime **list;
};

static void add_written(struct entry *entry, uint64_t bytes, int64_t begin_ns, int64_t end_ns)
{
    entry->bytes += bytes;
    if (entry->push_begin_ns == 0 || begin_ns < entry->push_begin_ns) {
        entry->push_begin_ns = begin_ns;
    }
    if (end_ns > entry->push_end_ns) {
        entry->push_end_ns = end_ns;
    }
}

/* One write may have tokens of several chunks: it counts for each. */
static void on_written(void *context, uint32_t layer, uint32_t token_begin, uint32_t token_end,
                       uint64_t bytes, int64_t begin_ns, int64_t end_ns)
{
    struct pf_layer_times *times = context;
    uint32_t count = atomic_load(&times->chunk_count), chunk_begin = 0;
    for (uint32_t chunk = 0; chunk < count && chunk_begin < token_end; chunk++) {
        uint32_t chunk_end = times->chunk_ends[chunk];
        uint32_t first = token_begin > chunk_begin ? token_begin : chunk_begin;
        uint32_t last = token_end < chunk_end ? token_end : chunk_end;
        if (first < last) {
            uint64_t share = bytes / (token_end - token_begin) * (last - first);
            add_written(&times->entries[(size_t)chunk * times->layer_count + layer], share,
                        begin_ns, end_ns);
        }
        chunk_begin = chunk_end;
    }
}

static void add_chunk(struct pf_layer_times *times, uint32_t token_end)
{
    uint32_t count = atomic_load(&times->chunk_count);
    times->full = count == times->max_chunks;
    if (!times->full) {
        times->chunk_ends[count] = token_end;
        atomic_store(&times->chunk_count, count + 1);
    }
}

struct pf_layer_times *pf_layer_times_create(uint32_t layer_count, uint32_t cached_tokens,
                                             uint32_t prompt_tokens)
{
    struct pf_layer_times *times = calloc(1, sizeof(*times));
    if (!times) {
        return NULL;
    }
    uint32_t most = PF_LAYER_TIMES_MAX / layer_count;
    times->watch = (struct kvt_push_watch){on_written, times};
    times->layer_count = layer_count;
    times->max_chunks = prompt_tokens < most ? prompt_tokens : most;
    times->chunk_ends = calloc(times->max_chunks + 1, sizeof(uint32_t));
    times->entries = calloc((size_t)times->max_chunks * layer_count + 1, sizeof(struct entry));
    if (!times->chunk_ends || !times->entries) {
        pf_layer_times_destroy(times);
        return NULL;
    }
    if (cached_tokens > 0) {
        add_chunk(times, cached_tokens);
    }
    return times;
}

void pf_layer_times_destroy(struct pf_layer_times *times)
{
    if (!times) {
        return;
    }
    free(times->chunk_ends);
    free(times->entries);
    free(times->messages);
    free(times->list);
    free(times);
}

const struct kvt_push_watch *pf_layer_times_watch(const struct pf_layer_times *times)
{
    return &times->watch;
}

void pf_layer_times_chunk(struct pf_layer_times *times, uint32_t token_end, int64_t now_ns)
{
    add_chunk(times, token_end);
    times->layer_begin_ns = now_ns;
}

void pf_layer_times_computed(struct pf_layer_times *times, uint32_t layer, int64_t now_ns)
{
    if (times->full) {
        return;
    }
    uint32_t chunk = atomic_load(&times->chunk_count) - 1;
    struct entry *entry = &times->entries[(size_t)chunk * times->layer_count + layer];
    entry->compute_begin_ns = times->layer_begin_ns;
    entry->compute_end_ns = now_ns;
    times->layer_begin_ns = now_ns;
}

/* 0 stands for what did not happen; what was cached may be written before the first chunk. */
static uint64_t after(int64_t begin_ns, int64_t when_ns)
{
    return when_ns == 0 ? 0 : when_ns > begin_ns ? (uint64_t)(when_ns - begin_ns) : 1;
}

static void fill_one(const struct entry *entry, int64_t begin_ns, Baton__V1__LayerTime *message)
{
    message->compute_end_ns = after(begin_ns, entry->compute_end_ns);
    if (message->compute_end_ns > 0 && entry->compute_begin_ns > begin_ns) {
        message->compute_begin_ns = (uint64_t)(entry->compute_begin_ns - begin_ns);
    }
    message->push_begin_ns = after(begin_ns, entry->push_begin_ns);
    message->push_end_ns = after(begin_ns, entry->push_end_ns);
    message->bytes = entry->bytes;
}

void pf_layer_times_fill(struct pf_layer_times *times, int64_t begin_ns,
                         Baton__V1__PrefillDone *done)
{
    uint32_t count = atomic_load(&times->chunk_count) * times->layer_count;
    times->messages = calloc(count + 1, sizeof(*times->messages));
    times->list = calloc(count + 1, sizeof(*times->list));
    if (!times->messages || !times->list) {
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        baton__v1__layer_time__init(&times->messages[i]);
        times->messages[i].chunk = i / times->layer_count;
        times->messages[i].layer = i % times->layer_count;
        fill_one(&times->entries[i], begin_ns, &times->messages[i]);
        times->list[i] = &times->messages[i];
    }
    done->layers = times->list;
    done->n_layers = count;
}
