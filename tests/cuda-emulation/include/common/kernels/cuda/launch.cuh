/* Launching a kernel on the emulated grid: see the file of this name of the real thing. */
#ifndef BATON_COMMON_KERNELS_CUDA_LAUNCH_CUH
#define BATON_COMMON_KERNELS_CUDA_LAUNCH_CUH

#include <cuda_runtime_api.h>

#include <tuple>

#include "tests/cuda-emulation/grid.h"
#include "tests/cuda-emulation/runtime.h"

namespace emulation {

/* `text`: of all arguments as written; the kernel's comes first. */
template <typename... Parameters, typename... Arguments>
void launch_clusters(const char *text, void (*kernel)(Parameters...), unsigned cluster, dim3 blocks,
                     unsigned threads, size_t shared_bytes, cudaStream_t stream,
                     Arguments... arguments)
{
    if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0)
        return;
    const void *address = reinterpret_cast<const void *>(kernel);
    if (shared_bytes > 48 * 1024)
        (void)cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes));
    std::tuple<Parameters...> kept(static_cast<Parameters>(arguments)...);
    auto run = [=] {
        Grid grid = {text, blocks, threads, shared_bytes, cluster, address};
        run_grid(grid, [kernel, kept] { std::apply(kernel, kept); });
    };
    launch(stream, {address, blocks, threads, shared_bytes, run, cluster});
}

template <typename... Parameters, typename... Arguments>
void launch_kernel(const char *text, void (*kernel)(Parameters...), dim3 blocks, unsigned threads,
                   size_t shared_bytes, cudaStream_t stream, Arguments... arguments)
{
    launch_clusters(text, kernel, 1, blocks, threads, shared_bytes, stream, arguments...);
}

} // namespace emulation

#define bt_cuda_launch(...)          emulation::launch_kernel(#__VA_ARGS__, __VA_ARGS__)
#define bt_cuda_launch_clusters(...) emulation::launch_clusters(#__VA_ARGS__, __VA_ARGS__)

#endif
