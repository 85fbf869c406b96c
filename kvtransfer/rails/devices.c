#include "kvtransfer/rails/devices.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint32_t kvt_link_rate_mbps(uint32_t width_code, uint32_t speed_code)
{
    static const struct {
        uint32_t code, value;
    } lanes[] = {{1, 1}, {2, 4}, {4, 8}, {8, 12}, {16, 2}},
      speeds[] = {{1, 2500},   {2, 5000},   {4, 10000},    {8, 10000},   {16, 14000},
                  {32, 25000}, {64, 50000}, {128, 100000}, {256, 200000}};
    uint32_t width = 0, speed = 0;

    for (size_t i = 0; i < sizeof(lanes) / sizeof(lanes[0]); i++)
        width = lanes[i].code == width_code ? lanes[i].value : width;
    for (size_t i = 0; i < sizeof(speeds) / sizeof(speeds[0]); i++)
        speed = speeds[i].code == speed_code ? speeds[i].value : speed;
    return width * speed;
}

uint32_t kvt_rate_parse_mbps(const char *text)
{
    char *end;
    double gbps = strtod(text, &end);

    if (end == text || strncmp(end, " Gb/sec", 7) != 0 || !(gbps > 0) || gbps > 1e6)
        return 0;
    return (uint32_t)(gbps * 1000 + 0.5);
}

/* ---- GIDs ---- */

const char *kvt_gid_type_name(enum kvt_gid_type type)
{
    static const char *const names[] = {"IB", "RoCE v1", "RoCE v2"};

    return names[type];
}

bool kvt_gid_is_ipv4(const struct kvt_gid *gid)
{
    static const unsigned char prefix[12] = {[10] = 0xff, [11] = 0xff};

    return memcmp(gid->bytes, prefix, sizeof(prefix)) == 0;
}

static bool is_link_local(const struct kvt_gid *gid)
{
    return gid->bytes[0] == 0xfe && (gid->bytes[1] & 0xc0) == 0x80;
}

static bool is_zero(const struct kvt_gid *gid)
{
    static const unsigned char zero[16];

    return memcmp(gid->bytes, zero, sizeof(zero)) == 0;
}

void kvt_gid_format(const struct kvt_gid *gid, char ret_text[48])
{
    if (inet_ntop(AF_INET6, gid->bytes, ret_text, 48) == NULL)
        ret_text[0] = '\0';
}

/* The higher the better; 0: not usable. */
static int gid_merit(const struct kvt_rdma_port *port, const struct kvt_gid *gid)
{
    int ipv4 = port->mellanox ? 3 : 0;
    int reach = kvt_gid_is_ipv4(gid) ? ipv4 : is_link_local(gid) ? 1 : 2;

    if (is_zero(gid))
        return 0;
    if (port->infiniband)
        return gid->type == KVT_GID_IB;
    if (gid->type == KVT_GID_IB)
        return 0;
    return 1 + reach + (gid->type == KVT_GID_ROCE_V2 ? 10 : 0);
}

const struct kvt_gid *kvt_gid_choose(const struct kvt_rdma_port *port)
{
    const struct kvt_gid *best = NULL;
    int best_merit = 0;

    for (uint32_t i = 0; i < port->gid_count; i++) {
        const struct kvt_gid *gid = &port->gids[i];
        int merit = gid_merit(port, gid);
        if (merit > best_merit || (merit == best_merit && merit > 0 && gid->index < best->index)) {
            best = gid;
            best_merit = merit;
        }
    }
    return best;
}

/* ---- distance ---- */

/* How many leading components two paths share, and how many each has. */
static uint32_t shared_components(const char *a, const char *b)
{
    uint32_t count = 0;

    while (*a != '\0' && *b != '\0') {
        size_t length = strcspn(a, "/");
        if (length != strcspn(b, "/") || memcmp(a, b, length) != 0)
            break;
        count++;
        a += length + (a[length] == '/');
        b += length + (b[length] == '/');
    }
    return count;
}

enum kvt_distance kvt_pci_distance(const char *path_a, int numa_a, const char *path_b, int numa_b)
{
    uint32_t shared = shared_components(path_a, path_b);

    if (shared >= 2) /* the root complex and a port of it */
        return KVT_DISTANCE_SWITCH;
    if (shared == 1)
        return KVT_DISTANCE_ROOT;
    return numa_a >= 0 && numa_a == numa_b ? KVT_DISTANCE_NODE : KVT_DISTANCE_SYSTEM;
}

const char *kvt_distance_name(enum kvt_distance distance)
{
    static const char *const names[] = {"pci switch", "pci root", "numa node", "system"};

    return names[distance];
}

enum kvt_distance kvt_port_distance(const struct kvt_rdma_port *port, const struct kvt_near *near)
{
    if (near->pci_path != NULL && near->pci_path[0] != '\0')
        return kvt_pci_distance(near->pci_path, near->numa_node, port->pci_path, port->numa_node);
    if (near->numa_node >= 0 && port->numa_node == near->numa_node)
        return KVT_DISTANCE_NODE;
    return KVT_DISTANCE_SYSTEM;
}

