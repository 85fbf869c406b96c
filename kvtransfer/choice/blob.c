#include "kvtransfer/choice/blob.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct part_header {
    char name[KVT_CHOICE_NAME_SIZE];
    uint64_t size;
};

enum bt_status kvt_choice_pack(enum kvt_blob_kind kind, const struct kvt_choice_part *parts,
                               uint32_t count, struct bt_error *error, void **ret_blob,
                               size_t *ret_size)
{
    size_t size = 0, at = 0;
    enum bt_status status;
    char *payload;

    for (uint32_t i = 0; i < count; i++)
        size += sizeof(struct part_header) + parts[i].size;
    payload = malloc(size + 1);
    if (payload == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a transport address");
    for (uint32_t i = 0; i < count; i++) {
        struct part_header header = {.size = parts[i].size};
        memcpy(header.name, parts[i].name, sizeof(header.name));
        memcpy(payload + at, &header, sizeof(header));
        memcpy(payload + at + sizeof(header), parts[i].bytes, parts[i].size);
        at += sizeof(header) + parts[i].size;
    }
    status = kvt_blob_wrap(kind, payload, size, error, ret_blob, ret_size);
    free(payload);
    return status;
}

enum bt_status kvt_choice_unpack(enum kvt_blob_kind kind, const void *blob, size_t size,
                                 struct bt_error *error, struct kvt_choice_part *ret_parts,
                                 uint32_t *ret_count)
{
    const void *payload;
    uint32_t count = 0;
    const char *at;
    size_t left;
    enum bt_status status = kvt_blob_unwrap(kind, blob, size, error, &payload, &left);

    if (status != BT_OK)
        return status;
    for (at = payload; left > 0; count++) {
        struct part_header header;
        if (count == KVT_CHOICES_MAX || left < sizeof(header))
            return bt_error_set(error, BT_ERR_PROTOCOL,
                                "transports of a peer: %" PRIu32 " and %zu bytes more", count,
                                left);
        memcpy(&header, at, sizeof(header));
        if (header.size > left - sizeof(header) ||
            memchr(header.name, '\0', sizeof(header.name)) == NULL)
            return bt_error_set(error, BT_ERR_PROTOCOL,
                                "transports of a peer: number %" PRIu32 " is cut", count);
        memcpy(ret_parts[count].name, header.name, sizeof(header.name));
        ret_parts[count].size = header.size;
        ret_parts[count].bytes = at + sizeof(header);
        at += sizeof(header) + header.size;
        left -= sizeof(header) + header.size;
    }
    *ret_count = count;
    return BT_OK;
}

const struct kvt_choice_part *kvt_choice_find(const struct kvt_choice_part *parts, uint32_t count,
                                              const char *name)
{
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(parts[i].name, name) == 0)
            return &parts[i];
    return NULL;
}
