/*
 * What one side tells about itself, taken apart: worker addresses and hellos, keys, the parts of
 * rails and of choices with the blobs inside of them, and the record of a push's progress. The
 * first byte chooses what the rest is, and it is taken as it stands and with a right seal: a peer
 * that lies seals what it says. Whatever comes out has to lie inside the input.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvtransfer/blob.h"
#include "kvtransfer/choice/blob.h"
#include "kvtransfer/progress.h"
#include "kvtransfer/rails/blob.h"
#include "tests/fuzz/driver.h"

#define SEAL_BYTES 24 /* magic, version, kind, size, checksum */
#define DEPTH_MAX  4

static const enum kvt_blob_kind kinds[] = {
    KVT_BLOB_SHM_ADDRESS, KVT_BLOB_RDMA_ADDRESS,  KVT_BLOB_RDMA_HELLO, KVT_BLOB_SHM_KEY,
    KVT_BLOB_RDMA_KEY,    KVT_BLOB_TCP_KEY,       KVT_BLOB_CHOICE_KEY, KVT_BLOB_CHOICE_ADDRESS,
    KVT_BLOB_RAILS_KEY,   KVT_BLOB_RAILS_ADDRESS,
};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void must_be_inside(const void *part, size_t size, const uint8_t *data, size_t whole)
{
    const uint8_t *at = part;
    must(size == 0 || (at >= data && size <= whole && (size_t)(at - data) <= whole - size),
         "a part outside of its blob");
}

static void take_blob(enum kvt_blob_kind kind, const uint8_t *data, size_t size, int depth);

static void take_address(enum kvt_blob_kind kind, const uint8_t *data, size_t size)
{
    struct bt_process_id process;
    const void *worker;
    size_t worker_size;
    struct bt_error error;
    if (kvt_worker_address_unpack(kind, data, size, &error, &process, &worker, &worker_size) ==
        BT_OK) {
        must(worker_size > 0, "an empty address");
        must(memchr(process.host, 0, sizeof(process.host)) != NULL, "a host without an end");
        must_be_inside(worker, worker_size, data, size);
    }
}

static void take_key(enum kvt_blob_kind kind, const uint8_t *data, size_t size)
{
    struct kvt_key_range range;
    const void *rest;
    size_t rest_size;
    struct bt_error error;
    if (kvt_key_unpack(kind, data, size, &error, &range, &rest, &rest_size) == BT_OK) {
        must_be_inside(rest, rest_size, data, size);
        must(!kvt_key_range_has(&range, range.base, range.bytes + 1) || range.bytes == UINT64_MAX,
             "a range that is larger than itself");
    }
}

/* A part that says it is of this transport: as such, and sealed again after what was changed. */
static void take_part(const char *transport, bool is_key, const void *bytes, size_t size, int depth)
{
    static const struct {
        const char *name;
        enum kvt_blob_kind address, key;
    } inner[] = {{"shm", KVT_BLOB_SHM_ADDRESS, KVT_BLOB_SHM_KEY},
                 {"rdma", KVT_BLOB_RAILS_ADDRESS, KVT_BLOB_RAILS_KEY},
                 {"rail", KVT_BLOB_RDMA_ADDRESS, KVT_BLOB_RDMA_KEY}};
    for (size_t i = 0; i < sizeof(inner) / sizeof(inner[0]); i++) {
        enum kvt_blob_kind kind = is_key ? inner[i].key : inner[i].address;
        if (strcmp(inner[i].name, transport) == 0) {
            take_blob(kind, bytes, size, depth + 1);
        }
    }
}

static void take_choice(enum kvt_blob_kind kind, const uint8_t *data, size_t size, int depth)
{
    struct kvt_choice_part parts[KVT_CHOICES_MAX];
    uint32_t count;
    struct bt_error error;
    if (kvt_choice_unpack(kind, data, size, &error, parts, &count) != BT_OK) {
        return;
    }
    must(count <= KVT_CHOICES_MAX, "more choices than there is room for");
    for (uint32_t i = 0; i < count; i++) {
        must(memchr(parts[i].name, 0, sizeof(parts[i].name)) != NULL, "a name without an end");
        must_be_inside(parts[i].bytes, parts[i].size, data, size);
        must(kvt_choice_find(parts, count, parts[i].name) != NULL, "a part that is not found");
        take_part(parts[i].name, kind == KVT_BLOB_CHOICE_KEY, parts[i].bytes, parts[i].size, depth);
    }
}

static void take_rails(enum kvt_blob_kind kind, const uint8_t *data, size_t size, int depth)
{
    struct kvt_rails_part parts[KVT_RAILS_MAX];
    uint32_t count;
    struct bt_error error;
    if (kvt_rails_unpack(kind, data, size, &error, parts, &count) != BT_OK) {
        return;
    }
    must(count >= 1 && count <= KVT_RAILS_MAX, "no rail, or more than there is room for");
    for (uint32_t i = 0; i < count; i++) {
        must(parts[i].rate_mbps > 0 && parts[i].size > 0, "an empty rail");
        must_be_inside(parts[i].bytes, parts[i].size, data, size);
        take_part("rail", kind == KVT_BLOB_RAILS_KEY, parts[i].bytes, parts[i].size, depth);
    }
}

static void take_sealed(enum kvt_blob_kind kind, const uint8_t *data, size_t size, int depth)
{
    switch (kind) {
    case KVT_BLOB_SHM_ADDRESS:
    case KVT_BLOB_RDMA_ADDRESS:
    case KVT_BLOB_RDMA_HELLO:
        take_address(kind, data, size);
        break;
    case KVT_BLOB_CHOICE_ADDRESS:
    case KVT_BLOB_CHOICE_KEY:
        take_choice(kind, data, size, depth);
        break;
    case KVT_BLOB_RAILS_ADDRESS:
    case KVT_BLOB_RAILS_KEY:
        take_rails(kind, data, size, depth);
        break;
    default:
        take_key(kind, data, size);
    }
}

