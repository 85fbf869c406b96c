#include "common/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum bt_status bt_file_open(const char *path, struct bt_error *error, int *ret_fd,
                            size_t *ret_bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        enum bt_status status = errno == ENOENT ? BT_ERR_NOT_FOUND : BT_ERR_IO;
        return bt_error_set(error, status, "%s: %s", path, strerror(errno));
    }
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(fd);
        return bt_error_set(error, BT_ERR_IO, "%s: not a regular file", path);
    }
    *ret_fd = fd;
    *ret_bytes = (size_t)info.st_size;
    return BT_OK;
}

/* All `bytes`, or IO: the file may shrink while it is read. */
static enum bt_status read_whole(int fd, const char *path, char *buffer, size_t bytes,
                                 struct bt_error *error)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t count = read(fd, buffer + done, bytes - done);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return bt_error_set(error, BT_ERR_IO, "%s: %s after %zu of %zu bytes", path,
                                count < 0 ? strerror(errno) : "ends", done, bytes);
        done += (size_t)count;
    }
    buffer[bytes] = '\0';
    return BT_OK;
}

enum bt_status bt_file_read(const char *path, size_t limit_bytes, struct bt_error *error,
                            char **ret_text, size_t *ret_bytes)
{
    int fd;
    size_t bytes;
    enum bt_status status = bt_file_open(path, error, &fd, &bytes);
    if (status != BT_OK)
        return status;
    char *text = NULL;
    if (bytes > limit_bytes)
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: %zu bytes, limit %zu", path,
                              bytes, limit_bytes);
    else if (!(text = malloc(bytes + 1)))
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for %zu bytes", path, bytes);
    else
        status = read_whole(fd, path, text, bytes, error);
    close(fd);
    if (status != BT_OK) {
        free(text);
        return status;
    }
    *ret_text = text;
    *ret_bytes = bytes;
    return BT_OK;
}
