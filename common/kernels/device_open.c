#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/kernels/cuda/module.h"
#include "common/kernels/device.h"

#define MAX_INDEX 1023

static bool is_auto(const char *kernels)
{
    return !kernels || strcmp(kernels, "auto") == 0;
}

static enum bt_status open_cpu(const char *kernels, struct bt_error *error,
                               struct bt_device **ret_device)
{
    const struct bt_kernels *table;
    enum bt_status status = bt_kernels_select(kernels ? kernels : "auto", error, &table);
    if (status == BT_OK)
        *ret_device = bt_device_cpu(table);
    return status;
}

/* "cuda": -1, "cuda:N": N. */
static bool read_index(const char *name, int *ret_index)
{
    if (strcmp(name, "cuda") == 0) {
        *ret_index = -1;
        return true;
    }
    const char *digits = name + strlen("cuda:");
    if (strncmp(name, "cuda:", strlen("cuda:")) != 0 || !*digits || strlen(digits) > 4 ||
        strspn(digits, "0123456789") != strlen(digits))
        return false;
    *ret_index = atoi(digits);
    return *ret_index <= MAX_INDEX;
}

static enum bt_status open_cuda(int index, uint32_t rank, struct bt_error *error,
                                struct bt_device **ret_device)
{
    const struct bt_cuda_module *module;
    uint32_t count = 1;
    enum bt_status status = bt_cuda_module_load(error, &module);
    if (status == BT_OK && index < 0)
        status = module->device_count(error, &count);
    if (status != BT_OK)
        return status;
    return module->device_open(index < 0 ? rank % count : (uint32_t)index, error, ret_device);
}

static enum bt_status open_any(const char *kernels, uint32_t rank, struct bt_error *error,
                               struct bt_device **ret_device)
{
    struct bt_error reason = {0};
    if (!is_auto(kernels))
        return open_cpu(kernels, error, ret_device);
    if (!bt_cuda_module_is_likely())
        bt_error_set(&reason, BT_ERR_UNSUPPORTED, "cuda: there is no GPU's driver on this machine");
    else if (open_cuda(-1, rank, &reason, ret_device) == BT_OK)
        return BT_OK;
    bt_log_info(0, "device auto: the cpu, as %s", reason.text);
    return open_cpu(kernels, error, ret_device);
}

enum bt_status bt_device_open_for_rank(const char *name, const char *kernels, uint32_t rank,
                                       struct bt_error *error, struct bt_device **ret_device)
{
    int index;
    if (strcmp(name, "auto") == 0)
        return open_any(kernels, rank, error, ret_device);
    if (strcmp(name, "cpu") == 0)
        return open_cpu(kernels, error, ret_device);
    if (!read_index(name, &index))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "device %s: unknown name (auto, cpu, cuda, cuda:N of up to 1023)",
                            name);
    if (!is_auto(kernels))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "device %s: kernels %s are of a CPU: leave them out, or use --device "
                            "cpu",
                            name, kernels);
    return open_cuda(index, rank, error, ret_device);
}

enum bt_status bt_device_open(const char *name, const char *kernels, struct bt_error *error,
                              struct bt_device **ret_device)
{
    return bt_device_open_for_rank(name, kernels, 0, error, ret_device);
}