/* ---- the choice ---- */

const char *kvt_port_problem(const struct kvt_rdma_port *port)
{
    if (!port->active)
        return port->state != NULL ? port->state : "not active";
    if (port->rate_mbps == 0)
        return "no known rate";
    if (!port->infiniband && kvt_gid_choose(port) == NULL)
        return "no GID";
    return NULL;
}

/* "mlx5_0" or "mlx5_0:1", `length` bytes of it. */
static bool names_port(const char *wanted, size_t length, const struct kvt_rdma_port *port)
{
    size_t device = strcspn(port->name, ":");

    return (length == strlen(port->name) || length == device) &&
           memcmp(wanted, port->name, length) == 0;
}

static void list_ports(const struct kvt_rdma_port *ports, uint32_t count, char *text, size_t size)
{
    size_t used = 0;

    snprintf(text, size, "none");
    for (uint32_t i = 0; i < count && used < size; i++) {
        const char *problem = kvt_port_problem(&ports[i]);
        used += (size_t)snprintf(text + used, size - used, "%s%s%s%s%s", i > 0 ? ", " : "",
                                 ports[i].name, problem != NULL ? " (" : "",
                                 problem != NULL ? problem : "", problem != NULL ? ")" : "");
    }
}

static enum bt_status take_named(const struct kvt_rdma_port *ports, uint32_t count,
                                 const char *name, size_t length, struct bt_error *error,
                                 uint32_t *indices, uint32_t *taken)
{
    bool found = false;
    char there[300];

    for (uint32_t i = 0; i < count; i++) {
        const char *problem = kvt_port_problem(&ports[i]);
        bool again = false;
        if (length == 0 || !names_port(name, length, &ports[i]))
            continue;
        found = true;
        for (uint32_t j = 0; j < *taken; j++)
            again = again || indices[j] == i;
        if (again)
            continue;
        if (problem != NULL)
            return bt_error_set(error, BT_ERR_UNAVAILABLE, "rdma port %s: %s", ports[i].name,
                                problem);
        if (*taken == KVT_RAILS_MAX)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "more than %d rdma ports",
                                KVT_RAILS_MAX);
        indices[(*taken)++] = i;
    }
    if (found)
        return BT_OK;
    list_ports(ports, count, there, sizeof(there));
    return bt_error_set(error, BT_ERR_NOT_FOUND, "no rdma port '%.*s' here; there are: %s",
                        (int)length, name, there);
}

static enum bt_status take_wanted(const struct kvt_rdma_port *ports, uint32_t count,
                                  const char *wanted, struct bt_error *error, uint32_t *indices,
                                  uint32_t *taken)
{
    enum bt_status status = BT_OK;

    for (const char *at = wanted; status == BT_OK;) {
        size_t length = strcspn(at, ",");
        status = take_named(ports, count, at, length, error, indices, taken);
        if (at[length] == '\0')
            break;
        at += length + 1;
    }
    return status;
}

static void take_nearest(const struct kvt_rdma_port *ports, uint32_t count,
                         const struct kvt_near *near, uint32_t *indices, uint32_t *taken)
{
    enum kvt_distance nearest = KVT_DISTANCE_SYSTEM;
    uint32_t fastest = 0;

    for (uint32_t i = 0; i < count; i++)
        if (kvt_port_problem(&ports[i]) == NULL && kvt_port_distance(&ports[i], near) < nearest)
            nearest = kvt_port_distance(&ports[i], near);
    for (uint32_t i = 0; i < count; i++)
        if (kvt_port_problem(&ports[i]) == NULL && ports[i].rate_mbps > fastest &&
            kvt_port_distance(&ports[i], near) == nearest)
            fastest = ports[i].rate_mbps;
    for (uint32_t i = 0; i < count && *taken < KVT_RAILS_MAX; i++)
        if (kvt_port_problem(&ports[i]) == NULL && kvt_port_distance(&ports[i], near) == nearest &&
            (uint64_t)ports[i].rate_mbps * KVT_RATE_FRACTION >= fastest)
            indices[(*taken)++] = i;
}

enum bt_status kvt_ports_select(const struct kvt_rdma_port *ports, uint32_t count,
                                const char *wanted, const struct kvt_near *near,
                                struct bt_error *error, uint32_t *ret_indices, uint32_t *ret_count)
{
    uint32_t indices[KVT_RAILS_MAX], taken = 0;
    enum bt_status status = BT_OK;
    char there[300];

    if (wanted != NULL)
        status = take_wanted(ports, count, wanted, error, indices, &taken);
    else
        take_nearest(ports, count, near, indices, &taken);
    if (status != BT_OK)
        return status;
    if (taken == 0) {
        list_ports(ports, count, there, sizeof(there));
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "no usable rdma port on this host: %s",
                            there);
    }
    memcpy(ret_indices, indices, taken * sizeof(*indices));
    *ret_count = taken;
    return BT_OK;
}
