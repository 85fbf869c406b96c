#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include "deploy/batonctl/doctor.h"
#include "kvtransfer/rails/devices.h"
#include "kvtransfer/rails/gpu_memory.h"

#define SHM_WANTED_BYTES (UINT64_C(1) << 30) /* less is too little for any real pool */

static struct kvt_rdma_port ports[KVT_PORTS_MAX];

static void look_at_port(struct ctl_report *report, const struct kvt_rdma_port *port)
{
    const struct kvt_gid *gid = kvt_gid_choose(port);
    const char *problem = kvt_port_problem(port);
    char what[96], address[48], gid_text[96] = "no GID";

    snprintf(what, sizeof(what), "port %.80s", port->name);
    if (gid != NULL) {
        kvt_gid_format(gid, address);
        snprintf(gid_text, sizeof(gid_text), "GID %" PRIu32 " %s (%s)", gid->index, address,
                 kvt_gid_type_name(gid->type));
    }
    ctl_report_add(report, problem != NULL ? CTL_DEGRADED : CTL_FINE, what,
                   "%s, %s, %.1f Gb/s, MTU %" PRIu32 ", NUMA node %d, %s%s%s", port->state,
                   port->infiniband ? "InfiniBand" : "Ethernet", port->rate_mbps / 1000.0,
                   port->mtu, port->numa_node, gid_text, problem != NULL ? "; no rail: " : "",
                   problem != NULL ? problem : "");
    if (gid != NULL && !port->infiniband && gid->type != KVT_GID_ROCE_V2)
        ctl_report_add(report, CTL_DEGRADED, what, "only RoCE v1, which routers do not pass on");
}

static bool select_rails(uint32_t count, struct bt_error *error, uint32_t *indices,
                         uint32_t *ret_count)
{
    const struct kvt_near near = kvt_near_here();

    return kvt_ports_select(ports, count, NULL, &near, error, indices, ret_count) == BT_OK;
}

static void look_at_devices(struct ctl_report *report)
{
    uint32_t count = kvt_ports_read(ports), indices[KVT_RAILS_MAX], rails = 0;
    struct bt_error error = {0};
    char names[300] = "";

    if (count == 0) {
        ctl_report_add(report, CTL_FINE, "rdma", "no RDMA device here");
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        look_at_port(report, &ports[i]);
    if (!select_rails(count, &error, indices, &rails)) {
        ctl_report_add(report, CTL_BROKEN, "rdma", "%s", error.text);
        return;
    }
    for (uint32_t i = 0; i < rails; i++)
        snprintf(names + strlen(names), sizeof(names) - strlen(names), " %s",
                 ports[indices[i]].name);
    ctl_report_add(report, CTL_FINE, "rdma", "rails:%s", names);
}

uint64_t ctl_doctor_rails_mbps(void)
{
    uint32_t count = kvt_ports_read(ports), indices[KVT_RAILS_MAX], rails = 0;
    uint64_t sum = 0;

    if (select_rails(count, NULL, indices, &rails))
        for (uint32_t i = 0; i < rails; i++)
            sum += ports[indices[i]].rate_mbps;
    return sum;
}

static void look_at_memlock(struct ctl_report *report)
{
    struct rlimit limit = {0};

    getrlimit(RLIMIT_MEMLOCK, &limit);
    if (limit.rlim_cur == RLIM_INFINITY)
        ctl_report_add(report, CTL_FINE, "memlock", "unlimited");
    else
        ctl_report_add(report, kvt_ports_read(ports) > 0 ? CTL_DEGRADED : CTL_FINE, "memlock",
                       "%" PRIu64 " MiB; RDMA has to lock the whole pool: "
                       "ulimit -l unlimited, or IPC_LOCK in a container",
                       (uint64_t)limit.rlim_cur >> 20);
}

static void look_at_shared_memory(struct ctl_report *report)
{
    struct statvfs stat;
    uint64_t size, available;

    if (statvfs("/dev/shm", &stat) != 0) {
        ctl_report_add(report, CTL_BROKEN, "/dev/shm", "not there: no shared memory for pools");
        return;
    }
    size = (uint64_t)stat.f_blocks * stat.f_frsize;
    available = (uint64_t)stat.f_bavail * stat.f_frsize;
    ctl_report_add(report, available < SHM_WANTED_BYTES ? CTL_DEGRADED : CTL_FINE, "/dev/shm",
                   "%.1f GiB, %.1f free%s", (double)size / (1 << 30), (double)available / (1 << 30),
                   available < SHM_WANTED_BYTES ? "; pools on one machine live here" : "");
}

static void look_at_huge_pages(struct ctl_report *report)
{
    FILE *file = fopen("/proc/meminfo", "re");
    char line[128];
    long total = 0, left = 0, size_kb = 0;

    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        sscanf(line, "HugePages_Total: %ld", &total);
        sscanf(line, "HugePages_Free: %ld", &left);
        sscanf(line, "Hugepagesize: %ld", &size_kb);
    }
    if (file != NULL)
        fclose(file);
    if (total == 0)
        ctl_report_add(report, CTL_FINE, "huge pages", "none reserved");
    else
        ctl_report_add(report, CTL_FINE, "huge pages", "%ld of %ld KiB, %ld free", total, size_kb,
                       left);
}

void ctl_doctor_machine(struct ctl_report *report)
{
    struct kvt_gpu_memory gpu;

    look_at_devices(report);
    look_at_memlock(report);
    look_at_shared_memory(report);
    look_at_huge_pages(report);
    kvt_gpu_memory_probe(&gpu);
    ctl_report_add(report,
                   gpu.gpu_driver && !gpu.peer_memory && !gpu.dmabuf ? CTL_DEGRADED : CTL_FINE,
                   "gpu memory", "%s", gpu.words);
}
