/*
 * The OpenAI-compatible HTTP API over libmicrohttpd, on the router's loop (no threads of its own).
 *
 *   POST /v1/chat/completions  POST /v1/completions  GET /v1/models[/NAME]  POST /tokenize
 *   POST /detokenize  GET /health  GET /ready  GET /metrics
 */
#ifndef BATON_ROUTER_HTTP_FRONT_H
#define BATON_ROUTER_HTTP_FRONT_H

#include <stdint.h>

#include "router/service.h"

struct rt_http_front;

struct rt_http_front_options {
    const char *host;  /* numeric IPv4 or IPv6 */
    uint16_t port;     /* 0: ephemeral */
    bool has_listener; /* instead of these two: `listener`, which is taken in any case */
    int listener;
    uint32_t max_connections;
    uint32_t max_connections_per_address;     /* 0: no limit */
    uint32_t max_header_bytes;                /* of a request, about; 0: 16 KiB */
    const char *tls_cert_file, *tls_key_file; /* PEM; NULL both: no TLS */
    uint32_t max_body_bytes;
    uint32_t request_timeout_s; /* silence before a request is whole; four times it in all; 0: 30 */
    struct bt_metrics *metrics; /* counters of this front; NULL: none */
};

enum bt_status rt_http_front_create(struct bt_loop *loop, struct rt_service *service,
                                    const struct rt_http_front_options *options,
                                    struct bt_error *error, struct rt_http_front **ret_front);
void rt_http_front_destroy(struct rt_http_front *front); /* NULL is fine */

uint16_t rt_http_front_port(const struct rt_http_front *front);

int rt_http_front_listener(const struct rt_http_front *front); /* stays its own; -1: given up */
/* Accepts no more. Connections that there are go on, each until its next answer. */
void rt_http_front_close_listener(struct rt_http_front *front);
uint32_t rt_http_front_connections(const struct rt_http_front *front);

/* Some request has come whole, and its response is not out. */
bool rt_http_front_busy(const struct rt_http_front *front);

#endif
