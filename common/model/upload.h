/*
 * Rows of weights on their way into a device's memory, in the dtype that they have there: filled by
 * the caller's threads into one of two pinned buffers while the device fetches the other. Inside
 * common/model only; one thread.
 */
#ifndef BATON_COMMON_MODEL_UPLOAD_H
#define BATON_COMMON_MODEL_UPLOAD_H

#include "common/kernels/device.h"
#include "common/kernels/team.h"

#define BT_UPLOAD_BYTES ((size_t)16 << 20) /* of a buffer, where no row is larger */

struct bt_upload;

/* `stream`, of the device, is borrowed: what is uploaded comes in its order. */
enum bt_status bt_upload_create(struct bt_device *device, struct bt_stream *stream,
                                struct bt_error *error, struct bt_upload **ret_upload);
/* After the stream is idle. NULL is fine. */
void bt_upload_destroy(struct bt_upload *upload);

/* Rows first … first + count - 1 to `out`. */
typedef void bt_upload_fill_fn(void *context, size_t first, size_t count, unsigned char *out);

/* NO_MEMORY: for the buffers; INTERNAL: of the device. */
enum bt_status bt_upload_rows(struct bt_upload *upload, void *to, size_t rows, size_t row_bytes,
                              bt_upload_fill_fn *fill, void *context, struct bt_error *error);

/* Bytes as they are, read by the threads of the team. */
enum bt_status bt_upload_bytes(struct bt_upload *upload, void *to, const void *from, size_t bytes,
                               struct bt_team *team, struct bt_error *error);

#endif
