/*
 * The inside of a decode engine: engine.c has its sequences and what a step consists of,
 * engine_pass.c runs the passes and draws the tokens.
 */
#ifndef BATON_DECODE_NODE_ENGINE_STATE_H
#define BATON_DECODE_NODE_ENGINE_STATE_H

#include "common/model/draws.h"
#include "decode-node/engine.h"
#include "decode-node/prompts.h"

/* A batch, until its tokens are there. */
struct dc_flight {
    struct dc_sequence **batch; /* [max_num_seqs]; NULL: it has ended meanwhile */
    bool *by_device;            /* [of those that draw] who draws its token */
    bool runs;                  /* on the device: a rank alone has nothing to do without rows */
};

struct dc_engine {
    struct dc_engine_options options;
    struct bt_forward *forward;
    bool shares_experts; /* with other ranks, whose steps want it, too */
    struct bt_sampler *sampler;
    struct dc_sequence **sequences; /* [max_sequences], in the order they were added */
    uint32_t sequence_count;
    bool stirred;       /* something was added, stopped or grown since the last step */
    uint32_t beside;    /* see dc_engine_beside */
    uint32_t most_rows; /* see dc_engine_together */
    bool is_steady;
    enum dc_pass last_pass;
    struct dc_prompts prompts; /* with options.prompt_chunk */

    /* One step. */
    struct dc_flight *now;         /* of `flights`: that was gathered last */
    struct bt_sequence_rows *rows; /* [max_num_seqs] */
    uint32_t *tokens;              /* likewise */
    uint32_t *logit_rows;          /* likewise */
    uint32_t logit_count;
    struct bt_draws draws; /* of logit_count rows, where the device draws */
    bool no_logits;        /* it draws all of them */

    /* With steps under way. */
    bool overlaps;
    struct dc_flight flights[2];
    uint32_t under_way;   /* 0, 1, and while the eldest ends 2 */
    uint32_t *token_from; /* [max_num_seqs] */
};

/* Whether its rows reach the newest token, and a token is drawn after it. */
static inline bool dc_sequence_draws(const struct dc_sequence *sequence)
{
    return sequence->rows > sequence->forced;
}

/* ---- engine.c */

/* Where KV is; the rest is to be filled in. */
struct bt_forward_batch dc_engine_batch(const struct dc_engine *engine);
/* Steps that are still to come after so many tokens if nothing ends it early. */
uint32_t dc_engine_steps_after(const struct dc_engine *engine, const struct dc_sequence *sequence,
                               uint32_t generated);
bool dc_engine_ends_with(const struct dc_engine *engine, const struct dc_sequence *sequence,
                         uint32_t token);
struct dc_entry *dc_step_entry(struct dc_step *step, const struct dc_sequence *sequence);
/* sequence->last is a new token: counts it, decides whether it was the last one, reports both. */
struct dc_entry *dc_engine_accept(struct dc_engine *engine, struct dc_sequence *sequence,
                                  struct dc_step *step);
/* Its first token is there. */
void dc_engine_join(struct dc_engine *engine, struct dc_sequence *sequence, struct dc_step *step);
/* Ends those that were stopped, reports token 0 of the new ones. */
void dc_engine_admit(struct dc_engine *engine, struct dc_step *step);
void dc_engine_remove_finished(struct dc_engine *engine);

#endif
