/* A module that programs have to refuse, or one with nothing behind it. */
#include <stddef.h>

#include "common/kernels/cuda/module.h"

#ifdef FAKE_NEEDS
int needed_function(void);
int fake_needs(void);
int fake_needs(void)
{
    return needed_function();
}
#endif

#ifndef FAKE_ABI
#define FAKE_ABI BT_CUDA_MODULE_ABI
#endif
#ifndef FAKE_MORE
#define FAKE_MORE 0
#endif

static const struct bt_cuda_host *host;

static enum bt_status device_count(struct bt_error *error, uint32_t *ret_count)
{
    (void)error;
    *ret_count = 3;
    return BT_OK;
}

/* Says by its fault which one it was to be, and in the log, which is the program's. */
static enum bt_status device_open(uint32_t index, struct bt_error *error,
                                  struct bt_device **ret_device)
{
    (void)ret_device;
    host->log(BT_LOG_WARN, 0, "the fake was asked");
    return bt_error_set(error, BT_ERR_UNSUPPORTED, "cuda: fake %u", index);
}

static const struct bt_cuda_module module = {
    .abi = FAKE_ABI,
    .struct_bytes = {sizeof(struct bt_cuda_module), sizeof(struct bt_device) + FAKE_MORE,
                     sizeof(struct bt_device_ops), sizeof(struct bt_kernels),
                     sizeof(struct bt_stream_limits), sizeof(struct bt_stage)},
    .device_count = device_count,
    .device_open = device_open,
};

bt_cuda_module_fn FAKE_NAME;

const struct bt_cuda_module *FAKE_NAME(const struct bt_cuda_host *given)
{
    host = given;
    return &module;
}
