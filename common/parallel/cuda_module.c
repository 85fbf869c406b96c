/* The one function of baton-cuda.so that programs call: common/kernels/cuda/module.h. */
#include <nccl.h>

#include "common/kernels/cuda/host.h"
#include "common/parallel/nccl.h"

static void versions(struct bt_cuda_versions *ret_versions)
{
    bt_cuda_read_versions(ret_versions);
    if (ncclGetVersion(&ret_versions->nccl) != ncclSuccess)
        ret_versions->nccl = 0;
}

static const struct bt_cuda_module module = {
    .abi = BT_CUDA_MODULE_ABI,
    .struct_bytes = BT_CUDA_MODULE_STRUCT_BYTES,
    .device_count = bt_cuda_device_count,
    .device_open = bt_cuda_device_open,
    .group_create = bt_nccl_group_create,
    .versions = versions,
    .reaches = bt_cuda_reaches,
};

bt_cuda_module_fn bt_cuda_module;

__attribute__((visibility("default"))) const struct bt_cuda_module *
bt_cuda_module(const struct bt_cuda_host *host)
{
    if (host->abi == BT_CUDA_MODULE_ABI)
        bt_cuda_host_set(host);
    return &module;
}
