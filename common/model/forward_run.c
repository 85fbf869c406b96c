#include <stdlib.h>

#include "common/model/forward_state.h"

bool bt_forward_draws(const struct bt_forward *f)
{
    return f->model->kernels->draw != NULL;
}

const char *bt_forward_error(const struct bt_forward *f)
{
    return f->error.text;
}

struct bt_stream *bt_forward_stream(const struct bt_forward *f)
{
    return f->stream;
}

void bt_forward_count(const struct bt_forward *f, struct bt_forward_counts *ret_counts)
{
    *ret_counts = (struct bt_forward_counts){
        .device_waits = f->device->ops->waits(f->device),
        .graph_launches = atomic_load_explicit(&f->launches, memory_order_relaxed),
        .graphs = atomic_load_explicit(&f->captured, memory_order_relaxed),
    };
}

/* ---- what is asked for ---- */

static void check_sequence(const struct bt_forward *f, const struct bt_forward_batch *batch,
                           const struct bt_sequence_rows *sequence)
{
    uint64_t end = (uint64_t)sequence->start + sequence->row_count;
    BT_ASSERT(end <= f->model->rope.max_position);
    for (uint32_t i = 0; i < bt_kv_pages_for(end); i++)
        BT_ASSERT(sequence->pages[i] < batch->pool_pages);
}

static void check_batch(const struct bt_forward *f, const struct bt_forward_batch *batch)
{
    BT_ASSERT(batch->rows <= f->max_rows && batch->logit_count <= f->max_logits);
    BT_ASSERT(batch->sequence_count <= f->max_sequences);
    BT_ASSERT(batch->layout.layer_count == f->model->config.num_hidden_layers);
    BT_ASSERT(batch->layout.kv_lora_rank == f->mla.kv_lora_rank);
    BT_ASSERT(batch->layout.qk_rope_head_dim == f->mla.qk_rope_head_dim);
    BT_ASSERT(bt_forward_draws(f) || (!batch->draws && !batch->token_from));
    BT_ASSERT(batch->draws || (!batch->no_logits && batch->adjust_count == 0));
    BT_ASSERT(batch->adjust_count <= f->max_logits * BT_DRAWS_ADJUSTS);
    BT_ASSERT(!batch->is_steady || batch->rows == batch->logit_count);
    uint32_t row = 0;
    for (uint32_t i = 0; i < batch->sequence_count; i++) {
        BT_ASSERT(batch->sequences[i].first_row == row);
        check_sequence(f, batch, &batch->sequences[i]);
        row += batch->sequences[i].row_count;
    }
    BT_ASSERT(row == batch->rows);
    for (uint32_t i = 0; i < batch->rows; i++)
        BT_ASSERT((batch->token_from && batch->token_from[i] != BT_TOKEN_GIVEN) ||
                  batch->tokens[i] < f->model->config.vocab_size);
    for (uint32_t i = 0; i < batch->logit_count; i++)
        BT_ASSERT(batch->logit_rows[i] < batch->rows &&
                  (i == 0 || batch->logit_rows[i] > batch->logit_rows[i - 1]));
}

static void check_under_way(const struct bt_forward *f, const struct bt_forward_batch *batch)
{
    BT_ASSERT(f->begun - f->finished < BT_FORWARD_DEPTH);
    for (uint32_t run = f->finished; run != f->begun; run++) {
        const struct bt_forward_slot *slot = &f->slots[run % BT_FORWARD_DEPTH];
        BT_ASSERT(!slot->logits || batch->no_logits);
        BT_ASSERT(!slot->layer_done || !batch->layer_done);
    }
}

static void check_draws(const struct bt_forward *f, const struct bt_forward_batch *batch)
{
    for (uint32_t i = 0; i < batch->logit_count && batch->draws; i++) {
        const struct bt_draw *draw = &batch->draws[i];
        uint64_t end = (uint64_t)draw->adjust_begin + draw->bias_count + draw->masked_count;
        BT_ASSERT(end + draw->seen_count <= batch->adjust_count);
        BT_ASSERT(draw->logprobs <= BT_DRAW_MAX_TOP + 1);
        BT_ASSERT(draw->newest != BT_NEWEST_DRAWN || draw->newest_token < f->max_rows);
    }
    for (uint32_t i = 0; i < batch->adjust_count; i++)
        BT_ASSERT(batch->adjusts[i].token < f->model->config.vocab_size);
}

