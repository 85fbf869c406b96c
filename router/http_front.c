#include "router/http_front.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "router/http_access.h"
#include "router/http_exchange.h"
#include "router/http_framing.h"
#include "router/http_response.h"
#include "router/http_route.h"
#include "router/http_tls.h"

#define LISTEN_BACKLOG 1024
/* Of the library, for a connection: the headers, and what it reads and writes by. */
#define HEADER_BYTES       (16u << 10)
#define HEADER_BYTES_LEAST (4u << 10)

struct rt_http_front {
    struct bt_loop *loop;
    struct MHD_Daemon *daemon;
    struct rt_http_tls *tls;       /* NULL: plain */
    struct bt_loop_source *source; /* the daemon's epoll */
    struct bt_loop_source *timer;
    struct rt_http_connections connections;
    struct rt_http_exchanges exchanges;
    bool woken;
    int listener; /* the daemon's; -1: given up */
    uint16_t port;
};

/* ------------------------------------------------------------------ the loop */

static void wake(void *context)
{
    struct rt_http_front *front = context;
    if (front->woken)
        return;
    front->woken = true;
    bt_loop_timer_set(front->timer, bt_clock_now_ns());
}

static unsigned connection_count(const struct rt_http_front *front)
{
    return MHD_get_daemon_info(front->daemon, MHD_DAEMON_INFO_CURRENT_CONNECTIONS)->num_connections;
}

static void run(void *context)
{
    struct rt_http_front *front = context;
    front->woken = false;
    unsigned before = connection_count(front);
    /* Before the library closes a slow reader by itself, which leaves its bytes to the kernel. */
    rt_http_exchanges_settle(&front->exchanges);
    MHD_run(front->daemon);
    /* At its limit the library stops listening, and starts again only in a later run. */
    if (connection_count(front) < before)
        wake(front);
    rt_http_exchanges_settle(&front->exchanges);
    if (front->woken)
        return;
    MHD_UNSIGNED_LONG_LONG timeout_ms;
    if (MHD_get_timeout(front->daemon, &timeout_ms) != MHD_YES)
        bt_loop_timer_set(front->timer, BT_NEVER_NS);
    else
        bt_loop_timer_set(front->timer, bt_clock_now_ns() + (int64_t)timeout_ms * BT_NS_PER_MS);
}

/* ------------------------------------------------------------------ requests */

static const char *header(struct MHD_Connection *connection, const char *name)
{
    return MHD_lookup_connection_value(connection, MHD_HEADER_KIND, name);
}

/* application/json with any parameters; none at all is fine. */
static bool is_json(const char *content_type)
{
    static const char json[] = "application/json";
    if (content_type == NULL)
        return true;
    if (strncasecmp(content_type, json, sizeof json - 1) != 0)
        return false;
    char after = content_type[sizeof json - 1];
    return after == '\0' || after == ';' || after == ' ';
}

static void check_headers(struct rt_http_exchange *exchange)
{
    const char *content_type = header(exchange->mhd, MHD_HTTP_HEADER_CONTENT_TYPE);
    if (strcmp(exchange->route->method, "POST") != 0)
        return;
    if (rt_http_framing_check_coding(exchange->mhd, &exchange->refusal) != BT_OK) {
        exchange->route = NULL;
        return;
    }
    if (is_json(content_type))
        return;
    rt_openai_error_set(&exchange->refusal, BT_ERR_INVALID_ARGUMENT, NULL,
                        "unsupported_content_type",
                        "Content-Type must be application/json, not %.100s", content_type);
    exchange->refusal.http_status = MHD_HTTP_UNSUPPORTED_MEDIA_TYPE;
    exchange->route = NULL;
}

/* What the request says it will send. 0: none, or not said. */
static uint64_t announced_bytes(struct MHD_Connection *connection)
{
    const char *length = header(connection, MHD_HTTP_HEADER_CONTENT_LENGTH);
    return length != NULL ? strtoull(length, NULL, 10) : 0;
}

/* A client that waits to be asked for its body, that announces more than would be read, or whose
 * body has no clear end gets its refusal at once; the connection ends with it. */
static enum MHD_Result begin(struct rt_http_exchange *exchange, const char *method,
                             const char *path, const char *version)
{
    struct rt_http_exchanges *all = exchange->all;
    rt_http_exchange_identify(exchange);
    if (rt_http_framing_check(exchange->mhd, version, &exchange->refusal) != BT_OK) {
        exchange->dispatched = true;
        return rt_http_respond_error(exchange, &exchange->refusal);
    }
    rt_http_route_find(exchange, method, path);
    if (exchange->route != NULL)
        rt_http_access_check(exchange);
    if (exchange->route != NULL)
        check_headers(exchange);
    uint64_t announced = announced_bytes(exchange->mhd);
    if (exchange->route != NULL && announced > all->max_body_bytes) {
        rt_openai_error_set(&exchange->refusal, BT_ERR_INVALID_ARGUMENT, NULL, "body_too_large",
                            "the body has %llu bytes, more than the limit of %u",
                            (unsigned long long)announced, all->max_body_bytes);
        exchange->refusal.http_status = MHD_HTTP_CONTENT_TOO_LARGE;
        exchange->route = NULL;
    }
    bool waits = header(exchange->mhd, MHD_HTTP_HEADER_EXPECT) != NULL;
    if (exchange->route == NULL && (waits || announced > RT_HTTP_DISCARD_BYTES)) {
        exchange->dispatched = true;
        return rt_http_respond_error(exchange, &exchange->refusal);
    }
    return MHD_YES;
}

