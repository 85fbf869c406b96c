#include "common/messaging/loop.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <zmq.h>

#include "common/base/clock.h"
#include "common/messaging/arena.h"
#include "common/messaging/curve.h"
#include "common/messaging/dialer.h"
#include "common/messaging/refusal.h"

#define MAX_ZMQ_SOCKETS 8192
#define NOT_IN_ARRAY    SIZE_MAX

enum source_kind { SOURCE_SOCKET, SOURCE_FD, SOURCE_TIMER };

struct bt_loop_source {
    struct bt_loop *loop;
    enum source_kind kind;
    void *socket;
    int fd;
    int64_t when_ns;
    bt_loop_fn *fn;
    void *context;
    size_t index; /* in polled or heap */
    bool removed;
    struct bt_loop_source *previous; /* all that live, or (next alone) all removed this round */
    struct bt_loop_source *next;
};

struct source_array {
    struct bt_loop_source **at;
    size_t count;
    size_t capacity;
};

struct bt_loop {
    void *zmq;
    int stop_fd;
    atomic_bool stop;
    int signal_fd;                 /* -1: none */
    sigset_t signals, old_signals; /* that stop the loop; blocked before */
    struct bt_loop_source *all;
    struct bt_loop_source *removed; /* memory stays until the round is over */
    struct source_array polled;
    struct source_array heap; /* armed timers; room for all timers */
    size_t timer_count;
    zmq_pollitem_t *items; /* of the round: stop_fd, then one for each of `ready` */
    struct bt_loop_source **ready;
    size_t round_capacity; /* of ready; items has one more */
    bool in_round;
    bt_loop_fn *after;
    void *after_context;
    struct bt_security *security; /* NULL: plain */
    struct bt_refusals refusals;
    struct bt_arena arena;
    struct bt_dialers dialers;
};

/* ------------------------------------------------------------------ timer heap */

static void heap_place(struct bt_loop *loop, size_t index, struct bt_loop_source *timer)
{
    loop->heap.at[index] = timer;
    timer->index = index;
}

static void heap_up(struct bt_loop *loop, size_t index)
{
    struct bt_loop_source *timer = loop->heap.at[index];
    while (index > 0 && loop->heap.at[(index - 1) / 2]->when_ns > timer->when_ns) {
        heap_place(loop, index, loop->heap.at[(index - 1) / 2]);
        index = (index - 1) / 2;
    }
    heap_place(loop, index, timer);
}

static void heap_down(struct bt_loop *loop, size_t index)
{
    struct bt_loop_source *timer = loop->heap.at[index];
    for (;;) {
        size_t child = 2 * index + 1;
        if (child >= loop->heap.count) {
            break;
        }
        if (child + 1 < loop->heap.count &&
            loop->heap.at[child + 1]->when_ns < loop->heap.at[child]->when_ns) {
            child++;
        }
        if (loop->heap.at[child]->when_ns >= timer->when_ns) {
            break;
        }
        heap_place(loop, index, loop->heap.at[child]);
        index = child;
    }
    heap_place(loop, index, timer);
}

static void heap_remove(struct bt_loop *loop, struct bt_loop_source *timer)
{
    if (timer->index == NOT_IN_ARRAY) {
        return;
    }
    size_t index = timer->index;
    timer->index = NOT_IN_ARRAY;
    struct bt_loop_source *last = loop->heap.at[--loop->heap.count];
    if (last != timer) {
        heap_place(loop, index, last);
        heap_up(loop, index);
        heap_down(loop, last->index);
    }
}

void bt_loop_timer_set(struct bt_loop_source *timer, int64_t when_ns)
{
    BT_ASSERT(timer->kind == SOURCE_TIMER && !timer->removed);
    struct bt_loop *loop = timer->loop;
    heap_remove(loop, timer);
    timer->when_ns = when_ns;
    if (when_ns != BT_NEVER_NS) {
        heap_place(loop, loop->heap.count++, timer);
        heap_up(loop, timer->index);
    }
}

void bt_loop_timer_bring_forward(struct bt_loop_source *timer, int64_t when_ns)
{
    if (timer->index == NOT_IN_ARRAY || when_ns < timer->when_ns) {
        bt_loop_timer_set(timer, when_ns);
    }
}

