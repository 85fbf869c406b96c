/*
 * Launching a kernel. Not inside kernels. Dynamic shared memory beyond 48 KiB is asked for here;
 * a launch that fails is kept as the runtime's last error, which the stream looks at.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_LAUNCH_CUH
#define BATON_COMMON_KERNELS_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

template <typename... Parameters>
static inline void bt_cuda_allow_shared(void (*kernel)(Parameters...), size_t shared_bytes)
{
    if (shared_bytes > 48 * 1024)
        (void)cudaFuncSetAttribute((const void *)kernel,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
}

/* grid: blocks in x, y, z; none: nothing is launched. `threads` of a block, in x. */
template <typename... Parameters, typename... Arguments>
static inline void bt_cuda_launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                                  size_t shared_bytes, cudaStream_t stream, Arguments... arguments)
{
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return;
    bt_cuda_allow_shared(kernel, shared_bytes);
    kernel<<<grid, threads, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
}

/* The same in clusters of `cluster` neighbours in x, of which grid.x is a multiple. sm_90. */
template <typename... Parameters, typename... Arguments>
static inline void bt_cuda_launch_clusters(void (*kernel)(Parameters...), unsigned cluster,
                                           dim3 grid, unsigned threads, size_t shared_bytes,
                                           cudaStream_t stream, Arguments... arguments)
{
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    bt_cuda_allow_shared(kernel, shared_bytes);
    (void)cudaLaunchKernelEx(&config, kernel, arguments...);
}

#endif
