#include "common/planner/json_reader.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/file.h"

#define FILE_MAX_BYTES ((size_t)1 << 20)

enum bt_status bt_plan_json_parse(const char *path, const char *text, size_t bytes,
                                  struct bt_error *error, json_t **ret_root)
{
    json_error_t fault;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &fault);
    if (!root)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: bad JSON in line %d: %.120s", path,
                            fault.line, fault.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: not a JSON object", path);
    }
    *ret_root = root;
    return BT_OK;
}

enum bt_status bt_plan_json_load(const char *path, struct bt_error *error, json_t **ret_root)
{
    char *text;
    size_t bytes;
    enum bt_status status = bt_file_read(path, FILE_MAX_BYTES, error, &text, &bytes);
    if (status != BT_OK)
        return status;
    status = bt_plan_json_parse(path, text, bytes, error, ret_root);
    free(text);
    return status;
}

void bt_plan_reader_refuse(struct bt_plan_reader *reader, const char *key, const char *what)
{
    if (reader->status != BT_OK)
        return;
    const json_t *value = json_object_get(reader->object, key);
    char *text =
        value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII) : NULL;
    reader->status =
        bt_error_set(reader->error, BT_ERR_INVALID_ARGUMENT, "%s: %s%.60s = %.60s: %s",
                     reader->path, reader->prefix, key, text ? text : "(not there)", what);
    free(text);
}

static const json_t *get(const struct bt_plan_reader *reader, const char *key)
{
    const json_t *value = json_object_get(reader->object, key);
    return json_is_null(value) ? NULL : value;
}

bool bt_plan_reader_has(const struct bt_plan_reader *reader, const char *key)
{
    return get(reader, key) != NULL;
}

static bool is_one_of(const char *key, const char *const *keys)
{
    for (; *keys; keys++)
        if (!strcmp(key, *keys))
            return true;
    return false;
}

void bt_plan_reader_expect(struct bt_plan_reader *reader, const char *const *keys)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)reader->object, key, value)
    {
        if (!is_one_of(key, keys))
            bt_plan_reader_refuse(reader, key, "unknown key");
    }
}

double bt_plan_reader_number(struct bt_plan_reader *reader, const char *key, double min, double max,
                             const double *otherwise)
{
    const json_t *value = get(reader, key);
    if (!value && otherwise)
        return *otherwise;
    if (!value) {
        bt_plan_reader_refuse(reader, key, "required");
        return min;
    }
    double number = json_number_value(value);
    if (!json_is_number(value) || !isfinite(number) || number < min || number > max) {
        char what[64];
        snprintf(what, sizeof(what), "not a number in %g … %g", min, max);
        bt_plan_reader_refuse(reader, key, what);
        return min;
    }
    return number;
}

uint32_t bt_plan_reader_u32(struct bt_plan_reader *reader, const char *key, uint32_t min,
                            uint32_t max, const uint32_t *otherwise)
{
    const json_t *value = get(reader, key);
    if (!value && otherwise)
        return *otherwise;
    json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < (json_int_t)min || number > (json_int_t)max) {
        char what[64];
        snprintf(what, sizeof(what), "%s, an integer in %u … %u", value ? "not" : "required", min,
                 max);
        bt_plan_reader_refuse(reader, key, what);
        return min;
    }
    return (uint32_t)number;
}

const char *bt_plan_reader_string(struct bt_plan_reader *reader, const char *key)
{
    const char *text = json_string_value(get(reader, key));
    if (!text || !*text)
        bt_plan_reader_refuse(reader, key, "not a string");
    return text;
}
