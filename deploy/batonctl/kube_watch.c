#include "deploy/batonctl/kube_watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"

#define FIRST_PAUSE_NS (50 * BT_NS_PER_MS)
#define MAX_PAUSE_NS   (2 * BT_NS_PER_S)
#define QUERY_SIZE     4096

/* ------------------------------------------------------------------ lines */

static enum bt_status grow(struct ctl_kube_lines *lines, size_t more, struct bt_error *error)
{
    size_t wanted = lines->used + more + 1;
    if (wanted <= lines->size)
        return BT_OK;
    char *grown = realloc(lines->bytes, wanted * 2);
    if (!grown)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    lines->bytes = grown;
    lines->size = wanted * 2;
    return BT_OK;
}

/* Adds what belongs to the line that is under way. */
static enum bt_status add(struct ctl_kube_lines *lines, const char *bytes, size_t size,
                          struct bt_error *error)
{
    if (size > CTL_KUBE_MAX_LINE_BYTES - lines->used)
        return bt_error_set(error, BT_ERR_EXHAUSTED, "kubernetes sent a line of more than %u bytes",
                            CTL_KUBE_MAX_LINE_BYTES);
    enum bt_status status = grow(lines, size, error);
    if (status == BT_OK && size > 0) {
        memcpy(lines->bytes + lines->used, bytes, size);
        lines->used += size;
    }
    return status;
}

enum bt_status ctl_kube_lines_feed(struct ctl_kube_lines *lines, const char *bytes, size_t size,
                                   ctl_kube_line_fn *fn, void *context, struct bt_error *error)
{
    while (size > 0) {
        const char *end = memchr(bytes, '\n', size);
        size_t part = end ? (size_t)(end - bytes) : size;
        enum bt_status status = add(lines, bytes, part, error);
        if (status != BT_OK || !end)
            return status;
        size_t length = lines->used;
        lines->bytes[length] = '\0';
        lines->used = 0;
        status = fn(context, lines->bytes, length, error);
        if (status != BT_OK)
            return status;
        bytes += part + 1;
        size -= part + 1;
    }
    return BT_OK;
}

void ctl_kube_lines_finish(struct ctl_kube_lines *lines)
{
    free(lines->bytes);
    memset(lines, 0, sizeof(*lines));
}

/* ------------------------------------------------------------------ events */

static const char *name_of(json_t *object)
{
    const char *name =
        json_string_value(json_object_get(json_object_get(object, "metadata"), "name"));
    return name && ctl_kube_is_name(name) ? name : NULL;
}

json_t *ctl_kube_by_name(json_t *items)
{
    json_t *objects = json_object(), *item;
    size_t index;
    json_array_foreach(items, index, item) if (name_of(item) &&
                                               json_object_set(objects, name_of(item), item) != 0)
    {
        json_decref(objects);
        return NULL;
    }
    return objects;
}

static enum bt_status apply(json_t *event, json_t *objects, struct bt_error *error,
                            bool *ret_changed)
{
    const char *type = json_string_value(json_object_get(event, "type"));
    json_t *object = json_object_get(event, "object");
    if (!type || !json_is_object(object))
        return bt_error_set(error, BT_ERR_PROTOCOL, "kubernetes sent an event that is none");
    if (strcmp(type, "BOOKMARK") == 0)
        return BT_OK;
    if (strcmp(type, "ERROR") == 0)
        return bt_error_set(error, BT_ERR_STALE, "kubernetes ended a watch with an error");
    const char *name = name_of(object);
    bool gone = strcmp(type, "DELETED") == 0;
    if (!name || (!gone && strcmp(type, "ADDED") != 0 && strcmp(type, "MODIFIED") != 0))
        return bt_error_set(error, BT_ERR_PROTOCOL, "kubernetes sent an event of no kind we know");
    *ret_changed = true;
    if (gone) {
        json_object_del(objects, name);
        return BT_OK;
    }
    if (json_object_size(objects) >= CTL_KUBE_MAX_OBJECTS)
        return bt_error_set(error, BT_ERR_EXHAUSTED, "kubernetes: more than %d objects",
                            CTL_KUBE_MAX_OBJECTS);
    if (json_object_set(objects, name, object) != 0)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    return BT_OK;
}

enum bt_status ctl_kube_event_apply(const char *line, size_t size, json_t *objects,
                                    struct bt_error *error, bool *ret_changed)
{
    json_t *event = json_loadb(line, size, 0, NULL);
    *ret_changed = false;
    enum bt_status status = apply(event, objects, error, ret_changed);
    json_decref(event);
    return status;
}

/* ------------------------------------------------------------------ list and watch */

struct follow {
    struct ctl_kube *kube;
    enum ctl_kube_call list, watch;
    const char *selector;
    int64_t until_ns;
    ctl_kube_look_fn *look;
    void *context;
    json_t *objects;
    struct ctl_kube_lines lines;
    enum bt_status outcome; /* of the last look; IN_PROGRESS */
    bool told;              /* the watch said something */
};

