/* The CPU as a device, and the names of devices. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/kernels/device.h"

static struct bt_device *open_cpu(const char *kernels)
{
    struct bt_error error = {0};
    struct bt_device *device = NULL;
    if (bt_device_open("cpu", kernels, &error, &device) != BT_OK)
        fail_msg("%s", error.text);
    return device;
}

static void test_memory(void **state)
{
    struct bt_device *device = open_cpu("ref");
    struct bt_error error = {0};
    static const size_t sizes[] = {0, 1, 255, 256, 4097, (size_t)8 << 20};
    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        void *memories[2] = {NULL, NULL};
        assert_int_equal(bt_device_alloc(device, sizes[i], &error, &memories[0]), BT_OK);
        assert_int_equal(bt_device_alloc_host(device, sizes[i], &error, &memories[1]), BT_OK);
        for (int k = 0; k < 2; k++) {
            unsigned char *bytes = memories[k];
            assert_int_equal((uintptr_t)bytes % 256, 0);
            for (size_t at = 0; at < sizes[i]; at++)
                if (bytes[at])
                    fail_msg("byte %zu of %zu is %d", at, sizes[i], bytes[at]);
            if (sizes[i])
                memset(bytes, 0xa5, sizes[i]);
        }
        bt_device_free(device, memories[0]);
        bt_device_free_host(device, memories[1]);
    }
    bt_device_free(device, NULL);
    bt_device_free_host(device, NULL);
    bt_device_close(device);
    bt_device_close(NULL);
}

static void test_no_memory(void **state)
{
    struct bt_device *device = open_cpu("ref");
    struct bt_error error = {0};
    void *memory = NULL;
    (void)state;
    assert_int_equal(bt_device_alloc(device, SIZE_MAX - 3, &error, &memory), BT_ERR_NO_MEMORY);
    assert_non_null(strstr(error.text, "cpu: no memory for 18446744073709551612 bytes, "));
    assert_non_null(strstr(error.text, " are available"));
    assert_null(memory);
}

/* All is done on return. */
static void test_stream(void **state)
{
    struct bt_device *device = open_cpu("ref");
    struct bt_error error = {0};
    struct bt_stream *stream = NULL;
    struct bt_event *event = NULL;
    const struct bt_stream_limits limits = {.max_rows = 4, .max_cols = 8};
    char from[] = "from here", to[sizeof(from)] = "";
    (void)state;
    assert_int_equal(bt_device_enter(device, &error), BT_OK);
    assert_int_equal(bt_device_stream_create(device, &limits, NULL, &error, &stream), BT_OK);
    assert_int_equal(device->ops->event_create(device, &error, &event), BT_OK);
    bt_device_copy(device, stream, to, from, sizeof(from));
    assert_string_equal(to, from);
    bt_device_copy(device, stream, NULL, NULL, 0);
    device->ops->event_record(event, stream);
    device->ops->event_wait(event, stream);
    assert_true(device->ops->event_query(event));
    assert_int_equal(device->ops->event_synchronize(event, &error), BT_OK);
    assert_int_equal(bt_device_synchronize(device, stream, &error), BT_OK);
    assert_int_equal(device->ops->waits(device), 0);
    assert_null(device->ops->capture_begin);
    device->ops->event_destroy(event);
    bt_device_stream_destroy(device, stream);
    bt_device_stream_destroy(device, NULL);
}

static void test_info(void **state)
{
    struct bt_device *device = open_cpu(NULL);
    struct bt_device_info info;
    (void)state;
    bt_device_info(device, &info);
    assert_string_equal(info.description, "");
    assert_true(info.total_bytes > 0);
    assert_true(info.peer_memory);
    assert_string_equal(device->name, "cpu");
    assert_int_equal(device->memory, BT_MEMORY_HOST);
}

static void test_tables(void **state)
{
    const struct bt_kernels *best = NULL;
    struct bt_error error;
    (void)state;
    assert_int_equal(bt_kernels_select("auto", &error, &best), BT_OK);
    assert_string_equal(open_cpu("ref")->kernels->name, "ref");
    assert_ptr_equal(open_cpu(NULL)->kernels, best);
    assert_ptr_equal(open_cpu("auto"), bt_device_cpu(best));
    assert_ptr_equal(open_cpu("ref"), open_cpu("ref"));
    assert_true(open_cpu("ref") == open_cpu("auto") || strcmp(best->name, "ref") != 0);
}

static void expect_refused(const char *name, const char *kernels, enum bt_status status,
                           const char *text)
{
    struct bt_error error = {0};
    struct bt_device *device = NULL;
    assert_int_equal(bt_device_open(name, kernels, &error, &device), status);
    if (!strstr(error.text, text))
        fail_msg("'%s' has no '%s'", error.text, text);
    assert_null(device);
}

static void test_names(void **state)
{
    static const char *const wrong[] = {"",           "gpu",       "CUDA",    "cuda:",  "cuda:x",
                                        "cuda:-1",    "cuda:0x1",  "cuda:1 ", "cpu:0",  "cuda0",
                                        "cuda:99999", "cuda:1024", "auto:1",  "cuda: 1"};
    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        expect_refused(wrong[i], NULL, BT_ERR_INVALID_ARGUMENT,
                       "unknown name (auto, cpu, cuda, cuda:N of up to 1023)");
    expect_refused("cpu", "none", BT_ERR_UNSUPPORTED, "kernels none: unknown name");
}

/* Whatever the machine has: who names a CPU's table wants a CPU. */
static void test_kernels_of_a_cpu(void **state)
{
    struct bt_error error;
    struct bt_device *device = NULL;
    (void)state;
    expect_refused("cuda:1", "ref", BT_ERR_INVALID_ARGUMENT,
                   "device cuda:1: kernels ref are of a CPU: leave them out, or use --device cpu");
    assert_int_equal(bt_device_open("auto", "ref", &error, &device), BT_OK);
    assert_ptr_equal(device, open_cpu("ref"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),           cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_stream),           cmocka_unit_test(test_info),
        cmocka_unit_test(test_tables),           cmocka_unit_test(test_names),
        cmocka_unit_test(test_kernels_of_a_cpu),
    };
    return cmocka_run_group_tests_name("device", tests, NULL, NULL);
}
