#include "deploy/batonctl/bench_jsonl.h"

#include <string.h>

bool ctl_bench_line(const char **at, const char *end, const char **ret_line, size_t *ret_size)
{
    if (*at >= end)
        return false;
    const char *stop = memchr(*at, '\n', (size_t)(end - *at));
    size_t size = (size_t)((stop ? stop : end) - *at);
    *ret_line = *at;
    *at += size + (stop != NULL);
    *ret_size = size > 0 && (*ret_line)[size - 1] == '\r' ? size - 1 : size;
    return true;
}

static bool blank(const char *line, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (line[i] != ' ' && line[i] != '\t')
            return false;
    return true;
}

static enum bt_status one(const char *line, size_t size, ctl_bench_object_fn *fn, void *context,
                          struct bt_error *error)
{
    json_error_t wrong;
    json_t *object = json_loadb(line, size, JSON_REJECT_DUPLICATES, &wrong);
    if (!object)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "no JSON: %s", wrong.text);
    enum bt_status status = json_is_object(object) ? fn(context, object, error)
                                                   : bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                                                  "is not a JSON object");
    json_decref(object);
    return status;
}

enum bt_status ctl_bench_jsonl(const char *text, size_t size, ctl_bench_object_fn *fn,
                               void *context, struct bt_error *error)
{
    const char *at = text, *line;
    size_t line_size, number = 0;
    while (ctl_bench_line(&at, text + size, &line, &line_size)) {
        number++;
        if (blank(line, line_size))
            continue;
        enum bt_status status = one(line, line_size, fn, context, error);
        if (status != BT_OK) {
            bt_error_prefix(error, "line %zu", number);
            return status;
        }
    }
    return BT_OK;
}
