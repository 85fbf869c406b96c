#include "decode-node/engine.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "decode-node/prompts.h"

struct dc_engine {
    struct dc_engine_options options;
    struct bt_forward *forward;
    bool shares_experts; /* with other ranks, whose steps want it, too */
    struct bt_sampler *sampler;
    struct dc_sequence **sequences; /* [max_sequences], in the order they were added */
    uint32_t sequence_count;
    bool stirred;    /* something was added, stopped or grown since the last step */
    uint32_t beside; /* see dc_engine_beside */
    enum dc_pass last_pass;
    struct dc_prompts prompts; /* with options.prompt_chunk */

    /* One step. */
    struct dc_sequence **batch;    /* [max_num_seqs] */
    struct bt_sequence_rows *rows; /* likewise */
    uint32_t *tokens;              /* likewise */
    uint32_t *logit_rows;          /* likewise */
    uint32_t logit_count;
};

uint32_t dc_engine_max_rows(uint32_t max_num_seqs, uint32_t prompt_chunk)
{
    uint32_t prompts = DC_PROMPTS_IDLE * prompt_chunk;
    return prompts > max_num_seqs ? prompts : max_num_seqs;
}

static bool prompts_alloc(struct dc_engine *engine)
{
    const struct dc_engine_options *options = &engine->options;
    return options->prompt_chunk == 0 || dc_prompts_init(&engine->prompts, options->max_sequences,
                                                         DC_PROMPTS_IDLE * options->prompt_chunk);
}

static bool engine_alloc(struct dc_engine *engine)
{
    uint32_t rows = engine->options.max_num_seqs;
    engine->sequences = calloc(engine->options.max_sequences, sizeof(*engine->sequences));
    engine->batch = calloc(rows, sizeof(*engine->batch));
    engine->rows = calloc(rows, sizeof(*engine->rows));
    engine->tokens = calloc(rows, sizeof(*engine->tokens));
    engine->logit_rows = calloc(rows, sizeof(*engine->logit_rows));
    const struct bt_model_config *config = &engine->options.model->config;
    engine->sampler =
        bt_sampler_create(config->vocab_size, config->eos_token_ids, config->eos_token_count);
    return engine->sequences && engine->batch && engine->rows && engine->tokens &&
           engine->logit_rows && engine->sampler && prompts_alloc(engine);
}

enum bt_status dc_engine_create(const struct dc_engine_options *options, struct bt_error *error,
                                struct dc_engine **ret_engine)
{
    struct dc_engine *engine = calloc(1, sizeof(*engine));
    if (!engine) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "decode engine: no memory");
    }
    engine->options = *options;
    if (!engine_alloc(engine)) {
        dc_engine_destroy(engine);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "decode engine: no memory");
    }
    uint32_t drawn = options->prompt_chunk > 0 ? DC_PROMPTS_SHARE : 0;
    struct bt_forward_options forward = {
        .max_rows = dc_engine_max_rows(options->max_num_seqs, options->prompt_chunk),
        .max_logits = options->max_num_seqs > drawn ? options->max_num_seqs : drawn,
    };
    if (options->rank) {
        bt_rank_forward(options->rank, &forward);
    }
    engine->shares_experts = forward.ep != NULL;
    enum bt_status status = bt_forward_create(options->model, &forward, error, &engine->forward);
    if (status != BT_OK) {
        dc_engine_destroy(engine);
        return status;
    }
    *ret_engine = engine;
    return BT_OK;
}

void dc_engine_destroy(struct dc_engine *engine)
{
    if (!engine) {
        return;
    }
    bt_forward_destroy(engine->forward);
    bt_sampler_destroy(engine->sampler);
    dc_prompts_finish(&engine->prompts);
    free(engine->sequences);
    free(engine->batch);
    free(engine->rows);
    free(engine->tokens);
    free(engine->logit_rows);
    free(engine);
}

bool dc_step_init(struct dc_step *step, uint32_t max_sequences)
{
    *step = (struct dc_step){
        .entries = calloc(max_sequences, 2 * sizeof(struct dc_entry)),
        .entry_capacity = 2 * max_sequences,
        .wishes = calloc(max_sequences, 2 * sizeof(struct dc_page_wish)),
        .wish_capacity = 2 * max_sequences,
    };
    if (!step->entries || !step->wishes) {
        dc_step_finish(step);
        return false;
    }
    return true;
}

