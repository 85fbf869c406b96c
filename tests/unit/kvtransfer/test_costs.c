/*
 * What a push costs beside its stores: allocations and system calls of our own code (what UCX and
 * the C library do by themselves goes past the linker's wraps), counted in the whole process from
 * before kvt_push_open to after kvt_push_close. Each page is a write of its own, and 1000 pages
 * must not cost more than 10: nothing is allocated, and no call is made, for a page
 * (kvtransfer/README.md, threads and life times).
 */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/process.h"
#include "kvtransfer/source.h"
#include "kvtransfer/target.h"

#define LAYERS     2
#define MANY       1000
#define FEW        10
#define POOL_PAGES (2 * MANY)
#define ROUNDS     10
#define BLOB_MAX   65536
#define SKIP       77
/* Who waits for whom is a matter of chance, and the pushing thread looks for other work after each
 * turn of 512 KiB, here 8 times: far from one a page. */
#define CALLS_BY_CHANCE 200

static const struct bt_kv_layout layout = {
    .layer_count = LAYERS, .kv_lora_rank = 8, .qk_rope_head_dim = 8, .dtype = BT_BF16};

/* ---- counting ---- */

static _Atomic uint64_t allocations, calls;

#define COUNT(counter, result, name, parameters, arguments)                                        \
    result __real_##name parameters;                                                               \
    result __wrap_##name parameters;                                                               \
    result __wrap_##name parameters                                                                \
    {                                                                                              \
        counter++;                                                                                 \
        return __real_##name arguments;                                                            \
    }

COUNT(allocations, void *, malloc, (size_t size), (size))
COUNT(allocations, void *, calloc, (size_t count, size_t size), (count, size))
COUNT(allocations, void *, realloc, (void *old, size_t size), (old, size))
COUNT(calls, ssize_t, read, (int fd, void *to, size_t size), (fd, to, size))
COUNT(calls, ssize_t, write, (int fd, const void *from, size_t size), (fd, from, size))
COUNT(calls, ssize_t, readv, (int fd, const struct iovec *to, int count), (fd, to, count))
COUNT(calls, ssize_t, send, (int fd, const void *from, size_t size, int flags),
      (fd, from, size, flags))
COUNT(calls, ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags),
      (fd, message, flags))
COUNT(calls, ssize_t, recv, (int fd, void *to, size_t size, int flags), (fd, to, size, flags))
COUNT(calls, int, poll, (struct pollfd * fds, nfds_t count, int timeout_ms),
      (fds, count, timeout_ms))
COUNT(calls, int, epoll_wait, (int fd, struct epoll_event *events, int count, int timeout_ms),
      (fd, events, count, timeout_ms))
COUNT(calls, int, epoll_ctl, (int fd, int what, int of, struct epoll_event *event),
      (fd, what, of, event))
COUNT(calls, int, sem_post, (void *semaphore), (semaphore))
COUNT(calls, int, sem_wait, (void *semaphore), (semaphore))
COUNT(calls, int, pthread_cond_signal, (pthread_cond_t * condition), (condition))
COUNT(calls, int, pthread_cond_broadcast, (pthread_cond_t * condition), (condition))
COUNT(calls, int, pthread_cond_wait, (pthread_cond_t * condition, pthread_mutex_t *mutex),
      (condition, mutex))
/* `syscall` has any number of parameters; a system call takes six at most. */
COUNT(calls, long, syscall, (long number, long a, long b, long c, long d, long e, long f),
      (number, a, b, c, d, e, f))

/* ---- two processes ---- */

struct offer {
    bool there;
    uint64_t pool_base;
    size_t address_size, key_size;
};

static void all(ssize_t done, size_t wanted)
{
    assert_int_equal(done, wanted);
}

static void read_all(int fd, void *bytes, size_t size)
{
    for (ssize_t count; size > 0; size -= (size_t)count, bytes = (char *)bytes + count) {
        count = __real_read(fd, bytes, size);
        assert_true(count > 0);
    }
}

/* Until the other end of `control` closes. */
static void run_target(int offers, int control)
{
    const struct kvt_target_options options = {
        .transport = "shm", .layout = layout, .pool_pages = POOL_PAGES, .max_jobs = 1};
    struct kvt_target *target = NULL;
    struct offer offer = {0};
    const void *address, *key;
    char nothing;

    if (bt_process_die_with_parent() == BT_OK &&
        kvt_target_create(&options, NULL, &target) == BT_OK) {
        offer = (struct offer){.there = true, .pool_base = (uintptr_t)kvt_target_pool(target)};
        kvt_target_address(target, &address, &offer.address_size);
        kvt_target_key(target, &key, &offer.key_size);
    }
    all(__real_write(offers, &offer, sizeof(offer)), sizeof(offer));
    if (offer.there) {
        all(__real_write(offers, address, offer.address_size), offer.address_size);
        all(__real_write(offers, key, offer.key_size), offer.key_size);
        while (__real_read(control, &nothing, 1) > 0)
            continue;
    }
    kvt_target_destroy(target);
    _exit(0);
}

