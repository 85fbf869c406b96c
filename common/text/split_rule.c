#include "common/text/split_rule.h"

#include <stdlib.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "common/text/split_dialect.h"

/*
 * Steps of one match: the family's rules need a few a byte, a rule that backtracks exponentially
 * needs more than any.
 */
#define MATCH_LIMIT_BASE     1000000u
#define MATCH_LIMIT_PER_BYTE 64u
#define MATCH_HEAP_KIB       (256u << 10)
#define JIT_STACK_MIN_BYTES  (32u << 10)
#define JIT_STACK_MAX_BYTES  (8u << 20)

struct bt_split_scratch {
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

static enum bt_status compile(const char *pattern, struct bt_error *error, pcre2_code **ret_code)
{
    char reason[80];
    char *translated = bt_split_dialect_translate(pattern, reason);
    if (!translated && !reason[0])
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a split rule");
    if (!translated)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s", reason);
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) {
        free(translated);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a split rule");
    }
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int code;
    PCRE2_SIZE offset;
    *ret_code = pcre2_compile((PCRE2_SPTR)translated, PCRE2_ZERO_TERMINATED,
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_AUTO_CAPTURE,
                              &code, &offset, context);
    pcre2_compile_context_free(context);
    free(translated);
    if (*ret_code)
        return BT_OK;
    PCRE2_UCHAR message[128];
    pcre2_get_error_message(code, message, sizeof message);
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "does not compile: %s",
                        (const char *)message);
}

enum bt_status bt_split_rule_init(struct bt_split_rule *rule, const char *pattern,
                                  struct bt_error *error)
{
    pcre2_code *code;
    enum bt_status status = compile(pattern, error, &code);
    if (status != BT_OK)
        return status;
    uint32_t match_empty = 0;
    pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &match_empty);
    if (match_empty) {
        pcre2_code_free(code);
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "the rule can match an empty text");
    }
    /* Where this fails, the interpreter gives the same matches. */
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    rule->code = code;
    return BT_OK;
}

void bt_split_rule_finish(struct bt_split_rule *rule)
{
    pcre2_code_free(rule->code);
    *rule = (struct bt_split_rule){0};
}

struct bt_split_scratch *bt_split_scratch_create(void)
{
    struct bt_split_scratch *scratch = calloc(1, sizeof *scratch);
    if (!scratch)
        return NULL;
    scratch->match = pcre2_match_data_create(1, NULL);
    scratch->context = pcre2_match_context_create(NULL);
    if (!scratch->match || !scratch->context) {
        bt_split_scratch_destroy(scratch);
        return NULL;
    }
    /* NULL (no JIT, no memory) leaves the small stack on the thread's own. */
    scratch->stack = pcre2_jit_stack_create(JIT_STACK_MIN_BYTES, JIT_STACK_MAX_BYTES, NULL);
    pcre2_jit_stack_assign(scratch->context, NULL, scratch->stack);
    pcre2_set_heap_limit(scratch->context, MATCH_HEAP_KIB);
    return scratch;
}

void bt_split_scratch_destroy(struct bt_split_scratch *scratch)
{
    if (!scratch)
        return;
    pcre2_match_data_free(scratch->match);
    pcre2_match_context_free(scratch->context);
    pcre2_jit_stack_free(scratch->stack);
    free(scratch);
}

void bt_split_scratch_limit(struct bt_split_scratch *scratch, size_t text_size)
{
    uint64_t limit = MATCH_LIMIT_BASE + (uint64_t)MATCH_LIMIT_PER_BYTE * text_size;
    pcre2_set_match_limit(scratch->context, limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX);
}

/* PCRE2's own result: > 0 match, PCRE2_ERROR_NOMATCH, or an error. */
static int match_at(const struct bt_split_rule *rule, struct bt_split_scratch *scratch,
                    const char *text, size_t size, size_t from)
{
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    int result = pcre2_match(rule->code, subject, size, from, PCRE2_NO_UTF_CHECK, scratch->match,
                             scratch->context);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT)
        result = pcre2_match(rule->code, subject, size, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                             scratch->match, scratch->context);
    return result;
}

static enum bt_status match_error(struct bt_error *error, int result)
{
    if (result == PCRE2_ERROR_NOMEMORY)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a split rule");
    PCRE2_UCHAR message[128];
    pcre2_get_error_message(result, message, sizeof message);
    return bt_error_set(error, BT_ERR_EXHAUSTED, "gave up on this text: %s", (const char *)message);
}

enum bt_status bt_split_rule_find(const struct bt_split_rule *rule,
                                  struct bt_split_scratch *scratch, const char *text, size_t size,
                                  size_t from, struct bt_error *error, size_t *ret_from,
                                  size_t *ret_to)
{
    int result = match_at(rule, scratch, text, size, from);
    if (result == PCRE2_ERROR_NOMATCH)
        return BT_ERR_NOT_FOUND;
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(scratch->match);
    if (result < 0 || ends[1] <= ends[0])
        return match_error(error, result < 0 ? result : PCRE2_ERROR_INTERNAL);
    *ret_from = ends[0];
    *ret_to = ends[1];
    return BT_OK;
}
