/* A JSON file's object, read key by key: the first fault sticks and later reads do nothing, so that
 * the message names file, entry and key of what is wrong first. Inside common/planner only. */
#ifndef BATON_COMMON_PLANNER_JSON_READER_H
#define BATON_COMMON_PLANNER_JSON_READER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

struct bt_plan_reader {
    const json_t *object;
    const char *path;
    char prefix[96]; /* "" or "entry.": before the key in messages */
    struct bt_error *error;
    enum bt_status status;
};

/* The object in a file of at most 1 MiB, or in a text; the caller owns the reference. */
enum bt_status bt_plan_json_load(const char *path, struct bt_error *error, json_t **ret_root);
enum bt_status bt_plan_json_parse(const char *path, const char *text, size_t bytes,
                                  struct bt_error *error, json_t **ret_root);

void bt_plan_reader_refuse(struct bt_plan_reader *reader, const char *key, const char *what);
/* Null counts as absent. */
bool bt_plan_reader_has(const struct bt_plan_reader *reader, const char *key);
/* Every key has to be one of `keys` (ends with NULL). */
void bt_plan_reader_expect(struct bt_plan_reader *reader, const char *const *keys);

/* Required where `otherwise` is NULL; outside of [min, max] is a fault. */
double bt_plan_reader_number(struct bt_plan_reader *reader, const char *key, double min, double max,
                             const double *otherwise);
uint32_t bt_plan_reader_u32(struct bt_plan_reader *reader, const char *key, uint32_t min,
                            uint32_t max, const uint32_t *otherwise);
/* NULL on a fault; valid as long as the object. */
const char *bt_plan_reader_string(struct bt_plan_reader *reader, const char *key);

#endif
