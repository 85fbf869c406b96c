/*
 * The decode engine: continuous batching of sequences over paged KV, one token a sequence a step.
 * No thread and no queue: dc_engine_step is one pass. stepper.h gives it a thread; the
 * single-process program calls it directly.
 *
 * A rank of a group has an engine for its own sequences, and takes the steps of its group with the
 * others. They agree between the halves of a step: dc_engine_begin, which knows how many rows this
 * rank has, and dc_engine_run, which all ranks call when one of them has any. A rank without rows
 * runs none of its own, computes what rows of others want of its experts, and its part in attention
 * and sampling is nothing: that is the dummy row, at no cost.
 *
 * A sequence joins and leaves between steps. Its tokens depend on itself alone, whoever is beside
 * it (design: determinism). Token 0 came from prefill; after g tokens the KV holds prompt + g - 1
 * tokens, and a step appends the KV of the last token and draws token g.
 *
 * A sequence that ran elsewhere before brings the tokens that it had there (replay). Their KV is
 * appended first, many rows of the sequence in a step, and nothing is drawn for them; then it goes
 * on as if it had always been here. Every sequence of a batch has a row; what is left of
 * max_num_seqs goes to replays, the eldest first. Beside a sequence that draws, here or on another
 * rank, they get no more than those have rows, or a quarter of max_num_seqs where that is more: a
 * step takes at most about twice the time that it took, or that of a batch of a quarter of what the
 * operator allows, and each row of a step costs less the more there are.
 *
 * A sequence may also bring its prompt alone: the engine computes it, in chunks (prompts.h), and
 * draws token 0 with the bits of a prefill worker of one rank. A pass is a step of the batch or
 * chunks of prompts, and the two take turns where there is work for both: between two tokens of a
 * sequence lie at most prompt_chunk rows of others' prompts. The ranks of a group take the same
 * passes.
 *
 * Where a device draws the tokens, a step is begun before the one under way is over: it takes the
 * tokens of that from the device. So the device works while tokens are looked at and reported.
 * Whoever ends with its length or was stopped is known not to have a row there. One that turns out
 * to have ended with EOS has a row too many: it is dropped, and since it is written to a page of
 * the sequence, the last token is reported with that step and not before. But for this, and for the
 * place that the row had in the batch, tokens, entries and wishes are those of steps one after the
 * other. Steps with replays, prompts or tokens that the host draws have nothing begun behind them.
 * The ranks of a group agree on the step behind while the one before it runs (dc_engine_look_ahead
 * says what this rank has for it), and begin it all or none.
 */
#ifndef BATON_DECODE_NODE_ENGINE_H
#define BATON_DECODE_NODE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model/forward.h"
#include "common/model/model.h"
#include "common/model/rank.h"
#include "common/model/sampler.h"
#include "kvtransfer/staging.h"

enum dc_finish {
    DC_RUNNING,
    DC_FINISH_STOP,   /* EOS */
    DC_FINISH_LENGTH, /* max_tokens or the context is full */
    DC_FINISH_CANCELLED,
    DC_FINISH_PREEMPTED, /* its pages are needed by others */
    DC_FINISH_DIVERGED,  /* the prompt that was computed here does not go on with its replay */
};

/*
 * One sequence. The engine's from dc_engine_add until an entry of a step says that it finished;
 * what it points to lives as long. The caller fills it as dc_sequence_init asks.
 */
struct dc_sequence {
    uint64_t request;
    uint64_t epoch;
    uint32_t prompt_tokens;
    uint32_t *pages; /* [page_capacity], in token order; caller's memory */
    uint32_t page_count;
    uint32_t page_capacity; /* of prompt_tokens + sampling->max_tokens at least */
    const struct bt_sampling *sampling;
    struct bt_sampler_history
        *history;           /* NULL: no penalty needs it; holds the prompt already and,
                               but with `prompt`, the replay, and has room for the rest */
    struct bt_sample last;  /* the newest token; at first token 0, but with `prompt` */
    const uint32_t *prompt; /* [prompt_tokens] to be computed here; NULL: its KV is in the pages */
    int64_t arrival_ns;     /* with `prompt` */
    /* Tokens 0 … replay_count - 1 of its output, less than sampling->max_tokens, for which there
     * are pages; token 0 is that of `last`. The first one reported is number replay_count. */
    const uint32_t *replay;
    uint32_t replay_count; /* 0: none */
    void *user;

