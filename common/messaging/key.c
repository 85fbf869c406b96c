#include "common/messaging/key.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/file.h"

#define SECRET_WORD           "secret-key"
#define MAX_SECRET_FILE_BYTES 4096
#define MAX_ALLOW_FILE_BYTES  (8u << 20)

static int hex_value(char digit)
{
    if (digit >= '0' && digit <= '9') {
        return digit - '0';
    }
    char lower = (char)(digit | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

bool bt_key_from_hex(const char *hex, size_t size, struct bt_key *ret_key)
{
    struct bt_key key;
    unsigned any = 0;
    bool good = size == BT_KEY_HEX_DIGITS;
    for (size_t i = 0; good && i < BT_KEY_BYTES; i++) {
        int high = hex_value(hex[2 * i]);
        int low = hex_value(hex[2 * i + 1]);
        good = high >= 0 && low >= 0;
        key.bytes[i] = (unsigned char)((unsigned)high << 4 | (unsigned)low);
        any |= key.bytes[i];
    }
    good = good && any;
    if (good) {
        *ret_key = key;
    }
    explicit_bzero(&key, sizeof key);
    return good;
}

void bt_key_to_hex(const struct bt_key *key, char ret_hex[BT_KEY_HEX_SIZE])
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < BT_KEY_BYTES; i++) {
        ret_hex[2 * i] = digits[key->bytes[i] >> 4];
        ret_hex[2 * i + 1] = digits[key->bytes[i] & 15];
    }
    ret_hex[BT_KEY_HEX_DIGITS] = '\0';
}

bool bt_key_equal(const struct bt_key *a, const struct bt_key *b)
{
    return memcmp(a->bytes, b->bytes, BT_KEY_BYTES) == 0;
}

/* ------------------------------------------------------------------ lines of words */

struct word {
    const char *at;
    size_t size;
};

struct lines {
    const char *at;
    const char *end;
    size_t number; /* of the line that lines_next gave, from 1 */
};

static bool blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* The words of the line before its comment; returns their count, of which `limit` are filled in. */
static size_t words_split(const char *at, const char *end, struct word *ret_words, size_t limit)
{
    size_t count = 0;
    for (;;) {
        while (at < end && blank(*at)) {
            at++;
        }
        if (at == end || *at == '#') {
            return count;
        }
        const char *start = at;
        while (at < end && !blank(*at) && *at != '#') {
            at++;
        }
        if (count < limit) {
            ret_words[count] = (struct word){start, (size_t)(at - start)};
        }
        count++;
    }
}

/* The next line that holds words; 0 at the end of the text. */
static size_t lines_next(struct lines *lines, struct word *ret_words, size_t limit)
{
    size_t count = 0;
    while (count == 0 && lines->at < lines->end) {
        const char *stop = memchr(lines->at, '\n', (size_t)(lines->end - lines->at));
        stop = stop ? stop : lines->end;
        count = words_split(lines->at, stop, ret_words, limit);
        lines->at = stop < lines->end ? stop + 1 : stop;
        lines->number++;
    }
    return count;
}

/* ------------------------------------------------------------------ who is admitted */

static bool name_copy(struct word word, char ret_name[BT_KEY_NAME_SIZE])
{
    if (word.size >= BT_KEY_NAME_SIZE) {
        return false;
    }
    for (size_t i = 0; i < word.size; i++) {
        unsigned char c = (unsigned char)word.at[i];
        if (c >= 0x80 || !(isalnum(c) || c == '.' || c == '_' || c == '-')) {
            return false;
        }
    }
    memcpy(ret_name, word.at, word.size);
    ret_name[word.size] = '\0';
    return true;
}

static enum bt_status line_parse(const struct lines *lines, const struct word *words, size_t count,
                                 struct bt_error *error, struct bt_allow_line *ret_line)
{
    if (!bt_key_from_hex(words[0].at, words[0].size, &ret_line->key)) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "line %zu: does not start with a public key of %d hex digits",
                            lines->number, BT_KEY_HEX_DIGITS);
    }
    if (count != 2 || !name_copy(words[1], ret_line->name)) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "line %zu: behind the key stands one name of at most %d characters of "
                            "A-Z a-z 0-9 . _ -",
                            lines->number, BT_KEY_NAME_SIZE - 1);
    }
    return BT_OK;
}

static int line_compare(const void *a, const void *b)
{
    const struct bt_allow_line *left = a, *right = b;
    return memcmp(left->key.bytes, right->key.bytes, BT_KEY_BYTES);
}

/* Sorts the lines. */
static enum bt_status lines_check(struct bt_allow_list *list, struct bt_error *error)
{
    if (list->count == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "holds no key");
    }
    qsort(list->lines, list->count, sizeof *list->lines, line_compare);
    for (size_t i = 1; i < list->count; i++) {
        if (bt_key_equal(&list->lines[i - 1].key, &list->lines[i].key)) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "the same key stands there for '%s' and for '%s'",
                                list->lines[i - 1].name, list->lines[i].name);
        }
    }
    return BT_OK;
}

static enum bt_status line_add(struct bt_allow_list *list, const struct bt_allow_line *line,
                               struct bt_error *error)
{
    if (list->count == BT_ALLOW_MAX_KEYS) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "more than %d keys", BT_ALLOW_MAX_KEYS);
    }
    if ((list->count & (list->count - 1)) == 0) { /* full: capacities are powers of two */
        size_t capacity = list->count > 0 ? 2 * list->count : 1;
        void *grown = realloc(list->lines, capacity * sizeof *list->lines);
        if (!grown) {
            return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for %zu keys", capacity);
        }
        list->lines = grown;
    }
    list->lines[list->count++] = *line;
    return BT_OK;
}

