#include "common/parallel/endpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/base/clock.h"

#define TCP                 "tcp://"
#define IPC                 "ipc://"
#define HOST_NAME_MAX_BYTES 256
#define BACKLOG             64
#define RETRY_MS            10

/* ---- addresses ---- */

/* The path of an ipc endpoint, else NULL. */
static const char *path_of(const char *text)
{
    return strncmp(text, IPC, strlen(IPC)) == 0 ? text + strlen(IPC) : NULL;
}

static enum bt_status resolve_path(const char *text, struct bt_error *error,
                                   struct bt_endpoint *ret_endpoint)
{
    const char *path = path_of(text);
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    size_t length = strlen(path);

    if (length == 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "group endpoint '%s' is not ipc://PATH",
                            text);
    if (length >= sizeof(at.sun_path))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "group endpoint: the path has %zu bytes, %zu are the most that a "
                            "socket can have: %.300s",
                            length, sizeof(at.sun_path) - 1, path);
    memcpy(at.sun_path, path, length);
    memcpy(&ret_endpoint->addresses[0], &at, sizeof(at));
    ret_endpoint->sizes[0] = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + 1);
    ret_endpoint->count = 1;
    return BT_OK;
}

static enum bt_status resolve_name(const char *text, bool listens, struct bt_error *error,
                                   struct bt_endpoint *ret_endpoint)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = listens ? AI_PASSIVE : 0};
    char host[HOST_NAME_MAX_BYTES];
    const char *start = text + strlen(TCP), *colon = strrchr(text, ':');
    size_t length = (size_t)(colon - start);
    struct addrinfo *found;

    if (colon < start || length == 0 || length >= sizeof(host) || colon[1] == '\0')
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "group endpoint '%s' is not tcp://HOST:PORT", text);
    if (start[0] == '[' && colon[-1] == ']') {
        start++;
        length -= 2;
    }
    snprintf(host, sizeof(host), "%.*s", (int)length, start);
    int code = getaddrinfo(host, colon + 1, &hints, &found);
    if (code != 0)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "group endpoint %s: %s", text,
                            gai_strerror(code));
    ret_endpoint->count = 0;
    for (struct addrinfo *at = found; at && ret_endpoint->count < BT_ENDPOINT_ADDRESSES_MAX;
         at = at->ai_next) {
        memcpy(&ret_endpoint->addresses[ret_endpoint->count], at->ai_addr, at->ai_addrlen);
        ret_endpoint->sizes[ret_endpoint->count++] = at->ai_addrlen;
    }
    freeaddrinfo(found);
    return BT_OK;
}

enum bt_status bt_endpoint_resolve(const char *text, bool listens, struct bt_error *error,
                                   struct bt_endpoint *ret_endpoint)
{
    if (path_of(text))
        return resolve_path(text, error, ret_endpoint);
    if (strncmp(text, TCP, strlen(TCP)) == 0)
        return resolve_name(text, listens, error, ret_endpoint);
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                        "group endpoint '%s' is neither tcp://HOST:PORT nor ipc://PATH", text);
}

