#include "common/model/safetensors_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_DIMS 4

struct planned {
    char *name;
    char dtype[16];
    uint64_t dims[MAX_DIMS];
    uint32_t dim_count;
    size_t element_bytes, bytes;
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

static size_t element_bytes(const char *dtype)
{
    if (!strcmp(dtype, "F32"))
        return 4;
    return !strcmp(dtype, "BF16") || !strcmp(dtype, "F16") ? 2 : 1;
}

enum bt_status bt_safetensors_writer_add(struct bt_safetensors_writer *w, const char *name,
                                         const char *dtype, const uint64_t *dims,
                                         uint32_t dim_count, struct bt_error *error,
                                         uint32_t *ret_tensor)
{
    BT_ASSERT(w->data_at == 0 && dim_count <= MAX_DIMS);
    if (w->count == w->capacity) {
        uint32_t capacity = w->capacity ? 2 * w->capacity : 256;
        struct planned *tensors = realloc(w->tensors, capacity * sizeof(*tensors));
        if (!tensors)
            return memory_error(w->path, error);
        w->tensors = tensors;
        w->capacity = capacity;
    }
    struct planned t = {
        .name = strdup(name), .dim_count = dim_count, .element_bytes = element_bytes(dtype)};
    if (!t.name)
        return memory_error(w->path, error);
    snprintf(t.dtype, sizeof(t.dtype), "%s", dtype);
    t.bytes = t.element_bytes;
    for (uint32_t i = 0; i < dim_count; i++) {
        t.dims[i] = dims[i];
        t.bytes *= dims[i];
    }
    w->tensors[w->count] = t;
    *ret_tensor = w->count++;
    return BT_OK;
}

static size_t place_tensors(struct bt_safetensors_writer *w)
{
    size_t at = 0;
    for (size_t size = 4; size; size /= 2) {
        for (uint32_t i = 0; i < w->count; i++) {
            if (w->tensors[i].element_bytes != size)
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
        fprintf(out, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "", t->name, t->dtype);
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