static enum MHD_Result dispatch(struct rt_http_exchange *exchange, const char *path)
{
    if (exchange->dispatched)
        return rt_http_exchange_continue(exchange);
    exchange->dispatched = true;
    rt_http_connection_answering(exchange->connection);
    if (exchange->route == NULL)
        return rt_http_respond_error(exchange, &exchange->refusal);
    exchange->path = path;
    return exchange->route->handle(exchange);
}

/* Called with the headers, then for each part of the body, then at its end, then after resumes. */
static enum MHD_Result on_request(void *context, struct MHD_Connection *connection,
                                  const char *path, const char *method, const char *version,
                                  const char *data, size_t *data_size, void **exchange_slot)
{
    struct rt_http_front *front = context;
    struct rt_http_exchange *exchange = *exchange_slot;
    if (exchange == NULL) {
        struct rt_http_connection *of = rt_http_connection_of(connection);
        exchange = of != NULL ? rt_http_exchange_create(&front->exchanges, of) : NULL;
        if (exchange == NULL)
            return MHD_NO;
        *exchange_slot = exchange;
        exchange->chunked = strcmp(version, MHD_HTTP_VERSION_1_1) == 0;
        return begin(exchange, method, path, version);
    }
    if (*data_size == 0)
        return dispatch(exchange, path);
    bool keep = rt_http_exchange_receive(exchange, data, *data_size);
    *data_size = 0;
    return keep ? MHD_YES : MHD_NO;
}

static void on_completed(void *context, struct MHD_Connection *connection, void **exchange_slot,
                         enum MHD_RequestTerminationCode code)
{
    (void)context;
    if (*exchange_slot != NULL)
        rt_http_exchange_destroy(*exchange_slot);
    *exchange_slot = NULL;
    struct rt_http_connection *of = rt_http_connection_of(connection);
    if (of != NULL && code == MHD_REQUEST_TERMINATED_COMPLETED_OK)
        rt_http_connection_receiving(of);
}

/* ------------------------------------------------------------------ start */

static enum bt_status parse_address(const struct rt_http_front_options *options,
                                    struct bt_error *error, struct sockaddr_storage *ret_address,
                                    socklen_t *ret_size)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)ret_address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret_address;
    memset(ret_address, 0, sizeof *ret_address);
    if (inet_pton(AF_INET, options->host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(options->port);
        *ret_size = sizeof *v4;
        return BT_OK;
    }
    if (inet_pton(AF_INET6, options->host, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(options->port);
        *ret_size = sizeof *v6;
        return BT_OK;
    }
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                        "host must be a numeric IPv4 or IPv6 address, not \"%s\"", options->host);
}

static enum bt_status listen_on(const struct rt_http_front_options *options, struct bt_error *error,
                                int *ret_fd, uint16_t *ret_port)
{
    struct sockaddr_storage address;
    socklen_t size;
    enum bt_status status = parse_address(options, error, &address, &size);
    if (status != BT_OK)
        return status;
    int on = 1, off = 0;
    int fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return bt_error_set(error, BT_ERR_IO, "http socket: %s", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (address.ss_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(fd, (struct sockaddr *)&address, size) != 0 || listen(fd, LISTEN_BACKLOG) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) != 0) {
        bt_error_set(error, BT_ERR_IO, "http on %s port %u: %s", options->host, options->port,
                     strerror(errno));
        close(fd);
        return BT_ERR_IO;
    }
    /* The port is at the same place in both kinds of address. */
    *ret_port = ntohs(((struct sockaddr_in *)&address)->sin_port);
    *ret_fd = fd;
    return BT_OK;
}

static size_t header_bytes(const struct rt_http_front_options *options)
{
    uint32_t bytes = options->max_header_bytes > 0 ? options->max_header_bytes : HEADER_BYTES;
    return bytes > HEADER_BYTES_LEAST ? bytes : HEADER_BYTES_LEAST;
}

static enum bt_status adopt_listener(int listener, struct bt_error *error, uint16_t *ret_port)
{
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    if (getsockname(listener, (struct sockaddr *)&address, &size) != 0 ||
        (address.ss_family != AF_INET && address.ss_family != AF_INET6))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "the socket taken over is none of TCP");
    fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) | O_NONBLOCK);
    *ret_port = ntohs(((struct sockaddr_in *)&address)->sin_port);
    return BT_OK;
}

