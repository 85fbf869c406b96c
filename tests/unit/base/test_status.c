#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/status.h"

static void test_names_round_trip(void **state)
{
    (void)state;
    int named = 0;
    for (int status = -100; status <= 1; status++) {
        const char *name = bt_status_name((enum bt_status)status);
        if (strcmp(name, "unknown") != 0) {
            assert_int_equal(bt_status_from_name(name), status);
            named++;
        }
    }
    assert_int_equal(named, 20); /* as many as status.h lists */
    assert_string_equal(bt_status_name(BT_ERR_INVALID_ARGUMENT), "invalid_argument");
    assert_string_equal(bt_status_name(BT_ERR_PEER_LOST), "peer_lost");
    assert_int_equal(bt_status_from_name("what"), BT_ERR_PROTOCOL);
    assert_int_equal(bt_status_from_name(""), BT_ERR_PROTOCOL);
}

static void test_error_set(void **state)
{
    (void)state;
    struct bt_error error;
    assert_int_equal(bt_error_set(&error, BT_ERR_IO, "file %s: line\n%d", "a", 3), BT_ERR_IO);
    assert_int_equal(error.status, BT_ERR_IO);
    assert_string_equal(error.text, "file a: line 3");
    bt_error_prefix(&error, "model %d", 7);
    assert_string_equal(error.text, "model 7: file a: line 3");
    assert_int_equal(bt_error_set(NULL, BT_ERR_IO, "nobody reads this"), BT_ERR_IO);
    bt_error_prefix(NULL, "nor this");
}

/* Cut text ends at a character, whatever the number of bytes before it. */
static void test_error_is_cut_at_characters(void **state)
{
    (void)state;
    for (int lead = 0; lead < 8; lead++) {
        char text[BT_ERROR_TEXT_SIZE * 2] = "aaaaaaaa";
        text[lead] = '\0';
        while (strlen(text) < BT_ERROR_TEXT_SIZE + 20) {
            strcat(text, "\xf0\x9f\x99\x82");
        }
        struct bt_error error;
        bt_error_set(&error, BT_ERR_IO, "%s", text);
        size_t length = strlen(error.text);
        assert_int_equal(length, lead + (BT_ERROR_TEXT_SIZE - 1 - lead) / 4 * 4);
        bt_error_prefix(&error, "%d", lead);
        assert_memory_equal(error.text + 1, ": a", lead ? 3 : 2);
        assert_int_equal((strlen(error.text) - 3 - (size_t)lead) % 4, 0);
        assert_true(strlen(error.text) > length - 4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_round_trip),
        cmocka_unit_test(test_error_set),
        cmocka_unit_test(test_error_is_cut_at_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
