#include "common/base/clock.h"
#include "decode-node/engine_state.h"

/* ------------------------------------------------------------------ tokens */

/* Row `index` of the logits is for token number `position` of this sequence. `newest`: the token
 * before it, where its history does not have that yet. */
static void ask_draw(struct dc_engine *engine, uint32_t index, const struct dc_sequence *sequence,
                     uint32_t position, enum bt_newest newest, uint32_t newest_token)
{
    const struct bt_draw_ask ask = {
        .sampling = sequence->sampling,
        .history = sequence->history,
        .position = position,
        .newest = newest,
        .newest_token = newest_token,
    };
    engine->now->by_device[index] = bt_draws_add(&engine->draws, engine->sampler, &ask);
    engine->no_logits = engine->draws.all_here;
}

/* Which tokens the device is to draw. */
static void ask_draws(struct dc_engine *engine, const struct dc_step *step, enum dc_pass pass)
{
    uint32_t count = 0;
    bt_draws_clear(&engine->draws);
    engine->no_logits = true;
    for (uint32_t i = 0; i < step->sequences && pass == DC_PASS_STEP; i++) {
        const struct dc_sequence *sequence = engine->now->batch[i];
        if (dc_sequence_draws(sequence)) {
            ask_draw(engine, count++, sequence, sequence->generated, BT_NEWEST_NONE, 0);
        }
    }
    for (uint32_t i = 0; i < engine->prompts.chunk_count && pass == DC_PASS_PROMPTS; i++) {
        const struct dc_sequence *sequence = dc_prompts_ended(&engine->prompts, i);
        if (sequence) {
            ask_draw(engine, count++, sequence, 0, BT_NEWEST_NONE, 0);
        }
    }
}

/* Ranks that share experts meet in each pass, whoever has rows. */
static bool has_part(const struct dc_engine *engine, const struct dc_step *step)
{
    return step->rows > 0 || step->prompt_rows > 0 || engine->shares_experts;
}

/* Begins the pass that was gathered. `token_from`: see struct bt_forward_batch. */
static enum bt_status begin_pass(struct dc_engine *engine, const struct dc_step *step,
                                 enum dc_pass pass, const uint32_t *token_from)
{
    struct bt_forward_batch batch = dc_engine_batch(engine);
    batch.tokens = engine->tokens;
    batch.rows = step->rows;
    batch.sequences = engine->rows;
    batch.sequence_count = step->sequences;
    batch.logit_rows = engine->logit_rows;
    batch.logit_count = engine->logit_count;
    batch.token_from = token_from;
    batch.most_rows = engine->most_rows;
    batch.is_steady = engine->is_steady;
    if (pass == DC_PASS_PROMPTS) {
        bt_prompt_batch_fill(&engine->prompts.batch, &batch);
    }
    if (bt_forward_draws(engine->forward)) {
        batch.draws = engine->draws.draws;
        batch.adjusts = engine->draws.adjusts;
        batch.adjust_count = engine->draws.adjust_count;
        batch.no_logits = engine->no_logits;
    }
    for (uint32_t i = 0; i < step->sequences; i++) {
        engine->now->batch[i]->ahead++;
        engine->now->batch[i]->place = i;
    }
    engine->last_pass = pass;
    engine->under_way++;
    engine->now->runs = has_part(engine, step);
    return engine->now->runs ? bt_forward_begin(engine->forward, &batch) : BT_OK;
}

/* sequence->last = its token number `position`, that of row `index` of the logits. */
static void draw(struct dc_engine *engine, const struct bt_forward_result *result,
                 const struct dc_flight *flight, uint32_t index, struct dc_sequence *sequence,
                 uint32_t position)
{
    size_t vocab_size = engine->options.model->config.vocab_size;
    if (result->tokens && flight->by_device[index]) {
        BT_ASSERT(result->tokens[index] < vocab_size);
        bt_draw_sample(sequence->sampling, result->tokens[index],
                       result->logprobs ? &result->logprobs[index] : NULL, &sequence->last);
        return;
    }
    bt_sampler_draw(engine->sampler, result->logits + index * vocab_size, sequence->sampling,
                    sequence->history, position, &sequence->last);
}

/* It has a new token. If that is the last one, and the step behind has a row of it, that row is for
 * nothing; it still goes to a page of the sequence, which is reported there. */
static void accept_drawn(struct dc_engine *engine, struct dc_sequence *sequence,
                         struct dc_step *step, struct dc_step *behind)
{
    struct dc_entry *entry = dc_engine_accept(engine, sequence, step);
    entry->drawn = true;
    if (sequence->finish != DC_RUNNING && sequence->ahead > 0) {
        engine->now->batch[sequence->place] = NULL;
        behind->entries[behind->entry_count++] = *entry;
        step->entry_count--;
    }
}

