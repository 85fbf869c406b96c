/* Keys as text: lists, secret files, endpoints. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/messaging/key.h"

#define KEY_A "00112233445566778899aabbccddeeff0123456789abcdef0123456789ABCDEF"
#define KEY_B "ff112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef"

static void test_hex(void **state)
{
    (void)state;
    struct bt_key key, other;
    char hex[BT_KEY_HEX_SIZE];
    assert_true(bt_key_from_hex(KEY_A, 64, &key));
    assert_int_equal(key.bytes[0], 0x00);
    assert_int_equal(key.bytes[1], 0x11);
    assert_int_equal(key.bytes[31], 0xef);
    bt_key_to_hex(&key, hex);
    assert_string_equal(hex, "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef");
    assert_true(bt_key_from_hex(KEY_B, 64, &other));
    assert_false(bt_key_equal(&key, &other));
    assert_true(bt_key_equal(&key, &key));
    assert_false(bt_key_from_hex(KEY_A, 63, &other));
    assert_false(bt_key_from_hex(KEY_A "0", 65, &other));
    char bad[] = KEY_A;
    for (size_t i = 0; i < 64; i++) {
        static const char wrong[] = "g/:@`G \0";
        bad[i] = wrong[i % sizeof wrong];
        assert_false(bt_key_from_hex(bad, 64, &other));
        bad[i] = KEY_A[i];
    }
    memset(bad, '0', 64);
    assert_false(bt_key_from_hex(bad, 64, &other));
}

static void test_list(void **state)
{
    (void)state;
    static const char text[] = "# who may\n"
                               "\n"
                               "  " KEY_B "\trouter-0   # the router\r\n"
                               "" KEY_A " a_b.C-9";
    struct bt_allow_list list;
    assert_int_equal(bt_allow_list_parse(text, sizeof text - 1, NULL, &list), BT_OK);
    assert_int_equal(list.count, 2);
    assert_string_equal(list.lines[0].name, "a_b.C-9");
    assert_string_equal(list.lines[1].name, "router-0");
    assert_int_equal(list.lines[1].key.bytes[0], 0xff);
    bt_allow_list_finish(&list);
}

static void expect_list_error(const char *text, size_t size, const char *part)
{
    struct bt_error error = {0};
    struct bt_allow_list list = {0};
    assert_int_equal(bt_allow_list_parse(text, size, &error, &list), BT_ERR_INVALID_ARGUMENT);
    assert_null(list.lines);
    if (!strstr(error.text, part)) {
        fail_msg("'%s' does not hold '%s'", error.text, part);
    }
    assert_null(strstr(error.text, "0011223344"));
}

static void test_bad_lists(void **state)
{
    (void)state;
    char name[80];
    char text[256];
    expect_list_error("", 0, "holds no key");
    expect_list_error("# nothing\n \n", 12, "holds no key");
#define EXPECT(text, part) expect_list_error(text, sizeof text - 1, part)
    EXPECT(KEY_B " good\n" KEY_A "\n", "line 2: behind the key");
    EXPECT(KEY_A " two names\n", "line 1: behind the key");
    EXPECT(KEY_A " n\xc3\xa4me\n", "line 1: behind the key");
    EXPECT(KEY_A " na\0me\n", "line 1: behind the key");
    EXPECT(KEY_A " #name\n", "line 1: behind the key");
    EXPECT("secret-key " KEY_A "\n", "line 1: does not start");
    EXPECT("\n\n1" KEY_A " name\n", "line 3: does not start");
    EXPECT(KEY_A " one\n" KEY_B " two\n" KEY_A " three\n", "the same key");
    memset(name, 'n', sizeof name);
    int size = snprintf(text, sizeof text, KEY_A " %.64s", name);
    expect_list_error(text, (size_t)size, "at most 63");
    struct bt_allow_list list;
    size = snprintf(text, sizeof text, KEY_A " %.63s", name);
    assert_int_equal(bt_allow_list_parse(text, (size_t)size, NULL, &list), BT_OK);
    bt_allow_list_finish(&list);
}

static void test_list_limit(void **state)
{
    (void)state;
    const size_t line = 64 + 3;
    char *text = malloc((BT_ALLOW_MAX_KEYS + 1) * line + 1);
    for (size_t i = 0; i <= BT_ALLOW_MAX_KEYS; i++) {
        sprintf(text + i * line, "%064zx n\n", i + 1);
    }
    struct bt_allow_list list;
    assert_int_equal(bt_allow_list_parse(text, BT_ALLOW_MAX_KEYS * line, NULL, &list), BT_OK);
    assert_int_equal(list.count, BT_ALLOW_MAX_KEYS);
    bt_allow_list_finish(&list);
    expect_list_error(text, (BT_ALLOW_MAX_KEYS + 1) * line, "more than 16384");
    free(text);
}

static void test_secret(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        KEY_A,
        "secret-key",
        "secret-key " KEY_A " more",
        "secret-key " KEY_A "\nsecret-key " KEY_B,
        "Secret-key " KEY_A,
        "secret-keys " KEY_A,
        "secret-key 0" KEY_A,
        KEY_A " name",
    };
    static const char good[] = "# mine\n\nsecret-key " KEY_A " # yes\n# end";
    struct bt_key key = {{0}};
    struct bt_error error = {0};
    assert_int_equal(bt_secret_parse(good, sizeof good - 1, NULL, &key), BT_OK);
    assert_int_equal(key.bytes[1], 0x11);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        key = (struct bt_key){{0}};
        assert_int_equal(bt_secret_parse(bad[i], strlen(bad[i]), &error, &key),
                         BT_ERR_INVALID_ARGUMENT);
        assert_null(strstr(error.text, "0011223344"));
        assert_int_equal(key.bytes[1], 0);
    }
}

static void test_endpoints(void **state)
{
    (void)state;
    char address[BT_ENDPOINT_SIZE];
    bool has_key;
    struct bt_key key = {{0}};
    assert_int_equal(bt_endpoint_split("tcp://h:1", NULL, address, &has_key, &key), BT_OK);
    assert_string_equal(address, "tcp://h:1");
    assert_false(has_key);
    assert_int_equal(bt_endpoint_split("tcp://[::1]:1#" KEY_A, NULL, address, &has_key, &key),
                     BT_OK);
    assert_string_equal(address, "tcp://[::1]:1");
    assert_true(has_key);
    assert_int_equal(key.bytes[31], 0xef);
    static const char *const bad[] = {"tcp://h:1#", "tcp://h:1#" KEY_A "0", "tcp://h:1##" KEY_A,
                                      "tcp://h:1#" KEY_A "#" KEY_B, "#"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(bt_endpoint_split(bad[i], NULL, address, &has_key, &key),
                         BT_ERR_INVALID_ARGUMENT);
    }
    char text[BT_ENDPOINT_SIZE + 1];
    memset(text, 'x', sizeof text);
    text[BT_ENDPOINT_SIZE - 1] = '\0';
    assert_int_equal(bt_endpoint_split(text, NULL, address, &has_key, &key), BT_OK);
    text[BT_ENDPOINT_SIZE - 1] = 'x';
    text[BT_ENDPOINT_SIZE] = '\0';
    assert_int_equal(bt_endpoint_split(text, NULL, address, &has_key, &key),
                     BT_ERR_INVALID_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hex),       cmocka_unit_test(test_list),
        cmocka_unit_test(test_bad_lists), cmocka_unit_test(test_list_limit),
        cmocka_unit_test(test_secret),    cmocka_unit_test(test_endpoints),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
