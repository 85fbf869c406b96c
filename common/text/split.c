#include "common/text/split.h"

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

struct bt_split_rule {
    pcre2_code *code;
};

struct bt_split_scratch {
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

struct run {
    const struct bt_splitter *splitter;
    struct bt_split_scratch *scratch;
    bt_split_emit *emit;
    void *context;
    struct bt_error *error;
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

enum bt_status bt_splitter_add(struct bt_splitter *splitter, const char *pattern,
                               struct bt_error *error)
{
    if (splitter->rule_count == BT_SPLIT_MAX_RULES)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "more than %d split rules",
                            BT_SPLIT_MAX_RULES);
    struct bt_split_rule *rules =
        realloc(splitter->rules, (splitter->rule_count + 1) * sizeof *rules);
    if (!rules)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a split rule");
    splitter->rules = rules;
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
    splitter->rules[splitter->rule_count++].code = code;
    return BT_OK;
}

void bt_splitter_finish(struct bt_splitter *splitter)
{
    for (size_t i = 0; i < splitter->rule_count; i++)
        pcre2_code_free(splitter->rules[i].code);
    free(splitter->rules);
    *splitter = (struct bt_splitter){0};
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

static enum bt_status match_error(struct bt_error *error, size_t rule, int result)
{
    if (result == PCRE2_ERROR_NOMEMORY)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a split rule");
    PCRE2_UCHAR message[128];
    pcre2_get_error_message(result, message, sizeof message);
    return bt_error_set(error, BT_ERR_EXHAUSTED,
                        "split rule %zu of the tokenizer gave up on this text: %s", rule,
                        (const char *)message);
}

static enum bt_status run_rules(const struct run *run, size_t rule, const char *text, size_t size)
{
    if (size == 0)
        return BT_OK;
    if (rule == run->splitter->rule_count)
        return run->emit(run->context, text, size, run->error);
    size_t done = 0;
    while (done < size) {
        int result = match_at(&run->splitter->rules[rule], run->scratch, text, size, done);
        if (result == PCRE2_ERROR_NOMATCH)
            break;
        const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(run->scratch->match);
        if (result < 0 || ends[1] <= ends[0])
            return match_error(run->error, rule, result < 0 ? result : PCRE2_ERROR_INTERNAL);
        size_t from = ends[0], to = ends[1];
        enum bt_status status = run_rules(run, rule + 1, text + done, from - done);
        if (status == BT_OK)
            status = run_rules(run, rule + 1, text + from, to - from);
        if (status != BT_OK)
            return status;
        done = to;
    }
    return run_rules(run, rule + 1, text + done, size - done);
}

enum bt_status bt_splitter_run(const struct bt_splitter *splitter, struct bt_split_scratch *scratch,
                               const char *text, size_t size, bt_split_emit *emit, void *context,
                               struct bt_error *error)
{
    struct run run = {splitter, scratch, emit, context, error};
    uint64_t limit = MATCH_LIMIT_BASE + (uint64_t)MATCH_LIMIT_PER_BYTE * size;
    pcre2_set_match_limit(scratch->context, limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX);
    return run_rules(&run, 0, text, size);
}
