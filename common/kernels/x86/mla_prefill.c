/*
 * MLA in its multi-head form. Head by head, so that one head's rows of kv_b are converted once;
 * page by page, so that the keys and values of a page are expanded once for all rows.
 */
#include <math.h>

#include "common/kernels/stream.h"
#include "common/kernels/x86/kv_page.h"
#include "common/kernels/x86/mla_memory.h"
#include "common/kernels/x86/product.h"
#include "common/kernels/x86/softmax.h"
#include "common/kernels/x86/tables.h"

struct call {
    const float *q; /* [row][head][nope + rope] */
    const struct bt_mla_shape *shape;
    const struct bt_matrix *kv_b;
    const struct bt_kv_layer *kv;
    const struct bt_sequence_rows *sequence;
    float *out; /* [row][head][v] */
    char *threads;
    struct bt_rows_prefill_memory memory;
    size_t head_dim, padded_lora, padded_token, padded_key, padded_v;
};

/* One thread's: bt_rows_prefill_memory. */
struct workspace {
    float *weights, *latents, *keys, *values, *scores, *acc, *max, *sum;
};

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static struct bt_x86_weights panel_of(const float *data, size_t outs, size_t cols, size_t stride)
{
    return (struct bt_x86_weights){data, BT_F32, outs, cols, stride};
}

/* keys and values of the first `tokens` tokens of the page */
static void expand_page(const struct call *call, const struct workspace *w, uint32_t page,
                        size_t tokens)
{
    const struct bt_mla_shape *shape = call->shape;
    size_t nope = shape->qk_nope_head_dim, lora = shape->kv_lora_rank;
    struct bt_x86_rows rows = {w->latents, tokens, call->padded_token};

    BT_X86_NAME(kv_widen)(call->kv, page, tokens, w->latents);
    BT_X86_NAME(product_direct)
    (rows, panel_of(w->weights, nope, lora, call->padded_lora), w->keys, call->padded_key);
    BT_X86_NAME(product_direct)
    (rows,
     panel_of(w->weights + nope * call->padded_lora, shape->v_head_dim, lora, call->padded_lora),
     w->values, call->padded_v);
    for (size_t t = 0; t < tokens; t++)
        memcpy(w->keys + t * call->padded_key + nope, w->latents + t * call->padded_token + lora,
               shape->qk_rope_head_dim * sizeof(float));
}

/*
 * Rows first … first + count - 1 of the sequence (count <= BT_X86_PREFILL_ROWS) take in the page;
 * row first + i sees min(seen + i, tokens) of its tokens. q: of row first, this head.
 */
static void take_page(const struct call *call, const struct workspace *w, const float *q,
                      size_t first, size_t count, size_t seen, size_t tokens)
{
    size_t v = call->shape->v_head_dim, row_stride = call->shape->heads * call->head_dim;
    float *acc = w->acc + first * call->padded_v;

    BT_X86_NAME(product_direct)
    ((struct bt_x86_rows){q, count, row_stride},
     panel_of(w->keys, tokens, call->head_dim, call->padded_key), w->scores, BT_PAGE_TOKENS);
    for (size_t i = 0; i < count; i++)
        BT_X86_NAME(softmax_page)
    (w->scores + i * BT_PAGE_TOKENS, least(seen + i, tokens), call->shape->softmax_scale,
     &w->max[first + i], &w->sum[first + i], acc + i * call->padded_v, v);

    size_t partial = seen >= tokens ? 0 : least(tokens - seen, count);
    for (size_t i = 0; i < partial; i++)
        BT_X86_NAME(accumulate)
    ((struct bt_x86_rows){w->scores + i * BT_PAGE_TOKENS, 1, BT_PAGE_TOKENS}, seen + i, w->values,
     BT_F32, call->padded_v, v, acc + i * call->padded_v, call->padded_v);
    BT_X86_NAME(accumulate)
    ((struct bt_x86_rows){w->scores + partial * BT_PAGE_TOKENS, count - partial, BT_PAGE_TOKENS},
     tokens, w->values, BT_F32, call->padded_v, v, acc + partial * call->padded_v, call->padded_v);
}