static void sample(struct dc_engine *engine, const struct dc_flight *flight,
                   const struct bt_forward_result *result, struct dc_step *step,
                   struct dc_step *behind)
{
    uint32_t index = 0, dropped = 0;
    for (uint32_t i = 0; i < step->sequences; i++) {
        struct dc_sequence *sequence = flight->batch[i];
        if (!sequence) { /* it had one row, and would have drawn */
            index++;
            dropped++;
            continue;
        }
        sequence->ahead--;
        if (!dc_sequence_draws(sequence)) {
            sequence->forced -= sequence->rows;
            continue;
        }
        sequence->forced = 0;
        draw(engine, result, flight, index++, sequence, sequence->generated);
        accept_drawn(engine, sequence, step, behind);
    }
    step->rows -= dropped;
    step->sequences -= dropped;
    step->drawing -= dropped;
}

/* Its prompt ends with row `index` of the logits. Tokens that are to be replayed must go on from
 * token 0. */
static void begin_output(struct dc_engine *engine, const struct bt_forward_result *result,
                         uint32_t index, struct dc_sequence *sequence, struct dc_step *step)
{
    draw(engine, result, engine->now, index, sequence, 0);
    if (sequence->replay_count > 0 && sequence->last.token != sequence->replay[0]) {
        sequence->finish = DC_FINISH_DIVERGED;
        dc_step_entry(step, sequence)->finish = sequence->finish;
        return;
    }
    for (uint32_t i = 0; i < sequence->replay_count && sequence->history; i++) {
        BT_ASSERT(bt_sampler_history_add_output(sequence->history, sequence->replay[i]));
    }
    dc_engine_join(engine, sequence, step);
}

static void end_prompts(struct dc_engine *engine, const struct bt_forward_result *result,
                        struct dc_step *step)
{
    uint32_t index = 0;
    dc_prompts_computed(&engine->prompts, step->begin_ns, bt_clock_now_ns());
    for (uint32_t i = 0; i < engine->prompts.chunk_count; i++) {
        struct dc_sequence *sequence = dc_prompts_ended(&engine->prompts, i);
        if (sequence) {
            begin_output(engine, result, index++, sequence, step);
        }
    }
}

/* ------------------------------------------------------------------ passes */

/* The pass that was begun first ends: it is `flight`, and reported in `step`. `behind`: the step
 * that was begun after it; NULL: none. */
static enum bt_status end_pass(struct dc_engine *engine, const struct dc_flight *flight,
                               enum dc_pass pass, struct dc_step *step, struct dc_step *behind)
{
    struct bt_forward_result result = {0};
    enum bt_status status = flight->runs ? bt_forward_finish(engine->forward, &result) : BT_OK;
    engine->under_way--;
    if (status == BT_OK && pass == DC_PASS_STEP) {
        sample(engine, flight, &result, step, behind);
    } else if (status == BT_OK) {
        end_prompts(engine, &result, step);
    }
    dc_engine_remove_finished(engine);
    return status;
}

enum bt_status dc_engine_run(struct dc_engine *engine, struct dc_step *step, enum dc_pass pass)
{
    enum bt_status status = BT_OK;
    BT_ASSERT(engine->under_way == 0);
    if (pass == DC_PASS_STEP) {
        step->prompt_rows = 0;
    } else {
        step->rows = step->sequences = 0;
    }
    if (has_part(engine, step)) {
        if (bt_forward_draws(engine->forward)) {
            ask_draws(engine, step, pass);
        }
        status = begin_pass(engine, step, pass, NULL);
        if (status == BT_OK) {
            status = end_pass(engine, engine->now, pass, step, NULL);
        }
    }
    engine->last_pass = pass;
    step->end_ns = bt_clock_now_ns();
    return status;
}

/* ------------------------------------------------------------------ steps under way */

bool dc_engine_overlaps(const struct dc_engine *engine)
{
    return engine->overlaps;
}

/* What is left of the engine's choices while a step is under way that nothing is known of yet: each
 * sequence draws one token after the other. */
static bool goes_on(const struct dc_engine *engine, const struct dc_step *step)
{
    bool goes = engine->no_logits && step->drawing == step->rows;
    for (uint32_t i = 0; i < engine->sequence_count && goes; i++) {
        const struct dc_sequence *sequence = engine->sequences[i];
        goes = !dc_prompts_waiting(sequence) && sequence->forced == 0 &&
               (sequence->joined || sequence->replay_count == 0);
    }
    return goes;
}

