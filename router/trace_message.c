/* A record as the spans that operators see. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/trace.h"

#define ARG_SIZE 160

struct builder {
    const struct rt_trace_record *record;
    Baton__V1__RequestTrace *trace;
    int64_t unix_offset_ns;
    size_t capacity;
    bool failed;
};

/* ---- one span */

static bool set_string(char **field, const char *value)
{
    char *copy = strdup(value);
    if (copy) {
        *field = copy;
    }
    return copy != NULL;
}

static bool grow(struct builder *builder)
{
    if (builder->trace->n_spans < builder->capacity) {
        return true;
    }
    size_t capacity = builder->capacity > 0 ? builder->capacity * 2 : 32;
    Baton__V1__TraceSpan **spans = realloc(builder->trace->spans, capacity * sizeof *spans);
    if (spans) {
        builder->trace->spans = spans;
        builder->capacity = capacity;
    }
    return spans != NULL;
}

/* By wall clock. NULL: no memory, which the builder remembers. */
static Baton__V1__TraceSpan *add(struct builder *builder, const char *process, const char *track,
                                 const char *name, int64_t begin_unix_ns, uint64_t duration_ns)
{
    Baton__V1__TraceSpan *span = malloc(sizeof *span);
    if (!span || !grow(builder)) {
        free(span);
        builder->failed = true;
        return NULL;
    }
    baton__v1__trace_span__init(span);
    builder->trace->spans[builder->trace->n_spans++] = span;
    span->begin_unix_ns = begin_unix_ns;
    span->duration_ns = duration_ns;
    builder->failed |= !set_string(&span->process, process) || !set_string(&span->track, track) ||
                       !set_string(&span->name, name);
    return span;
}

