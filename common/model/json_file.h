/* A JSON file read whole: size-limited, duplicate keys refused. Inside common/model only. */
#ifndef BATON_COMMON_MODEL_JSON_FILE_H
#define BATON_COMMON_MODEL_JSON_FILE_H

#include <jansson.h>
#include <stddef.h>

#include "common/base/status.h"

/*
 * The top-level object of `path`; the caller owns the reference. NOT_FOUND where there is no such
 * file, IO where it can't be read, INVALID_ARGUMENT for anything but one JSON object of at most
 * `limit_bytes`; the message names the file.
 */
enum bt_status bt_json_object_load(const char *path, size_t limit_bytes, struct bt_error *error,
                                   json_t **ret_root);

/* The object in `text`; messages start with `path`. */
enum bt_status bt_json_object_parse(const char *path, const char *text, size_t bytes,
                                    struct bt_error *error, json_t **ret_root);

#endif
