#include "common/model/safetensors.h"

#include <endian.h>
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/base/file.h"
#include "common/model/json_file.h"

#define HEADER_MAX_BYTES ((uint64_t)100 << 20)
#define INDEX_MAX_BYTES  ((size_t)64 << 20)
#define MAX_SHARDS       4096
#define MAX_NAME_BYTES   256
#define HASH_SAMPLE      64

struct shard {
    char *path;
    const char *name; /* base name, inside path */
    const uint8_t *map;
    size_t map_bytes;
    const uint8_t *data; /* after the header */
    size_t data_bytes;
};

struct bt_safetensors {
    struct shard *shards;
    size_t shard_count;
    struct bt_tensor *tensors; /* by name */
    size_t tensor_count, tensor_capacity;
};

/* Element sizes of the format's dtypes, in bits: the f4 and f6 types are packed. */
static const struct dtype_entry {
    const char *name;
    uint8_t bits;
    bool is_float;
    enum bt_dtype dtype;
} known_dtypes[] = {
    {"F32", 32, true, BT_F32},
    {"BF16", 16, true, BT_BF16},
    {"F16", 16, true, BT_F16},
    {"BOOL", 8},
    {"U8", 8},
    {"I8", 8},
    {"F8_E5M2", 8},
    {"F8_E4M3", 8},
    {"F8_E8M0", 8},
    {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8},
    {"F4", 4},
    {"F6_E2M3", 6},
    {"F6_E3M2", 6},
    {"I16", 16},
    {"U16", 16},
    {"I32", 32},
    {"U32", 32},
    {"F64", 64},
    {"I64", 64},
    {"U64", 64},
    {"C64", 64},
};

static const struct dtype_entry *dtype_find(const char *name)
{
    for (size_t i = 0; i < sizeof(known_dtypes) / sizeof(known_dtypes[0]); i++)
        if (!strcmp(known_dtypes[i].name, name))
            return &known_dtypes[i];
    return NULL;
}

uint32_t bt_safetensors_dtype_bits(const char *name)
{
    const struct dtype_entry *known = dtype_find(name);
    return known ? known->bits : 0;
}

/* Names stand in messages and logs: short, and no control characters. */
static bool name_is_plain(const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return false;
    return length > 0 && length <= MAX_NAME_BYTES;
}

static enum bt_status fault(struct bt_error *error, const struct shard *shard, const char *tensor,
                            const char *what)
{
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: tensor %s: %s", shard->path, tensor,
                        what);
}

static enum bt_status read_shape(const struct shard *shard, const json_t *shape,
                                 struct bt_error *error, struct bt_tensor *tensor)
{
    if (!json_is_array(shape))
        return fault(error, shard, tensor->name, "shape is not a list");
    if (json_array_size(shape) > BT_TENSOR_MAX_DIMS)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s: tensor %s: %zu dimensions, at most %d", shard->path, tensor->name,
                            json_array_size(shape), BT_TENSOR_MAX_DIMS);
    tensor->dim_count = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < tensor->dim_count; i++) {
        const json_t *dim = json_array_get(shape, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "%s: tensor %s: shape[%u] is not a count", shard->path,
                                tensor->name, i);
        tensor->dims[i] = (uint64_t)json_integer_value(dim);
    }
    return BT_OK;
}

/* data_offsets against the file's data section. */
static enum bt_status read_offsets(const struct shard *shard, const json_t *offsets,
                                   struct bt_error *error, struct bt_tensor *tensor)
{
    const json_t *a = json_array_get(offsets, 0), *b = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(a) || !json_is_integer(b))
        return fault(error, shard, tensor->name, "data_offsets are not two integers");
    json_int_t begin = json_integer_value(a), end = json_integer_value(b);
    if (begin < 0 || end < begin || (uint64_t)end > shard->data_bytes)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s: tensor %s: data_offsets [%lld, %lld] outside the %zu data bytes "
                            "of the file",
                            shard->path, tensor->name, (long long)begin, (long long)end,
                            shard->data_bytes);
    tensor->data = shard->data + begin;
    tensor->bytes = (size_t)(end - begin);
    return BT_OK;
}

