/*
 * What the rails of a target tell, in one blob behind the usual header with magic, version, size
 * and checksum: for each rail its rate and the blob of its own transport. Comes from a peer: every
 * count and length is checked.
 */
#ifndef BATON_KVTRANSFER_RAILS_BLOB_H
#define BATON_KVTRANSFER_RAILS_BLOB_H

#include "kvtransfer/blob.h"
#include "kvtransfer/transport.h"

struct kvt_rails_part {
    uint32_t rate_mbps;
    size_t size;
    const void *bytes; /* points into the blob when unpacked */
};

/* `kind`: KVT_BLOB_RAILS_ADDRESS or KVT_BLOB_RAILS_KEY. malloc'd, caller frees. */
enum bt_status kvt_rails_pack(enum kvt_blob_kind kind, const struct kvt_rails_part *parts,
                              uint32_t count, struct bt_error *error, void **ret_blob,
                              size_t *ret_size);

/* 1 to KVT_RAILS_MAX parts, none empty, rates above 0; PROTOCOL with what is wrong. */
enum bt_status kvt_rails_unpack(enum kvt_blob_kind kind, const void *blob, size_t size,
                                struct bt_error *error, struct kvt_rails_part *ret_parts,
                                uint32_t *ret_count);

#endif