    /* The engine's. */
    uint32_t generated; /* tokens, token 0 and replayed ones included */
    uint32_t ahead;     /* steps under way with rows of it */
    uint32_t place;     /* in the batch of the last of these */
    uint32_t granted;   /* pages that it has from the next step on, behind page_count */
    uint32_t forced;    /* of the replay, but for its last: their KV is still to be appended */
    uint32_t rows;      /* in the batch */
    enum dc_finish finish;
    enum dc_finish stop;       /* it was told to end so, with the next step */
    bool asked;                /* for a page, and did not get it yet */
    bool stalled;              /* said so: no slot is left for the next token's KV */
    bool joined;               /* token 0 was reported */
    uint32_t computed;         /* tokens of `prompt` */
    int64_t prompt_begin_ns;   /* of the first pass with a part of it; 0: none yet */
    int64_t prompt_compute_ns; /* of all of these; may be read when token 0 was reported */
};

struct dc_engine_options {
    const struct bt_model *model;
    const struct bt_rank *rank; /* NULL: alone; else it outlives the engine */
    struct bt_kv_layout layout;
    void *kv_pool; /* [layer][page][token][dim] */
    uint32_t pool_pages;
    /* That the KV of prompts comes by, when a sequence joins; NULL: it is in kv_pool already. */
    struct kvt_staging *staging;
    uint32_t max_num_seqs;  /* in one step; in a group the same on all ranks */
    uint32_t max_sequences; /* in the engine, waiting and stalled ones included */
    uint32_t max_model_len; /* prompt + output */
    /* Rows of prompts in a pass while sequences draw; without, DC_PROMPTS_IDLE times as many. 0: no
     * sequence brings its prompt alone. In a group the same on all ranks. */
    uint32_t prompt_chunk;
};

/* Rows of a pass at most, as the rank has to be told. */
uint32_t dc_engine_max_rows(uint32_t max_num_seqs, uint32_t prompt_chunk);

struct dc_engine;

enum bt_status dc_engine_create(const struct dc_engine_options *options, struct bt_error *error,
                                struct dc_engine **ret_engine);
void dc_engine_destroy(struct dc_engine *engine); /* NULL is fine; sequences inside are forgotten */

/* The pass that it runs; the engine's. */
struct bt_forward *dc_engine_forward(const struct dc_engine *engine);

/* The calling thread will step it from now on: see bt_team_enter and bt_device_enter. */
enum bt_status dc_engine_enter(struct dc_engine *engine, struct bt_error *error);

/* Joins the next step that has room, first come first served. At most max_sequences: asserted. */
void dc_engine_add(struct dc_engine *engine, struct dc_sequence *sequence);

/* CANCELLED or PREEMPTED with the next step. Harmless when the sequence is not here any more. */
void dc_engine_stop(struct dc_engine *engine, uint64_t request, uint64_t epoch,
                    enum dc_finish finish);

/* All that are here. */
void dc_engine_stop_all(struct dc_engine *engine, enum dc_finish finish);

/* One more page. Harmless likewise (its owner frees all pages of a finished sequence together). */
void dc_engine_grow(struct dc_engine *engine, uint64_t request, uint64_t epoch, uint32_t page);

/* Sequences that draw on the rank that has most of them, as the group last said: replays make way
 * for them. */
void dc_engine_beside(struct dc_engine *engine, uint32_t drawing);
/* What ranks agreed on of the pass that comes: see most_rows and is_steady of
 * common/model/forward.h.
 */
void dc_engine_together(struct dc_engine *engine, uint32_t most_rows, bool is_steady);

/* Whether a step has anything to do: false until something is added, stopped or grown. */
bool dc_engine_runnable(const struct dc_engine *engine);

/* A new token of a sequence, its end, or both. */
struct dc_entry {
    uint64_t request, epoch;
    void *user;
    bool has_token;
    bool drawn;     /* the token, by this step; else it came with the sequence */
    uint32_t index; /* of the token, from 0 */
    struct bt_sample sample;
    enum dc_finish finish; /* not DC_RUNNING: the last entry, the sequence is the caller's again */
};

