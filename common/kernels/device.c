/* Calls of any device; what the module of a GPU links too. */
#include "common/kernels/device.h"

void bt_device_close(struct bt_device *device)
{
    if (device)
        device->ops->close(device);
}

enum bt_status bt_device_enter(struct bt_device *device, struct bt_error *error)
{
    return device->ops->enter(device, error);
}

void bt_device_info(struct bt_device *device, struct bt_device_info *ret_info)
{
    device->ops->info(device, ret_info);
}

enum bt_status bt_device_alloc(struct bt_device *device, size_t bytes, struct bt_error *error,
                               void **ret_memory)
{
    return device->ops->alloc(device, bytes, error, ret_memory);
}

void bt_device_free(struct bt_device *device, void *memory)
{
    if (memory)
        device->ops->free(device, memory);
}

enum bt_status bt_device_alloc_host(struct bt_device *device, size_t bytes, struct bt_error *error,
                                    void **ret_memory)
{
    return device->ops->alloc_host(device, bytes, error, ret_memory);
}

void bt_device_free_host(struct bt_device *device, void *memory)
{
    if (memory)
        device->ops->free_host(device, memory);
}

enum bt_status bt_device_stream_create(struct bt_device *device,
                                       const struct bt_stream_limits *limits, struct bt_team *team,
                                       struct bt_error *error, struct bt_stream **ret_stream)
{
    return device->ops->stream_create(device, limits, team, error, ret_stream);
}

void bt_device_stream_destroy(struct bt_device *device, struct bt_stream *stream)
{
    if (stream)
        device->ops->stream_destroy(stream);
}

void bt_device_copy(struct bt_device *device, struct bt_stream *stream, void *to, const void *from,
                    size_t bytes)
{
    device->ops->copy(stream, to, from, bytes);
}

enum bt_status bt_device_synchronize(struct bt_device *device, struct bt_stream *stream,
                                     struct bt_error *error)
{
    return device->ops->synchronize(stream, error);
}

enum bt_status bt_device_register_host(struct bt_device *device, void *memory, size_t bytes,
                                       struct bt_error *error)
{
    return device->ops->register_host ? device->ops->register_host(device, memory, bytes, error)
                                      : BT_OK;
}

void bt_device_unregister_host(struct bt_device *device, void *memory)
{
    if (device->ops->unregister_host)
        device->ops->unregister_host(device, memory);
}