/* The batch's wanted rows as sequences of their own, neighbouring rows in one: how many. */
static uint32_t make_wanted(struct bt_forward *f, const struct bt_forward_batch *batch)
{
    const struct bt_sequence_rows *sequence = batch->sequences;
    uint32_t count = 0, last_row = 0;
    for (uint32_t i = 0; i < batch->logit_count; i++) {
        uint32_t row = batch->logit_rows[i];
        bool same = count > 0 && row == last_row + 1;
        for (; row >= sequence->first_row + sequence->row_count; sequence++)
            same = false;
        last_row = row;
        if (same) {
            f->wanted[count - 1].row_count++;
            continue;
        }
        f->wanted[count++] = (struct bt_sequence_rows){
            .pages = sequence->pages,
            .start = sequence->start + (row - sequence->first_row),
            .first_row = i,
            .row_count = 1,
        };
    }
    return count;
}

static struct bt_forward_pass make_pass(struct bt_forward *f, const struct bt_forward_batch *batch,
                                        struct bt_forward_slot *slot)
{
    bool padded = bt_forward_replays(f, batch);
    uint32_t rows = f->ep ? batch->most_rows : batch->rows;
    return (struct bt_forward_pass){
        .batch = batch,
        .slot = slot,
        .padded_rows = padded ? bt_forward_padded(rows, f->max_rows) : batch->rows,
        .padded_wanted = padded ? bt_forward_padded(rows, f->max_logits) : batch->logit_count,
        .every_row = batch->every_row || batch->probe,
        .wanted_sequence_count = make_wanted(f, batch),
    };
}

static void fill_slot(const struct bt_forward *f, const struct bt_forward_batch *batch,
                      struct bt_forward_slot *slot)
{
    bool mine = f->model->shard.tp_rank == 0;
    slot->logit_count = batch->logit_count;
    slot->draws = mine && batch->draws;
    slot->logprobs_wanted = false;
    for (uint32_t i = 0; i < batch->logit_count && slot->draws; i++)
        slot->logprobs_wanted |= batch->draws[i].logprobs > 0;
    slot->logits = mine && !batch->no_logits;
    slot->layer_done = batch->layer_done;
    slot->context = batch->context;
    slot->told = 0;
}

/* ---- begin ---- */

static void stage(struct bt_forward *f, const struct bt_forward_pass *pass)
{
    const struct bt_forward_batch *batch = pass->batch;
    const struct bt_stage stage = {
        .tokens = batch->tokens,
        .token_from = batch->token_from,
        .rows = batch->rows,
        .padded_rows = pass->padded_rows,
        .sequences = batch->sequences,
        .sequence_count = batch->sequence_count,
        .wanted = batch->logit_rows,
        .wanted_count = batch->logit_count,
        .padded_wanted = pass->padded_wanted,
        .wanted_sequences = f->wanted,
        .wanted_sequence_count = pass->wanted_sequence_count,
        .draws = batch->draws,
        .adjusts = batch->adjusts,
        .adjust_count = batch->adjust_count,
    };
    if (f->k->stage)
        f->k->stage(f->stream, &stage);
}

static size_t begins_words(const struct bt_forward *f)
{
    const struct bt_model_config *c = &f->model->config;
    return bt_model_moe_layers(c) * ((size_t)c->n_routed_experts + 1);
}

static void download(struct bt_forward *f, void *to, const void *from, size_t bytes)
{
    if (bytes > 0)
        bt_device_copy(f->device, f->stream, to, from, bytes);
}

/* What the host wants to see of a run whose work is queued. */
static void queue_results(struct bt_forward *f, struct bt_forward_slot *slot)
{
    size_t vocab_size = f->model->config.vocab_size;
    if (slot->draws)
        download(f, slot->tokens, f->drawn, slot->logit_count * sizeof(uint32_t));
    if (slot->logprobs_wanted)
        download(f, slot->logprobs, f->logprobs, slot->logit_count * sizeof(struct bt_logprobs));
    if (slot->logits)
        download(f, f->host_logits, f->logits, slot->logit_count * vocab_size * sizeof(float));
    if (f->loads)
        download(f, slot->begins, f->begins, begins_words(f) * sizeof(uint32_t));
    f->device->ops->event_record(slot->done, f->stream);
}

