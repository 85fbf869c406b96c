/*
 * What a target tells about itself, taken apart: worker addresses, keys, the parts of rails and of
 * choices, and the record of a push's progress. The first byte chooses what the rest is. Whatever
 * comes out has to lie inside the input.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvtransfer/blob.h"
#include "kvtransfer/progress.h"
#include "tests/fuzz/driver.h"

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

static void take_address(const uint8_t *data, size_t size)
{
    struct bt_process_id process;
    const void *worker;
    size_t worker_size;
    struct bt_error error;
    if (kvt_worker_address_unpack(KVT_BLOB_SHM_ADDRESS, data, size, &error, &process, &worker,
                                  &worker_size) == BT_OK) {
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
    switch (data[0] % 4) {
    case 0:
        take_address(copy, size - 1);
        break;
    case 1:
        take_key(KVT_BLOB_TCP_KEY, copy, size - 1);
        break;
    case 2:
        take_key(KVT_BLOB_SHM_KEY, copy, size - 1);
        break;
    default:
        take_record(copy, size - 1);
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

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    static const struct bt_process_id process = {.host = "a host", .pid = 12, .start_ticks = 34};
    static const struct kvt_key_range range = {.base = 4096, .bytes = 1 << 20};
    struct kvt_progress record = {.epoch = 7, .layers = 3, .tokens_ahead = 64, .shares = 1};
    struct bt_error error;
    void *blob = NULL;
    size_t size = 0, given = 0;
    switch (index) {
    case 0:
        if (kvt_worker_address_pack(KVT_BLOB_SHM_ADDRESS, &process, "worker", 6, &error, &blob,
                                    &size) == BT_OK) {
            given = give(0, blob, size, ret_data, capacity);
        }
        break;
    case 1:
    case 2:
        if (kvt_key_pack(index == 1 ? KVT_BLOB_TCP_KEY : KVT_BLOB_SHM_KEY, &range, "segment", 7,
                         &error, &blob, &size) == BT_OK) {
            given = give((uint8_t)index, blob, size, ret_data, capacity);
        }
        break;
    case 3:
        kvt_progress_seal(&record);
        given = give(3, &record, sizeof(record), ret_data, capacity);
        break;
    default:
        break;
    }
    free(blob);
    return given;
}
