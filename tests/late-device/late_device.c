#include "tests/late-device/late_device.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/sampler.h"

#define MAX_LINEARS 4

enum op_kind {
    OP_STAGE,
    OP_COPY,
    OP_EVENT,
    OP_GRAPH,
    OP_EMBED,
    OP_RMS_NORM,
    OP_ADD_RMS_NORM,
    OP_LINEAR,
    OP_MLP,
    OP_ADD,
    OP_ZERO,
    OP_GATHER_ROWS,
    OP_ROPE_Q,
    OP_KV_WRITE,
    OP_MLA_PREFILL,
    OP_MLA_DECODE,
    OP_MOE_ROUTE,
    OP_MOE_EXPERTS,
    OP_MOE_EXPERT_ROWS,
    OP_DRAW,
};

enum source { STAGED, STAGED_WANTED, OWN }; /* where rows or sequences of an operation are from */

struct op {
    enum op_kind kind;
    const float *x;
    float *out;
    const void *y;
    uint32_t rows, dim, stride;
    size_t count;
    float eps;
    const struct bt_matrix *weight, *bias;
    struct bt_linear linears[MAX_LINEARS];
    const struct bt_mlp *mlp;
    const struct bt_mla_shape *mla;
    const struct bt_rope_table *rope;
    const struct bt_route_shape *route;
    const struct bt_expert_weights *experts;
    struct bt_routing routing;
    float *logits;
    struct bt_logprobs *logprobs;
    struct bt_kv_layer kv;
    enum source source;
    void *own; /* a list or sequences that were not staged */
    uint32_t own_count;
    struct staged *stage;
    struct bt_event *event;
    uint64_t number; /* of the event's record */
    struct bt_graph *graph;
};

/* A copy of what was staged. */
struct staged {
    struct bt_stage about; /* its pointers are the copies */
    uint32_t *tokens, *token_from, *wanted, *pages;
    struct bt_sequence_rows *sequences, *wanted_sequences;
    struct bt_draw *draws;
    struct bt_adjust *adjusts;
};

struct list {
    struct op *ops;
    size_t count, room;
};

struct bt_graph {
    struct list list;
};

struct bt_event {
    struct late_device *device;
    struct late_stream *stream; /* of the last record */
    uint64_t recorded, done;
};

struct late_device {
    struct bt_device base;
    const struct bt_kernels *cpu;
    struct late_device_counts counts;
    bool broken;
};

struct late_stream {
    struct late_device *device;
    struct bt_stream *cpu;
    struct list queue;
    size_t next; /* in the queue */
    struct bt_graph *capturing;
    struct bt_stage named;  /* of the last stage: the host's pointers */
    struct staged *current; /* of the last stage that was done */
    uint32_t *drawn;        /* of the last draw */
    uint32_t *before;       /* of the one before it */
    uint32_t max_rows, max_adjusts;
    struct bt_sampler *sampler;
    uint32_t vocab_size;
};

static struct late_device *device_of(struct bt_device *device)
{
    return (struct late_device *)device;
}

static struct late_stream *stream_of(struct bt_stream *stream)
{
    return (struct late_stream *)(void *)stream;
}

static void *make(size_t count, size_t bytes)
{
    void *memory = calloc(count + 1, bytes);
    BT_ASSERT(memory);
    return memory;
}

static void *copy_of(const void *from, size_t count, size_t bytes)
{
    void *copy = make(count, bytes);
    if (from && count > 0)
        memcpy(copy, from, count * bytes);
    return copy;
}

static struct op *add(struct list *list, struct op op)
{
    if (list->count == list->room) {
        list->room = list->room * 2 + 64;
        list->ops = realloc(list->ops, list->room * sizeof(struct op));
        BT_ASSERT(list->ops);
    }
    list->ops[list->count] = op;
    return &list->ops[list->count++];
}