static int open_socket(const struct bt_endpoint *endpoint, uint32_t i)
{
    return socket(endpoint->addresses[i].ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

static const struct sockaddr *address(const struct bt_endpoint *endpoint, uint32_t i)
{
    return (const struct sockaddr *)&endpoint->addresses[i];
}

/* ---- tcp ---- */

static enum bt_status listen_at_port(const struct bt_endpoint *endpoint, const char *text,
                                     struct bt_error *error, struct bt_listener *ret_listener)
{
    const int one = 1;
    errno = EADDRNOTAVAIL;
    for (uint32_t i = 0; i < endpoint->count; i++) {
        int fd = open_socket(endpoint, i);
        if (fd < 0)
            continue;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        if (bind(fd, address(endpoint, i), endpoint->sizes[i]) == 0 && listen(fd, BACKLOG) == 0) {
            *ret_listener = (struct bt_listener){.fd = fd};
            return BT_OK;
        }
        int why = errno;
        close(fd);
        errno = why;
    }
    return bt_error_set(error, BT_ERR_UNAVAILABLE, "can't listen for the group at %s: %m", text);
}

/* ---- ipc ---- */

static enum bt_status refuse(struct bt_error *error, const char *text, const char *why)
{
    return bt_error_set(error, BT_ERR_UNAVAILABLE, "can't listen for the group at %s: %s", text,
                        why);
}

/* Who finds a dead socket and puts a live one in its place does so alone in this directory: else
 * two could, and one of them would listen at a file that is gone. */
static enum bt_status lock_directory(const char *text, int64_t deadline_ns, struct bt_error *error,
                                     int *ret_fd)
{
    const char *path = path_of(text), *slash = strrchr(path, '/');
    char directory[sizeof(((struct sockaddr_un *)0)->sun_path)];
    size_t length = slash ? (size_t)(slash - path) + 1 : 0;

    snprintf(directory, sizeof(directory), "%.*s", (int)length, path);
    int fd = open(length ? directory : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return refuse(error, text, strerror(errno));
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int why = errno;
        if ((why == EWOULDBLOCK || why == EINTR) && bt_clock_now_ns() < deadline_ns) {
            poll(NULL, 0, RETRY_MS);
            continue;
        }
        close(fd);
        return refuse(error, text,
                      why == EWOULDBLOCK ? "its directory stays locked" : strerror(why));
    }
    *ret_fd = fd;
    return BT_OK;
}

/* A socket file that nobody listens at goes. */
static enum bt_status remove_dead(const struct bt_endpoint *endpoint, const char *text,
                                  struct bt_error *error)
{
    struct stat there;
    if (lstat(path_of(text), &there) != 0)
        return errno == ENOENT ? BT_OK : refuse(error, text, strerror(errno));
    if (!S_ISSOCK(there.st_mode))
        return refuse(error, text, "what is there is no socket");
    int fd = open_socket(endpoint, 0);
    if (fd < 0)
        return refuse(error, text, strerror(errno));
    int why = connect(fd, address(endpoint, 0), endpoint->sizes[0]) == 0 ? 0 : errno;
    close(fd);
    if (why == 0 || why == EAGAIN || why == EINPROGRESS)
        return refuse(error, text, "somebody listens there");
    if (why != ECONNREFUSED)
        return refuse(error, text, strerror(why));
    if (unlink(path_of(text)) != 0 && errno != ENOENT)
        return refuse(error, text, strerror(errno));
    return BT_OK;
}

/* Nobody can connect before it listens, so the mode is right in time. */
static enum bt_status bind_path(const struct bt_endpoint *endpoint, const char *text,
                                struct bt_error *error, struct bt_listener *ret_listener)
{
    struct stat made;
    int fd = open_socket(endpoint, 0);
    if (fd < 0)
        return refuse(error, text, strerror(errno));
    if (bind(fd, address(endpoint, 0), endpoint->sizes[0]) != 0) {
        refuse(error, text, strerror(errno));
        close(fd);
        return BT_ERR_UNAVAILABLE;
    }
    if (chmod(path_of(text), 0600) != 0 || lstat(path_of(text), &made) != 0 ||
        listen(fd, BACKLOG) != 0) {
        refuse(error, text, strerror(errno));
        unlink(path_of(text));
        close(fd);
        return BT_ERR_UNAVAILABLE;
    }
    *ret_listener = (struct bt_listener){fd, made.st_dev, made.st_ino};
    return BT_OK;
}

static enum bt_status listen_at_path(const struct bt_endpoint *endpoint, const char *text,
                                     int64_t deadline_ns, struct bt_error *error,
                                     struct bt_listener *ret_listener)
{
    int lock = -1;
    enum bt_status status = lock_directory(text, deadline_ns, error, &lock);
    if (status != BT_OK)
        return status;
    status = remove_dead(endpoint, text, error);
    if (status == BT_OK)
        status = bind_path(endpoint, text, error, ret_listener);
    close(lock);
    return status;
}

/* ---- both ---- */

enum bt_status bt_endpoint_listen(const char *text, int64_t deadline_ns, struct bt_error *error,
                                  struct bt_listener *ret_listener)
{
    struct bt_endpoint endpoint;
    enum bt_status status;
    /* A name may come a while after its host, as that of a pod. */
    while ((status = bt_endpoint_resolve(text, true, error, &endpoint)) == BT_ERR_UNAVAILABLE &&
           bt_clock_now_ns() < deadline_ns)
        poll(NULL, 0, RETRY_MS);
    if (status != BT_OK)
        return status;
    return path_of(text) ? listen_at_path(&endpoint, text, deadline_ns, error, ret_listener)
                         : listen_at_port(&endpoint, text, error, ret_listener);
}

void bt_listener_close(struct bt_listener *listener, const char *text)
{
    struct stat there;
    if (listener->fd < 0)
        return;
    if (listener->file != 0 && lstat(path_of(text), &there) == 0 &&
        there.st_dev == listener->device && there.st_ino == listener->file)
        unlink(path_of(text));
    close(listener->fd);
    listener->fd = -1;
}