static enum bt_status start_tls(struct rt_http_front *front,
                                const struct rt_http_front_options *options, struct bt_error *error)
{
    if (options->tls_cert_file == NULL && options->tls_key_file == NULL)
        return BT_OK;
    if (options->tls_cert_file == NULL || options->tls_key_file == NULL)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "--tls-cert and --tls-key go together");
    return rt_http_tls_create(front->loop, options->tls_cert_file, options->tls_key_file, error,
                              &front->tls);
}

static enum bt_status start_daemon(struct rt_http_front *front,
                                   const struct rt_http_front_options *options, int fd,
                                   struct bt_error *error)
{
    struct MHD_OptionItem tls[RT_HTTP_TLS_OPTIONS] = {{MHD_OPTION_END, 0, NULL}};
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME;
    if (front->tls != NULL) {
        rt_http_tls_options(front->tls, tls);
        flags |= MHD_USE_TLS;
    }
    front->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, front, MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)options->max_connections,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)options->max_connections_per_address,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, header_bytes(options), MHD_OPTION_ARRAY, tls,
        MHD_OPTION_CONNECTION_TIMEOUT, front->connections.request_timeout_s,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, front, MHD_OPTION_NOTIFY_CONNECTION,
        rt_http_connection_notify, &front->connections, MHD_OPTION_END);
    if (front->daemon == NULL) {
        close(fd);
        return bt_error_set(error, BT_ERR_INTERNAL, "libmicrohttpd does not start");
    }
    front->listener = fd;
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(front->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    front->source = bt_loop_add_fd(front->loop, info->epoll_fd, run, front);
    front->timer = bt_loop_add_timer(front->loop, BT_NEVER_NS, run, front);
    if (front->source == NULL || front->timer == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the HTTP front");
    return BT_OK;
}

static void register_metrics(struct rt_http_exchanges *exchanges, struct bt_metrics *metrics)
{
    exchanges->metrics = metrics;
    if (metrics == NULL)
        return;
    exchanges->gone = bt_metrics_counter(metrics, "baton_http_clients_gone_total", NULL,
                                         "Requests cancelled because the HTTP client went away.");
    exchanges->slow = bt_metrics_counter(metrics, "baton_http_slow_readers_total", NULL,
                                         "Streams dropped because their client read too slowly.");
}

enum bt_status rt_http_front_create(struct bt_loop *loop, struct rt_service *service,
                                    const struct rt_http_front_options *options,
                                    struct bt_error *error, struct rt_http_front **ret_front)
{
    struct rt_http_front *front = calloc(1, sizeof *front);
    if (front == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the HTTP front");
    front->loop = loop;
    front->exchanges.service = service;
    front->exchanges.max_body_bytes = options->max_body_bytes;
    front->exchanges.wake = front->connections.wake = wake;
    front->exchanges.wake_context = front->connections.wake_context = front;
    register_metrics(&front->exchanges, options->metrics);
    int fd = options->has_listener ? options->listener : -1;
    front->listener = -1;
    enum bt_status status =
        rt_http_connections_init(&front->connections, loop, options->request_timeout_s, error);
    if (status == BT_OK)
        status = rt_http_streams_init(&front->exchanges.streams, loop, error);
    if (status == BT_OK)
        status = start_tls(front, options, error);
    if (status == BT_OK)
        status = fd >= 0 ? adopt_listener(fd, error, &front->port)
                         : listen_on(options, error, &fd, &front->port);
    if (status == BT_OK)
        status = start_daemon(front, options, fd, error);
    if (status != BT_OK) {
        rt_http_front_destroy(front);
        return status;
    }
    *ret_front = front;
    return BT_OK;
}

void rt_http_front_destroy(struct rt_http_front *front)
{
    if (front == NULL)
        return;
    rt_http_exchanges_abandon(&front->exchanges);
    bt_loop_remove(front->source);
    if (front->daemon != NULL)
        MHD_stop_daemon(front->daemon);
    bt_loop_remove(front->timer);
    rt_http_streams_finish(&front->exchanges.streams);
    rt_http_tls_destroy(front->tls);
    rt_http_connections_finish(&front->connections);
    free(front);
}

int rt_http_front_listener(const struct rt_http_front *front)
{
    return front->listener;
}

void rt_http_front_close_listener(struct rt_http_front *front)
{
    front->exchanges.leaving = true;
    if (front->listener >= 0)
        close(MHD_quiesce_daemon(front->daemon));
    front->listener = -1;
}

uint32_t rt_http_front_connections(const struct rt_http_front *front)
{
    return connection_count(front);
}

uint16_t rt_http_front_port(const struct rt_http_front *front)
{
    return front->port;
}

bool rt_http_front_busy(const struct rt_http_front *front)
{
    return rt_http_exchanges_busy(&front->exchanges);
}
