#include "common/model/prompt_batch.h"

#include <stdlib.h>
#include <string.h>

bool bt_prompt_batch_init(struct bt_prompt_batch *batch, uint32_t max_chunks, uint32_t max_rows)
{
    *batch = (struct bt_prompt_batch){
        .max_chunks = max_chunks,
        .max_rows = max_rows,
        .tokens = calloc(max_rows, sizeof(*batch->tokens)),
        .sequences = calloc(max_chunks, sizeof(*batch->sequences)),
        .logit_rows = calloc(max_chunks, sizeof(*batch->logit_rows)),
    };
    if (!batch->tokens || !batch->sequences || !batch->logit_rows) {
        bt_prompt_batch_finish(batch);
        return false;
    }
    return true;
}

void bt_prompt_batch_finish(struct bt_prompt_batch *batch)
{
    free(batch->tokens);
    free(batch->sequences);
    free(batch->logit_rows);
    *batch = (struct bt_prompt_batch){0};
}

void bt_prompt_batch_clear(struct bt_prompt_batch *batch)
{
    batch->chunks = batch->rows = batch->logits = 0;
}

void bt_prompt_batch_add(struct bt_prompt_batch *batch, const uint32_t *pages, uint32_t start,
                         const uint32_t *tokens, uint32_t rows, bool is_last)
{
    BT_ASSERT(batch->chunks < batch->max_chunks && rows <= batch->max_rows - batch->rows);
    memcpy(&batch->tokens[batch->rows], tokens, rows * sizeof(*tokens));
    batch->sequences[batch->chunks++] = (struct bt_sequence_rows){
        .pages = pages, .start = start, .first_row = batch->rows, .row_count = rows};
    batch->rows += rows;
    if (is_last) {
        batch->logit_rows[batch->logits++] = batch->rows - 1;
    }
}

void bt_prompt_batch_fill(const struct bt_prompt_batch *batch, struct bt_forward_batch *forward)
{
    forward->form = BT_FORWARD_MULTI_HEAD;
    forward->tokens = batch->tokens;
    forward->rows = batch->rows;
    forward->sequences = batch->sequences;
    forward->sequence_count = batch->chunks;
    forward->logit_rows = batch->logit_rows;
    forward->logit_count = batch->logits;
}
