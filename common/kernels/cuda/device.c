#include <cuda.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/kernels/cuda/device_ops.h"
#include "common/kernels/cuda/host.h"
#include "common/kernels/cuda/table.h"

#define MIN_ARCH       80
#define MIN_SHARED     (163 * 1024) /* of a block: what sm_80 has */
#define DRIVER_VERSION "/proc/driver/nvidia/version"

static struct bt_cuda_device *cuda_device(struct bt_device *device)
{
    return (struct bt_cuda_device *)device;
}

void bt_cuda_count_wait(struct bt_cuda_device *device)
{
    __atomic_fetch_add(&device->waits, 1, __ATOMIC_RELAXED);
}

/* Told here, it is not the next one's. */
static enum bt_status fault(const char *name, cudaError_t result, const char *what,
                            struct bt_error *error)
{
    (void)cudaGetLastError();
    return bt_error_set(error, BT_ERR_INTERNAL, "%s: %s: %s", name, what,
                        cudaGetErrorString(result));
}

/* A question that got no answer leaves no error behind. */
static bool told(cudaError_t result)
{
    if (result != cudaSuccess)
        (void)cudaGetLastError();
    return result == cudaSuccess;
}

/* ---- what is there ---- */

/* The driver's release, "580.65.06", and whether its kernel modules are the open ones. False: it
 * does not say. */
static bool read_driver(char *ret_release, size_t size, bool *ret_open)
{
    char text[256], *word;
    FILE *file = fopen(DRIVER_VERSION, "re");
    bool found = file && fgets(text, sizeof(text), file);
    if (file)
        fclose(file);
    if (!found)
        return false;
    *ret_open = strstr(text, "Open Kernel Module") != NULL;
    char *rest = NULL;
    for (word = strtok_r(text, " \t\n", &rest); word; word = strtok_r(NULL, " \t\n", &rest)) {
        if (word[0] >= '0' && word[0] <= '9' && strchr(word, '.')) {
            snprintf(ret_release, size, "%s", word);
            return true;
        }
    }
    return false;
}

/* Versions are 1000 * major + 10 * minor. */
static enum bt_status no_gpu(cudaError_t result, struct bt_error *error)
{
    int has = 0, needs = 0;
    (void)cudaDriverGetVersion(&has);
    (void)cudaRuntimeGetVersion(&needs);
    (void)cudaGetLastError();
    if (has == 0)
        return bt_error_set(error, BT_ERR_UNSUPPORTED,
                            "cuda: no NVIDIA driver here: install one for CUDA %d.%d, or use "
                            "--device cpu",
                            needs / 1000, needs % 1000 / 10);
    if (result == cudaErrorInsufficientDriver || has / 1000 < needs / 1000)
        return bt_error_set(error, BT_ERR_UNSUPPORTED,
                            "cuda: the driver is of CUDA %d.%d, this needs one for CUDA %d.%d: "
                            "install a newer driver, or use --device cpu",
                            has / 1000, has % 1000 / 10, needs / 1000, needs % 1000 / 10);
    if (result == cudaSuccess || result == cudaErrorNoDevice)
        return bt_error_set(error, BT_ERR_UNSUPPORTED,
                            "cuda: no GPU here (or none by CUDA_VISIBLE_DEVICES): use --device "
                            "cpu");
    return bt_error_set(error, BT_ERR_UNSUPPORTED, "cuda: no GPU can be used: %s",
                        cudaGetErrorString(result));
}

enum bt_status bt_cuda_device_count(struct bt_error *error, uint32_t *ret_count)
{
    int count = 0;
    cudaError_t result = cudaGetDeviceCount(&count);
    if (result != cudaSuccess || count <= 0)
        return no_gpu(result, error);
    *ret_count = (uint32_t)count;
    return BT_OK;
}

void bt_cuda_read_versions(struct bt_cuda_versions *ret_versions)
{
    *ret_versions = (struct bt_cuda_versions){0};
    (void)cudaDriverGetVersion(&ret_versions->driver);
    (void)cudaRuntimeGetVersion(&ret_versions->runtime);
    (void)cudaGetLastError();
}