static void add_loads(struct bt_forward *f, const struct bt_forward_slot *slot)
{
    const struct bt_model_config *c = &f->model->config;
    uint32_t layers = f->loads ? bt_model_moe_layers(c) : 0;
    for (uint32_t i = 0; i < layers; i++)
        if (slot->routed[i] > 0)
            bt_expert_loads_add(f->loads, i, slot->begins + (size_t)i * (c->n_routed_experts + 1),
                                slot->routed[i]);
}

/* Where a probe sees what is on a device. */
static enum bt_status prepare_probe(struct bt_forward *f, const struct bt_forward_batch *batch)
{
    const struct bt_model_config *c = &f->model->config;
    size_t picks = (size_t)f->share_rows * c->route.experts_per_token + 1;
    if (!batch->probe || !f->queues || f->probed_x)
        return BT_OK;
    f->probed_x = calloc((size_t)f->share_rows * c->hidden_size + 1, sizeof(float));
    f->probed_experts = calloc(picks, sizeof(uint32_t));
    f->probed_weights = calloc(picks, sizeof(float));
    if (!f->probed_x || !f->probed_experts || !f->probed_weights)
        return bt_error_set(&f->error, BT_ERR_NO_MEMORY, "forward pass: no memory for a probe");
    return BT_OK;
}

struct moment {
    const struct bt_device_ops *ops;
    struct bt_event *event;
};

static bool has_come(void *context)
{
    const struct moment *moment = context;
    return moment->ops->event_query(moment->event);
}

enum bt_status bt_forward_await(struct bt_forward *f, struct bt_event *event)
{
    enum bt_status status = BT_OK;
    if (!event)
        f->device->ops->event_record(event = f->here, f->stream);
    struct moment moment = {f->device->ops, event};
    if (f->groups_queue && f->tp)
        status = bt_group_await(f->tp, has_come, &moment);
    if (f->groups_queue && f->ep && status == BT_OK)
        status = bt_group_await(f->ep, has_come, &moment);
    return status == BT_OK ? f->device->ops->event_synchronize(event, &f->error) : status;
}

/* What waits for other ranks comes to its end, or its group does. */
static void await_groups(struct bt_forward *f)
{
    struct moment moment = {f->device->ops, f->here};
    f->device->ops->event_record(f->here, f->stream);
    if (f->tp)
        (void)bt_group_await(f->tp, has_come, &moment);
    if (f->ep)
        (void)bt_group_await(f->ep, has_come, &moment);
}

/* Nothing is under way after this. */
static enum bt_status give_up(struct bt_forward *f, enum bt_status status)
{
    struct bt_error ignored;
    if (f->groups_queue)
        await_groups(f);
    if (f->queues)
        bt_device_synchronize(f->device, f->stream, &ignored);
    f->finished = f->begun;
    return status;
}

/* Several passes may use a group, in turns. */
static void use_stream(struct bt_forward *f, const struct bt_forward_batch *batch)
{
    uint32_t most = batch->most_rows, size = f->model->shard.tp_size;
    if (most > 0 && batch->is_steady)
        most = bt_forward_padded(most, f->max_rows);
    if (f->ep)
        bt_group_expect_rows(f->ep, most / size + (most % size > 0));
    bool tp = !f->tp || bt_group_use_stream(f->tp, f->stream);
    bool ep = !f->ep || bt_group_use_stream(f->ep, f->stream);
    f->groups_queue = (f->tp || f->ep) && tp && ep;
}

enum bt_status bt_forward_begin(struct bt_forward *f, const struct bt_forward_batch *batch)
{
    struct bt_forward_slot *slot = &f->slots[f->begun % BT_FORWARD_DEPTH];
    check_batch(f, batch);
    check_draws(f, batch);
    check_under_way(f, batch);
    f->error = (struct bt_error){0};
    if (batch->most_rows > f->max_rows || (batch->most_rows > 0 && batch->most_rows < batch->rows))
        return give_up(f, BT_ERR_MISMATCH);
    if (f->queues)
        use_stream(f, batch);
    enum bt_status status = prepare_probe(f, batch);
    if (status != BT_OK)
        return give_up(f, status);
    f->k = f->profile ? bt_profile_kernels(f->device, f->stream, &f->model->lm_head, f->profile)
                      : f->model->kernels;
    const struct bt_forward_pass pass = make_pass(f, batch, slot);
    fill_slot(f, batch, slot);
    bt_forward_count_routed(f, &pass);
    stage(f, &pass);
    status =
        bt_forward_replays(f, batch) ? bt_forward_replay(f, &pass) : bt_forward_layers(f, &pass);
    if (status != BT_OK)
        return give_up(f, status);
    if (f->queues)
        queue_results(f, slot);
    else
        add_loads(f, slot);
    f->begun++;
    return BT_OK;
}

