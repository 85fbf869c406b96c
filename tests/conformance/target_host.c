#include "tests/conformance/target_host.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/process.h"

#define BLOB_MAX 4096

enum operation {
    OP_INFO,
    OP_CHECKSUM,
    OP_EXPECT,
    OP_OUTSIDE,
    OP_INSIDE,
    OP_FILL,
    OP_CUT,
    OP_CPU,
    OP_EARLY,
    OP_EARLY_BYTES,
};

struct request {
    enum operation operation;
    uint32_t tokens;
    uint64_t value; /* an incarnation or epoch */
    struct kvt_cut cut;
}; /* then uint32_t pages[bt_kv_pages_for(tokens)] */

struct info {
    uint64_t incarnation, pool_base;
    uint32_t pool_pages;
    size_t address_size, key_size;
    unsigned char address[BLOB_MAX], key[BLOB_MAX];
};

struct target_host {
    int fd;
    pid_t pid; /* 0: a thread */
    pthread_t thread;
    struct kvt_target_options options;
    uint64_t incarnation;
    int served_fd;
    struct info info;
};

_Noreturn void check_failed(const char *expression, const char *file, int line)
{
    fprintf(stderr, "%s:%d: not true: %s\n", file, line, expression);
    fflush(NULL);
    _exit(1);
}

static bool read_all(int fd, void *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t got = read(fd, (char *)bytes + at, size - at);
        if (got <= 0)
            return false;
        at += (size_t)got;
    }
    return true;
}

static void write_all(int fd, const void *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t put = write(fd, (const char *)bytes + at, size - at);
        CHECK(put > 0);
        at += (size_t)put;
    }
}

static struct kvt_target_event take_event(struct kvt_target *target)
{
    struct pollfd fd = {.fd = bt_queue_fd(kvt_target_events(target)), .events = POLLIN};
    struct kvt_target_event event;

    CHECK(poll(&fd, 1, 30000) == 1);
    CHECK(bt_queue_try_pop(kvt_target_events(target), &event));
    return event;
}

/* A round trip through the target's thread orders its stores and this thread's. */
static void synchronise(struct kvt_target *target)
{
    while (kvt_target_disconnect(target, UINT64_MAX) != BT_OK)
        poll(NULL, 0, 1);
    CHECK(take_event(target).kind == KVT_TARGET_DISCONNECTED);
}

static void fill(struct kvt_target *target, const struct kvt_target_options *options)
{
    synchronise(target);
    memset(kvt_target_pool(target), HOST_FILL,
           bt_kv_pool_bytes(&options->layout, options->pool_pages));
    synchronise(target);
}

/* Counts from the layout's definition: [layer][page][token][dim]. Writes may be landing meanwhile.
 */
__attribute__((no_sanitize("thread"))) static uint64_t
count_touched(const struct kvt_target *target, const struct kvt_target_options *options,
              const uint32_t *pages, uint32_t tokens, bool inside)
{
    const struct bt_kv_layout *layout = &options->layout;
    uint64_t token_bytes = bt_kv_token_bytes(layout), count = 0;
    const unsigned char *pool = kvt_target_pool(target);
    uint64_t token_count = (uint64_t)options->pool_pages * 64;
    bool *ours = calloc(token_count, sizeof(*ours));

    CHECK(ours != NULL);
    for (uint32_t t = 0; t < tokens; t++)
        ours[pages[t / 64] * 64u + t % 64] = true;
    for (uint64_t layer = 0; layer < layout->layer_count; layer++)
        for (uint64_t t = 0; t < token_count; t++)
            for (uint64_t b = 0; ours[t] == inside && b < token_bytes; b++)
                count += pool[(layer * token_count + t) * token_bytes + b] != HOST_FILL;
    free(ours);
    return count;
}

static void answer_info(int fd, const struct kvt_target *target,
                        const struct kvt_target_options *options, uint64_t incarnation)
{
    struct info info = {.incarnation = incarnation,
                        .pool_base = (uintptr_t)kvt_target_pool(target),
                        .pool_pages = options->pool_pages};
    const void *address, *key;

    kvt_target_address(target, &address, &info.address_size);
    kvt_target_key(target, &key, &info.key_size);
    CHECK(info.address_size <= BLOB_MAX && info.key_size <= BLOB_MAX);
    memcpy(info.address, address, info.address_size);
    memcpy(info.key, key, info.key_size);
    write_all(fd, &info, sizeof(info));
}

