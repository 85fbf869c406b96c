/*
 * GET /status and the dashboard page at GET /, which shows it. Internal to the HTTP front.
 */
#ifndef BATON_ROUTER_HTTP_STATUS_H
#define BATON_ROUTER_HTTP_STATUS_H

#include "router/http_exchange.h"

rt_http_handle_fn rt_http_status;
rt_http_handle_fn rt_http_dashboard;

#endif