/* ------------------------------------------------------------------ sources */

static bool array_reserve(struct source_array *array, size_t count)
{
    if (count <= array->capacity) {
        return true;
    }
    size_t capacity = count < 16 ? 16 : count * 2;
    void *grown = realloc(array->at, capacity * sizeof(struct bt_loop_source *));
    if (!grown) {
        return false;
    }
    array->at = grown;
    array->capacity = capacity;
    return true;
}

/* Room for one more in everything a round needs, so that rounds never allocate. What the round
 * under way has in there stays. */
static bool polled_reserve(struct bt_loop *loop)
{
    size_t count = loop->polled.count + 1;
    if (count > loop->round_capacity) {
        zmq_pollitem_t *items = realloc(loop->items, (2 * count + 1) * sizeof *items);
        if (!items) {
            return false;
        }
        loop->items = items;
        void *ready = realloc(loop->ready, 2 * count * sizeof(struct bt_loop_source *));
        if (!ready) {
            return false;
        }
        loop->ready = ready;
        loop->round_capacity = 2 * count;
    }
    return array_reserve(&loop->polled, count);
}

static struct bt_loop_source *source_create(struct bt_loop *loop, enum source_kind kind,
                                            bt_loop_fn *fn, void *context)
{
    struct bt_loop_source *source = calloc(1, sizeof *source);
    if (!source) {
        return NULL;
    }
    *source = (struct bt_loop_source){.loop = loop,
                                      .kind = kind,
                                      .fd = -1,
                                      .when_ns = BT_NEVER_NS,
                                      .fn = fn,
                                      .context = context,
                                      .index = NOT_IN_ARRAY,
                                      .next = loop->all};
    if (loop->all) {
        loop->all->previous = source;
    }
    loop->all = source;
    return source;
}

static struct bt_loop_source *polled_add(struct bt_loop *loop, enum source_kind kind, void *socket,
                                         int fd, bt_loop_fn *fn, void *context)
{
    if (!polled_reserve(loop)) {
        return NULL;
    }
    struct bt_loop_source *source = source_create(loop, kind, fn, context);
    if (source) {
        source->socket = socket;
        source->fd = fd;
        source->index = loop->polled.count;
        loop->polled.at[loop->polled.count++] = source;
    }
    return source;
}

struct bt_loop_source *bt_loop_add_socket(struct bt_loop *loop, void *zmq_socket, bt_loop_fn *fn,
                                          void *context)
{
    return polled_add(loop, SOURCE_SOCKET, zmq_socket, -1, fn, context);
}

struct bt_loop_source *bt_loop_add_fd(struct bt_loop *loop, int fd, bt_loop_fn *fn, void *context)
{
    return polled_add(loop, SOURCE_FD, NULL, fd, fn, context);
}

struct bt_loop_source *bt_loop_add_timer(struct bt_loop *loop, int64_t when_ns, bt_loop_fn *fn,
                                         void *context)
{
    if (!array_reserve(&loop->heap, loop->timer_count + 1)) {
        return NULL;
    }
    struct bt_loop_source *source = source_create(loop, SOURCE_TIMER, fn, context);
    if (source) {
        loop->timer_count++;
        bt_loop_timer_set(source, when_ns);
    }
    return source;
}

static void polled_remove(struct bt_loop *loop, struct bt_loop_source *source)
{
    struct bt_loop_source *last = loop->polled.at[--loop->polled.count];
    loop->polled.at[source->index] = last;
    last->index = source->index;
}

void bt_loop_remove(struct bt_loop_source *source)
{
    if (!source) {
        return;
    }
    BT_ASSERT(!source->removed);
    struct bt_loop *loop = source->loop;
    if (source->kind == SOURCE_TIMER) {
        heap_remove(loop, source);
        loop->timer_count--;
    } else {
        polled_remove(loop, source);
    }
    if (source->previous) {
        source->previous->next = source->next;
    } else {
        loop->all = source->next;
    }
    if (source->next) {
        source->next->previous = source->previous;
    }
    source->removed = true;
    if (!loop->in_round) {
        free(source);
        return;
    }
    source->next = loop->removed;
    loop->removed = source;
}

