#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvtransfer/rails/devices.h"

/* The first line of a file, without its end. False: no such file. */
static bool read_line(const char *path, char *ret_text, size_t size)
{
    FILE *file = fopen(path, "re");
    bool found;

    if (file == NULL)
        return false;
    found = fgets(ret_text, (int)size, file) != NULL;
    fclose(file);
    if (found)
        ret_text[strcspn(ret_text, "\n")] = '\0';
    return found;
}

static int read_numa_node(const char *directory)
{
    char path[PATH_MAX + 16], text[32];

    snprintf(path, sizeof(path), "%s/numa_node", directory);
    return read_line(path, text, sizeof(text)) ? atoi(text) : -1;
}

/* What follows …/devices/ in the real path of `link`, if that is a PCI device. */
static bool resolve_pci(const char *link, char ret_path[KVT_PCI_PATH_SIZE], int *ret_numa_node)
{
    char real[PATH_MAX];
    const char *pci;

    if (realpath(link, real) == NULL || (pci = strstr(real, "/devices/pci")) == NULL)
        return false;
    *ret_numa_node = read_numa_node(real);
    return snprintf(ret_path, KVT_PCI_PATH_SIZE, "%s", pci + strlen("/devices/")) <
           KVT_PCI_PATH_SIZE;
}

bool kvt_sysfs_pci(const char *sysfs, const char *bus_id, char ret_path[KVT_PCI_PATH_SIZE],
                   int *ret_numa_node)
{
    char link[PATH_MAX];

    if (strchr(bus_id, '/') != NULL)
        return false;
    snprintf(link, sizeof(link), "%s/bus/pci/devices/%s", sysfs, bus_id);
    return resolve_pci(link, ret_path, ret_numa_node);
}

/* Drivers of GPUs write hexadecimal digits in capitals, sysfs does not. */
bool kvt_near_gpu(const char *sysfs, const char *bus_id, char path[KVT_PCI_PATH_SIZE],
                  struct kvt_near *ret_near)
{
    char small[32];
    size_t length = 0;
    int node;

    for (; bus_id[length] != '\0' && length + 1 < sizeof(small); length++)
        small[length] = (char)tolower((unsigned char)bus_id[length]);
    small[length] = '\0';
    if (length == 0 || !kvt_sysfs_pci(sysfs, small, path, &node))
        return false;
    *ret_near = (struct kvt_near){.pci_path = path, .numa_node = node};
    return true;
}

/* "0-3,8": whether one of these CPUs is in the list. */
static bool list_has_any(const char *list, const cpu_set_t *cpus)
{
    long first, last;
    char *end;

    for (const char *at = list; *at != '\0'; at = *end == ',' ? end + 1 : "") {
        first = last = strtol(at, &end, 10);
        if (end == at)
            return false;
        if (*end == '-')
            last = strtol(end + 1, &end, 10);
        for (long cpu = first; cpu >= 0 && cpu <= last && cpu < CPU_SETSIZE; cpu++)
            if (CPU_ISSET((size_t)cpu, cpus))
                return true;
    }
    return false;
}

int kvt_sysfs_node_of_cpus(const char *sysfs, const cpu_set_t *cpus)
{
    enum { NODES_MAX = 1024 };
    char path[PATH_MAX], list[4096];
    int node = -1;

    for (int i = 0; i < NODES_MAX; i++) {
        snprintf(path, sizeof(path), "%s/devices/system/node/node%d/cpulist", sysfs, i);
        if (!read_line(path, list, sizeof(list)) || !list_has_any(list, cpus))
            continue;
        if (node >= 0)
            return -1;
        node = i;
    }
    return node;
}

struct kvt_near kvt_near_here(void)
{
    struct kvt_near near = {.numa_node = -1};
    cpu_set_t cpus;

    if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0)
        near.numa_node = kvt_sysfs_node_of_cpus("/sys", &cpus);
    return near;
}

void kvt_sysfs_locate(const char *sysfs, struct kvt_rdma_port *port)
{
    int device = (int)strcspn(port->name, ":");
    char path[PATH_MAX], text[64];

    port->numa_node = -1;
    snprintf(path, sizeof(path), "%s/class/infiniband/%.*s/device", sysfs, device, port->name);
    if (!resolve_pci(path, port->pci_path, &port->numa_node))
        port->pci_path[0] = '\0';
    if (port->rate_mbps != 0)
        return;
    snprintf(path, sizeof(path), "%s/class/infiniband/%.*s/ports/%s/rate", sysfs, device,
             port->name, port->name + device + (port->name[device] == ':'));
    if (read_line(path, text, sizeof(text)))
        port->rate_mbps = kvt_rate_parse_mbps(text);
}
