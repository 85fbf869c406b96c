/*
 * Several transports side by side ("auto"), or one (a pinned one), the best first; each peer is
 * reached by the first that both ends have. All know one pool, which the first allocates and the
 * others register.
 *
 * A peer that the best can not reach goes to the next one, with a warning that says why, or with
 * `forbid_fallback` to none, with an error that names both.
 */
#ifndef BATON_KVTRANSFER_CHOICE_CHOICE_H
#define BATON_KVTRANSFER_CHOICE_CHOICE_H

#include "kvtransfer/transport.h"

#define KVT_CHOICES_MAX 4

struct kvt_choice {
    const char *name; /* "shm", "rdma", "tcp"; equal at both ends; at most 15 characters */
    struct kvt_transport *transport;
};

/* 1 to KVT_CHOICES_MAX, the best first; takes the transports, also when it fails. */
enum bt_status kvt_choice_create(const struct kvt_choice *choices, uint32_t count,
                                 bool forbid_fallback, struct bt_error *error,
                                 struct kvt_transport **ret_transport);

#endif
