/*
 * Typed access to the fields of a JSON body, with errors that name the field. A field that is
 * absent or null leaves its default. Pure.
 */
#ifndef BATON_ROUTER_OPENAI_BODY_H
#define BATON_ROUTER_OPENAI_BODY_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "router/openai_cut.h"
#include "router/openai_error.h"

/* Whole text must be one JSON object: no duplicate keys, no NUL in strings, UTF-8, bounded depth.
 * The message says line and column. Long arrays of ids are left in `cut`, which is
 * the caller's to finish whatever comes of it: see rt_openai_cut_ids. */
enum bt_status rt_openai_body_parse(const char *text, size_t size, uint32_t max_depth,
                                    struct rt_openai_error *error, struct rt_openai_cut *cut,
                                    json_t **ret_root);

/* "a string", "an integer", …: for messages. */
const char *rt_openai_body_type(const json_t *value);

/* NULL when absent or null. */
json_t *rt_openai_body_get(const json_t *object, const char *name);

enum bt_status rt_openai_body_bool(const json_t *object, const char *name,
                                   struct rt_openai_error *error, bool *ret_value);
/* `ret_value` stays as it is when the field is absent; `ret_there` may be NULL. */
enum bt_status rt_openai_body_integer(const json_t *object, const char *name,
                                      struct rt_openai_error *error, int64_t *ret_value,
                                      bool *ret_there);
enum bt_status rt_openai_body_string(const json_t *object, const char *name,
                                     struct rt_openai_error *error, const char **ret_value);

#endif