static enum bt_status on_line(void *context, char *line, size_t size, struct bt_error *error)
{
    struct follow *follow = context;
    bool changed;
    if (size == 0)
        return BT_OK;
    enum bt_status status = ctl_kube_event_apply(line, size, follow->objects, error, &changed);
    if (status != BT_OK)
        return status;
    follow->told = true;
    if (changed)
        follow->outcome = follow->look(follow->context, follow->objects, error);
    return follow->outcome == BT_IN_PROGRESS ? BT_OK : BT_ERR_CANCELLED;
}

static enum bt_status on_bytes(void *context, const char *bytes, size_t size,
                               struct bt_error *error)
{
    struct follow *follow = context;
    return ctl_kube_lines_feed(&follow->lines, bytes, size, on_line, follow, error);
}

static enum bt_status list(struct follow *follow, struct bt_error *error, char *ret_version)
{
    json_t *items;
    enum bt_status status = ctl_kube_list(follow->kube, follow->list, follow->selector, error,
                                          &items, ret_version, CTL_KUBE_VERSION_SIZE);
    if (status != BT_OK)
        return status;
    json_decref(follow->objects);
    follow->objects = ctl_kube_by_name(items);
    json_decref(items);
    if (!follow->objects)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    follow->outcome = follow->look(follow->context, follow->objects, error);
    return BT_OK;
}

/* OK: however it ended, a list tells more, or the look has decided. It lives for about the timeout
 * of one request: a server that says nothing may as well be gone. */
static enum bt_status watch(struct follow *follow, const char *version, struct bt_error *error)
{
    char query[QUERY_SIZE], escaped[4 * CTL_KUBE_VERSION_SIZE];
    int64_t span_ns = ctl_kube_timeout_ns(follow->kube);
    int64_t end_ns = bt_clock_now_ns() + span_ns;
    enum bt_status status = ctl_kube_escape(version, error, escaped, sizeof(escaped));
    if (status != BT_OK)
        return status;
    int used = snprintf(query, sizeof(query),
                        "%s%swatch=true&allowWatchBookmarks=true&resourceVersion=%s&"
                        "timeoutSeconds=%lld",
                        follow->selector, *follow->selector ? "&" : "", escaped,
                        (long long)(span_ns / BT_NS_PER_S) + 1);
    if (used < 0 || used >= (int)sizeof(query))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "a selector is too long");
    if (end_ns > follow->until_ns)
        end_ns = follow->until_ns;
    follow->lines.used = 0;
    follow->told = false;
    status =
        ctl_kube_stream(follow->kube, follow->watch, NULL, query, end_ns, on_bytes, follow, error);
    if (follow->outcome != BT_IN_PROGRESS)
        return BT_OK;
    switch (status) {
    case BT_ERR_STALE:
    case BT_ERR_PROTOCOL:
    case BT_ERR_PEER_LOST:
    case BT_ERR_UNAVAILABLE:
    case BT_ERR_EXHAUSTED:
        return BT_OK;
    default:
        return status;
    }
}

static enum bt_status run(struct follow *follow, struct bt_error *error)
{
    int64_t pause_ns = FIRST_PAUSE_NS;
    for (;;) {
        char version[CTL_KUBE_VERSION_SIZE];
        enum bt_status status = list(follow, error, version);
        int64_t begin_ns = bt_clock_now_ns();
        if (status != BT_OK || follow->outcome != BT_IN_PROGRESS)
            return status == BT_OK ? follow->outcome : status;
        if (begin_ns >= follow->until_ns)
            return BT_ERR_DEADLINE;
        status = watch(follow, version, error);
        if (status != BT_OK || follow->outcome != BT_IN_PROGRESS)
            return status == BT_OK ? follow->outcome : status;
        if (follow->told || bt_clock_now_ns() - begin_ns >= BT_NS_PER_S) {
            pause_ns = FIRST_PAUSE_NS;
        } else if (pause_ns < MAX_PAUSE_NS) {
            pause_ns *= 2;
        }
        int64_t left_ns = follow->until_ns - bt_clock_now_ns();
        status = ctl_kube_pause(follow->kube, left_ns < pause_ns ? left_ns : pause_ns, error);
        if (status != BT_OK)
            return status;
    }
}

enum bt_status ctl_kube_follow(struct ctl_kube *kube, enum ctl_kube_call list_call,
                               enum ctl_kube_call watch_call, const char *selector,
                               int64_t until_ns, ctl_kube_look_fn *look, void *context,
                               struct bt_error *error)
{
    struct follow follow = {
        .kube = kube,
        .list = list_call,
        .watch = watch_call,
        .selector = selector,
        .until_ns = until_ns,
        .look = look,
        .context = context,
        .outcome = BT_IN_PROGRESS,
    };
    enum bt_status status = run(&follow, error);
    ctl_kube_lines_finish(&follow.lines);
    json_decref(follow.objects);
    return status;
}
