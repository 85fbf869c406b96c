#include "kvtransfer/preflight.h"

#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include "kvtransfer/rails/devices.h"
#include "kvtransfer/rails/gpu_memory.h"
#ifdef KVT_HAVE_UCX
#include "kvtransfer/ucx/ucx.h"
#endif

/* The message first: it is what others hold. */
struct preflight {
    Baton__V1__PreflightResponse message;
    Baton__V1__PreflightPort ports[KVT_PORTS_MAX];
    Baton__V1__PreflightPort *port_list[KVT_PORTS_MAX];
    struct kvt_rdma_port found[KVT_PORTS_MAX];
    char gids[KVT_PORTS_MAX][48];
    struct bt_error rails_error;
    struct kvt_gpu_memory gpu;
    char net_device[64];
};

static void fill_port(struct preflight *p, uint32_t i)
{
    const struct kvt_rdma_port *found = &p->found[i];
    const struct kvt_gid *gid = kvt_gid_choose(found);
    const char *problem = kvt_port_problem(found);
    Baton__V1__PreflightPort *port = &p->ports[i];

    baton__v1__preflight_port__init(port);
    port->name = (char *)found->name;
    port->state = (char *)found->state;
    port->infiniband = found->infiniband;
    port->rate_mbps = found->rate_mbps;
    port->mtu = found->mtu;
    port->numa_node = found->numa_node;
    if (problem != NULL)
        port->problem = (char *)problem;
    if (gid != NULL) {
        kvt_gid_format(gid, p->gids[i]);
        port->gid = p->gids[i];
        port->gid_index = gid->index;
        port->gid_type = (char *)kvt_gid_type_name(gid->type);
    }
    p->port_list[i] = port;
}

static void look_at_ports(struct preflight *p, const char *device)
{
    const struct kvt_near near = kvt_near_here();
    uint32_t count = kvt_ports_read(p->found), rails[KVT_RAILS_MAX], rail_count = 0;

    p->message.numa_node = near.numa_node;
    for (uint32_t i = 0; i < count; i++)
        fill_port(p, i);
    p->message.port = p->port_list;
    p->message.n_port = count;
    if (count == 0)
        return;
    if (kvt_ports_select(p->found, count, device, &near, &p->rails_error, rails, &rail_count) !=
        BT_OK)
        p->message.rails_problem = p->rails_error.text;
    for (uint32_t i = 0; i < rail_count; i++)
        p->ports[rails[i]].rail = true;
}

static void look_at_memory(Baton__V1__PreflightResponse *message)
{
    struct rlimit limit = {0};
    struct statvfs shm;
    unsigned long value;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "re");

    getrlimit(RLIMIT_MEMLOCK, &limit);
    message->memlock_bytes = limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : limit.rlim_cur;
    if (statvfs("/dev/shm", &shm) == 0) {
        message->shm_bytes = (uint64_t)shm.f_blocks * shm.f_frsize;
        message->shm_free_bytes = (uint64_t)shm.f_bavail * shm.f_frsize;
    }
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        if (sscanf(line, "HugePages_Total: %lu", &value) == 1)
            message->huge_pages = value;
        if (sscanf(line, "HugePages_Free: %lu", &value) == 1)
            message->huge_pages_free = value;
        if (sscanf(line, "Hugepagesize: %lu", &value) == 1)
            message->huge_page_kib = value;
    }
    if (file != NULL)
        fclose(file);
}

static bool same_address(const struct sockaddr *a, const struct sockaddr *b)
{
    if (a == NULL || a->sa_family != b->sa_family)
        return false;
    if (a->sa_family == AF_INET)
        return memcmp(&((const struct sockaddr_in *)a)->sin_addr,
                      &((const struct sockaddr_in *)b)->sin_addr, sizeof(struct in_addr)) == 0;
    return a->sa_family == AF_INET6 &&
           memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr,
                  &((const struct sockaddr_in6 *)b)->sin6_addr, sizeof(struct in6_addr)) == 0;
}

static void find_net_device(const char *host, char *ret_name, size_t size)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST};
    struct addrinfo *address = NULL;
    struct ifaddrs *list = NULL;

    if (getaddrinfo(host, NULL, &hints, &address) == 0 && getifaddrs(&list) == 0)
        for (const struct ifaddrs *at = list; at != NULL && ret_name[0] == '\0'; at = at->ifa_next)
            if (same_address(at->ifa_addr, address->ai_addr))
                snprintf(ret_name, size, "%s", at->ifa_name);
    if (list != NULL)
        freeifaddrs(list);
    if (address != NULL)
        freeaddrinfo(address);
}

static void look_at_net(struct preflight *p, const char *host)
{
    char path[128];
    FILE *file;
    long mbps = 0;

    find_net_device(host != NULL ? host : "127.0.0.1", p->net_device, sizeof(p->net_device));
    if (p->net_device[0] == '\0')
        return;
    p->message.net_device = p->net_device;
    snprintf(path, sizeof(path), "/sys/class/net/%s/speed", p->net_device);
    file = fopen(path, "re");
    if (file == NULL)
        return;
    if (fscanf(file, "%ld", &mbps) == 1 && mbps > 0 && mbps < UINT32_MAX)
        p->message.net_mbps = (uint32_t)mbps;
    fclose(file);
}

Baton__V1__PreflightResponse *kvt_preflight_create(const struct kvt_preflight_options *options)
{
    const Baton__V1__RegisterRequest *identity = options->identity;
    struct preflight *p = calloc(1, sizeof(*p));

    if (p == NULL)
        return NULL;
    baton__v1__preflight_response__init(&p->message);
    if (identity != NULL) {
        p->message.worker_id = identity->worker_id;
        p->message.incarnation = identity->incarnation;
        p->message.process = identity->process;
        p->message.fingerprint = identity->fingerprint;
        p->message.transport = identity->transport;
    }
    if (options->not_ready != NULL)
        p->message.not_ready = (char *)options->not_ready;
    if (options->brief)
        return &p->message;
    look_at_ports(p, options->device);
    look_at_memory(&p->message);
    look_at_net(p, options->bind_host);
    kvt_gpu_memory_probe(&p->gpu);
    p->message.gpu_memory = p->gpu.words;
    p->message.gpu_unreachable = p->gpu.gpu_driver && !p->gpu.peer_memory && !p->gpu.dmabuf;
    return &p->message;
}

void kvt_preflight_destroy(Baton__V1__PreflightResponse *preflight)
{
    free(preflight); /* the first member */
}

enum bt_status kvt_preflight_ucx(struct bt_error *error, const char **ret_version)
{
#ifdef KVT_HAVE_UCX
    return kvt_ucx_check_gpus(error, ret_version);
#else
    (void)ret_version;
    return bt_error_set(error, BT_ERR_UNSUPPORTED, "UCX is not in this build");
#endif
}

uint64_t kvt_preflight_rails_mbps(const Baton__V1__PreflightResponse *preflight)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < preflight->n_port; i++)
        if (preflight->port[i]->rail)
            sum += preflight->port[i]->rate_mbps;
    return sum;
}
