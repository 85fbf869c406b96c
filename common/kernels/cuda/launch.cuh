/*
 * Launching a kernel. Not inside kernels. Dynamic shared memory beyond 48 KiB is asked for here;
 * a launch that fails is kept as the runtime's last error, which the stream looks at.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_LAUNCH_CUH
#define BATON_COMMON_KERNELS_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

/* grid: blocks in x, y, z; none: nothing is launched. `threads` of a block, in x. */
template <typename... Parameters, typename... Arguments>
static inline void bt_cuda_launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                                  size_t shared_bytes, cudaStream_t stream, Arguments... arguments)
{
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return;
    if (shared_bytes > 48 * 1024)
        (void)cudaFuncSetAttribute((const void *)kernel,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
    kernel<<<grid, threads, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
}

#endif