__attribute__((format(printf, 3, 4))) static void
argue(struct builder *builder, Baton__V1__TraceSpan *span, const char *format, ...)
{
    char text[ARG_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    char **args = span ? realloc(span->arg, (span->n_arg + 1) * sizeof *args) : NULL;
    if (args) {
        span->arg = args;
        span->arg[span->n_arg] = strdup(text);
    }
    if (!args || !span->arg[span->n_arg]) {
        builder->failed = true;
        return;
    }
    span->n_arg++;
}

/* By the router's clock; nothing where one of both did not happen. */
static Baton__V1__TraceSpan *add_own(struct builder *builder, const char *track, const char *name,
                                     int64_t begin_ns, int64_t end_ns)
{
    if (begin_ns == 0 || end_ns < begin_ns) {
        return NULL;
    }
    return add(builder, "router", track, name, begin_ns + builder->unix_offset_ns,
               (uint64_t)(end_ns - begin_ns));
}

/* ---- the parts */

static void add_request(struct builder *builder)
{
    const struct rt_trace_record *record = builder->record;
    Baton__V1__TraceSpan *span =
        add_own(builder, "request", "request", record->arrival_ns, record->end_ns);
    if (span) {
        argue(builder, span, "outcome=%s", record->outcome);
        argue(builder, span, "prompt_tokens=%" PRIu32, record->prompt_tokens);
        argue(builder, span, "completion_tokens=%" PRIu32, record->completion_tokens);
        argue(builder, span, "attempts=%" PRIu32, record->attempts);
        argue(builder, span, "sampled=%s", record->context.sampled ? "true" : "false");
        if (record->context.parent != 0) {
            argue(builder, span, "parent=%016" PRIx64, record->context.parent);
        }
    }
}

/* Its first tokens here were another router's; it may have been placed anew later. */
static bool was_adopted(const struct rt_trace_record *record)
{
    return record->first_token_ns > 0 && record->reserve_ns == 0;
}

static void add_stages(struct builder *builder)
{
    const struct rt_trace_record *r = builder->record;
    bool prefilled = r->prefill_ns > 0;
    add_own(builder, "request", "tokenize", r->arrival_ns, r->submitted_ns);
    if (was_adopted(r)) {
        add_own(builder, "request", "adoption", r->submitted_ns, r->first_token_ns);
    } else {
        add_own(builder, "request", "queue", r->submitted_ns,
                r->first_reserve_ns > 0 ? r->first_reserve_ns : r->end_ns);
    }
    if (r->reserve_ns > r->first_reserve_ns) {
        add_own(builder, "request", "earlier attempts", r->first_reserve_ns, r->reserve_ns);
    }
    int64_t first_ns = r->first_token_ns > 0 ? r->first_token_ns : r->end_ns;
    add_own(builder, "request", prefilled ? "reserve" : "local prefill", r->reserve_ns,
            prefilled ? r->prefill_ns : first_ns);
    add_own(builder, "request", "prefill", r->prefill_ns, first_ns);
    if (r->first_token_ns > 0) {
        Baton__V1__TraceSpan *span =
            add_own(builder, "request", "decode", r->first_token_ns, r->last_token_ns);
        uint32_t later = r->completion_tokens > 0 ? r->completion_tokens - 1 : 0;
        argue(builder, span, "tokens=%" PRIu32, later);
    }
}

static void add_prefill(struct builder *builder)
{
    const struct rt_trace_record *r = builder->record;
    int64_t begin_ns = r->prefill_begin_unix_ns;
    if (begin_ns == 0) {
        return;
    }
    add(builder, r->prefill_worker, "prefill", "prefill queue",
        begin_ns - (int64_t)r->prefill_queue_ns, r->prefill_queue_ns);
    Baton__V1__TraceSpan *span =
        add(builder, r->prefill_worker, "prefill", "compute", begin_ns, r->prefill_compute_ns);
    argue(builder, span, "prompt_tokens=%" PRIu32, r->prompt_tokens);
    argue(builder, span, "cached_tokens=%" PRIu32, r->cached_tokens);
    span = add(builder, r->prefill_worker, "prefill", "visible transfer",
               begin_ns + (int64_t)r->prefill_compute_ns, r->visible_transfer_ns);
    argue(builder, span, "kv_bytes=%" PRIu64, r->kv_bytes);
    argue(builder, span, "hidden_bytes=%" PRIu64, r->hidden_bytes);
}

static void add_layer(struct builder *builder, const struct rt_trace_layer *layer)
{
    const struct rt_trace_record *r = builder->record;
    Baton__V1__TraceSpan *span;
    char name[32];
    if (layer->compute_end_ns > layer->compute_begin_ns) {
        snprintf(name, sizeof name, "layer %" PRIu32, layer->layer);
        span = add(builder, r->prefill_worker, "compute", name,
                   r->prefill_begin_unix_ns + (int64_t)layer->compute_begin_ns,
                   layer->compute_end_ns - layer->compute_begin_ns);
        argue(builder, span, "chunk=%" PRIu32, layer->chunk);
        argue(builder, span, "layer=%" PRIu32, layer->layer);
    }
    if (layer->push_end_ns > 0 && layer->push_end_ns >= layer->push_begin_ns) {
        snprintf(name, sizeof name, "push %" PRIu32, layer->layer);
        span = add(builder, r->prefill_worker, "transfer", name,
                   r->prefill_begin_unix_ns + (int64_t)layer->push_begin_ns,
                   layer->push_end_ns - layer->push_begin_ns);
        argue(builder, span, "chunk=%" PRIu32, layer->chunk);
        argue(builder, span, "layer=%" PRIu32, layer->layer);
        argue(builder, span, "bytes=%" PRIu64, layer->bytes);
    }
}

static void add_first_step(struct builder *builder)
{
    const struct rt_trace_record *r = builder->record;
    if (r->step_begin_unix_ns == 0) {
        return;
    }
    add(builder, r->decode_worker, "decode", r->prefill_ns > 0 ? "decode queue" : "local prefill",
        r->step_begin_unix_ns - (int64_t)r->step_wait_ns, r->step_wait_ns);
    add(builder, r->decode_worker, "decode", "first step", r->step_begin_unix_ns, r->step_ns);
}

static void add_detail(struct builder *builder)
{
    const struct rt_trace_detail *detail = builder->record->detail;
    int64_t before_ns = builder->record->first_token_ns;
    for (uint32_t i = 0; i < detail->output_count && !builder->failed; i++) {
        const struct rt_trace_output *output = &detail->outputs[i];
        if (output->when_ns > builder->record->first_token_ns) {
            Baton__V1__TraceSpan *span =
                add_own(builder, "output", "step", before_ns, output->when_ns);
            argue(builder, span, "tokens=%" PRIu32, output->tokens);
        }
        before_ns = output->when_ns;
    }
    for (uint32_t i = 0;
         i < detail->layer_count && builder->record->prefill_begin_unix_ns != 0 && !builder->failed;
         i++) {
        add_layer(builder, &detail->layers[i]);
    }
}

/* ---- all of it */

/* Of those that begin at once the longest first, so that it has the others inside. */
static int by_begin(const void *left, const void *right)
{
    const Baton__V1__TraceSpan *a = *(Baton__V1__TraceSpan *const *)left;
    const Baton__V1__TraceSpan *b = *(Baton__V1__TraceSpan *const *)right;
    if (a->begin_unix_ns != b->begin_unix_ns) {
        return a->begin_unix_ns < b->begin_unix_ns ? -1 : 1;
    }
    return (a->duration_ns < b->duration_ns) - (a->duration_ns > b->duration_ns);
}

Baton__V1__RequestTrace *rt_trace_message_create(const struct rt_trace_record *record,
                                                 int64_t unix_offset_ns)
{
    struct builder builder = {.record = record, .unix_offset_ns = unix_offset_ns};
    char trace_id[RT_TRACE_ID_SIZE];
    builder.trace = malloc(sizeof *builder.trace);
    if (!builder.trace) {
        return NULL;
    }
    baton__v1__request_trace__init(builder.trace);
    builder.trace->request_id = record->request;
    rt_trace_id_write(&record->context, trace_id);
    builder.failed = !set_string(&builder.trace->client_request_id, record->client_id) ||
                     !set_string(&builder.trace->trace_id, trace_id);
    add_request(&builder);
    add_stages(&builder);
    add_prefill(&builder);
    add_first_step(&builder);
    if (record->detail) {
        add_detail(&builder);
    }
    if (builder.failed) {
        baton__v1__request_trace__free_unpacked(builder.trace, NULL);
        return NULL;
    }
    qsort(builder.trace->spans, builder.trace->n_spans, sizeof *builder.trace->spans, by_begin);
    return builder.trace;
}
