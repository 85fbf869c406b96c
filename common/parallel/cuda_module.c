/* The one function of baton-cuda.so that programs call: common/kernels/cuda/module.h. */
#include <cuda_runtime_api.h>
#include <nccl.h>

#include "common/kernels/cuda/host.h"
#include "common/parallel/nccl.h"

static void versions(struct bt_cuda_versions *ret_versions)
{
    *ret_versions = (struct bt_cuda_versions){0};
    (void)cudaDriverGetVersion(&ret_versions->driver);
    (void)cudaRuntimeGetVersion(&ret_versions->runtime);
    (void)ncclGetVersion(&ret_versions->nccl);
    (void)cudaGetLastError();
}

static bool reaches(uint32_t from, uint32_t to)
{
    int can = 0;
    if (cudaDeviceCanAccessPeer(&can, (int)from, (int)to) != cudaSuccess)
        (void)cudaGetLastError();
    return can != 0;
}

static const struct bt_cuda_module module = {
    .abi = BT_CUDA_MODULE_ABI,
    .struct_bytes = BT_CUDA_MODULE_STRUCT_BYTES,
    .device_count = bt_cuda_device_count,
    .device_open = bt_cuda_device_open,
    .group_create = bt_nccl_group_create,
    .versions = versions,
    .reaches = reaches,
};

bt_cuda_module_fn bt_cuda_module;

__attribute__((visibility("default"))) const struct bt_cuda_module *
bt_cuda_module(const struct bt_cuda_host *host)
{
    if (host->abi == BT_CUDA_MODULE_ABI)
        bt_cuda_host_set(host);
    return &module;
}
