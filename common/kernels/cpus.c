#include "common/kernels/cpus.h"

#include <hwloc.h>
#include <stdlib.h>

struct bt_cpus {
    hwloc_topology_t topology;
    hwloc_cpuset_t all;
    uint32_t count;
    uint32_t numbers[BT_CPUS_MAX]; /* in the order of the list */
};

static enum bt_status unreadable(const char *list, const char *at, const char *what,
                                 struct bt_error *error)
{
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "cpus '%.64s': %s at '%.16s'", list, what,
                        at);
}

/* A decimal number at *at, which moves behind it. */
static bool read_number(const char **at, uint32_t *ret_number)
{
    uint64_t number = 0;
    const char *start = *at;
    for (; **at >= '0' && **at <= '9' && number < BT_CPUS_MAX * (uint64_t)1000; (*at)++)
        number = number * 10 + (uint64_t)(**at - '0');
    *ret_number = (uint32_t)number;
    return *at != start;
}

static enum bt_status add(struct bt_cpus *cpus, const char *list, uint32_t number,
                          hwloc_const_cpuset_t usable, struct bt_error *error)
{
    if (number > INT32_MAX || !hwloc_bitmap_isset(usable, number))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "cpus '%.64s': this process may not use cpu %u", list, number);
    if (hwloc_bitmap_isset(cpus->all, number))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "cpus '%.64s': cpu %u is named twice",
                            list, number);
    if (cpus->count == BT_CPUS_MAX)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "cpus '%.64s': more than %d", list,
                            BT_CPUS_MAX);
    hwloc_bitmap_set(cpus->all, number);
    cpus->numbers[cpus->count++] = number;
    return BT_OK;
}

static enum bt_status read_list(struct bt_cpus *cpus, const char *list, hwloc_const_cpuset_t usable,
                                struct bt_error *error)
{
    const char *at = list;
    for (;;) {
        const char *range = at;
        uint32_t first, last;
        if (!read_number(&at, &first))
            return unreadable(list, at, "no number", error);
        last = first;
        if (*at == '-') {
            at++;
            if (!read_number(&at, &last))
                return unreadable(list, at, "no number", error);
        }
        if (last < first)
            return unreadable(list, range, "a range that falls", error);
        enum bt_status status = BT_OK;
        for (uint32_t cpu = first; status == BT_OK && cpu <= last; cpu++)
            status = add(cpus, list, cpu, usable, error);
        if (status != BT_OK || *at == '\0')
            return status;
        if (*at++ != ',')
            return unreadable(list, at - 1, "neither ',' nor '-'", error);
    }
}

static enum bt_status fill(struct bt_cpus *cpus, const char *list, struct bt_error *error)
{
    if (hwloc_topology_init(&cpus->topology) || hwloc_topology_load(cpus->topology))
        return bt_error_set(error, BT_ERR_INTERNAL, "cpus: the machine's topology can't be read");
    cpus->all = hwloc_bitmap_alloc();
    hwloc_cpuset_t usable = hwloc_bitmap_alloc();
    enum bt_status status = BT_OK;
    if (!cpus->all || !usable)
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "cpus: no memory");
    else if (hwloc_get_cpubind(cpus->topology, usable, HWLOC_CPUBIND_PROCESS))
        status = bt_error_set(error, BT_ERR_INTERNAL, "cpus: the usable ones can't be read");
    if (status == BT_OK)
        status = read_list(cpus, list, usable, error);
    hwloc_bitmap_free(usable);
    return status;
}

enum bt_status bt_cpus_create(const char *list, struct bt_error *error, struct bt_cpus **ret_cpus)
{
    struct bt_cpus *cpus = calloc(1, sizeof(*cpus));
    if (!cpus)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "cpus: no memory");
    enum bt_status status = fill(cpus, list, error);
    if (status != BT_OK) {
        bt_cpus_destroy(cpus);
        return status;
    }
    *ret_cpus = cpus;
    return BT_OK;
}

void bt_cpus_destroy(struct bt_cpus *cpus)
{
    if (!cpus)
        return;
    hwloc_bitmap_free(cpus->all);
    if (cpus->topology)
        hwloc_topology_destroy(cpus->topology);
    free(cpus);
}

uint32_t bt_cpus_count(const struct bt_cpus *cpus)
{
    return cpus->count;
}

uint32_t bt_cpus_number(const struct bt_cpus *cpus, uint32_t index)
{
    BT_ASSERT(index < cpus->count);
    return cpus->numbers[index];
}

/* A cpu may be taken out of service later: then the thread floats. */
static void pin(const struct bt_cpus *cpus, hwloc_const_cpuset_t set)
{
    (void)hwloc_set_cpubind(cpus->topology, set, HWLOC_CPUBIND_THREAD);
}

void bt_cpus_pin(const struct bt_cpus *cpus, uint32_t index)
{
    BT_ASSERT(index < cpus->count);
    hwloc_cpuset_t one = hwloc_bitmap_alloc();
    if (!one || hwloc_bitmap_only(one, cpus->numbers[index]))
        pin(cpus, cpus->all);
    else
        pin(cpus, one);
    hwloc_bitmap_free(one);
}

void bt_cpus_pin_to_all(const struct bt_cpus *cpus)
{
    pin(cpus, cpus->all);
}

static uint32_t place_memory(hwloc_topology_t topology, hwloc_const_cpuset_t near, void *start,
                             size_t bytes, int flags)
{
    hwloc_nodeset_t nodes = hwloc_bitmap_alloc();
    if (!nodes)
        return 1;
    int known = 0;
    if (!hwloc_cpuset_to_nodeset(topology, near, nodes))
        known = hwloc_bitmap_weight(nodes);
    if (hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_NUMANODE) > 1 && known > 0)
        (void)hwloc_set_area_membind(topology, start, bytes, nodes,
                                     known > 1 ? HWLOC_MEMBIND_INTERLEAVE : HWLOC_MEMBIND_BIND,
                                     HWLOC_MEMBIND_BYNODESET | flags);
    hwloc_bitmap_free(nodes);
    return known > 1 ? (uint32_t)known : 1;
}

uint32_t bt_cpus_place_memory(const struct bt_cpus *cpus, void *start, size_t bytes)
{
    return place_memory(cpus->topology, cpus->all, start, bytes, 0);
}

uint32_t bt_cpus_place_memory_near_thread(void *start, size_t bytes)
{
    hwloc_topology_t topology;
    uint32_t nodes = 1;
    if (hwloc_topology_init(&topology))
        return 1;
    hwloc_cpuset_t near = hwloc_bitmap_alloc();
    if (near && !hwloc_topology_load(topology) &&
        !hwloc_get_cpubind(topology, near, HWLOC_CPUBIND_THREAD))
        nodes = place_memory(topology, near, start, bytes, HWLOC_MEMBIND_MIGRATE);
    hwloc_bitmap_free(near);
    hwloc_topology_destroy(topology);
    return nodes;
}
