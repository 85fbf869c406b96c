#include "kvtransfer/pool_memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>

/* UINT64_MAX where the kernel does not say. */
static uint64_t available_bytes(void)
{
    FILE *info = fopen("/proc/meminfo", "re");
    char line[128];
    uint64_t kib, bytes = UINT64_MAX;

    while (info != NULL && fgets(line, sizeof(line), info) != NULL) {
        if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) == 1)
            bytes = kib * 1024;
    }
    if (info != NULL)
        fclose(info);
    return bytes;
}

enum bt_status kvt_pool_memory_check(size_t bytes, struct bt_error *error)
{
    uint64_t available = available_bytes();

    if (bytes > available)
        return bt_error_set(error, BT_ERR_NO_MEMORY,
                            "a pool of %zu bytes: only %" PRIu64 " bytes of memory are available",
                            bytes, available);
    return BT_OK;
}

enum bt_status kvt_pool_memory_map(size_t bytes, struct bt_error *error, void **ret_base)
{
    enum bt_status status = kvt_pool_memory_check(bytes, error);
    void *base;

    if (status != BT_OK)
        return status;
    base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "can't allocate a pool of %zu bytes: %m",
                            bytes);
    madvise(base, bytes, MADV_HUGEPAGE); /* small pages do as well */
    *ret_base = base;
    return BT_OK;
}
