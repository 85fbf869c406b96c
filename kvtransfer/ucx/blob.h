/*
 * What a target tells about itself, as bytes: address and key, each behind a header with magic,
 * version, size and checksum. UCX trusts what it unpacks, so nothing reaches it unverified.
 */
#ifndef BATON_KVTRANSFER_UCX_BLOB_H
#define BATON_KVTRANSFER_UCX_BLOB_H

#include <stdint.h>

#include "common/base/process.h"
#include "common/base/status.h"

enum kvt_blob_kind { KVT_BLOB_ADDRESS = 0x4144, KVT_BLOB_KEY = 0x4b45 };

/* Header + payload, malloc'd; the caller frees. NO_MEMORY. */
enum bt_status kvt_blob_wrap(enum kvt_blob_kind kind, const void *payload, size_t payload_size,
                             struct bt_error *error, void **ret_blob, size_t *ret_size);

/* Points into `blob`. PROTOCOL with what is wrong. */
enum bt_status kvt_blob_unwrap(enum kvt_blob_kind kind, const void *blob, size_t size,
                               struct bt_error *error, const void **ret_payload,
                               size_t *ret_payload_size);

/* In front of UCX's packed key: what the key is good for, so that no write is tried outside of it
 * (a store past the end of shared memory would crash the writer). */
struct kvt_ucx_key {
    uint64_t base;
    uint64_t bytes;
};

struct kvt_ucx_address {
    struct bt_process_id process; /* the host decides whether shared memory can reach it */
    uint16_t local_port;          /* loopback listener for processes of this host; 0: none */
    uint16_t port;                /* listener for everybody */
    uint16_t family;              /* AF_INET, AF_INET6 */
    unsigned char ip[16];         /* network byte order; 4 used for AF_INET */
};

enum bt_status kvt_ucx_key_pack(const struct kvt_ucx_key *key, const void *rkey, size_t rkey_size,
                                struct bt_error *error, void **ret_blob, size_t *ret_size);
/* *ret_rkey points into `blob`. */
enum bt_status kvt_ucx_key_unpack(const void *blob, size_t size, struct bt_error *error,
                                  struct kvt_ucx_key *ret_key, const void **ret_rkey,
                                  size_t *ret_rkey_size);

enum bt_status kvt_ucx_address_pack(const struct kvt_ucx_address *address, struct bt_error *error,
                                    void **ret_blob, size_t *ret_size);
enum bt_status kvt_ucx_address_unpack(const void *blob, size_t size, struct bt_error *error,
                                      struct kvt_ucx_address *ret_address);

#endif
