/*
 * A device: where kernels run, and the memory that they work on. The CPU is one; a GPU is another,
 * whose code is a module of its own (baton-cuda.so), loaded when a GPU is asked for, so that
 * programs start where there is no CUDA.
 *
 *     open -> alloc, stream_create -> kernels, copies, events on the stream -> synchronize
 *
 * Work on a stream is done in order. On a GPU a call only queues it: host memory that a copy reads
 * or writes is of `alloc_host`, and stays as it is until the stream has come past the copy. On the
 * CPU all is done on return. Faults of a device (a launch that failed, memory that went bad) are
 * kept by its streams; what waits for them returns INTERNAL with `error` set, then and ever after.
 */
#ifndef BATON_COMMON_KERNELS_DEVICE_H
#define BATON_COMMON_KERNELS_DEVICE_H

#include "common/kernels/kernels.h"

enum bt_memory_kind { BT_MEMORY_HOST, BT_MEMORY_CUDA };

struct bt_device;
struct bt_event;
struct bt_graph;

struct bt_device_info {
    char description[128]; /* "NVIDIA H100 80GB HBM3, sm_90, driver 580.65"; "" on a CPU */
    uint64_t total_bytes, free_bytes; /* of memory */
    bool peer_memory;                 /* NICs may read and write its memory (GPUDirect RDMA) */
    char peer_memory_missing[256];    /* why not */
    char pci[16];                     /* "0000:9A:00.0"; "": not known, or a CPU */
};

/* Memory of a device, for another process of this machine. */
struct bt_shared_memory {
    unsigned char handle[64];
};

/* For the arguments see the functions below. */
struct bt_device_ops {
    void (*close)(struct bt_device *device);
    void (*info)(struct bt_device *device, struct bt_device_info *ret_info);
    enum bt_status (*enter)(struct bt_device *device, struct bt_error *error);
    enum bt_status (*alloc)(struct bt_device *device, size_t bytes, struct bt_error *error,
                            void **ret_memory);
    void (*free)(struct bt_device *device, void *memory);
    enum bt_status (*alloc_host)(struct bt_device *device, size_t bytes, struct bt_error *error,
                                 void **ret_memory);
    void (*free_host)(struct bt_device *device, void *memory);
    /* NULL: nothing is to be done. */
    enum bt_status (*register_host)(struct bt_device *device, void *memory, size_t bytes,
                                    struct bt_error *error);
    void (*unregister_host)(struct bt_device *device, void *memory);
    enum bt_status (*stream_create)(struct bt_device *device, const struct bt_stream_limits *limits,
                                    struct bt_team *team, struct bt_error *error,
                                    struct bt_stream **ret_stream);
    void (*stream_destroy)(struct bt_stream *stream);
    void (*copy)(struct bt_stream *stream, void *to, const void *from, size_t bytes);
    enum bt_status (*synchronize)(struct bt_stream *stream, struct bt_error *error);
    enum bt_status (*event_create)(struct bt_device *device, struct bt_error *error,
                                   struct bt_event **ret_event);
    void (*event_destroy)(struct bt_event *event);
    void (*event_record)(struct bt_event *event, struct bt_stream *stream);
    void (*event_wait)(struct bt_event *event, struct bt_stream *stream);
    bool (*event_query)(struct bt_event *event);
    enum bt_status (*event_synchronize)(struct bt_event *event, struct bt_error *error);
    /* NULL: this device has no graphs. */
    enum bt_status (*capture_begin)(struct bt_stream *stream, struct bt_error *error);
    enum bt_status (*capture_end)(struct bt_stream *stream, struct bt_error *error,
                                  struct bt_graph **ret_graph);
    void (*graph_launch)(struct bt_graph *graph, struct bt_stream *stream);
    void (*graph_destroy)(struct bt_graph *graph);
    /* How often host threads have waited for this device: synchronize, event_synchronize, and
     * whatever else blocks. */
    uint64_t (*waits)(const struct bt_device *device);
    /* NULL: its memory can't be shared. Of a block that `alloc` gave, for as long as it lives. */
    enum bt_status (*share)(struct bt_device *device, void *memory, struct bt_error *error,
                            struct bt_shared_memory *ret_shared);
    /* Of another process, and how large it really is. UNAVAILABLE: this device does not reach it.
     */
    enum bt_status (*attach)(struct bt_device *device, const struct bt_shared_memory *shared,
                             struct bt_error *error, void **ret_memory, size_t *ret_bytes);
    void (*detach)(struct bt_device *device, void *memory);
    /* Of bt_kernels.f8_inputs: whether e4m3 weights, those packed so far, are multiplied by this
     * backend's own kernels, as its library has no products for them; the bits are others. It is
     * asked once they are loaded, and holds from then on. NULL: there is one way alone. */
    bool (*f8_is_own)(struct bt_device *device);
};