enum bt_status bt_allow_list_parse(const char *text, size_t size, struct bt_error *error,
                                   struct bt_allow_list *ret_list)
{
    struct lines lines = {text, text + size, 0};
    struct bt_allow_list list = {0};
    struct word words[2];
    size_t count;
    enum bt_status status = BT_OK;
    while (status == BT_OK && (count = lines_next(&lines, words, 2)) > 0) {
        struct bt_allow_line line;
        status = line_parse(&lines, words, count, error, &line);
        if (status == BT_OK) {
            status = line_add(&list, &line, error);
        }
    }
    if (status == BT_OK) {
        status = lines_check(&list, error);
    }
    if (status != BT_OK) {
        bt_allow_list_finish(&list);
        return status;
    }
    *ret_list = list;
    return BT_OK;
}

enum bt_status bt_allow_list_read(const char *path, struct bt_error *error,
                                  struct bt_allow_list *ret_list)
{
    char *text;
    size_t size;
    enum bt_status status = bt_file_read(path, MAX_ALLOW_FILE_BYTES, error, &text, &size);
    if (status != BT_OK) {
        return status;
    }
    status = bt_allow_list_parse(text, size, error, ret_list);
    if (status != BT_OK) {
        bt_error_prefix(error, "%s", path);
    }
    explicit_bzero(text, size); /* in case it was another file than it should be */
    free(text);
    return status;
}

void bt_allow_list_finish(struct bt_allow_list *list)
{
    free(list->lines);
    *list = (struct bt_allow_list){0};
}

/* ------------------------------------------------------------------ the own secret */

enum bt_status bt_secret_parse(const char *text, size_t size, struct bt_error *error,
                               struct bt_key *ret_secret)
{
    struct lines lines = {text, text + size, 0};
    struct word words[2], rest[1];
    size_t count = lines_next(&lines, words, 2);
    bool good = count == 2 && words[0].size == sizeof SECRET_WORD - 1 &&
                memcmp(words[0].at, SECRET_WORD, sizeof SECRET_WORD - 1) == 0 &&
                bt_key_from_hex(words[1].at, words[1].size, ret_secret);
    if (good && lines_next(&lines, rest, 1) > 0) {
        good = false;
        explicit_bzero(ret_secret, sizeof *ret_secret);
    }
    return good ? BT_OK
                : bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                               "must hold one line, '" SECRET_WORD "' and %d hex digits",
                               BT_KEY_HEX_DIGITS);
}

static enum bt_status owner_check(int fd, const char *path, struct bt_error *error)
{
    struct stat info;
    if (fstat(fd, &info) != 0) {
        return bt_error_set(error, BT_ERR_IO, "%s: %s", path, strerror(errno));
    }
    if (info.st_uid != geteuid() && info.st_uid != 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s: a secret key must belong to the user that runs this, or root",
                            path);
    }
    /* What root made for a group is how secrets are mounted for a user that is not root. */
    bool for_group = info.st_uid == 0 && geteuid() != 0;
    if (info.st_mode & (S_IRWXO | (for_group ? S_IWGRP | S_IXGRP : S_IRWXG))) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s: mode %04o lets others at the secret key; it must be 0600 or 0400 "
                            "(chmod 600), or 0640 of root for a group",
                            path, (unsigned)info.st_mode & 07777u);
    }
    return BT_OK;
}

/* At most `size` bytes into memory that the caller wipes. */
static enum bt_status secret_load(int fd, const char *path, char *buffer, size_t size,
                                  struct bt_error *error, size_t *ret_size)
{
    size_t done = 0;
    while (done < size) {
        ssize_t got = read(fd, buffer + done, size - done);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return bt_error_set(error, BT_ERR_IO, "%s: %s", path, strerror(errno));
        }
        if (got == 0) {
            *ret_size = done;
            return BT_OK;
        }
        done += (size_t)got;
    }
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: %d bytes or more is no secret key",
                        path, MAX_SECRET_FILE_BYTES);
}

enum bt_status bt_secret_read(const char *path, struct bt_error *error, struct bt_key *ret_secret)
{
    char buffer[MAX_SECRET_FILE_BYTES];
    int fd;
    size_t size;
    enum bt_status status = bt_file_open(path, error, &fd, &size);
    if (status != BT_OK) {
        return status;
    }
    status = owner_check(fd, path, error); /* of what was opened, not of what the path names now */
    if (status == BT_OK) {
        status = secret_load(fd, path, buffer, sizeof buffer, error, &size);
    }
    if (status == BT_OK) {
        status = bt_secret_parse(buffer, size, error, ret_secret);
        if (status != BT_OK) {
            bt_error_prefix(error, "%s", path);
        }
    }
    explicit_bzero(buffer, sizeof buffer);
    close(fd);
    return status;
}

/* ------------------------------------------------------------------ endpoints */

enum bt_status bt_endpoint_split(const char *endpoint, struct bt_error *error,
                                 char ret_address[BT_ENDPOINT_SIZE], bool *ret_has_key,
                                 struct bt_key *ret_key)
{
    size_t size = strcspn(endpoint, "#");
    if (size >= BT_ENDPOINT_SIZE) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%.100s…: name too long", endpoint);
    }
    const char *key = endpoint + size + 1;
    if (endpoint[size] && !bt_key_from_hex(key, strlen(key), ret_key)) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%.*s: behind the # of an endpoint stands a public key of %d hex "
                            "digits",
                            (int)size, endpoint, BT_KEY_HEX_DIGITS);
    }
    memcpy(ret_address, endpoint, size);
    ret_address[size] = '\0';
    *ret_has_key = endpoint[size] != '\0';
    return BT_OK;
}
