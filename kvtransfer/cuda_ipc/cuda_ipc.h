/*
 * GPUs of one machine: the target's process shares its pool, the source's maps it, and a write is a
 * copy by the source's GPU, over NVLink or PCIe. Not through UCX, whose transport of the same name
 * can't tell that a peer has died: that makes it no choice for endpoints that must know.
 */
#ifndef BATON_KVTRANSFER_CUDA_IPC_CUDA_IPC_H
#define BATON_KVTRANSFER_CUDA_IPC_CUDA_IPC_H

#include "kvtransfer/transport.h"

/* UNAVAILABLE: the pool is not in the memory of a GPU, or one that can't be shared. */
enum bt_status kvt_cuda_ipc_transport_create(const struct kvt_transport_options *options,
                                             struct bt_error *error,
                                             struct kvt_transport **ret_transport);

#endif