bool bt_cuda_reaches(uint32_t from, uint32_t to)
{
    int can = 0;
    return told(cudaDeviceCanAccessPeer(&can, (int)from, (int)to)) && can != 0;
}

static enum bt_status no_such_index(uint32_t index, uint32_t count, struct bt_error *error)
{
    char list[320] = "";
    size_t used = 0;
    for (uint32_t i = 0; i < count && used < sizeof(list); i++) {
        struct cudaDeviceProp about;
        const char *name = cudaGetDeviceProperties(&about, (int)i) == cudaSuccess ? about.name : "";
        used += (size_t)snprintf(list + used, sizeof(list) - used, "%scuda:%u %s", i ? ", " : "", i,
                                 name);
    }
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "cuda:%u: no such GPU; there are: %s",
                        index, list);
}

/* What a NIC has written before a kernel is launched is seen by it, without a flush. */
static bool sees_writes_in_order(const struct bt_cuda_device *device)
{
    int ordering = cudaGPUDirectRDMAWritesOrderingOwner;
    (void)told(
        cudaDeviceGetAttribute(&ordering, cudaDevAttrGPUDirectRDMAWritesOrdering, device->ordinal));
    return ordering >= cudaGPUDirectRDMAWritesOrderingOwner;
}

/* Whether NICs reach its memory: by nvidia_peermem, or as dmabuf, which the open modules offer. */
static void look_at_peers(struct bt_cuda_device *device, struct bt_device_info *info)
{
    int offered = 0;
    char release[32];
    bool open = false;
    (void)told(
        cudaDeviceGetAttribute(&offered, cudaDevAttrGPUDirectRDMASupported, device->ordinal));
    bool loaded = access("/sys/module/nvidia_peermem", F_OK) == 0 ||
                  access("/sys/module/nv_peer_mem", F_OK) == 0;
    bool known = read_driver(release, sizeof(release), &open);
    bool ordered = sees_writes_in_order(device);
    info->peer_memory = offered && ordered && (loaded || open || !known);
    if (!offered)
        snprintf(info->peer_memory_missing, sizeof(info->peer_memory_missing),
                 "this GPU offers no GPUDirect RDMA");
    else if (!ordered)
        snprintf(info->peer_memory_missing, sizeof(info->peer_memory_missing),
                 "on this platform a GPU may not see yet what a NIC has written to it");
    else if (!info->peer_memory)
        snprintf(info->peer_memory_missing, sizeof(info->peer_memory_missing),
                 "nvidia_peermem is not loaded (modprobe nvidia-peermem), and driver %s is not of "
                 "the open kernel modules, which offer dmabuf",
                 release);
}

static void device_info(struct bt_device *base, struct bt_device_info *ret_info)
{
    struct bt_cuda_device *device = cuda_device(base);
    struct cudaDeviceProp about;
    size_t free_bytes = 0, total_bytes = 0;
    char driver[48];
    bool open;
    int version = 0;
    *ret_info = (struct bt_device_info){0};
    bt_cuda_let_go(cudaSetDevice(device->ordinal));
    if (told(cudaMemGetInfo(&free_bytes, &total_bytes))) {
        ret_info->free_bytes = free_bytes;
        ret_info->total_bytes = total_bytes;
    }
    if (!told(cudaGetDeviceProperties(&about, device->ordinal)))
        snprintf(about.name, sizeof(about.name), "a GPU");
    (void)told(cudaDriverGetVersion(&version));
    if (!read_driver(driver, sizeof(driver), &open))
        snprintf(driver, sizeof(driver), "of CUDA %d.%d", version / 1000, version % 1000 / 10);
    snprintf(ret_info->description, sizeof(ret_info->description), "%.64s, sm_%d, driver %s",
             about.name, device->arch, driver);
    if (!told(cudaDeviceGetPCIBusId(ret_info->pci, sizeof(ret_info->pci), device->ordinal)))
        ret_info->pci[0] = '\0';
    look_at_peers(device, ret_info);
}

/* ---- memory ---- */

static enum bt_status device_enter(struct bt_device *base, struct bt_error *error)
{
    cudaError_t result = cudaSetDevice(cuda_device(base)->ordinal);
    return result == cudaSuccess ? BT_OK : fault(base->name, result, "can't be used", error);
}

