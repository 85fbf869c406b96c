/*
 * "rdma": a rail for each RDMA port that devices.h selects, or that options->device names
 * ("mlx5_0:1,mlx5_1:1"). Always rails, so that both ends speak of the same thing, even of one port.
 */
#ifndef BATON_KVTRANSFER_RAILS_RDMA_H
#define BATON_KVTRANSFER_RAILS_RDMA_H

#include "kvtransfer/transport.h"

/* UNAVAILABLE: no usable port, with the reason of each, or a pool that NICs can't reach, with what
 * is missing; NOT_FOUND: a named port is not here. */
enum bt_status kvt_rails_rdma_create(const struct kvt_transport_options *options,
                                     struct bt_error *error, struct kvt_transport **ret_transport);

#endif
