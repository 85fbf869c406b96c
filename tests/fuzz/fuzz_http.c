/*
 * The HTTP front over real sockets, before a scripted service. An input is [mode][pieces][bytes]:
 *
 * - mode even: each two bytes choose a request of a table and how it is written; all go out in one
 *   pipeline. Each gets exactly one response, in order, with the status that it has to have.
 * - mode odd: the bytes are sent as they are, and the client then ends its side, closes or resets.
 *   Whatever comes back is well-formed responses, the connection ends, and nothing stays behind.
 *
 * The byte `pieces` says how what is sent is cut. After each input a plain request is answered.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/random.h"
#include "router/http_front.h"
#include "tests/fuzz/driver.h"
#include "tests/unit/router/fake_service.h"

#define PATIENCE_NS  (30 * BT_NS_PER_S)
#define MAX_PIPELINE 8
#define MAX_SENT     65536
#define MAX_RECEIVED (4u << 20)

static struct bt_loop *loop;
static struct rt_service *service;
static struct rt_http_front *front;

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void load(void)
{
    static const struct rt_http_front_options options = {.host = "127.0.0.1",
                                                         .max_connections = 64,
                                                         .max_body_bytes = 16384,
                                                         .request_timeout_s = 10};
    if (loop)
        return;
    bt_log_init("fuzz-http", BT_LOG_ERROR);
    setenv("CMOCKA_TEST_ABORT", "1", 1); /* the service's own checks run outside of a test */
    struct bt_error error = {.text = ""};
    loop = bt_loop_create(&error);
    must(loop != NULL, error.text);
    service = fake_service_create(loop);
    must(rt_http_front_create(loop, service, &options, &error, &front) == BT_OK, error.text);
}

/* ------------------------------------------------------------------ a client */

struct client {
    int fd;
    char data[MAX_RECEIVED]; /* received */
    size_t size;
    bool closed; /* by the front */
    uint64_t cuts;
    uint8_t pieces;
};

static void client_open(struct client *client, uint8_t pieces)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(rt_http_front_port(front))};
    int on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    client->size = client->cuts = 0;
    client->closed = false;
    client->pieces = pieces;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(client->fd >= 0, "no socket");
    must(connect(client->fd, (struct sockaddr *)&address, sizeof address) == 0, "no connection");
    fcntl(client->fd, F_SETFL, O_NONBLOCK);
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void client_close(struct client *client, bool reset)
{
    const struct linger none = {.l_onoff = 1};
    if (reset)
        setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    close(client->fd);
}

