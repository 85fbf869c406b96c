/*
 * Paths of the HTTP API. Internal to the HTTP front.
 */
#ifndef BATON_ROUTER_HTTP_ROUTE_H
#define BATON_ROUTER_HTTP_ROUTE_H

#include "router/http_exchange.h"

/* Sets the route, or without one the refusal: 404 or 405. */
void rt_http_route_find(struct rt_http_exchange *exchange, const char *method, const char *path);

#endif
