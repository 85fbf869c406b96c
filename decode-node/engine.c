#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "decode-node/engine_state.h"

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

/* Tokens of a pass at most. */
static uint32_t max_drawn(const struct dc_engine_options *options)
{
    uint32_t prompts = options->prompt_chunk > 0 ? DC_PROMPTS_SHARE : 0;
    return options->max_num_seqs > prompts ? options->max_num_seqs : prompts;
}

static bool flights_alloc(struct dc_engine *engine)
{
    bool fine = true;
    for (uint32_t i = 0; i < 2; i++) {
        struct dc_flight *flight = &engine->flights[i];
        flight->batch = calloc(engine->options.max_num_seqs, sizeof(struct dc_sequence *));
        flight->by_device = calloc(max_drawn(&engine->options), sizeof(*flight->by_device));
        fine = fine && flight->batch && flight->by_device;
    }
    return fine;
}

static bool engine_alloc(struct dc_engine *engine)
{
    uint32_t rows = engine->options.max_num_seqs;
    engine->sequences = calloc(engine->options.max_sequences, sizeof(*engine->sequences));
    engine->now = engine->flights;
    engine->rows = calloc(rows, sizeof(*engine->rows));
    engine->tokens = calloc(rows, sizeof(*engine->tokens));
    engine->logit_rows = calloc(rows, sizeof(*engine->logit_rows));
    engine->token_from = calloc(rows, sizeof(*engine->token_from));
    const struct bt_model_config *config = &engine->options.model->config;
    engine->sampler =
        bt_sampler_create(config->vocab_size, config->eos_token_ids, config->eos_token_count);
    return engine->sequences && engine->rows && engine->tokens && engine->logit_rows &&
           engine->token_from && bt_draws_init(&engine->draws, max_drawn(&engine->options)) &&
           engine->sampler && flights_alloc(engine) && prompts_alloc(engine);
}

struct bt_forward_batch dc_engine_batch(const struct dc_engine *engine)
{
    return (struct bt_forward_batch){
        .form = BT_FORWARD_ABSORBED,
        .kv_pool = engine->options.kv_pool,
        .layout = engine->options.layout,
        .pool_pages = engine->options.pool_pages,
    };
}

