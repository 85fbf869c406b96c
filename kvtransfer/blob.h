/*
 * What a target tells about itself, as bytes: addresses and keys, each behind a header with magic,
 * version, kind, size and checksum. UCX trusts what it unpacks, so nothing reaches it unverified.
 */
#ifndef BATON_KVTRANSFER_BLOB_H
#define BATON_KVTRANSFER_BLOB_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/process.h"
#include "common/base/status.h"

enum kvt_blob_kind {
    KVT_BLOB_SHM_ADDRESS = 0x4153,
    KVT_BLOB_SHM_KEY = 0x4b53,
    KVT_BLOB_RDMA_ADDRESS = 0x4152,
    KVT_BLOB_RDMA_KEY = 0x4b52,
    KVT_BLOB_RDMA_HELLO = 0x4852,
    KVT_BLOB_TCP_ADDRESS = 0x4154,
    KVT_BLOB_TCP_KEY = 0x4b54,
    KVT_BLOB_CUDA_IPC_ADDRESS = 0x4147,
    KVT_BLOB_CUDA_IPC_KEY = 0x4b47,
    KVT_BLOB_CHOICE_ADDRESS = 0x4143,
    KVT_BLOB_CHOICE_KEY = 0x4b43,
    KVT_BLOB_RAILS_ADDRESS = 0x414c,
    KVT_BLOB_RAILS_KEY = 0x4b4c,
};

/* Header + payload, malloc'd; the caller frees. NO_MEMORY. */
enum bt_status kvt_blob_wrap(enum kvt_blob_kind kind, const void *payload, size_t payload_size,
                             struct bt_error *error, void **ret_blob, size_t *ret_size);

/* Points into `blob`. PROTOCOL with what is wrong. */
enum bt_status kvt_blob_unwrap(enum kvt_blob_kind kind, const void *blob, size_t size,
                               struct bt_error *error, const void **ret_payload,
                               size_t *ret_payload_size);

/* In front of a transport's own key: what the key is good for, so that no write is tried outside of
 * it (a store past the end of shared memory would crash the writer). */
struct kvt_key_range {
    uint64_t base;
    uint64_t bytes;
};

/* `rest` may be empty: TCP has nothing but the range. */
enum bt_status kvt_key_pack(enum kvt_blob_kind kind, const struct kvt_key_range *range,
                            const void *rest, size_t rest_size, struct bt_error *error,
                            void **ret_blob, size_t *ret_size);
/* *ret_rest points into `blob`. */
enum bt_status kvt_key_unpack(enum kvt_blob_kind kind, const void *blob, size_t size,
                              struct bt_error *error, struct kvt_key_range *ret_range,
                              const void **ret_rest, size_t *ret_rest_size);

static inline bool kvt_key_range_has(const struct kvt_key_range *range, uint64_t address,
                                     uint64_t bytes)
{
    return bytes <= range->bytes && address >= range->base &&
           address - range->base <= range->bytes - bytes;
}

/* A process, then the address that UCX gave its worker. */
enum bt_status kvt_worker_address_pack(enum kvt_blob_kind kind, const struct bt_process_id *process,
                                       const void *worker, size_t worker_size,
                                       struct bt_error *error, void **ret_blob, size_t *ret_size);
/* *ret_worker points into `blob` and is not empty. */
enum bt_status kvt_worker_address_unpack(enum kvt_blob_kind kind, const void *blob, size_t size,
                                         struct bt_error *error, struct bt_process_id *ret_process,
                                         const void **ret_worker, size_t *ret_worker_size);

#endif
