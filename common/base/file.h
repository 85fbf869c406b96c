/*
 * Reading files that others made: regular files only (opening never blocks on a FIFO), bounded,
 * with messages that name the path.
 */
#ifndef BATON_COMMON_BASE_FILE_H
#define BATON_COMMON_BASE_FILE_H

#include <stddef.h>

#include "common/base/status.h"

/* Opens for reading. NOT_FOUND: no such file. IO: can't be read, or not a regular file. */
enum bt_status bt_file_open(const char *path, struct bt_error *error, int *ret_fd,
                            size_t *ret_bytes);

/*
 * The whole content, NUL-terminated beyond its end; malloc'd. Errors as above, INVALID_ARGUMENT
 * (more than `limit_bytes`), NO_MEMORY.
 */
enum bt_status bt_file_read(const char *path, size_t limit_bytes, struct bt_error *error,
                            char **ret_text, size_t *ret_bytes);

#endif
