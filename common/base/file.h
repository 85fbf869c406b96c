/*
 * Reading files that others made: regular files only (opening never blocks on a FIFO), bounded,
 * with messages that name the path.
 */
#ifndef BATON_COMMON_BASE_FILE_H
#define BATON_COMMON_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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

/*
 * Notices that a file changed, by what its path leads to: also where a link on the way leads
 * elsewhere, as when a mounted secret is replaced.
 */
struct bt_file_stamp { /* zeros: there is no file */
    uint64_t device, inode, size;
    int64_t modified_ns, changed_ns;
};
struct bt_file_watch {
    struct bt_file_stamp read, seen;
};

/* Before the file is read: what changes from then on is noticed. */
void bt_file_watch_mark(struct bt_file_watch *watch, const char *path);
/* At each look, some time apart. True: it changed since the mark, and then stood still from one
 * look to the next: who writes it in place is done by then. */
bool bt_file_watch_look(struct bt_file_watch *watch, const char *path);

#endif