static void queue(struct bt_stream *base, struct op op)
{
    struct late_stream *stream = stream_of(base);
    BT_ASSERT(!stream->capturing || (op.source != OWN || !op.own));
    if (stream->capturing) {
        add(&stream->capturing->list, op);
        return;
    }
    stream->device->counts.queued++;
    add(&stream->queue, op);
}

/* ---- what was staged ---- */

static uint32_t page_count_of(const struct bt_sequence_rows *sequence)
{
    return (sequence->start + sequence->row_count + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
}

/* With copies of their page numbers behind them. */
static struct bt_sequence_rows *copy_sequences(const struct bt_sequence_rows *from, uint32_t count)
{
    size_t pages = 0;
    for (uint32_t i = 0; i < count; i++)
        pages += page_count_of(&from[i]);
    struct bt_sequence_rows *copy =
        make(1, (count + 1) * sizeof(*copy) + (pages + 1) * sizeof(uint32_t));
    uint32_t *at = (uint32_t *)(void *)(copy + count + 1);
    for (uint32_t i = 0; i < count; i++) {
        copy[i] = from[i];
        memcpy(at, from[i].pages, page_count_of(&from[i]) * sizeof(uint32_t));
        copy[i].pages = at;
        at += page_count_of(&from[i]);
    }
    return copy;
}

static struct staged *copy_stage(const struct bt_stage *from)
{
    struct staged *stage = make(1, sizeof(*stage));
    stage->about = *from;
    stage->tokens = copy_of(from->tokens, from->rows, sizeof(uint32_t));
    stage->token_from =
        from->token_from ? copy_of(from->token_from, from->rows, sizeof(uint32_t)) : NULL;
    stage->wanted = copy_of(from->wanted, from->wanted_count, sizeof(uint32_t));
    stage->draws =
        copy_of(from->draws, from->draws ? from->wanted_count : 0, sizeof(struct bt_draw));
    stage->adjusts = copy_of(from->adjusts, from->adjust_count, sizeof(struct bt_adjust));
    stage->sequences = copy_sequences(from->sequences, from->sequence_count);
    stage->wanted_sequences = copy_sequences(from->wanted_sequences, from->wanted_sequence_count);
    return stage;
}

static void staged_free(struct staged *stage)
{
    if (!stage)
        return;
    free(stage->tokens);
    free(stage->token_from);
    free(stage->wanted);
    free(stage->draws);
    free(stage->adjusts);
    free(stage->sequences);
    free(stage->wanted_sequences);
    free(stage);
}

static void late_stage(struct bt_stream *base, const struct bt_stage *stage)
{
    struct late_stream *stream = stream_of(base);
    BT_ASSERT(!stream->capturing && stage->rows <= stage->padded_rows &&
              stage->wanted_count <= stage->padded_wanted &&
              stage->padded_rows <= stream->max_rows && stage->adjust_count <= stream->max_adjusts);
    stream->device->counts.stages++;
    stream->named = *stage;
    queue(base, (struct op){.kind = OP_STAGE, .stage = copy_stage(stage)});
}

/* Tokens of the draw before are resolved when it is done. */
static void do_stage(struct late_stream *stream, struct staged *stage)
{
    for (uint32_t i = 0; i < stage->about.rows && stage->token_from; i++)
        if (stage->token_from[i] != BT_TOKEN_GIVEN) {
            BT_ASSERT(stage->token_from[i] < stream->max_rows);
            stage->tokens[i] = stream->drawn[stage->token_from[i]];
        }
    staged_free(stream->current);
    stream->current = stage;
}

/* Rows that are none of padding. */
static uint32_t live(const struct late_stream *stream, uint32_t rows)
{
    const struct staged *stage = stream->current;
    if (!stage)
        return rows;
    if (rows == stage->about.padded_rows)
        return stage->about.rows;
    return rows == stage->about.padded_wanted ? stage->about.wanted_count : rows;
}

static void with_sequences(struct bt_stream *base, struct op *op,
                           const struct bt_sequence_rows *sequences, uint32_t count)
{
    struct late_stream *stream = stream_of(base);
    const struct bt_stage *named = &stream->named;
    op->source = OWN;
    if (sequences == named->sequences && count == named->sequence_count)
        op->source = STAGED;
    else if (sequences == named->wanted_sequences && count == named->wanted_sequence_count)
        op->source = STAGED_WANTED;
    else
        op->own = copy_sequences(sequences, count);
    op->own_count = count;
}

static const struct bt_sequence_rows *sequences_of(const struct late_stream *stream,
                                                   const struct op *op, uint32_t *ret_count)
{
    const struct staged *stage = stream->current;
    *ret_count = op->source == STAGED          ? stage->about.sequence_count
                 : op->source == STAGED_WANTED ? stage->about.wanted_sequence_count
                                               : op->own_count;
    return op->source == STAGED          ? stage->sequences
           : op->source == STAGED_WANTED ? stage->wanted_sequences
                                         : op->own;
}

/* ---- the operations, queued ---- */

static void late_embed(struct bt_stream *base, const struct bt_matrix *table,
                       const uint32_t *tokens, uint32_t rows, float *out)
{
    bool staged = tokens == stream_of(base)->named.tokens;
    queue(base, (struct op){.kind = OP_EMBED,
                            .weight = table,
                            .rows = rows,
                            .out = out,
                            .source = staged ? STAGED : OWN,
                            .own = staged ? NULL : copy_of(tokens, rows, sizeof(*tokens))});
}

static void late_rms_norm(struct bt_stream *base, const float *x, uint32_t rows, uint32_t dim,
                          uint32_t stride, const struct bt_matrix *weight, float eps, float *out)
{
    queue(base, (struct op){.kind = OP_RMS_NORM,
                            .x = x,
                            .rows = rows,
                            .dim = dim,
                            .stride = stride,
                            .weight = weight,
                            .eps = eps,
                            .out = out});
}

static void late_add_rms_norm(struct bt_stream *base, float *x, const float *y, uint32_t rows,
                              uint32_t dim, const struct bt_matrix *weight, float eps, float *out)
{
    queue(base, (struct op){.kind = OP_ADD_RMS_NORM,
                            .x = x,
                            .y = y,
                            .rows = rows,
                            .dim = dim,
                            .weight = weight,
                            .eps = eps,
                            .out = out});
}

static void late_linear(struct bt_stream *base, const float *x, uint32_t rows,
                        const struct bt_linear *linears, uint32_t count)
{
    struct op op = {.kind = OP_LINEAR, .x = x, .rows = rows, .count = count};
    BT_ASSERT(count <= MAX_LINEARS);
    memcpy(op.linears, linears, count * sizeof(*linears));
    queue(base, op);
}

static void late_mlp(struct bt_stream *base, const float *x, uint32_t rows,
                     const struct bt_mlp *mlp, float *out)
{
    queue(base, (struct op){.kind = OP_MLP, .x = x, .rows = rows, .mlp = mlp, .out = out});
}

static void late_add(struct bt_stream *base, float *x, const float *y, size_t count)
{
    queue(base, (struct op){.kind = OP_ADD, .out = x, .y = y, .count = count});
}

static void late_zero(struct bt_stream *base, float *x, size_t count)
{
    queue(base, (struct op){.kind = OP_ZERO, .out = x, .count = count});
}

static void late_gather_rows(struct bt_stream *base, float *x, uint32_t dim, const uint32_t *wanted,
                             uint32_t count)
{
    bool staged = wanted == stream_of(base)->named.wanted;
    queue(base, (struct op){.kind = OP_GATHER_ROWS,
                            .out = x,
                            .dim = dim,
                            .rows = count,
                            .source = staged ? STAGED : OWN,
                            .own = staged ? NULL : copy_of(wanted, count, sizeof(*wanted))});
}

static void late_rope_q(struct bt_stream *base, float *q, const struct bt_mla_shape *shape,
                        const struct bt_rope_table *rope, const struct bt_sequence_rows *sequences,
                        uint32_t count)
{
    struct op op = {.kind = OP_ROPE_Q, .out = q, .mla = shape, .rope = rope};
    with_sequences(base, &op, sequences, count);
    queue(base, op);
}

static void late_kv_write(struct bt_stream *base, const float *kv_a, const struct bt_matrix *norm,
                          float eps, const struct bt_rope_table *rope,
                          const struct bt_sequence_rows *sequences, uint32_t count,
                          const struct bt_kv_layer *kv)
{
    struct op op = {
        .kind = OP_KV_WRITE, .x = kv_a, .weight = norm, .eps = eps, .rope = rope, .kv = *kv};
    with_sequences(base, &op, sequences, count);
    queue(base, op);
}

static void late_mla_prefill(struct bt_stream *base, const float *q,
                             const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                             const struct bt_sequence_rows *sequences, uint32_t count,
                             const struct bt_kv_layer *kv, float *out)
{
    struct op op = {
        .kind = OP_MLA_PREFILL, .x = q, .mla = shape, .weight = kv_b, .kv = *kv, .out = out};
    with_sequences(base, &op, sequences, count);
    queue(base, op);
}

static void late_mla_decode(struct bt_stream *base, const float *q,
                            const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                            const struct bt_sequence_rows *sequences, uint32_t count,
                            const struct bt_kv_layer *kv, float *out)
{
    struct op op = {
        .kind = OP_MLA_DECODE, .x = q, .mla = shape, .weight = kv_b, .kv = *kv, .out = out};
    with_sequences(base, &op, sequences, count);
    queue(base, op);
}

static void late_moe_route(struct bt_stream *base, const float *x, uint32_t rows,
                           const struct bt_matrix *gate, const struct bt_matrix *bias,
                           const struct bt_route_shape *shape, const struct bt_routing *routing)
{
    queue(base, (struct op){.kind = OP_MOE_ROUTE,
                            .x = x,
                            .rows = rows,
                            .weight = gate,
                            .bias = bias,
                            .route = shape,
                            .routing = *routing});
}

static void queue_experts(struct bt_stream *base, enum op_kind kind, const float *x, uint32_t rows,
                          const struct bt_route_shape *shape, const struct bt_routing *routing,
                          const struct bt_expert_weights *experts, void *out)
{
    struct op op = {.kind = kind, .x = x, .rows = rows, .route = shape, .routing = *routing};
    op.experts = experts;
    op.out = out;
    queue(base, op);
}

static void late_moe_experts(struct bt_stream *base, const float *x, uint32_t rows,
                             const struct bt_route_shape *shape, const struct bt_routing *routing,
                             const struct bt_expert_weights *experts, float *out)
{
    queue_experts(base, OP_MOE_EXPERTS, x, rows, shape, routing, experts, out);
}

static void late_moe_expert_rows(struct bt_stream *base, const float *x, uint32_t rows,
                                 const struct bt_route_shape *shape,
                                 const struct bt_routing *routing,
                                 const struct bt_expert_weights *experts, void *y)
{
    queue_experts(base, OP_MOE_EXPERT_ROWS, x, rows, shape, routing, experts, y);
}

static void late_draw(struct bt_stream *base, float *logits, uint32_t rows, uint32_t vocab_size,
                      const struct bt_draw *draws, const struct bt_adjust *adjusts,
                      uint32_t *tokens, struct bt_logprobs *logprobs)
{
    struct late_stream *stream = stream_of(base);
    BT_ASSERT(draws == stream->named.draws && adjusts == stream->named.adjusts &&
              vocab_size == stream->vocab_size);
    queue(base, (struct op){.kind = OP_DRAW,
                            .logits = logits,
                            .rows = rows,
                            .out = (float *)tokens,
                            .logprobs = logprobs});
}

/* ---- and done ---- */

/* As the list of the row has it. */
static struct bt_sampler_history *history_of(const struct late_stream *stream,
                                             const struct bt_draw *draw,
                                             const struct bt_adjust *seen)
{
    struct bt_sampler_history *history = bt_sampler_history_create();
    uint32_t newest = draw->newest_token;
    BT_ASSERT(history);
    for (uint32_t i = 0; i < draw->seen_count; i++) {
        BT_ASSERT(bt_sampler_history_add_prompt(history, &seen[i].token, 1));
        for (uint32_t n = 0; n < seen[i].outputs; n++)
            BT_ASSERT(bt_sampler_history_add_output(history, seen[i].token));
    }
    if (draw->newest == BT_NEWEST_DRAWN) {
        BT_ASSERT(draw->newest_token < stream->max_rows);
        newest = stream->before[draw->newest_token];
    }
    if (draw->newest != BT_NEWEST_NONE)
        BT_ASSERT(bt_sampler_history_add_output(history, newest));
    return history;
}

/* The host's sampler, with what the row is given. Logits that are adjusted are spoilt. */
static void draw_row(struct late_stream *stream, const struct bt_draw *draw, float *logits,
                     uint32_t *ret_token, struct bt_logprobs *ret_logprobs)
{
    const struct bt_adjust *adjusts = stream->current->adjusts + draw->adjust_begin;
    const struct bt_adjust *masked = adjusts + draw->bias_count;
    uint32_t count = draw->bias_count + draw->masked_count + draw->seen_count;
    struct bt_logit_bias *bias = make(draw->bias_count, sizeof(*bias));
    uint32_t *eos = make(draw->masked_count, sizeof(*eos));
    for (uint32_t i = 0; i < draw->bias_count; i++)
        bias[i] = (struct bt_logit_bias){adjusts[i].token, adjusts[i].bias};
    for (uint32_t i = 0; i < draw->masked_count; i++)
        eos[i] = masked[i].token;
    bool seen = draw->seen_count > 0 || draw->newest != BT_NEWEST_NONE;
    const struct bt_sampling sampling = {
        .seed = draw->seed,
        .temperature = draw->temperature,
        .top_p = draw->top_p,
        .min_p = draw->min_p,
        .top_k = draw->top_k,
        .repetition_penalty = seen ? draw->repetition : 1,
        .presence_penalty = draw->presence,
        .frequency_penalty = draw->frequency,
        .logprobs = -1,
        .min_tokens = draw->masked_count > 0 ? draw->position + 1 : 0,
        .bias_count = draw->bias_count,
        .bias = bias,
    };
    struct bt_sampler *sampler = stream->sampler;
    if (draw->masked_count > 0)
        sampler = bt_sampler_create(stream->vocab_size, eos, draw->masked_count);
    BT_ASSERT(sampler);
    struct bt_sampler_history *history = history_of(stream, draw, masked + draw->masked_count);
    struct bt_sample sample;
    bt_sampler_draw(sampler, logits, &sampling, history, draw->position, &sample);
    *ret_token = sample.token;
    if (draw->logprobs > 0)
        bt_sampler_logprobs(stream->sampler, logits, sample.token, draw->logprobs - 1,
                            ret_logprobs);
    for (uint32_t i = 0; i < count; i++)
        logits[adjusts[i].token] = NAN;
    bt_sampler_history_destroy(history);
    if (sampler != stream->sampler)
        bt_sampler_destroy(sampler);
    free(bias);
    free(eos);
}

static void do_draw(struct late_stream *stream, const struct op *op)
{
    uint32_t *tokens = (uint32_t *)(void *)op->out;
    memcpy(stream->before, stream->drawn, stream->max_rows * sizeof(uint32_t));
    for (uint32_t i = 0; i < live(stream, op->rows); i++) {
        draw_row(stream, &stream->current->draws[i], op->logits + (size_t)i * stream->vocab_size,
                 &tokens[i], &op->logprobs[i]);
        stream->drawn[i] = tokens[i];
    }
}

static void do_embed(struct late_stream *stream, const struct op *op)
{
    const struct staged *stage = stream->current;
    uint32_t rows =
        op->source == STAGED && op->rows > stage->about.rows ? stage->about.rows : op->rows;
    stream->device->cpu->embed(stream->cpu, op->weight,
                               op->source == STAGED ? stage->tokens : op->own, rows, op->out);
}

static void do_gather(struct late_stream *stream, const struct op *op)
{
    const struct staged *stage = stream->current;
    uint32_t rows = op->source == STAGED ? stage->about.wanted_count : op->rows;
    stream->device->cpu->gather_rows(stream->cpu, op->out, op->dim,
                                     op->source == STAGED ? stage->wanted : op->own, rows);
}

static void do_with_sequences(struct late_stream *stream, const struct op *op)
{
    const struct bt_kernels *k = stream->device->cpu;
    uint32_t count;
    const struct bt_sequence_rows *sequences = sequences_of(stream, op, &count);
    if (op->kind == OP_ROPE_Q)
        k->rope_q(stream->cpu, op->out, op->mla, op->rope, sequences, count);
    else if (op->kind == OP_KV_WRITE)
        k->kv_write(stream->cpu, op->x, op->weight, op->eps, op->rope, sequences, count, &op->kv);
    else
        (op->kind == OP_MLA_DECODE ? k->mla_decode : k->mla_prefill)(
            stream->cpu, op->x, op->mla, op->weight, sequences, count, &op->kv, op->out);
}

static void do_moe(struct late_stream *stream, const struct op *op)
{
    const struct bt_kernels *k = stream->device->cpu;
    uint32_t rows = live(stream, op->rows);
    if (op->kind == OP_MOE_ROUTE)
        k->moe_route(stream->cpu, op->x, rows, op->weight, op->bias, op->route, &op->routing);
    else if (op->kind == OP_MOE_EXPERTS)
        k->moe_experts(stream->cpu, op->x, rows, op->route, &op->routing, op->experts, op->out);
    else
        k->moe_expert_rows(stream->cpu, op->x, rows, op->route, &op->routing, op->experts, op->out);
}

static void do_dense(struct late_stream *stream, const struct op *op)
{
    const struct bt_kernels *k = stream->device->cpu;
    if (op->kind == OP_RMS_NORM)
        k->rms_norm(stream->cpu, op->x, op->rows, op->dim, op->stride, op->weight, op->eps,
                    op->out);
    else if (op->kind == OP_ADD_RMS_NORM)
        k->add_rms_norm(stream->cpu, (float *)op->x, op->y, op->rows, op->dim, op->weight, op->eps,
                        op->out);
    else if (op->kind == OP_LINEAR)
        k->linear(stream->cpu, op->x, op->rows, op->linears, (uint32_t)op->count);
    else if (op->kind == OP_MLP)
        k->mlp(stream->cpu, op->x, op->rows, op->mlp, op->out);
    else if (op->kind == OP_ADD)
        k->add(stream->cpu, op->out, op->y, op->count);
    else
        k->zero(stream->cpu, op->out, op->count);
}

static void perform(struct late_stream *stream, const struct op *op)
{
    switch (op->kind) {
    case OP_STAGE:
        do_stage(stream, op->stage);
        break;
    case OP_COPY:
        memcpy(op->out, op->y, op->count);
        break;
    case OP_EVENT:
        op->event->done = op->number;
        break;
    case OP_GRAPH:
        for (size_t i = 0; i < op->graph->list.count; i++)
            perform(stream, &op->graph->list.ops[i]);
        break;
    case OP_EMBED:
        do_embed(stream, op);
        break;
    case OP_GATHER_ROWS:
        do_gather(stream, op);
        break;
    case OP_ROPE_Q:
    case OP_KV_WRITE:
    case OP_MLA_PREFILL:
    case OP_MLA_DECODE:
        do_with_sequences(stream, op);
        break;
    case OP_MOE_ROUTE:
    case OP_MOE_EXPERTS:
    case OP_MOE_EXPERT_ROWS:
        do_moe(stream, op);
        break;
    case OP_DRAW:
        do_draw(stream, op);
        break;
    default:
        do_dense(stream, op);
    }
    free(op->own);
}

/* False: nothing is left. */
static bool perform_next(struct late_stream *stream)
{
    if (stream->next == stream->queue.count)
        return false;
    struct op op = stream->queue.ops[stream->next++];
    if (stream->next == stream->queue.count)
        stream->next = stream->queue.count = 0;
    stream->device->counts.done++;
    perform(stream, &op);
    return true;
}

/* ---- the device ---- */

static void late_close(struct bt_device *device)
{
    (void)device;
}

static void late_info(struct bt_device *device, struct bt_device_info *ret_info)
{
    (void)device;
    *ret_info = (struct bt_device_info){.description = "late"};
}

static enum bt_status late_enter(struct bt_device *device, struct bt_error *error)
{
    (void)device;
    (void)error;
    return BT_OK;
}

static enum bt_status late_alloc(struct bt_device *device, size_t bytes, struct bt_error *error,
                                 void **ret_memory)
{
    (void)error;
    device_of(device)->counts.allocations++;
    size_t whole = (bytes + 255) / 256 * 256;
    *ret_memory = aligned_alloc(256, whole > 0 ? whole : 256);
    BT_ASSERT(*ret_memory);
    memset(*ret_memory, 0, whole);
    return BT_OK;
}

static void late_free(struct bt_device *device, void *memory)
{
    (void)device;
    free(memory);
}

static enum bt_status late_stream_create(struct bt_device *device,
                                         const struct bt_stream_limits *limits,
                                         struct bt_team *team, struct bt_error *error,
                                         struct bt_stream **ret_stream)
{
    struct late_stream *stream = make(1, sizeof(*stream));
    BT_ASSERT(limits->vocab_size > 0 && limits->max_page_numbers > 0);
    stream->device = device_of(device);
    stream->max_rows = limits->max_rows;
    stream->max_adjusts = limits->max_adjusts;
    stream->before = make(limits->max_rows, sizeof(uint32_t));
    stream->vocab_size = limits->vocab_size;
    stream->drawn = make(limits->max_rows, sizeof(uint32_t));
    stream->sampler = bt_sampler_create(limits->vocab_size, NULL, 0);
    BT_ASSERT(stream->sampler);
    *ret_stream = (struct bt_stream *)(void *)stream;
    return bt_stream_create(limits, team, error, &stream->cpu);
}

/* Nothing may be left to do: who goes has waited. */
static void late_stream_destroy(struct bt_stream *base)
{
    struct late_stream *stream = stream_of(base);
    BT_ASSERT(stream->queue.count == 0);
    bt_stream_destroy(stream->cpu);
    bt_sampler_destroy(stream->sampler);
    staged_free(stream->current);
    free(stream->drawn);
    free(stream->before);
    free(stream->queue.ops);
    free(stream);
}

static void late_copy(struct bt_stream *base, void *to, const void *from, size_t bytes)
{
    BT_ASSERT(!stream_of(base)->capturing);
    memset(to, 0xee, bytes); /* nobody may look before it is waited for */
    queue(base, (struct op){.kind = OP_COPY, .out = to, .y = from, .count = bytes});
}

static enum bt_status waited(struct late_device *device, struct bt_error *error)
{
    device->counts.waits++;
    return device->broken ? bt_error_set(error, BT_ERR_INTERNAL, "the device broke") : BT_OK;
}

static enum bt_status late_synchronize(struct bt_stream *base, struct bt_error *error)
{
    struct late_stream *stream = stream_of(base);
    BT_ASSERT(!stream->capturing);
    while (perform_next(stream)) {
    }
    return waited(stream->device, error);
}

static enum bt_status late_event_create(struct bt_device *device, struct bt_error *error,
                                        struct bt_event **ret_event)
{
    (void)error;
    *ret_event = make(1, sizeof(**ret_event));
    (*ret_event)->device = device_of(device);
    return BT_OK;
}

static void late_event_destroy(struct bt_event *event)
{
    free(event);
}

static void late_event_record(struct bt_event *event, struct bt_stream *base)
{
    BT_ASSERT(!stream_of(base)->capturing);
    event->stream = stream_of(base);
    queue(base, (struct op){.kind = OP_EVENT, .event = event, .number = ++event->recorded});
}

static void late_event_wait(struct bt_event *event, struct bt_stream *base)
{
    BT_ASSERT(event->stream == stream_of(base)); /* there is one stream */
}

static bool late_event_query(struct bt_event *event)
{
    if (event->done != event->recorded)
        perform_next(event->stream);
    return event->done == event->recorded;
}

static enum bt_status late_event_synchronize(struct bt_event *event, struct bt_error *error)
{
    BT_ASSERT(!event->stream->capturing);
    while (event->done != event->recorded)
        BT_ASSERT(perform_next(event->stream));
    return waited(event->device, error);
}

static enum bt_status late_capture_begin(struct bt_stream *base, struct bt_error *error)
{
    struct late_stream *stream = stream_of(base);
    (void)error;
    BT_ASSERT(!stream->capturing);
    stream->capturing = make(1, sizeof(*stream->capturing));
    stream->device->counts.captures++;
    return BT_OK;
}

static enum bt_status late_capture_end(struct bt_stream *base, struct bt_error *error,
                                       struct bt_graph **ret_graph)
{
    struct late_stream *stream = stream_of(base);
    (void)error;
    *ret_graph = stream->capturing;
    stream->capturing = NULL;
    return BT_OK;
}

static void late_graph_launch(struct bt_graph *graph, struct bt_stream *base)
{
    stream_of(base)->device->counts.launches++;
    queue(base, (struct op){.kind = OP_GRAPH, .graph = graph});
}

static void late_graph_destroy(struct bt_graph *graph)
{
    free(graph->list.ops);
    free(graph);
}

static uint64_t late_waits(const struct bt_device *device)
{
    return ((const struct late_device *)device)->counts.waits;
}

static const struct bt_device_ops late_ops = {
    .close = late_close,
    .info = late_info,
    .enter = late_enter,
    .alloc = late_alloc,
    .free = late_free,
    .alloc_host = late_alloc,
    .free_host = late_free,
    .stream_create = late_stream_create,
    .stream_destroy = late_stream_destroy,
    .copy = late_copy,
    .synchronize = late_synchronize,
    .event_create = late_event_create,
    .event_destroy = late_event_destroy,
    .event_record = late_event_record,
    .event_wait = late_event_wait,
    .event_query = late_event_query,
    .event_synchronize = late_event_synchronize,
    .capture_begin = late_capture_begin,
    .capture_end = late_capture_end,
    .graph_launch = late_graph_launch,
    .graph_destroy = late_graph_destroy,
    .waits = late_waits,
};

static const struct bt_kernels late_kernels = {
    .name = "late",
    .stage = late_stage,
    .embed = late_embed,
    .rms_norm = late_rms_norm,
    .add_rms_norm = late_add_rms_norm,
    .linear = late_linear,
    .mlp = late_mlp,
    .add = late_add,
    .zero = late_zero,
    .gather_rows = late_gather_rows,
    .rope_q = late_rope_q,
    .kv_write = late_kv_write,
    .mla_prefill = late_mla_prefill,
    .mla_decode = late_mla_decode,
    .moe_route = late_moe_route,
    .moe_experts = late_moe_experts,
    .moe_expert_rows = late_moe_expert_rows,
    .draw = late_draw,
};

struct bt_device *late_device_create(const struct bt_kernels *cpu)
{
    struct late_device *device = make(1, sizeof(*device));
    device->base = (struct bt_device){
        .ops = &late_ops, .kernels = &late_kernels, .memory = BT_MEMORY_CUDA, .name = "late"};
    device->cpu = cpu;
    return &device->base;
}

void late_device_destroy(struct bt_device *device)
{
    free(device);
}

struct late_device_counts late_device_count(const struct bt_device *device)
{
    return ((const struct late_device *)device)->counts;
}

void late_device_break(struct bt_device *device)
{
    device_of(device)->broken = true;
}
