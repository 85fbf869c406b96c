/*
 * What this process has for the way to others, as the answer of Worker/Preflight: devices, limits,
 * shared memory. Looking takes some milliseconds for each RDMA device; any thread.
 */
#ifndef BATON_KVTRANSFER_PREFLIGHT_H
#define BATON_KVTRANSFER_PREFLIGHT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "proto/registry.pb-c.h"
#include "proto/worker.pb-c.h"

struct kvt_preflight_options {
    const Baton__V1__RegisterRequest *identity; /* as registered; NULL: no worker */
    const char *bind_host;                      /* see kvt_transport_options; NULL: loopback */
    const char *device;                         /* likewise; NULL: all that fit */
    bool brief;                                 /* the identity alone, and not_ready */
    const char *not_ready;                      /* NULL: it is */
};

/* Points to strings of `options`. NULL: no memory. */
Baton__V1__PreflightResponse *kvt_preflight_create(const struct kvt_preflight_options *options);
void kvt_preflight_destroy(Baton__V1__PreflightResponse *preflight); /* NULL is fine */

/* Whether UCX carries KV from GPU to GPU by the NICs, and its version. UNSUPPORTED, UNAVAILABLE:
 * why not. */
enum bt_status kvt_preflight_ucx(struct bt_error *error, const char **ret_version);

/* All that writes go over, together; 0: there are none. */
uint64_t kvt_preflight_rails_mbps(const Baton__V1__PreflightResponse *preflight);

#endif