void dc_step_finish(struct dc_step *step)
{
    free(step->entries);
    free(step->wishes);
    *step = (struct dc_step){0};
}

static struct dc_sequence *engine_find(struct dc_engine *engine, uint64_t request, uint64_t epoch)
{
    for (uint32_t i = 0; i < engine->sequence_count; i++) {
        struct dc_sequence *sequence = engine->sequences[i];
        if (sequence->request == request && sequence->epoch == epoch) {
            return sequence;
        }
    }
    return NULL;
}

struct bt_forward *dc_engine_forward(const struct dc_engine *engine)
{
    return engine->forward;
}

void dc_engine_enter(struct dc_engine *engine)
{
    bt_team_enter(engine->options.model->team);
}

void dc_engine_add(struct dc_engine *engine, struct dc_sequence *sequence)
{
    BT_ASSERT(engine->sequence_count < engine->options.max_sequences);
    BT_ASSERT(sequence->page_count >= bt_kv_pages_for(sequence->prompt_tokens));
    BT_ASSERT(sequence->replay_count < sequence->sampling->max_tokens);
    BT_ASSERT(!sequence->prompt || engine->options.prompt_chunk > 0);
    sequence->generated = sequence->forced = 0;
    sequence->computed = 0;
    sequence->prompt_begin_ns = sequence->prompt_compute_ns = 0;
    sequence->finish = DC_RUNNING;
    sequence->asked = sequence->stalled = sequence->joined = false;
    engine->sequences[engine->sequence_count++] = sequence;
    engine->stirred = true;
}

void dc_engine_stop(struct dc_engine *engine, uint64_t request, uint64_t epoch,
                    enum dc_finish finish)
{
    struct dc_sequence *sequence = engine_find(engine, request, epoch);
    if (sequence && sequence->finish == DC_RUNNING) {
        sequence->finish = finish;
        engine->stirred = true;
    }
}

void dc_engine_stop_all(struct dc_engine *engine, enum dc_finish finish)
{
    for (uint32_t i = 0; i < engine->sequence_count; i++) {
        if (engine->sequences[i]->finish == DC_RUNNING) {
            engine->sequences[i]->finish = finish;
            engine->stirred = true;
        }
    }
}

void dc_engine_grow(struct dc_engine *engine, uint64_t request, uint64_t epoch, uint32_t page)
{
    struct dc_sequence *sequence = engine_find(engine, request, epoch);
    if (sequence) {
        BT_ASSERT(sequence->page_count < sequence->page_capacity);
        sequence->pages[sequence->page_count++] = page;
        sequence->asked = sequence->stalled = false;
        engine->stirred = true;
    }
}

void dc_engine_beside(struct dc_engine *engine, uint32_t drawing)
{
    engine->beside = drawing;
}

/* KV positions in use; the first row of the next step goes to this position. */
static uint32_t kv_length(const struct dc_sequence *sequence)
{
    return sequence->prompt_tokens + sequence->generated - 1 - sequence->forced;
}

static uint32_t free_slots(const struct dc_sequence *sequence)
{
    return sequence->page_count * BT_PAGE_TOKENS - kv_length(sequence);
}

/* Steps that are still to come if nothing ends it early. */
static uint32_t steps_left(const struct dc_engine *engine, const struct dc_sequence *sequence)
{
    uint32_t by_length = sequence->sampling->max_tokens - sequence->generated;
    uint32_t by_context =
        engine->options.max_model_len - sequence->prompt_tokens - sequence->generated;
    return by_length < by_context ? by_length : by_context;
}

/* Joins, runs and has a slot: part of a step. */
static bool can_run(const struct dc_sequence *sequence)
{
    return sequence->finish == DC_RUNNING && !dc_prompts_waiting(sequence) &&
           free_slots(sequence) > 0;
}