static void take_payload(enum kvt_blob_kind kind, const void *payload, size_t size, int depth)
{
    struct bt_error error;
    const void *inside;
    size_t inside_size, blob_size;
    void *blob;
    if (kvt_blob_wrap(kind, payload, size, &error, &blob, &blob_size) != BT_OK) {
        return;
    }
    must(kvt_blob_unwrap(kind, blob, blob_size, &error, &inside, &inside_size) == BT_OK &&
             inside_size == size && (size == 0 || memcmp(inside, payload, size) == 0),
         "what was sealed does not come out");
    take_sealed(kind, blob, blob_size, depth);
    free(blob);
}

/* As it is, then with a seal that is right, where it has the size for one. */
static void take_blob(enum kvt_blob_kind kind, const uint8_t *data, size_t size, int depth)
{
    if (depth > DEPTH_MAX) {
        return;
    }
    take_sealed(kind, data, size, depth);
    if (size >= SEAL_BYTES) {
        take_payload(kind, data + SEAL_BYTES, size - SEAL_BYTES, depth);
    }
}

static void take_record(const uint8_t *data, size_t size)
{
    struct kvt_progress record;
    uint8_t slot[KVT_PROGRESS_SLOT_BYTES] = {0};
    memcpy(slot, data, size < sizeof(slot) ? size : sizeof(slot));
    if (kvt_progress_read(slot, 7, 27, 100, &record)) {
        must(record.layers <= 27 && record.tokens_ahead <= 100 && record.tokens_behind <= 100,
             "progress beyond the end");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    uint8_t *copy = malloc(size); /* with nothing behind it */
    memcpy(copy, data + 1, size - 1);
    if (data[0] % (KINDS + 1) == KINDS) {
        take_record(copy, size - 1);
    } else {
        take_blob(kinds[data[0] % (KINDS + 1)], copy, size - 1, 0);
    }
    free(copy);
    return 0;
}

static size_t give(uint8_t kind, const void *blob, size_t size, uint8_t *ret_data, size_t capacity)
{
    if (size + 1 > capacity) {
        return 0;
    }
    ret_data[0] = kind;
    memcpy(ret_data + 1, blob, size);
    return size + 1;
}

/* A right blob of this kind; those that hold others hold right ones. */
static enum bt_status make(enum kvt_blob_kind kind, void **ret_blob, size_t *ret_size)
{
    static const struct bt_process_id process = {.host = "a host", .pid = 12, .start_ticks = 34};
    static const struct kvt_key_range range = {.base = 4096, .bytes = 1 << 20};
    bool is_key = kind == KVT_BLOB_CHOICE_KEY || kind == KVT_BLOB_RAILS_KEY;
    struct kvt_choice_part choices[2] = {{.name = "rdma"}, {.name = "shm"}};
    struct kvt_rails_part rails[2] = {{.rate_mbps = 400000}, {.rate_mbps = 100}};
    void *parts[2] = {NULL, NULL};
    size_t sizes[2] = {0, 0};
    struct bt_error error;
    enum bt_status status;

    switch (kind) {
    case KVT_BLOB_CHOICE_ADDRESS:
    case KVT_BLOB_CHOICE_KEY:
        make(is_key ? KVT_BLOB_RAILS_KEY : KVT_BLOB_RAILS_ADDRESS, &parts[0], &sizes[0]);
        make(is_key ? KVT_BLOB_SHM_KEY : KVT_BLOB_SHM_ADDRESS, &parts[1], &sizes[1]);
        break;
    case KVT_BLOB_RAILS_ADDRESS:
    case KVT_BLOB_RAILS_KEY:
        for (int i = 0; i < 2; i++) {
            make(is_key ? KVT_BLOB_RDMA_KEY : KVT_BLOB_RDMA_ADDRESS, &parts[i], &sizes[i]);
        }
        break;
    case KVT_BLOB_SHM_ADDRESS:
    case KVT_BLOB_RDMA_ADDRESS:
    case KVT_BLOB_RDMA_HELLO:
        return kvt_worker_address_pack(kind, &process, "worker", 6, &error, ret_blob, ret_size);
    default:
        return kvt_key_pack(kind, &range, "segment", 7, &error, ret_blob, ret_size);
    }
    for (int i = 0; i < 2; i++) {
        choices[i].bytes = rails[i].bytes = parts[i];
        choices[i].size = rails[i].size = sizes[i];
    }
    if (kind == KVT_BLOB_CHOICE_ADDRESS || kind == KVT_BLOB_CHOICE_KEY) {
        status = kvt_choice_pack(kind, choices, 2, &error, ret_blob, ret_size);
    } else {
        status = kvt_rails_pack(kind, rails, 2, &error, ret_blob, ret_size);
    }
    free(parts[0]);
    free(parts[1]);
    return status;
}

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    struct kvt_progress record = {.epoch = 7, .layers = 3, .tokens_ahead = 64, .shares = 1};
    void *blob = NULL;
    size_t size = 0, given = 0;
    if (index == KINDS) {
        kvt_progress_seal(&record);
        return give(KINDS, &record, sizeof(record), ret_data, capacity);
    }
    if (index < KINDS && make(kinds[index], &blob, &size) == BT_OK) {
        given = give((uint8_t)index, blob, size, ret_data, capacity);
    }
    free(blob);
    return given;
}
