#include "common/model/device_options.h"

#include <stdio.h>
#include <string.h>

#include "common/base/log.h"

const char *const bt_kv_staging_names[] = {"none", "host", NULL};

enum bt_status bt_device_open_named(const char *name, const char *kernels, uint32_t rank,
                                    struct bt_error *error, struct bt_device **ret_device)
{
    struct bt_device_info info;
    enum bt_status status = bt_device_open_for_rank(name, kernels, rank, error, ret_device);
    if (status != BT_OK)
        return status;
    bt_device_info(*ret_device, &info);
    if ((*ret_device)->memory == BT_MEMORY_HOST)
        bt_log_info(0, "device cpu: kernels %s", (*ret_device)->kernels->name);
    else
        bt_log_info(0, "device %s: %s, %.1f of %.1f GiB free", (*ret_device)->name,
                    info.description, (double)info.free_bytes / (1 << 30),
                    (double)info.total_bytes / (1 << 30));
    return BT_OK;
}

/* What a label's value may not hold is left out. */
static void clean(const char *text, char *ret_clean, size_t size)
{
    size_t used = 0;
    for (; *text && used + 1 < size; text++)
        if (*text != '"' && *text != '\\' && *text != '\n')
            ret_clean[used++] = *text;
    ret_clean[used] = '\0';
}

void bt_device_metrics(struct bt_device *device, struct bt_metrics *metrics, const char *labels)
{
    struct bt_device_info info;
    char description[sizeof(info.description)], text[320];
    bt_device_info(device, &info);
    clean(info.description, description, sizeof(description));
    snprintf(text, sizeof(text), "%.128s%sdevice=\"%s\",description=\"%s\"", labels ? labels : "",
             labels ? "," : "", device->name, description);
    bt_gauge_set(bt_metrics_gauge(metrics, "baton_device_info", text, "Where the model runs."), 1);
}