enum bt_status bt_cuda_no_memory(struct bt_cuda_device *device, const char *what,
                                 cudaError_t result, struct bt_error *error)
{
    size_t free_bytes = 0, total_bytes = 0;
    (void)cudaGetLastError();
    if (result != cudaErrorMemoryAllocation)
        return fault(device->base.name, result, what, error);
    (void)told(cudaMemGetInfo(&free_bytes, &total_bytes));
    return bt_error_set(error, BT_ERR_NO_MEMORY,
                        "%s: no memory for %s, %zu of its %zu bytes are free", device->base.name,
                        what, free_bytes, total_bytes);
}

static enum bt_status no_memory(struct bt_cuda_device *device, const char *kind, size_t bytes,
                                cudaError_t result, struct bt_error *error)
{
    char what[96];
    snprintf(what, sizeof(what), "%zu bytes of %s", bytes, kind);
    return bt_cuda_no_memory(device, what, result, error);
}

enum bt_status bt_cuda_alloc(struct bt_cuda_device *device, size_t bytes, struct bt_error *error,
                             void **ret_memory)
{
    enum bt_status status = device_enter(&device->base, error);
    if (status != BT_OK)
        return status;
    cudaError_t result = cudaMalloc(ret_memory, bytes ? bytes : 1);
    return result == cudaSuccess ? BT_OK : no_memory(device, "device memory", bytes, result, error);
}

static enum bt_status device_alloc(struct bt_device *base, size_t bytes, struct bt_error *error,
                                   void **ret_memory)
{
    struct bt_cuda_device *device = cuda_device(base);
    void *memory = NULL;
    enum bt_status status = bt_cuda_alloc(device, bytes, error, &memory);
    if (status != BT_OK)
        return status;
    bt_cuda_count_wait(device);
    cudaError_t result = cudaMemsetAsync(memory, 0, bytes, device->memory_stream);
    if (result == cudaSuccess)
        result = cudaStreamSynchronize(device->memory_stream);
    if (result != cudaSuccess) {
        bt_cuda_let_go(cudaFree(memory));
        return fault(base->name, result, "device memory", error);
    }
    *ret_memory = memory;
    return BT_OK;
}

static void device_free(struct bt_device *base, void *memory)
{
    bt_cuda_count_wait(cuda_device(base));
    bt_cuda_let_go(cudaSetDevice(cuda_device(base)->ordinal));
    bt_cuda_let_go(cudaFree(memory));
}

static enum bt_status device_alloc_host(struct bt_device *base, size_t bytes,
                                        struct bt_error *error, void **ret_memory)
{
    void *memory = NULL;
    enum bt_status status = device_enter(base, error);
    if (status != BT_OK)
        return status;
    cudaError_t result = cudaHostAlloc(&memory, bytes ? bytes : 1, cudaHostAllocPortable);
    if (result != cudaSuccess)
        return no_memory(cuda_device(base), "pinned host memory", bytes, result, error);
    memset(memory, 0, bytes);
    *ret_memory = memory;
    return BT_OK;
}

static void device_free_host(struct bt_device *base, void *memory)
{
    bt_cuda_count_wait(cuda_device(base));
    bt_cuda_let_go(cudaSetDevice(cuda_device(base)->ordinal));
    bt_cuda_let_go(cudaFreeHost(memory));
}

static enum bt_status device_register_host(struct bt_device *base, void *memory, size_t bytes,
                                           struct bt_error *error)
{
    enum bt_status status = device_enter(base, error);
    if (status != BT_OK)
        return status;
    cudaError_t result = cudaHostRegister(memory, bytes, cudaHostRegisterPortable);
    if (result == cudaSuccess)
        return BT_OK;
    return no_memory(cuda_device(base), "host memory to pin", bytes, result, error);
}

static void device_unregister_host(struct bt_device *base, void *memory)
{
    bt_cuda_count_wait(cuda_device(base));
    bt_cuda_let_go(cudaSetDevice(cuda_device(base)->ordinal));
    bt_cuda_let_go(cudaHostUnregister(memory));
}

