#include "deploy/batonctl/api_key.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* The first line without its end; false: it can't be read. */
static bool read_line(const char *path, size_t size, char *ret_line)
{
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    size_t length = fread(ret_line, 1, size - 1, file);
    bool failed = ferror(file);
    fclose(file);
    ret_line[length] = '\0';
    ret_line[strcspn(ret_line, "\r\n")] = '\0';
    return !failed;
}

static bool is_key(const char *text)
{
    size_t length = strlen(text);
    for (size_t i = 0; i < length; i++)
        if (text[i] <= ' ' || text[i] > '~')
            return false;
    return length > 0 && length < CTL_API_KEY_SIZE;
}

enum bt_status ctl_api_key_read(const struct ctl_api_key *api_key, struct bt_error *error,
                                char ret_key[CTL_API_KEY_SIZE])
{
    char line[CTL_API_KEY_SIZE + 2] = "";
    const char *key = api_key->key ? api_key->key : "", *path = api_key->file;
    if (path && !read_line(path, sizeof(line), line))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "--api-key-file %s: %s", path,
                            strerror(errno));
    if (path)
        key = line;
    if (*key ? !is_key(key) : path != NULL)
        return bt_error_set(
            error, BT_ERR_INVALID_ARGUMENT, "%s%s: a key is 1 to %d visible ASCII characters",
            path ? "--api-key-file " : "--api-key", path ? path : "", CTL_API_KEY_SIZE - 1);
    snprintf(ret_key, CTL_API_KEY_SIZE, "%s", key);
    return BT_OK;
}
