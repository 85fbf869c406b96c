#include "common/model/upload.h"

#include <stdlib.h>
#include <string.h>

#define BUFFERS     2
#define ALIGN_BYTES ((size_t)256)
#define PART_BYTES  ((size_t)1 << 20) /* read by one thread at a time */

struct buffer {
    unsigned char *memory; /* pinned */
    size_t bytes, used_bytes;
    struct bt_event *fetched;
    bool is_fetching;
};

struct bt_upload {
    struct bt_device *device;
    struct bt_stream *stream;
    struct buffer buffers[BUFFERS];
    unsigned current; /* that is being filled */
};

enum bt_status bt_upload_create(struct bt_device *device, struct bt_stream *stream,
                                struct bt_error *error, struct bt_upload **ret_upload)
{
    struct bt_upload *upload = calloc(1, sizeof(*upload));
    enum bt_status status = BT_OK;
    if (!upload)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "upload: no memory");
    upload->device = device;
    upload->stream = stream;
    for (unsigned i = 0; i < BUFFERS && status == BT_OK; i++)
        status = device->ops->event_create(device, error, &upload->buffers[i].fetched);
    if (status != BT_OK) {
        bt_upload_destroy(upload);
        return status;
    }
    *ret_upload = upload;
    return BT_OK;
}

void bt_upload_destroy(struct bt_upload *upload)
{
    for (unsigned i = 0; upload && i < BUFFERS; i++) {
        struct buffer *buffer = &upload->buffers[i];
        if (buffer->fetched)
            upload->device->ops->event_destroy(buffer->fetched);
        bt_device_free_host(upload->device, buffer->memory);
    }
    free(upload);
}

/* Nobody reads it any more, and it has room. */
static enum bt_status make_ready(struct bt_upload *upload, struct buffer *buffer, size_t bytes,
                                 struct bt_error *error)
{
    struct bt_device *device = upload->device;
    void *memory = NULL;
    if (buffer->is_fetching) {
        enum bt_status status = device->ops->event_synchronize(buffer->fetched, error);
        if (status != BT_OK)
            return status;
        buffer->is_fetching = false;
    }
    if (buffer->bytes >= bytes)
        return BT_OK;
    bt_device_free_host(device, buffer->memory);
    *buffer = (struct buffer){.fetched = buffer->fetched};
    bytes = bytes > BT_UPLOAD_BYTES ? bytes : BT_UPLOAD_BYTES;
    enum bt_status status = bt_device_alloc_host(device, bytes, error, &memory);
    if (status != BT_OK)
        return status;
    buffer->memory = memory;
    buffer->bytes = bytes;
    return BT_OK;
}

/* It is full: the other one is next. */
static struct buffer *turn_over(struct bt_upload *upload)
{
    struct buffer *full = &upload->buffers[upload->current];
    upload->device->ops->event_record(full->fetched, upload->stream);
    full->is_fetching = true;
    full->used_bytes = 0;
    upload->current = (upload->current + 1) % BUFFERS;
    return &upload->buffers[upload->current];
}

/* Room to fill next, behind what was filled before. */
static enum bt_status take_room(struct bt_upload *upload, size_t bytes, struct bt_error *error,
                                unsigned char **ret_room)
{
    struct buffer *buffer = &upload->buffers[upload->current];
    bytes = (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    if (buffer->used_bytes > 0 && bytes > buffer->bytes - buffer->used_bytes)
        buffer = turn_over(upload);
    enum bt_status status =
        buffer->used_bytes == 0 ? make_ready(upload, buffer, bytes, error) : BT_OK;
    if (status != BT_OK)
        return status;
    *ret_room = buffer->memory + buffer->used_bytes;
    buffer->used_bytes += bytes;
    return BT_OK;
}

enum bt_status bt_upload_rows(struct bt_upload *upload, void *to, size_t rows, size_t row_bytes,
                              bt_upload_fill_fn *fill, void *context, struct bt_error *error)
{
    size_t each = row_bytes < BT_UPLOAD_BYTES ? BT_UPLOAD_BYTES / row_bytes : 1;
    for (size_t first = 0; first < rows; first += each) {
        size_t count = rows - first < each ? rows - first : each;
        unsigned char *room;
        enum bt_status status = take_room(upload, count * row_bytes, error, &room);
        if (status != BT_OK)
            return status;
        fill(context, first, count, room);
        bt_device_copy(upload->device, upload->stream, (unsigned char *)to + first * row_bytes,
                       room, count * row_bytes);
    }
    return BT_OK;
}

/* ---- bytes as they are ---- */

struct bytes_job {
    const unsigned char *from;
    unsigned char *to;
    size_t bytes; /* of this buffer */
    struct bt_team *team;
};

static void copy_part(void *context, uint32_t part, uint32_t thread)
{
    const struct bytes_job *job = context;
    size_t at = part * PART_BYTES, left = job->bytes - at;
    (void)thread;
    memcpy(job->to + at, job->from + at, left < PART_BYTES ? left : PART_BYTES);
}

static void fill_bytes(void *context, size_t first, size_t count, unsigned char *out)
{
    const struct bytes_job *all = context;
    struct bytes_job job = {.from = all->from + first, .to = out, .bytes = count};
    bt_team_run(all->team, copy_part, &job, (uint32_t)((count + PART_BYTES - 1) / PART_BYTES));
}

enum bt_status bt_upload_bytes(struct bt_upload *upload, void *to, const void *from, size_t bytes,
                               struct bt_team *team, struct bt_error *error)
{
    struct bytes_job job = {.from = from, .team = team};
    return bt_upload_rows(upload, to, bytes, 1, fill_bytes, &job, error);
}
