/* What the tests of common/text share: model directories, JSON fixtures, hex. cmocka assertions. */
#ifndef BATON_TESTS_UNIT_TEXT_FIXTURE_H
#define BATON_TESTS_UNIT_TEXT_FIXTURE_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "common/text/tokenizer.h"

/* BATON_TEST_MODELS and BATON_TEST_SOURCE, which meson sets. Static memory. */
const char *fixture_tiny_dir(void);
const char *fixture_path(const char *name); /* a file of this folder; valid until the next call */

/* A JSON file that must be there and right. */
json_t *fixture_json(const char *path);
json_t *fixture_model_json(const char *name); /* of the tiny model */

/* The string at `key` of `object` from hex; malloc'd. */
char *fixture_hex(const json_t *object, const char *key, size_t *ret_size);

struct bt_tokenizer *fixture_load(const char *model_dir);
void fixture_assert_ids(const struct bt_token_buffer *ids, const json_t *expected);

/* A directory under TMPDIR that is removed with what the two below wrote. */
struct fixture_dir {
    char path[PATH_MAX];
};
void fixture_dir_make(struct fixture_dir *dir);
void fixture_dir_write(const struct fixture_dir *dir, const char *name, const char *text,
                       size_t size);
void fixture_dir_write_json(const struct fixture_dir *dir, const char *name, const json_t *value);
void fixture_dir_remove(const struct fixture_dir *dir);

/* The next number of a sequence below `limit`. */
uint32_t fixture_random(uint64_t *state, uint32_t limit);

#endif
