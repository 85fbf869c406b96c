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

enum bt_status ctl_keys_add(const char *dir, const char *id, struct bt_error *error)
{
    struct ctl_keys keys;
    char public_key[BT_KEY_HEX_SIZE], line[BT_KEY_HEX_SIZE + BT_KEY_NAME_SIZE + 2];
    ctl_keys_init(&keys, dir, id);
    enum bt_status status = bt_security_generate(keys.secret_file, error, public_key);
    if (status != BT_OK)
        return status;
    snprintf(line, sizeof(line), "%s %s\n", public_key, id);
    return append(keys.allow_file, 0, line, error);
}
