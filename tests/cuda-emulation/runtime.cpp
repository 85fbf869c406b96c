/* The stand-in for the CUDA runtime: devices, errors, memory, copies, launches. */
#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <unistd.h>

#include <cuda.h>

#include "tests/cuda-emulation/runtime_state.h"

/* What the kernels of this module were compiled for. */
extern "C" __attribute__((weak)) const int emulation_built_arch;

namespace emulation {

void run_on_grid(const std::function<void()> &run);
uint64_t count_launch();

namespace {

thread_local cudaError_t last_error;
thread_local int current_device;
cudaError_t device_fault; /* atomic */

std::mutex functions_mutex;

/* What a device knows of a kernel: each loads it for itself, when it is first used there. */
struct Function {
    size_t shared_bytes = 48 * 1024; /* dynamic ones, that it may have */
    bool is_loaded = false;
};
std::map<std::pair<int, const void *>, Function> &functions()
{
    static auto *the = new std::map<std::pair<int, const void *>, Function>;
    return *the;
}

uint64_t number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 0) : otherwise;
}

bool says(const char *name, const char *word)
{
    const char *text = getenv(name);
    return text && strcmp(text, word) == 0;
}

Settings read_settings()
{
    Settings s = {};
    s.has_driver = !says("BATON_EMULATED_DRIVER", "none");
    s.driver_version = (int)number("BATON_EMULATED_DRIVER_VERSION", 13000);
    s.devices = (int)number("BATON_EMULATED_DEVICES", 2);
    s.arch = &emulation_built_arch ? emulation_built_arch : 90;
    s.arch = (int)number("BATON_EMULATED_ARCH", (uint64_t)s.arch);
    s.multiprocessors = (int)number("BATON_EMULATED_MULTIPROCESSORS", 4);
    s.memory = number("BATON_EMULATED_MEMORY", (uint64_t)2 << 30);
    s.seed = number("BATON_EMULATED_SEED", 1);
    s.fail_launch = number("BATON_EMULATED_FAIL_LAUNCH", 0);
    s.host_access = number("BATON_EMULATED_HOST_ACCESS", 0) != 0;
    s.leaks_fail = says("BATON_EMULATED_LEAKS", "fail");
    return s;
}

struct AtExit {
    ~AtExit()
    {
        report_leaks();
    }
} at_exit;

/* Of the driver and the devices: what a call finds before it does anything. */
/* A driver that was asked anything does not survive a fork. */
bool is_of_this_process()
{
    static std::atomic<pid_t> first{0};
    pid_t self = getpid(), process = 0;
    return first.compare_exchange_strong(process, self) || process == self;
}

cudaError_t presence()
{
    const Settings &s = settings();
    if (!s.has_driver || s.driver_version < CUDART_VERSION / 1000 * 1000)
        return cudaErrorInsufficientDriver;
    if (!is_of_this_process())
        return cudaErrorInitializationError;
    return s.devices == 0 ? cudaErrorNoDevice : cudaSuccess;
}

cudaError_t ready()
{
    cudaError_t error = presence();
    return error != cudaSuccess ? error : sticky();
}

size_t shared_optin()
{
    return settings().arch == 80 ? 163 * 1024 : 227 * 1024;
}

} // namespace

const Settings &settings()
{
    static const Settings the = read_settings();
    return the;
}

cudaError_t sticky()
{
    return __atomic_load_n(&device_fault, __ATOMIC_ACQUIRE);
}

void fault(cudaError_t error)
{
    cudaError_t none = cudaSuccess;
    __atomic_compare_exchange_n(&device_fault, &none, error, false, __ATOMIC_ACQ_REL,
                                __ATOMIC_ACQUIRE);
}

cudaError_t result(cudaError_t error)
{
    if (error != cudaSuccess) /* NotReady, too, as on hardware */
        last_error = error;
    return error;
}

int arch()
{
    return settings().arch;
}

int device()
{
    return current_device;
}

/* Loading a module is no part of a capture. */
static cudaError_t load(const Launch &launch, cudaStream_t stream, size_t *ret_room)
{
    std::lock_guard<std::mutex> lock(functions_mutex);
    Function &function = functions()[{device(), launch.kernel}];
    *ret_room = function.shared_bytes;
    if (!function.is_loaded && is_capturing(stream)) {
        invalidate(stream);
        return cudaErrorStreamCaptureUnsupported;
    }
    function.is_loaded = true;
    return cudaSuccess;
}

