/*
 * CURVE keys as text: in files, in lists of who is admitted, behind the address of an endpoint.
 * Pure but for the functions that take a path. Error texts name files and lines and never repeat
 * what stands there: it may be a secret in the wrong place.
 */
#ifndef BATON_COMMON_MESSAGING_KEY_H
#define BATON_COMMON_MESSAGING_KEY_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/status.h"

#define BT_KEY_BYTES      32
#define BT_KEY_HEX_DIGITS 64
#define BT_KEY_HEX_SIZE   (BT_KEY_HEX_DIGITS + 1)
#define BT_KEY_NAME_SIZE  64 /* names have 1 to 63 characters of A-Z a-z 0-9 . _ - */
#define BT_ALLOW_MAX_KEYS 16384
#define BT_ENDPOINT_SIZE  512 /* of an address, without a key */

struct bt_key {
    unsigned char bytes[BT_KEY_BYTES];
};

/* Exactly 64 hex digits, and not all zeros: that is no key. */
bool bt_key_from_hex(const char *hex, size_t size, struct bt_key *ret_key);
void bt_key_to_hex(const struct bt_key *key, char ret_hex[BT_KEY_HEX_SIZE]);
bool bt_key_equal(const struct bt_key *a, const struct bt_key *b);

/* ------------------------------------------------------------------ who is admitted */

struct bt_allow_line {
    struct bt_key key;
    char name[BT_KEY_NAME_SIZE];
};

struct bt_allow_list {
    struct bt_allow_line *lines;
    size_t count;
};

/*
 * Lines of "KEY NAME", empty ones, and comments from # to the end of a line. INVALID_ARGUMENT: what
 * is wrong in which line; a key that stands there twice; no key at all, since a list that admits
 * nobody is a file that was cut off.
 */
enum bt_status bt_allow_list_parse(const char *text, size_t size, struct bt_error *error,
                                   struct bt_allow_list *ret_list);
/* Errors of bt_file_read too; texts start with the path. */
enum bt_status bt_allow_list_read(const char *path, struct bt_error *error,
                                  struct bt_allow_list *ret_list);
void bt_allow_list_finish(struct bt_allow_list *list);

/* ------------------------------------------------------------------ the own secret */

/* "secret-key KEY" and comments. The caller wipes `ret_secret`. */
enum bt_status bt_secret_parse(const char *text, size_t size, struct bt_error *error,
                               struct bt_key *ret_secret);
/* INVALID_ARGUMENT too where the file belongs to another user or others than its owner may read or
 * write it; of a file of root's that another user reads, a group may read it. */
enum bt_status bt_secret_read(const char *path, struct bt_error *error, struct bt_key *ret_secret);

/* ------------------------------------------------------------------ endpoints */

/*
 * "tcp://HOST:PORT#KEY" or, without a key, "tcp://HOST:PORT"; the same with ipc://PATH, where a
 * path holds no #. INVALID_ARGUMENT: something after # that is no key, or too long.
 */
enum bt_status bt_endpoint_split(const char *endpoint, struct bt_error *error,
                                 char ret_address[BT_ENDPOINT_SIZE], bool *ret_has_key,
                                 struct bt_key *ret_key);

#endif
