/* Clients that read streams: as cheap as they can be, since they share the machine. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/bench/router_bench.h"

#define READ_BYTES (256u << 10)
#define EVENTS     256
#define A_SOURCE   20000 /* connections of one source address: ports are few */
#define AT_ONCE    200   /* that have not begun: as many as the queues of the workers hold */

struct bench_clients {
    int epoll;
    uint32_t count, begun; /* that have the head of a response */
    bool plain;            /* no HTTP: nothing is asked for */
    int *fds;
    bool *has_begun;
    uint64_t bytes, events;
    char buffer[READ_BYTES];
};

static int connect_one(uint16_t port, uint32_t number)
{
    struct sockaddr_in from = {.sin_family = AF_INET};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + number / A_SOURCE);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0) {
        bench_die("socket of client %u: %m", number);
    }
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&from, sizeof from) != 0 ||
        connect(fd, (struct sockaddr *)&to, sizeof to) != 0) {
        bench_die("connection of client %u: %m", number);
    }
    return fd;
}

static void send_request(int fd, const char *path, const char *body)
{
    char head[256];
    int size = snprintf(head, sizeof head,
                        "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                        "Content-Length: %zu\r\n\r\n",
                        path, strlen(body));
    if (send(fd, head, (size_t)size, MSG_MORE) != size ||
        send(fd, body, strlen(body), 0) != (ssize_t)strlen(body)) {
        bench_die("a request: %m");
    }
}

static uint64_t count_marks(const char *text, size_t size)
{
    uint64_t marks = 0;
    for (size_t i = 0; i < size; i++) {
        marks += text[i] == BENCH_MARK;
    }
    return marks;
}

static uint64_t count_events(const char *text, size_t size)
{
    uint64_t events = 0;
    const char *end = text + size;
    while ((text = memmem(text, (size_t)(end - text), "data: ", 6))) {
        events++;
        text += 6;
    }
    return events;
}

static void read_one(struct bench_clients *clients, uint32_t number)
{
    ssize_t size = recv(clients->fds[number], clients->buffer, READ_BYTES, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (size <= 0) {
        bench_die("the stream of client %u ended: %s", number, size < 0 ? strerror(errno) : "");
    }
    if (!clients->has_begun[number]) {
        if (!clients->plain && memcmp(clients->buffer, "HTTP/1.1 200", 12) != 0) {
            bench_die("client %u got %.400s", number, clients->buffer);
        }
        clients->has_begun[number] = true;
        clients->begun++;
    }
    clients->bytes += (uint64_t)size;
    clients->events += count_events(clients->buffer, (size_t)size);
    atomic_fetch_add(&bench_shared->marks_read, count_marks(clients->buffer, (size_t)size));
}

/* Sleeps at most `ms`. */
static void read_round(struct bench_clients *clients, int ms)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(clients->epoll, events, EVENTS, ms);
    for (int i = 0; i < count; i++) {
        read_one(clients, events[i].data.u32);
    }
}

struct bench_clients *bench_clients_open(uint16_t port, uint32_t count, const char *path,
                                         const char *body)
{
    struct bench_clients *clients = calloc(1, sizeof *clients);
    if (!clients || !(clients->fds = calloc(count, sizeof *clients->fds)) ||
        !(clients->has_begun = calloc(count, sizeof *clients->has_begun))) {
        bench_die("no memory");
    }
    clients->count = count;
    clients->plain = path == NULL;
    clients->epoll = epoll_create1(EPOLL_CLOEXEC);
    for (uint32_t i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        clients->fds[i] = connect_one(port, i);
        if (path) {
            send_request(clients->fds[i], path, body);
        }
        epoll_ctl(clients->epoll, EPOLL_CTL_ADD, clients->fds[i], &event);
        while (path && i - clients->begun >= AT_ONCE) {
            read_round(clients, 10);
        }
    }
    return clients;
}

bool bench_clients_wait(struct bench_clients *clients, double seconds)
{
    double until = bench_now_s() + seconds;
    while (clients->begun < clients->count && bench_now_s() < until) {
        read_round(clients, 10);
    }
    return clients->begun == clients->count;
}

void bench_clients_read(struct bench_clients *clients, double seconds)
{
    double until = bench_now_s() + seconds;
    while (bench_now_s() < until) {
        read_round(clients, 1);
    }
}

uint64_t bench_clients_bytes(const struct bench_clients *clients)
{
    return clients->bytes;
}

uint64_t bench_clients_events(const struct bench_clients *clients)
{
    return clients->events;
}

void bench_clients_close(struct bench_clients *clients)
{
    for (uint32_t i = 0; i < clients->count; i++) {
        struct linger linger = {.l_onoff = 1};
        setsockopt(clients->fds[i], SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        close(clients->fds[i]);
    }
    close(clients->epoll);
    free(clients->fds);
    free(clients->has_begun);
    free(clients);
}