static void removed_free(struct bt_loop *loop)
{
    while (loop->removed) {
        struct bt_loop_source *source = loop->removed;
        loop->removed = source->next;
        free(source);
    }
}

/* ------------------------------------------------------------------ the loop */

struct bt_loop *bt_loop_create(struct bt_error *error)
{
    struct bt_loop *loop = calloc(1, sizeof *loop);
    if (!loop) {
        bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for an event loop");
        return NULL;
    }
    loop->signal_fd = -1;
    loop->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop->stop_fd < 0) {
        bt_error_set(error, BT_ERR_IO, "eventfd: %s", strerror(errno));
        goto err_loop;
    }
    loop->items = calloc(1, sizeof *loop->items);
    loop->zmq = zmq_ctx_new();
    if (!loop->items || !loop->zmq) {
        bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for an event loop");
        goto err_items;
    }
    zmq_ctx_set(loop->zmq, ZMQ_BLOCKY, 0); /* linger is 0 unless a socket sets its own */
    zmq_ctx_set(loop->zmq, ZMQ_IPV6, 1);
    zmq_ctx_set(loop->zmq, ZMQ_MAX_SOCKETS, MAX_ZMQ_SOCKETS);
    return loop;

err_items:
    if (loop->zmq) {
        zmq_ctx_term(loop->zmq);
    }
    free(loop->items);
    close(loop->stop_fd);
err_loop:
    free(loop);
    return NULL;
}

void bt_loop_destroy(struct bt_loop *loop)
{
    if (!loop) {
        return;
    }
    BT_ASSERT(!loop->in_round);
    bt_security_destroy(loop->security);
    while (loop->all) {
        bt_loop_remove(loop->all);
    }
    zmq_ctx_term(loop->zmq);
    if (loop->signal_fd >= 0) {
        /* One that came while the program was ending already must not kill it after that. */
        const struct timespec none = {0};
        while (sigtimedwait(&loop->signals, NULL, &none) > 0) {
        }
        close(loop->signal_fd);
        pthread_sigmask(SIG_SETMASK, &loop->old_signals, NULL);
    }
    close(loop->stop_fd);
    bt_arena_finish(&loop->arena);
    free(loop->polled.at);
    free(loop->heap.at);
    free(loop->items);
    free(loop->ready);
    free(loop);
}

struct bt_arena *bt_loop_arena(struct bt_loop *loop)
{
    return &loop->arena;
}

void *bt_loop_zmq(struct bt_loop *loop)
{
    return loop->zmq;
}

struct bt_security *bt_loop_security(const struct bt_loop *loop)
{
    return loop->security;
}

void bt_loop_set_security(struct bt_loop *loop, struct bt_security *security)
{
    loop->security = security;
}

bool bt_loop_has_no_sockets(const struct bt_loop *loop)
{
    for (size_t i = 0; i < loop->polled.count; i++) {
        if (loop->polled.at[i]->kind == SOURCE_SOCKET) {
            return false;
        }
    }
    return true;
}

struct bt_refusals *bt_loop_refusals(struct bt_loop *loop)
{
    return &loop->refusals;
}

struct bt_dialers *bt_loop_dialers(struct bt_loop *loop)
{
    return &loop->dialers;
}

void bt_loop_set_after(struct bt_loop *loop, bt_loop_fn *fn, void *context)
{
    loop->after = fn;
    loop->after_context = context;
}

void bt_loop_stop(struct bt_loop *loop)
{
    int saved_errno = errno;
    atomic_store(&loop->stop, true);
    uint64_t one = 1;
    ssize_t written = write(loop->stop_fd, &one, sizeof one);
    (void)written; /* EAGAIN: it is readable already */
    errno = saved_errno;
}

bool bt_loop_stopping(const struct bt_loop *loop)
{
    return atomic_load(&loop->stop);
}

static long poll_timeout_ms(const struct bt_loop *loop, int64_t until_ns)
{
    int64_t wake_ns = until_ns;
    if (loop->heap.count > 0 && loop->heap.at[0]->when_ns < wake_ns) {
        wake_ns = loop->heap.at[0]->when_ns;
    }
    if (bt_loop_stopping(loop)) {
        return 0;
    }
    if (wake_ns == BT_NEVER_NS) {
        return -1;
    }
    int64_t left_ns = wake_ns - bt_clock_now_ns();
    if (left_ns <= 0) {
        return 0;
    }
    int64_t left_ms = (left_ns - 1) / BT_NS_PER_MS + 1;
    return left_ms > INT_MAX ? INT_MAX : (long)left_ms;
}

