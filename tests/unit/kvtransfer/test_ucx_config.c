/* What is asked of UCX is in words that this version of it takes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kvtransfer/ucx/context.h"

/* A device that nobody has: words are read before devices are looked for. */
static void test_words_of_rdma(void **state)
{
    struct kvt_ucx_config config = {
        .tls = "ib", .devices = "baton_none:1", .gid_index = "0", .features = UCP_FEATURE_RMA};
    struct kvt_ucx ucx = {0};
    struct bt_error error = {0};

    (void)state;
    unsetenv("UCX_IB_GID_INDEX");
    print_message("ucx %s\n", ucp_get_version_string());
    assert_int_equal(kvt_ucx_open(&ucx, &config, &error), BT_ERR_UNAVAILABLE);
    if (!strstr(error.text, ucs_status_string(UCS_ERR_NO_DEVICE)))
        fail_msg("%s", error.text);
    kvt_ucx_close(&ucx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_words_of_rdma)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
