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
#include "common/text/code_class.h"
#include "common/text/split_rule.h"
#include "common/text/split_scan.h"

#define BT_SPLIT_MAX_RULES 16

struct bt_splitter { /* caller-owned, zero-initialised */
    struct bt_split_step {
        char *pattern;
        struct bt_split_rule rule;
        struct bt_split_scan scan; /* of kind NONE until the splitter is specialised */
    } * steps;
    size_t step_count;
    struct bt_code_class classes;
};

/* Errors: INVALID_ARGUMENT with what is wrong with the rule (without its place), NO_MEMORY. */
enum bt_status bt_splitter_add(struct bt_splitter *splitter, const char *pattern,
                               struct bt_error *error);
void bt_splitter_finish(struct bt_splitter *splitter);

/* After the last rule: those of known form are found by table from now on, with the same pieces. */
enum bt_status bt_splitter_specialise(struct bt_splitter *splitter, struct bt_error *error);

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

/*
 * The first place after `from` and before `size` where the text can be cut in two: the pieces of
 * both parts are those of the whole. Only the characters on both sides of a place are looked at, so
 * it is one in any other text too that has them there. `size`: there is none, or a rule is not of
 * known form.
 */
size_t bt_splitter_cut(const struct bt_splitter *splitter, const char *text, size_t size,
                       size_t from);

#endif
