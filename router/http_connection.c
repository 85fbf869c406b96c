#include "router/http_connection.h"

#include <stdlib.h>
#include <sys/socket.h>

#include "common/base/clock.h"
#include "router/http_exchange.h"

#define SWEEP_NS       BT_NS_PER_S
#define GONE_TIMEOUT_S 1u /* to notice an end that the library missed */

static void set_timeout(struct rt_http_connection *connection, unsigned seconds)
{
    MHD_set_connection_option(connection->mhd, MHD_CONNECTION_OPTION_TIMEOUT,
                              connection->gone ? GONE_TIMEOUT_S : seconds);
}

static void on_gone(void *context)
{
    struct rt_http_connection *connection = context;
    connection->gone = true;
    if (connection->exchange != NULL) {
        rt_http_exchange_gone(connection->exchange);
        return;
    }
    set_timeout(connection, GONE_TIMEOUT_S);
    connection->all->wake(connection->all->wake_context);
}

static void on_writable(void *context)
{
    struct rt_http_connection *connection = context;
    connection->blocked = false;
    rt_http_watch_writable(connection->all->watch, connection->fd, connection, false);
    if (connection->exchange != NULL)
        rt_http_stream_writable(connection->exchange);
}

void rt_http_connection_blocked(struct rt_http_connection *connection)
{
    if (connection->blocked)
        return;
    connection->blocked = true;
    if (connection->blocked_since_ns == 0)
        connection->blocked_since_ns = bt_clock_now_ns();
    rt_http_watch_writable(connection->all->watch, connection->fd, connection, true);
}

void rt_http_connection_moved(struct rt_http_connection *connection)
{
    connection->blocked_since_ns = 0;
}

bool rt_http_connection_is_blocked(const struct rt_http_connection *connection)
{
    return connection->blocked;
}

static bool late(const struct rt_http_connection *connection, int64_t now_ns)
{
    int64_t limit_s = (int64_t)connection->all->request_timeout_s * RT_HTTP_RECEIVE_FACTOR;
    return connection->receiving_since_ns < now_ns - limit_s * BT_NS_PER_S ||
           (connection->blocked_since_ns > 0 &&
            connection->blocked_since_ns < now_ns - RT_HTTP_RESPONSE_TIMEOUT_S * BT_NS_PER_S);
}

/* Ends connections that take too long to bring a request, or to take a response. */
static void sweep(void *context)
{
    struct rt_http_connections *all = context;
    int64_t now_ns = bt_clock_now_ns();
    for (struct rt_http_connection *connection = all->first; connection != NULL;
         connection = connection->next)
        if (late(connection, now_ns))
            rt_http_connection_reset(connection);
    bt_loop_timer_set(all->sweep, all->first != NULL ? now_ns + SWEEP_NS : BT_NEVER_NS);
}

enum bt_status rt_http_connections_init(struct rt_http_connections *all, struct bt_loop *loop,
                                        unsigned request_timeout_s, struct bt_error *error)
{
    all->request_timeout_s = request_timeout_s > 0 ? request_timeout_s : RT_HTTP_REQUEST_TIMEOUT_S;
    all->sweep = bt_loop_add_timer(loop, BT_NEVER_NS, sweep, all);
    if (all->sweep == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for HTTP connections");
    return rt_http_watch_create(loop, on_gone, on_writable, error, &all->watch);
}

void rt_http_connections_finish(struct rt_http_connections *all)
{
    bt_loop_remove(all->sweep);
    rt_http_watch_destroy(all->watch);
}

static void begin(struct rt_http_connections *all, struct MHD_Connection *mhd,
                  void **connection_slot)
{
    struct rt_http_connection *connection = calloc(1, sizeof *connection);
    if (connection == NULL)
        return;
    connection->all = all;
    connection->mhd = mhd;
    connection->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    connection->receiving_since_ns = bt_clock_now_ns();
    if (!rt_http_watch_add(all->watch, connection->fd, connection)) {
        free(connection);
        return;
    }
    if (all->first == NULL)
        bt_loop_timer_set(all->sweep, connection->receiving_since_ns + SWEEP_NS);
    else
        all->first->previous = connection;
    connection->next = all->first;
    all->first = connection;
    *connection_slot = connection;
}

static void end(struct rt_http_connection *connection)
{
    rt_http_watch_remove(connection->all->watch, connection->fd);
    if (connection->previous != NULL)
        connection->previous->next = connection->next;
    else
        connection->all->first = connection->next;
    if (connection->next != NULL)
        connection->next->previous = connection->previous;
    free(connection);
}

void rt_http_connection_notify(void *context, struct MHD_Connection *mhd, void **connection_slot,
                               enum MHD_ConnectionNotificationCode code)
{
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        begin(context, mhd, connection_slot);
        return;
    }
    if (*connection_slot != NULL)
        end(*connection_slot);
    *connection_slot = NULL;
}

struct rt_http_connection *rt_http_connection_of(struct MHD_Connection *mhd)
{
    return MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
}

void rt_http_connection_answering(struct rt_http_connection *connection)
{
    connection->receiving_since_ns = BT_NEVER_NS;
    set_timeout(connection, RT_HTTP_RESPONSE_TIMEOUT_S);
}

void rt_http_connection_receiving(struct rt_http_connection *connection)
{
    connection->receiving_since_ns = bt_clock_now_ns();
    set_timeout(connection, connection->all->request_timeout_s);
}

/* The library would only notice by sending, which it can't when the socket is full. */
void rt_http_connection_reset(struct rt_http_connection *connection)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    shutdown(connection->fd, SHUT_RDWR);
}