/* ---- memory of other processes ---- */

static enum bt_status device_share(struct bt_device *base, void *memory, struct bt_error *error,
                                   struct bt_shared_memory *ret_shared)
{
    cudaIpcMemHandle_t handle;
    enum bt_status status = device_enter(base, error);
    if (status != BT_OK)
        return status;
    cudaError_t result = cudaIpcGetMemHandle(&handle, memory);
    if (result != cudaSuccess) {
        (void)cudaGetLastError();
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "%s: its memory can't be shared: %s",
                            base->name, cudaGetErrorString(result));
    }
    _Static_assert(sizeof(handle) == sizeof(*ret_shared), "it is carried as bytes");
    memcpy(ret_shared, &handle, sizeof(handle));
    return BT_OK;
}

/* By the driver, whose runtime has no such call. 0: it does not say. */
static size_t block_bytes(const void *memory)
{
    CUresult (*range)(CUdeviceptr *, size_t *, CUdeviceptr);
    enum cudaDriverEntryPointQueryResult found;
    void *symbol = NULL;
    CUdeviceptr begin;
    size_t bytes = 0;
    if (!told(cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &symbol, 12000,
                                               cudaEnableDefault, &found)) ||
        found != cudaDriverEntryPointSuccess)
        return 0;
    memcpy(&range, &symbol, sizeof(range));
    return range(&begin, &bytes, (CUdeviceptr)memory) == CUDA_SUCCESS &&
                   begin == (CUdeviceptr)memory
               ? bytes
               : 0;
}

static enum bt_status device_attach(struct bt_device *base, const struct bt_shared_memory *shared,
                                    struct bt_error *error, void **ret_memory, size_t *ret_bytes)
{
    cudaIpcMemHandle_t handle;
    enum bt_status status = device_enter(base, error);
    if (status != BT_OK)
        return status;
    memcpy(&handle, shared, sizeof(handle));
    cudaError_t result = cudaIpcOpenMemHandle(ret_memory, handle, cudaIpcMemLazyEnablePeerAccess);
    if (result == cudaSuccess) {
        *ret_bytes = block_bytes(*ret_memory);
        return BT_OK;
    }
    (void)cudaGetLastError();
    return bt_error_set(
        error, BT_ERR_UNAVAILABLE,
        "%s does not reach that GPU's memory: %s (the GPU has to be visible to both "
        "processes, and reachable from this one: nvidia-smi topo -p2p r)",
        base->name, cudaGetErrorString(result));
}

static void device_detach(struct bt_device *base, void *memory)
{
    bt_cuda_count_wait(cuda_device(base));
    bt_cuda_let_go(cudaSetDevice(cuda_device(base)->ordinal));
    bt_cuda_let_go(cudaIpcCloseMemHandle(memory));
}

/* ---- opening ---- */

static uint64_t device_waits(const struct bt_device *device)
{
    return __atomic_load_n(&((const struct bt_cuda_device *)device)->waits, __ATOMIC_RELAXED);
}

static void device_close(struct bt_device *base)
{
    struct bt_cuda_device *device = cuda_device(base);
    bt_cuda_let_go(cudaSetDevice(device->ordinal));
    if (device->memory_stream)
        bt_cuda_let_go(cudaStreamDestroy(device->memory_stream));
    free(device);
}

static const struct bt_device_ops cuda_ops = {
    .close = device_close,
    .info = device_info,
    .enter = device_enter,
    .alloc = device_alloc,
    .free = device_free,
    .alloc_host = device_alloc_host,
    .free_host = device_free_host,
    .register_host = device_register_host,
    .unregister_host = device_unregister_host,
    .stream_create = bt_cuda_stream_create,
    .stream_destroy = bt_cuda_stream_destroy,
    .copy = bt_cuda_copy,
    .synchronize = bt_cuda_synchronize,
    .event_create = bt_cuda_event_create,
    .event_destroy = bt_cuda_event_destroy,
    .event_record = bt_cuda_event_record,
    .event_wait = bt_cuda_event_wait,
    .event_query = bt_cuda_event_query,
    .event_synchronize = bt_cuda_event_synchronize,
    .capture_begin = bt_cuda_capture_begin,
    .capture_end = bt_cuda_capture_end,
    .graph_launch = bt_cuda_graph_launch,
    .graph_destroy = bt_cuda_graph_destroy,
    .waits = device_waits,
    .share = device_share,
    .attach = device_attach,
    .detach = device_detach,
    .f8_is_own = bt_cuda_f8_is_own,
};