static _Thread_local bool last_was_early;
static _Thread_local uint64_t last_early_bytes;

static uint64_t cpu_ns(void)
{
    struct timespec spent;

    CHECK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent) == 0);
    return (uint64_t)spent.tv_sec * BT_NS_PER_S + (uint64_t)spent.tv_nsec;
}

static uint64_t answer(struct kvt_target *target, const struct kvt_target_options *options,
                       const struct request *request, const uint32_t *pages)
{
    struct kvt_target_event event;

    switch (request->operation) {
    case OP_CHECKSUM:
        CHECK(kvt_target_checksum(target, 3, request->value, pages, request->tokens) == BT_OK);
        event = take_event(target);
        CHECK(event.kind == KVT_TARGET_CHECKSUM && event.request == 3 &&
              event.epoch == request->value);
        last_was_early = event.early;
        last_early_bytes = event.early_bytes;
        return event.checksum;
    case OP_EARLY:
        return last_was_early;
    case OP_EARLY_BYTES:
        return last_early_bytes;
    case OP_CPU:
        return cpu_ns();
    case OP_EXPECT:
        kvt_target_expect(target, request->value, pages, request->tokens);
        return 0;
    case OP_OUTSIDE:
    case OP_INSIDE:
        return count_touched(target, options, pages, request->tokens,
                             request->operation == OP_INSIDE);
    case OP_FILL:
        fill(target, options);
        return 0;
    case OP_CUT:
        CHECK(kvt_target_cut(target, &request->cut) == BT_OK);
        event = take_event(target);
        CHECK(event.kind == KVT_TARGET_DISCONNECTED &&
              event.incarnation == request->cut.incarnation && event.link == request->cut.link);
        return 0;
    case OP_INFO:
        break;
    }
    check_failed("known operation", __FILE__, __LINE__);
}

void target_host_serve(int fd, const struct kvt_target_options *options, uint64_t incarnation)
{
    struct bt_error error = {0};
    struct kvt_target *target;
    struct request request;

    if (kvt_target_create(options, &error, &target) != BT_OK) {
        fprintf(stderr, "%s\n", error.text);
        close(fd);
        return;
    }
    fill(target, options);
    while (read_all(fd, &request, sizeof(request))) {
        size_t size = bt_kv_pages_for(request.tokens) * sizeof(uint32_t);
        uint32_t *pages = malloc(size + 1);
        uint64_t value;
        CHECK(pages != NULL && (size == 0 || read_all(fd, pages, size)));
        if (request.operation == OP_INFO) {
            answer_info(fd, target, options, incarnation);
        } else {
            value = answer(target, options, &request, pages);
            write_all(fd, &value, sizeof(value));
        }
        free(pages);
    }
    kvt_target_destroy(target);
    close(fd);
}

static void *serve_in_thread(void *arg)
{
    struct target_host *host = arg;

    target_host_serve(host->served_fd, &host->options, host->incarnation);
    return NULL;
}

