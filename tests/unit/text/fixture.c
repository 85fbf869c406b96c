#include "tests/unit/text/fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const model_files[] = {"tokenizer.json", "tokenizer_config.json",
                                          "chat_template.jinja"};

static const char *environment(const char *name)
{
    const char *value = getenv(name);
    if (!value)
        fail_msg("%s is not set: run this by meson", name);
    return value;
}

const char *fixture_tiny_dir(void)
{
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/tiny", environment("BATON_TEST_MODELS"));
    return path;
}

const char *fixture_path(const char *name)
{
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", environment("BATON_TEST_SOURCE"), name);
    return path;
}

json_t *fixture_json(const char *path)
{
    json_error_t error;
    json_t *value = json_load_file(path, JSON_ALLOW_NUL, &error);
    if (!value)
        fail_msg("%s: %s", path, error.text);
    return value;
}

json_t *fixture_model_json(const char *name)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s", fixture_tiny_dir(), name);
    return fixture_json(path);
}

char *fixture_hex(const json_t *object, const char *key, size_t *ret_size)
{
    const char *hex = json_string_value(json_object_get(object, key));
    assert_non_null(hex);
    size_t size = strlen(hex) / 2;
    char *bytes = malloc(size + 1);
    assert_non_null(bytes);
    for (size_t i = 0; i < size; i++) {
        char pair[3] = {hex[2 * i], hex[2 * i + 1], '\0'};
        bytes[i] = (char)strtoul(pair, NULL, 16);
    }
    bytes[size] = '\0';
    *ret_size = size;
    return bytes;
}

struct bt_tokenizer *fixture_load(const char *model_dir)
{
    struct bt_error error = {0};
    struct bt_tokenizer *tokenizer = NULL;
    if (bt_tokenizer_load(model_dir, &error, &tokenizer) != BT_OK)
        fail_msg("%s", error.text);
    return tokenizer;
}

void fixture_assert_ids(const struct bt_token_buffer *ids, const json_t *expected)
{
    assert_int_equal(ids->count, json_array_size(expected));
    for (size_t i = 0; i < ids->count; i++)
        assert_int_equal(ids->ids[i], json_integer_value(json_array_get(expected, i)));
}

void fixture_dir_make(struct fixture_dir *dir)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(dir->path, sizeof dir->path, "%s/baton-text-XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir->path));
}

void fixture_dir_write(const struct fixture_dir *dir, const char *name, const char *text,
                       size_t size)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s", dir->path, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

void fixture_dir_write_json(const struct fixture_dir *dir, const char *name, const json_t *value)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY);
    assert_non_null(text);
    fixture_dir_write(dir, name, text, strlen(text));
    free(text);
}

void fixture_dir_remove(const struct fixture_dir *dir)
{
    char path[PATH_MAX + 64];
    for (size_t i = 0; i < sizeof model_files / sizeof *model_files; i++) {
        snprintf(path, sizeof path, "%s/%s", dir->path, model_files[i]);
        unlink(path);
    }
    rmdir(dir->path);
}

uint32_t fixture_random(uint64_t *state, uint32_t limit)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33) % limit;
}