static cudaError_t launch_error(const Launch &launch, cudaStream_t stream)
{
    size_t room;
    if (device_of_stream(stream) != device())
        return cudaErrorInvalidResourceHandle;
    cudaError_t error = load(launch, stream, &room);
    if (error != cudaSuccess)
        return error;
    if (launch.threads == 0 || launch.threads > 1024 || launch.grid.x == 0 || launch.grid.y == 0 ||
        launch.grid.z == 0 || launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 ||
        launch.grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (launch.cluster == 0 || launch.grid.x % launch.cluster != 0 ||
        (launch.cluster > 1 && arch() < 90))
        return cudaErrorInvalidConfiguration;
    return launch.shared_bytes > room ? cudaErrorInvalidValue : cudaSuccess;
}

void launch(cudaStream_t stream, Launch launch)
{
    cudaError_t error = ready();
    if (error == cudaSuccess)
        error = launch_error(launch, stream);
    if (error == cudaSuccess) {
        std::function<void()> run = std::move(launch.run);
        error = queue(stream, "kernel", [run] {
            if (count_launch() == settings().fail_launch)
                fault(cudaErrorLaunchFailure);
            else
                run_on_grid(run);
            return true;
        });
    }
    result(error);
}

} // namespace emulation

using namespace emulation;

/* ---- devices ---- */

extern "C" cudaError_t cudaGetDeviceCount(int *ret_count)
{
    cudaError_t error = presence();
    *ret_count = error == cudaSuccess ? settings().devices : 0;
    return result(error);
}

extern "C" cudaError_t cudaSetDevice(int device)
{
    cudaError_t error = ready();
    if (error == cudaSuccess && (device < 0 || device >= settings().devices))
        error = cudaErrorInvalidDevice;
    if (error == cudaSuccess)
        current_device = device;
    return result(error);
}

extern "C" cudaError_t cudaGetDevice(int *ret_device)
{
    *ret_device = current_device;
    return result(ready());
}

extern "C" cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *ret, int device)
{
    const Settings &s = settings();
    cudaError_t error = presence();
    if (error == cudaSuccess && (device < 0 || device >= s.devices))
        error = cudaErrorInvalidDevice;
    if (error != cudaSuccess)
        return result(error);
    *ret = {};
    snprintf(ret->name, sizeof(ret->name), "Emulated GPU");
    ret->totalGlobalMem = s.memory;
    ret->sharedMemPerBlock = 48 * 1024;
    ret->sharedMemPerBlockOptin = shared_optin();
    ret->sharedMemPerMultiprocessor = shared_optin() + 1024;
    ret->reservedSharedMemPerBlock = 1024;
    ret->regsPerBlock = ret->regsPerMultiprocessor = 65536;
    ret->warpSize = 32;
    ret->maxThreadsPerBlock = 1024;
    ret->maxThreadsPerMultiProcessor = 2048;
    ret->maxBlocksPerMultiProcessor = 32;
    ret->maxThreadsDim[0] = ret->maxThreadsDim[1] = 1024;
    ret->maxThreadsDim[2] = 64;
    ret->maxGridSize[0] = 0x7fffffff;
    ret->maxGridSize[1] = ret->maxGridSize[2] = 65535;
    ret->major = s.arch / 10;
    ret->minor = s.arch % 10;
    ret->multiProcessorCount = s.multiprocessors;
    ret->unifiedAddressing = ret->managedMemory = ret->concurrentManagedAccess = 1;
    ret->concurrentKernels = ret->canMapHostMemory = 1;
    ret->l2CacheSize = 50 << 20;
    ret->gpuDirectRDMASupported = 1;
    ret->pciBusID = 0x9a + device;
    return cudaSuccess;
}

