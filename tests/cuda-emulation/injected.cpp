/*
 * Calls that fail when they are told to: of the module every call of the runtime, cuBLASLt and NCCL
 * comes through here (the linker's --wrap), and is counted.
 *
 *     BATON_EMULATED_FAIL_CALL=N         the Nth call of the process fails, that one alone
 *     BATON_EMULATED_FAIL_CALL=N:sticky  and with it the device, for good
 *     BATON_EMULATED_CALLS=FILE          a line for each call: its number, its name, who called
 *
 * An allocation that fails has no memory. What ends something has ended it also where it fails, as
 * what it was told is then nobody's any more.
 */
#include <atomic>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <cublasLt.h>
#include <nccl.h>

#include "tests/cuda-emulation/runtime_state.h"

namespace {

struct Told {
    uint64_t call = 0;
    bool is_sticky = false;
    int log = -1;
};

Told read_told()
{
    Told told;
    char *end = nullptr;
    const char *call = getenv("BATON_EMULATED_FAIL_CALL"), *log = getenv("BATON_EMULATED_CALLS");
    if (call && *call) {
        told.call = strtoull(call, &end, 10);
        told.is_sticky = strcmp(end, ":sticky") == 0;
        if (*end && !told.is_sticky)
            emulation::misuse("BATON_EMULATED_FAIL_CALL=%s: N or N:sticky", call);
    }
    if (log && *log)
        told.log = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    return told;
}

const Told &told()
{
    static const Told the = read_told();
    return the;
}

void note(uint64_t number, const char *name, const void *caller)
{
    Dl_info info;
    char line[160];
    uintptr_t base = dladdr(caller, &info) ? (uintptr_t)info.dli_fbase : 0;
    int length = snprintf(line, sizeof(line), "%llu %s %zx\n", (unsigned long long)number, name,
                          (size_t)((uintptr_t)caller - base));
    if (write(told().log, line, (size_t)length) != length)
        emulation::misuse("BATON_EMULATED_CALLS: can't be written");
}

/* Whether this call is one that fails. */
bool fails(const char *name, const void *caller)
{
    static std::atomic<uint64_t> calls{0};
    uint64_t number = ++calls;
    if (told().log >= 0)
        note(number, name, caller);
    if (number != told().call)
        return false;
    if (told().is_sticky)
        emulation::fault(cudaErrorIllegalAddress);
    return true;
}

cudaError_t failure(cudaError_t otherwise)
{
    return emulation::result(told().is_sticky ? cudaErrorIllegalAddress : otherwise);
}

} // namespace