/* Elements × bits must be exactly the bytes that the offsets give. */
static enum bt_status check_size(const struct shard *shard, unsigned bits, struct bt_error *error,
                                 const struct bt_tensor *tensor)
{
    uint64_t total = bits;
    for (uint32_t i = 0; i < tensor->dim_count; i++)
        if (__builtin_mul_overflow(total, tensor->dims[i], &total))
            return fault(error, shard, tensor->name, "shape overflows");
    if (total % 8 || total / 8 != tensor->bytes)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s: tensor %s: shape and dtype %s need %llu bits, data_offsets give "
                            "%zu bytes",
                            shard->path, tensor->name, tensor->dtype_name,
                            (unsigned long long)total, tensor->bytes);
    if (tensor->is_float && (uintptr_t)tensor->data % bt_dtype_bytes(tensor->dtype))
        return fault(error, shard, tensor->name, "data not aligned to its elements");
    return BT_OK;
}

/* One block holds the tensor's name and, after it, its dtype's. */
static bool copy_names(const char *name, const char *dtype, struct bt_tensor *tensor)
{
    size_t name_size = strlen(name) + 1, dtype_size = strlen(dtype) + 1;
    char *block = malloc(name_size + dtype_size);
    if (!block)
        return false;
    memcpy(block, name, name_size);
    memcpy(block + name_size, dtype, dtype_size);
    tensor->name = block;
    tensor->dtype_name = block + name_size;
    return true;
}

static void tensor_finish(struct bt_tensor *tensor)
{
    free((char *)tensor->name);
}

static enum bt_status read_tensor(const struct shard *shard, const char *name, const json_t *entry,
                                  struct bt_error *error, struct bt_tensor *ret_tensor)
{
    const char *dtype_name = json_string_value(json_object_get(entry, "dtype"));
    if (!name_is_plain(name))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s: a tensor's name is empty, too long or not printable", shard->path);
    if (!dtype_name || !name_is_plain(dtype_name))
        return fault(error, shard, name, "no dtype");
    struct bt_tensor tensor = {.file = shard->name};
    if (!copy_names(name, dtype_name, &tensor))
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", shard->path);
    const struct dtype_entry *known = dtype_find(dtype_name);
    if (known) {
        tensor.is_float = known->is_float;
        tensor.dtype = known->dtype;
    }
    enum bt_status status = read_shape(shard, json_object_get(entry, "shape"), error, &tensor);
    if (status == BT_OK)
        status = read_offsets(shard, json_object_get(entry, "data_offsets"), error, &tensor);
    if (status == BT_OK && known)
        status = check_size(shard, known->bits, error, &tensor);
    if (status != BT_OK) {
        tensor_finish(&tensor);
        return status;
    }
    *ret_tensor = tensor;
    return BT_OK;
}

static int compare_places(const void *left, const void *right)
{
    const struct bt_tensor *a = left, *b = right;
    if (a->data != b->data)
        return a->data < b->data ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

static int compare_names(const void *left, const void *right)
{
    return strcmp(((const struct bt_tensor *)left)->name, ((const struct bt_tensor *)right)->name);
}

/* The format wants the data section covered once: no overlap, no hole, nothing after the end. */
static enum bt_status check_cover(const struct shard *shard, struct bt_tensor *tensors,
                                  size_t count, struct bt_error *error)
{
    if (count > 1)
        qsort(tensors, count, sizeof(*tensors), compare_places);
    const uint8_t *at = shard->data;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *data = tensors[i].data;
        if (data != at)
            return fault(error, shard, tensors[i].name,
                         data < at ? "data overlaps another tensor's" : "unused bytes before data");
        at = data + tensors[i].bytes;
    }
    if (at != shard->data + shard->data_bytes)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s: %zu bytes after the last tensor's data", shard->path,
                            (size_t)(shard->data + shard->data_bytes - at));
    return BT_OK;
}