/* What kernels are launched by. */
static cudaError_t read_attributes(struct bt_cuda_device *device)
{
    int major = 0, minor = 0, shared = 0;
    struct {
        enum cudaDeviceAttr which;
        int *value;
    } asked[] = {{cudaDevAttrComputeCapabilityMajor, &major},
                 {cudaDevAttrComputeCapabilityMinor, &minor},
                 {cudaDevAttrMultiProcessorCount, &device->multiprocessors},
                 {cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared}};
    cudaError_t result = cudaSuccess;
    for (size_t i = 0; i < sizeof(asked) / sizeof(asked[0]) && result == cudaSuccess; i++)
        result = cudaDeviceGetAttribute(asked[i].value, asked[i].which, device->ordinal);
    device->arch = 10 * major + minor;
    device->shared_bytes = (size_t)shared;
    return result;
}

/* Those of graphics cards have less shared memory than kernels take. */
static enum bt_status check_arch(const struct bt_cuda_device *device, struct bt_error *error)
{
    struct cudaDeviceProp about;
    if (device->arch >= MIN_ARCH && device->shared_bytes >= MIN_SHARED)
        return BT_OK;
    bool named = cudaGetDeviceProperties(&about, device->ordinal) == cudaSuccess;
    if (device->arch >= MIN_ARCH)
        return bt_error_set(error, BT_ERR_UNSUPPORTED,
                            "%s: a block on %.64s (sm_%d) has %zu bytes of shared memory, and %d "
                            "are needed, as sm_80, sm_90 and sm_100 have: use another GPU, or "
                            "--device cpu",
                            device->base.name, named ? about.name : "this GPU", device->arch,
                            device->shared_bytes, MIN_SHARED);
    return bt_error_set(error, BT_ERR_UNSUPPORTED,
                        "%s: %.64s is sm_%d, and sm_%d or later is needed: use another GPU, or "
                        "--device cpu",
                        device->base.name, named ? about.name : "this GPU", device->arch, MIN_ARCH);
}

static enum bt_status make_device(struct bt_cuda_device *device, uint32_t index,
                                  struct bt_error *error)
{
    device->base = (struct bt_device){
        .ops = &cuda_ops, .kernels = &bt_kernels_cuda, .memory = BT_MEMORY_CUDA, .index = index};
    snprintf(device->base.name, sizeof(device->base.name), "cuda:%u", index);
    pthread_mutex_init(&device->f8.mutex, NULL);
    device->ordinal = (int)index;
    cudaError_t result = read_attributes(device);
    if (result != cudaSuccess)
        return fault(device->base.name, result, "it does not say what it is", error);
    enum bt_status status = check_arch(device, error);
    if (status == BT_OK)
        status = device_enter(&device->base, error);
    if (status != BT_OK)
        return status;
    size_t free_bytes = 0;
    result = cudaMemGetInfo(&free_bytes, &device->memory_bytes);
    if (result == cudaSuccess)
        result = cudaStreamCreateWithFlags(&device->memory_stream, cudaStreamNonBlocking);
    return result == cudaSuccess ? BT_OK : fault(device->base.name, result, "can't be used", error);
}

enum bt_status bt_cuda_device_open(uint32_t index, struct bt_error *error,
                                   struct bt_device **ret_device)
{
    uint32_t count;
    enum bt_status status = bt_cuda_device_count(error, &count);
    if (status != BT_OK)
        return status;
    if (index >= count)
        return no_such_index(index, count, error);
    struct bt_cuda_device *device = calloc(1, sizeof(*device));
    if (!device)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "cuda:%u: no memory", index);
    status = make_device(device, index, error);
    if (status != BT_OK) {
        free(device);
        return status;
    }
    *ret_device = &device->base;
    return BT_OK;
}
