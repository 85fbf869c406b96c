#include "tests/unit/model/scratch.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void join(const char *dir, const char *name, char *ret_path, size_t size)
{
    assert_true((size_t)snprintf(ret_path, size, "%s/%s", dir, name) < size);
}

static uint8_t *read_file(const char *path, size_t *ret_bytes)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    long bytes = ftell(file);
    assert_true(bytes >= 0);
    rewind(file);
    uint8_t *data = malloc((size_t)bytes + 1);
    assert_int_equal(fread(data, 1, (size_t)bytes, file), bytes);
    fclose(file);
    *ret_bytes = (size_t)bytes;
    return data;
}

void scratch_open(const char *variant, struct scratch *ret_scratch)
{
    const char *root = getenv("TMPDIR");
    char source[512], path[1024];
    snprintf(ret_scratch->dir, sizeof(ret_scratch->dir), "%s/baton-model-XXXXXX",
             root ? root : "/tmp");
    assert_non_null(mkdtemp(ret_scratch->dir));
    join(TESTS_MODELS, variant, source, sizeof(source));
    DIR *dir = opendir(source);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_type == DT_DIR || !strncmp(entry->d_name, "golden", 6))
            continue;
        size_t bytes;
        join(source, entry->d_name, path, sizeof(path));
        uint8_t *data = read_file(path, &bytes);
        scratch_write(ret_scratch, entry->d_name, data, bytes);
        free(data);
    }
    closedir(dir);
}

void scratch_close(struct scratch *scratch)
{
    DIR *dir = opendir(scratch->dir);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            scratch_remove(scratch, entry->d_name);
    closedir(dir);
    assert_int_equal(rmdir(scratch->dir), 0);
}

void scratch_write(const struct scratch *scratch, const char *name, const void *data, size_t bytes)
{
    char path[1024];
    join(scratch->dir, name, path, sizeof(path));
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

void scratch_remove(const struct scratch *scratch, const char *name)
{
    char path[1024];
    join(scratch->dir, name, path, sizeof(path));
    assert_int_equal(unlink(path), 0);
}

uint8_t *scratch_read(const struct scratch *scratch, const char *name, size_t *ret_bytes)
{
    char path[1024];
    join(scratch->dir, name, path, sizeof(path));
    return read_file(path, ret_bytes);
}

json_t *scratch_read_json(const struct scratch *scratch, const char *name)
{
    size_t bytes;
    uint8_t *text = scratch_read(scratch, name, &bytes);
    json_t *root = json_loadb((const char *)text, bytes, 0, NULL);
    assert_non_null(root);
    free(text);
    return root;
}

void scratch_write_json(const struct scratch *scratch, const char *name, const json_t *root)
{
    char *text = json_dumps(root, 0);
    scratch_write(scratch, name, text, strlen(text));
    free(text);
}

json_t *scratch_read_header(const struct scratch *scratch, const char *name)
{
    size_t bytes;
    uint64_t length;
    uint8_t *file = scratch_read(scratch, name, &bytes);
    memcpy(&length, file, sizeof(length));
    json_t *header = json_loadb((const char *)file + 8, (size_t)length, 0, NULL);
    assert_non_null(header);
    free(file);
    return header;
}

void scratch_write_header_text(const struct scratch *scratch, const char *name, const char *text)
{
    size_t bytes, text_bytes = (strlen(text) + 7) / 8 * 8;
    uint64_t old_length, new_length = text_bytes;
    uint8_t *old = scratch_read(scratch, name, &bytes);
    memcpy(&old_length, old, sizeof(old_length));
    size_t data_bytes = bytes - 8 - (size_t)old_length;
    uint8_t *file = malloc(8 + text_bytes + data_bytes);
    memcpy(file, &new_length, 8);
    memset(file + 8, ' ', text_bytes);
    memcpy(file + 8, text, strlen(text));
    memcpy(file + 8 + text_bytes, old + 8 + old_length, data_bytes);
    scratch_write(scratch, name, file, 8 + text_bytes + data_bytes);
    free(file);
    free(old);
}

void scratch_write_header(const struct scratch *scratch, const char *name, const json_t *header)
{
    char *text = json_dumps(header, JSON_COMPACT);
    scratch_write_header_text(scratch, name, text);
    free(text);
}
