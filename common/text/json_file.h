/*
 * A JSON file of a checkpoint, whole in memory, and typed look-ups that say file and field when
 * something is not what it should be. One thread.
 */
#ifndef BATON_COMMON_TEXT_JSON_FILE_H
#define BATON_COMMON_TEXT_JSON_FILE_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "common/base/status.h"

#define BT_JSON_FILE_MAX_BYTES (64u << 20)

struct bt_json_file {
    char path[PATH_MAX];
    json_t *root; /* an object */
};

/* Errors: IO (no such file, can't be read), INVALID_ARGUMENT (too long, not a JSON object),
 * NO_MEMORY. */
enum bt_status bt_json_file_load(const char *dir, const char *name, struct bt_error *error,
                                 struct bt_json_file *ret_file);
void bt_json_file_finish(struct bt_json_file *file);

/* Fills `error` with "<path>: <text>"; returns INVALID_ARGUMENT. */
enum bt_status bt_json_file_error(const struct bt_json_file *file, struct bt_error *error,
                                  const char *format, ...) __attribute__((format(printf, 3, 4)));

/*
 * The member `key` of `object`, which the file calls `where` ("" for the root). A member that is
 * not there or null gives NULL (bool: `fallback`); one of another type is INVALID_ARGUMENT.
 */
enum bt_status bt_json_file_object(const struct bt_json_file *file, const json_t *object,
                                   const char *where, const char *key, struct bt_error *error,
                                   json_t **ret_object);
enum bt_status bt_json_file_array(const struct bt_json_file *file, const json_t *object,
                                  const char *where, const char *key, struct bt_error *error,
                                  json_t **ret_array);
enum bt_status bt_json_file_string(const struct bt_json_file *file, const json_t *object,
                                   const char *where, const char *key, struct bt_error *error,
                                   const char **ret_string);
enum bt_status bt_json_file_bool(const struct bt_json_file *file, const json_t *object,
                                 const char *where, const char *key, bool fallback,
                                 struct bt_error *error, bool *ret_value);

/* Text from a file for a message: cut short, control characters as '?'. Returns `ret_shown`. */
const char *bt_json_file_show(const char *text, char ret_shown[static 64]);

#endif
