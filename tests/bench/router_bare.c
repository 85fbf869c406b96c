/* What the machine can do: messages from a ZeroMQ socket, bytes to as many TCP sockets, no more. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include "common/base/clock.h"
#include "proto/worker.pb-c.h"
#include "tests/bench/router_bench.h"

#define MESSAGES_A_ROUND 64 /* as the router takes */
#define QUEUE_MESSAGES   1000
#define MAX_BLOCK        (256u << 10)

struct stream {
    int fd;
    uint32_t sent, pending; /* tokens */
};

static uint32_t stream_count, a_rank;
static struct stream *streams;
static size_t head_bytes;
static char *block; /* head, then text from any token on */

static void write_stream(struct stream *stream)
{
    static const char text[] = BENCH_TEXT;
    size_t size = head_bytes;
    while (stream->pending > 0 && size + sizeof text < MAX_BLOCK) {
        static const size_t begins[BENCH_TOKEN_KINDS + 1] = {0, 5, 10, 15, 16};
        uint32_t kind = stream->sent % BENCH_TOKEN_KINDS;
        size_t bytes = begins[kind + 1] - begins[kind];
        memcpy(block + size, text + begins[kind], bytes);
        size += bytes;
        stream->sent++;
        stream->pending--;
    }
    if (send(stream->fd, block, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size &&
        errno != EPIPE && errno != ECONNRESET) {
        bench_die("the bare relay can't write: %m");
    }
}

/* The rank is in the message's first part; the streams of it are known. */
static bool take_message(void *socket, uint32_t a_write)
{
    uint32_t rank[2];
    if (zmq_recv(socket, rank, sizeof rank, ZMQ_DONTWAIT) != (int)sizeof rank) {
        return false;
    }
    zmq_msg_t payload;
    zmq_msg_init(&payload);
    zmq_msg_recv(&payload, socket, 0);
    zmq_msg_close(&payload);
    for (uint32_t i = rank[0] * a_rank; i < rank[0] * a_rank + rank[1]; i++) {
        if (++streams[i].pending >= a_write) {
            write_stream(&streams[i]);
        }
    }
    return true;
}

_Noreturn static void relay(void *socket, uint32_t a_write)
{
    for (;;) {
        zmq_pollitem_t item = {.socket = socket, .events = ZMQ_POLLIN};
        zmq_poll(&item, 1, -1);
        for (int i = 0; i < MESSAGES_A_ROUND && take_message(socket, a_write); i++) {
        }
    }
}

static int listen_any(uint16_t *ret_port)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(fd, (struct sockaddr *)&address, size) != 0 || listen(fd, 1024) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) != 0) {
        bench_die("the bare relay can't listen: %m");
    }
    *ret_port = ntohs(address.sin_port);
    return fd;
}

pid_t bench_bare_start(const char *endpoint, uint32_t count, uint32_t ranks, size_t head,
                       uint32_t a_write, uint16_t *ret_port)
{
    int listener = listen_any(ret_port);
    pid_t pid = bench_fork_router();
    if (pid != 0) {
        close(listener);
        return pid;
    }
    stream_count = count;
    a_rank = (count + ranks - 1) / ranks;
    head_bytes = head;
    streams = calloc(count, sizeof *streams);
    block = malloc(MAX_BLOCK);
    memset(block, 'x', MAX_BLOCK);
    memcpy(block, "data: ", head < 6 ? head : 6);
    int queue = QUEUE_MESSAGES;
    void *socket = zmq_socket(zmq_ctx_new(), ZMQ_DEALER);
    zmq_setsockopt(socket, ZMQ_RCVHWM, &queue, sizeof queue);
    if (zmq_bind(socket, endpoint) != 0) {
        bench_die("the bare relay: %s", zmq_strerror(errno));
    }
    for (uint32_t i = 0; i < count; i++) {
        streams[i].fd = accept(listener, NULL, NULL);
    }
    relay(socket, a_write);
}

/* ---- the other end */

static size_t pack_step(uint32_t first, uint32_t count, uint32_t index, uint8_t *ret_bytes)
{
    static Baton__V1__Token tokens[512], *token_at[512];
    static Baton__V1__SequenceStep steps[512], *step_at[512];
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    Baton__V1__StepEvent event = BATON__V1__STEP_EVENT__INIT;
    load.pages_total = load.pages_free = 1u << 24;
    for (uint32_t i = 0; i < count; i++) {
        baton__v1__token__init(&tokens[i]);
        baton__v1__sequence_step__init(&steps[i]);
        token_at[i] = &tokens[i];
        step_at[i] = &steps[i];
        tokens[i].index = index;
        tokens[i].token = bench_tokens[index % BENCH_TOKEN_KINDS];
        steps[i].request_id = steps[i].epoch = UINT64_MAX - first - i;
        steps[i].n_tokens = 1;
        steps[i].tokens = &token_at[i];
    }
    event.n_sequences = count;
    event.sequences = step_at;
    event.load = &load;
    return baton__v1__step_event__pack(&event, ret_bytes);
}

static bool may_send(void)
{
    uint64_t read = atomic_load(&bench_shared->marks_read) * BENCH_TOKEN_KINDS;
    return atomic_load(&bench_shared->tokens_sent) < read + atomic_load(&bench_shared->window);
}

void bench_bare_send(const char *endpoint, uint32_t count, uint32_t ranks)
{
    static uint8_t bytes[1 << 16];
    uint32_t each = (count + ranks - 1) / ranks;
    void *socket = zmq_socket(zmq_ctx_new(), ZMQ_DEALER);
    int queue = QUEUE_MESSAGES;
    zmq_setsockopt(socket, ZMQ_SNDHWM, &queue, sizeof queue);
    zmq_connect(socket, endpoint);
    int64_t at_ns = bt_clock_now_ns();
    for (uint32_t index = 0;; index++) {
        int64_t step_ns = atomic_load(&bench_shared->step_ns);
        for (uint32_t rank = 0; rank < ranks; rank++) {
            uint32_t part[2] = {rank, each};
            if (rank * each + each > count) {
                part[1] = count - rank * each;
            }
            at_ns += step_ns / ranks; /* ranks step one after the other */
            while (!may_send() || (step_ns > 0 && bt_clock_now_ns() < at_ns)) {
                usleep(50);
            }
            size_t size = pack_step(rank * each, part[1], index, bytes);
            zmq_send(socket, part, sizeof part, ZMQ_SNDMORE);
            zmq_send(socket, bytes, size, 0);
            atomic_fetch_add(&bench_shared->tokens_sent, part[1]);
        }
    }
}
