/*
 * The connections of an HTTP front: each is watched for a client that goes away, and has a limited
 * time to bring a whole request. Internal to the HTTP front.
 *
 * The HTTP library reads sockets by edges and may miss an end that comes together with data; and it
 * measures silence only, so that one byte now and then would hold a connection for ever.
 */
#ifndef BATON_ROUTER_HTTP_CONNECTION_H
#define BATON_ROUTER_HTTP_CONNECTION_H

#include <microhttpd.h>

#include "router/http_watch.h"

/* Time for a whole request, in units of the time for silence. */
#define RT_HTTP_RECEIVE_FACTOR     4
#define RT_HTTP_REQUEST_TIMEOUT_S  30u  /* default: silence while a request is not complete */
#define RT_HTTP_RESPONSE_TIMEOUT_S 120u /* response bytes wait and the client takes none */

struct rt_http_exchange;

struct rt_http_connections {
    struct rt_http_watch *watch;
    struct bt_loop_source *sweep; /* timer, armed while there are connections */
    unsigned request_timeout_s;
    void (*wake)(void *context); /* the HTTP library must run soon */
    void *wake_context;
    struct rt_http_connection *first;
};

/* From accept to close; the library's socket context. */
struct rt_http_connection {
    struct rt_http_connections *all;
    struct MHD_Connection *mhd;
    int fd;
    bool gone;                         /* the client closed its side */
    bool blocked;                      /* its socket takes no more of a stream */
    int64_t blocked_since_ns;          /* and took nothing since then */
    int64_t receiving_since_ns;        /* BT_NEVER_NS: a request is being answered */
    struct rt_http_exchange *exchange; /* waits for an answer or ids, or NULL */
    struct rt_http_connection *previous, *next;
};

enum bt_status rt_http_connections_init(struct rt_http_connections *all, struct bt_loop *loop,
                                        unsigned request_timeout_s, struct bt_error *error);
void rt_http_connections_finish(struct rt_http_connections *all);

/* Callback of the library: connection begins and ends. `context`: struct rt_http_connections. */
void rt_http_connection_notify(void *context, struct MHD_Connection *mhd, void **connection_slot,
                               enum MHD_ConnectionNotificationCode code);

/* NULL: there was no memory when it began. */
struct rt_http_connection *rt_http_connection_of(struct MHD_Connection *mhd);

/* The request is whole; the response begins. */
void rt_http_connection_answering(struct rt_http_connection *connection);
/* The response is out; the next request may come. */
void rt_http_connection_receiving(struct rt_http_connection *connection);

/* A stream's bytes that are written past the library: the socket takes none, until
 * rt_http_stream_writable; it took some. */
void rt_http_connection_blocked(struct rt_http_connection *connection);
void rt_http_connection_moved(struct rt_http_connection *connection);
bool rt_http_connection_is_blocked(const struct rt_http_connection *connection);

/* Ends it from outside of the library's callbacks; unsent bytes are dropped. */
void rt_http_connection_reset(struct rt_http_connection *connection);

#endif
