/*
 * A worker's place in the registries of one or several routers: register, heartbeat, register
 * again when a router forgot (it restarted), deregister at the end. An unreachable router is tried
 * for ever; each router on its own. Loop thread only.
 */
#ifndef BATON_COMMON_MESSAGING_REGISTRATION_H
#define BATON_COMMON_MESSAGING_REGISTRATION_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/status.h"
#include "common/messaging/loop.h"
#include "proto/registry.pb-c.h"

#define BT_REGISTRATION_MAX_ROUTERS  16
#define BT_REGISTRATION_MAX_RANKS    4096 /* of one answer, that are told; the others are not */
#define BT_REGISTRATION_MAX_PREFIXES 2048 /* changes in a PrefixSummary */

struct bt_registration;

struct bt_registration_events {
    /* The load for the next message, and whether the worker takes no more requests. */
    void (*load)(void *context, Baton__V1__RankLoad *ret_load, bool *ret_draining);
    /* Prefill: decode ranks that appeared; valid during the call, not trusted. NULL: not wanted. */
    void (*decode_ranks)(void *context, Baton__V1__KvEndpoint *const *ranks, size_t rank_count);
    /* A router took us in, for the first time or again. */
    void (*registered)(void *context);
    /* A router will never take us: MISMATCH or INVALID_ARGUMENT; `text` names router and field. */
    void (*refused)(void *context, enum bt_status status, const char *text);
    void *context;
    /* Prefill: what changed in its cache of prefixes since the version that a router has, valid
     * until the next call. False: nothing. *ret_more: so much that the rest takes another
     * heartbeat, which follows at once when the router has taken this in. NULL: there is no cache.
     */
    bool (*prefixes)(void *context, uint64_t since, Baton__V1__PrefixSummary *ret_summary,
                     bool *ret_more);
    /* Decode: the requests that have no router, for the next message; how many. The list is valid
     * until the next call of the loop. NULL: there are none, ever. */
    size_t (*orphans)(void *context, Baton__V1__Orphan ***ret_orphans);
};

/*
 * `routers`: endpoints separated by commas; dns+tcp://HOST:PORT, on a secured loop with #KEY,
 * stands for all routers that HOST resolves to, asked again every few seconds: they come and go,
 * and have one key. One that is no more among them is kept as long as it answers. `identity` is
 * what Register sends, `load` and `orphans` excepted; it must outlive the registration. Nothing is
 * called back inside this function.
 */
enum bt_status bt_registration_create(struct bt_loop *loop, const char *routers,
                                      const Baton__V1__RegisterRequest *identity,
                                      const struct bt_registration_events *events,
                                      struct bt_error *error,
                                      struct bt_registration **ret_registration);
void bt_registration_destroy(struct bt_registration *registration); /* NULL is fine */

/* A heartbeat to every router now: the load, the draining flag or the orphans changed in a way that
 * matters. */
void bt_registration_hurry(struct bt_registration *registration);

/* Says goodbye; no more heartbeats. */
void bt_registration_deregister(struct bt_registration *registration);
/* Every router has answered, or was given up after a second. */
bool bt_registration_gone(const struct bt_registration *registration);

/* Routers that have this worker in their registries, as far as their last answers say. NULL: 0. */
size_t bt_registration_count(const struct bt_registration *registration);

/*
 * The file of --ready-file: one JSON line {"worker_id","rpc","pid"}, in place at once (rename), so
 * that a reader sees all of it or nothing.
 */
enum bt_status bt_ready_file_write(const char *path, const char *worker_id, const char *rpc,
                                   struct bt_error *error);

#endif
