/*
 * The pre_tokenizer: rules that cut text into pieces, each rule applied to every piece of the one
 * before; what a rule matches and what lies between matches become pieces ("Isolated").
 *
 * struct bt_splitter is built by the loader, then read by any thread; a scratch belongs to one call
 * chain.
 */
#ifndef BATON_COMMON_TEXT_SPLIT_H
#define BATON_COMMON_TEXT_SPLIT_H

#include <stddef.h>

#include "common/base/status.h"

#define BT_SPLIT_MAX_RULES 16

struct bt_splitter { /* caller-owned, zero-initialised */
    struct bt_split_rule *rules;
    size_t rule_count;
};

struct bt_split_scratch;

/* Errors: INVALID_ARGUMENT with what is wrong with the rule (without its place), NO_MEMORY. */
enum bt_status bt_splitter_add(struct bt_splitter *splitter, const char *pattern,
                               struct bt_error *error);
void bt_splitter_finish(struct bt_splitter *splitter);

struct bt_split_scratch *bt_split_scratch_create(void); /* NULL: no memory */
void bt_split_scratch_destroy(struct bt_split_scratch *scratch);

/* Called for each piece in order, never for an empty one. Anything but BT_OK ends the split. */
typedef enum bt_status bt_split_emit(void *context, const char *piece, size_t size,
                                     struct bt_error *error);

/*
 * `text` must be UTF-8. Errors: EXHAUSTED when a rule takes more steps than a sound one needs,
 * NO_MEMORY, what `emit` returns.
 */
enum bt_status bt_splitter_run(const struct bt_splitter *splitter, struct bt_split_scratch *scratch,
                               const char *text, size_t size, bt_split_emit *emit, void *context,
                               struct bt_error *error);

#endif
