/*
 * Requests with long prompts: CPU seconds of the router for each, by thread, times the rate of the
 * aim. They come slowly enough for this machine; what one costs does not depend on the rate.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/random.h"
#include "tests/bench/router_bench.h"

#define PROMPT_TOKENS 100000
#define RATE          99.0
#define AIM_CORES     1.0
#define BODY_BYTES    (2u << 20)
#define TURN_TOKENS   1000 /* that a turn of a conversation adds */
#define CONVERSATIONS 4

enum shape { AS_IDS, AS_TEXT, AS_TURNS };

static char *body; /* [BODY_BYTES] */

static size_t put_words(size_t at, uint32_t count, uint64_t seed)
{
    static const char *const words[] = {" with", " said", " code", " near", " some",
                                        " gave", " What", " time", " from", " that"};
    for (uint32_t i = 0; i < count; i++) {
        const char *word = words[bt_random_u64(seed, i, 0) % 10];
        memcpy(body + at, word, 5);
        at += 5;
    }
    return at;
}

static size_t put_ids(size_t at, uint32_t count, uint64_t seed)
{
    for (uint32_t i = 0; i < count; i++) {
        at += (size_t)sprintf(body + at, i ? ",%u" : "%u",
                              300 + (uint32_t)(bt_random_u64(seed, i, 0) % 1700));
    }
    return at;
}

/* Prompt `number`: new from its first token on, or the next turn of a conversation. */
static size_t make_body(enum shape shape, uint32_t number)
{
    size_t at = (size_t)sprintf(body, "{\"max_tokens\":2,\"prompt\":");
    if (shape == AS_IDS) {
        body[at++] = '[';
        at = put_ids(at, PROMPT_TOKENS, 1000 + number);
        body[at++] = ']';
    } else {
        uint32_t turns = shape == AS_TURNS ? number / CONVERSATIONS : 0;
        uint64_t seed = shape == AS_TURNS ? number % CONVERSATIONS : 1000 + number;
        body[at++] = '"';
        at = put_words(at, PROMPT_TOKENS - 20 * TURN_TOKENS, seed);
        for (uint32_t i = 0; i < (shape == AS_TURNS ? turns % 20 : 20); i++) {
            at = put_words(at, TURN_TOKENS, seed * 100 + i);
        }
        body[at++] = '"';
    }
    return at + (size_t)sprintf(body + at, "}");
}

static int dial(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        bench_die("a client with a long prompt: %m");
    }
    return fd;
}

static void ask(int fd, size_t size)
{
    char head[256], answer[4096];
    int head_size = snprintf(head, sizeof head,
                             "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                             "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                             size);
    send(fd, head, (size_t)head_size, MSG_MORE);
    for (size_t sent = 0; sent < size;) {
        ssize_t some = send(fd, body + sent, size - sent, 0);
        if (some <= 0) {
            bench_die("a long prompt: %m");
        }
        sent += (size_t)some;
    }
    ssize_t got = recv(fd, answer, sizeof answer - 1, 0);
    if (got < 12 || memcmp(answer, "HTTP/1.1 200", 12) != 0) {
        answer[got > 0 ? got : 0] = '\0';
        bench_die("a long prompt got %.400s", answer);
    }
}

static double measure(const struct bench_router *router, enum shape shape, const char *name,
                      double seconds)
{
    struct bench_cpu before;
    int fd = dial(router->port);
    uint32_t warm = shape == AS_TURNS ? CONVERSATIONS : 2, count = 0;
    for (uint32_t i = 0; i < warm; i++) {
        ask(fd, make_body(shape, i));
    }
    bench_cpu_read(router->pid, &before);
    for (double begin = bench_now_s(); bench_now_s() - begin < seconds; count++) {
        ask(fd, make_body(shape, warm + count));
    }
    struct bench_cpu cpu = bench_cpu_since(router->pid, &before);
    close(fd);
    double loop = cpu.loop / count * RATE, io = cpu.io / count * RATE;
    double tokenizer = cpu.tokenizer / count * RATE;
    fprintf(stderr,
            "prompts of %u tokens as %s, %u of them: at %.0f a second %.2f cores in the loop, %.2f "
            "in ZeroMQ's thread, %.2f to tokenize\n",
            PROMPT_TOKENS, name, count, RATE, loop, io, tokenizer);
    return shape == AS_IDS ? loop + io + tokenizer : loop + io;
}

void bench_prompts(const struct bench_options *options)
{
    struct bench_router router;
    memset(bench_shared, 0, sizeof *bench_shared);
    body = malloc(BODY_BYTES);
    bench_router_start(options, NULL, &router);
    struct bench_workers setup = {router.rpc, 2};
    pid_t workers = bench_fork();
    if (workers == 0) {
        bench_workers_run(&setup);
    }
    bench_wait_registered(setup.decode_workers + 1);
    atomic_store(&bench_shared->step_ns, 1000000);
    atomic_store(&bench_shared->window, UINT64_MAX / 2);
    double ids = measure(&router, AS_IDS, "ids", options->seconds);
    double text = measure(&router, AS_TEXT, "text", options->seconds);
    double turns = measure(&router, AS_TURNS, "turns of conversations", options->seconds);
    bench_figure("cores_at_99rps_100k", text, "cores", AIM_CORES, AIM_CORES / text);
    bench_figure("cores_at_99rps_100k_ids", ids, "cores", AIM_CORES, AIM_CORES / ids);
    bench_figure("cores_at_99rps_100k_turns", turns, "cores", AIM_CORES, AIM_CORES / turns);
    bench_kill(workers);
    bench_kill(router.pid);
    free(body);
}
