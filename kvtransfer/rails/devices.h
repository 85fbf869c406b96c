/*
 * RDMA devices of this machine: ports, rates, GIDs, where they sit, and which of them make good
 * rails. Reading (libibverbs, sysfs) is apart from choosing, which is pure: tables in, indices out.
 */
#ifndef BATON_KVTRANSFER_RAILS_DEVICES_H
#define BATON_KVTRANSFER_RAILS_DEVICES_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#include "kvtransfer/transport.h"

#define KVT_PORTS_MAX     64
#define KVT_GIDS_MAX      64 /* of one port */
#define KVT_PCI_PATH_SIZE 256
#define KVT_RATE_FRACTION 4 /* a port slower than the fastest by more than this is no rail */

enum kvt_gid_type { KVT_GID_IB, KVT_GID_ROCE_V1, KVT_GID_ROCE_V2 };

struct kvt_gid {
    uint32_t index;
    enum kvt_gid_type type;
    unsigned char bytes[16]; /* network order */
};

/* How far a port is from a GPU or CPU: the first thing that a path between the two goes through. */
enum kvt_distance {
    KVT_DISTANCE_SWITCH, /* PCI switches only */
    KVT_DISTANCE_ROOT,   /* the same PCI root complex */
    KVT_DISTANCE_NODE,   /* the same NUMA node */
    KVT_DISTANCE_SYSTEM, /* between NUMA nodes, or not known */
};

struct kvt_rdma_port {
    char name[KVT_DEVICE_NAME_SIZE]; /* "mlx5_0:1" */
    bool active;
    const char *state; /* "ACTIVE", "DOWN", … */
    bool infiniband;   /* link layer; else Ethernet */
    bool mellanox;     /* completions tell whether a datagram came by IPv4 or IPv6 */
    uint32_t rate_mbps;
    uint32_t mtu;                     /* active, bytes */
    int numa_node;                    /* -1: not known */
    char pci_path[KVT_PCI_PATH_SIZE]; /* "pci0000:16/0000:16:01.0/0000:17:00.0"; "": none */
    struct kvt_gid gids[KVT_GIDS_MAX];
    uint32_t gid_count;
};

/* Data rate of a link: libibverbs' codes of lanes and of speed. 0: an unknown code. */
uint32_t kvt_link_rate_mbps(uint32_t width_code, uint32_t speed_code);
/* As sysfs says it: "400 Gb/sec (4X NDR)". 0: not understood. */
uint32_t kvt_rate_parse_mbps(const char *text);

/* "RoCE v2" and the like. */
const char *kvt_gid_type_name(enum kvt_gid_type type);
bool kvt_gid_is_ipv4(const struct kvt_gid *gid);
void kvt_gid_format(const struct kvt_gid *gid, char ret_text[48]);

/*
 * The GID to use, or NULL: none. On Ethernet RoCE v2 is preferred to v1; then addresses that can be
 * routed (IPv4-mapped, then global) to link-local ones; then the lowest index. But IPv4 comes after
 * all of IPv6 on devices other than Mellanox's: UCX looks for the address of a datagram where the
 * completion's service level says, which theirs leave zero, and drops all that come by IPv4. On
 * InfiniBand the lowest index.
 */
const struct kvt_gid *kvt_gid_choose(const struct kvt_rdma_port *port);

enum kvt_distance kvt_pci_distance(const char *path_a, int numa_a, const char *path_b, int numa_b);
const char *kvt_distance_name(enum kvt_distance distance);

/* What the ports should be near to. */
struct kvt_near {
    const char *pci_path; /* of a GPU; NULL or "": no GPU */
    int numa_node;        /* -1: no preference */
};

enum kvt_distance kvt_port_distance(const struct kvt_rdma_port *port, const struct kvt_near *near);

/*
 * The rails. `wanted`: "mlx5_0:1,mlx5_1" (a device alone means all its ports) takes exactly these,
 * and NOT_FOUND or UNAVAILABLE names the one that is not there or not usable. NULL: of the usable
 * ports (active, a rate, on Ethernet a GID) those nearest to `near`, without those that are slower
 * than a KVT_RATE_FRACTION of the fastest among them; UNAVAILABLE when there is none, with the
 * reason of each port. At most KVT_RAILS_MAX, in the order of the table.
 */
enum bt_status kvt_ports_select(const struct kvt_rdma_port *ports, uint32_t count,
                                const char *wanted, const struct kvt_near *near,
                                struct bt_error *error, uint32_t *ret_indices, uint32_t *ret_count);

/* Why this port can't be a rail; NULL: it can. */
const char *kvt_port_problem(const struct kvt_rdma_port *port);

/* ---- reading ---- */

/* Near to the CPUs that this thread may run on, whose memory the pools are in. */
struct kvt_near kvt_near_here(void);

/* All ports of this machine, by name; none where there is no device, driver or libibverbs.
 * `ret_ports` holds KVT_PORTS_MAX. */
uint32_t kvt_ports_read(struct kvt_rdma_port *ret_ports);

/* Below a directory that looks like /sys: */
/* NUMA node, PCI path and, where `rate_mbps` is 0, the rate of a port. */
void kvt_sysfs_locate(const char *sysfs, struct kvt_rdma_port *port);
/* The node of all these CPUs; -1: they are on several, or it is not known. */
int kvt_sysfs_node_of_cpus(const char *sysfs, const cpu_set_t *cpus);
/* "0000:17:00.0" to its path and NUMA node. False: no such device. */
bool kvt_sysfs_pci(const char *sysfs, const char *bus_id, char ret_path[KVT_PCI_PATH_SIZE],
                   int *ret_numa_node);
/* Near to the GPU of this bus id, "0000:9A:00.0"; points to `path`. False: no such device. */
bool kvt_near_gpu(const char *sysfs, const char *bus_id, char path[KVT_PCI_PATH_SIZE],
                  struct kvt_near *ret_near);

#endif