/* Whether it will have a row in the step behind the one under way, if that does not end it with
 * EOS; and how many tokens before it. */
static bool will_run(const struct dc_engine *engine, const struct dc_sequence *sequence,
                     uint32_t *ret_generated)
{
    uint32_t generated = sequence->joined ? sequence->generated + sequence->ahead : 1;
    uint32_t slots = (sequence->page_count + sequence->granted) * BT_PAGE_TOKENS;
    *ret_generated = generated;
    return sequence->stop == DC_RUNNING && slots > sequence->prompt_tokens + generated - 1 &&
           dc_engine_steps_after(engine, sequence, generated) > 0 &&
           (sequence->joined || !dc_engine_ends_with(engine, sequence, sequence->last.token));
}

static void add_ahead(struct dc_engine *engine, uint32_t index, struct dc_sequence *sequence,
                      uint32_t generated)
{
    engine->now->batch[index] = sequence;
    engine->rows[index] = (struct bt_sequence_rows){
        .pages = sequence->pages,
        .start = sequence->prompt_tokens + generated - 1,
        .first_row = index,
        .row_count = 1,
    };
    engine->tokens[index] = sequence->last.token;
    engine->token_from[index] = sequence->ahead > 0 ? sequence->place : BT_TOKEN_GIVEN;
    engine->logit_rows[index] = index;
    sequence->rows = 1;
    bool drawn = sequence->ahead > 0, given = !sequence->joined;
    ask_draw(engine, index, sequence, generated,
             drawn   ? BT_NEWEST_DRAWN
             : given ? BT_NEWEST_GIVEN
                     : BT_NEWEST_NONE,
             drawn ? sequence->place : sequence->last.token);
}

/* As `gather` would of the first sequences when the step under way is over. */
static void gather_ahead(struct dc_engine *engine, uint32_t sequences, struct dc_step *next)
{
    uint32_t count = 0, generated;
    bt_draws_clear(&engine->draws);
    engine->no_logits = true;
    for (uint32_t i = 0; i < sequences && count < engine->options.max_num_seqs; i++) {
        if (will_run(engine, engine->sequences[i], &generated)) {
            add_ahead(engine, count++, engine->sequences[i], generated);
        }
    }
    engine->logit_count = count;
    next->rows = next->sequences = next->drawing = count;
    next->entry_count = next->wish_count = next->prompt_rows = 0;
}

bool dc_engine_goes_on(struct dc_engine *engine, const struct dc_step *step)
{
    if (!engine->overlaps) {
        return false;
    }
    ask_draws(engine, step, DC_PASS_STEP);
    return goes_on(engine, step);
}

enum bt_status dc_engine_set_out(struct dc_engine *engine, struct dc_step *step)
{
    BT_ASSERT(engine->overlaps && engine->under_way == 0);
    step->prompt_rows = 0;
    ask_draws(engine, step, DC_PASS_STEP);
    return begin_pass(engine, step, DC_PASS_STEP, NULL);
}

static struct dc_flight *other_flight(struct dc_engine *engine)
{
    return &engine->flights[engine->now == engine->flights];
}

bool dc_engine_look_ahead(struct dc_engine *engine, const struct dc_step *step,
                          struct dc_step *next)
{
    BT_ASSERT(engine->under_way == 1);
    bool goes = goes_on(engine, step);
    engine->now = other_flight(engine);
    gather_ahead(engine, goes ? engine->sequence_count : 0, next);
    return goes;
}

enum bt_status dc_engine_set_out_behind(struct dc_engine *engine, const struct dc_step *next)
{
    return begin_pass(engine, next, DC_PASS_STEP, engine->token_from);
}

enum bt_status dc_engine_end(struct dc_engine *engine, struct dc_step *step, struct dc_step *next)
{
    BT_ASSERT(engine->under_way == 1 + (next != NULL));
    enum bt_status status = end_pass(engine, other_flight(engine), DC_PASS_STEP, step, next);
    step->end_ns = bt_clock_now_ns();
    dc_engine_account(engine, step);
    if (status == BT_OK && next) {
        next->begin_ns = next->end_ns = step->end_ns;
        dc_engine_admit(engine, next);
    }
    return status;
}

enum bt_status dc_engine_go_on(struct dc_engine *engine, struct dc_step *step, struct dc_step *next,
                               bool *ret_begun)
{
    *ret_begun = dc_engine_look_ahead(engine, step, next) && next->rows > 0;
    enum bt_status status = *ret_begun ? dc_engine_set_out_behind(engine, next) : BT_OK;
    return status == BT_OK ? dc_engine_end(engine, step, *ret_begun ? next : NULL) : status;
}