/* A sequence that wants one more page. `stalled`: it is left out of steps until it gets one. */
struct dc_page_wish {
    uint64_t request, epoch;
    bool stalled;
};

struct dc_step {
    struct dc_entry *entries; /* [entry_capacity] */
    uint32_t entry_count, entry_capacity;
    struct dc_page_wish *wishes; /* [wish_capacity] */
    uint32_t wish_count, wish_capacity;
    uint32_t rows;        /* in the batch */
    uint32_t sequences;   /* likewise */
    uint32_t drawing;     /* likewise, those that have nothing to replay */
    uint32_t prompt_rows; /* of prompts; after the pass either these or `rows` is 0 */
    uint64_t kv_tokens;   /* sum of KV lengths of the sequences inside, after the step */
    int64_t begin_ns, end_ns;
};

/* What one step can report at most: two entries (token 0 and the next one, or an end) and two
 * wishes a sequence. */
bool dc_step_init(struct dc_step *step, uint32_t max_sequences); /* false: no memory */
void dc_step_finish(struct dc_step *step);

enum dc_pass {
    DC_PASS_NONE,
    DC_PASS_STEP,    /* of the batch */
    DC_PASS_PROMPTS, /* of chunks of prompts */
};

/*
 * Ends those that were stopped, reports token 0 of new sequences and gathers the batch: every
 * sequence that has room, and rows that are replayed, at most max_num_seqs. Gathers chunks of
 * prompts, too.
 *
 * Where no step is begun behind another, it is not prepared while the last one computes: on a CPU
 * that took the tiny model 0.06 us of a step of 201 us with one sequence, and 0.54 us of 9.5 ms
 * with 64; and what a step drew, who ended and who came decides the next batch.
 */
void dc_engine_begin(struct dc_engine *engine, struct dc_step *step);
/* The next pass, where some rank has a batch, and some rank chunks. */
enum dc_pass dc_engine_turn(const struct dc_engine *engine, bool batch, bool prompts);
/* STEP: computes one token of each sequence of the batch that has not more to replay. PROMPTS:
 * computes the chunks, and draws and reports token 0 of the prompts that end. In a group it fails
 * as bt_forward_run does; the engine is of no use then but to be destroyed. */
enum bt_status dc_engine_run(struct dc_engine *engine, struct dc_step *step, enum dc_pass pass);
/* What else there is to report of the step: page wishes, KV in use. May come after the begin of the
 * next one. */
void dc_engine_account(struct dc_engine *engine, struct dc_step *step);

/* All of these; alone, with nothing under way. */
enum bt_status dc_engine_step(struct dc_engine *engine, struct dc_step *step);

/* ---- steps that are begun before the last one is over */

/* Whether this engine does so: all of a group or none. */
bool dc_engine_overlaps(const struct dc_engine *engine);
/* After dc_engine_begin: whether, as far as this rank knows, a step may be begun behind this one.
 */
bool dc_engine_goes_on(struct dc_engine *engine, const struct dc_step *step);
/* After dc_engine_begin, in place of run and account, for DC_PASS_STEP: begins it, and it is under
 * way from then on. Without rows only in a group. */
enum bt_status dc_engine_set_out(struct dc_engine *engine, struct dc_step *step);

/*
 * While `step` is under way: gathers `next`, as it will be if no sequence ends with EOS. Whether
 * this rank can begin it behind `step`; if not it has no rows.
 */
bool dc_engine_look_ahead(struct dc_engine *engine, const struct dc_step *step,
                          struct dc_step *next);
/* After look_ahead, with nothing in between: begins `next`. Without rows only in a group. */
enum bt_status dc_engine_set_out_behind(struct dc_engine *engine, const struct dc_step *next);
/* After look_ahead: ends `step`, account included. `next`: is under way behind it, and whoever was
 * stopped is reported there; NULL: nothing is. */
enum bt_status dc_engine_end(struct dc_engine *engine, struct dc_step *step, struct dc_step *next);

/* These three, of a rank alone. *ret_begun: there was something to begin. */
enum bt_status dc_engine_go_on(struct dc_engine *engine, struct dc_step *step, struct dc_step *next,
                               bool *ret_begun);

#endif
