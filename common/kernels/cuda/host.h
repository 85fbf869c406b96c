/* What the module takes from the program that loaded it: module.h. Inside the module only. */
#ifndef BATON_COMMON_KERNELS_CUDA_HOST_H
#define BATON_COMMON_KERNELS_CUDA_HOST_H

#include "common/kernels/cuda/module.h"

/* Before anything else of the module runs. */
void bt_cuda_host_set(const struct bt_cuda_host *host);

/* device.c */
enum bt_status bt_cuda_device_count(struct bt_error *error, uint32_t *ret_count);
/* Of driver and runtime; nccl is 0. */
void bt_cuda_read_versions(struct bt_cuda_versions *ret_versions);
bool bt_cuda_reaches(uint32_t from, uint32_t to);
enum bt_status bt_cuda_device_open(uint32_t index, struct bt_error *error,
                                   struct bt_device **ret_device);

#endif
