/* A text through a model in independent pieces, on one thread beside the model's team. */
#ifndef BATON_DEPLOY_BATONCTL_TEXT_RUN_H
#define BATON_DEPLOY_BATONCTL_TEXT_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/model/model.h"
#include "common/text/tokenizer.h"

#define CTL_TEXT_WINDOW     512 /* tokens of a piece at most */
#define CTL_TEXT_MIN_TOKENS 64

/* The first `max_tokens` tokens of a file; the caller frees ids. INVALID_ARGUMENT: fewer than
 * CTL_TEXT_MIN_TOKENS. */
enum bt_status ctl_text_read(const char *model_dir, const char *path, uint32_t max_tokens,
                             struct bt_error *error, struct bt_token_buffer *ret_tokens);

struct ctl_text_run;

/* `wants_logits`: of all rows; takes CTL_TEXT_WINDOW rows of them. The model lives longer. */
enum bt_status ctl_text_run_create(const struct bt_model *model, bool wants_logits,
                                   struct bt_error *error, struct ctl_text_run **ret_run);
void ctl_text_run_destroy(struct ctl_text_run *run); /* NULL is fine */

/* One piece, `count` tokens from position 0 on, all rows through all layers. Logits [count][vocab]
 * valid until the next one, or NULL. */
const float *ctl_text_run_piece(struct ctl_text_run *run, const uint32_t *tokens, uint32_t count);

#endif
