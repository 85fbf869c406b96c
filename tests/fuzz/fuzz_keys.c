/*
 * Lists of keys, secret files and endpoints from arbitrary text: the first byte says which. What is
 * taken must be the same when it is written out and read again; what is refused is not repeated.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/messaging/key.h"
#include "tests/fuzz/driver.h"

#define HEX "00112233445566778899aabbccddeeff0123456789abcdef0123456789ABCDEF"

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void list_try(const char *text, size_t size)
{
    struct bt_allow_list list, again;
    struct bt_error error = {0};
    enum bt_status status = bt_allow_list_parse(text, size, &error, &list);
    if (status != BT_OK) {
        must(status == BT_ERR_INVALID_ARGUMENT && error.text[0], "a refusal without a reason");
        return;
    }
    must(list.count > 0, "an empty list");
    for (size_t i = 0; i < list.count; i++) {
        char line[BT_KEY_HEX_SIZE + BT_KEY_NAME_SIZE];
        char hex[BT_KEY_HEX_SIZE];
        bt_key_to_hex(&list.lines[i].key, hex);
        int length = snprintf(line, sizeof line, "%s %s", hex, list.lines[i].name);
        must(bt_allow_list_parse(line, (size_t)length, NULL, &again) == BT_OK, "not taken again");
        must(again.count == 1 && bt_key_equal(&again.lines[0].key, &list.lines[i].key) &&
                 strcmp(again.lines[0].name, list.lines[i].name) == 0,
             "taken as something else");
        bt_allow_list_finish(&again);
    }
    bt_allow_list_finish(&list);
}

static void secret_try(const char *text, size_t size)
{
    struct bt_key key;
    struct bt_error error = {0};
    if (bt_secret_parse(text, size, &error, &key) != BT_OK) {
        must(!strstr(error.text, "00112233"), "a secret in a message");
    }
}

static void endpoint_try(const char *text, size_t size)
{
    char address[BT_ENDPOINT_SIZE], again[BT_ENDPOINT_SIZE + BT_KEY_HEX_SIZE];
    char hex[BT_KEY_HEX_SIZE];
    bool has_key;
    struct bt_key key;
    char *endpoint = strndup(text, size);
    must(endpoint != NULL, "no memory");
    if (bt_endpoint_split(endpoint, NULL, address, &has_key, &key) == BT_OK) {
        must(!strchr(address, '#') && strncmp(address, endpoint, strlen(address)) == 0,
             "another address");
        if (has_key) {
            bt_key_to_hex(&key, hex);
        }
        snprintf(again, sizeof again, "%s%s%s", address, has_key ? "#" : "", has_key ? hex : "");
        must(strcasecmp(again, endpoint) == 0, "something was left out");
    }
    free(endpoint);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    static void (*const tries[])(const char *, size_t) = {list_try, secret_try, endpoint_try};
    /* Exactly as large as it is, for the address sanitizer. */
    char *text = malloc(size > 1 ? size - 1 : 1);
    must(text != NULL, "no memory");
    memcpy(text, data + 1, size - 1);
    tries[data[0] % 3](text, size - 1);
    free(text);
    return 0;
}

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    static const char *const seeds[] = {
        "\x03" HEX " router-0 # the router\r\n\n# and\nff" HEX "\n",
        "\x03" HEX " a\n1111111111111111111111111111111111111111111111111111111111111111 b\n",
        "\x01# mine\nsecret-key " HEX "\n",
        "\x02tcp://127.0.0.1:5557#" HEX,
        "\x02tcp://[::1]:5557",
    };
    return fuzz_seed_text(seeds, sizeof seeds / sizeof seeds[0], index, ret_data, capacity);
}
