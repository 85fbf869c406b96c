#include "router/http_watch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

struct rt_http_watch {
    int epoll_fd;
    rt_http_gone_fn *on_gone;
    rt_http_writable_fn *on_writable;
    struct bt_loop_source *source;
};

/* One shot: a closed peer stays closed, and is told once. */
#define GONE_EVENTS ((uint32_t)EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLONESHOT)

/* One event at a time: the callback may remove others, whose events must not be handled then. */
static void on_readable(void *context)
{
    struct rt_http_watch *watch = context;
    struct epoll_event event;
    while (epoll_wait(watch->epoll_fd, &event, 1, 0) == 1) {
        if (event.events == EPOLLOUT)
            watch->on_writable(event.data.ptr);
        else
            watch->on_gone(event.data.ptr);
    }
}

enum bt_status rt_http_watch_create(struct bt_loop *loop, rt_http_gone_fn *on_gone,
                                    rt_http_writable_fn *on_writable, struct bt_error *error,
                                    struct rt_http_watch **ret_watch)
{
    struct rt_http_watch *watch = calloc(1, sizeof *watch);
    if (watch == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the HTTP watch");
    watch->on_gone = on_gone;
    watch->on_writable = on_writable;
    watch->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (watch->epoll_fd < 0) {
        bt_error_set(error, BT_ERR_IO, "epoll for HTTP clients: %s", strerror(errno));
        goto err_watch;
    }
    watch->source = bt_loop_add_fd(loop, watch->epoll_fd, on_readable, watch);
    if (watch->source == NULL) {
        bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the HTTP watch");
        goto err_epoll;
    }
    *ret_watch = watch;
    return BT_OK;

err_epoll:
    close(watch->epoll_fd);
err_watch:
    free(watch);
    return error != NULL ? error->status : BT_ERR_IO;
}

void rt_http_watch_destroy(struct rt_http_watch *watch)
{
    if (watch == NULL)
        return;
    bt_loop_remove(watch->source);
    close(watch->epoll_fd);
    free(watch);
}

bool rt_http_watch_add(struct rt_http_watch *watch, int fd, void *context)
{
    struct epoll_event event = {.events = GONE_EVENTS, .data.ptr = context};
    return epoll_ctl(watch->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

void rt_http_watch_writable(struct rt_http_watch *watch, int fd, void *context, bool wanted)
{
    uint32_t events = GONE_EVENTS | (wanted ? (uint32_t)EPOLLOUT : 0);
    struct epoll_event event = {.events = events, .data.ptr = context};
    epoll_ctl(watch->epoll_fd, EPOLL_CTL_MOD, fd, &event);
}

void rt_http_watch_remove(struct rt_http_watch *watch, int fd)
{
    epoll_ctl(watch->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}
