#include "common/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/clock.h"

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

static struct bt_file_stamp stamp_take(const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0) {
        return (struct bt_file_stamp){0};
    }
    return (struct bt_file_stamp){
        .device = (uint64_t)info.st_dev,
        .inode = (uint64_t)info.st_ino,
        .size = (uint64_t)info.st_size,
        .modified_ns = info.st_mtim.tv_sec * BT_NS_PER_S + info.st_mtim.tv_nsec,
        .changed_ns = info.st_ctim.tv_sec * BT_NS_PER_S + info.st_ctim.tv_nsec,
    };
}

static bool stamp_equal(const struct bt_file_stamp *a, const struct bt_file_stamp *b)
{
    return a->device == b->device && a->inode == b->inode && a->size == b->size &&
           a->modified_ns == b->modified_ns && a->changed_ns == b->changed_ns;
}

void bt_file_watch_mark(struct bt_file_watch *watch, const char *path)
{
    watch->read = watch->seen = stamp_take(path);
}

bool bt_file_watch_look(struct bt_file_watch *watch, const char *path)
{
    struct bt_file_stamp stamp = stamp_take(path);
    bool settled = stamp_equal(&stamp, &watch->seen);
    watch->seen = stamp;
    return settled && !stamp_equal(&stamp, &watch->read);
}