static void pump(struct client *client, int64_t wait_ns)
{
    must(bt_loop_run_once(loop, bt_clock_now_ns() + wait_ns, NULL) >= BT_OK, "the loop failed");
    while (!client->closed) {
        must(client->size < MAX_RECEIVED, "a response without end");
        ssize_t got = recv(client->fd, client->data + client->size, MAX_RECEIVED - client->size, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        client->closed = got <= 0;
        client->size += got > 0 ? (size_t)got : 0;
    }
}

static size_t piece(struct client *client)
{
    static const uint16_t most[] = {1, 3, 17, 200, 1500, 40000};
    uint16_t limit = most[client->pieces % 6];
    return 1 + (size_t)(bt_random_u64(client->pieces, client->cuts++, 0) % limit);
}

/* Until all is sent, or the front has closed. */
static void client_send(struct client *client, const char *data, size_t size)
{
    int64_t until_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (size > 0 && !client->closed) {
        size_t next = piece(client);
        ssize_t sent = send(client->fd, data, next < size ? next : size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            return;
        if (sent > 0) {
            data += sent;
            size -= (size_t)sent;
        }
        if (sent < 0 || client->cuts % 3 == 0)
            pump(client, 0);
        must(bt_clock_now_ns() < until_ns, "the front takes nothing");
    }
}

/* ------------------------------------------------------------------ responses */

struct response {
    int status;
    bool close, chunked, json;
    int64_t length; /* -1: not said */
};

static bool is_token(char c)
{
    return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') ||
           (c != '\0' && strchr("!#$%&'*+-.^_`|~", c));
}

static bool line_is(const char *line, size_t size, const char *name, const char **ret_value)
{
    size_t length = strlen(name);
    *ret_value = line + length;
    return size >= length && strncasecmp(line, name, length) == 0;
}

static void read_header(const char *line, size_t size, struct response *response)
{
    const char *value;
    size_t name = 0;
    while (name < size && is_token(line[name]))
        name++;
    must(name > 0 && name < size && line[name] == ':', "a header without a name");
    for (size_t i = 0; i < size; i++)
        must((unsigned char)line[i] >= 0x20 && line[i] != 0x7f, "a control character in a header");
    if (line_is(line, size, "Content-Length: ", &value)) {
        must(response->length < 0, "two lengths");
        response->length = strtoll(value, NULL, 10);
    } else if (line_is(line, size, "Transfer-Encoding: chunked", &value)) {
        must(!response->chunked, "chunked twice");
        response->chunked = true;
    } else if (line_is(line, size, "Connection: close", &value)) {
        response->close = true;
    } else if (line_is(line, size, "Content-Type: application/json", &value)) {
        response->json = true;
    }
}

/* Bytes of the head with its blank line; 0: more has to come. */
static size_t read_head(const char *data, size_t size, struct response *ret_response)
{
    const char *end = size > 0 ? memmem(data, size, "\r\n\r\n", 4) : NULL;
    if (!end)
        return 0;
    *ret_response = (struct response){.length = -1};
    must(end - data >= 12 && strncmp(data, "HTTP/1.", 7) == 0 && data[8] == ' ', "no status line");
    ret_response->status = atoi(data + 9);
    must(ret_response->status >= 100 && ret_response->status < 600, "no status");
    const char *line = memmem(data, size, "\r\n", 2);
    while (line < end) {
        line += 2;
        const char *stop = memmem(line, size - (size_t)(line - data), "\r\n", 2);
        read_header(line, (size_t)(stop - line), ret_response);
        line = stop;
    }
    must(!ret_response->chunked || ret_response->length < 0, "a length and chunks");
    return (size_t)(end - data) + 4;
}

/* Bytes of the chunks; 0: more has to come. */
static size_t read_chunks(const char *data, size_t size)
{
    size_t at = 0;
    for (;;) {
        size_t line = at;
        while (line + 1 < size && (data[line] != '\r' || data[line + 1] != '\n'))
            line++;
        if (line + 1 >= size)
            return 0;
        char *stop;
        must(strspn(data + at, "0123456789abcdefABCDEF") > 0, "no size of a chunk");
        size_t chunk = strtoul(data + at, &stop, 16);
        must(stop == data + line && chunk <= MAX_RECEIVED, "a chunk of no size");
        at = line + 2;
        if (size - at < chunk + 2)
            return 0;
        must(memcmp(data + at + chunk, "\r\n", 2) == 0, "a chunk longer than it says");
        at += chunk + 2;
        if (chunk == 0)
            return at;
    }
}

static void check_json(const char *data, size_t size)
{
    json_t *json = json_loadb(data, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, NULL);
    must(json != NULL, "a body that is no JSON");
    json_decref(json);
}

/* Takes one whole response off the front of what was received. */
static bool take(struct client *client, bool head_only, struct response *ret_response)
{
    size_t head = read_head(client->data, client->size, ret_response), used = 0;
    if (head == 0)
        return false;
    const char *body = client->data + head;
    size_t rest = client->size - head;
    if (head_only || ret_response->status < 200) {
        used = head;
    } else if (ret_response->length >= 0) {
        size_t length = (size_t)ret_response->length;
        used = rest >= length ? head + length : 0;
        if (used > 0 && ret_response->json)
            check_json(body, length);
    } else if (ret_response->chunked) {
        size_t chunks = read_chunks(body, rest);
        used = chunks > 0 ? head + chunks : 0;
    } else {
        used = client->closed ? client->size : 0; /* to HTTP/1.0: until the end */
    }
    if (used == 0)
        return false;
    memmove(client->data, client->data + used, client->size - used);
    client->size -= used;
    return true;
}

/* ------------------------------------------------------------------ good requests */

#define MESSAGES "{\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"

static const struct request {
    const char *method, *path, *body;
    int status;
} requests[] = {
    {"GET", "/health", NULL, 200},
    {"POST", "/v1/completions", "{\"model\":\"tiny\",\"prompt\":\"hi\",\"max_tokens\":2}", 200},
    {"POST", "/v1/completions",
     "{\"model\":\"tiny\",\"prompt\":\"hi\",\"max_tokens\":3,\"stream\":true}", 200},
    {"POST", "/v1/chat/completions", MESSAGES "\"max_tokens\":2}", 200},
    {"POST", "/v1/chat/completions", MESSAGES "\"max_tokens\":2,\"n\":2,\"stream\":true}", 200},
    {"GET", "/v1/models", NULL, 200},
    {"GET", "/v1/models/tiny?x=%00%ff&y", NULL, 200},
    {"GET", "/nothing/../there", NULL, 404},
    {"POST", "/health", "{}", 405},
    {"DELETE", "/v1/completions", NULL, 405},
    {"POST", "/v1/completions", "{\"model\":\"tiny\",", 400},
    {"POST", "/v1/completions", "", 400},
    {"POST", "/tokenize", "{\"model\":\"tiny\",\"prompt\":\"hello\"}", 200},
    {"POST", "/detokenize", "{\"model\":\"tiny\",\"tokens\":[5,6,7]}", 200},
    {"GET", "/status", NULL, 200},
    {"GET", "/ready", NULL, 200},
    {"GET", "/metrics", NULL, 200},
};
#define REQUEST_COUNT (sizeof requests / sizeof requests[0])

/* Chunks of growing size, the last one empty. */
static size_t write_chunks(char *ret_text, size_t capacity, const char *body)
{
    size_t at = 0, size = strlen(body);
    for (size_t chunk = 1; size > 0; chunk = chunk * 2 + 1) {
        chunk = chunk < size ? chunk : size;
        at += (size_t)snprintf(ret_text + at, capacity - at, "%zx\r\n%.*s\r\n", chunk, (int)chunk,
                               body);
        body += chunk;
        size -= chunk;
    }
    return at + (size_t)snprintf(ret_text + at, capacity - at, "0\r\n\r\n");
}

static size_t write_request(char *ret_text, size_t capacity, const struct request *request,
                            uint8_t how)
{
    static const char *const extra[] = {
        "", "accept:*/*\r\n", "X-Request-Id: a-b_c.1\r\n",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
        "ACCEPT-ENCODING:  gzip, br \r\nCookie: a=b\r\n"};
    size_t at = (size_t)snprintf(ret_text, capacity, "%s %s HTTP/1.1\r\nHost: x\r\n%s",
                                 request->method, request->path, extra[how / 2 % 5]);
    if (!request->body)
        return at + (size_t)snprintf(ret_text + at, capacity - at, "\r\n");
    at += (size_t)snprintf(ret_text + at, capacity - at, "Content-Type: application/json\r\n");
    if (how % 2 == 0)
        return at + (size_t)snprintf(ret_text + at, capacity - at, "Content-Length: %zu\r\n\r\n%s",
                                     strlen(request->body), request->body);
    at += (size_t)snprintf(ret_text + at, capacity - at, "Transfer-Encoding: chunked\r\n\r\n");
    return at + write_chunks(ret_text + at, capacity - at, request->body);
}

static void expect(struct client *client, int status, bool *ret_close)
{
    struct response response;
    int64_t until_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (!take(client, false, &response)) {
        must(!client->closed, "a request without a response");
        must(bt_clock_now_ns() < until_ns, "no response within the time");
        pump(client, BT_NS_PER_MS);
    }
    if (response.status != status)
        fprintf(stderr, "%d instead of %d\n", response.status, status);
    must(response.status == status, "a response with another status");
    *ret_close = response.close;
}

static void pipeline(const uint8_t *data, size_t size, uint8_t pieces)
{
    static char text[MAX_SENT];
    static struct client client;
    int status[MAX_PIPELINE];
    size_t count = 0, length = 0;
    for (; count < MAX_PIPELINE && 2 * count + 1 < size; count++) {
        const struct request *request = &requests[data[2 * count] % REQUEST_COUNT];
        length += write_request(text + length, sizeof text - length, request, data[2 * count + 1]);
        status[count] = request->status;
    }
    client_open(&client, pieces);
    client_send(&client, text, length);
    bool close = false;
    for (size_t i = 0; i < count && !close; i++)
        expect(&client, status[i], &close);
    pump(&client, 0);
    must(client.size == 0, "more than was asked for");
    client_close(&client, pieces % 2);
}

/* ------------------------------------------------------------------ any bytes */

static void raw(const uint8_t *data, size_t size, uint8_t mode, uint8_t pieces)
{
    static struct client client;
    struct response response;
    size_t lines = 1;
    client_open(&client, pieces);
    client_send(&client, (const char *)data, size);
    if (mode & 2) { /* away at once */
        client_close(&client, mode & 4);
        return;
    }
    shutdown(client.fd, SHUT_WR);
    int64_t until_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (!client.closed) {
        must(bt_clock_now_ns() < until_ns, "the connection does not end");
        pump(&client, BT_NS_PER_MS);
    }
    for (size_t i = 0; i < size; i++)
        lines += data[i] == '\n';
    while (take(&client, false, &response))
        must(lines-- > 0, "more responses than requests");
    client_close(&client, mode & 4);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t health[] = {0, 0};
    load();
    if (size >= 2 && data[0] % 2 == 0)
        pipeline(data + 2, size - 2, data[1]);
    else if (size >= 2)
        raw(data + 2, size - 2, data[0], data[1]);
    pipeline(health, 2, 5);
    int64_t until_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (service->live > 0 || rt_http_front_busy(front)) {
        must(bt_clock_now_ns() < until_ns, "a request is left behind");
        bt_loop_run_once(loop, bt_clock_now_ns() + BT_NS_PER_MS, NULL);
    }
    fake_reset(service);
    return 0;
}

/* ------------------------------------------------------------------ seeds */

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    must(capacity >= 8192, "no room for a seed");
    if (index >= 2 * REQUEST_COUNT + 2)
        return 0;
    ret_data[0] = index % 2 ? 1 : 0;
    ret_data[1] = (uint8_t)(4 * index);
    size_t first = index / 2, size = 2;
    if (index % 2 == 0) { /* a few of the table */
        for (size_t i = 0; i < 2 * (1 + index % 5); i++)
            ret_data[size++] = (uint8_t)(first + i);
        return size;
    }
    for (size_t i = 0; i < 3; i++)
        size += write_request((char *)ret_data + size, capacity - size,
                              &requests[(first + i) % REQUEST_COUNT], (uint8_t)(first + i));
    return size;
}
