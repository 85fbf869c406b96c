/*
 * Notices clients that go away while nothing is sent to them: watches sockets for a closed or
 * broken other side, in an epoll of its own beside the HTTP library's; and tells when a socket that
 * was full takes bytes again. Loop thread only.
 *
 * A client that shuts down only its sending side counts as gone, as with other HTTP servers.
 */
#ifndef BATON_ROUTER_HTTP_WATCH_H
#define BATON_ROUTER_HTTP_WATCH_H

#include "common/base/status.h"
#include "common/messaging/loop.h"

struct rt_http_watch;

/* Runs on the loop, at most once a watched socket, which is watched no longer. */
typedef void rt_http_gone_fn(void *context);
/* The socket takes bytes. It is watched for nothing until the next rt_http_watch_writable. */
typedef void rt_http_writable_fn(void *context);

enum bt_status rt_http_watch_create(struct bt_loop *loop, rt_http_gone_fn *on_gone,
                                    rt_http_writable_fn *on_writable, struct bt_error *error,
                                    struct rt_http_watch **ret_watch);
void rt_http_watch_destroy(struct rt_http_watch *watch); /* NULL is fine */

/* `context` goes to the callbacks and names the socket here. False: the kernel refused. */
bool rt_http_watch_add(struct rt_http_watch *watch, int fd, void *context);
/* Whether on_writable is wanted; on_gone is in any case. */
void rt_http_watch_writable(struct rt_http_watch *watch, int fd, void *context, bool wanted);
void rt_http_watch_remove(struct rt_http_watch *watch, int fd);

#endif
