#include "deploy/batonctl/keys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void ctl_keys_init(struct ctl_keys *keys, const char *dir, const char *id)
{
    snprintf(keys->secret_file, sizeof(keys->secret_file), "%s/%s.key", dir, id);
    snprintf(keys->allow_file, sizeof(keys->allow_file), "%s/allow", dir);
    keys->values = (struct bt_security_values){keys->secret_file, keys->allow_file};
}

static enum bt_status append(const char *path, int flags, const char *text, struct bt_error *error)
{
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC | flags, 0600);
    size_t size = strlen(text);
    bool written = fd >= 0 && write(fd, text, size) == (ssize_t)size;
    int reason = errno;
    if (fd >= 0 && close(fd) != 0 && written) {
        written = false;
        reason = errno;
    }
    return written ? BT_OK
                   : bt_error_set(error, BT_ERR_IO, "can not write %s: %s", path, strerror(reason));
}

enum bt_status ctl_keys_begin(const char *dir, struct bt_error *error)
{
    struct ctl_keys keys;
    ctl_keys_init(&keys, dir, CTL_KEYS_OPERATOR);
    return append(keys.allow_file, O_CREAT | O_EXCL, "# whom this cluster's processes deal with\n",
                  error);
}

/* The secret is there under its name when the list has its key, and not before: a batonctl that is
 * killed leaves no key that nobody knows. */
static enum bt_status publish(const struct ctl_keys *keys, const char *next, const char *line,
                              struct bt_error *error)
{
    enum bt_status status = append(keys->allow_file, 0, line, error);
    if (status == BT_OK && link(next, keys->secret_file) != 0)
        status = bt_error_set(error, errno == EEXIST ? BT_ERR_ALREADY_EXISTS : BT_ERR_IO,
                              "can not write %s: %s", keys->secret_file, strerror(errno));
    return status;
}

enum bt_status ctl_keys_add(const char *dir, const char *id, struct bt_error *error)
{
    struct ctl_keys keys;
    char public_key[BT_KEY_HEX_SIZE], line[BT_KEY_HEX_SIZE + BT_KEY_NAME_SIZE + 2];
    char next[PATH_MAX + 8];
    ctl_keys_init(&keys, dir, id);
    if (access(keys.secret_file, F_OK) == 0)
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS, "%s is there already", keys.secret_file);
    snprintf(next, sizeof(next), "%s.next", keys.secret_file);
    unlink(next);
    enum bt_status status = bt_security_generate(next, error, public_key);
    if (status != BT_OK)
        return status;
    snprintf(line, sizeof(line), "%s %s\n", public_key, id);
    status = publish(&keys, next, line, error);
    unlink(next);
    return status;
}