extern "C" cudaError_t cudaDeviceGetAttribute(int *ret_value, enum cudaDeviceAttr attribute,
                                              int device)
{
    struct cudaDeviceProp p;
    cudaError_t error = cudaGetDeviceProperties(&p, device);
    if (error != cudaSuccess)
        return error;
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
        *ret_value = p.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *ret_value = p.minor;
        break;
    case cudaDevAttrMultiProcessorCount:
        *ret_value = p.multiProcessorCount;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *ret_value = (int)p.sharedMemPerBlock;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *ret_value = (int)p.sharedMemPerBlockOptin;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *ret_value = (int)p.sharedMemPerMultiprocessor;
        break;
    case cudaDevAttrMaxThreadsPerBlock:
        *ret_value = p.maxThreadsPerBlock;
        break;
    case cudaDevAttrWarpSize:
        *ret_value = p.warpSize;
        break;
    case cudaDevAttrL2CacheSize:
        *ret_value = p.l2CacheSize;
        break;
    case cudaDevAttrUnifiedAddressing:
        *ret_value = p.unifiedAddressing;
        break;
    case cudaDevAttrConcurrentManagedAccess:
        *ret_value = p.concurrentManagedAccess;
        break;
    case cudaDevAttrManagedMemory:
        *ret_value = p.managedMemory;
        break;
    case cudaDevAttrGPUDirectRDMASupported:
        *ret_value = p.gpuDirectRDMASupported;
        break;
    case cudaDevAttrGPUDirectRDMAWritesOrdering:
        *ret_value = cudaGPUDirectRDMAWritesOrderingOwner;
        break;
    case cudaDevAttrPciBusId:
        *ret_value = p.pciBusID;
        break;
    case cudaDevAttrPciDeviceId:
        *ret_value = p.pciDeviceID;
        break;
    case cudaDevAttrPciDomainId:
        *ret_value = p.pciDomainID;
        break;
    default:
        return result(cudaErrorNotSupported);
    }
    return cudaSuccess;
}

extern "C" cudaError_t cudaDeviceGetPCIBusId(char *text, int room, int device)
{
    if (!text || room < 13 || device < 0 || device >= settings().devices)
        return result(cudaErrorInvalidValue);
    snprintf(text, (size_t)room, "0000:%02X:00.0", 0x9a + device);
    return result(presence());
}

extern "C" cudaError_t cudaDriverGetVersion(int *ret_version)
{
    *ret_version = settings().has_driver ? settings().driver_version : 0;
    return cudaSuccess;
}

/* BATON_EMULATED_PEERS=none: no GPU reaches another. */
extern "C" cudaError_t cudaDeviceCanAccessPeer(int *ret_can, int device, int peer)
{
    if (presence() != cudaSuccess)
        return result(presence());
    int count = settings().devices;
    if (device < 0 || device >= count || peer < 0 || peer >= count)
        return result(cudaErrorInvalidDevice);
    *ret_can = device != peer && !says("BATON_EMULATED_PEERS", "none");
    return cudaSuccess;
}

extern "C" cudaError_t cudaRuntimeGetVersion(int *ret_version)
{
    *ret_version = CUDART_VERSION;
    return cudaSuccess;
}

extern "C" cudaError_t cudaInitDevice(int device, unsigned int flags, unsigned int more)
{
    (void)flags;
    (void)more;
    return cudaSetDevice(device);
}

extern "C" cudaError_t cudaSetDeviceFlags(unsigned int flags)
{
    (void)flags;
    return result(ready());
}

/* ---- errors ---- */

extern "C" cudaError_t cudaGetLastError(void)
{
    cudaError_t error = sticky() != cudaSuccess ? sticky() : last_error;
    last_error = cudaSuccess;
    return error;
}

extern "C" cudaError_t cudaPeekAtLastError(void)
{
    return sticky() != cudaSuccess ? sticky() : last_error;
}

static const struct {
    cudaError_t error;
    const char *name, *text;
} error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
    {cudaErrorNotPermitted, "cudaErrorNotPermitted", "operation not permitted"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
};

extern "C" const char *cudaGetErrorString(cudaError_t error)
{
    for (const auto &e : error_texts)
        if (e.error == error)
            return e.text;
    return "unrecognized error code";
}

extern "C" const char *cudaGetErrorName(cudaError_t error)
{
    for (const auto &e : error_texts)
        if (e.error == error)
            return e.name;
    return "unrecognized error code";
}

/* ---- memory ---- */

/* Allocation and release are no part of a graph. */
static cudaError_t may_allocate()
{
    cudaError_t error = ready();
    return error == cudaSuccess && is_unsafe_now() ? cudaErrorStreamCaptureUnsupported : error;
}

