#include "kvtransfer/ucx/blob.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <xxhash.h>

#define BLOB_MAGIC   UINT32_C(0x4b56544e) /* a peer of the other byte order reads another one */
#define BLOB_VERSION 1

struct blob_header {
    uint32_t magic;
    uint16_t version;
    uint16_t kind;
    uint64_t payload_size;
    uint64_t checksum; /* XXH3-64 of the payload, seeded with kind */
};

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
    const char *what = kind == KVT_BLOB_KEY ? "pool key" : "transport address";
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

enum bt_status kvt_ucx_key_pack(const struct kvt_ucx_key *key, const void *rkey, size_t rkey_size,
                                struct bt_error *error, void **ret_blob, size_t *ret_size)
{
    char *payload = malloc(sizeof(*key) + rkey_size);
    enum bt_status status;

    if (payload == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a pool key");
    memcpy(payload, key, sizeof(*key));
    memcpy(payload + sizeof(*key), rkey, rkey_size);
    status =
        kvt_blob_wrap(KVT_BLOB_KEY, payload, sizeof(*key) + rkey_size, error, ret_blob, ret_size);
    free(payload);
    return status;
}

enum bt_status kvt_ucx_key_unpack(const void *blob, size_t size, struct bt_error *error,
                                  struct kvt_ucx_key *ret_key, const void **ret_rkey,
                                  size_t *ret_rkey_size)
{
    const void *payload;
    size_t payload_size;
    enum bt_status status;

    status = kvt_blob_unwrap(KVT_BLOB_KEY, blob, size, error, &payload, &payload_size);
    if (status != BT_OK)
        return status;
    if (payload_size <= sizeof(*ret_key))
        return bt_error_set(error, BT_ERR_PROTOCOL, "pool key: %zu bytes are too short",
                            payload_size);
    memcpy(ret_key, payload, sizeof(*ret_key));
    *ret_rkey = (const char *)payload + sizeof(*ret_key);
    *ret_rkey_size = payload_size - sizeof(*ret_key);
    return BT_OK;
}

enum bt_status kvt_ucx_address_pack(const struct kvt_ucx_address *address, struct bt_error *error,
                                    void **ret_blob, size_t *ret_size)
{
    struct kvt_ucx_address clean;

    memset(&clean, 0, sizeof(clean)); /* no stack bytes in the padding */
    memcpy(clean.process.host, address->process.host, sizeof(clean.process.host));
    clean.process.pid = address->process.pid;
    clean.process.start_ticks = address->process.start_ticks;
    clean.local_port = address->local_port;
    clean.port = address->port;
    clean.family = address->family;
    memcpy(clean.ip, address->ip, sizeof(clean.ip));
    return kvt_blob_wrap(KVT_BLOB_ADDRESS, &clean, sizeof(clean), error, ret_blob, ret_size);
}

enum bt_status kvt_ucx_address_unpack(const void *blob, size_t size, struct bt_error *error,
                                      struct kvt_ucx_address *ret_address)
{
    struct kvt_ucx_address address;
    const void *payload;
    size_t payload_size;
    enum bt_status status;

    status = kvt_blob_unwrap(KVT_BLOB_ADDRESS, blob, size, error, &payload, &payload_size);
    if (status != BT_OK)
        return status;
    if (payload_size != sizeof(address))
        return bt_error_set(error, BT_ERR_PROTOCOL, "transport address: %zu bytes, not %zu",
                            payload_size, sizeof(address));
    memcpy(&address, payload, sizeof(address));
    if (memchr(address.process.host, '\0', sizeof(address.process.host)) == NULL)
        return bt_error_set(error, BT_ERR_PROTOCOL, "transport address: its host has no end");
    if ((address.family != AF_INET && address.family != AF_INET6) || address.port == 0)
        return bt_error_set(error, BT_ERR_PROTOCOL, "transport address: family %u, port %u",
                            address.family, address.port);
    *ret_address = address;
    return BT_OK;
}
