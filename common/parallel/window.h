/*
 * The memory that a rank shows to its neighbours: it writes, they read. A memfd that they open by
 * way of /proc, so that there is no name to be left behind; sealed, so that nobody can make it
 * shorter under a reader. Ranks that are threads of one process share one mapping.
 *
 * One counter a channel says how far the owner has come. Who waits for it spins, then sleeps on it.
 */
#ifndef BATON_COMMON_PARALLEL_WINDOW_H
#define BATON_COMMON_PARALLEL_WINDOW_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/process.h"
#include "common/base/status.h"

#define BT_WINDOW_LINE     128 /* bytes that one store may take from other cores */
#define BT_WINDOW_CHANNELS 2

struct bt_window_counter {
    _Alignas(BT_WINDOW_LINE) _Atomic uint32_t posted;
    _Atomic uint32_t sleepers;
};

/* Ahead of the data. */
struct bt_window_head {
    uint64_t nonce, bytes;
    _Atomic uint32_t users;                         /* of this mapping, in this process */
    _Alignas(BT_WINDOW_LINE) _Atomic uint32_t over; /* 0 while the owner is in the group */
    struct bt_window_counter counters[BT_WINDOW_CHANNELS];
};

struct bt_window {
    struct bt_window_head *head; /* NULL: none */
    char *data;
    size_t bytes; /* of data */
    int fd;       /* -1: of another rank */
    bool counted; /* among the users of the mapping */
};

/* What others need to map it. */
struct bt_window_card {
    struct bt_process_id process;
    uint64_t nonce, bytes, address;
    int32_t fd;
    uint32_t unused;
};

/* Nothing of it takes memory before it is written. */
enum bt_status bt_window_create(size_t bytes, struct bt_error *error, struct bt_window *ret_window);
enum bt_status bt_window_card_fill(const struct bt_window *window, struct bt_error *error,
                                   struct bt_window_card *ret_card);
/* While the owner is waiting for it to happen. */
enum bt_status bt_window_map(const struct bt_window_card *card, struct bt_error *error,
                             struct bt_window *ret_window);
/* Also of a zeroed one whose fd is -1. */
void bt_window_release(struct bt_window *window);

/* `number` is above the last one. All that was written before is seen by who sees it. */
void bt_counter_post(struct bt_window_counter *counter, uint32_t number);
void bt_counter_wake(struct bt_window_counter *counter);
/* Sleeps until the counter moves or something wakes, for timeout_ns at most. */
void bt_counter_sleep(struct bt_window_counter *counter, uint32_t seen, int64_t timeout_ns);

static inline uint32_t bt_counter_read(const struct bt_window_counter *counter)
{
    return atomic_load_explicit(&counter->posted, memory_order_acquire);
}

/* Numbers wrap. */
static inline bool bt_counter_has(const struct bt_window_counter *counter, uint32_t number)
{
    return (int32_t)(bt_counter_read(counter) - number) >= 0;
}

#endif
