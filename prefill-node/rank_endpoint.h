/* Where a decode rank is reached: a KvEndpoint that was checked, in memory of its own. */
#ifndef BATON_PREFILL_NODE_RANK_ENDPOINT_H
#define BATON_PREFILL_NODE_RANK_ENDPOINT_H

#include "common/base/process.h"
#include "common/kvcache/layout.h"
#include "kvtransfer/source.h"
#include "proto/types.pb-c.h"

struct pf_rank_endpoint {
    char *worker_id;
    char *control_endpoint;
    void *address, *key; /* of remote */
    struct kvt_remote remote;
    struct bt_process_id process;
};

/*
 * INVALID_ARGUMENT names the field that is missing, too long or zero; MISMATCH names the field of
 * the fingerprint that differs from `ours`.
 */
enum bt_status pf_rank_endpoint_check(const Baton__V1__KvEndpoint *message,
                                      const struct bt_fingerprint *ours, struct bt_error *error);

/* Copies a checked message. NO_MEMORY. */
enum bt_status pf_rank_endpoint_init(struct pf_rank_endpoint *endpoint,
                                     const Baton__V1__KvEndpoint *message, struct bt_error *error);
void pf_rank_endpoint_finish(struct pf_rank_endpoint *endpoint);

/* Of a call to a rank: no answer came, or none that decides, so the same message goes out again.
 * CANCELLED is our own doing. */
bool pf_rank_worth_retrying(enum bt_status status);

#endif
