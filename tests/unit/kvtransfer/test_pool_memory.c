/* Memory of a pool: within what a control group leaves, zeros, placed before anything touches it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "common/base/memory.h"
#include "common/kernels/cpus.h"
#include "kvtransfer/pool_memory.h"

#define BYTES ((size_t)4 << 20)

static uint64_t available;
static struct {
    void *start;
    size_t bytes, touched; /* pages that were there when it was placed */
} placed;

uint64_t __wrap_bt_memory_available_bytes(void);
uint32_t __wrap_bt_cpus_place_memory_near_thread(void *start, size_t bytes);

uint64_t __wrap_bt_memory_available_bytes(void)
{
    return available;
}

uint32_t __wrap_bt_cpus_place_memory_near_thread(void *start, size_t bytes)
{
    unsigned char there[BYTES / 4096];
    placed.start = start;
    placed.bytes = bytes;
    placed.touched = 0;
    assert_int_equal(mincore(start, bytes, there), 0);
    for (size_t i = 0; i < sizeof(there); i++)
        placed.touched += there[i] & 1;
    return 1;
}

static void test_more_than_there_is(void **state)
{
    (void)state;
    struct bt_error error = {0};
    void *base = NULL;
    available = BYTES - 1;
    placed.start = NULL;
    assert_int_equal(kvt_pool_memory_check(BYTES, &error), BT_ERR_NO_MEMORY);
    assert_non_null(strstr(error.text, "4194304 bytes: only 4194303 bytes"));
    assert_int_equal(kvt_pool_memory_map(BYTES, &error, &base), BT_ERR_NO_MEMORY);
    assert_null(base);
    assert_null(placed.start);
}

static void test_placed_before_it_is_touched(void **state)
{
    (void)state;
    struct bt_error error;
    void *base;
    available = BYTES;
    assert_int_equal(kvt_pool_memory_map(BYTES, &error, &base), BT_OK);
    assert_ptr_equal(placed.start, base);
    assert_int_equal(placed.bytes, BYTES);
    assert_int_equal(placed.touched, 0);
    for (size_t i = 0; i < BYTES; i++)
        assert_int_equal(((char *)base)[i], 0);
    munmap(base, BYTES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_more_than_there_is),
        cmocka_unit_test(test_placed_before_it_is_touched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
