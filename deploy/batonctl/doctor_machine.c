/* What a preflight says, judged: of a worker, or of this machine. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "deploy/batonctl/doctor.h"
#include "deploy/batonctl/doctor_gpu.h"
#include "kvtransfer/preflight.h"

#define SHM_WANTED_BYTES (UINT64_C(1) << 30) /* less is too little for any real pool */

/* "memlock" of this machine is "prefill-0 memlock" of a worker. */
static const char *of(const char *who, const char *what, char *text, size_t size)
{
    snprintf(text, size, "%.60s%s%.30s", who, who[0] != '\0' ? " " : "", what);
    return text;
}

static void judge_port(struct ctl_report *report, const char *who,
                       const Baton__V1__PreflightPort *port)
{
    char name[96], what[96], gid[200] = "no GID";

    snprintf(name, sizeof(name), "port %.80s", port->name);
    of(who, name, what, sizeof(what));
    if (port->gid[0] != '\0')
        snprintf(gid, sizeof(gid), "GID %" PRIu32 " %.50s (%.20s)", port->gid_index, port->gid,
                 port->gid_type);
    ctl_report_add(report, port->problem[0] != '\0' ? CTL_DEGRADED : CTL_FINE, what,
                   "%.40s, %s, %.1f Gb/s, MTU %" PRIu32 ", NUMA node %" PRId32 ", %s%s%.100s",
                   port->state, port->infiniband ? "InfiniBand" : "Ethernet",
                   port->rate_mbps / 1000.0, port->mtu, port->numa_node, gid,
                   port->problem[0] != '\0' ? "; no rail: "
                   : port->rail             ? "; a rail"
                                            : "",
                   port->problem);
    if (port->gid[0] != '\0' && !port->infiniband && strcmp(port->gid_type, "RoCE v2") != 0)
        ctl_report_add(report, CTL_DEGRADED, what, "only RoCE v1, which routers do not pass on");
}

static void judge_ports(struct ctl_report *report, const char *who,
                        const Baton__V1__PreflightResponse *preflight)
{
    char what[96], names[300] = "";

    of(who, "rdma", what, sizeof(what));
    for (size_t i = 0; i < preflight->n_port; i++)
        judge_port(report, who, preflight->port[i]);
    if (preflight->n_port == 0) {
        ctl_report_add(report, CTL_FINE, what, "no RDMA device");
        return;
    }
    if (preflight->rails_problem[0] != '\0') {
        ctl_report_add(report, CTL_BROKEN, what, "%.400s", preflight->rails_problem);
        return;
    }
    for (size_t i = 0; i < preflight->n_port; i++)
        if (preflight->port[i]->rail)
            snprintf(names + strlen(names), sizeof(names) - strlen(names), " %.60s",
                     preflight->port[i]->name);
    ctl_report_add(report, CTL_FINE, what, "rails:%s", names);
}

static void judge_memory(struct ctl_report *report, const char *who,
                         const Baton__V1__PreflightResponse *preflight)
{
    bool small = preflight->shm_free_bytes < SHM_WANTED_BYTES;
    bool wanted = preflight->transport[0] == '\0' || strstr(preflight->transport, "shm") != NULL;
    char what[96];

    of(who, "memlock", what, sizeof(what));
    if (preflight->memlock_bytes == UINT64_MAX)
        ctl_report_add(report, CTL_FINE, what, "unlimited");
    else
        ctl_report_add(report, preflight->n_port > 0 ? CTL_DEGRADED : CTL_FINE, what,
                       "%" PRIu64 " MiB; RDMA has to lock the whole pool: "
                       "ulimit -l unlimited, or IPC_LOCK in a container",
                       preflight->memlock_bytes >> 20);
    of(who, "/dev/shm", what, sizeof(what));
    if (preflight->shm_bytes == 0)
        ctl_report_add(report, wanted ? CTL_BROKEN : CTL_FINE, what,
                       "not there: no shared memory for pools");
    else
        ctl_report_add(report, small && wanted ? CTL_DEGRADED : CTL_FINE, what,
                       "%.1f GiB, %.1f free%s", (double)preflight->shm_bytes / (1 << 30),
                       (double)preflight->shm_free_bytes / (1 << 30),
                       small && wanted ? "; pools on one machine live here" : "");
    of(who, "huge pages", what, sizeof(what));
    if (preflight->huge_pages == 0)
        ctl_report_add(report, CTL_FINE, what, "none reserved");
    else
        ctl_report_add(report, CTL_FINE, what, "%" PRIu64 " of %" PRIu64 " KiB, %" PRIu64 " free",
                       preflight->huge_pages, preflight->huge_page_kib, preflight->huge_pages_free);
}

void ctl_doctor_judge(struct ctl_report *report, const char *who,
                      const Baton__V1__PreflightResponse *preflight)
{
    char what[96];

    judge_ports(report, who, preflight);
    judge_memory(report, who, preflight);
    ctl_report_add(report, preflight->gpu_unreachable ? CTL_DEGRADED : CTL_FINE,
                   of(who, "gpu memory", what, sizeof(what)), "%.400s", preflight->gpu_memory);
    if (preflight->net_mbps > 0)
        ctl_report_add(report, CTL_FINE, of(who, "network", what, sizeof(what)), "%.60s, %.1f Gb/s",
                       preflight->net_device, preflight->net_mbps / 1000.0);
    else if (preflight->net_device[0] != '\0')
        ctl_report_add(report, CTL_FINE, of(who, "network", what, sizeof(what)),
                       "%.60s, of no known rate", preflight->net_device);
}

void ctl_doctor_machine(struct ctl_report *report, int64_t timeout_ns)
{
    const struct kvt_preflight_options options = {0};
    Baton__V1__PreflightResponse *preflight = kvt_preflight_create(&options);

    if (preflight == NULL)
        ctl_report_add(report, CTL_BROKEN, "preflight", "no memory");
    else
        ctl_doctor_judge(report, "", preflight);
    ctl_doctor_gpus(report, preflight != NULL && kvt_preflight_rails_mbps(preflight) > 0,
                    timeout_ns);
    kvt_preflight_destroy(preflight);
}
