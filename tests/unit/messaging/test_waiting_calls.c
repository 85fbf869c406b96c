#include <stdio.h>
#include <string.h>

#include "common/messaging/waiting_calls.h"
#include "tests/unit/messaging/harness.h"

#define CALLS (BT_WAITING_CALLS_MAX + 2)

static struct harness harness;
static struct outcome outcomes[CALLS];
static struct bt_rpc_pending *pending[CALLS];
static struct bt_waiting_calls waiting;

static void start(uint32_t i)
{
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    struct bt_rpc_call_spec spec = harness_spec("test/hold", &request, &outcomes[i]);
    outcomes[i].harness = &harness;
    assert_int_equal(bt_rpc_client_call(harness.client, &spec, NULL, &pending[i]), BT_OK);
}

static void wait_for(uint32_t i)
{
    start(i);
    harness_run_size(&harness, &harness.held_count, 1);
    bt_waiting_calls_add(&waiting, harness.held[0], "the test");
    harness.held_count = 0;
}

/* One more than there is room for is refused, one that is cancelled makes room, the others end
 * together, well. */
static void test_calls_end_together(void **state)
{
    (void)state;
    harness_init(&harness, NULL);
    for (uint32_t i = 0; i < BT_WAITING_CALLS_MAX; i++) {
        wait_for(i);
    }
    wait_for(BT_WAITING_CALLS_MAX);
    harness_run_int(&harness, &outcomes[BT_WAITING_CALLS_MAX].ends, 1);
    assert_int_equal(outcomes[BT_WAITING_CALLS_MAX].status, BT_ERR_EXHAUSTED);
    assert_non_null(strstr(outcomes[BT_WAITING_CALLS_MAX].text, "wait for the test"));
    assert_int_equal(waiting.count, BT_WAITING_CALLS_MAX);

    bt_rpc_pending_cancel(pending[7]);
    harness_run_int(&harness, &outcomes[7].ends, 1);
    assert_int_equal(outcomes[7].status, BT_ERR_CANCELLED);
    assert_int_equal(waiting.count, BT_WAITING_CALLS_MAX - 1);
    wait_for(BT_WAITING_CALLS_MAX + 1);

    bt_waiting_calls_end(&waiting, NULL);
    assert_int_equal(waiting.count, 0);
    for (uint32_t i = 0; i < CALLS; i++) {
        harness_run_int(&harness, &outcomes[i].ends, 1);
        if (i != 7 && i != BT_WAITING_CALLS_MAX) {
            assert_int_equal(outcomes[i].status, BT_OK);
        }
    }
    assert_int_equal(bt_rpc_server_open_calls(harness.server), 0);
    harness_finish(&harness);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_calls_end_together)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
