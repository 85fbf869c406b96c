/* The transport over UCX: shared memory and TCP on one machine, RDMA where there are devices. */
#ifndef BATON_KVTRANSFER_UCX_UCX_H
#define BATON_KVTRANSFER_UCX_UCX_H

#include "kvtransfer/transport.h"

enum bt_status kvt_ucx_transport_create(const struct kvt_transport_options *options,
                                        struct bt_error *error,
                                        struct kvt_transport **ret_transport);

#endif
