#include "kvtransfer/rails/devices.h"

#ifdef KVT_HAVE_VERBS

#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MELLANOX 0x02c9 /* its IEEE number, as the vendor of a device */

static const char *state_name(enum ibv_port_state state)
{
    static const char *const names[] = {"NOP",   "DOWN",   "INITIALIZING",
                                        "ARMED", "ACTIVE", "ACTIVE (deferred)"};

    return (size_t)state < sizeof(names) / sizeof(names[0]) ? names[state] : "unknown state";
}

static void read_gids(struct kvt_rdma_port *port, const struct ibv_gid_entry *entries,
                      ssize_t count, uint32_t number)
{
    static const enum kvt_gid_type types[] = {
        [IBV_GID_TYPE_IB] = KVT_GID_IB,
        [IBV_GID_TYPE_ROCE_V1] = KVT_GID_ROCE_V1,
        [IBV_GID_TYPE_ROCE_V2] = KVT_GID_ROCE_V2,
    };

    for (ssize_t i = 0; i < count && port->gid_count < KVT_GIDS_MAX; i++) {
        struct kvt_gid *gid = &port->gids[port->gid_count];
        if (entries[i].port_num != number || entries[i].gid_type > IBV_GID_TYPE_ROCE_V2)
            continue;
        gid->index = entries[i].gid_index;
        gid->type = types[entries[i].gid_type];
        memcpy(gid->bytes, entries[i].gid.raw, sizeof(gid->bytes));
        port->gid_count++;
    }
}

static void read_device(struct ibv_device *device, struct kvt_rdma_port *ports, uint32_t *count)
{
    enum { ENTRIES = 1024 };
    struct ibv_context *context = ibv_open_device(device);
    struct ibv_gid_entry *entries = calloc(ENTRIES, sizeof(*entries));
    struct ibv_device_attr attributes;
    ssize_t entry_count = 0;

    if (context == NULL || entries == NULL || ibv_query_device(context, &attributes) != 0)
        attributes.phys_port_cnt = 0;
    else
        entry_count = ibv_query_gid_table(context, entries, ENTRIES, 0);
    for (uint32_t number = 1; number <= attributes.phys_port_cnt && *count < KVT_PORTS_MAX;
         number++) {
        struct kvt_rdma_port *port = &ports[*count];
        struct ibv_port_attr attr;
        if (ibv_query_port(context, (uint8_t)number, &attr) != 0)
            continue;
        *port = (struct kvt_rdma_port){
            .active = attr.state == IBV_PORT_ACTIVE,
            .state = state_name(attr.state),
            .infiniband = attr.link_layer != IBV_LINK_LAYER_ETHERNET,
            .mellanox = attributes.vendor_id == MELLANOX,
            .rate_mbps = kvt_link_rate_mbps(attr.active_width, attr.active_speed),
            .mtu = attr.active_mtu >= IBV_MTU_256 && attr.active_mtu <= IBV_MTU_4096
                       ? 128u << attr.active_mtu
                       : 0,
        };
        snprintf(port->name, sizeof(port->name), "%s:%u", ibv_get_device_name(device), number);
        read_gids(port, entries, entry_count, number);
        kvt_sysfs_locate("/sys", port);
        ++*count;
    }
    free(entries);
    if (context != NULL)
        ibv_close_device(context);
}

static int compare_names(const void *a, const void *b)
{
    return strverscmp(((const struct kvt_rdma_port *)a)->name,
                      ((const struct kvt_rdma_port *)b)->name);
}

uint32_t kvt_ports_read(struct kvt_rdma_port *ret_ports)
{
    struct ibv_device **devices = ibv_get_device_list(NULL);
    uint32_t count = 0;

    for (size_t i = 0; devices != NULL && devices[i] != NULL; i++)
        read_device(devices[i], ret_ports, &count);
    if (devices != NULL)
        ibv_free_device_list(devices);
    qsort(ret_ports, count, sizeof(*ret_ports), compare_names);
    return count;
}

#else

uint32_t kvt_ports_read(struct kvt_rdma_port *ret_ports)
{
    (void)ret_ports;
    return 0;
}

#endif
