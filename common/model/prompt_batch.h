/*
 * Chunks of prompts as the rows of one forward pass: the form in which a prompt is computed, by
 * whomever. KV and logits have the same bits wherever the cuts between chunks are, and whatever
 * other prompts are beside it. One thread.
 */
#ifndef BATON_COMMON_MODEL_PROMPT_BATCH_H
#define BATON_COMMON_MODEL_PROMPT_BATCH_H

#include "common/model/forward.h"

struct bt_prompt_batch {
    uint32_t max_chunks, max_rows;
    uint32_t *tokens;                   /* [max_rows] */
    struct bt_sequence_rows *sequences; /* [max_chunks] */
    uint32_t *logit_rows;               /* likewise */
    uint32_t chunks, rows, logits;
};

bool bt_prompt_batch_init(struct bt_prompt_batch *batch, uint32_t max_chunks,
                          uint32_t max_rows); /* false: no memory */
void bt_prompt_batch_finish(struct bt_prompt_batch *batch);

void bt_prompt_batch_clear(struct bt_prompt_batch *batch);
/* `tokens` [rows], from position `start` on; read here. `pages` of the prompt up to its last row,
 * read during the pass. `is_last`: the prompt ends with it, its last row has logits. */
void bt_prompt_batch_add(struct bt_prompt_batch *batch, const uint32_t *pages, uint32_t start,
                         const uint32_t *tokens, uint32_t rows, bool is_last);

/* All of *forward that is not about where KV lies or whom to call; it borrows from `batch`. Its
 * logits are those of the chunks that are last, in order. */
void bt_prompt_batch_fill(const struct bt_prompt_batch *batch, struct bt_forward_batch *forward);

#endif
