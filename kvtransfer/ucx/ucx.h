/*
 * The transports over UCX: shared memory of one machine, and RDMA. Processes find each other by
 * worker addresses, which travel with the landing; nothing listens.
 */
#ifndef BATON_KVTRANSFER_UCX_UCX_H
#define BATON_KVTRANSFER_UCX_UCX_H

#include "kvtransfer/transport.h"

/* Memory that both sides map: a write is a store. Same kernel and pid namespace only. */
enum bt_status kvt_shm_transport_create(const struct kvt_transport_options *options,
                                        struct bt_error *error,
                                        struct kvt_transport **ret_transport);

/* Puts by the device. `gid_index` is of options->device; -1: UCX chooses, as it does wherever
 * UCX_IB_GID_INDEX is set. UNAVAILABLE: this machine has none. */
enum bt_status kvt_rdma_transport_create(const struct kvt_transport_options *options, int gid_index,
                                         struct bt_error *error,
                                         struct kvt_transport **ret_transport);

/* Whether this UCX writes from and to memory of GPUs, as RDMA between them takes it; UNAVAILABLE
 * says why not. Opens and closes it: a matter for tools. */
enum bt_status kvt_ucx_check_gpus(struct bt_error *error, const char **ret_version);

#endif
