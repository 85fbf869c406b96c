/* The blobs of all choices in one. Comes from a peer: every count and length is checked. */
#ifndef BATON_KVTRANSFER_CHOICE_BLOB_H
#define BATON_KVTRANSFER_CHOICE_BLOB_H

#include "kvtransfer/blob.h"
#include "kvtransfer/choice/choice.h"

#define KVT_CHOICE_NAME_SIZE 16

struct kvt_choice_part {
    char name[KVT_CHOICE_NAME_SIZE];
    size_t size;
    const void *bytes; /* points into the blob when unpacked */
};

/* `kind`: KVT_BLOB_CHOICE_ADDRESS or KVT_BLOB_CHOICE_KEY. */
enum bt_status kvt_choice_pack(enum kvt_blob_kind kind, const struct kvt_choice_part *parts,
                               uint32_t count, struct bt_error *error, void **ret_blob,
                               size_t *ret_size);
/* Fills KVT_CHOICES_MAX at most; PROTOCOL with what is wrong. */
enum bt_status kvt_choice_unpack(enum kvt_blob_kind kind, const void *blob, size_t size,
                                 struct bt_error *error, struct kvt_choice_part *ret_parts,
                                 uint32_t *ret_count);
/* NULL: not among them. */
const struct kvt_choice_part *kvt_choice_find(const struct kvt_choice_part *parts, uint32_t count,
                                              const char *name);

#endif
