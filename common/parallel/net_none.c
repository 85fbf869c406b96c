/* A build without UCX: ranks of one machine only. */
#include "common/parallel/net.h"

enum bt_status bt_net_open(const struct bt_net_options *options, struct bt_error *error,
                           struct bt_net **ret_net)
{
    (void)options, (void)ret_net;
    return bt_error_set(error, BT_ERR_UNSUPPORTED,
                        "ranks on several machines need UCX, which this build lacks");
}

void bt_net_close(struct bt_net *net, int64_t grace_ns)
{
    (void)grace_ns;
    BT_ASSERT(!net);
}

enum bt_status bt_net_address(struct bt_net *net, struct bt_error *error, void *ret_address,
                              size_t *ret_bytes)
{
    (void)net, (void)error, (void)ret_address, (void)ret_bytes;
    BT_ASSERT(false);
}

enum bt_status bt_net_connect(struct bt_net *net, uint32_t rank, const void *address,
                              struct bt_error *error)
{
    (void)net, (void)rank, (void)address, (void)error;
    BT_ASSERT(false);
}

void bt_net_send(struct bt_net *net, uint32_t rank, const struct bt_net_head *head,
                 const void *data, size_t bytes)
{
    (void)net, (void)rank, (void)head, (void)data, (void)bytes;
    BT_ASSERT(false);
}

uint32_t bt_net_unsent(const struct bt_net *net)
{
    (void)net;
    return 0;
}

int64_t bt_net_lost_ns(const struct bt_net *net, uint32_t rank)
{
    (void)net, (void)rank;
    return 0;
}

bool bt_net_progress(struct bt_net *net)
{
    (void)net;
    return false;
}

void bt_net_wait(struct bt_net *net, int64_t timeout_ns)
{
    (void)net, (void)timeout_ns;
}
