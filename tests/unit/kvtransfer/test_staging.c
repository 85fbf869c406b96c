/* Staged pools against naive copies, on a device that does things as late as it may. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "kvtransfer/staging.h"
#include "tests/conformance/pool_device.h"
#include "tests/seed.h"

#define PAGES  24
#define LAYERS 3

static const struct bt_kv_layout layout = {
    .layer_count = LAYERS, .kv_lora_rank = 20, .qk_rope_head_dim = 4, .dtype = BT_BF16};
static uint64_t seed, draws;

static uint32_t draw(uint32_t bound)
{
    return (uint32_t)(bt_random_u64(seed, draws++, 1) % bound);
}

struct rig {
    struct kvt_staging *staging;
    unsigned char *host, *device, *want; /* `want`: what the pool that is copied to must hold */
    size_t bytes;
};

static void fill(unsigned char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        bytes[i] = (unsigned char)draw(256);
}

static void set_up(struct rig *rig)
{
    rig->bytes = bt_kv_pool_bytes(&layout, PAGES);
    rig->host = aligned_alloc(4096, (rig->bytes + 4095) / 4096 * 4096);
    rig->want = malloc(rig->bytes);
    assert_non_null(rig->host);
    assert_non_null(rig->want);
    const struct kvt_staging_options options = {
        .device = pool_device(), .layout = layout, .pool_pages = PAGES, .host_pool = rig->host};
    assert_int_equal(kvt_staging_create(&options, NULL, &rig->staging), BT_OK);
    rig->device = kvt_staging_pool(rig->staging);
    fill(rig->host, rig->bytes);
    fill(rig->device, rig->bytes);
}

static void tear_down(struct rig *rig)
{
    kvt_staging_destroy(rig->staging);
    free(rig->host);
    free(rig->want);
    assert_int_equal(pool_device_blocks(), 0);
}

/* Distinct pages, neighbours often. */
static void draw_pages(uint32_t count, uint32_t *pages)
{
    bool used[PAGES] = {false};

    for (uint32_t i = 0; i < count; i++) {
        uint32_t page = i > 0 && draw(3) ? (pages[i - 1] + 1) % PAGES : draw(PAGES);
        while (used[page])
            page = (page + 1) % PAGES;
        used[page] = true;
        pages[i] = page;
    }
}

/* By the layout's definition, [layer][page][token]. */
static void copy_token(unsigned char *to, const unsigned char *from, uint32_t layer, uint32_t page,
                       uint32_t token)
{
    size_t token_bytes = (20 + 4) * 2;
    size_t at = (((size_t)layer * PAGES + page) * 64 + token) * token_bytes;

    memcpy(to + at, from + at, token_bytes);
}

static void test_out(void **state)
{
    struct rig rig;
    uint32_t pages[PAGES];

    (void)state;
    set_up(&rig);
    for (int round = 0; round < 200; round++) {
        uint32_t tokens = 1 + draw(PAGES * 64), begin = draw(tokens), layer = draw(LAYERS);
        draw_pages((tokens + 63) / 64, pages);
        memcpy(rig.want, rig.host, rig.bytes);
        for (uint32_t t = begin; t < tokens; t++)
            copy_token(rig.want, rig.device, layer, pages[t / 64], t % 64);
        kvt_staging_out(rig.staging, layer, pages, begin, tokens);
        assert_int_equal(kvt_staging_wait(rig.staging, NULL), BT_OK);
        assert_memory_equal(rig.host, rig.want, rig.bytes);
        fill(rig.device, rig.bytes / 8);
    }
    tear_down(&rig);
}

static void test_in(void **state)
{
    const struct bt_stream_limits limits = {0};
    struct bt_device *device = pool_device();
    struct bt_stream *stream;
    struct rig rig;
    uint32_t pages[PAGES];
    uint64_t out, in, sum = 0;

    (void)state;
    set_up(&rig);
    assert_int_equal(bt_device_stream_create(device, &limits, NULL, NULL, &stream), BT_OK);
    for (int round = 0; round < 100; round++) {
        uint32_t tokens = 1 + draw(PAGES * 64);
        draw_pages((tokens + 63) / 64, pages);
        memcpy(rig.want, rig.device, rig.bytes);
        for (uint32_t t = 0; t < LAYERS * tokens; t++)
            copy_token(rig.want, rig.host, t / tokens, pages[t % tokens / 64], t % tokens % 64);
        kvt_staging_in(rig.staging, stream, pages, tokens);
        assert_int_equal(bt_device_synchronize(device, stream, NULL), BT_OK);
        assert_memory_equal(rig.device, rig.want, rig.bytes);
        fill(rig.host, rig.bytes / 8);
        sum += (uint64_t)tokens * LAYERS * (20 + 4) * 2;
    }
    kvt_staging_bytes(rig.staging, &out, &in);
    assert_int_equal(out, 0);
    assert_int_equal(in, sum);
    bt_device_stream_destroy(device, stream);
    tear_down(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_out), cmocka_unit_test(test_in)};

    seed = test_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
