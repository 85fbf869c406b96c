#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/base/log.h"
#include "kvtransfer/ucx/internal.h"

/* Whether this address lies in a shared mapping, so that peers of this host can store to it. */
static bool is_shared(const void *base)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512];
    bool shared = false;

    while (maps != NULL && fgets(line, sizeof(line), maps) != NULL) {
        uintptr_t begin, end;
        char access[5];
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s", &begin, &end, access) == 3 &&
            begin <= (uintptr_t)base && (uintptr_t)base < end)
            shared = access[3] == 's';
    }
    if (maps != NULL)
        fclose(maps);
    return shared;
}

/* What the kernel could give without swapping; UINT64_MAX where it does not say. */
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

/* Puts from shared memory transports are stores only into memory that UCX allocated. */
static enum bt_status alloc_by_ucx(struct kvt_ucx *ucx, struct kvt_memory *memory,
                                   struct bt_error *error)
{
    ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                      UCP_MEM_MAP_PARAM_FIELD_FLAGS,
        .length = memory->bytes,
        .flags = UCP_MEM_MAP_ALLOCATE,
    };
    ucp_mem_attr_t attributes = {.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS};
    ucs_status_t status = ucp_mem_map(ucx->context, &params, &memory->handle);

    if (status == UCS_OK)
        status = ucp_mem_query(memory->handle, &attributes);
    if (status != UCS_OK)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "can't allocate a pool of %zu bytes: %s",
                            memory->bytes, ucs_status_string(status));
    memory->base = attributes.address;
    if (is_shared(memory->base))
        return BT_OK; /* fresh from the kernel: zeros */
    if (ucx->mode == KVT_UCX_SHM)
        return bt_error_set(error, BT_ERR_UNAVAILABLE,
                            "no shared memory for a pool of %zu bytes: see kernel.shmmax, "
                            "kernel.shmall and the size of /dev/shm",
                            memory->bytes);
    bt_log_warn(0,
                "no shared memory for a pool of %zu bytes (see kernel.shmmax, /dev/shm): "
                "writes on this host will be slow",
                memory->bytes);
    memset(memory->base, 0, memory->bytes);
    return BT_OK;
}

static enum bt_status map_own(struct kvt_ucx *ucx, struct kvt_memory *memory,
                              struct bt_error *error)
{
    ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
        .length = memory->bytes,
    };
    ucs_status_t status;
    void *base =
        mmap(NULL, memory->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (base == MAP_FAILED)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "can't allocate a pool of %zu bytes: %m",
                            memory->bytes);
    memory->base = params.address = base;
    memory->mapped = true;
    status = ucp_mem_map(ucx->context, &params, &memory->handle);
    if (status != UCS_OK)
        return bt_error_set(error, kvt_ucx_status(status), "can't register %zu bytes: %s",
                            memory->bytes, ucs_status_string(status));
    return BT_OK;
}

enum bt_status kvt_ucx_memory_alloc(struct kvt_transport *transport, size_t bytes,
                                    struct bt_error *error, struct kvt_memory **ret_memory)
{
    struct kvt_ucx *ucx = (struct kvt_ucx *)transport;
    struct kvt_memory *memory;
    uint64_t available = available_bytes();
    enum bt_status status;

    /* A pool is touched as a whole at once: one that does not fit stalls the machine first. */
    if (bytes > available)
        return bt_error_set(error, BT_ERR_NO_MEMORY,
                            "a pool of %zu bytes: only %" PRIu64 " bytes of memory are available",
                            bytes, available);
    memory = calloc(1, sizeof(*memory));
    if (memory == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    memory->bytes = bytes;
    memory->next = ucx->memories;
    ucx->memories = memory;
    if (ucx->mode == KVT_UCX_AUTO || ucx->mode == KVT_UCX_SHM)
        status = alloc_by_ucx(ucx, memory, error);
    else
        status = map_own(ucx, memory, error);
    if (status != BT_OK) {
        kvt_ucx_memory_free(transport, memory);
        return status;
    }
    BT_ASSERT((uintptr_t)memory->base % (uintptr_t)sysconf(_SC_PAGESIZE) == 0);
    *ret_memory = memory;
    return BT_OK;
}

enum bt_status kvt_ucx_memory_register(struct kvt_transport *transport, void *base, size_t bytes,
                                       struct bt_error *error, struct kvt_memory **ret_memory)
{
    struct kvt_ucx *ucx = (struct kvt_ucx *)transport;
    struct kvt_memory *memory = calloc(1, sizeof(*memory));
    ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
        .address = base,
        .length = bytes,
    };
    ucs_status_t status;

    if (memory == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    memory->base = base;
    memory->bytes = bytes;
    status = ucp_mem_map(ucx->context, &params, &memory->handle);
    if (status != UCS_OK) {
        free(memory);
        return bt_error_set(error, kvt_ucx_status(status), "can't register %zu bytes: %s", bytes,
                            ucs_status_string(status));
    }
    memory->next = ucx->memories;
    ucx->memories = memory;
    *ret_memory = memory;
    return BT_OK;
}

void kvt_ucx_memory_free(struct kvt_transport *transport, struct kvt_memory *memory)
{
    struct kvt_ucx *ucx = (struct kvt_ucx *)transport;
    struct kvt_memory **link = &ucx->memories;

    if (memory == NULL)
        return;
    while (*link != memory)
        link = &(*link)->next;
    *link = memory->next;
    if (memory->handle != NULL)
        ucp_mem_unmap(ucx->context, memory->handle);
    if (memory->mapped)
        munmap(memory->base, memory->bytes);
    free(memory);
}

bool kvt_ucx_memory_has(const struct kvt_ucx *ucx, uint64_t address, uint64_t bytes)
{
    for (const struct kvt_memory *memory = ucx->memories; memory != NULL; memory = memory->next) {
        uint64_t base = (uintptr_t)memory->base;
        if (bytes <= memory->bytes && address >= base && address - base <= memory->bytes - bytes)
            return true;
    }
    return false;
}

void *kvt_ucx_memory_base(const struct kvt_memory *memory)
{
    return memory->base;
}

enum bt_status kvt_ucx_memory_pack_key(struct kvt_transport *transport,
                                       const struct kvt_memory *memory, struct bt_error *error,
                                       void **ret_key, size_t *ret_size)
{
    struct kvt_ucx *ucx = (struct kvt_ucx *)transport;
    struct kvt_ucx_key key = {.base = (uintptr_t)memory->base, .bytes = memory->bytes};
    enum bt_status result;
    ucs_status_t status;
    void *rkey;
    size_t size;

    status = ucp_rkey_pack(ucx->context, memory->handle, &rkey, &size);
    if (status != UCS_OK)
        return bt_error_set(error, kvt_ucx_status(status), "ucp_rkey_pack: %s",
                            ucs_status_string(status));
    result = kvt_ucx_key_pack(&key, rkey, size, error, ret_key, ret_size);
    ucp_rkey_buffer_release(rkey);
    return result;
}