extern "C" cudaError_t cudaMalloc(void **ret_memory, size_t bytes)
{
    cudaError_t error = ret_memory ? may_allocate() : cudaErrorInvalidValue;
    if (error != cudaSuccess)
        return result(error);
    if (bytes == 0) {
        *ret_memory = nullptr;
        return cudaSuccess;
    }
    void *memory = device_alloc(device(), bytes, __builtin_return_address(0));
    if (!memory)
        return result(cudaErrorMemoryAllocation);
    *ret_memory = memory;
    return cudaSuccess;
}

/* Waits for the device, as the real one does. */
extern "C" cudaError_t cudaFree(void *memory)
{
    if (!memory)
        return cudaSuccess;
    cudaError_t error = presence();
    if (error == cudaSuccess && is_unsafe_now())
        error = cudaErrorStreamCaptureUnsupported;
    int of = device_of(memory);
    if (error != cudaSuccess || of < 0)
        return result(error != cudaSuccess ? error : cudaErrorInvalidValue);
    synchronize_device(of);
    return result(device_free(memory) || host_free(memory, Memory::managed)
                      ? sticky()
                      : cudaErrorInvalidValue);
}

static cudaError_t alloc_host(void **ret_memory, size_t bytes, Memory kind, const void *caller)
{
    cudaError_t error = ret_memory ? may_allocate() : cudaErrorInvalidValue;
    if (error != cudaSuccess)
        return result(error);
    void *memory = host_alloc(bytes, kind, caller);
    if (!memory)
        return result(cudaErrorMemoryAllocation);
    *ret_memory = memory;
    return cudaSuccess;
}

extern "C" cudaError_t cudaMallocHost(void **ret_memory, size_t bytes)
{
    return alloc_host(ret_memory, bytes, Memory::pinned, __builtin_return_address(0));
}

extern "C" cudaError_t cudaHostAlloc(void **ret_memory, size_t bytes, unsigned int flags)
{
    if (flags & ~7u)
        return result(cudaErrorInvalidValue);
    return alloc_host(ret_memory, bytes, Memory::pinned, __builtin_return_address(0));
}

extern "C" cudaError_t cudaFreeHost(void *memory)
{
    if (!memory)
        return cudaSuccess;
    if (is_unsafe_now())
        return result(cudaErrorStreamCaptureUnsupported);
    size_t bytes = 0;
    if (memory_of(memory, &bytes) == Memory::pinned && is_in_use(memory, bytes))
        misuse("%zu bytes of pinned memory are freed while a copy of them is queued", bytes);
    return result(host_free(memory, Memory::pinned) ? cudaSuccess : cudaErrorInvalidValue);
}

extern "C" cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned int flags)
{
    cudaError_t error =
        memory && bytes > 0 && !(flags & ~15u) ? may_allocate() : cudaErrorInvalidValue;
    if (error == cudaSuccess && !host_register(memory, bytes))
        error = cudaErrorHostMemoryAlreadyRegistered;
    return result(error);
}

extern "C" cudaError_t cudaHostUnregister(void *memory)
{
    size_t bytes = 0;
    if (is_unsafe_now())
        return result(cudaErrorStreamCaptureUnsupported);
    if (memory_of(memory, &bytes) == Memory::registered && is_in_use(memory, bytes))
        misuse("%zu bytes of host memory are unregistered while a copy of them is queued", bytes);
    return result(host_unregister(memory) ? cudaSuccess : cudaErrorHostMemoryNotRegistered);
}

extern "C" cudaError_t cudaMemGetInfo(size_t *ret_free, size_t *ret_total)
{
    device_usage(device(), ret_free, ret_total);
    return result(ready());
}

extern "C" cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *ret,
                                                const void *memory)
{
    static const enum cudaMemoryType types[] = {cudaMemoryTypeUnregistered, cudaMemoryTypeDevice,
                                                cudaMemoryTypeHost,         cudaMemoryTypeManaged,
                                                cudaMemoryTypeHost,         cudaMemoryTypeDevice};
    Memory kind = memory_of(memory);
    *ret = {};
    ret->type = types[(int)kind];
    ret->device = kind == Memory::unknown ? -2 : device_of(memory);
    ret->devicePointer = kind == Memory::unknown ? nullptr : (void *)memory;
    ret->hostPointer = kind == Memory::device ? nullptr : (void *)memory;
    return result(presence());
}

extern "C" cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *ret_handle, void *memory)
{
    cudaError_t error = ready();
    if (error == cudaSuccess && !memory_export(memory, ret_handle, sizeof(*ret_handle)))
        error = cudaErrorInvalidValue;
    return result(error);
}