/* The first member of every backend's device. */
struct bt_device {
    const struct bt_device_ops *ops;
    const struct bt_kernels *kernels;
    enum bt_memory_kind memory;
    uint32_t index; /* of the GPU */
    char name[16];  /* "cpu", "cuda:0" */
};

/*
 * `name`: "cpu", "cuda", "cuda:N", or "auto": a GPU where module, driver and GPU are there, else
 * the CPU (the reason is logged). `kernels`: of the CPU, see bt_kernels_select; NULL: auto.
 * UNSUPPORTED: names what is missing and what would help: the module of this build, libcudart,
 * the driver (or its version), a GPU, a GPU of this architecture. INVALID_ARGUMENT: no such name or
 * index, with the GPUs that there are.
 */
enum bt_status bt_device_open(const char *name, const char *kernels, struct bt_error *error,
                              struct bt_device **ret_device);
/* Likewise for one of several ranks: "cuda" and "auto" take GPU number `rank` modulo the GPUs of
 * this machine. */
enum bt_status bt_device_open_for_rank(const char *name, const char *kernels, uint32_t rank,
                                       struct bt_error *error, struct bt_device **ret_device);
/* After all that is of the device is gone. NULL is fine. */
void bt_device_close(struct bt_device *device);
/* The CPU with this table; static, close does nothing. For tests and tools. */
struct bt_device *bt_device_cpu(const struct bt_kernels *kernels);

/* A thread that works with the device calls this first. */
enum bt_status bt_device_enter(struct bt_device *device, struct bt_error *error);
void bt_device_info(struct bt_device *device, struct bt_device_info *ret_info);

/* Zeroed, aligned to 256 bytes. NO_MEMORY names both sizes. */
enum bt_status bt_device_alloc(struct bt_device *device, size_t bytes, struct bt_error *error,
                               void **ret_memory);
void bt_device_free(struct bt_device *device, void *memory); /* NULL is fine */
/* Memory of the host that copies of this device may use: pinned. Zeroed. */
enum bt_status bt_device_alloc_host(struct bt_device *device, size_t bytes, struct bt_error *error,
                                    void **ret_memory);
void bt_device_free_host(struct bt_device *device, void *memory);
/* Memory of the host that somebody else allocated (page-aligned): pinned until unregistered. */
enum bt_status bt_device_register_host(struct bt_device *device, void *memory, size_t bytes,
                                       struct bt_error *error);
void bt_device_unregister_host(struct bt_device *device, void *memory);

/* As bt_stream_create, which it is on a CPU. */
enum bt_status bt_device_stream_create(struct bt_device *device,
                                       const struct bt_stream_limits *limits, struct bt_team *team,
                                       struct bt_error *error, struct bt_stream **ret_stream);
void bt_device_stream_destroy(struct bt_device *device, struct bt_stream *stream);

/* Either way, or inside one memory; may overlap nothing. */
void bt_device_copy(struct bt_device *device, struct bt_stream *stream, void *to, const void *from,
                    size_t bytes);
/* Until all work of the stream is done. */
enum bt_status bt_device_synchronize(struct bt_device *device, struct bt_stream *stream,
                                     struct bt_error *error);

#endif
