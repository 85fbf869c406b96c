/*
 * Prompts that a decode engine computes itself, in chunks between the steps of its batch: which
 * chunks come next, and what they were. The engine's; its thread.
 *
 * Shortest first with ageing, as prefill workers have it (prompt_schedule.h). The bits of KV and of
 * the logits are those of a prefill worker of one rank.
 */
#ifndef BATON_DECODE_NODE_PROMPTS_H
#define BATON_DECODE_NODE_PROMPTS_H

#include "common/model/prompt_batch.h"
#include "common/model/prompt_schedule.h"

struct dc_sequence;

#define DC_PROMPTS_SHARE 8 /* prompts at most that share a pass */
/* Where no sequence draws, a pass may have so many times the rows. */
#define DC_PROMPTS_IDLE 4

struct dc_prompts {
    struct bt_prompt_batch batch;
    struct bt_prompt_job *jobs;     /* [max_sequences] those that wait */
    struct dc_sequence **sequences; /* likewise: whose they are */
    struct bt_prompt_chunk *chunks; /* [DC_PROMPTS_SHARE] of the pass */
    uint32_t chunk_count;
};

/* False: no memory. */
bool dc_prompts_init(struct dc_prompts *prompts, uint32_t max_sequences, uint32_t max_rows);
void dc_prompts_finish(struct dc_prompts *prompts);

/* Some of it is still to be computed. */
bool dc_prompts_waiting(const struct dc_sequence *sequence);

/* Chooses chunks of at most `budget` rows among the `count` sequences; how many rows there are. */
uint32_t dc_prompts_gather(struct dc_prompts *prompts, struct dc_sequence *const *sequences,
                           uint32_t count, uint32_t budget);
/* The pass of these chunks took that long. */
void dc_prompts_computed(struct dc_prompts *prompts, int64_t begin_ns, int64_t end_ns);
/* Of chunk i: its sequence, if the prompt ends with it, else NULL. In the order of the logits. */
struct dc_sequence *dc_prompts_ended(const struct dc_prompts *prompts, uint32_t chunk);

#endif
