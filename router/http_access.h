/*
 * Keys on HTTP: `Authorization: Bearer KEY`. Internal to the HTTP front.
 */
#ifndef BATON_ROUTER_HTTP_ACCESS_H
#define BATON_ROUTER_HTTP_ACCESS_H

#include "router/http_exchange.h"

/* For an exchange that has a route: sets its tenant; or takes the route away and sets the refusal,
 * where the route asks for a key (http_route.h). */
void rt_http_access_check(struct rt_http_exchange *exchange);

#endif
