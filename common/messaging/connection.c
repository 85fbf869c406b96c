#include "common/messaging/connection.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define MIN_NEW 16

enum bt_status bt_connections_init(struct bt_connections *connections, struct bt_error *error)
{
    *connections = (struct bt_connections){0};
    bt_map_init(&connections->by_fd);
    for (size_t i = 0; i < BT_CONNECTION_STATES; i++) {
        struct bt_connection *head = &connections->rings[i];
        head->next = head->previous = head;
    }
    connections->idle_fd = eventfd(0, EFD_CLOEXEC);
    connections->copy_fd = fcntl(connections->idle_fd, F_DUPFD_CLOEXEC, 0);
    if (connections->copy_fd < 0) {
        bt_error_set(error, BT_ERR_IO, "eventfd: %s", strerror(errno));
        bt_connections_finish(connections);
        return BT_ERR_IO;
    }
    return BT_OK;
}

static void connection_free(struct bt_connections *connections, struct bt_connection *connection)
{
    connection->previous->next = connection->next;
    connection->next->previous = connection->previous;
    connections->counts[connection->state]--;
    bt_map_remove(&connections->by_fd, (uint64_t)connection->fd);
    free(connection);
}

void bt_connections_finish(struct bt_connections *connections)
{
    for (size_t i = 0; i < BT_CONNECTION_STATES; i++) {
        struct bt_connection *head = &connections->rings[i];
        while (head->next != head) {
            connection_free(connections, head->next);
        }
    }
    bt_map_finish(&connections->by_fd);
    if (connections->copy_fd >= 0) {
        close(connections->copy_fd);
    }
    if (connections->idle_fd >= 0) {
        close(connections->idle_fd);
    }
}

static void ring_add(struct bt_connections *connections, struct bt_connection *connection,
                     enum bt_connection_state state)
{
    struct bt_connection *head = &connections->rings[state];
    connection->state = state;
    connection->next = head;
    connection->previous = head->previous;
    connection->previous->next = connection;
    head->previous = connection;
    connections->counts[state]++;
}

void bt_connections_move(struct bt_connections *connections, struct bt_connection *connection,
                         enum bt_connection_state state)
{
    connection->previous->next = connection->next;
    connection->next->previous = connection->previous;
    connections->counts[connection->state]--;
    ring_add(connections, connection, state);
}

static void remote_get(int fd, struct sockaddr_in6 *ret_remote)
{
    socklen_t size = sizeof *ret_remote;
    *ret_remote = (struct sockaddr_in6){0};
    if (getpeername(fd, (struct sockaddr *)ret_remote, &size) != 0) {
        *ret_remote = (struct sockaddr_in6){0};
    }
}

/* Without memory it is not followed; it works all the same. */
void bt_connections_accepted(struct bt_connections *connections, int fd)
{
    bt_connections_closed(connections, fd);
    struct bt_connection *connection = calloc(1, sizeof *connection);
    if (!connection || !bt_map_put(&connections->by_fd, (uint64_t)fd, connection)) {
        free(connection);
        return;
    }
    connection->fd = fd;
    connection->serial = ++connections->last_serial;
    remote_get(fd, &connection->remote);
    ring_add(connections, connection, BT_CONNECTION_NEW);
}

void bt_connections_closed(struct bt_connections *connections, int fd)
{
    struct bt_connection *connection = bt_connections_find(connections, fd);
    if (connection) {
        connection_free(connections, connection);
    }
}

struct bt_connection *bt_connections_find(const struct bt_connections *connections, int fd)
{
    return fd >= 0 ? bt_map_get(&connections->by_fd, (uint64_t)fd) : NULL;
}

struct bt_connection *bt_connections_first(const struct bt_connections *connections,
                                           enum bt_connection_state state)
{
    return connections->counts[state] > 0 ? connections->rings[state].next : NULL;
}

void bt_connections_doom(struct bt_connections *connections)
{
    struct bt_connection *head = &connections->rings[BT_CONNECTION_PROVEN];
    struct bt_connection *next;
    for (struct bt_connection *connection = head->next; connection != head; connection = next) {
        next = connection->next;
        if (connection->key && !connection->key->allowed) {
            bt_connections_move(connections, connection, BT_CONNECTION_DOOMED);
        }
    }
}

struct bt_connection *bt_connections_excess(const struct bt_connections *connections)
{
    struct rlimit limit;
    size_t held = connections->counts[BT_CONNECTION_PROVEN];
    if (connections->counts[BT_CONNECTION_NEW] <= MIN_NEW ||
        getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return NULL;
    }
    size_t room = limit.rlim_cur > held ? (size_t)(limit.rlim_cur - held) / 2 : 0;
    room = room > MIN_NEW ? room : MIN_NEW;
    return connections->counts[BT_CONNECTION_NEW] > room
               ? bt_connections_first(connections, BT_CONNECTION_NEW)
               : NULL;
}

/* ------------------------------------------------------------------ breaking */

/* Over a descriptor that is there already: one more may be what is lacking. */
bool bt_connections_hold(struct bt_connections *connections, const struct bt_connection *connection)
{
    return dup3(connection->fd, connections->copy_fd, O_CLOEXEC) >= 0;
}

void bt_connections_break_held(struct bt_connections *connections, struct bt_connection *connection)
{
    if (connection) {
        struct sockaddr_in6 remote;
        remote_get(connections->copy_fd, &remote);
        if (memcmp(&remote, &connection->remote, sizeof remote) == 0) {
            shutdown(connections->copy_fd, SHUT_RDWR);
        }
        bt_connections_move(connections, connection, BT_CONNECTION_BROKEN);
    }
    dup3(connections->idle_fd, connections->copy_fd, O_CLOEXEC);
}

void bt_connection_text(const struct bt_connection *connection,
                        char ret_text[BT_CONNECTION_TEXT_SIZE])
{
    char host[INET6_ADDRSTRLEN] = "";
    const struct sockaddr_in6 *remote = connection ? &connection->remote : NULL;
    if (remote && remote->sin6_family == AF_INET6) {
        bool mapped = IN6_IS_ADDR_V4MAPPED(&remote->sin6_addr);
        inet_ntop(mapped ? AF_INET : AF_INET6, remote->sin6_addr.s6_addr + (mapped ? 12 : 0), host,
                  sizeof host);
    } else if (remote && remote->sin6_family == AF_INET) {
        inet_ntop(AF_INET, &((const struct sockaddr_in *)remote)->sin_addr, host, sizeof host);
    }
    if (host[0]) {
        snprintf(ret_text, BT_CONNECTION_TEXT_SIZE, "%s:%u", host, ntohs(remote->sin6_port));
    } else {
        snprintf(ret_text, BT_CONNECTION_TEXT_SIZE, "%s",
                 remote && remote->sin6_family == AF_UNIX ? "this machine" : "an unknown address");
    }
}
