#include "common/model/json_file.h"

#include <stdlib.h>

#include "common/base/file.h"

enum bt_status bt_json_object_parse(const char *path, const char *text, size_t bytes,
                                    struct bt_error *error, json_t **ret_root)
{
    json_error_t fault;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &fault);
    if (!root)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: bad JSON at byte %d: %.120s", path,
                            fault.position, fault.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: not a JSON object", path);
    }
    *ret_root = root;
    return BT_OK;
}

enum bt_status bt_json_object_load(const char *path, size_t limit_bytes, struct bt_error *error,
                                   json_t **ret_root)
{
    char *text;
    size_t bytes;
    enum bt_status status = bt_file_read(path, limit_bytes, error, &text, &bytes);
    if (status != BT_OK)
        return status;
    status = bt_json_object_parse(path, text, bytes, error, ret_root);
    free(text);
    return status;
}
