#include "common/parallel/window.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/random.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static enum bt_status map(struct bt_window *window, int fd, size_t bytes, struct bt_error *error)
{
    void *base = mmap(NULL, sizeof(*window->head) + bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "can't map %zu bytes of shared memory: %m",
                            bytes);
    window->head = base;
    window->data = (char *)(window->head + 1);
    window->bytes = bytes;
    return BT_OK;
}

enum bt_status bt_window_create(size_t bytes, struct bt_error *error, struct bt_window *ret_window)
{
    struct bt_window window = {.fd = memfd_create("baton-group", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    bytes = (sizeof(*window.head) + bytes + page - 1) / page * page - sizeof(*window.head);
    if (window.fd < 0)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no shared memory: %m");
    enum bt_status status = BT_OK;
    if (ftruncate(window.fd, (off_t)(sizeof(*window.head) + bytes)) != 0 ||
        fcntl(window.fd, F_ADD_SEALS, SEALS) != 0)
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "no shared memory of %zu bytes: %m", bytes);
    if (status == BT_OK)
        status = map(&window, window.fd, bytes, error);
    if (status != BT_OK) {
        close(window.fd);
        return status;
    }
    window.counted = true;
    window.head->nonce = bt_random_entropy();
    window.head->bytes = bytes;
    atomic_store(&window.head->users, 1);
    *ret_window = window;
    return BT_OK;
}

enum bt_status bt_window_card_fill(const struct bt_window *window, struct bt_error *error,
                                   struct bt_window_card *ret_card)
{
    struct bt_window_card card = {
        .nonce = window->head->nonce,
        .bytes = window->bytes,
        .address = (uint64_t)(uintptr_t)window->head,
        .fd = window->fd,
    };
    enum bt_status status = bt_process_self(error, &card.process);
    if (status == BT_OK)
        *ret_card = card;
    return status;
}

/* The same mapping, so that nothing about it differs between two threads. */
static void window_share(const struct bt_window_card *card, struct bt_window *ret_window)
{
    struct bt_window_head *head = (struct bt_window_head *)(uintptr_t)card->address;
    atomic_fetch_add(&head->users, 1);
    *ret_window = (struct bt_window){
        .head = head,
        .data = (char *)(head + 1),
        .bytes = (size_t)card->bytes,
        .fd = -1,
        .counted = true,
    };
}

/* That the file is as long as it says, and stays so. */
static bool is_sound(int fd, uint64_t bytes)
{
    struct stat stat;
    int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && (seals & F_SEAL_SHRINK) != 0 && fstat(fd, &stat) == 0 &&
           (uint64_t)stat.st_size >= sizeof(struct bt_window_head) &&
           (uint64_t)stat.st_size - sizeof(struct bt_window_head) >= bytes;
}

enum bt_status bt_window_map(const struct bt_window_card *card, struct bt_error *error,
                             struct bt_window *ret_window)
{
    struct bt_window window = {.fd = -1};
    char path[64];
    if (card->process.pid == getpid()) {
        window_share(card, ret_window);
        return BT_OK;
    }
    snprintf(path, sizeof(path), "/proc/%" PRId64 "/fd/%d", card->process.pid, card->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return bt_error_set(error, BT_ERR_UNAVAILABLE,
                            "can't open the memory of pid %" PRId64 ": %m", card->process.pid);
    enum bt_status status = BT_OK;
    if (!is_sound(fd, card->bytes))
        status =
            bt_error_set(error, BT_ERR_PROTOCOL,
                         "the memory of pid %" PRId64 " is not what it says", card->process.pid);
    if (status == BT_OK)
        status = map(&window, fd, (size_t)card->bytes, error);
    close(fd);
    if (status != BT_OK)
        return status;
    if (window.head->nonce != card->nonce) {
        munmap(window.head, sizeof(*window.head) + window.bytes);
        return bt_error_set(error, BT_ERR_PROTOCOL, "the memory of pid %" PRId64 " is another's",
                            card->process.pid);
    }
    *ret_window = window;
    return BT_OK;
}

void bt_window_release(struct bt_window *window)
{
    if (window->fd >= 0)
        close(window->fd);
    if (window->head && (!window->counted || atomic_fetch_sub(&window->head->users, 1) == 1))
        munmap(window->head, sizeof(*window->head) + window->bytes);
    *window = (struct bt_window){.fd = -1};
}

/* ---- counters ---- */

/*
 * The owner counts, then looks for sleepers; who sleeps says so, then looks at the counter. One of
 * them sees the other.
 */
void bt_counter_post(struct bt_window_counter *counter, uint32_t number)
{
    atomic_store(&counter->posted, number);
    if (atomic_load(&counter->sleepers) > 0)
        bt_counter_wake(counter);
}

void bt_counter_wake(struct bt_window_counter *counter)
{
    syscall(SYS_futex, &counter->posted, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void bt_counter_sleep(struct bt_window_counter *counter, uint32_t seen, int64_t timeout_ns)
{
    struct timespec timeout = {.tv_sec = timeout_ns / BT_NS_PER_S,
                               .tv_nsec = timeout_ns % BT_NS_PER_S};
    atomic_fetch_add(&counter->sleepers, 1);
    if (atomic_load(&counter->posted) == seen)
        syscall(SYS_futex, &counter->posted, FUTEX_WAIT, seen, &timeout, NULL, 0);
    atomic_fetch_sub(&counter->sleepers, 1);
}
