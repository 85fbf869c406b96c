#include "kvtransfer/rails/rdma.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "kvtransfer/device_pool.h"
#include "kvtransfer/rails/devices.h"
#include "kvtransfer/rails/rails.h"
#include "kvtransfer/ucx/ucx.h"

static enum bt_status open_rail(const struct kvt_transport_options *options,
                                const struct kvt_rdma_port *port, struct bt_error *error,
                                struct kvt_rail *ret_rail)
{
    struct kvt_transport_options one = *options;
    const struct kvt_gid *gid = kvt_gid_choose(port);
    const char *overruled = getenv("UCX_IB_GID_INDEX");
    char text[48] = "none";
    enum bt_status status;

    one.device = port->name;
    status = kvt_rdma_transport_create(&one, gid != NULL ? (int)gid->index : -1, error,
                                       &ret_rail->transport);
    if (status != BT_OK)
        return status;
    ret_rail->rate_mbps = port->rate_mbps;
    memcpy(ret_rail->device, port->name, sizeof(ret_rail->device));
    if (gid != NULL)
        kvt_gid_format(gid, text);
    bt_log_info(0, "rdma rail %s: %" PRIu32 " Mb/s, NUMA node %d, GID %s%s", port->name,
                port->rate_mbps, port->numa_node, overruled != NULL ? "index " : text,
                overruled != NULL ? overruled : "");
    return BT_OK;
}

/* A port that nobody named and that UCX can't use is left out with a warning. */
static enum bt_status open_rails(const struct kvt_transport_options *options,
                                 const struct kvt_rdma_port *ports, const uint32_t *indices,
                                 uint32_t count, struct bt_error *error, struct kvt_rail *rails,
                                 uint32_t *opened)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct kvt_rdma_port *port = &ports[indices[i]];
        struct bt_error why = {0};
        enum bt_status status = open_rail(options, port, &why, &rails[*opened]);
        if (status == BT_OK) {
            ++*opened;
            continue;
        }
        if (options->device != NULL || (*opened == 0 && i + 1 == count)) {
            while (*opened > 0) {
                --*opened;
                rails[*opened].transport->ops->destroy(rails[*opened].transport);
            }
            return bt_error_set(error, status, "rdma port %s: %s", port->name, why.text);
        }
        bt_log_warn(0, "rdma port %s is no rail: %s", port->name, why.text);
    }
    return BT_OK;
}

/* A pool that NICs can't write to, or whose GPU may not see what they wrote. */
static enum bt_status check_pool(const struct kvt_transport_options *options,
                                 const struct bt_device_info *info, struct bt_error *error)
{
    if (info->peer_memory)
        return BT_OK;
    return bt_error_set(error, BT_ERR_UNAVAILABLE, "NICs can't be let into memory of %s: %s",
                        options->pool_device->name, info->peer_memory_missing);
}

enum bt_status kvt_rails_rdma_create(const struct kvt_transport_options *options,
                                     struct bt_error *error, struct kvt_transport **ret_transport)
{
    struct kvt_near near = kvt_near_here();
    struct bt_device_info info = {.peer_memory = true};
    char path[KVT_PCI_PATH_SIZE];
    struct kvt_rdma_port *ports = calloc(KVT_PORTS_MAX, sizeof(*ports));
    struct kvt_rail rails[KVT_RAILS_MAX] = {0};
    uint32_t indices[KVT_RAILS_MAX], count = 0, opened = 0;
    enum bt_status status;

    if (ports == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory to look for rdma ports");
    if (kvt_pool_memory_kind(options->pool_device) != BT_MEMORY_HOST) {
        bt_device_info(options->pool_device, &info);
        (void)kvt_near_gpu("/sys", info.pci, path, &near);
    }
    status = check_pool(options, &info, error);
    if (status == BT_OK)
        status = kvt_ports_select(ports, kvt_ports_read(ports), options->device, &near, error,
                                  indices, &count);
    if (status == BT_OK)
        status = open_rails(options, ports, indices, count, error, rails, &opened);
    free(ports);
    return status == BT_OK ? kvt_rails_create(rails, opened, error, ret_transport) : status;
}