/* F: with what it fails. AFTER: it is done all the same. */
#define WRAP(R, F, AFTER, name, params, args)                                                      \
    extern "C" R __real_##name params;                                                             \
    extern "C" R __wrap_##name params                                                              \
    {                                                                                              \
        if (!fails(#name, __builtin_return_address(0)))                                            \
            return __real_##name args;                                                             \
        if (AFTER)                                                                                 \
            (void)__real_##name args;                                                              \
        return F;                                                                                  \
    }
#define CUDA(name, params, args)                                                                   \
    WRAP(cudaError_t, failure(cudaErrorUnknown), false, name, params, args)
#define ENDS(name, params, args)                                                                   \
    WRAP(cudaError_t, failure(cudaErrorUnknown), true, name, params, args)
#define ALLOCATES(name, params, args)                                                              \
    WRAP(cudaError_t, failure(cudaErrorMemoryAllocation), false, name, params, args)
#define LT(name, params, args)                                                                     \
    WRAP(cublasStatus_t, CUBLAS_STATUS_INTERNAL_ERROR, false, name, params, args)
#define NCCL(name, params, args) WRAP(ncclResult_t, ncclSystemError, false, name, params, args)

/* ---- the runtime ---- */

CUDA(cudaGetDeviceCount, (int *count), (count))
CUDA(cudaDeviceGetAttribute, (int *value, enum cudaDeviceAttr which, int device),
     (value, which, device))
CUDA(cudaDeviceGetPCIBusId, (char *text, int room, int device), (text, room, device))
CUDA(cudaGetDeviceProperties, (struct cudaDeviceProp * ret, int device), (ret, device))
CUDA(cudaDriverGetVersion, (int *version), (version))
CUDA(cudaRuntimeGetVersion, (int *version), (version))
CUDA(cudaSetDevice, (int device), (device))
CUDA(cudaMemGetInfo, (size_t * free, size_t *total), (free, total))
CUDA(cudaStreamCreateWithFlags, (cudaStream_t * stream, unsigned flags), (stream, flags))
CUDA(cudaEventCreateWithFlags, (cudaEvent_t * event, unsigned flags), (event, flags))
CUDA(cudaEventRecord, (cudaEvent_t event, cudaStream_t stream), (event, stream))
CUDA(cudaEventQuery, (cudaEvent_t event), (event))
CUDA(cudaStreamQuery, (cudaStream_t stream), (stream))
CUDA(cudaStreamWaitEvent, (cudaStream_t stream, cudaEvent_t event, unsigned flags),
     (stream, event, flags))
CUDA(cudaStreamBeginCapture, (cudaStream_t stream, enum cudaStreamCaptureMode mode), (stream, mode))
CUDA(cudaGraphInstantiate, (cudaGraphExec_t * exec, cudaGraph_t graph, unsigned long long flags),
     (exec, graph, flags))
CUDA(cudaGraphLaunch, (cudaGraphExec_t exec, cudaStream_t stream), (exec, stream))
CUDA(cudaFuncSetAttribute, (const void *kernel, enum cudaFuncAttribute attribute, int value),
     (kernel, attribute, value))
CUDA(cudaMemcpyAsync,
     (void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream),
     (to, from, bytes, kind, stream))
CUDA(cudaMemcpy2DAsync,
     (void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
      enum cudaMemcpyKind kind, cudaStream_t stream),
     (to, to_pitch, from, from_pitch, width, height, kind, stream))
CUDA(cudaMemsetAsync, (void *memory, int value, size_t bytes, cudaStream_t stream),
     (memory, value, bytes, stream))
CUDA(cudaIpcGetMemHandle, (cudaIpcMemHandle_t * handle, void *memory), (handle, memory))
CUDA(cudaIpcOpenMemHandle, (void **memory, cudaIpcMemHandle_t handle, unsigned flags),
     (memory, handle, flags))
CUDA(cudaGetDriverEntryPointByVersion,
     (const char *symbol, void **function, unsigned version, unsigned long long flags,
      enum cudaDriverEntryPointQueryResult *found),
     (symbol, function, version, flags, found))
ALLOCATES(cudaMalloc, (void **memory, size_t bytes), (memory, bytes))
ALLOCATES(cudaMallocHost, (void **memory, size_t bytes), (memory, bytes))
ALLOCATES(cudaHostAlloc, (void **memory, size_t bytes, unsigned flags), (memory, bytes, flags))
ALLOCATES(cudaHostRegister, (void *memory, size_t bytes, unsigned flags), (memory, bytes, flags))
ENDS(cudaFree, (void *memory), (memory))
ENDS(cudaFreeHost, (void *memory), (memory))
ENDS(cudaHostUnregister, (void *memory), (memory))
ENDS(cudaIpcCloseMemHandle, (void *memory), (memory))
ENDS(cudaStreamDestroy, (cudaStream_t stream), (stream))
ENDS(cudaEventDestroy, (cudaEvent_t event), (event))
ENDS(cudaGraphDestroy, (cudaGraph_t graph), (graph))
ENDS(cudaGraphExecDestroy, (cudaGraphExec_t exec), (exec))
ENDS(cudaStreamSynchronize, (cudaStream_t stream), (stream))
ENDS(cudaEventSynchronize, (cudaEvent_t event), (event))

extern "C" cudaError_t __real_cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
extern "C" cudaError_t __real_cudaGraphDestroy(cudaGraph_t graph);
extern "C" cudaError_t __wrap_cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    bool fails_now = fails("cudaStreamEndCapture", __builtin_return_address(0));
    cudaError_t error = __real_cudaStreamEndCapture(stream, graph);
    if (!fails_now)
        return error;
    if (error == cudaSuccess)
        (void)__real_cudaGraphDestroy(*graph);
    *graph = nullptr;
    return failure(cudaErrorStreamCaptureInvalidated);
}

/* ---- cuBLASLt ---- */

LT(cublasLtCreate, (cublasLtHandle_t * handle), (handle))
LT(cublasLtMatmul,
   (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void *alpha, const void *a,
    cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
    const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
    cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algorithm, void *workspace,
    size_t workspace_bytes, cudaStream_t stream),
   (handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm,
    workspace, workspace_bytes, stream))
LT(cublasLtMatmulAlgoCheck,
   (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    const cublasLtMatmulAlgo_t *algorithm, cublasLtMatmulHeuristicResult_t *result),
   (handle, operation, a, b, c, d, algorithm, result))
LT(cublasLtMatmulAlgoGetHeuristic,
   (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    cublasLtMatmulPreference_t preference, int wanted, cublasLtMatmulHeuristicResult_t results[],
    int *count),
   (handle, operation, a, b, c, d, preference, wanted, results, count))
LT(cublasLtMatmulDescCreate,
   (cublasLtMatmulDesc_t * operation, cublasComputeType_t compute, cudaDataType_t scale),
   (operation, compute, scale))
LT(cublasLtMatmulDescSetAttribute,
   (cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const void *data,
    size_t bytes),
   (operation, attribute, data, bytes))
LT(cublasLtMatmulPreferenceCreate, (cublasLtMatmulPreference_t * preference), (preference))
LT(cublasLtMatrixLayoutCreate,
   (cublasLtMatrixLayout_t * layout, cudaDataType type, uint64_t rows, uint64_t cols,
    int64_t pitch),
   (layout, type, rows, cols, pitch))
LT(cublasLtMatrixLayoutSetAttribute,
   (cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute, const void *data,
    size_t bytes),
   (layout, attribute, data, bytes))

/* ---- NCCL ---- */

NCCL(ncclGetUniqueId, (ncclUniqueId * id), (id))
NCCL(ncclCommInitRankConfig,
     (ncclComm_t * comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config),
     (comm, ranks, id, rank, config))
NCCL(ncclCommGetAsyncError, (ncclComm_t comm, ncclResult_t *state), (comm, state))
NCCL(ncclGroupStart, (), ())
NCCL(ncclGroupEnd, (), ())
NCCL(ncclAllReduce,
     (const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op,
      ncclComm_t comm, cudaStream_t stream),
     (from, to, count, type, op, comm, stream))
NCCL(ncclAllGather,
     (const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t comm,
      cudaStream_t stream),
     (from, to, count, type, comm, stream))
NCCL(ncclBroadcast,
     (const void *from, void *to, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
      cudaStream_t stream),
     (from, to, count, type, root, comm, stream))
NCCL(ncclSend,
     (const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
      cudaStream_t stream),
     (from, count, type, peer, comm, stream))
NCCL(ncclRecv,
     (void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream),
     (to, count, type, peer, comm, stream))
