#include "router/trace.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAYERS_MAX 4096                /* as in PrefillDone */
#define LONGEST_NS (UINT64_C(1) << 50) /* what a worker says of a time is cut to this */

/* ---- details */

struct rt_trace_detail *rt_trace_detail_create(void)
{
    return calloc(1, sizeof(struct rt_trace_detail));
}

void rt_trace_detail_destroy(struct rt_trace_detail *detail)
{
    if (detail) {
        free(detail->layers);
        free(detail);
    }
}

void rt_trace_detail_output(struct rt_trace_detail *detail, int64_t now_ns, uint32_t tokens)
{
    if (detail->output_count < RT_TRACE_OUTPUTS_MAX) {
        detail->outputs[detail->output_count++] = (struct rt_trace_output){now_ns, tokens};
    }
}

static uint64_t bounded(uint64_t said_ns)
{
    return said_ns < LONGEST_NS ? said_ns : LONGEST_NS;
}

void rt_trace_detail_layers(struct rt_trace_detail *detail, const Baton__V1__PrefillDone *done)
{
    size_t count = done->n_layers < LAYERS_MAX ? done->n_layers : LAYERS_MAX;
    free(detail->layers);
    detail->layers = calloc(count + 1, sizeof *detail->layers);
    detail->layer_count = detail->layers ? (uint32_t)count : 0;
    for (uint32_t i = 0; i < detail->layer_count; i++) {
        const Baton__V1__LayerTime *time = done->layers[i];
        detail->layers[i] = (struct rt_trace_layer){
            .chunk = time->chunk,
            .layer = time->layer,
            .compute_begin_ns = bounded(time->compute_begin_ns),
            .compute_end_ns = bounded(time->compute_end_ns),
            .push_begin_ns = bounded(time->push_begin_ns),
            .push_end_ns = bounded(time->push_end_ns),
            .bytes = time->bytes,
        };
    }
}

static size_t detail_bytes(const struct rt_trace_detail *detail)
{
    return detail ? sizeof *detail + detail->layer_count * sizeof *detail->layers : 0;
}

/* ---- the store: a ring */

struct rt_trace_store {
    uint32_t keep;
    uint32_t count, next;
    uint32_t detailed;               /* age of the oldest that may have details, plus 1 */
    size_t detail_bytes;             /* of all */
    struct rt_trace_record *records; /* [keep] */
};

struct rt_trace_store *rt_trace_store_create(uint32_t keep)
{
    struct rt_trace_store *store = calloc(1, sizeof *store);
    if (store) {
        store->keep = keep;
        store->records = calloc((size_t)keep + 1, sizeof *store->records);
        if (!store->records) {
            free(store);
            return NULL;
        }
    }
    return store;
}

static void drop_detail(struct rt_trace_store *store, struct rt_trace_record *record)
{
    store->detail_bytes -= detail_bytes(record->detail);
    rt_trace_detail_destroy(record->detail);
    record->detail = NULL;
}

void rt_trace_store_destroy(struct rt_trace_store *store)
{
    if (!store) {
        return;
    }
    for (uint32_t i = 0; i < store->count; i++) {
        rt_trace_detail_destroy(store->records[i].detail);
    }
    free(store->records);
    free(store);
}

static struct rt_trace_record *by_age(const struct rt_trace_store *store, uint32_t age)
{
    return &store->records[(store->next + store->keep - 1 - age) % store->keep];
}

static void bound_details(struct rt_trace_store *store)
{
    while (store->detail_bytes > RT_TRACE_DETAIL_BYTES) {
        drop_detail(store, by_age(store, --store->detailed));
    }
}

void rt_trace_store_add(struct rt_trace_store *store, const struct rt_trace_record *record)
{
    if (store->keep == 0) {
        rt_trace_detail_destroy(record->detail);
        return;
    }
    struct rt_trace_record *slot = &store->records[store->next];
    drop_detail(store, slot);
    *slot = *record;
    store->detail_bytes += detail_bytes(slot->detail);
    store->next = (store->next + 1) % store->keep;
    store->count += store->count < store->keep;
    store->detailed = store->detailed < store->count ? store->detailed + 1 : store->count;
    bound_details(store);
}

uint32_t rt_trace_store_count(const struct rt_trace_store *store)
{
    return store->count;
}

const struct rt_trace_record *rt_trace_store_get(const struct rt_trace_store *store, uint32_t age)
{
    return age < store->count ? by_age(store, age) : NULL;
}

void rt_trace_store_layers(struct rt_trace_store *store, struct rt_trace_record *record,
                           const Baton__V1__PrefillDone *done)
{
    if (record->detail) {
        store->detail_bytes -= detail_bytes(record->detail);
        rt_trace_detail_layers(record->detail, done);
        store->detail_bytes += detail_bytes(record->detail);
        bound_details(store);
    }
}

struct rt_trace_record *rt_trace_store_recent(struct rt_trace_store *store, uint64_t request)
{
    for (uint32_t age = 0; age < store->count && age < RT_TRACE_RECENT; age++) {
        struct rt_trace_record *record = by_age(store, age);
        if (record->request == request) {
            return record;
        }
    }
    return NULL;
}

bool rt_trace_record_is(const struct rt_trace_record *record, const char *name)
{
    char number[20], trace[RT_TRACE_ID_SIZE];
    snprintf(number, sizeof number, "%016" PRIx64, record->request);
    rt_trace_id_write(&record->context, trace);
    return (record->client_id[0] && strcmp(record->client_id, name) == 0) ||
           strcmp(number, name) == 0 || strcmp(trace, name) == 0;
}
