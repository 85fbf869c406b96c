#include "router/http_stream.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "common/base/clock.h"
#include "router/http_exchange.h"

static const char line_end[] = "\r\n";

static bool in_chunk(const struct rt_http_stream *stream)
{
    return stream->line_left > 0 || stream->data_left > 0 || stream->end_left > 0;
}

/* False: there is nothing to write. */
static bool chunk_begin(struct rt_http_stream *stream, struct rt_openai_json *output)
{
    size_t size;
    rt_openai_json_unread(output, &size);
    if (size == 0)
        return false;
    rt_openai_json_seal(output); /* its size is said now */
    stream->line_size = stream->line_left =
        (uint8_t)snprintf(stream->line, sizeof stream->line, "%zx\r\n", size);
    stream->data_left = size;
    stream->end_left = sizeof line_end - 1;
    return true;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static void chunk_sent(struct rt_http_stream *stream, struct rt_openai_json *output, size_t size)
{
    size_t line = smaller(size, stream->line_left);
    size_t data = smaller(size - line, stream->data_left);
    stream->line_left -= (uint8_t)line;
    stream->data_left -= data;
    stream->end_left -= (uint8_t)(size - line - data);
    if (data > 0)
        rt_openai_json_take(output, data);
}

static ssize_t chunk_send(const struct rt_http_exchange *exchange, struct rt_openai_json *output)
{
    const struct rt_http_stream *stream = &exchange->stream;
    size_t size;
    const char *data = rt_openai_json_unread(output, &size);
    struct iovec parts[] = {
        {(char *)stream->line + stream->line_size - stream->line_left, stream->line_left},
        {(char *)data, stream->data_left},
        {(char *)line_end + sizeof line_end - 1 - stream->end_left, stream->end_left},
    };
    const struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    return sendmsg(exchange->connection->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* True: all that came is out. A socket that failed is told by the watch of its connection. */
static bool write_chunks(struct rt_http_exchange *exchange)
{
    struct rt_openai_json *output = rt_openai_answer_output(exchange->answer);
    while (in_chunk(&exchange->stream) || chunk_begin(&exchange->stream, output)) {
        ssize_t sent = chunk_send(exchange, output);
        if (sent < 0) {
            if (errno == EAGAIN)
                rt_http_connection_blocked(exchange->connection);
            return false;
        }
        rt_http_connection_moved(exchange->connection);
        chunk_sent(&exchange->stream, output, (size_t)sent);
    }
    return true;
}

static void flush(struct rt_http_exchange *exchange)
{
    bool over = rt_openai_answer_state(exchange->answer) != RT_ANSWER_STREAMING;
    if (!rt_http_connection_is_blocked(exchange->connection) && write_chunks(exchange) && over)
        rt_http_exchange_resume(exchange);
}

static void on_round(void *context)
{
    struct rt_http_streams *streams = context;
    struct rt_http_exchange *exchange;
    while ((exchange = streams->due) != NULL) {
        streams->due = exchange->stream.next_due;
        exchange->stream.due = false;
        flush(exchange);
    }
    streams->due_end = &streams->due;
}

enum bt_status rt_http_streams_init(struct rt_http_streams *streams, struct bt_loop *loop,
                                    struct bt_error *error)
{
    streams->due_end = &streams->due;
    streams->timer = bt_loop_add_timer(loop, BT_NEVER_NS, on_round, streams);
    return streams->timer != NULL
               ? BT_OK
               : bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for HTTP streams");
}

void rt_http_streams_finish(struct rt_http_streams *streams)
{
    bt_loop_remove(streams->timer);
}

/* One that the library would encrypt, or send without chunks, is left to it. */
void rt_http_stream_begin(struct rt_http_exchange *exchange)
{
    int on = 1;
    exchange->stream.direct =
        exchange->chunked &&
        MHD_get_connection_info(exchange->mhd, MHD_CONNECTION_INFO_GNUTLS_SESSION) == NULL;
    if (exchange->stream.direct)
        setsockopt(exchange->connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

bool rt_http_stream_changed(struct rt_http_exchange *exchange)
{
    struct rt_http_stream *stream = &exchange->stream;
    struct rt_http_streams *streams = &exchange->all->streams;
    if (!stream->direct || stream->due)
        return stream->direct;
    if (streams->due == NULL)
        bt_loop_timer_set(streams->timer, 0);
    stream->due = true;
    stream->next_due = NULL;
    *streams->due_end = exchange;
    streams->due_end = &stream->next_due;
    return true;
}

void rt_http_stream_writable(struct rt_http_exchange *exchange)
{
    if (exchange->stream.direct)
        rt_http_stream_changed(exchange);
}

void rt_http_stream_forget(struct rt_http_exchange *exchange)
{
    struct rt_http_streams *streams = &exchange->all->streams;
    exchange->stream.direct = false;
    if (!exchange->stream.due)
        return;
    exchange->stream.due = false;
    struct rt_http_exchange **at = &streams->due;
    while (*at != exchange)
        at = &(*at)->stream.next_due;
    *at = exchange->stream.next_due;
    if (*at == NULL)
        streams->due_end = at;
}
