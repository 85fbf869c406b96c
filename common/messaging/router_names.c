#include "common/messaging/router_names.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"

#define RETRY_NS BT_NS_PER_S

/* Shared by loop and thread; the last one frees it, as neither may wait for the other. */
struct question {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned users;
    bool over;
    bool answered;
    struct bt_router_answer answer;
    int event_fd;
    int64_t interval_ns;
    char host[BT_ROUTER_HOST_NAME_SIZE];
};

struct bt_router_names {
    struct question *question;
    struct bt_loop_source *source;
    bt_router_names_fn *on_answer;
    void *context;
};

static void question_release(struct question *question)
{
    pthread_mutex_lock(&question->lock);
    bool last = --question->users == 0;
    pthread_mutex_unlock(&question->lock);
    if (last) {
        pthread_mutex_destroy(&question->lock);
        pthread_cond_destroy(&question->changed);
        close(question->event_fd);
        free(question);
    }
}

/* ------------------------------------------------------------------ the thread */

static bool is_there(const struct bt_router_answer *answer, const char *address)
{
    for (size_t i = 0; i < answer->count; i++) {
        if (strcmp(answer->addresses[i], address) == 0) {
            return true;
        }
    }
    return false;
}

static void add(struct bt_router_answer *answer, const struct addrinfo *found)
{
    char text[NI_MAXHOST], address[BT_ROUTER_ADDRESS_SIZE];
    if (answer->count == BT_ROUTER_ADDRESSES_MAX ||
        getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, NULL, 0,
                    NI_NUMERICHOST) != 0) {
        return;
    }
    bool six = found->ai_family == AF_INET6;
    int length = snprintf(address, sizeof address, "%s%s%s", six ? "[" : "", text, six ? "]" : "");
    if (length > 0 && (size_t)length < sizeof address && !is_there(answer, address)) {
        memcpy(answer->addresses[answer->count++], address, (size_t)length + 1);
    }
}

static void ask(const char *host, struct bt_router_answer *ret_answer)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    static const int families[] = {AF_INET, AF_INET6};
    struct addrinfo *found = NULL;
    ret_answer->count = 0;
    ret_answer->problem[0] = '\0';
    int code = getaddrinfo(host, NULL, &hints, &found);
    if (code != 0) {
        snprintf(ret_answer->problem, sizeof ret_answer->problem, "%s: %s", host,
                 code == EAI_SYSTEM ? strerror(errno) : gai_strerror(code));
        return;
    }
    for (size_t f = 0; f < 2 && ret_answer->count == 0; f++) {
        for (const struct addrinfo *at = found; at; at = at->ai_next) {
            if (at->ai_family == families[f]) {
                add(ret_answer, at);
            }
        }
    }
    freeaddrinfo(found);
    if (ret_answer->count == 0) {
        snprintf(ret_answer->problem, sizeof ret_answer->problem, "%s: has no address", host);
    }
}

/* With the lock held. */
static void wait_until(struct question *question, int64_t until_ns)
{
    const struct timespec until = {until_ns / BT_NS_PER_S, until_ns % BT_NS_PER_S};
    while (!question->over &&
           pthread_cond_timedwait(&question->changed, &question->lock, &until) == 0) {
    }
}

static void *keep_asking(void *context)
{
    struct question *question = context;
    struct bt_router_answer answer;
    pthread_mutex_lock(&question->lock);
    while (!question->over) {
        pthread_mutex_unlock(&question->lock);
        ask(question->host, &answer);
        pthread_mutex_lock(&question->lock);
        question->answer = answer;
        question->answered = true;
        eventfd_write(question->event_fd, 1);
        int64_t wait_ns = question->interval_ns;
        if (answer.count == 0 && wait_ns > RETRY_NS) {
            wait_ns = RETRY_NS;
        }
        wait_until(question, bt_clock_now_ns() + wait_ns);
    }
    pthread_mutex_unlock(&question->lock);
    question_release(question);
    return NULL;
}

/* Signals are for the loop's thread. */
static int start_thread(struct question *question)
{
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&thread, NULL, keep_asking, question);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code == 0) {
        pthread_detach(thread);
    }
    return code;
}

/* ------------------------------------------------------------------ the loop */

static void on_event(void *context)
{
    struct bt_router_names *names = context;
    struct question *question = names->question;
    struct bt_router_answer answer = {.count = 0};
    eventfd_t count;
    eventfd_read(question->event_fd, &count);
    pthread_mutex_lock(&question->lock);
    bool answered = question->answered;
    question->answered = false;
    if (answered) {
        answer = question->answer;
    }
    pthread_mutex_unlock(&question->lock);
    if (answered) {
        names->on_answer(names->context, &answer);
    }
}

static struct question *question_create(const char *host, int64_t interval_ns)
{
    struct question *question = calloc(1, sizeof *question);
    if (!question) {
        return NULL;
    }
    question->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (question->event_fd < 0) {
        free(question);
        return NULL;
    }
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&question->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&question->lock, NULL);
    question->users = 1;
    question->interval_ns = interval_ns;
    snprintf(question->host, sizeof question->host, "%s", host);
    return question;
}

enum bt_status bt_router_names_create(struct bt_loop *loop, const char *host, int64_t interval_ns,
                                      bt_router_names_fn *on_answer, void *context,
                                      struct bt_error *error, struct bt_router_names **ret_names)
{
    struct bt_router_names *names = calloc(1, sizeof *names);
    if (!names) {
        goto err_memory;
    }
    *names = (struct bt_router_names){.on_answer = on_answer, .context = context};
    names->question = question_create(host, interval_ns);
    if (!names->question) {
        goto err_names;
    }
    names->source = bt_loop_add_fd(loop, names->question->event_fd, on_event, names);
    if (!names->source) {
        goto err_question;
    }
    names->question->users = 2;
    int code = start_thread(names->question);
    if (code != 0) {
        names->question->users = 1;
        bt_router_names_destroy(names);
        return bt_error_set(error, BT_ERR_INTERNAL, "a thread to resolve %s: %s", host,
                            strerror(code));
    }
    *ret_names = names;
    return BT_OK;

err_question:
    question_release(names->question);
err_names:
    free(names);
err_memory:
    return bt_error_set(error, BT_ERR_NO_MEMORY, "router names: no memory");
}

void bt_router_names_destroy(struct bt_router_names *names)
{
    if (!names) {
        return;
    }
    bt_loop_remove(names->source);
    pthread_mutex_lock(&names->question->lock);
    names->question->over = true;
    pthread_cond_signal(&names->question->changed);
    pthread_mutex_unlock(&names->question->lock);
    question_release(names->question);
    free(names);
}
