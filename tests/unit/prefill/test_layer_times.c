/* What is kept of the times of layers and pushes, for chunks and writes in any shape. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "prefill-node/layer_times.h"

#define LAYERS 3

static void write_part(struct pf_layer_times *times, uint32_t layer, uint32_t begin, uint32_t end,
                       int64_t begin_ns, int64_t end_ns)
{
    const struct kvt_push_watch *watch = pf_layer_times_watch(times);
    watch->written(watch->context, layer, begin, end, (end - begin) * 10, begin_ns, end_ns);
}

static void compute(struct pf_layer_times *times, uint32_t token_end, int64_t begin_ns)
{
    pf_layer_times_chunk(times, token_end, begin_ns);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        pf_layer_times_computed(times, layer, begin_ns + 100 * (layer + 1));
    }
}

static const Baton__V1__LayerTime *at(const Baton__V1__PrefillDone *done, uint32_t chunk,
                                      uint32_t layer)
{
    const Baton__V1__LayerTime *time = done->layers[chunk * LAYERS + layer];
    assert_int_equal(time->chunk, chunk);
    assert_int_equal(time->layer, layer);
    return time;
}

static void check(const Baton__V1__LayerTime *time, uint64_t compute_begin, uint64_t compute_end,
                  uint64_t push_begin, uint64_t push_end, uint64_t bytes)
{
    assert_int_equal(time->compute_begin_ns, compute_begin);
    assert_int_equal(time->compute_end_ns, compute_end);
    assert_int_equal(time->push_begin_ns, push_begin);
    assert_int_equal(time->push_end_ns, push_end);
    assert_int_equal(time->bytes, bytes);
}

/* 64 cached tokens, chunks up to 164 and 264. */
static void test_chunks(void **state)
{
    (void)state;
    struct pf_layer_times *times = pf_layer_times_create(LAYERS, 64, 264);
    write_part(times, 0, 0, 64, 900, 950); /* before compute begins */
    compute(times, 164, 1000);
    write_part(times, 0, 64, 128, 1110, 1150);
    write_part(times, 0, 128, 164, 1160, 1190);
    compute(times, 264, 1300);
    write_part(times, 1, 0, 264, 1500, 1600); /* late, all at once */
    Baton__V1__PrefillDone done = BATON__V1__PREFILL_DONE__INIT;
    pf_layer_times_fill(times, 1000, &done);
    assert_int_equal(done.n_layers, 3 * LAYERS);
    check(at(&done, 0, 0), 0, 0, 1, 1, 640);
    check(at(&done, 0, 1), 0, 0, 500, 600, 640);
    check(at(&done, 0, 2), 0, 0, 0, 0, 0);
    check(at(&done, 1, 0), 0, 100, 110, 190, 1000);
    check(at(&done, 1, 1), 100, 200, 500, 600, 1000);
    check(at(&done, 1, 2), 200, 300, 0, 0, 0);
    check(at(&done, 2, 0), 300, 400, 0, 0, 0);
    check(at(&done, 2, 1), 400, 500, 500, 600, 1000);
    pf_layer_times_destroy(times);
}

/* Chunks that are too many are left out, and spoil nothing of the others. */
static void test_bound(void **state)
{
    (void)state;
    uint32_t most = PF_LAYER_TIMES_MAX / LAYERS;
    struct pf_layer_times *times = pf_layer_times_create(LAYERS, 0, 100000);
    for (uint32_t chunk = 0; chunk < most + 5; chunk++) {
        compute(times, chunk + 1, 1000 * (chunk + 1));
    }
    write_part(times, 0, most - 1, most + 5, 10000000, 10000001);
    Baton__V1__PrefillDone done = BATON__V1__PREFILL_DONE__INIT;
    pf_layer_times_fill(times, 1000, &done);
    assert_int_equal(done.n_layers, most * LAYERS);
    check(at(&done, most - 1, 0), 1000 * (uint64_t)(most - 1), 1000 * (uint64_t)(most - 1) + 100,
          9999000, 9999001, 10);
    pf_layer_times_destroy(times);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