/* ---- finish ---- */

/* Each layer when it is done, while those after it run. */
static enum bt_status await_run(struct bt_forward *f, struct bt_forward_slot *slot)
{
    uint32_t layers = slot->layer_done ? f->model->config.num_hidden_layers : 0;
    enum bt_status status = BT_OK;
    while (slot->told < layers && status == BT_OK) {
        status = bt_forward_await(f, f->layer_done[slot->told]);
        if (status == BT_OK)
            slot->layer_done(slot->context, slot->told++);
    }
    return status == BT_OK ? bt_forward_await(f, slot->done) : status;
}

enum bt_status bt_forward_finish(struct bt_forward *f, struct bt_forward_result *ret_result)
{
    struct bt_forward_slot *slot = &f->slots[f->finished % BT_FORWARD_DEPTH];
    BT_ASSERT(f->finished != f->begun);
    if (f->queues) {
        enum bt_status status = await_run(f, slot);
        if (status != BT_OK)
            return give_up(f, status);
        add_loads(f, slot);
    }
    f->finished++;
    *ret_result = (struct bt_forward_result){
        .logits = slot->logits ? f->host_logits : NULL,
        .tokens = slot->draws ? slot->tokens : NULL,
        .logprobs = slot->logprobs_wanted ? slot->logprobs : NULL,
    };
    return BT_OK;
}

enum bt_status bt_forward_run(struct bt_forward *f, const struct bt_forward_batch *batch,
                              const float **ret_logits)
{
    struct bt_forward_result result;
    BT_ASSERT(f->begun == f->finished);
    enum bt_status status = bt_forward_begin(f, batch);
    if (status == BT_OK)
        status = bt_forward_finish(f, &result);
    if (status == BT_OK)
        *ret_logits = result.logits;
    return status;
}

/* ---- graphs ahead of time ---- */

/* All of it padding: once as it is, and once to be captured. */
static enum bt_status warm(struct bt_forward *f, const struct bt_forward_batch *batch,
                           uint32_t rows)
{
    const struct bt_forward_pass pass = {
        .batch = batch,
        .padded_rows = bt_forward_padded(rows, f->max_rows),
        .padded_wanted = bt_forward_padded(rows, f->max_logits),
    };
    enum bt_status status = BT_OK;
    for (int i = 0; i < 2 && status == BT_OK; i++) {
        stage(f, &pass);
        status = bt_forward_replay(f, &pass);
    }
    return status;
}

enum bt_status bt_forward_warm(struct bt_forward *f, const struct bt_forward_batch *where,
                               uint32_t rows)
{
    static const uint32_t nothing[1];
    static const struct bt_sequence_rows nobody[1];
    static const struct bt_draw best[1];
    const struct bt_forward_batch batch = {
        .form = BT_FORWARD_ABSORBED,
        .tokens = nothing,
        .sequences = nobody,
        .kv_pool = where->kv_pool,
        .layout = where->layout,
        .pool_pages = where->pool_pages,
        .logit_rows = nothing + 1,
        .draws = bt_forward_draws(f) ? best : NULL,
        .no_logits = bt_forward_draws(f),
    };
    uint32_t most = f->max_rows < f->max_logits ? f->max_rows : f->max_logits;
    enum bt_status status = BT_OK;
    BT_ASSERT(f->begun == f->finished);
    if (!bt_forward_replays(f, &batch))
        return BT_OK;
    most = rows < most ? rows : most;
    f->k = f->model->kernels;
    for (uint32_t n = 1; n <= most && status == BT_OK; n = bt_forward_padded(n, UINT32_MAX) + 1)
        status = warm(f, &batch, n);
    return status == BT_OK ? bt_device_synchronize(f->device, f->stream, &f->error)
                           : give_up(f, status);
}