/* Fills items and ready from the sources that live now; returns the count of sources. */
static size_t items_fill(struct bt_loop *loop)
{
    loop->items[0] = (zmq_pollitem_t){.fd = loop->stop_fd, .events = ZMQ_POLLIN};
    for (size_t i = 0; i < loop->polled.count; i++) {
        struct bt_loop_source *source = loop->polled.at[i];
        loop->ready[i] = source;
        loop->items[i + 1] =
            (zmq_pollitem_t){.socket = source->socket, .fd = source->fd, .events = ZMQ_POLLIN};
    }
    return loop->polled.count;
}

static void stop_fd_drain(struct bt_loop *loop)
{
    uint64_t count;
    ssize_t got = read(loop->stop_fd, &count, sizeof count);
    (void)got;
}

/* A timer that its own callback sets to the past waits for the next round: sockets get a turn. */
static void timers_run(struct bt_loop *loop)
{
    int64_t now_ns = bt_clock_now_ns();
    for (size_t budget = loop->heap.count; budget > 0 && loop->heap.count > 0; budget--) {
        struct bt_loop_source *timer = loop->heap.at[0];
        if (timer->when_ns > now_ns) {
            break;
        }
        heap_remove(loop, timer);
        timer->fn(timer->context);
    }
}

static void ready_run(struct bt_loop *loop, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct bt_loop_source *source = loop->ready[i];
        if (loop->items[i + 1].revents && !source->removed) {
            source->fn(source->context);
        }
    }
}

static void after_run(struct bt_loop *loop)
{
    if (loop->after) {
        loop->after(loop->after_context);
    }
}

enum bt_status bt_loop_run_once(struct bt_loop *loop, int64_t until_ns, struct bt_error *error)
{
    BT_ASSERT(!loop->in_round);
    size_t count = items_fill(loop);
    if (zmq_poll(loop->items, (int)count + 1, poll_timeout_ms(loop, until_ns)) < 0) {
        if (errno != EINTR) {
            return bt_error_set(error, BT_ERR_INTERNAL, "zmq_poll: %s", zmq_strerror(errno));
        }
        count = 0;
        loop->items[0].revents = 0;
    }
    if (loop->items[0].revents) {
        stop_fd_drain(loop);
    }
    loop->in_round = true;
    timers_run(loop);
    ready_run(loop, count);
    after_run(loop);
    loop->in_round = false;
    removed_free(loop);
    return BT_OK;
}

enum bt_status bt_loop_run(struct bt_loop *loop, struct bt_error *error)
{
    after_run(loop);
    enum bt_status status = BT_OK;
    while (status == BT_OK && !bt_loop_stopping(loop)) {
        status = bt_loop_run_once(loop, BT_NEVER_NS, error);
    }
    atomic_store(&loop->stop, false);
    return status;
}

/* ------------------------------------------------------------------ signals */

static void on_signal(void *context)
{
    struct bt_loop *loop = context;
    struct signalfd_siginfo info;
    if (read(loop->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        bt_loop_stop(loop);
    }
}

enum bt_status bt_loop_stop_on_signals(struct bt_loop *loop, struct bt_error *error)
{
    BT_ASSERT(loop->signal_fd < 0);
    sigemptyset(&loop->signals);
    sigaddset(&loop->signals, SIGTERM);
    sigaddset(&loop->signals, SIGINT);
    int fd = signalfd(-1, &loop->signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0) {
        return bt_error_set(error, BT_ERR_IO, "signalfd: %s", strerror(errno));
    }
    if (!bt_loop_add_fd(loop, fd, on_signal, loop)) {
        close(fd);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a loop source");
    }
    pthread_sigmask(SIG_BLOCK, &loop->signals, &loop->old_signals);
    signal(SIGPIPE, SIG_IGN);
    loop->signal_fd = fd;
    return BT_OK;
}