static enum bt_status engine_warm(struct dc_engine *engine, struct bt_error *error)
{
    const struct bt_forward_batch batch = dc_engine_batch(engine);
    enum bt_status status = bt_forward_warm(engine->forward, &batch, engine->options.max_num_seqs);
    return status == BT_OK ? BT_OK
                           : bt_error_set(error, status, "decode engine: %s",
                                          bt_forward_error(engine->forward));
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
    struct bt_forward_options forward = {
        .max_rows = dc_engine_max_rows(options->max_num_seqs, options->prompt_chunk),
        .max_logits = max_drawn(options),
        .max_sequences = max_drawn(options),
    };
    if (options->rank) {
        bt_rank_forward(options->rank, &forward);
    }
    engine->shares_experts = forward.ep != NULL;
    enum bt_status status = bt_forward_create(options->model, &forward, error, &engine->forward);
    if (status == BT_OK) {
        status = engine_warm(engine, error);
    }
    if (status != BT_OK) {
        dc_engine_destroy(engine);
        return status;
    }
    engine->overlaps = bt_forward_draws(engine->forward);
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
    for (uint32_t i = 0; i < 2; i++) {
        free(engine->flights[i].batch);
        free(engine->flights[i].by_device);
    }
    free(engine->rows);
    free(engine->token_from);
    bt_draws_finish(&engine->draws);
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

enum bt_status dc_engine_enter(struct dc_engine *engine, struct bt_error *error)
{
    bt_team_enter(engine->options.model->team);
    return bt_device_enter(engine->options.model->device, error);
}

void dc_engine_add(struct dc_engine *engine, struct dc_sequence *sequence)
{
    BT_ASSERT(engine->sequence_count < engine->options.max_sequences);
    BT_ASSERT(sequence->page_count >= bt_kv_pages_for(sequence->prompt_tokens));
    BT_ASSERT(sequence->replay_count < sequence->sampling->max_tokens);
    BT_ASSERT(!sequence->prompt || engine->options.prompt_chunk > 0);
    sequence->generated = sequence->forced = sequence->ahead = sequence->granted = 0;
    sequence->computed = 0;
    sequence->prompt_begin_ns = sequence->prompt_compute_ns = 0;
    sequence->finish = sequence->stop = DC_RUNNING;
    sequence->asked = sequence->stalled = sequence->joined = false;
    if (engine->options.staging && !sequence->prompt) {
        kvt_staging_in(engine->options.staging, bt_forward_stream(engine->forward), sequence->pages,
                       sequence->prompt_tokens);
    }
    engine->sequences[engine->sequence_count++] = sequence;
    engine->stirred = true;
}

void dc_engine_stop(struct dc_engine *engine, uint64_t request, uint64_t epoch,
                    enum dc_finish finish)
{
    struct dc_sequence *sequence = engine_find(engine, request, epoch);
    if (sequence && sequence->stop == DC_RUNNING) {
        sequence->stop = finish;
        engine->stirred = true;
    }
}

void dc_engine_stop_all(struct dc_engine *engine, enum dc_finish finish)
{
    for (uint32_t i = 0; i < engine->sequence_count; i++) {
        if (engine->sequences[i]->stop == DC_RUNNING) {
            engine->sequences[i]->stop = finish;
            engine->stirred = true;
        }
    }
}

void dc_engine_grow(struct dc_engine *engine, uint64_t request, uint64_t epoch, uint32_t page)
{
    struct dc_sequence *sequence = engine_find(engine, request, epoch);
    if (sequence) {
        BT_ASSERT(sequence->page_count + sequence->granted < sequence->page_capacity);
        sequence->pages[sequence->page_count + sequence->granted++] = page;
        engine->stirred = true;
    }
}

void dc_engine_beside(struct dc_engine *engine, uint32_t drawing)
{
    engine->beside = drawing;
}

void dc_engine_together(struct dc_engine *engine, uint32_t most_rows, bool is_steady)
{
    engine->most_rows = most_rows;
    engine->is_steady = is_steady;
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

/* Steps that are still to come after so many tokens if nothing ends it early. */
uint32_t dc_engine_steps_after(const struct dc_engine *engine, const struct dc_sequence *sequence,
                               uint32_t generated)
{
    uint32_t by_length = sequence->sampling->max_tokens - generated;
    uint32_t by_context = engine->options.max_model_len - sequence->prompt_tokens - generated;
    return by_length < by_context ? by_length : by_context;
}

static uint32_t steps_left(const struct dc_engine *engine, const struct dc_sequence *sequence)
{
    return dc_engine_steps_after(engine, sequence, sequence->generated);
}

/* Joins, runs and has a slot: part of a step. */
static bool can_run(const struct dc_sequence *sequence)
{
    return sequence->stop == DC_RUNNING && !dc_prompts_waiting(sequence) &&
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

struct dc_entry *dc_step_entry(struct dc_step *step, const struct dc_sequence *sequence)
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

bool dc_engine_ends_with(const struct dc_engine *engine, const struct dc_sequence *sequence,
                         uint32_t token)
{
    return !sequence->sampling->ignore_eos && is_eos(engine, token);
}

/* sequence->last is a new token: counts it, decides whether it was the last one, reports both. */
struct dc_entry *dc_engine_accept(struct dc_engine *engine, struct dc_sequence *sequence,
                                  struct dc_step *step)
{
    struct dc_entry *entry = dc_step_entry(step, sequence);
    entry->has_token = true;
    entry->index = sequence->generated++;
    entry->sample = sequence->last;
    if (sequence->history) { /* room was reserved */
        BT_ASSERT(bt_sampler_history_add_output(sequence->history, sequence->last.token));
    }
    if (dc_engine_ends_with(engine, sequence, sequence->last.token)) {
        sequence->finish = DC_FINISH_STOP;
    } else if (steps_left(engine, sequence) == 0) {
        sequence->finish = DC_FINISH_LENGTH;
    }
    entry->finish = sequence->finish;
    return entry;
}

void dc_engine_remove_finished(struct dc_engine *engine)
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
void dc_engine_join(struct dc_engine *engine, struct dc_sequence *sequence, struct dc_step *step)
{
    sequence->joined = true;
    if (sequence->replay_count == 0) {
        dc_engine_accept(engine, sequence, step);
        return;
    }
    BT_ASSERT(sequence->last.token == sequence->replay[0]);
    sequence->generated = sequence->replay_count;
    sequence->forced = sequence->replay_count - 1;
    sequence->last.token = sequence->replay[sequence->forced];
}

static void take_pages(struct dc_sequence *sequence)
{
    if (sequence->granted > 0) {
        sequence->page_count += sequence->granted;
        sequence->granted = 0;
        sequence->asked = sequence->stalled = false;
    }
}

void dc_engine_admit(struct dc_engine *engine, struct dc_step *step)
{
    for (uint32_t i = 0; i < engine->sequence_count; i++) {
        struct dc_sequence *sequence = engine->sequences[i];
        take_pages(sequence);
        if (sequence->stop != DC_RUNNING) {
            sequence->finish = sequence->stop;
            dc_step_entry(step, sequence)->finish = sequence->finish;
        } else if (!sequence->joined && !sequence->prompt) {
            dc_engine_join(engine, sequence, step);
        }
    }
    dc_engine_remove_finished(engine);
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
            engine->now->batch[count++] = sequence;
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
        struct dc_sequence *sequence = engine->now->batch[i];
        uint32_t slots = free_slots(sequence) - 1;
        uint32_t more = sequence->forced < slots ? sequence->forced : slots;
        more = more < room ? more : room;
        sequence->rows += more;
        rows += more;
        room -= more;
    }
    return rows;
}

static void fill_rows(struct dc_engine *engine, uint32_t index, uint32_t first_row)
{
    const struct dc_sequence *sequence = engine->now->batch[index];
    engine->rows[index] = (struct bt_sequence_rows){
        .pages = sequence->pages,
        .start = kv_length(sequence),
        .first_row = first_row,
        .row_count = sequence->rows,
    };
    uint32_t replayed = dc_sequence_draws(sequence) ? sequence->forced : sequence->rows;
    for (uint32_t i = 0; i < replayed; i++) {
        uint32_t number = sequence->generated - 1 - sequence->forced + i;
        engine->tokens[first_row + i] = sequence->replay[number];
    }
    if (dc_sequence_draws(sequence)) {
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
        row += engine->now->batch[i]->rows;
        if (dc_sequence_draws(engine->now->batch[i])) {
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

/* Asks a page ahead while less than a page of slots is left, and says once when none is. */
static void wish_pages(struct dc_engine *engine, struct dc_step *step)
{
    for (uint32_t i = 0; i < engine->sequence_count; i++) {
        struct dc_sequence *sequence = engine->sequences[i];
        if (!sequence->joined) {
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
    dc_engine_admit(engine, step);
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

void dc_engine_account(struct dc_engine *engine, struct dc_step *step)
{
    wish_pages(engine, step);
    step->kv_tokens = 0;
    for (uint32_t i = 0; i < engine->sequence_count; i++) {
        const struct dc_sequence *sequence = engine->sequences[i];
        step->kv_tokens += sequence->joined ? kv_length(sequence) : sequence->computed;
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
