#include "tests/conformance/pool_device.h"

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/base/memory.h"

#include "kvtransfer/checksum.h"

#define QUEUE   4096
#define BLOCKS  64
#define QUERIES 3 /* until an event is over */

struct operation {
    void *to; /* of a copy; NULL: hashes */
    const void *from;
    size_t bytes;
    const struct bt_page_span *spans;
    uint32_t count;
    uint64_t *sums;
};

struct bt_stream {
    struct operation queue[QUEUE];
    unsigned count;
};

struct bt_event {
    struct bt_stream *stream;
    unsigned queries;
};

struct block {
    void *base;
    size_t bytes;
    int fd;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct block blocks[BLOCKS];
static unsigned block_count;

static void run(struct bt_stream *stream)
{
    const char *name;
    kvt_checksum_hash_fn *hash = kvt_checksum_variant(0, &name);

    for (unsigned i = 0; i < stream->count; i++) {
        const struct operation *o = &stream->queue[i];
        if (o->to)
            memcpy(o->to, o->from, o->bytes);
        for (uint32_t s = 0; s < o->count; s++)
            o->sums[s] = hash(NULL, (const char *)o->from + o->spans[s].offset, o->spans[s].bytes,
                              o->spans[s].seed);
    }
    stream->count = 0;
}

static void queue(struct bt_stream *stream, struct operation operation)
{
    BT_ASSERT(stream->count < QUEUE);
    stream->queue[stream->count++] = operation;
}

static void hash_pages(struct bt_stream *stream, const void *base, const struct bt_page_span *spans,
                       uint32_t count, uint64_t *sums)
{
    queue(stream, (struct operation){.from = base, .spans = spans, .count = count, .sums = sums});
}

static void copy(struct bt_stream *stream, void *to, const void *from, size_t bytes)
{
    queue(stream, (struct operation){.to = to, .from = from, .bytes = bytes});
}

static enum bt_status enter(struct bt_device *device, struct bt_error *error)
{
    (void)device, (void)error;
    return BT_OK;
}

/* Every block is a file without a name, so that others may map it. */
static enum bt_status alloc(struct bt_device *device, size_t bytes, struct bt_error *error,
                            void **ret_memory)
{
    struct block block = {.bytes = (bytes + 4095) / 4096 * 4096};

    (void)device;
    if (bt_memory_available_bytes() < block.bytes)
        return bt_error_set(error, BT_ERR_NO_MEMORY,
                            "pool: no memory for %zu bytes, %llu are available", bytes,
                            (unsigned long long)bt_memory_available_bytes());
    block.fd = memfd_create("pool", MFD_CLOEXEC);
    BT_ASSERT(block.fd >= 0 && ftruncate(block.fd, (off_t)block.bytes) == 0);
    block.base = mmap(NULL, block.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, block.fd, 0);
    BT_ASSERT(block.base != MAP_FAILED);
    pthread_mutex_lock(&mutex);
    BT_ASSERT(block_count < BLOCKS);
    blocks[block_count++] = block;
    pthread_mutex_unlock(&mutex);
    *ret_memory = block.base;
    return BT_OK;
}

static struct block *find(const void *memory)
{
    unsigned i = 0;

    while (i < block_count && blocks[i].base != memory)
        i++;
    BT_ASSERT(i < block_count);
    return &blocks[i];
}

static void release(struct bt_device *device, void *memory)
{
    (void)device;
    pthread_mutex_lock(&mutex);
    struct block *block = find(memory);
    munmap(block->base, block->bytes);
    close(block->fd);
    *block = blocks[--block_count];
    pthread_mutex_unlock(&mutex);
}

/* ---- other processes ---- */

struct handle {
    int64_t pid, fd;
    uint64_t bytes;
};

static enum bt_status share(struct bt_device *device, void *memory, struct bt_error *error,
                            struct bt_shared_memory *ret_shared)
{
    (void)device, (void)error;
    pthread_mutex_lock(&mutex);
    const struct block *block = find(memory);
    const struct handle handle = {getpid(), block->fd, block->bytes};
    pthread_mutex_unlock(&mutex);
    *ret_shared = (struct bt_shared_memory){{0}};
    memcpy(ret_shared, &handle, sizeof(handle));
    return BT_OK;
}

static enum bt_status attach(struct bt_device *device, const struct bt_shared_memory *shared,
                             struct bt_error *error, void **ret_memory, size_t *ret_bytes)
{
    struct handle handle;
    char path[64];

    (void)device;
    memcpy(&handle, shared, sizeof(handle));
    snprintf(path, sizeof(path), "/proc/%" PRId64 "/fd/%" PRId64, handle.pid, handle.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "no memory is shared there");
    struct block block = {.bytes = handle.bytes, .fd = fd};
    block.base = mmap(NULL, block.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (block.base == MAP_FAILED) {
        close(fd);
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "that memory can't be mapped");
    }
    pthread_mutex_lock(&mutex);
    BT_ASSERT(block_count < BLOCKS);
    blocks[block_count++] = block;
    pthread_mutex_unlock(&mutex);
    *ret_memory = block.base;
    *ret_bytes = block.bytes;
    return BT_OK;
}

static enum bt_status stream_create(struct bt_device *device, const struct bt_stream_limits *limits,
                                    struct bt_team *team, struct bt_error *error,
                                    struct bt_stream **ret_stream)
{
    (void)device, (void)limits, (void)team, (void)error;
    *ret_stream = calloc(1, sizeof(**ret_stream));
    return BT_OK;
}

static void stream_destroy(struct bt_stream *stream)
{
    BT_ASSERT(stream->count == 0);
    free(stream);
}

static enum bt_status synchronize(struct bt_stream *stream, struct bt_error *error)
{
    (void)error;
    run(stream);
    return BT_OK;
}

static enum bt_status event_create(struct bt_device *device, struct bt_error *error,
                                   struct bt_event **ret_event)
{
    (void)device, (void)error;
    *ret_event = calloc(1, sizeof(**ret_event));
    return BT_OK;
}

static void event_destroy(struct bt_event *event)
{
    free(event);
}

static void event_record(struct bt_event *event, struct bt_stream *stream)
{
    event->stream = stream;
    event->queries = 0;
}

static bool event_query(struct bt_event *event)
{
    if (++event->queries < QUERIES)
        return false;
    run(event->stream);
    return true;
}

static enum bt_status event_synchronize(struct bt_event *event, struct bt_error *error)
{
    return synchronize(event->stream, error);
}

struct bt_device *pool_device(void)
{
    static const struct bt_kernels kernels = {.name = "pool", .hash_pages = hash_pages};
    static const struct bt_device_ops ops = {
        .enter = enter,
        .alloc = alloc,
        .free = release,
        .alloc_host = alloc,
        .free_host = release,
        .stream_create = stream_create,
        .stream_destroy = stream_destroy,
        .copy = copy,
        .synchronize = synchronize,
        .event_create = event_create,
        .event_destroy = event_destroy,
        .event_record = event_record,
        .event_query = event_query,
        .event_synchronize = event_synchronize,
        .share = share,
        .attach = attach,
        .detach = release,
    };
    static struct bt_device device = {
        .ops = &ops, .kernels = &kernels, .memory = BT_MEMORY_CUDA, .name = "pool"};
    return &device;
}

unsigned pool_device_blocks(void)
{
    pthread_mutex_lock(&mutex);
    unsigned count = block_count;
    pthread_mutex_unlock(&mutex);
    return count;
}
