/* Launches without a runtime, for tests of the grid and of single kernels: run at once. */
#include "tests/cuda-emulation/runtime.h"

namespace emulation {

void launch(cudaStream_t, Launch launch)
{
    launch.run();
}

} // namespace emulation

extern "C" cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int)
{
    return cudaSuccess;
}
