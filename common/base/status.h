/*
 * Status codes and the error record that carries "what and where".
 *
 * A function that can fail for a reason outside the program (network, disk, configuration, a peer)
 * returns enum bt_status and, where a person will read the reason, fills a struct bt_error that the
 * caller owns. The site that decides which error it is writes the message once; everybody above
 * passes it on. A broken invariant is not a status: it is BT_ASSERT.
 */
#ifndef BATON_COMMON_BASE_STATUS_H
#define BATON_COMMON_BASE_STATUS_H

#include <stdbool.h>
#include <stddef.h>

/* 0 is success, positive is progress, negatives are grouped by what they break. */
enum bt_status {
    BT_OK = 0,
    BT_IN_PROGRESS = 1,

    /* The request is at fault or over; everybody else is untouched. */
    BT_ERR_INVALID_ARGUMENT = -1, /* bad input; the message names the field */
    BT_ERR_NOT_FOUND = -2,        /* no such request, model, worker, method */
    BT_ERR_ALREADY_EXISTS = -3,   /* an id that must be new is in use */
    BT_ERR_CANCELLED = -4,        /* its caller took it back */
    BT_ERR_DEADLINE = -5,         /* its deadline passed */
    BT_ERR_EXHAUSTED = -6,        /* a named limit is reached: queue, pages, streams */
    BT_ERR_STALE = -7,            /* an epoch or incarnation that is over */
    BT_ERR_UNSUPPORTED = -8,      /* understood, and not offered */
    BT_ERR_PREEMPTED = -9,        /* gave its pages to others; run it again */
    BT_ERR_UNAUTHORISED = -10,    /* no key, or one of nobody */

    /* A peer is at fault or gone; requests that touch it are affected. */
    BT_ERR_UNAVAILABLE = -20, /* not reachable, not ready, draining */
    BT_ERR_PEER_LOST = -21,   /* it was there and is gone */
    BT_ERR_PROTOCOL = -22,    /* it sent something that breaks the protocol */
    BT_ERR_MISMATCH = -23,    /* fingerprint or version differs; the message names the field */
    BT_ERR_CORRUPT = -24,     /* checksum or page count differs */

    /* This node is at fault. */
    BT_ERR_IO = -40, /* a file or device; the message names it */
    BT_ERR_NO_MEMORY = -41,
    BT_ERR_INTERNAL = -42, /* a library refused what it should do */
};

#define BT_ERROR_TEXT_SIZE 512

struct bt_error {
    enum bt_status status;
    char text[BT_ERROR_TEXT_SIZE]; /* one line, lower case, no trailing newline */
};

/* "invalid_argument", "deadline", …: stable, used on the wire, in logs and metrics labels. */
const char *bt_status_name(enum bt_status status);

/* The status of a name as bt_status_name() gives it; BT_ERR_PROTOCOL for an unknown one. */
enum bt_status bt_status_from_name(const char *name);

/* Fills `error` (may be NULL) and returns `status`, so that `return bt_error_set(…)` reads well. */
enum bt_status bt_error_set(struct bt_error *error, enum bt_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the text that is there. `error` may be NULL. */
void bt_error_prefix(struct bt_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Stays in release builds: prints the expression and the place, then aborts. */
#define BT_ASSERT(expression)                                                                      \
    ((expression) ? (void)0 : bt_assert_failed(#expression, __FILE__, __LINE__))

_Noreturn void bt_assert_failed(const char *expression, const char *file, int line);

#endif