struct target_host *target_host_start(const struct kvt_target_options *options, bool in_thread,
                                      uint64_t incarnation)
{
    struct target_host *host = calloc(1, sizeof(*host));
    int fds[2];

    CHECK(host != NULL && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    host->fd = fds[0];
    host->served_fd = fds[1];
    host->options = *options;
    host->incarnation = incarnation;
    if (in_thread) {
        CHECK(pthread_create(&host->thread, NULL, serve_in_thread, host) == 0);
        return host;
    }
    host->pid = fork();
    CHECK(host->pid >= 0);
    if (host->pid == 0) {
        CHECK(bt_process_die_with_parent() == BT_OK);
        close(fds[0]);
        target_host_serve(fds[1], options, incarnation);
        free(host);
        exit(0);
    }
    close(fds[1]);
    return host;
}

void target_host_kill(struct target_host *host)
{
    int status;

    CHECK(host->pid > 0);
    kill(host->pid, SIGKILL);
    CHECK(waitpid(host->pid, &status, 0) == host->pid);
    CHECK(WIFSIGNALED(status));
    close(host->fd);
    free(host);
}

void target_host_stop(struct target_host *host)
{
    int status;

    if (host == NULL)
        return;
    shutdown(host->fd, SHUT_RDWR);
    if (host->pid == 0) {
        CHECK(pthread_join(host->thread, NULL) == 0);
    } else {
        CHECK(waitpid(host->pid, &status, 0) == host->pid);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    close(host->fd);
    free(host);
}

static void ask(struct target_host *host, enum operation operation, const uint32_t *pages,
                uint32_t tokens, uint64_t value, void *ret_answer, size_t answer_size)
{
    struct request request = {.operation = operation, .tokens = tokens, .value = value};

    write_all(host->fd, &request, sizeof(request));
    if (tokens > 0)
        write_all(host->fd, pages, bt_kv_pages_for(tokens) * sizeof(*pages));
    CHECK(read_all(host->fd, ret_answer, answer_size));
}

void target_host_remote(struct target_host *host, struct kvt_remote *ret_remote)
{
    ask(host, OP_INFO, NULL, 0, 0, &host->info, sizeof(host->info));
    *ret_remote = (struct kvt_remote){.incarnation = host->info.incarnation,
                                      .address = host->info.address,
                                      .address_size = host->info.address_size,
                                      .key = host->info.key,
                                      .key_size = host->info.key_size,
                                      .pool_base = host->info.pool_base,
                                      .pool_pages = host->info.pool_pages};
}

static uint64_t ask_value(struct target_host *host, enum operation operation, const uint32_t *pages,
                          uint32_t tokens, uint64_t value)
{
    uint64_t result;

    ask(host, operation, pages, tokens, value, &result, sizeof(result));
    return result;
}

uint64_t target_host_checksum(struct target_host *host, const uint32_t *pages, uint32_t tokens)
{
    return ask_value(host, OP_CHECKSUM, pages, tokens, 4);
}

void target_host_expect(struct target_host *host, uint64_t epoch, const uint32_t *pages,
                        uint32_t tokens)
{
    ask_value(host, OP_EXPECT, pages, tokens, epoch);
}

uint64_t target_host_verify(struct target_host *host, uint64_t epoch, const uint32_t *pages,
                            uint32_t tokens)
{
    return ask_value(host, OP_CHECKSUM, pages, tokens, epoch);
}

bool target_host_was_early(struct target_host *host)
{
    return ask_value(host, OP_EARLY, NULL, 0, 0) != 0;
}

uint64_t target_host_early_bytes(struct target_host *host)
{
    return ask_value(host, OP_EARLY_BYTES, NULL, 0, 0);
}

uint64_t target_host_cpu_ns(struct target_host *host)
{
    return ask_value(host, OP_CPU, NULL, 0, 0);
}

pid_t target_host_pid(const struct target_host *host)
{
    return host->pid;
}

uint64_t target_host_touched_outside(struct target_host *host, const uint32_t *pages,
                                     uint32_t tokens)
{
    return ask_value(host, OP_OUTSIDE, pages, tokens, 0);
}

uint64_t target_host_touched_inside(struct target_host *host, const uint32_t *pages,
                                    uint32_t tokens)
{
    return ask_value(host, OP_INSIDE, pages, tokens, 0);
}

void target_host_fill(struct target_host *host)
{
    ask_value(host, OP_FILL, NULL, 0, 0);
}

void target_host_cut(struct target_host *host, const struct kvt_cut *cut)
{
    struct request request = {.operation = OP_CUT, .cut = *cut};
    uint64_t ended;

    write_all(host->fd, &request, sizeof(request));
    CHECK(read_all(host->fd, &ended, sizeof(ended)));
}

void target_host_disconnect(struct target_host *host, uint64_t incarnation)
{
    const struct kvt_cut all = {
        .incarnation = incarnation, .link = KVT_ANY_LINK, .lines = KVT_ALL_LINES};

    target_host_cut(host, &all);
}