bool dc_engine_runnable(const struct dc_engine *engine)
{
    if (engine->stirred) {
        return true;
    }
    for (uint32_t i = 0; i < engine->sequence_count; i++) {
        if (can_run(engine->sequences[i]) || dc_prompts_waiting(engine->sequences[i])) {
            return true;
        }
    }
    return false;
}

static struct dc_entry *step_entry(struct dc_step *step, const struct dc_sequence *sequence)
{
    BT_ASSERT(step->entry_count < step->entry_capacity);
    struct dc_entry *entry = &step->entries[step->entry_count++];
    entry->request = sequence->request;
    entry->epoch = sequence->epoch;
    entry->user = sequence->user;
    entry->has_token = entry->drawn = false;
    entry->finish = DC_RUNNING;
    return entry;
}

static bool is_eos(const struct dc_engine *engine, uint32_t token)
{
    const struct bt_model_config *config = &engine->options.model->config;
    for (uint32_t i = 0; i < config->eos_token_count; i++) {
        if (config->eos_token_ids[i] == token) {
            return true;
        }
    }
    return false;
}

/* sequence->last is a new token: counts it, decides whether it was the last one, reports both. */
static void accept_token(struct dc_engine *engine, struct dc_sequence *sequence,
                         struct dc_step *step)
{
    struct dc_entry *entry = step_entry(step, sequence);
    entry->has_token = true;
    entry->index = sequence->generated++;
    entry->sample = sequence->last;
    if (sequence->history) { /* room was reserved */
        BT_ASSERT(bt_sampler_history_add_output(sequence->history, sequence->last.token));
    }
    if (!sequence->sampling->ignore_eos && is_eos(engine, sequence->last.token)) {
        sequence->finish = DC_FINISH_STOP;
    } else if (steps_left(engine, sequence) == 0) {
        sequence->finish = DC_FINISH_LENGTH;
    }
    entry->finish = sequence->finish;
}

static void remove_finished(struct dc_engine *engine)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < engine->sequence_count; i++) {
        if (engine->sequences[i]->finish == DC_RUNNING) {
            engine->sequences[kept++] = engine->sequences[i];
        }
    }
    engine->sequence_count = kept;
}

/* The tokens up to the replay's last were reported elsewhere. */
static void join(struct dc_engine *engine, struct dc_sequence *sequence, struct dc_step *step)
{
    sequence->joined = true;
    if (sequence->replay_count == 0) {
        accept_token(engine, sequence, step);
        return;
    }
    BT_ASSERT(sequence->last.token == sequence->replay[0]);
    sequence->generated = sequence->replay_count;
    sequence->forced = sequence->replay_count - 1;
    sequence->last.token = sequence->replay[sequence->forced];
}

/* Ends those that were stopped, reports token 0 of the new ones. */
static void admit(struct dc_engine *engine, struct dc_step *step)
{
    for (uint32_t i = 0; i < engine->sequence_count; i++) {
        struct dc_sequence *sequence = engine->sequences[i];
        if (sequence->finish != DC_RUNNING) {
            step_entry(step, sequence)->finish = sequence->finish;
        } else if (!sequence->joined && !sequence->prompt) {
            join(engine, sequence, step);
        }
    }
    remove_finished(engine);
    engine->stirred = false;
}

/* One row for each sequence, as many as there is room for. */
static uint32_t choose(struct dc_engine *engine, uint32_t *ret_drawing)
{
    uint32_t count = 0;
    *ret_drawing = 0;
    for (uint32_t i = 0; i < engine->sequence_count && count < engine->options.max_num_seqs; i++) {
        struct dc_sequence *sequence = engine->sequences[i];
        if (can_run(sequence)) {
            sequence->rows = 1;
            *ret_drawing += sequence->forced == 0;
            engine->batch[count++] = sequence;
        }
    }
    return count;
}

/* More rows for those that replay; how many there are in all. */
static uint32_t force(struct dc_engine *engine, uint32_t count, uint32_t drawing)
{
    uint32_t most = engine->options.max_num_seqs, room = most - count, rows = count;
    uint32_t others = drawing > engine->beside ? drawing : engine->beside;
    if (others > 0) {
        uint32_t bound = others > most / 4 ? others : most / 4;
        room = bound < room ? bound : room;
    }
    for (uint32_t i = 0; i < count && room > 0; i++) {
        struct dc_sequence *sequence = engine->batch[i];
        uint32_t slots = free_slots(sequence) - 1;
        uint32_t more = sequence->forced < slots ? sequence->forced : slots;
        more = more < room ? more : room;
        sequence->rows += more;
        rows += more;
        room -= more;
    }
    return rows;
}

