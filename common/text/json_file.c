#include "common/text/json_file.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/base/file.h"

#define SHOWN_SIZE 64

enum bt_status bt_json_file_load(const char *dir, const char *name, struct bt_error *error,
                                 struct bt_json_file *ret_file)
{
    struct bt_json_file *file = ret_file;
    int length = snprintf(file->path, sizeof file->path, "%s/%s", dir, name);
    if (length < 0 || (size_t)length >= sizeof file->path)
        return bt_error_set(error, BT_ERR_IO, "%s: the path of the model is too long", name);
    char *text;
    size_t size;
    enum bt_status status = bt_file_read(file->path, BT_JSON_FILE_MAX_BYTES, error, &text, &size);
    if (status == BT_ERR_NOT_FOUND) {
        if (error)
            error->status = BT_ERR_IO;
        return BT_ERR_IO;
    }
    if (status != BT_OK)
        return status;
    json_error_t fault;
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &fault);
    free(text);
    if (!root) {
        char shown[SHOWN_SIZE];
        return bt_json_file_error(file, error, "line %d, column %d: %s", fault.line, fault.column,
                                  bt_json_file_show(fault.text, shown));
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return bt_json_file_error(file, error, "must be an object");
    }
    file->root = root;
    return BT_OK;
}

void bt_json_file_finish(struct bt_json_file *file)
{
    json_decref(file->root);
    file->root = NULL;
}

enum bt_status bt_json_file_error(const struct bt_json_file *file, struct bt_error *error,
                                  const char *format, ...)
{
    char text[BT_ERROR_TEXT_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: %s", file->path, text);
}

/* BT_OK and the member, NULL when it is null or not there. */
static enum bt_status member(const struct bt_json_file *file, const json_t *object,
                             const char *where, const char *key, json_type type,
                             const char *type_name, struct bt_error *error, json_t **ret_member)
{
    json_t *found = json_object_get(object, key);
    if (json_is_null(found))
        found = NULL;
    if (found && json_typeof(found) != type)
        return bt_json_file_error(file, error, "%s%s%s must be %s", where, *where ? "." : "", key,
                                  type_name);
    *ret_member = found;
    return BT_OK;
}

enum bt_status bt_json_file_object(const struct bt_json_file *file, const json_t *object,
                                   const char *where, const char *key, struct bt_error *error,
                                   json_t **ret_object)
{
    return member(file, object, where, key, JSON_OBJECT, "an object", error, ret_object);
}

enum bt_status bt_json_file_array(const struct bt_json_file *file, const json_t *object,
                                  const char *where, const char *key, struct bt_error *error,
                                  json_t **ret_array)
{
    return member(file, object, where, key, JSON_ARRAY, "an array", error, ret_array);
}

enum bt_status bt_json_file_string(const struct bt_json_file *file, const json_t *object,
                                   const char *where, const char *key, struct bt_error *error,
                                   const char **ret_string)
{
    json_t *found = NULL;
    enum bt_status status =
        member(file, object, where, key, JSON_STRING, "a string", error, &found);
    if (status == BT_OK)
        *ret_string = found ? json_string_value(found) : NULL;
    return status;
}

enum bt_status bt_json_file_bool(const struct bt_json_file *file, const json_t *object,
                                 const char *where, const char *key, bool fallback,
                                 struct bt_error *error, bool *ret_value)
{
    json_t *found = json_object_get(object, key);
    if (found && !json_is_null(found) && !json_is_boolean(found))
        return bt_json_file_error(file, error, "%s%s%s must be true or false", where,
                                  *where ? "." : "", key);
    *ret_value = json_is_boolean(found) ? json_is_true(found) : fallback;
    return BT_OK;
}

const char *bt_json_file_show(const char *text, char ret_shown[static SHOWN_SIZE])
{
    size_t i = 0;
    for (; text[i] && i < SHOWN_SIZE - 1; i++)
        ret_shown[i] = text[i] >= ' ' && text[i] != 0x7F ? text[i] : '?';
    ret_shown[i] = '\0';
    return ret_shown;
}
