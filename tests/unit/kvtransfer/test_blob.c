/* What peers tell about themselves: no damaged byte gets past the header. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kvtransfer/blob.h"

static const struct bt_process_id process = {
    .host = "kernel-and-namespace", .pid = 12, .start_ticks = 34};
static const unsigned char worker[] = {9, 8, 7};

static enum bt_status unpack_address(const void *blob, size_t size, struct bt_error *error)
{
    struct bt_process_id parsed;
    const void *parsed_worker;
    size_t worker_size;

    return kvt_worker_address_unpack(KVT_BLOB_SHM_ADDRESS, blob, size, error, &parsed,
                                     &parsed_worker, &worker_size);
}

/* Rule 9. */
static void test_address(void **state)
{
    struct bt_process_id parsed, bad = process;
    struct bt_error error;
    const void *parsed_worker;
    size_t size, worker_size;
    void *blob;

    (void)state;
    assert_int_equal(kvt_worker_address_pack(KVT_BLOB_SHM_ADDRESS, &process, worker, sizeof(worker),
                                             &error, &blob, &size),
                     BT_OK);
    assert_int_equal(kvt_worker_address_unpack(KVT_BLOB_SHM_ADDRESS, blob, size, &error, &parsed,
                                               &parsed_worker, &worker_size),
                     BT_OK);
    assert_string_equal(parsed.host, process.host);
    assert_int_equal(parsed.pid, 12);
    assert_int_equal(parsed.start_ticks, 34);
    assert_int_equal(worker_size, sizeof(worker));
    assert_memory_equal(parsed_worker, worker, sizeof(worker));
    for (size_t i = 0; i < size; i++) {
        assert_int_equal(unpack_address(blob, i, &error), BT_ERR_PROTOCOL);
        ((unsigned char *)blob)[i] ^= 1 << i % 8;
        assert_int_equal(unpack_address(blob, size, &error), BT_ERR_PROTOCOL);
        ((unsigned char *)blob)[i] ^= 1 << i % 8;
    }
    assert_int_equal(unpack_address(NULL, 0, &error), BT_ERR_PROTOCOL);
    assert_int_equal(kvt_worker_address_unpack(KVT_BLOB_RDMA_ADDRESS, blob, size, &error, &parsed,
                                               &parsed_worker, &worker_size),
                     BT_ERR_PROTOCOL); /* of another transport */
    free(blob);

    memset(bad.host, 'x', sizeof(bad.host)); /* sealed well, but nonsense */
    assert_int_equal(kvt_worker_address_pack(KVT_BLOB_SHM_ADDRESS, &bad, worker, sizeof(worker),
                                             &error, &blob, &size),
                     BT_OK);
    assert_int_equal(unpack_address(blob, size, &error), BT_ERR_PROTOCOL);
    free(blob);
    assert_int_equal(
        kvt_worker_address_pack(KVT_BLOB_SHM_ADDRESS, &process, NULL, 0, &error, &blob, &size),
        BT_OK);
    assert_int_equal(unpack_address(blob, size, &error), BT_ERR_PROTOCOL);
    free(blob);
}

/* Rule 9. */
static void test_key(void **state)
{
    const struct kvt_key_range range = {.base = 0x7000, .bytes = 0x1000};
    const unsigned char rkey[] = {1, 2, 3, 4, 5};
    struct kvt_key_range parsed;
    struct bt_error error;
    const void *parsed_rkey;
    size_t size, rkey_size;
    void *blob;

    (void)state;
    assert_int_equal(
        kvt_key_pack(KVT_BLOB_SHM_KEY, &range, rkey, sizeof(rkey), &error, &blob, &size), BT_OK);
    assert_int_equal(
        kvt_key_unpack(KVT_BLOB_SHM_KEY, blob, size, &error, &parsed, &parsed_rkey, &rkey_size),
        BT_OK);
    assert_int_equal(parsed.base, 0x7000);
    assert_int_equal(parsed.bytes, 0x1000);
    assert_int_equal(rkey_size, sizeof(rkey));
    assert_memory_equal(parsed_rkey, rkey, sizeof(rkey));
    assert_int_equal(unpack_address(blob, size, &error), BT_ERR_PROTOCOL);
    assert_non_null(strstr(error.text, "transport address: these bytes are not one"));
    free(blob);
}

/* Rules 1 and 9. */
static void test_range(void **state)
{
    const struct kvt_key_range range = {.base = 100, .bytes = 50};

    (void)state;
    assert_true(kvt_key_range_has(&range, 100, 50));
    assert_true(kvt_key_range_has(&range, 150, 0));
    assert_false(kvt_key_range_has(&range, 99, 1));
    assert_false(kvt_key_range_has(&range, 100, 51));
    assert_false(kvt_key_range_has(&range, 149, 2));
    assert_false(kvt_key_range_has(&range, UINT64_MAX, 2));
    assert_false(kvt_key_range_has(&range, 101, UINT64_MAX));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_address),
        cmocka_unit_test(test_key),
        cmocka_unit_test(test_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
