/*
 * Queues whole responses on a connection. Internal to the HTTP front.
 */
#ifndef BATON_ROUTER_HTTP_RESPONSE_H
#define BATON_ROUTER_HTTP_RESPONSE_H

#include "router/http_exchange.h"

/* `json` is emptied. */
enum MHD_Result rt_http_respond_json(struct rt_http_exchange *exchange, int http_status,
                                     struct rt_openai_json *json);
enum MHD_Result rt_http_respond_error(struct rt_http_exchange *exchange,
                                      const struct rt_openai_error *error);
/* `text` is malloc'd and taken. */
enum MHD_Result rt_http_respond_text(struct rt_http_exchange *exchange, char *text, size_t size,
                                     const char *content_type);
/* Counts and queues; drops the caller's reference. */
enum MHD_Result rt_http_respond(struct rt_http_exchange *exchange, int http_status,
                                struct MHD_Response *response);

#endif