extern "C" cudaError_t cudaIpcOpenMemHandle(void **ret_memory, cudaIpcMemHandle_t handle,
                                            unsigned int flags)
{
    cudaError_t error = flags == cudaIpcMemLazyEnablePeerAccess ? ready() : cudaErrorInvalidValue;
    if (error != cudaSuccess)
        return result(error);
    *ret_memory = memory_import(&handle);
    return result(*ret_memory ? cudaSuccess : cudaErrorMapBufferObjectFailed);
}

extern "C" cudaError_t cudaIpcCloseMemHandle(void *memory)
{
    int of = device_of(memory);
    if (of >= 0)
        synchronize_device(of);
    return result(memory_forget(memory) ? cudaSuccess : cudaErrorInvalidValue);
}

/* ---- copies ---- */

static bool is_host(Memory memory)
{
    return memory == Memory::unknown || memory == Memory::pinned || memory == Memory::registered;
}

static bool is_pinned(Memory memory)
{
    return memory == Memory::pinned || memory == Memory::registered;
}

static bool fits(Memory to, Memory from, enum cudaMemcpyKind kind)
{
    switch (kind) {
    case cudaMemcpyDefault:
        return true;
    case cudaMemcpyHostToDevice:
        return !is_host(to) && from != Memory::device;
    case cudaMemcpyDeviceToHost:
        return to != Memory::device && !is_host(from);
    case cudaMemcpyDeviceToDevice:
        return !is_host(to) && !is_host(from);
    case cudaMemcpyHostToHost:
        return to != Memory::device && from != Memory::device;
    default:
        return false;
    }
}

/* Both ends inside of what they are of. */
static cudaError_t check_copy(const void *to, const void *from, size_t bytes,
                              enum cudaMemcpyKind kind, Memory *ret_to, Memory *ret_from)
{
    size_t room = SIZE_MAX, there = SIZE_MAX;
    *ret_to = memory_of(to, &room);
    *ret_from = memory_of(from, &there);
    if (!to || !from || bytes > room || bytes > there || !fits(*ret_to, *ret_from, kind))
        return cudaErrorInvalidValue;
    return cudaSuccess;
}

static void move(void *to, const void *from, size_t bytes)
{
    Touch touch;
    memmove(to, from, bytes);
}

/* Bytes of pageable memory are taken when the call is made; those of pinned memory when the copy is
 * done. Pinned memory that will be written is not what it was from the call on. */
static cudaError_t copy_item(void *to, const void *from, size_t bytes, Memory to_kind,
                             Memory from_kind, cudaStream_t stream)
{
    Item item = {};
    item.name = "copy";
    if (from_kind == Memory::unknown) {
        auto held = std::make_shared<std::vector<unsigned char>>(
            (const unsigned char *)from, (const unsigned char *)from + bytes);
        item.work = [=] { return move(to, held->data(), bytes), true; };
    } else {
        item.work = [=] { return move(to, from, bytes), true; };
    }
    if (is_pinned(from_kind))
        item.reads = {from, bytes};
    if (is_pinned(to_kind)) {
        item.writes = {to, bytes};
        if (!is_in_use(to, bytes) && !is_capturing(stream))
            memset(to, 0xff, bytes);
    }
    return queue_item(stream, std::move(item));
}

extern "C" cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes,
                                       enum cudaMemcpyKind kind, cudaStream_t stream)
{
    Memory to_kind, from_kind;
    cudaError_t error = ready();
    if (error != cudaSuccess || bytes == 0)
        return result(error);
    error = check_copy(to, from, bytes, kind, &to_kind, &from_kind);
    if (error != cudaSuccess)
        return result(error);
    bool is_pageable = to_kind == Memory::unknown || from_kind == Memory::unknown;
    if (is_pageable && is_capturing(stream)) {
        invalidate(stream); /* a graph would read it when it is run */
        return result(cudaErrorStreamCaptureUnsupported);
    }
    error = copy_item(to, from, bytes, to_kind, from_kind, stream);
    if (error == cudaSuccess && to_kind == Memory::unknown)
        error = synchronize(stream);
    return result(error);
}

