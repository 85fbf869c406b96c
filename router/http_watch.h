/*
 * Notices clients that go away while nothing is sent to them: watches sockets for a closed or
 * broken other side, in an epoll of its own beside the HTTP library's. Loop thread only.
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

enum bt_status rt_http_watch_create(struct bt_loop *loop, rt_http_gone_fn *on_gone,
                                    struct bt_error *error, struct rt_http_watch **ret_watch);
void rt_http_watch_destroy(struct rt_http_watch *watch); /* NULL is fine */

/* `context` goes to on_gone and names the socket here. False: the kernel refused. */
bool rt_http_watch_add(struct rt_http_watch *watch, int fd, void *context);
void rt_http_watch_remove(struct rt_http_watch *watch, int fd);

#endif
