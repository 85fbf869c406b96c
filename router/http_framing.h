/*
 * Headers that leave it open where a request ends, or what its body is: whoever passed it on may
 * have read them in another way, and what is left over would be the next request. Such a request
 * is refused, and the connection ends with it. Pure but for looking up headers.
 */
#ifndef BATON_ROUTER_HTTP_FRAMING_H
#define BATON_ROUTER_HTTP_FRAMING_H

#include <microhttpd.h>

#include "router/openai_error.h"

/* INVALID_ARGUMENT with 400 (names with spaces, two lengths, a length beside Transfer-Encoding, or
 * that in HTTP/1.0), or with 501 (a transfer coding that is not "chunked"). */
enum bt_status rt_http_framing_check(struct MHD_Connection *connection, const char *version,
                                     struct rt_openai_error *error);

/* INVALID_ARGUMENT with 415: a body that is compressed. */
enum bt_status rt_http_framing_check_coding(struct MHD_Connection *connection,
                                            struct rt_openai_error *error);

#endif