/* Whether its rows reach the newest token, and a token is drawn after it. */
static bool draws(const struct dc_sequence *sequence)
{
    return sequence->rows > sequence->forced;
}

static void fill_rows(struct dc_engine *engine, uint32_t index, uint32_t first_row)
{
    const struct dc_sequence *sequence = engine->batch[index];
    engine->rows[index] = (struct bt_sequence_rows){
        .pages = sequence->pages,
        .start = kv_length(sequence),
        .first_row = first_row,
        .row_count = sequence->rows,
    };
    uint32_t replayed = draws(sequence) ? sequence->forced : sequence->rows;
    for (uint32_t i = 0; i < replayed; i++) {
        uint32_t number = sequence->generated - 1 - sequence->forced + i;
        engine->tokens[first_row + i] = sequence->replay[number];
    }
    if (draws(sequence)) {
        engine->tokens[first_row + replayed] = sequence->last.token;
    }
}

static void gather(struct dc_engine *engine, struct dc_step *step)
{
    step->sequences = choose(engine, &step->drawing);
    step->rows = force(engine, step->sequences, step->drawing);
    uint32_t row = 0;
    engine->logit_count = 0;
    for (uint32_t i = 0; i < step->sequences; i++) {
        fill_rows(engine, i, row);
        row += engine->batch[i]->rows;
        if (draws(engine->batch[i])) {
            engine->logit_rows[engine->logit_count++] = row - 1;
        }
    }
}

static void gather_prompts(struct dc_engine *engine, struct dc_step *step)
{
    uint32_t chunk = engine->options.prompt_chunk;
    bool beside = step->drawing > 0 || engine->beside > 0;
    step->prompt_rows =
        chunk > 0 ? dc_prompts_gather(&engine->prompts, engine->sequences, engine->sequence_count,
                                      beside ? chunk : DC_PROMPTS_IDLE * chunk)
                  : 0;
}

static enum bt_status forward(struct dc_engine *engine, const struct dc_step *step,
                              enum dc_pass pass, const float **ret_logits)
{
    struct bt_forward_batch batch = {
        .form = BT_FORWARD_ABSORBED,
        .tokens = engine->tokens,
        .rows = step->rows,
        .sequences = engine->rows,
        .sequence_count = step->sequences,
        .kv_pool = engine->options.kv_pool,
        .layout = engine->options.layout,
        .pool_pages = engine->options.pool_pages,
        .logit_rows = engine->logit_rows,
        .logit_count = engine->logit_count,
    };
    if (pass == DC_PASS_PROMPTS) {
        bt_prompt_batch_fill(&engine->prompts.batch, &batch);
    }
    return bt_forward_run(engine->forward, &batch, ret_logits);
}

static void sample(struct dc_engine *engine, const float *logits, struct dc_step *step)
{
    size_t vocab_size = engine->options.model->config.vocab_size;
    for (uint32_t i = 0; i < step->sequences; i++) {
        struct dc_sequence *sequence = engine->batch[i];
        if (!draws(sequence)) {
            sequence->forced -= sequence->rows;
            continue;
        }
        sequence->forced = 0;
        bt_sampler_draw(engine->sampler, logits, sequence->sampling, sequence->history,
                        sequence->generated, &sequence->last);
        logits += vocab_size;
        accept_token(engine, sequence, step);
        step->entries[step->entry_count - 1].drawn = true;
    }
}

/* Its prompt ends with the logits. Tokens that are to be replayed must go on from token 0. */
static void begin_output(struct dc_engine *engine, const float *logits,
                         struct dc_sequence *sequence, struct dc_step *step)
{
    bt_sampler_draw(engine->sampler, logits, sequence->sampling, sequence->history, 0,
                    &sequence->last);
    if (sequence->replay_count > 0 && sequence->last.token != sequence->replay[0]) {
        sequence->finish = DC_FINISH_DIVERGED;
        step_entry(step, sequence)->finish = sequence->finish;
        return;
    }
    for (uint32_t i = 0; i < sequence->replay_count && sequence->history; i++) {
        BT_ASSERT(bt_sampler_history_add_output(sequence->history, sequence->replay[i]));
    }
    join(engine, sequence, step);
}