extern "C" cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes,
                                  enum cudaMemcpyKind kind)
{
    if (is_unsafe_now())
        return result(cudaErrorStreamCaptureUnsupported);
    cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    return error != cudaSuccess ? error : cudaStreamSynchronize(nullptr);
}

extern "C" cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from,
                                         size_t from_pitch, size_t width, size_t height,
                                         enum cudaMemcpyKind kind, cudaStream_t stream)
{
    if (width > to_pitch || width > from_pitch)
        return result(cudaErrorInvalidPitchValue);
    for (size_t row = 0; row < height; row++) {
        cudaError_t error =
            cudaMemcpyAsync((char *)to + row * to_pitch, (const char *)from + row * from_pitch,
                            width, kind, stream);
        if (error != cudaSuccess)
            return error;
    }
    return cudaSuccess;
}

extern "C" cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream)
{
    size_t room = 0;
    cudaError_t error = ready();
    if (error != cudaSuccess || bytes == 0)
        return result(error);
    Memory kind = memory_of(memory, &room);
    if (kind == Memory::unknown || bytes > room)
        return result(cudaErrorInvalidValue);
    return result(queue(stream, "memset", [=] {
        Touch touch;
        return memset(memory, value, bytes), true;
    }));
}

/* Of device memory: queued on the default stream, and not waited for. */
extern "C" cudaError_t cudaMemset(void *memory, int value, size_t bytes)
{
    if (is_unsafe_now())
        return result(cudaErrorStreamCaptureUnsupported);
    return cudaMemsetAsync(memory, value, bytes, nullptr);
}

/* ---- kernels ---- */

extern "C" cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute,
                                            int value)
{
    cudaError_t error = ready();
    if (error != cudaSuccess)
        return result(error);
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout)
        return cudaSuccess;
    if (!kernel || attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        (size_t)value > shared_optin())
        return result(cudaErrorInvalidValue);
    std::lock_guard<std::mutex> lock(functions_mutex);
    functions()[{device(), kernel}].shared_bytes = (size_t)value;
    return cudaSuccess;
}

/* ---- the driver ---- */

/* What of the driver is used through cudaGetDriverEntryPoint. Memory that is asked these things is
 * for NICs. */
static CUresult pointer_set_attribute(const void *value, CUpointer_attribute attribute,
                                      CUdeviceptr memory)
{
    if (!value || attribute != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS)
        return CUDA_ERROR_NOT_SUPPORTED;
    return device_expose((const void *)memory) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult address_range(CUdeviceptr *ret_begin, size_t *ret_bytes, CUdeviceptr memory)
{
    return memory_range((const void *)memory, (uintptr_t *)ret_begin, ret_bytes)
               ? CUDA_SUCCESS
               : CUDA_ERROR_INVALID_VALUE;
}

CUresult emulation_tensor_map(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                              void *base, const cuuint64_t *dims, const cuuint64_t *strides,
                              const cuuint32_t *box, const cuuint32_t *element_strides,
                              CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                              CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill);

static const struct {
    const char *name;
    void *function;
} driver_entries[] = {
    {"cuTensorMapEncodeTiled", (void *)emulation_tensor_map},
    {"cuPointerSetAttribute", (void *)pointer_set_attribute},
    {"cuMemGetAddressRange", (void *)address_range},
};

static cudaError_t entry_point(const char *symbol, void **ret_function,
                               enum cudaDriverEntryPointQueryResult *ret_found)
{
    cudaError_t error = presence();
    *ret_function = nullptr;
    for (const auto &entry : driver_entries)
        if (error == cudaSuccess && strcmp(entry.name, symbol) == 0)
            *ret_function = entry.function;
    if (ret_found)
        *ret_found =
            *ret_function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return result(error);
}

#undef cudaGetDriverEntryPoint
extern "C" cudaError_t cudaGetDriverEntryPoint(const char *symbol, void **ret_function,
                                               unsigned long long flags,
                                               enum cudaDriverEntryPointQueryResult *ret_found)
{
    (void)flags;
    return entry_point(symbol, ret_function, ret_found);
}

#undef cudaGetDriverEntryPointByVersion
extern "C" cudaError_t
cudaGetDriverEntryPointByVersion(const char *symbol, void **ret_function, unsigned int version,
                                 unsigned long long flags,
                                 enum cudaDriverEntryPointQueryResult *ret_found)
{
    (void)flags;
    (void)version;
    return entry_point(symbol, ret_function, ret_found);
}
