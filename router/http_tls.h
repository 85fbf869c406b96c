/*
 * The certificate and key of the HTTP front, from PEM files that are read again when they change:
 * connections that begin then get the new ones. Files that are wrong leave those before in force.
 * Loop thread only. One in a process: the TLS library's callback has no context.
 */
#ifndef BATON_ROUTER_HTTP_TLS_H
#define BATON_ROUTER_HTTP_TLS_H

#include <microhttpd.h>

#include "common/messaging/loop.h"

struct rt_http_tls;

/* UNSUPPORTED: the HTTP library has no TLS. INVALID_ARGUMENT: what is wrong in which file; a key
 * that others can read is refused, and one that is not that of the certificate. */
enum bt_status rt_http_tls_create(struct bt_loop *loop, const char *cert_file, const char *key_file,
                                  struct bt_error *error, struct rt_http_tls **ret_tls);
/* After the HTTP library's end. NULL is fine. */
void rt_http_tls_destroy(struct rt_http_tls *tls);

/* Options for the HTTP library: two items and the end. */
#define RT_HTTP_TLS_OPTIONS 3
void rt_http_tls_options(const struct rt_http_tls *tls,
                         struct MHD_OptionItem ret_items[RT_HTTP_TLS_OPTIONS]);

#endif
