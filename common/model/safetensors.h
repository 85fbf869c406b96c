/*
 * A safetensors checkpoint: `model.safetensors`, or shards with model.safetensors.index.json,
 * mapped read-only and never copied. Immutable after opening; any thread.
 *
 * Nothing in the file is trusted: header length, JSON, dtype, shape and offsets are checked against
 * the file (overlaps, overflow, gaps beyond the end, duplicate names), each fault named with file,
 * tensor and value. A file that shrinks while mapped is outside what can be caught.
 */
#ifndef BATON_COMMON_MODEL_SAFETENSORS_H
#define BATON_COMMON_MODEL_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/kernels/dtype.h"

#define BT_TENSOR_MAX_DIMS 4

struct bt_tensor {
    const char *name;
    const void *data;
    size_t bytes;
    enum bt_dtype dtype;    /* of a float tensor */
    const char *dtype_name; /* as in the file: "BF16", "F8_E4M3", "I32" … */
    bool is_float;          /* F32, BF16 or F16: `dtype` is valid */
    uint32_t dim_count;
    uint64_t dims[BT_TENSOR_MAX_DIMS];
    const char *file; /* base name of the shard */
};

/* Bits of an element of a dtype of the format; 0: unknown. */
uint32_t bt_safetensors_dtype_bits(const char *dtype_name);

struct bt_safetensors;

enum bt_status bt_safetensors_open(const char *model_dir, struct bt_error *error,
                                   struct bt_safetensors **ret_file);
/* One file by its path; goldens. */
enum bt_status bt_safetensors_open_file(const char *path, struct bt_error *error,
                                        struct bt_safetensors **ret_file);
void bt_safetensors_close(struct bt_safetensors *file);

const struct bt_tensor *bt_safetensors_find(const struct bt_safetensors *file, const char *name);
/* The tensors are one array in name order. */
size_t bt_safetensors_count(const struct bt_safetensors *file);
const struct bt_tensor *bt_safetensors_at(const struct bt_safetensors *file, size_t index);

/* The tensor's pages may go back to the file, which is where they are read from next time. Its
 * bytes stay valid. */
void bt_safetensors_drop(const struct bt_tensor *tensor);

/* The tensor is read soon: the file may be read ahead. */
void bt_safetensors_want(const struct bt_tensor *tensor);

/* XXH3 over names, dtypes, shapes and a sample of each tensor's bytes, in name order. */
uint64_t bt_safetensors_hash(const struct bt_safetensors *file);

#endif
