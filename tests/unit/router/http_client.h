/*
 * A raw HTTP client on the same loop as the server under test: no thread, no library, so that a
 * test decides which bytes go out when. Every wait has a deadline that fails the test.
 */
#ifndef BATON_TESTS_HTTP_CLIENT_H
#define BATON_TESTS_HTTP_CLIENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/messaging/loop.h"

struct http_client {
    struct bt_loop *loop;
    int fd;
    char *data; /* received and not taken */
    size_t size, capacity;
    bool closed; /* by the server */
};

struct http_response {
    int status;
    char *head; /* with the blank line, NUL-terminated */
    char *body; /* chunks joined, NUL-terminated */
    size_t body_size;
    bool complete; /* false: the server closed before the end */
};

void http_client_open(struct http_client *client, struct bt_loop *loop, uint16_t port);
void http_client_close(struct http_client *client);

void http_client_send(struct http_client *client, const char *data, size_t size);
/* The whole request with its headers; `extra` holds more header lines ("A: b\r\n"), or "". */
void http_client_request(struct http_client *client, const char *method, const char *path,
                         const char *extra, const char *body, size_t size);

/* One round of the loop, then whatever arrived. */
void http_client_pump(struct http_client *client);

/* Waits for one response. `no_body`: of a HEAD. */
void http_client_response(struct http_client *client, bool no_body,
                          struct http_response *ret_response);
void http_response_finish(struct http_response *response);

/* NULL where the header is not there; valid until the next call. */
const char *http_response_header(const struct http_response *response, const char *name);
/* The body as JSON; fails the test when it is none. */
json_t *http_response_json(const struct http_response *response);
/* The `data:` events of a stream as an array, with their `id:` as "sse_id"; "[DONE]" is a string
 * there. */
json_t *http_response_events(const struct http_response *response);

#endif
