#include "kvtransfer/rails/blob.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct part_header {
    uint32_t rate_mbps;
    uint32_t size;
};

enum bt_status kvt_rails_pack(enum kvt_blob_kind kind, const struct kvt_rails_part *parts,
                              uint32_t count, struct bt_error *error, void **ret_blob,
                              size_t *ret_size)
{
    size_t size = sizeof(uint32_t), at = 0;
    enum bt_status status;
    char *payload;

    for (uint32_t i = 0; i < count; i++)
        size += sizeof(struct part_header) + parts[i].size;
    payload = malloc(size);
    if (payload == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the address of rails");
    memcpy(payload, &count, sizeof(count));
    at = sizeof(count);
    for (uint32_t i = 0; i < count; i++) {
        struct part_header header = {.rate_mbps = parts[i].rate_mbps,
                                     .size = (uint32_t)parts[i].size};
        memcpy(payload + at, &header, sizeof(header));
        memcpy(payload + at + sizeof(header), parts[i].bytes, parts[i].size);
        at += sizeof(header) + parts[i].size;
    }
    status = kvt_blob_wrap(kind, payload, size, error, ret_blob, ret_size);
    free(payload);
    return status;
}

enum bt_status kvt_rails_unpack(enum kvt_blob_kind kind, const void *blob, size_t size,
                                struct bt_error *error, struct kvt_rails_part *ret_parts,
                                uint32_t *ret_count)
{
    const void *payload;
    const char *at;
    size_t left;
    uint32_t count;
    enum bt_status status = kvt_blob_unwrap(kind, blob, size, error, &payload, &left);

    if (status != BT_OK)
        return status;
    if (left < sizeof(count))
        return bt_error_set(error, BT_ERR_PROTOCOL, "rails: %zu bytes are too short", left);
    memcpy(&count, payload, sizeof(count));
    if (count == 0 || count > KVT_RAILS_MAX)
        return bt_error_set(error, BT_ERR_PROTOCOL, "rails: there are %" PRIu32 ", not 1 to %d",
                            count, KVT_RAILS_MAX);
    at = (const char *)payload + sizeof(count);
    left -= sizeof(count);
    for (uint32_t i = 0; i < count; i++) {
        struct part_header header;
        if (left < sizeof(header))
            return bt_error_set(error, BT_ERR_PROTOCOL, "rail %" PRIu32 ": cut", i);
        memcpy(&header, at, sizeof(header));
        at += sizeof(header);
        left -= sizeof(header);
        if (header.size == 0 || header.size > left || header.rate_mbps == 0)
            return bt_error_set(error, BT_ERR_PROTOCOL,
                                "rail %" PRIu32 ": %" PRIu32 " of %zu bytes at %" PRIu32 " Mb/s", i,
                                header.size, left, header.rate_mbps);
        ret_parts[i] = (struct kvt_rails_part){
            .rate_mbps = header.rate_mbps, .size = header.size, .bytes = at};
        at += header.size;
        left -= header.size;
    }
    if (left > 0)
        return bt_error_set(error, BT_ERR_PROTOCOL, "rails: %zu bytes too many", left);
    *ret_count = count;
    return BT_OK;
}