static bool reserve_tensors(struct bt_safetensors *file, size_t more)
{
    size_t need = file->tensor_count + more;
    if (need <= file->tensor_capacity)
        return true;
    size_t capacity = need > 2 * file->tensor_capacity ? need : 2 * file->tensor_capacity;
    struct bt_tensor *grown = realloc(file->tensors, capacity * sizeof(*grown));
    if (!grown)
        return false;
    file->tensors = grown;
    file->tensor_capacity = capacity;
    return true;
}

static enum bt_status read_header(struct bt_safetensors *file, const struct shard *shard,
                                  const json_t *header, struct bt_error *error)
{
    size_t first = file->tensor_count;
    if (!reserve_tensors(file, json_object_size(header)))
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", shard->path);
    const char *name;
    json_t *entry;
    json_object_foreach((json_t *)header, name, entry)
    {
        if (!strcmp(name, "__metadata__"))
            continue;
        enum bt_status status =
            read_tensor(shard, name, entry, error, &file->tensors[file->tensor_count]);
        if (status != BT_OK)
            return status;
        file->tensor_count++;
    }
    return check_cover(shard, file->tensors + first, file->tensor_count - first, error);
}

static enum bt_status map_file(struct shard *shard, struct bt_error *error)
{
    int fd;
    enum bt_status status = bt_file_open(shard->path, error, &fd, &shard->map_bytes);
    if (status != BT_OK)
        return status;
    if (shard->map_bytes < 8) {
        close(fd);
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s: %zu bytes are too few for a safetensors header", shard->path,
                            shard->map_bytes);
    }
    void *map = mmap(NULL, shard->map_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    int fault_code = errno;
    close(fd);
    if (map == MAP_FAILED)
        return bt_error_set(error, BT_ERR_IO, "%s: mmap: %s", shard->path, strerror(fault_code));
    shard->map = map;
    /* Only advice: weights are read soon and in full. */
    (void)madvise(map, shard->map_bytes, MADV_WILLNEED);
    return BT_OK;
}

/* Opens the shard at `path` (taken over, also on failure) as the next of the list. */
static enum bt_status add_shard(struct bt_safetensors *file, char *path, struct bt_error *error)
{
    struct shard *shard = &file->shards[file->shard_count++];
    *shard = (struct shard){.path = path};
    const char *slash = strrchr(path, '/');
    shard->name = slash ? slash + 1 : path;
    enum bt_status status = map_file(shard, error);
    if (status != BT_OK)
        return status;
    uint64_t header_bytes;
    memcpy(&header_bytes, shard->map, sizeof(header_bytes));
    header_bytes = le64toh(header_bytes);
    if (header_bytes > HEADER_MAX_BYTES || header_bytes > shard->map_bytes - 8)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s: header of %llu bytes in a file of %zu", path,
                            (unsigned long long)header_bytes, shard->map_bytes);
    shard->data = shard->map + 8 + header_bytes;
    shard->data_bytes = shard->map_bytes - 8 - (size_t)header_bytes;
    json_t *header;
    status = bt_json_object_parse(path, (const char *)shard->map + 8, (size_t)header_bytes, error,
                                  &header);
    if (status != BT_OK)
        return status;
    status = read_header(file, shard, header, error);
    json_decref(header);
    return status;
}

/* By name, and each name once among all shards. */
static enum bt_status sort_by_name(struct bt_safetensors *file, const char *where,
                                   struct bt_error *error)
{
    if (file->tensor_count == 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: no tensors", where);
    qsort(file->tensors, file->tensor_count, sizeof(*file->tensors), compare_names);
    for (size_t i = 1; i < file->tensor_count; i++)
        if (!compare_names(&file->tensors[i - 1], &file->tensors[i]))
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: tensor %s is in %s and in %s",
                                where, file->tensors[i].name, file->tensors[i - 1].file,
                                file->tensors[i].file);
    return BT_OK;
}