static void begin_rows(const struct call *call, const struct workspace *w, size_t rows)
{
    for (size_t i = 0; i < rows; i++) {
        w->max[i] = -INFINITY;
        w->sum[i] = 0;
    }
    memset(w->acc, 0, rows * call->padded_v * sizeof(*w->acc));
}

static struct workspace workspace_of(const struct call *call, uint32_t thread)
{
    const struct bt_rows_prefill_memory *m = &call->memory;
    struct workspace w = {.weights = (float *)(call->threads + thread * m->thread)};
    w.latents = w.weights + m->weights / sizeof(float);
    w.keys = w.latents + m->latents / sizeof(float);
    w.values = w.keys + m->keys / sizeof(float);
    w.scores = w.values + m->values / sizeof(float);
    w.acc = w.scores + m->scores / sizeof(float);
    w.max = w.acc + m->acc / sizeof(float);
    w.sum = w.max + m->state / sizeof(float);
    return w;
}

static void attend_head(void *context, uint32_t h, uint32_t thread)
{
    const struct call *call = context;
    const struct bt_sequence_rows *sequence = call->sequence;
    const struct bt_mla_shape *shape = call->shape;
    struct workspace w = workspace_of(call, thread);
    size_t per_head = (size_t)shape->qk_nope_head_dim + shape->v_head_dim;
    size_t start = sequence->start, rows = sequence->row_count, end = start + rows;
    const float *q = call->q + (sequence->first_row * (size_t)shape->heads + h) * call->head_dim;

    BT_X86_NAME(widen)(bt_x86_weights_of(call->kv_b, h * per_head, per_head), w.weights);
    begin_rows(call, &w, rows);
    for (size_t position = 0; position < end; position += BT_PAGE_TOKENS) {
        size_t tokens = least(end - position, BT_PAGE_TOKENS);
        size_t first = position > start ? position - start : 0; /* row that sees the page's first */
        expand_page(call, &w, sequence->pages[position / BT_PAGE_TOKENS], tokens);
        for (; first < rows; first += BT_X86_PREFILL_ROWS)
            take_page(call, &w, q + first * shape->heads * call->head_dim, first,
                      least(rows - first, BT_X86_PREFILL_ROWS), start + first + 1 - position,
                      tokens);
    }
    for (size_t i = 0; i < rows; i++)
        BT_X86_NAME(softmax_end)
    (w.acc + i * call->padded_v, w.sum[i], shape->v_head_dim,
     call->out + ((sequence->first_row + i) * shape->heads + h) * shape->v_head_dim);
}

void BT_X86_NAME(rows_mla_prefill)(struct bt_stream *stream, const float *q,
                                   const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                                   const struct bt_sequence_rows *sequences,
                                   uint32_t sequence_count, const struct bt_kv_layer *kv,
                                   float *out)
{
    struct call call = {.q = q, .shape = shape, .kv_b = kv_b, .kv = kv, .out = out};
    call.head_dim = (size_t)shape->qk_nope_head_dim + shape->qk_rope_head_dim;
    call.padded_lora = bt_x86_padded(shape->kv_lora_rank);
    call.padded_token = bt_x86_padded((size_t)shape->kv_lora_rank + shape->qk_rope_head_dim);
    call.padded_key = bt_x86_padded(call.head_dim);
    call.padded_v = bt_x86_padded(shape->v_head_dim);

    for (uint32_t s = 0; s < sequence_count; s++) {
        call.sequence = &sequences[s];
        call.memory = bt_rows_prefill_memory(shape, sequences[s].row_count);
        bt_scratch_reset(stream);
        call.threads = bt_scratch_take(stream, bt_team_threads(stream->team), call.memory.thread);
        bt_team_run(stream->team, attend_head, &call, sequences[s].row_count ? shape->heads : 0);
    }
}
