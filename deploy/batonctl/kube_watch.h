/*
 * Objects of a Kubernetes collection followed as they change: a list, then a watch, and again a
 * list whenever the watch ends, breaks, falls behind (410), says nonsense or says nothing.
 */
#ifndef BATON_DEPLOY_BATONCTL_KUBE_WATCH_H
#define BATON_DEPLOY_BATONCTL_KUBE_WATCH_H

#include "deploy/batonctl/kube_client.h"

#define CTL_KUBE_MAX_LINE_BYTES (4u << 20) /* of one event */
#define CTL_KUBE_VERSION_SIZE   128

/* Bytes as they come, cut into lines. */
struct ctl_kube_lines {
    char *bytes;
    size_t used, size;
};
typedef enum bt_status ctl_kube_line_fn(void *context, char *line, size_t size,
                                        struct bt_error *error);
/* `fn` gets each line that is whole, without its end and with a NUL behind, which it may write
 * over; not OK ends it. EXHAUSTED: a line over CTL_KUBE_MAX_LINE_BYTES. */
enum bt_status ctl_kube_lines_feed(struct ctl_kube_lines *lines, const char *bytes, size_t size,
                                   ctl_kube_line_fn *fn, void *context, struct bt_error *error);
void ctl_kube_lines_finish(struct ctl_kube_lines *lines);

/*
 * One event, a line of a watch, into `objects` (name -> object). `ret_changed`: something in it is
 * another now. STALE: the server says that it has to be listed again. PROTOCOL: it is no event.
 */
enum bt_status ctl_kube_event_apply(const char *line, size_t size, json_t *objects,
                                    struct bt_error *error, bool *ret_changed);

/* Looks at all objects, by name, after each change. IN_PROGRESS: go on; all else ends it. */
typedef enum bt_status ctl_kube_look_fn(void *context, json_t *objects, struct bt_error *error);

/* What `look` ends with. DEADLINE: at `until_ns` it still says IN_PROGRESS; nothing is said in
 * `error` then. Else what a list ends with, or CANCELLED. */
enum bt_status ctl_kube_follow(struct ctl_kube *kube, enum ctl_kube_call list,
                               enum ctl_kube_call watch, const char *selector, int64_t until_ns,
                               ctl_kube_look_fn *look, void *context, struct bt_error *error);

/* By name, of a list's items; those without a name are left out. NULL: no memory. */
json_t *ctl_kube_by_name(json_t *items);

#endif
