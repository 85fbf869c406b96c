/* GET /metrics/workers: what the workers say of themselves. Internal to the HTTP front. */
#ifndef BATON_ROUTER_HTTP_WORKER_METRICS_H
#define BATON_ROUTER_HTTP_WORKER_METRICS_H

#include "router/http_exchange.h"

rt_http_handle_fn rt_http_worker_metrics;
/* After a resume. */
enum MHD_Result rt_http_worker_metrics_respond(struct rt_http_exchange *exchange);
void rt_http_worker_metrics_cancel(struct rt_http_exchange *exchange);

#endif
