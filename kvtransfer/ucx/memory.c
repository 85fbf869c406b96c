#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvtransfer/pool_memory.h"
#include "kvtransfer/ucx/context.h"

bool kvt_ucx_is_shared(const void *base, size_t bytes)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512];
    bool shared = false;

    while (maps != NULL && fgets(line, sizeof(line), maps) != NULL) {
        uintptr_t begin, end;
        char access[5];
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s", &begin, &end, access) == 3 &&
            begin <= (uintptr_t)base && (uintptr_t)base < end)
            shared = access[3] == 's' && bytes <= end - (uintptr_t)base;
    }
    if (maps != NULL)
        fclose(maps);
    return shared;
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
    ucs_status_t status;

    if (kvt_pool_memory_check(memory->bytes, error) != BT_OK)
        return BT_ERR_NO_MEMORY;
    status = ucp_mem_map(ucx->context, &params, &memory->handle);
    if (status == UCS_OK)
        status = ucp_mem_query(memory->handle, &attributes);
    if (status != UCS_OK)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "can't allocate a pool of %zu bytes: %s",
                            memory->bytes, ucs_status_string(status));
    memory->base = attributes.address;
    if (!kvt_ucx_is_shared(memory->base, memory->bytes))
        return bt_error_set(error, BT_ERR_UNAVAILABLE,
                            "no shared memory for a pool of %zu bytes: see kernel.shmmax, "
                            "kernel.shmall and the size of /dev/shm",
                            memory->bytes);
    kvt_pool_memory_place(memory->base, memory->bytes);
    return BT_OK; /* fresh from the kernel: zeros */
}

static enum bt_status map_own(struct kvt_ucx *ucx, struct kvt_memory *memory,
                              struct bt_error *error)
{
    ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
        .length = memory->bytes,
    };
    enum bt_status result = kvt_pool_memory_map(memory->bytes, error, &memory->base);
    ucs_status_t status;

    if (result != BT_OK)
        return result;
    params.address = memory->base;
    memory->mapped = true;
    status = ucp_mem_map(ucx->context, &params, &memory->handle);
    if (status != UCS_OK)
        return bt_error_set(error, kvt_ucx_status(status), "can't register %zu bytes: %s",
                            memory->bytes, ucs_status_string(status));
    return BT_OK;
}

static enum bt_status alloc(struct kvt_transport *transport, size_t bytes, bool shared,
                            struct bt_error *error, struct kvt_memory **ret_memory)
{
    struct kvt_ucx *ucx = (struct kvt_ucx *)transport;
    struct kvt_memory *memory;
    enum bt_status status;

    memory = calloc(1, sizeof(*memory));
    if (memory == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    memory->bytes = bytes;
    memory->next = ucx->memories;
    ucx->memories = memory;
    status = shared ? alloc_by_ucx(ucx, memory, error) : map_own(ucx, memory, error);
    if (status != BT_OK) {
        kvt_ucx_memory_free(transport, memory);
        return status;
    }
    BT_ASSERT((uintptr_t)memory->base % (uintptr_t)sysconf(_SC_PAGESIZE) == 0);
    *ret_memory = memory;
    return BT_OK;
}

enum bt_status kvt_ucx_memory_alloc_shared(struct kvt_transport *transport, size_t bytes,
                                           struct bt_error *error, struct kvt_memory **ret_memory)
{
    return alloc(transport, bytes, true, error, ret_memory);
}

enum bt_status kvt_ucx_memory_alloc(struct kvt_transport *transport, size_t bytes,
                                    struct bt_error *error, struct kvt_memory **ret_memory)
{
    return alloc(transport, bytes, false, error, ret_memory);
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

    if (ucx->memory_kind == BT_MEMORY_CUDA) {
        params.field_mask |= UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
        params.memory_type = UCS_MEMORY_TYPE_CUDA;
    }
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

void *kvt_ucx_memory_base(const struct kvt_memory *memory)
{
    return memory->base;
}

enum bt_status kvt_ucx_key_pack(struct kvt_ucx *ucx, enum kvt_blob_kind kind,
                                const struct kvt_memory *memory, struct bt_error *error,
                                void **ret_key, size_t *ret_size)
{
    struct kvt_key_range range = {.base = (uintptr_t)memory->base, .bytes = memory->bytes};
    enum bt_status result;
    ucs_status_t status;
    void *rkey;
    size_t size;

    status = ucp_rkey_pack(ucx->context, memory->handle, &rkey, &size);
    if (status != UCS_OK)
        return bt_error_set(error, kvt_ucx_status(status), "ucp_rkey_pack: %s",
                            ucs_status_string(status));
    result = kvt_key_pack(kind, &range, rkey, size, error, ret_key, ret_size);
    ucp_rkey_buffer_release(rkey);
    return result;
}

enum bt_status kvt_ucx_worker_address(struct kvt_ucx *ucx, enum kvt_blob_kind kind,
                                      struct bt_error *error, void **ret_blob, size_t *ret_size)
{
    ucp_address_t *address;
    enum bt_status result;
    ucs_status_t status;
    size_t size;

    status = ucp_worker_get_address(ucx->worker, &address, &size);
    if (status != UCS_OK)
        return bt_error_set(error, kvt_ucx_status(status), "ucp_worker_get_address: %s",
                            ucs_status_string(status));
    result = kvt_worker_address_pack(kind, &ucx->self, address, size, error, ret_blob, ret_size);
    ucp_worker_release_address(ucx->worker, address);
    return result;
}
