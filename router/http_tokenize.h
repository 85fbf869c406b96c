/*
 * POST /tokenize: the exchange is suspended until the ids are there. Internal to the HTTP front.
 */
#ifndef BATON_ROUTER_HTTP_TOKENIZE_H
#define BATON_ROUTER_HTTP_TOKENIZE_H

#include "router/http_exchange.h"

/* Handler of the route. */
enum MHD_Result rt_http_tokenize(struct rt_http_exchange *exchange);
/* After a resume. */
enum MHD_Result rt_http_tokenize_respond(struct rt_http_exchange *exchange);
/* Nobody waits for it any more. */
void rt_http_tokenize_cancel(struct rt_http_exchange *exchange);

#endif
