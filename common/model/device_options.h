/* The flag that says where a program runs its model, and what it tells of the device. */
#ifndef BATON_COMMON_MODEL_DEVICE_OPTIONS_H
#define BATON_COMMON_MODEL_DEVICE_OPTIONS_H

#include "common/base/metrics.h"
#include "common/base/option.h"
#include "common/kernels/device.h"

/* A line of a struct bt_option table; `v` is a const char *. */
/* clang-format off */
#define BT_DEVICE_OPTION(v) \
    {"device", BT_OPTION_STRING, &(v), "auto", .metavar = "DEVICE", \
     .help = "cpu, or a GPU: cuda, cuda:N; auto is a GPU where there is one that can be used, else " \
             "the CPU. Without a number rank r takes GPU r, counted round where there are fewer. " \
             "Not yet run on a GPU: the backend is tested on an emulated one."}
/* clang-format on */

/* Likewise, `v` an int: 1 is by memory of the host. */
/* clang-format off */
#define BT_KV_STAGING_OPTION(v) \
    {"kv-staging", BT_OPTION_CHOICE, &(v), "none", .choices = bt_kv_staging_names, \
     .help = "With a GPU: none hands KV over from GPU to GPU; host keeps a second pool in memory of " \
             "the host and copies between the two, for machines whose NICs don't reach the GPU."}
/* clang-format on */
extern const char *const bt_kv_staging_names[]; /* ends with NULL */

/* bt_device_open_for_rank, and says in the log what it is. */
enum bt_status bt_device_open_named(const char *name, const char *kernels, uint32_t rank,
                                    struct bt_error *error, struct bt_device **ret_device);

/* baton_device_info{device,description} 1, next to `labels`, which may be NULL. */
void bt_device_metrics(struct bt_device *device, struct bt_metrics *metrics, const char *labels);

#endif
