#include "common/model/safetensors_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/model/safetensors.h"

struct planned {
    char *name; /* in quotes, as in the header */
    char dtype[16];
    uint64_t dims[BT_TENSOR_MAX_DIMS];
    uint32_t dim_count;
    size_t align, bytes;
    size_t begin; /* in the data section */
};

struct bt_safetensors_writer {
    char *path;
    int fd;
    struct planned *tensors;
    uint32_t count, capacity;
    size_t data_at; /* of the data section in the file */
    bool finished;
};

static enum bt_status io_error(const struct bt_safetensors_writer *w, struct bt_error *error)
{
    return bt_error_set(error, errno == EEXIST ? BT_ERR_ALREADY_EXISTS : BT_ERR_IO, "%s: %s",
                        w->path, strerror(errno));
}

static enum bt_status memory_error(const char *path, struct bt_error *error)
{
    return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", path);
}

enum bt_status bt_safetensors_writer_create(const char *path, struct bt_error *error,
                                            struct bt_safetensors_writer **ret_writer)
{
    struct bt_safetensors_writer *w = calloc(1, sizeof(*w));
    if (!w || !(w->path = strdup(path))) {
        free(w);
        return memory_error(path, error);
    }
    w->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (w->fd < 0) {
        enum bt_status status = io_error(w, error);
        bt_safetensors_writer_destroy(w);
        return status;
    }
    *ret_writer = w;
    return BT_OK;
}

void bt_safetensors_writer_destroy(struct bt_safetensors_writer *w)
{
    if (!w)
        return;
    if (w->fd >= 0) {
        close(w->fd);
        if (!w->finished)
            unlink(w->path);
    }
    for (uint32_t i = 0; i < w->count; i++)
        free(w->tensors[i].name);
    free(w->tensors);
    free(w->path);
    free(w);
}

/* Bytes of a tensor, and what its data is aligned to; false: see add. */
static bool measure(struct planned *t)
{
    uint32_t bits = bt_safetensors_dtype_bits(t->dtype);
    uint64_t total = bits;
    for (uint32_t i = 0; i < t->dim_count; i++)
        if (__builtin_mul_overflow(total, t->dims[i], &total))
            return false;
    t->align = bits < 16 ? 1 : bits / 8;
    t->bytes = total / 8;
    return bits > 0 && total % 8 == 0;
}

/* NULL: not UTF-8, or no memory. */
static char *quote(const char *name)
{
    json_t *string = json_string(name);
    char *quoted = json_dumps(string, JSON_ENCODE_ANY);
    json_decref(string);
    return quoted;
}

static bool has_room(struct bt_safetensors_writer *w)
{
    if (w->count < w->capacity)
        return true;
    uint32_t capacity = w->capacity ? 2 * w->capacity : 256;
    struct planned *tensors = realloc(w->tensors, capacity * sizeof(*tensors));
    if (!tensors)
        return false;
    w->tensors = tensors;
    w->capacity = capacity;
    return true;
}

enum bt_status bt_safetensors_writer_add(struct bt_safetensors_writer *w, const char *name,
                                         const char *dtype, const uint64_t *dims,
                                         uint32_t dim_count, struct bt_error *error,
                                         uint32_t *ret_tensor)
{
    BT_ASSERT(w->data_at == 0);
    if (!has_room(w))
        return memory_error(w->path, error);
    struct planned t = {.dim_count = dim_count};
    snprintf(t.dtype, sizeof(t.dtype), "%s", dtype);
    if (dim_count <= BT_TENSOR_MAX_DIMS)
        memcpy(t.dims, dims, dim_count * sizeof(*dims));
    if (dim_count > BT_TENSOR_MAX_DIMS || !measure(&t))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s: tensor %s: a size of %u dimensions of dtype %s can't be written",
                            w->path, name, dim_count, dtype);
    t.name = quote(name);
    if (!t.name)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: a tensor's name is not UTF-8",
                            w->path);
    w->tensors[w->count] = t;
    *ret_tensor = w->count++;
    return BT_OK;
}

static size_t place_tensors(struct bt_safetensors_writer *w)
{
    size_t at = 0;
    for (size_t align = 8; align; align /= 2) {
        for (uint32_t i = 0; i < w->count; i++) {
            if (w->tensors[i].align != align)
                continue;
            w->tensors[i].begin = at;
            at += w->tensors[i].bytes;
        }
    }
    return at;
}

static void print_header(const struct bt_safetensors_writer *w, FILE *out)
{
    fputc('{', out);
    for (uint32_t i = 0; i < w->count; i++) {
        const struct planned *t = &w->tensors[i];
        fprintf(out, "%s%s:{\"dtype\":\"%s\",\"shape\":[", i ? "," : "", t->name, t->dtype);
        for (uint32_t d = 0; d < t->dim_count; d++)
            fprintf(out, "%s%" PRIu64, d ? "," : "", t->dims[d]);
        fprintf(out, "],\"data_offsets\":[%zu,%zu]}", t->begin, t->begin + t->bytes);
    }
    fputc('}', out);
    while ((ftell(out) + 8) % 64)
        fputc(' ', out);
}

static enum bt_status write_at(const struct bt_safetensors_writer *w, const void *data,
                               size_t bytes, size_t at, struct bt_error *error)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t wrote = pwrite(w->fd, (const char *)data + done, bytes - done, (off_t)(at + done));
        if (wrote < 0 && errno != EINTR)
            return io_error(w, error);
        done += wrote > 0 ? (size_t)wrote : 0;
    }
    return BT_OK;
}

enum bt_status bt_safetensors_writer_begin(struct bt_safetensors_writer *w, struct bt_error *error)
{
    char *text = NULL;
    size_t size = 0, data_bytes = place_tensors(w);
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return memory_error(w->path, error);
    print_header(w, out);
    if (fclose(out)) {
        free(text);
        return memory_error(w->path, error);
    }
    uint64_t header_bytes = size; /* little endian, as all of the file */
    w->data_at = 8 + size;
    enum bt_status status = write_at(w, &header_bytes, 8, 0, error);
    if (status == BT_OK)
        status = write_at(w, text, size, 8, error);
    if (status == BT_OK && ftruncate(w->fd, (off_t)(w->data_at + data_bytes)))
        status = io_error(w, error);
    free(text);
    return status;
}

enum bt_status bt_safetensors_writer_put(struct bt_safetensors_writer *w, uint32_t tensor,
                                         size_t offset, const void *data, size_t bytes,
                                         struct bt_error *error)
{
    const struct planned *t = &w->tensors[tensor];
    BT_ASSERT(tensor < w->count && offset <= t->bytes && bytes <= t->bytes - offset);
    return write_at(w, data, bytes, w->data_at + t->begin + offset, error);
}

enum bt_status bt_safetensors_writer_finish(struct bt_safetensors_writer *w, struct bt_error *error)
{
    if (fsync(w->fd))
        return io_error(w, error);
    w->finished = true;
    return BT_OK;
}
