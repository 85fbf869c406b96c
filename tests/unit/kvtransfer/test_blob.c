/* What peers tell about themselves: no damaged byte gets past the header. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "kvtransfer/ucx/blob.h"

static const struct kvt_ucx_address address = {
    .process = {.host = "kernel-and-namespace", .pid = 12, .start_ticks = 34},
    .local_port = 5,
    .port = 6,
    .family = AF_INET,
    .ip = {192, 0, 2, 7},
};

static void test_address(void **state)
{
    struct kvt_ucx_address parsed, bad = address;
    struct bt_error error;
    void *blob;
    size_t size;

    (void)state;
    assert_int_equal(kvt_ucx_address_pack(&address, &error, &blob, &size), BT_OK);
    assert_int_equal(kvt_ucx_address_unpack(blob, size, &error, &parsed), BT_OK);
    assert_string_equal(parsed.process.host, address.process.host);
    assert_int_equal(parsed.process.pid, 12);
    assert_int_equal(parsed.process.start_ticks, 34);
    assert_int_equal(parsed.local_port, 5);
    assert_int_equal(parsed.port, 6);
    assert_memory_equal(parsed.ip, address.ip, sizeof(parsed.ip));
    for (size_t i = 0; i < size; i++) {
        assert_int_equal(kvt_ucx_address_unpack(blob, i, &error, &parsed), BT_ERR_PROTOCOL);
        ((unsigned char *)blob)[i] ^= 1 << i % 8;
        assert_int_equal(kvt_ucx_address_unpack(blob, size, &error, &parsed), BT_ERR_PROTOCOL);
        ((unsigned char *)blob)[i] ^= 1 << i % 8;
    }
    assert_int_equal(kvt_ucx_address_unpack(NULL, 0, &error, &parsed), BT_ERR_PROTOCOL);
    free(blob);

    memset(bad.process.host, 'x', sizeof(bad.process.host)); /* sealed well, but nonsense */
    assert_int_equal(kvt_ucx_address_pack(&bad, &error, &blob, &size), BT_OK);
    assert_int_equal(kvt_ucx_address_unpack(blob, size, &error, &parsed), BT_ERR_PROTOCOL);
    free(blob);
    bad = address;
    bad.family = 77;
    assert_int_equal(kvt_ucx_address_pack(&bad, &error, &blob, &size), BT_OK);
    assert_int_equal(kvt_ucx_address_unpack(blob, size, &error, &parsed), BT_ERR_PROTOCOL);
    free(blob);
}

static void test_key(void **state)
{
    const struct kvt_ucx_key key = {.base = 0x7000, .bytes = 0x1000};
    const unsigned char rkey[] = {1, 2, 3, 4, 5};
    struct kvt_ucx_key parsed;
    struct kvt_ucx_address not_an_address;
    struct bt_error error;
    const void *parsed_rkey;
    size_t size, rkey_size;
    void *blob;

    (void)state;
    assert_int_equal(kvt_ucx_key_pack(&key, rkey, sizeof(rkey), &error, &blob, &size), BT_OK);
    assert_int_equal(kvt_ucx_key_unpack(blob, size, &error, &parsed, &parsed_rkey, &rkey_size),
                     BT_OK);
    assert_int_equal(parsed.base, 0x7000);
    assert_int_equal(parsed.bytes, 0x1000);
    assert_int_equal(rkey_size, sizeof(rkey));
    assert_memory_equal(parsed_rkey, rkey, sizeof(rkey));
    assert_int_equal(kvt_ucx_address_unpack(blob, size, &error, &not_an_address), BT_ERR_PROTOCOL);
    assert_non_null(strstr(error.text, "transport address: these bytes are not one"));
    free(blob);
    assert_int_equal(kvt_ucx_key_pack(&key, rkey, 0, &error, &blob, &size), BT_OK);
    assert_int_equal(kvt_ucx_key_unpack(blob, size, &error, &parsed, &parsed_rkey, &rkey_size),
                     BT_ERR_PROTOCOL);
    free(blob);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_address),
        cmocka_unit_test(test_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
