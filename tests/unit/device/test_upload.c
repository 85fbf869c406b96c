/* Uploading: what comes when. The device here is the test's own, and notes what it is told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/model/upload.h"

#define BLOCKS 5

struct bt_event {
    int number;
};

static char notes[512]; /* f: filled, c: copied, r: recorded, w: waited for, each with its number */
static int events, filled, copies;
static struct bt_event memory_of_events[8];
static enum bt_status wait_status, alloc_status;
static int allocations;

static void note(char what, int number)
{
    size_t used = strlen(notes);
    snprintf(notes + used, sizeof(notes) - used, "%s%c%d", used ? " " : "", what, number);
}

static enum bt_status event_create(struct bt_device *device, struct bt_error *error,
                                   struct bt_event **ret_event)
{
    (void)device;
    (void)error;
    *ret_event = &memory_of_events[events];
    (*ret_event)->number = events++;
    return BT_OK;
}

static void event_destroy(struct bt_event *event)
{
    (void)event;
}

static void event_record(struct bt_event *event, struct bt_stream *stream)
{
    (void)stream;
    note('r', event->number);
}

static enum bt_status event_synchronize(struct bt_event *event, struct bt_error *error)
{
    note('w', event->number);
    return wait_status == BT_OK ? BT_OK : bt_error_set(error, wait_status, "the device is gone");
}

static enum bt_status alloc_host(struct bt_device *device, size_t bytes, struct bt_error *error,
                                 void **ret_memory)
{
    (void)device;
    if (alloc_status != BT_OK)
        return bt_error_set(error, alloc_status, "no pinned memory");
    allocations++;
    *ret_memory = calloc(1, bytes);
    return BT_OK;
}

static void free_host(struct bt_device *device, void *memory)
{
    (void)device;
    free(memory);
}

static void copy(struct bt_stream *stream, void *to, const void *from, size_t bytes)
{
    (void)stream;
    memcpy(to, from, bytes);
    note('c', copies++);
}

static const struct bt_device_ops ops = {
    .alloc_host = alloc_host,
    .free_host = free_host,
    .copy = copy,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_synchronize = event_synchronize,
};
static struct bt_device device = {.ops = &ops, .memory = BT_MEMORY_CUDA, .name = "cuda:0"};

static struct bt_upload *start(void)
{
    struct bt_error error;
    struct bt_upload *upload = NULL;
    notes[0] = '\0';
    events = filled = copies = allocations = 0;
    wait_status = alloc_status = BT_OK;
    assert_int_equal(bt_upload_create(&device, NULL, &error, &upload), BT_OK);
    return upload;
}

static void fill(void *context, size_t first, size_t count, unsigned char *out)
{
    size_t row_bytes = *(const size_t *)context;
    note('f', filled++);
    for (size_t row = 0; row < count; row++)
        memset(out + row * row_bytes, (int)(first + row) & 0xff, row_bytes);
}

/* Two buffers are filled at once; only then is one waited for, the older one. So reading and
 * converting go on while the device fetches. */
static void test_overlap(void **state)
{
    struct bt_upload *upload = start();
    struct bt_error error;
    size_t row_bytes = BT_UPLOAD_BYTES / 2, rows = 2 * BLOCKS - 1;
    unsigned char *to = malloc(rows * row_bytes);
    (void)state;
    assert_int_equal(bt_upload_rows(upload, to, rows, row_bytes, fill, &row_bytes, &error), BT_OK);
    assert_string_equal(notes, "f0 c0 r0 f1 c1 r1 w0 f2 c2 r0 w1 f3 c3 r1 w0 f4 c4");
    assert_int_equal(allocations, 2);
    for (size_t row = 0; row < rows; row++)
        for (size_t i = 0; i < row_bytes; i += 4095)
            assert_int_equal(to[row * row_bytes + i], row);
    /* the next weights go on where that one stopped */
    notes[0] = '\0';
    for (int i = 0; i < 2; i++)
        assert_int_equal(bt_upload_rows(upload, to, 1, row_bytes, fill, &row_bytes, &error), BT_OK);
    assert_string_equal(notes, "f5 c5 r0 w1 f6 c6");
    free(to);
    bt_upload_destroy(upload);
}

/* Rows beyond a buffer's size are taken one by one, in larger ones. */
static void test_wide_rows(void **state)
{
    struct bt_upload *upload = start();
    struct bt_error error;
    size_t row_bytes = BT_UPLOAD_BYTES + 12, rows = 3;
    unsigned char *to = malloc(rows * row_bytes);
    (void)state;
    assert_int_equal(bt_upload_rows(upload, to, rows, row_bytes, fill, &row_bytes, &error), BT_OK);
    assert_string_equal(notes, "f0 c0 r0 f1 c1 r1 w0 f2 c2");
    for (size_t row = 0; row < rows; row++)
        assert_int_equal(to[(row + 1) * row_bytes - 1], row);
    free(to);
    bt_upload_destroy(upload);
}

static void test_bytes(void **state)
{
    struct bt_upload *upload = start();
    struct bt_error error;
    size_t bytes = 2 * BT_UPLOAD_BYTES + 77777;
    unsigned char *from = malloc(bytes), *to = malloc(bytes);
    struct bt_team *team = NULL;
    (void)state;
    assert_int_equal(bt_team_create(&(struct bt_team_options){.threads = 3}, &error, &team), BT_OK);
    for (size_t i = 0; i < bytes; i++)
        from[i] = (unsigned char)(i * 2654435761u >> 13);
    assert_int_equal(bt_upload_bytes(upload, to, from, bytes, team, &error), BT_OK);
    assert_memory_equal(to, from, bytes);
    assert_int_equal(bt_upload_bytes(upload, to, from, 0, team, &error), BT_OK);
    bt_team_destroy(team);
    free(from);
    free(to);
    bt_upload_destroy(upload);
}

static void test_faults(void **state)
{
    struct bt_upload *upload = start();
    struct bt_error error;
    size_t row_bytes = BT_UPLOAD_BYTES;
    unsigned char *to = malloc(4 * row_bytes);
    (void)state;
    wait_status = BT_ERR_INTERNAL;
    assert_int_equal(bt_upload_rows(upload, to, 4, row_bytes, fill, &row_bytes, &error),
                     BT_ERR_INTERNAL);
    assert_string_equal(error.text, "the device is gone");
    assert_string_equal(notes, "f0 c0 r0 f1 c1 r1 w0");
    bt_upload_destroy(upload);
    upload = start();
    alloc_status = BT_ERR_NO_MEMORY;
    assert_int_equal(bt_upload_rows(upload, to, 4, row_bytes, fill, &row_bytes, &error),
                     BT_ERR_NO_MEMORY);
    assert_string_equal(notes, "");
    bt_upload_destroy(upload);
    bt_upload_destroy(NULL);
    free(to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_overlap),
        cmocka_unit_test(test_wide_rows),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests_name("device-upload", tests, NULL, NULL);
}
