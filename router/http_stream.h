/*
 * The body of a stream, written past the HTTP library. Internal to the HTTP front.
 *
 * A token costs one system call here, and five of the library, which has to be woken, to poll and
 * to be put to sleep again. So between the first bytes of a stream and its end its connection stays
 * suspended, and what comes goes to the socket as chunks of HTTP/1.1: everything that came for it
 * in one round of the loop in one write. The library has sent what it was given before it asks for
 * more, which is when a connection is suspended; it goes on when all chunks are out, and ends the
 * body. With TLS, or for HTTP/1.0, all is the library's.
 */
#ifndef BATON_ROUTER_HTTP_STREAM_H
#define BATON_ROUTER_HTTP_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/messaging/loop.h"

struct rt_http_exchange;

/* What all streams of a front share. */
struct rt_http_streams {
    struct bt_loop_source *timer; /* ends the round */
    struct rt_http_exchange *due; /* something to write, or the end */
    struct rt_http_exchange **due_end;
};

/* Of one exchange; zero-initialised. */
struct rt_http_stream {
    bool direct; /* the connection is suspended, between two chunks or in one */
    bool due;
    struct rt_http_exchange *next_due;
    /* The chunk that is being written: its size line, then bytes of the answer's output, then the
     * end of its line. What is left of each. */
    char line[12];
    uint8_t line_size, line_left, end_left;
    size_t data_left;
};

enum bt_status rt_http_streams_init(struct rt_http_streams *streams, struct bt_loop *loop,
                                    struct bt_error *error);
void rt_http_streams_finish(struct rt_http_streams *streams);

/* The library has sent all that it had; the connection is about to be suspended. */
void rt_http_stream_begin(struct rt_http_exchange *exchange);
/* More came, or the end. False: the stream is the library's. */
bool rt_http_stream_changed(struct rt_http_exchange *exchange);
/* The socket takes bytes again. */
void rt_http_stream_writable(struct rt_http_exchange *exchange);
/* The exchange goes away, or back to the library for good. */
void rt_http_stream_forget(struct rt_http_exchange *exchange);

#endif
