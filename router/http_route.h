/*
 * Paths of the HTTP API. Internal to the HTTP front.
 */
#ifndef BATON_ROUTER_HTTP_ROUTE_H
#define BATON_ROUTER_HTTP_ROUTE_H

#include "router/access.h"
#include "router/http_exchange.h"

/* Sets the route, or without one the refusal: 404 or 405. */
void rt_http_route_find(struct rt_http_exchange *exchange, const char *method, const char *path);

/* Whether it is for those alone who show a key, where keys are asked for. The dashboard's page is
 * for everybody: it shows nothing but what GET /status gives to whom it may. */
bool rt_http_route_asks_key(const struct rt_http_route *route, enum rt_access_scope scope);

#endif