static void end_prompts(struct dc_engine *engine, const float *logits, struct dc_step *step)
{
    dc_prompts_computed(&engine->prompts, step->begin_ns, bt_clock_now_ns());
    for (uint32_t i = 0; i < engine->prompts.chunk_count; i++) {
        struct dc_sequence *sequence = dc_prompts_ended(&engine->prompts, i);
        if (sequence) {
            begin_output(engine, logits, sequence, step);
            logits += engine->options.model->config.vocab_size;
        }
    }
}

/* Asks a page ahead while less than a page of slots is left, and says once when none is. */
static void wish_pages(struct dc_engine *engine, struct dc_step *step)
{
    for (uint32_t i = 0; i < engine->sequence_count; i++) {
        struct dc_sequence *sequence = engine->sequences[i];
        if (dc_prompts_waiting(sequence)) {
            continue;
        }
        uint32_t slots = free_slots(sequence);
        bool stalls = slots == 0 && !sequence->stalled;
        uint32_t wanted = steps_left(engine, sequence) + sequence->forced;
        bool asks = slots < BT_PAGE_TOKENS && slots < wanted && !sequence->asked;
        if (asks || stalls) {
            sequence->asked = true;
            sequence->stalled = slots == 0;
            BT_ASSERT(step->wish_count < step->wish_capacity);
            step->wishes[step->wish_count++] =
                (struct dc_page_wish){sequence->request, sequence->epoch, slots == 0};
        }
    }
}

void dc_engine_begin(struct dc_engine *engine, struct dc_step *step)
{
    step->entry_count = step->wish_count = 0;
    step->begin_ns = step->end_ns = bt_clock_now_ns();
    admit(engine, step);
    gather(engine, step);
    gather_prompts(engine, step);
}

enum dc_pass dc_engine_turn(const struct dc_engine *engine, bool batch, bool prompts)
{
    if (batch && prompts) {
        return engine->last_pass == DC_PASS_STEP ? DC_PASS_PROMPTS : DC_PASS_STEP;
    }
    return batch ? DC_PASS_STEP : prompts ? DC_PASS_PROMPTS : DC_PASS_NONE;
}

enum bt_status dc_engine_run(struct dc_engine *engine, struct dc_step *step, enum dc_pass pass)
{
    const float *logits = NULL;
    enum bt_status status = BT_OK;
    engine->last_pass = pass;
    if (pass == DC_PASS_STEP) {
        step->prompt_rows = 0;
    } else {
        step->rows = step->sequences = 0;
    }
    bool mine = step->rows > 0 || step->prompt_rows > 0;
    if (mine || engine->shares_experts) {
        status = forward(engine, step, pass, &logits);
    }
    if (status == BT_OK && mine) {
        (pass == DC_PASS_STEP ? sample : end_prompts)(engine, logits, step);
        remove_finished(engine);
    }
    step->end_ns = bt_clock_now_ns();
    return status;
}

void dc_engine_account(struct dc_engine *engine, struct dc_step *step)
{
    wish_pages(engine, step);
    step->kv_tokens = 0;
    for (uint32_t i = 0; i < engine->sequence_count; i++) {
        const struct dc_sequence *sequence = engine->sequences[i];
        step->kv_tokens += dc_prompts_waiting(sequence) ? sequence->computed : kv_length(sequence);
    }
}

enum bt_status dc_engine_step(struct dc_engine *engine, struct dc_step *step)
{
    enum bt_status status = BT_OK;
    dc_engine_begin(engine, step);
    enum dc_pass pass = dc_engine_turn(engine, step->rows > 0, step->prompt_rows > 0);
    if (pass != DC_PASS_NONE) {
        status = dc_engine_run(engine, step, pass);
    }
    dc_engine_account(engine, step);
    return status;
}