static struct bt_safetensors *create(size_t shard_limit)
{
    struct bt_safetensors *file = calloc(1, sizeof(*file));
    if (!file)
        return NULL;
    file->shards = calloc(shard_limit, sizeof(*file->shards));
    if (!file->shards) {
        free(file);
        return NULL;
    }
    return file;
}

enum bt_status bt_safetensors_open_file(const char *path, struct bt_error *error,
                                        struct bt_safetensors **ret_file)
{
    struct bt_safetensors *file = create(1);
    char *copy = strdup(path);
    if (!file || !copy) {
        free(copy);
        bt_safetensors_close(file);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", path);
    }
    enum bt_status status = add_shard(file, copy, error);
    if (status == BT_OK)
        status = sort_by_name(file, path, error);
    if (status != BT_OK) {
        bt_safetensors_close(file);
        return status;
    }
    *ret_file = file;
    return BT_OK;
}

/* A file beside the index and nothing else: no separators, not hidden, the usual ending. */
static bool shard_name_is_plain(const char *name)
{
    static const char ending[] = ".safetensors";
    size_t length = strlen(name);
    return name_is_plain(name) && !strchr(name, '/') && name[0] != '.' &&
           length > sizeof(ending) - 1 && !strcmp(name + length - (sizeof(ending) - 1), ending);
}

static bool has_shard(const struct bt_safetensors *file, const char *name)
{
    for (size_t i = file->shard_count; i-- > 0;)
        if (!strcmp(file->shards[i].name, name))
            return true;
    return false;
}

static enum bt_status open_shards(struct bt_safetensors *file, const char *model_dir,
                                  const char *index_path, const json_t *weight_map,
                                  struct bt_error *error)
{
    const char *tensor;
    json_t *entry;
    json_object_foreach((json_t *)weight_map, tensor, entry)
    {
        const char *name = json_string_value(entry);
        if (!name || !shard_name_is_plain(name))
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "%s: weight_map of %.256s: not a plain *.safetensors name",
                                index_path, name_is_plain(tensor) ? tensor : "?");
        if (has_shard(file, name))
            continue;
        if (file->shard_count == MAX_SHARDS)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: more than %d shards",
                                index_path, MAX_SHARDS);
        char *path;
        if (asprintf(&path, "%s/%s", model_dir, name) < 0)
            return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", index_path);
        enum bt_status status = add_shard(file, path, error);
        if (status != BT_OK) {
            bt_error_prefix(error, "named by %s", index_path);
            return status;
        }
    }
    return BT_OK;
}

/* Each tensor of the index is in the shard it says, and each tensor of a shard is in the index. */
static enum bt_status check_weight_map(const struct bt_safetensors *file, const char *index_path,
                                       const json_t *weight_map, struct bt_error *error)
{
    const char *tensor;
    json_t *entry;
    json_object_foreach((json_t *)weight_map, tensor, entry)
    {
        const struct bt_tensor *found = bt_safetensors_find(file, tensor);
        if (!found || strcmp(found->file, json_string_value(entry)))
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: tensor %.256s is not in %s",
                                index_path, name_is_plain(tensor) ? tensor : "?",
                                json_string_value(entry));
    }
    for (size_t i = 0; i < file->tensor_count; i++)
        if (!json_object_get(weight_map, file->tensors[i].name))
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "%s: tensor %s of %s is not in weight_map", index_path,
                                file->tensors[i].name, file->tensors[i].file);
    return BT_OK;
}

static enum bt_status open_index(const char *model_dir, const char *index_path,
                                 struct bt_error *error, struct bt_safetensors **ret_file)
{
    json_t *root;
    enum bt_status status = bt_json_object_load(index_path, INDEX_MAX_BYTES, error, &root);
    if (status != BT_OK)
        return status;
    struct bt_safetensors *file = create(MAX_SHARDS);
    const json_t *weight_map = json_object_get(root, "weight_map");
    if (!file)
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", index_path);
    else if (!json_is_object(weight_map))
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: no weight_map", index_path);
    if (status == BT_OK)
        status = open_shards(file, model_dir, index_path, weight_map, error);
    if (status == BT_OK)
        status = sort_by_name(file, index_path, error);
    if (status == BT_OK)
        status = check_weight_map(file, index_path, weight_map, error);
    json_decref(root);
    if (status != BT_OK) {
        bt_safetensors_close(file);
        return status;
    }
    *ret_file = file;
    return BT_OK;
}

