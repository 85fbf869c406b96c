/* What is looked at before NICs are let into the memory of a GPU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kvtransfer/rails/rdma.h"
#include "kvtransfer/ucx/context.h"

static void info(struct bt_device *device, struct bt_device_info *ret_info)
{
    (void)device;
    *ret_info = (struct bt_device_info){.peer_memory_missing = "its door is shut"};
}

static void pool_that_no_nic_reaches(void **state)
{
    const struct bt_device_ops ops = {.info = info};
    struct bt_device device = {.ops = &ops, .memory = BT_MEMORY_CUDA, .name = "cuda:3"};
    const struct kvt_transport_options options = {.pool_device = &device};
    struct bt_error error = {0};
    struct kvt_transport *transport;

    (void)state;
    assert_int_equal(kvt_rails_rdma_create(&options, &error, &transport), BT_ERR_UNAVAILABLE);
    assert_string_equal(error.text, "NICs can't be let into memory of cuda:3: its door is shut");
}

/* The settings for such pools are ones that this UCX has, whatever it can do with them. */
static void settings_of_ucx(void **state)
{
    const struct kvt_ucx_config config = {
        .tls = "tcp", .memory = BT_MEMORY_CUDA, .features = UCP_FEATURE_RMA};
    struct kvt_ucx ucx = {0};
    struct bt_error error = {0};
    enum bt_status status;

    (void)state;
    status = kvt_ucx_open(&ucx, &config, &error);
    assert_true(status == BT_OK || strstr(error.text, "this UCX") != NULL);
    kvt_ucx_close(&ucx);
}

static void versions_of_ucx(void **state)
{
    (void)state;
    assert_true(kvt_ucx_knows_gpus(1, 16) && kvt_ucx_knows_gpus(1, 20) && kvt_ucx_knows_gpus(2, 0));
    assert_false(kvt_ucx_knows_gpus(1, 15) || kvt_ucx_knows_gpus(1, 13));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pool_that_no_nic_reaches),
        cmocka_unit_test(settings_of_ucx),
        cmocka_unit_test(versions_of_ucx),
    };

    return cmocka_run_group_tests_name("gpu_pools", tests, NULL, NULL);
}
