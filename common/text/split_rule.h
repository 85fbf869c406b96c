/*
 * One split rule on PCRE2 (UTF, UCP, JIT), and the scratch of one call chain of matches. The rule
 * is built by one thread, then read by any.
 */
#ifndef BATON_COMMON_TEXT_SPLIT_RULE_H
#define BATON_COMMON_TEXT_SPLIT_RULE_H

#include <stddef.h>

#include "common/base/status.h"

struct bt_split_rule { /* caller-owned, zero-initialised */
    void *code;        /* pcre2_code */
};

/* Errors: INVALID_ARGUMENT with what is wrong with the rule (without its place), NO_MEMORY. */
enum bt_status bt_split_rule_init(struct bt_split_rule *rule, const char *pattern,
                                  struct bt_error *error);
void bt_split_rule_finish(struct bt_split_rule *rule);

struct bt_split_scratch;
struct bt_split_scratch *bt_split_scratch_create(void); /* NULL: no memory */
void bt_split_scratch_destroy(struct bt_split_scratch *scratch);

/* How many steps a match may take, by the size of the whole text. */
void bt_split_scratch_limit(struct bt_split_scratch *scratch, size_t text_size);

/*
 * The leftmost match at or after `from`, never an empty one. NOT_FOUND: none (`error` untouched).
 * `text` must be UTF-8. Errors: EXHAUSTED when it takes more steps than a sound rule needs,
 * NO_MEMORY.
 */
enum bt_status bt_split_rule_find(const struct bt_split_rule *rule,
                                  struct bt_split_scratch *scratch, const char *text, size_t size,
                                  size_t from, struct bt_error *error, size_t *ret_from,
                                  size_t *ret_to);

#endif
