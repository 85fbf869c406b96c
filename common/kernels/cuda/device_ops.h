/* The operations of a device (common/kernels/device.h) that stream.c has, for device.c. */
#ifndef BATON_COMMON_KERNELS_CUDA_DEVICE_OPS_H
#define BATON_COMMON_KERNELS_CUDA_DEVICE_OPS_H

#include "common/kernels/cuda/stream.h"

/* Before a thread of the host waits for the GPU, whatever for. */
void bt_cuda_count_wait(struct bt_cuda_device *device);

/* As device.h's, contents undefined. */
enum bt_status bt_cuda_alloc(struct bt_cuda_device *device, size_t bytes, struct bt_error *error,
                             void **ret_memory);
/* What an allocation that failed is told as: NO_MEMORY says how much there is, other results that
 * the device is at fault. `what`: "64 bytes of device memory". Forgets the runtime's last error. */
enum bt_status bt_cuda_no_memory(struct bt_cuda_device *device, const char *what,
                                 cudaError_t result, struct bt_error *error);

/* f8_products.c */
/* A weight of e4m3 is packed: `outs` rows of `pitch`. */
void bt_cuda_f8_note(struct bt_cuda_device *device, uint32_t outs, uint32_t pitch);
bool bt_cuda_f8_is_own(struct bt_device *device);

enum bt_status bt_cuda_stream_create(struct bt_device *device,
                                     const struct bt_stream_limits *limits, struct bt_team *team,
                                     struct bt_error *error, struct bt_stream **ret_stream);
void bt_cuda_stream_destroy(struct bt_stream *stream);
void bt_cuda_copy(struct bt_stream *stream, void *to, const void *from, size_t bytes);
enum bt_status bt_cuda_synchronize(struct bt_stream *stream, struct bt_error *error);

enum bt_status bt_cuda_event_create(struct bt_device *device, struct bt_error *error,
                                    struct bt_event **ret_event);
void bt_cuda_event_destroy(struct bt_event *event);
void bt_cuda_event_record(struct bt_event *event, struct bt_stream *stream);
void bt_cuda_event_wait(struct bt_event *event, struct bt_stream *stream);
bool bt_cuda_event_query(struct bt_event *event);
enum bt_status bt_cuda_event_synchronize(struct bt_event *event, struct bt_error *error);

enum bt_status bt_cuda_capture_begin(struct bt_stream *stream, struct bt_error *error);
enum bt_status bt_cuda_capture_end(struct bt_stream *stream, struct bt_error *error,
                                   struct bt_graph **ret_graph);
void bt_cuda_graph_launch(struct bt_graph *graph, struct bt_stream *stream);
void bt_cuda_graph_destroy(struct bt_graph *graph);

#endif