static struct kvt_source *source;
static struct kvt_link *connected;

static void connect_to(const struct offer *offer, int offers)
{
    static char address[BLOB_MAX], key[BLOB_MAX];
    const struct kvt_source_options options = {.transport = "shm",
                                               .layout = layout,
                                               .pool_pages = POOL_PAGES,
                                               .incarnation = 2,
                                               .checksum = true,
                                               .max_pushes = 1};
    struct kvt_remote remote = {.incarnation = 1,
                                .pool_pages = POOL_PAGES,
                                .pool_base = offer->pool_base,
                                .address = address,
                                .address_size = offer->address_size,
                                .key = key,
                                .key_size = offer->key_size};

    assert_true(offer->address_size <= BLOB_MAX && offer->key_size <= BLOB_MAX);
    read_all(offers, address, offer->address_size);
    read_all(offers, key, offer->key_size);
    assert_int_equal(kvt_source_create(&options, NULL, &source), BT_OK);
    memset(kvt_source_pool(source), 0x5a, bt_kv_pool_bytes(&layout, POOL_PAGES));
    assert_int_equal(kvt_source_connect(source, &remote, NULL, &connected), BT_OK);
    while (kvt_link_state(connected) == KVT_LINK_CONNECTING)
        __real_poll(NULL, 0, 1);
    assert_int_equal(kvt_link_state(connected), KVT_LINK_READY);
}

/* ---- a push ---- */

struct cost {
    uint64_t allocations, calls;
};

/* Every other page, so that no two are one write. */
static struct cost push(uint32_t page_count, bool layerwise)
{
    static uint32_t pages[MANY];
    struct kvt_push_spec spec = {.request = 1,
                                 .epoch = 1,
                                 .link = connected,
                                 .source_pages = pages,
                                 .target_pages = pages,
                                 .prompt_tokens = page_count * BT_PAGE_TOKENS,
                                 .layerwise = layerwise};
    struct pollfd fd = {.fd = bt_queue_fd(kvt_source_events(source)), .events = POLLIN};
    struct cost before = {allocations, calls};
    struct kvt_push_event event;
    struct kvt_push *push;

    for (uint32_t i = 0; i < page_count; i++)
        pages[i] = 2 * i;
    assert_int_equal(kvt_push_open(source, &spec, NULL, &push), BT_OK);
    kvt_push_lease(push, bt_clock_now_ns() + 600 * BT_NS_PER_S);
    for (uint32_t layer = 0; layerwise && layer < LAYERS; layer++)
        kvt_push_ready(push, layer, spec.prompt_tokens);
    kvt_push_finish(push);
    assert_int_equal(__real_poll(&fd, 1, -1), 1);
    assert_true(bt_queue_try_pop(kvt_source_events(source), &event));
    assert_int_equal(event.status, BT_OK);
    assert_true(event.writes >= page_count * LAYERS); /* progress is told by some more */
    kvt_push_close(push);
    return (struct cost){allocations - before.allocations, calls - before.calls};
}

static void nothing_is_paid_by_the_page(void **state)
{
    (void)state;

    push(MANY, true); /* what is allocated once */
    for (int i = 0; i < ROUNDS; i++) {
        for (int layerwise = 0; layerwise < 2; layerwise++) {
            struct cost few = push(FEW, layerwise), many = push(MANY, layerwise);
            print_message("%s: %ju allocations and %ju calls for %d pages, %ju and %ju for %d\n",
                          layerwise ? "layer by layer" : "whole", (uintmax_t)few.allocations,
                          (uintmax_t)few.calls, FEW, (uintmax_t)many.allocations,
                          (uintmax_t)many.calls, MANY);
            assert_true(few.allocations > 0 && few.calls > 0); /* they are counted */
            assert_int_equal(many.allocations, few.allocations);
            assert_true(many.calls < few.calls + CALLS_BY_CHANCE);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_is_paid_by_the_page)};
    int offers[2], control[2], failed;
    struct offer offer;

    if (pipe(offers) != 0 || pipe(control) != 0)
        return 1;
    if (fork() == 0) { /* before UCX is touched */
        close(control[1]);
        run_target(offers[1], control[0]);
    }
    close(control[0]);
    close(offers[1]);
    if (__real_read(offers[0], &offer, sizeof(offer)) != sizeof(offer) || !offer.there) {
        print_message("skipped: no shared memory for a pool here\n");
        return SKIP;
    }
    connect_to(&offer, offers[0]);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    kvt_link_release(connected);
    kvt_source_destroy(source);
    close(control[1]);
    return failed;
}
