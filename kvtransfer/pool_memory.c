#include "kvtransfer/pool_memory.h"

#include <inttypes.h>
#include <sys/mman.h>

#include "common/base/memory.h"
#include "common/kernels/cpus.h"

enum bt_status kvt_pool_memory_check(size_t bytes, struct bt_error *error)
{
    uint64_t available = bt_memory_available_bytes();

    if (bytes > available)
        return bt_error_set(error, BT_ERR_NO_MEMORY,
                            "a pool of %zu bytes: only %" PRIu64 " bytes of memory are available",
                            bytes, available);
    return BT_OK;
}

void kvt_pool_memory_place(void *base, size_t bytes)
{
    (void)bt_cpus_place_memory_near_thread(base, bytes);
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
    kvt_pool_memory_place(base, bytes);
    *ret_base = base;
    return BT_OK;
}
