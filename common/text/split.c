#include "common/text/split.h"

#include <stdlib.h>
#include <string.h>

struct run {
    const struct bt_splitter *splitter;
    struct bt_split_scratch *scratch;
    bt_split_emit *emit;
    void *context;
    struct bt_error *error;
};

static enum bt_status no_memory(struct bt_error *error)
{
    return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a split rule");
}

static void finish_step(struct bt_split_step *step)
{
    free(step->pattern);
    bt_split_rule_finish(&step->rule);
}

enum bt_status bt_splitter_add(struct bt_splitter *splitter, const char *pattern,
                               struct bt_error *error)
{
    if (splitter->step_count == BT_SPLIT_MAX_RULES)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "more than %d split rules",
                            BT_SPLIT_MAX_RULES);
    struct bt_split_step *steps =
        realloc(splitter->steps, (splitter->step_count + 1) * sizeof *steps);
    if (!steps)
        return no_memory(error);
    splitter->steps = steps;
    struct bt_split_step step = {.pattern = strdup(pattern)};
    if (!step.pattern)
        return no_memory(error);
    enum bt_status status = bt_split_rule_init(&step.rule, pattern, error);
    if (status == BT_OK)
        splitter->steps[splitter->step_count++] = step;
    else
        finish_step(&step);
    return status;
}

void bt_splitter_finish(struct bt_splitter *splitter)
{
    for (size_t i = 0; i < splitter->step_count; i++)
        finish_step(&splitter->steps[i]);
    free(splitter->steps);
    bt_code_class_finish(&splitter->classes);
    *splitter = (struct bt_splitter){0};
}

static enum bt_status build_classes(struct bt_splitter *splitter,
                                    const struct bt_split_flags *flags, struct bt_error *error)
{
    struct bt_code_class_draft *draft = bt_code_class_draft_create();
    enum bt_status status = draft ? BT_OK : no_memory(error);
    for (unsigned i = 0; i < flags->count && status == BT_OK; i++)
        status = bt_code_class_draft_mark(draft, flags->patterns[i], (uint16_t)(1u << i), error);
    if (status == BT_OK && !bt_code_class_init(&splitter->classes, draft))
        status = no_memory(error);
    bt_code_class_draft_destroy(draft);
    return status;
}

enum bt_status bt_splitter_specialise(struct bt_splitter *splitter, struct bt_error *error)
{
    struct bt_split_scan scans[BT_SPLIT_MAX_RULES];
    struct bt_split_flags flags = {0};
    enum bt_status status = BT_OK;
    for (size_t i = 0; i < splitter->step_count && status == BT_OK; i++)
        if (!bt_split_scan_recognise(splitter->steps[i].pattern, &flags, &scans[i]))
            status = no_memory(error);
    if (status == BT_OK && flags.count > 0)
        status = build_classes(splitter, &flags, error);
    for (size_t i = 0; i < splitter->step_count && status == BT_OK; i++)
        splitter->steps[i].scan = scans[i];
    bt_split_flags_finish(&flags);
    return status;
}

/* NOT_FOUND: no match at or after `from`. */
static enum bt_status find(const struct run *run, size_t step, const char *text, size_t size,
                           size_t from, size_t *ret_from, size_t *ret_to)
{
    const struct bt_split_step *s = &run->splitter->steps[step];
    if (s->scan.kind != BT_SPLIT_SCAN_NONE)
        return bt_split_scan_find(&s->scan, &run->splitter->classes, text, size, from, ret_from,
                                  ret_to)
                   ? BT_OK
                   : BT_ERR_NOT_FOUND;
    enum bt_status status =
        bt_split_rule_find(&s->rule, run->scratch, text, size, from, run->error, ret_from, ret_to);
    if (status != BT_OK && status != BT_ERR_NOT_FOUND)
        bt_error_prefix(run->error, "split rule %zu of the tokenizer", step);
    return status;
}

static enum bt_status run_steps(const struct run *run, size_t step, const char *text, size_t size)
{
    if (size == 0)
        return BT_OK;
    if (step == run->splitter->step_count)
        return run->emit(run->context, text, size, run->error);
    size_t done = 0, from, to;
    while (done < size) {
        enum bt_status status = find(run, step, text, size, done, &from, &to);
        if (status == BT_ERR_NOT_FOUND)
            break;
        if (status == BT_OK)
            status = run_steps(run, step + 1, text + done, from - done);
        if (status == BT_OK)
            status = run_steps(run, step + 1, text + from, to - from);
        if (status != BT_OK)
            return status;
        done = to;
    }
    return run_steps(run, step + 1, text + done, size - done);
}

enum bt_status bt_splitter_run(const struct bt_splitter *splitter, struct bt_split_scratch *scratch,
                               const char *text, size_t size, bt_split_emit *emit, void *context,
                               struct bt_error *error)
{
    struct run run = {splitter, scratch, emit, context, error};
    bt_split_scratch_limit(scratch, size);
    return run_steps(&run, 0, text, size);
}

static bool is_cut(const struct bt_splitter *splitter, uint16_t before, uint16_t after)
{
    enum bt_split_cut cut = BT_SPLIT_CUT_BLIND;
    for (size_t i = 0; i < splitter->step_count && cut == BT_SPLIT_CUT_BLIND; i++)
        cut = bt_split_scan_cut(&splitter->steps[i].scan, before, after);
    return cut == BT_SPLIT_CUT_YES;
}

size_t bt_splitter_cut(const struct bt_splitter *splitter, const char *text, size_t size,
                       size_t from)
{
    const struct bt_code_class *classes = &splitter->classes;
    size_t at = from, length;
    if (!classes->pages)
        return size;
    /* From the first whole character on. */
    while (at < size && ((unsigned char)text[at] & 0xC0) == 0x80)
        at++;
    if (at >= size)
        return size;
    uint16_t before = bt_code_class_get(classes, text + at, &length);
    for (at += length; at < size; at += length) {
        uint16_t after = bt_code_class_get(classes, text + at, &length);
        if (is_cut(splitter, before, after))
            return at;
        before = after;
    }
    return size;
}
