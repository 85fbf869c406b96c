/*
 * One HTTP request and its response: collects the body, hands it to its route, sends what the
 * answer produces, and ends the answer when the client goes away. Internal to the HTTP front.
 *
 * Lifetime. An exchange is made at the first call of the access handler and freed when the HTTP
 * library reports the request as completed, whatever the reason; nothing else frees it. While
 * `suspended`, the library does not touch the connection: only rt_http_exchange_resume continues
 * it.
 */
#ifndef BATON_ROUTER_HTTP_EXCHANGE_H
#define BATON_ROUTER_HTTP_EXCHANGE_H

#include <microhttpd.h>

#include "router/http_connection.h"
#include "router/http_stream.h"
#include "router/openai_answer.h"
#include "router/request_id.h"
#include "router/service.h"

/* Of a body that is refused, this much more is read, so that the client sees the response. */
#define RT_HTTP_DISCARD_BYTES (16u << 20)

/* Names of headers. */
#define RT_HTTP_REQUEST_ID "X-Request-Id"
#define RT_HTTP_RESUME     "Last-Event-ID"

struct rt_http_exchange;

/* What all exchanges of a front share. */
struct rt_http_exchanges {
    struct rt_service *service;
    uint32_t max_body_bytes;
    void (*wake)(void *context); /* the HTTP library must run soon */
    void *wake_context;
    struct rt_http_exchange *first;
    struct rt_http_streams streams;
    bool leaving;               /* each connection ends with its next answer */
    bool unsettled;             /* some answer failed: rt_http_exchanges_settle */
    struct bt_metrics *metrics; /* may be NULL */
    struct bt_counter *gone, *slow;
};

typedef enum MHD_Result rt_http_handle_fn(struct rt_http_exchange *exchange);

enum rt_http_audience {
    RT_HTTP_EVERYBODY, /* tells nothing of anybody */
    RT_HTTP_OPERATORS,
    RT_HTTP_CLIENTS,
};

struct rt_http_route {
    const char *method; /* "GET" also serves HEAD */
    const char *path;
    bool prefix; /* path and anything after it */
    enum rt_http_audience audience;
    rt_http_handle_fn *handle;
};

/* What POST /tokenize waits for. */
struct rt_http_tokens {
    const char *param; /* NULL: another route */
    struct rt_tokenization_job *job;
    struct bt_token_buffer ids;
    struct rt_openai_error error;
};

struct rt_http_exchange {
    struct rt_http_exchanges *all;
    struct MHD_Connection *mhd;
    struct rt_http_connection *connection;
    const struct rt_http_route *route; /* NULL: refused already */
    uint32_t tenant;                   /* whose key came with it */
    const char *path;                  /* while a handler runs */
    char request_id[RT_REQUEST_ID_MAX + 1];
    bool named;                     /* by the client */
    struct rt_openai_error refusal; /* valid without a route */
    char allow[16];                 /* for 405 */
    char *body;
    size_t body_size, body_capacity, discarded;
    bool dispatched, suspended, gone;
    bool chunked; /* a body of unknown size goes out in chunks: HTTP/1.1 */
    struct rt_http_stream stream;
    struct rt_openai_answer *answer;
    struct rt_http_tokens tokens;
    struct rt_trace_context trace; /* of a generation */
    struct {
        bool asked, waits;
        struct rt_scrape_waiter waiter;
    } scrape; /* what GET /metrics/workers waits for */
    struct rt_http_exchange *previous, *next;
};

/* NULL: no memory. */
struct rt_http_exchange *rt_http_exchange_create(struct rt_http_exchanges *all,
                                                 struct rt_http_connection *connection);
void rt_http_exchange_destroy(struct rt_http_exchange *exchange);

/* The name of the request, as its headers say, or a new one. */
void rt_http_exchange_identify(struct rt_http_exchange *exchange);

/* More of the body. False: the connection is to be dropped. */
bool rt_http_exchange_receive(struct rt_http_exchange *exchange, const char *data, size_t size);

void rt_http_exchange_drop_body(struct rt_http_exchange *exchange);

/* Until a resume the library leaves the connection alone; a client that leaves meanwhile is heard
 * of by rt_http_exchange_gone. */
void rt_http_exchange_suspend(struct rt_http_exchange *exchange);
void rt_http_exchange_resume(struct rt_http_exchange *exchange);

/* Chat and text completions: starts the answer. */
enum MHD_Result rt_http_exchange_generate(struct rt_http_exchange *exchange,
                                          enum rt_openai_kind kind);
/* After a resume before the response began. */
enum MHD_Result rt_http_exchange_continue(struct rt_http_exchange *exchange);

/* The client went away while an answer or ids are awaited. */
void rt_http_exchange_gone(struct rt_http_exchange *exchange);

/* A whole request has come and its response is not out. */
bool rt_http_exchanges_busy(const struct rt_http_exchanges *all);

/* Outside of the service's callbacks. */
void rt_http_exchanges_settle(struct rt_http_exchanges *all);
/* Abandons all answers and resumes everything, so that the library can be stopped. */
void rt_http_exchanges_abandon(struct rt_http_exchanges *all);

#endif
