#include "router/events.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/text/utf8.h"
#include "proto/router.pb-c.h"
#include "router/core.h"

#define TRY_AGAIN_NS (50 * BT_NS_PER_MS)

struct event {
    int64_t unix_ns;
    const char *kind;
    char worker_id[RT_WORKER_ID_SIZE];
    char text[RT_EVENT_TEXT_SIZE];
};

struct follower {
    struct rt_events *events;
    struct bt_rpc_call *call;
    struct follower *next;
    uint64_t sent; /* the number of the last that went out, or was missed */
    bool stays;
};

struct rt_events {
    struct bt_loop_source *timer;
    uint64_t last; /* number */
    struct event ring[RT_EVENTS_KEPT];
    struct follower *followers;
    uint32_t follower_count;
};

static struct event *event_at(struct rt_events *events, uint64_t number)
{
    return &events->ring[number % RT_EVENTS_KEPT];
}

/* ------------------------------------------------------------------ followers */

static void follower_end(struct follower *follower, enum bt_status status, const char *text)
{
    struct rt_events *events = follower->events;
    struct follower **at = &events->followers;
    while (*at != follower) {
        at = &(*at)->next;
    }
    *at = follower->next;
    events->follower_count--;
    bt_rpc_call_end(follower->call, status, text, NULL);
    free(follower);
}

static void on_cancel(void *context, struct bt_rpc_call *call)
{
    bool late = bt_rpc_call_deadline_ns(call) <= bt_clock_now_ns();
    follower_end(context, late ? BT_ERR_DEADLINE : BT_ERR_CANCELLED, NULL);
}

static enum bt_status send_event(struct rt_events *events, struct bt_rpc_call *call,
                                 uint64_t number)
{
    struct event *event = event_at(events, number);
    Baton__V1__ClusterEvent message = BATON__V1__CLUSTER_EVENT__INIT;
    message.number = number;
    message.unix_ns = event->unix_ns;
    message.kind = (char *)event->kind;
    message.worker_id = event->worker_id;
    message.text = event->text;
    return bt_rpc_call_send(call, &message.base);
}

/* May end and free it. */
static void follower_go_on(struct follower *follower)
{
    struct rt_events *events = follower->events;
    if (events->last > RT_EVENTS_KEPT && follower->sent < events->last - RT_EVENTS_KEPT) {
        follower->sent = events->last - RT_EVENTS_KEPT;
    }
    while (follower->sent < events->last) {
        enum bt_status status = send_event(events, follower->call, follower->sent + 1);
        if (status == BT_ERR_EXHAUSTED) {
            bt_loop_timer_bring_forward(events->timer, bt_clock_now_ns() + TRY_AGAIN_NS);
            return;
        }
        if (status != BT_OK) {
            follower_end(follower, status, "an event can't be sent");
            return;
        }
        follower->sent++;
    }
    if (!follower->stays) {
        follower_end(follower, BT_OK, NULL);
    }
}

static void on_timer(void *context)
{
    struct rt_events *events = context;
    for (struct follower *follower = events->followers, *next; follower; follower = next) {
        next = follower->next;
        follower_go_on(follower);
    }
}

void rt_events_serve(struct rt_events *events, struct bt_rpc_call *call, uint64_t since,
                     bool follow)
{
    if (events->follower_count == RT_EVENT_FOLLOWERS_MAX) {
        bt_rpc_call_end(call, BT_ERR_EXHAUSTED, "too many follow the events already", NULL);
        return;
    }
    struct follower *follower = calloc(1, sizeof *follower);
    if (!follower) {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "no memory for a call", NULL);
        return;
    }
    follower->events = events;
    follower->call = call;
    follower->sent = since <= events->last ? since : 0;
    follower->stays = follow;
    follower->next = events->followers;
    events->followers = follower;
    events->follower_count++;
    bt_rpc_call_on_cancel(call, on_cancel, follower);
    follower_go_on(follower);
}

/* ------------------------------------------------------------------ events */

/* Control characters, and what is not UTF-8, also the rest of a character that was cut. */
static void keep_text(char *text)
{
    size_t size = strlen(text), at = 0;
    while (at < size) {
        size_t length;
        bool whole = bt_utf8_next(text + at, size - at, &length) == BT_UTF8_CHARACTER;
        bool plain = whole && (unsigned char)text[at] >= ' ' && text[at] != 0x7f &&
                     !(text[at] == '\xc2' && (unsigned char)text[at + 1] < 0xa0);
        if (!plain) {
            memset(text + at, '?', length);
        }
        at += length;
    }
}

static bool is_repeated(struct rt_events *events, const struct event *event)
{
    const struct event *last = event_at(events, events->last);
    return events->last > 0 && last->kind == event->kind &&
           strcmp(last->worker_id, event->worker_id) == 0 && strcmp(last->text, event->text) == 0;
}

void rt_events_add(struct rt_events *events, const char *kind, const char *worker_id,
                   const char *format, ...)
{
    struct event event = {.unix_ns = bt_clock_unix_ns(), .kind = kind};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(event.text, sizeof event.text, format, arguments);
    va_end(arguments);
    snprintf(event.worker_id, sizeof event.worker_id, "%s", worker_id);
    keep_text(event.text);
    keep_text(event.worker_id);
    if (is_repeated(events, &event)) {
        return;
    }
    *event_at(events, ++events->last) = event;
    if (events->followers) { /* in a round of its own: this may be anywhere in the core */
        bt_loop_timer_bring_forward(events->timer, bt_clock_now_ns());
    }
}

struct rt_events *rt_events_create(struct bt_loop *loop)
{
    struct rt_events *events = calloc(1, sizeof *events);
    if (!events) {
        return NULL;
    }
    events->timer = bt_loop_add_timer(loop, BT_NEVER_NS, on_timer, events);
    if (!events->timer) {
        free(events);
        return NULL;
    }
    return events;
}

void rt_events_destroy(struct rt_events *events)
{
    if (!events) {
        return;
    }
    BT_ASSERT(!events->followers);
    bt_loop_remove(events->timer);
    free(events);
}
