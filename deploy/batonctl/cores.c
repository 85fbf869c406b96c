#include "deploy/batonctl/cores.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>

#include "common/kernels/cpus.h"

static size_t append(char *list, size_t at, uint32_t cpu)
{
    if (at < CTL_CORES_SIZE)
        at += (size_t)snprintf(list + at, CTL_CORES_SIZE - at, "%s%" PRIu32, at ? "," : "", cpu);
    return at;
}

enum bt_status ctl_cores_share(const char *list, uint32_t workers, uint32_t index,
                               struct bt_error *error, char ret_list[CTL_CORES_SIZE])
{
    struct bt_cpus *cpus;
    enum bt_status status = bt_cpus_create(list, error, &cpus);
    if (status != BT_OK)
        return status;
    uint32_t count = bt_cpus_count(cpus), each = count / workers, more = count % workers;
    uint32_t first = index * each + (index < more ? index : more);
    uint32_t end = first + each + (index < more);
    size_t at = 0;
    for (uint32_t i = first; i < end; i++)
        at = append(ret_list, at, bt_cpus_number(cpus, i));
    bt_cpus_destroy(cpus);
    if (each == 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "cpus '%.64s': %" PRIu32 " for %" PRIu32 " workers", list, count,
                            workers);
    if (at >= CTL_CORES_SIZE)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "cpus '%.64s': too many", list);
    return BT_OK;
}

bool ctl_cores_divide(uint32_t prefill, uint32_t decode, char ret_prefill[CTL_CORES_SIZE],
                      char ret_decode[CTL_CORES_SIZE])
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0)
        return false;
    uint32_t count = (uint32_t)CPU_COUNT(&set), workers = prefill + decode;
    if (count < 2 * workers)
        return false;
    uint32_t each = (count - 1) / workers, spare = count - each * workers, seen = 0;
    size_t prefill_at = 0, decode_at = 0;
    for (uint32_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &set) || seen++ < spare)
            continue;
        if (seen - spare <= prefill * each)
            prefill_at = append(ret_prefill, prefill_at, cpu);
        else
            decode_at = append(ret_decode, decode_at, cpu);
    }
    return prefill_at < CTL_CORES_SIZE && decode_at < CTL_CORES_SIZE;
}