enum bt_status bt_safetensors_open(const char *model_dir, struct bt_error *error,
                                   struct bt_safetensors **ret_file)
{
    char single[PATH_MAX], index[PATH_MAX];
    if (snprintf(single, sizeof(single), "%s/model.safetensors", model_dir) >= PATH_MAX ||
        snprintf(index, sizeof(index), "%s/model.safetensors.index.json", model_dir) >= PATH_MAX)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "model directory: path too long");
    if (access(single, F_OK) && !access(index, F_OK))
        return open_index(model_dir, index, error, ret_file);
    return bt_safetensors_open_file(single, error, ret_file);
}

void bt_safetensors_close(struct bt_safetensors *file)
{
    if (!file)
        return;
    for (size_t i = 0; i < file->tensor_count; i++)
        tensor_finish(&file->tensors[i]);
    for (size_t i = 0; i < file->shard_count; i++) {
        if (file->shards[i].map)
            munmap((void *)file->shards[i].map, file->shards[i].map_bytes);
        free(file->shards[i].path);
    }
    free(file->tensors);
    free(file->shards);
    free(file);
}

const struct bt_tensor *bt_safetensors_find(const struct bt_safetensors *file, const char *name)
{
    struct bt_tensor key = {.name = name};
    return bsearch(&key, file->tensors, file->tensor_count, sizeof(key), compare_names);
}

size_t bt_safetensors_count(const struct bt_safetensors *file)
{
    return file->tensor_count;
}

const struct bt_tensor *bt_safetensors_at(const struct bt_safetensors *file, size_t index)
{
    BT_ASSERT(index < file->tensor_count);
    return &file->tensors[index];
}

/* Whole pages only: the first and the last may be a neighbour's too. */
void bt_safetensors_drop(const struct bt_tensor *tensor)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)tensor->data + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)tensor->data + tensor->bytes) / page * page;
    if (begin < end)
        (void)madvise((void *)begin, end - begin, MADV_DONTNEED);
}

void bt_safetensors_want(const struct bt_tensor *tensor)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)tensor->data / page * page;
    uintptr_t end = (uintptr_t)tensor->data + tensor->bytes;
    (void)madvise((void *)begin, end - begin, MADV_WILLNEED);
}

/* Small tensors whole; of large ones the head, the middle and the end: three pages touched. */
static uint64_t hash_data(const struct bt_tensor *tensor, uint64_t hash)
{
    const uint8_t *data = tensor->data;
    if (tensor->bytes <= 16 * HASH_SAMPLE)
        return XXH3_64bits_withSeed(data, tensor->bytes, hash);
    hash = XXH3_64bits_withSeed(data, HASH_SAMPLE, hash);
    hash = XXH3_64bits_withSeed(data + tensor->bytes / 2, HASH_SAMPLE, hash);
    return XXH3_64bits_withSeed(data + tensor->bytes - HASH_SAMPLE, HASH_SAMPLE, hash);
}

/* A chain: each part's hash is the seed of the next. */
uint64_t bt_safetensors_hash(const struct bt_safetensors *file)
{
    uint64_t hash = file->tensor_count;
    for (size_t i = 0; i < file->tensor_count; i++) {
        const struct bt_tensor *tensor = &file->tensors[i];
        hash = XXH3_64bits_withSeed(tensor->name, strlen(tensor->name), hash);
        hash = XXH3_64bits_withSeed(tensor->dtype_name, strlen(tensor->dtype_name), hash);
        hash =
            XXH3_64bits_withSeed(tensor->dims, tensor->dim_count * sizeof(tensor->dims[0]), hash);
        hash = hash_data(tensor, hash);
    }
    return hash;
}
