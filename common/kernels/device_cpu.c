/* The CPU as a device: all is done on return. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/kernels/device.h"

#define ALIGN_BYTES ((size_t)256)
#define CPU_TABLES  16 /* at most, that bt_device_cpu is asked for in a process */

struct bt_event {
    char nothing;
};

static struct bt_event cpu_event; /* all that was queued is done */

static void cpu_close(struct bt_device *device)
{
    (void)device;
}

static void cpu_info(struct bt_device *device, struct bt_device_info *ret_info)
{
    (void)device;
    *ret_info = (struct bt_device_info){
        .total_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE),
        .free_bytes = bt_memory_available_bytes(),
        .peer_memory = true,
    };
}

static enum bt_status cpu_enter(struct bt_device *device, struct bt_error *error)
{
    (void)device;
    (void)error;
    return BT_OK;
}

/* The block that was allocated lies before what is given out: big ones are zero pages, so that who
 * touches them first decides where they are. */
static enum bt_status cpu_alloc(struct bt_device *device, size_t bytes, struct bt_error *error,
                                void **ret_memory)
{
    (void)device;
    const size_t before = ALIGN_BYTES + sizeof(void *);
    char *block = bytes <= SIZE_MAX - before ? calloc(1, bytes + before) : NULL;
    if (!block)
        return bt_error_set(error, BT_ERR_NO_MEMORY,
                            "cpu: no memory for %zu bytes, %llu are available", bytes,
                            (unsigned long long)bt_memory_available_bytes());
    char *memory = block + before - (uintptr_t)(block + before) % ALIGN_BYTES;
    memcpy(memory - sizeof(block), &block, sizeof(block));
    *ret_memory = memory;
    return BT_OK;
}

static void cpu_free(struct bt_device *device, void *memory)
{
    char *block;
    (void)device;
    if (!memory)
        return;
    memcpy(&block, (char *)memory - sizeof(block), sizeof(block));
    free(block);
}

static enum bt_status cpu_stream_create(struct bt_device *device,
                                        const struct bt_stream_limits *limits, struct bt_team *team,
                                        struct bt_error *error, struct bt_stream **ret_stream)
{
    (void)device;
    return bt_stream_create(limits, team, error, ret_stream);
}

static void cpu_copy(struct bt_stream *stream, void *to, const void *from, size_t bytes)
{
    (void)stream;
    if (bytes > 0)
        memcpy(to, from, bytes);
}

static enum bt_status cpu_synchronize(struct bt_stream *stream, struct bt_error *error)
{
    (void)stream;
    (void)error;
    return BT_OK;
}

static enum bt_status cpu_event_create(struct bt_device *device, struct bt_error *error,
                                       struct bt_event **ret_event)
{
    (void)device;
    (void)error;
    *ret_event = &cpu_event;
    return BT_OK;
}

static void cpu_event_destroy(struct bt_event *event)
{
    (void)event;
}

static void cpu_event_on_stream(struct bt_event *event, struct bt_stream *stream)
{
    (void)event;
    (void)stream;
}

static bool cpu_event_query(struct bt_event *event)
{
    (void)event;
    return true;
}

static enum bt_status cpu_event_synchronize(struct bt_event *event, struct bt_error *error)
{
    (void)event;
    (void)error;
    return BT_OK;
}

static uint64_t cpu_waits(const struct bt_device *device)
{
    (void)device;
    return 0;
}

static const struct bt_device_ops cpu_ops = {
    .close = cpu_close,
    .info = cpu_info,
    .enter = cpu_enter,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .alloc_host = cpu_alloc,
    .free_host = cpu_free,
    .stream_create = cpu_stream_create,
    .stream_destroy = bt_stream_destroy,
    .copy = cpu_copy,
    .synchronize = cpu_synchronize,
    .event_create = cpu_event_create,
    .event_destroy = cpu_event_destroy,
    .event_record = cpu_event_on_stream,
    .event_wait = cpu_event_on_stream,
    .event_query = cpu_event_query,
    .event_synchronize = cpu_event_synchronize,
    .waits = cpu_waits,
};

struct bt_device *bt_device_cpu(const struct bt_kernels *kernels)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static struct bt_device devices[CPU_TABLES];
    size_t i = 0;
    pthread_mutex_lock(&mutex);
    while (i < CPU_TABLES && devices[i].kernels && devices[i].kernels != kernels)
        i++;
    BT_ASSERT(i < CPU_TABLES);
    if (!devices[i].kernels)
        devices[i] = (struct bt_device){
            .ops = &cpu_ops, .kernels = kernels, .memory = BT_MEMORY_HOST, .name = "cpu"};
    pthread_mutex_unlock(&mutex);
    return &devices[i];
}
