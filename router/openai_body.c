#include "router/openai_body.h"

#include <string.h>

/* Where nesting passes `max_depth`, or `size`. */
static size_t depth_exceeded_at(const char *text, size_t size, uint32_t max_depth)
{
    uint32_t depth = 0;
    for (size_t at = 0; at < size;) {
        char c = text[at++];
        if (c == '"') {
            at = rt_openai_cut_skip_string(text, at, size);
        } else if (c == '[' || c == '{') {
            if (++depth > max_depth)
                return at - 1;
        } else if ((c == ']' || c == '}') && depth > 0) {
            depth--;
        }
    }
    return size;
}

/* NULL also where the text is not valid, or too deep. */
static json_t *parse_cut(const struct rt_openai_cut *cut, uint32_t max_depth)
{
    if (depth_exceeded_at(cut->text, cut->size, max_depth) < cut->size)
        return NULL;
    json_t *root = json_loadb(cut->text, cut->size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, NULL);
    if (root == NULL || rt_openai_cut_restore(cut, root))
        return root;
    json_decref(root);
    return NULL;
}

/* Says what is wrong and where, so it needs the whole text. */
static enum bt_status parse_whole(const char *text, size_t size, uint32_t max_depth,
                                  struct rt_openai_error *error, json_t **ret_root)
{
    size_t deep = depth_exceeded_at(text, size, max_depth);
    if (deep < size)
        return rt_openai_error_set(error, BT_ERR_INVALID_ARGUMENT, NULL, "invalid_json",
                                   "the body's JSON nests deeper than %u levels at byte %zu",
                                   max_depth, deep);
    json_error_t json_error;
    *ret_root = json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &json_error);
    if (*ret_root == NULL)
        return rt_openai_error_set(error, BT_ERR_INVALID_ARGUMENT, NULL, "invalid_json",
                                   "the body is not valid JSON: %s, line %d column %d",
                                   json_error.text, json_error.line, json_error.column);
    return BT_OK;
}

enum bt_status rt_openai_body_parse(const char *text, size_t size, uint32_t max_depth,
                                    struct rt_openai_error *error, struct rt_openai_cut *cut,
                                    json_t **ret_root)
{
    if (size == 0)
        return rt_openai_error_set(error, BT_ERR_INVALID_ARGUMENT, NULL, "invalid_json",
                                   "the body is empty, expected a JSON object");
    json_t *root = rt_openai_cut(text, size, cut) ? parse_cut(cut, max_depth) : NULL;
    if (root == NULL) {
        rt_openai_cut_finish(cut);
        enum bt_status status = parse_whole(text, size, max_depth, error, &root);
        if (status != BT_OK)
            return status;
    }
    if (!json_is_object(root)) {
        rt_openai_error_set(error, BT_ERR_INVALID_ARGUMENT, NULL, "invalid_json",
                            "the body must be a JSON object, not %s", rt_openai_body_type(root));
        json_decref(root);
        return error->status;
    }
    *ret_root = root;
    return BT_OK;
}

const char *rt_openai_body_type(const json_t *value)
{
    switch (value != NULL ? json_typeof(value) : JSON_NULL) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return json_array_size(value) > 0 ? "an array" : "an empty array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction or exponent";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    default:
        return "null";
    }
}

json_t *rt_openai_body_get(const json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

enum bt_status rt_openai_body_bool(const json_t *object, const char *name,
                                   struct rt_openai_error *error, bool *ret_value)
{
    const json_t *value = rt_openai_body_get(object, name);
    if (value == NULL)
        return BT_OK;
    if (!json_is_boolean(value))
        return rt_openai_error_field(error, name, "must be a boolean, not %s",
                                     rt_openai_body_type(value));
    *ret_value = json_is_true(value);
    return BT_OK;
}

enum bt_status rt_openai_body_integer(const json_t *object, const char *name,
                                      struct rt_openai_error *error, int64_t *ret_value,
                                      bool *ret_there)
{
    const json_t *value = rt_openai_body_get(object, name);
    if (ret_there != NULL)
        *ret_there = value != NULL;
    if (value == NULL)
        return BT_OK;
    if (!json_is_integer(value))
        return rt_openai_error_field(error, name, "must be an integer, not %s",
                                     rt_openai_body_type(value));
    *ret_value = json_integer_value(value);
    return BT_OK;
}

enum bt_status rt_openai_body_string(const json_t *object, const char *name,
                                     struct rt_openai_error *error, const char **ret_value)
{
    const json_t *value = rt_openai_body_get(object, name);
    if (value == NULL)
        return BT_OK;
    if (!json_is_string(value))
        return rt_openai_error_field(error, name, "must be a string, not %s",
                                     rt_openai_body_type(value));
    *ret_value = json_string_value(value);
    return BT_OK;
}
