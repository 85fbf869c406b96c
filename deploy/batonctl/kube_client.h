/*
 * Requests to a Kubernetes API server, one at a time, each of the table in kube_calls.h. Whatever
 * the server says is bounded and checked; its texts get into errors flat.
 *
 * All calls block, and return CANCELLED when a signal came. What is safe to repeat is: after 429,
 * 5xx, a broken connection or a body cut short, a few times, after the time that the server names.
 */
#ifndef BATON_DEPLOY_BATONCTL_KUBE_CLIENT_H
#define BATON_DEPLOY_BATONCTL_KUBE_CLIENT_H

#include <jansson.h>
#include <stdint.h>

#include "deploy/batonctl/kube_calls.h"
#include "deploy/batonctl/kube_config.h"

#define CTL_KUBE_MAX_BODY_BYTES (32u << 20)
#define CTL_KUBE_MAX_OBJECTS    50000 /* of one list, over all its pages */
#define CTL_KUBE_PAGE           500
#define CTL_KUBE_TRIES          5
#define CTL_KUBE_MAX_PAUSE_NS   (30 * INT64_C(1000000000)) /* of one Retry-After */

struct ctl_kube;

/* Takes what is in `config`, also when it fails. `interrupt_fd`: ctl_interrupt_hold. `timeout_ns`:
 * for the answer to one request. */
enum bt_status ctl_kube_create(struct ctl_kube_config *config, int interrupt_fd, int64_t timeout_ns,
                               struct bt_error *error, struct ctl_kube **ret_kube);
void ctl_kube_destroy(struct ctl_kube *kube); /* NULL is fine */

const char *ctl_kube_namespace(const struct ctl_kube *kube);
int64_t ctl_kube_timeout_ns(const struct ctl_kube *kube);
int ctl_kube_interrupt_fd(const struct ctl_kube *kube);
/* Signals are not looked at: while what was begun is taken back. */
void ctl_kube_set_deaf(struct ctl_kube *kube, bool deaf);

/*
 * One object, or what a call of it gives. `query`: "a=b&c=d", escaped; NULL: none. `body`, NULL or
 * borrowed: of an update or a patch (JSON merge patch).
 *
 * NOT_FOUND (404), STALE (409: somebody else changed it in between; or 410), UNAUTHORISED (401; 403
 * with the right that is missing), UNAVAILABLE (no answer, or none of use after all tries),
 * PROTOCOL (an answer that is none, or the request was refused as wrong), EXHAUSTED (too large).
 */
enum bt_status ctl_kube_do(struct ctl_kube *kube, enum ctl_kube_call call, const char *name,
                           const char *query, const json_t *body, struct bt_error *error,
                           json_t **ret_object);

/* All items that a selector ("labelSelector=…", escaped) gives, page by page; `ret_version` is
 * where a watch goes on, at most `version_size` bytes of it. */
enum bt_status ctl_kube_list(struct ctl_kube *kube, enum ctl_kube_call call, const char *selector,
                             struct bt_error *error, json_t **ret_items, char *ret_version,
                             size_t version_size);

/* Gets the bytes as they come; not OK ends the stream with it. */
typedef enum bt_status ctl_kube_bytes_fn(void *context, const char *bytes, size_t size,
                                         struct bt_error *error);

/* An answer without an end: OK when the server ended it, or at `until_ns`. PEER_LOST: the
 * connection broke after some of it came. Nothing is tried again but a 401. */
enum bt_status ctl_kube_stream(struct ctl_kube *kube, enum ctl_kube_call call, const char *name,
                               const char *query, int64_t until_ns, ctl_kube_bytes_fn *fn,
                               void *context, struct bt_error *error);

/* Sleeps; CANCELLED when a signal comes. */
enum bt_status ctl_kube_pause(struct ctl_kube *kube, int64_t span_ns, struct bt_error *error);

/* The path of a call below the server's own, "/api/v1/namespaces/…"; INVALID_ARGUMENT: the name is
 * none, EXHAUSTED: it does not fit. For tests too. */
enum bt_status ctl_kube_path(enum ctl_kube_call call, const char *namespace_, const char *name,
                             struct bt_error *error, char *ret_path, size_t size);

/* `text` percent-encoded for a query. INVALID_ARGUMENT: it does not fit. */
enum bt_status ctl_kube_escape(const char *text, struct bt_error *error, char *ret_text,
                               size_t size);

#endif
