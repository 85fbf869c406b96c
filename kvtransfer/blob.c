#include "kvtransfer/blob.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#define BLOB_MAGIC   UINT32_C(0x4b56544e) /* a peer of the other byte order reads another one */
#define BLOB_VERSION 2

struct blob_header {
    uint32_t magic;
    uint16_t version;
    uint16_t kind;
    uint64_t payload_size;
    uint64_t checksum; /* XXH3-64 of the payload, seeded with kind */
};

static const char *blob_name(enum kvt_blob_kind kind)
{
    switch (kind) {
    case KVT_BLOB_SHM_KEY:
    case KVT_BLOB_RDMA_KEY:
    case KVT_BLOB_TCP_KEY:
    case KVT_BLOB_CHOICE_KEY:
    case KVT_BLOB_RAILS_KEY:
        return "pool key";
    default:
        return "transport address";
    }
}

enum bt_status kvt_blob_wrap(enum kvt_blob_kind kind, const void *payload, size_t payload_size,
                             struct bt_error *error, void **ret_blob, size_t *ret_size)
{
    struct blob_header header = {
        .magic = BLOB_MAGIC,
        .version = BLOB_VERSION,
        .kind = (uint16_t)kind,
        .payload_size = payload_size,
        .checksum = XXH3_64bits_withSeed(payload, payload_size, kind),
    };
    char *blob = malloc(sizeof(header) + payload_size);

    if (blob == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a transport address");
    memcpy(blob, &header, sizeof(header));
    memcpy(blob + sizeof(header), payload, payload_size);
    *ret_blob = blob;
    *ret_size = sizeof(header) + payload_size;
    return BT_OK;
}

enum bt_status kvt_blob_unwrap(enum kvt_blob_kind kind, const void *blob, size_t size,
                               struct bt_error *error, const void **ret_payload,
                               size_t *ret_payload_size)
{
    const char *what = blob_name(kind);
    const void *payload = (const char *)blob + sizeof(struct blob_header);
    struct blob_header header;

    if (blob == NULL || size < sizeof(header))
        return bt_error_set(error, BT_ERR_PROTOCOL, "%s: %zu bytes are too short", what, size);
    memcpy(&header, blob, sizeof(header));
    if (header.magic != BLOB_MAGIC || header.kind != kind)
        return bt_error_set(error, BT_ERR_PROTOCOL, "%s: these bytes are not one", what);
    if (header.version != BLOB_VERSION)
        return bt_error_set(error, BT_ERR_PROTOCOL, "%s: version %u, ours is %u", what,
                            header.version, BLOB_VERSION);
    if (header.payload_size != size - sizeof(header))
        return bt_error_set(error, BT_ERR_PROTOCOL, "%s: cut or padded", what);
    if (header.checksum != XXH3_64bits_withSeed(payload, size - sizeof(header), kind))
        return bt_error_set(error, BT_ERR_PROTOCOL, "%s: its checksum differs", what);
    *ret_payload = payload;
    *ret_payload_size = size - sizeof(header);
    return BT_OK;
}

/* `head` and `rest`, one behind the other. */
static enum bt_status wrap_two(enum kvt_blob_kind kind, const void *head, size_t head_size,
                               const void *rest, size_t rest_size, struct bt_error *error,
                               void **ret_blob, size_t *ret_size)
{
    char *payload = malloc(head_size + rest_size);
    enum bt_status status;

    if (payload == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a transport address");
    memcpy(payload, head, head_size);
    if (rest_size > 0)
        memcpy(payload + head_size, rest, rest_size);
    status = kvt_blob_wrap(kind, payload, head_size + rest_size, error, ret_blob, ret_size);
    free(payload);
    return status;
}

static enum bt_status unwrap_two(enum kvt_blob_kind kind, const void *blob, size_t size,
                                 struct bt_error *error, void *ret_head, size_t head_size,
                                 const void **ret_rest, size_t *ret_rest_size)
{
    const void *payload;
    size_t payload_size;
    enum bt_status status;

    status = kvt_blob_unwrap(kind, blob, size, error, &payload, &payload_size);
    if (status != BT_OK)
        return status;
    if (payload_size < head_size)
        return bt_error_set(error, BT_ERR_PROTOCOL, "%s: %zu bytes inside are too short",
                            blob_name(kind), payload_size);
    memcpy(ret_head, payload, head_size);
    *ret_rest = (const char *)payload + head_size;
    *ret_rest_size = payload_size - head_size;
    return BT_OK;
}

enum bt_status kvt_key_pack(enum kvt_blob_kind kind, const struct kvt_key_range *range,
                            const void *rest, size_t rest_size, struct bt_error *error,
                            void **ret_blob, size_t *ret_size)
{
    return wrap_two(kind, range, sizeof(*range), rest, rest_size, error, ret_blob, ret_size);
}

enum bt_status kvt_key_unpack(enum kvt_blob_kind kind, const void *blob, size_t size,
                              struct bt_error *error, struct kvt_key_range *ret_range,
                              const void **ret_rest, size_t *ret_rest_size)
{
    return unwrap_two(kind, blob, size, error, ret_range, sizeof(*ret_range), ret_rest,
                      ret_rest_size);
}

enum bt_status kvt_worker_address_pack(enum kvt_blob_kind kind, const struct bt_process_id *process,
                                       const void *worker, size_t worker_size,
                                       struct bt_error *error, void **ret_blob, size_t *ret_size)
{
    struct bt_process_id clean;

    memset(&clean, 0, sizeof(clean)); /* no stack bytes in the padding */
    memcpy(clean.host, process->host, sizeof(clean.host));
    clean.pid = process->pid;
    clean.start_ticks = process->start_ticks;
    return wrap_two(kind, &clean, sizeof(clean), worker, worker_size, error, ret_blob, ret_size);
}

enum bt_status kvt_worker_address_unpack(enum kvt_blob_kind kind, const void *blob, size_t size,
                                         struct bt_error *error, struct bt_process_id *ret_process,
                                         const void **ret_worker, size_t *ret_worker_size)
{
    struct bt_process_id process = {0};
    size_t worker_size = 0;
    enum bt_status status;

    status =
        unwrap_two(kind, blob, size, error, &process, sizeof(process), ret_worker, &worker_size);
    if (status != BT_OK)
        return status;
    if (memchr(process.host, '\0', sizeof(process.host)) == NULL)
        return bt_error_set(error, BT_ERR_PROTOCOL, "%s: its host has no end", blob_name(kind));
    if (worker_size == 0)
        return bt_error_set(error, BT_ERR_PROTOCOL, "%s: no worker in it", blob_name(kind));
    *ret_process = process;
    *ret_worker_size = worker_size;
    return BT_OK;
}
