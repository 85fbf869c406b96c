#include "tests/unit/router/http_client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"

#define PATIENCE_NS (60 * BT_NS_PER_S)
#define ROUND_NS    (BT_NS_PER_MS)

void http_client_open(struct http_client *client, struct bt_loop *loop, uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    *client = (struct http_client){.loop = loop};
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(client->fd >= 0);
    assert_int_equal(connect(client->fd, (struct sockaddr *)&address, sizeof address), 0);
    fcntl(client->fd, F_SETFL, O_NONBLOCK);
}

void http_client_close(struct http_client *client)
{
    if (client->fd >= 0)
        close(client->fd);
    free(client->data);
    *client = (struct http_client){.fd = -1};
}

static void receive(struct http_client *client)
{
    while (!client->closed) {
        if (client->capacity - client->size < 65536) {
            client->capacity = client->capacity * 2 + 65536;
            client->data = realloc(client->data, client->capacity + 1);
            assert_non_null(client->data);
        }
        ssize_t got = recv(client->fd, client->data + client->size, client->capacity - client->size,
                           MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (got <= 0) {
            client->closed = true;
            return;
        }
        client->size += (size_t)got;
        client->data[client->size] = '\0';
    }
}

static void run_round(struct http_client *client)
{
    struct bt_error error = {0};
    if (bt_loop_run_once(client->loop, bt_clock_now_ns() + ROUND_NS, &error) < BT_OK)
        fail_msg("%s", error.text);
}

void http_client_pump(struct http_client *client)
{
    run_round(client);
    receive(client);
}

void http_client_send(struct http_client *client, const char *data, size_t size)
{
    int64_t until = bt_clock_now_ns() + PATIENCE_NS;
    while (size > 0) {
        ssize_t sent = send(client->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN)
            return; /* the server closed: its response tells */
        if (sent > 0) {
            data += sent;
            size -= (size_t)sent;
        }
        if (size > 0)
            run_round(client);
        assert_true(bt_clock_now_ns() < until);
    }
}

void http_client_request(struct http_client *client, const char *method, const char *path,
                         const char *extra, const char *body, size_t size)
{
    char line[512], end[64];
    int length = snprintf(line, sizeof line, "%s %s HTTP/1.1\r\nHost: test\r\n", method, path);
    assert_true(length < (int)sizeof line);
    http_client_send(client, line, (size_t)length);
    http_client_send(client, extra, strlen(extra));
    length = body != NULL ? snprintf(end, sizeof end, "Content-Length: %zu\r\n\r\n", size)
                          : snprintf(end, sizeof end, "\r\n");
    http_client_send(client, end, (size_t)length);
    if (body != NULL)
        http_client_send(client, body, size);
}

/* ------------------------------------------------------------------ responses */

static const char *find_header(const char *head, const char *name, size_t *ret_size)
{
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line != NULL; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, length) != 0 || line[length] != ':')
            continue;
        const char *value = line + length + 1;
        value += strspn(value, " ");
        *ret_size = (size_t)(strstr(value, "\r\n") - value);
        return value;
    }
    return NULL;
}

const char *http_response_header(const struct http_response *response, const char *name)
{
    static char copy[512];
    size_t size;
    const char *value = find_header(response->head, name, &size);
    if (value == NULL)
        return NULL;
    snprintf(copy, sizeof copy, "%.*s", (int)size, value);
    return copy;
}

/* Bytes that `data` has of a chunked body, 0 when the end is missing; joins what is there. */
static size_t join_chunks(const char *data, size_t size, struct http_response *response)
{
    size_t at = 0;
    response->body_size = 0;
    for (;;) {
        const char *end = memmem(data + at, size - at, "\r\n", 2);
        if (end == NULL)
            return 0;
        size_t chunk = strtoul(data + at, NULL, 16);
        at = (size_t)(end - data) + 2;
        if (size - at < chunk + 2)
            return 0;
        memcpy(response->body + response->body_size, data + at, chunk);
        response->body_size += chunk;
        at += chunk + 2;
        if (chunk == 0)
            return at;
    }
}

/* True when `client` holds a whole response, or all there will be. */
static bool parse(struct http_client *client, bool no_body, struct http_response *response)
{
    const char *end = client->size > 0 ? memmem(client->data, client->size, "\r\n\r\n", 4) : NULL;
    if (end == NULL)
        return client->closed;
    size_t head = (size_t)(end - client->data) + 4, used = 0, length = 0;
    response->head = strndup(client->data, head);
    response->status = atoi(client->data + strlen("HTTP/1.1 "));
    response->body = calloc(1, client->size - head + 1);
    const char *data = client->data + head;
    const char *announced = find_header(response->head, "Content-Length", &length);
    if (no_body || response->status == 100) {
        used = head;
    } else if (announced != NULL) {
        size_t size = strtoul(announced, NULL, 10);
        if (client->size - head >= size) {
            memcpy(response->body, data, size);
            response->body_size = size;
            used = head + size;
        }
    } else {
        size_t chunks = join_chunks(data, client->size - head, response);
        used = chunks > 0 ? head + chunks : 0;
    }
    response->body[response->body_size] = '\0';
    if (used == 0 && !client->closed) {
        http_response_finish(response);
        return false;
    }
    response->complete = used > 0;
    if (used > 0) {
        memmove(client->data, client->data + used, client->size - used);
        client->size -= used;
    }
    return true;
}

void http_client_response(struct http_client *client, bool no_body,
                          struct http_response *ret_response)
{
    int64_t until = bt_clock_now_ns() + PATIENCE_NS;
    *ret_response = (struct http_response){0};
    receive(client);
    while (!parse(client, no_body, ret_response)) {
        http_client_pump(client);
        if (bt_clock_now_ns() > until)
            fail_msg("no response within the time; so far: %.*s",
                     (int)(client->size < 600 ? client->size : 600),
                     client->size > 0 ? client->data : "");
    }
}

void http_response_finish(struct http_response *response)
{
    free(response->head);
    free(response->body);
    *response = (struct http_response){0};
}

json_t *http_response_json(const struct http_response *response)
{
    json_error_t error;
    json_t *json = json_loadb(response->body, response->body_size, JSON_REJECT_DUPLICATES, &error);
    if (json == NULL)
        fail_msg("no JSON: %s: %s", error.text, response->body);
    return json;
}

json_t *http_response_events(const struct http_response *response)
{
    json_t *events = json_array();
    json_error_t error;
    const char *at = response->body;
    while (*at != '\0') {
        const char *end = strstr(at, "\n\n");
        assert_non_null(end);
        assert_int_equal(strncmp(at, "data: ", 6), 0);
        at += 6;
        size_t size = strcspn(at, "\n");
        const char *id = at + size < end ? at + size + 1 : NULL;
        if (id != NULL) {
            assert_int_equal(strncmp(id, "id: ", 4), 0);
            id += 4;
        }
        json_t *event = size == 6 && memcmp(at, "[DONE]", 6) == 0
                            ? json_string("[DONE]")
                            : json_loadb(at, size, JSON_REJECT_DUPLICATES, &error);
        if (event == NULL)
            fail_msg("no JSON: %s: %.*s", error.text, (int)size, at);
        if (id != NULL)
            json_object_set_new(event, "sse_id", json_stringn(id, strcspn(id, "\n")));
        json_array_append_new(events, event);
        at = end + 2;
    }
    return events;
}
