/*
 * Writes a safetensors file: first the plan (names, dtypes, shapes), then the data in any order and
 * in pieces, so that a checkpoint larger than memory can be written. Tensors lie in the file by the
 * size of their elements, the largest first: no holes, and every element aligned. One thread plans;
 * any threads put.
 */
#ifndef BATON_COMMON_MODEL_SAFETENSORS_WRITER_H
#define BATON_COMMON_MODEL_SAFETENSORS_WRITER_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

struct bt_safetensors_writer;

/* ALREADY_EXISTS: the file is there. */
enum bt_status bt_safetensors_writer_create(const char *path, struct bt_error *error,
                                            struct bt_safetensors_writer **ret_writer);
/* Closes and frees; a file that was not finished is removed. NULL is fine. */
void bt_safetensors_writer_destroy(struct bt_safetensors_writer *writer);

/*
 * Plans a tensor. `dtype` as in the file: "F32", "BF16", "I8" …; names differ. INVALID_ARGUMENT: a
 * dtype whose size is not known, more than BT_TENSOR_MAX_DIMS dimensions, a size that is no whole
 * number of bytes or overflows, or a name that is not UTF-8.
 */
enum bt_status bt_safetensors_writer_add(struct bt_safetensors_writer *writer, const char *name,
                                         const char *dtype, const uint64_t *dims,
                                         uint32_t dim_count, struct bt_error *error,
                                         uint32_t *ret_tensor);
/* Ends the plan: writes the header. */
enum bt_status bt_safetensors_writer_begin(struct bt_safetensors_writer *writer,
                                           struct bt_error *error);
/* Bytes of a planned tensor, from `offset` of its data on. */
enum bt_status bt_safetensors_writer_put(struct bt_safetensors_writer *writer, uint32_t tensor,
                                         size_t offset, const void *data, size_t bytes,
                                         struct bt_error *error);
/* Flushes to disk. What was not put is zero. */
enum bt_status bt_safetensors_writer_finish(struct bt_safetensors_writer *writer,
                                            struct bt_error *error);

#endif
