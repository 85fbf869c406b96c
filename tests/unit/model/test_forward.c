/* What runs of the forward pass may not do, and what its profile says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/model/forward.h"

#define SEQUENCES 4
#define STEPS     20
#define PAGES     8

/* The linker sends every allocation of this program's own objects here. */
static atomic_uint allocations;
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *block, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
int __real_posix_memalign(void **ret_block, size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *block, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
int __wrap_posix_memalign(void **ret_block, size_t alignment, size_t size);

void *__wrap_malloc(size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __real_calloc(count, size);
}

void *__wrap_realloc(void *block, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __real_realloc(block, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __real_aligned_alloc(alignment, size);
}

int __wrap_posix_memalign(void **ret_block, size_t alignment, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __real_posix_memalign(ret_block, alignment, size);
}

struct rig {
    struct bt_team *team;
    struct bt_model *model;
    struct bt_forward *forward;
    void *pool;
    struct bt_kv_layout layout;
};

static void rig_open(struct rig *rig, const char *kernels, enum bt_model_dtype dtype,
                     uint32_t threads)
{
    struct bt_error error = {0};
    const struct bt_team_options team = {.threads = threads};
    if (bt_team_create(&team, &error, &rig->team) != BT_OK)
        fail_msg("%s", error.text);
    const struct bt_model_options model = {.dir = TESTS_MODELS "/tiny",
                                           .kernels = kernels,
                                           .dtype = dtype,
                                           .max_tokens = PAGES * BT_PAGE_TOKENS,
                                           .team = rig->team};
    const struct bt_forward_options forward = {.max_rows = 64, .max_logits = SEQUENCES};
    if (bt_model_load(&model, &error, &rig->model) != BT_OK ||
        bt_forward_create(rig->model, &forward, &error, &rig->forward) != BT_OK)
        fail_msg("%s", error.text);
    rig->layout = bt_model_kv_layout(rig->model, bt_model_kv_dtype(rig->model, "auto"));
    rig->pool = calloc(1, bt_kv_pool_bytes(&rig->layout, PAGES));
}

static void rig_close(struct rig *rig)
{
    bt_forward_destroy(rig->forward);
    bt_model_destroy(rig->model);
    bt_team_destroy(rig->team);
    free(rig->pool);
}

static void run(struct rig *rig, enum bt_forward_form form, uint32_t start, uint32_t each)
{
    static const uint32_t pages[SEQUENCES] = {3, 1, 0, 6};
    uint32_t tokens[64], logit_rows[SEQUENCES];
    struct bt_sequence_rows sequences[SEQUENCES];
    for (uint32_t i = 0; i < SEQUENCES * each; i++)
        tokens[i] = 50 + i + start;
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        sequences[i] = (struct bt_sequence_rows){&pages[i], start, i * each, each};
        logit_rows[i] = i * each + each - 1;
    }
    const struct bt_forward_batch batch = {
        .form = form,
        .tokens = tokens,
        .rows = SEQUENCES * each,
        .sequences = sequences,
        .sequence_count = SEQUENCES,
        .kv_pool = rig->pool,
        .layout = rig->layout,
        .pool_pages = PAGES,
        .logit_rows = logit_rows,
        .logit_count = SEQUENCES,
    };
    const float *logits;
    assert_int_equal(bt_forward_run(rig->forward, &batch, &logits), BT_OK);
}

static void test_runs_do_not_allocate(void **state)
{
    (void)state;
    for (int dtype = BT_MODEL_FLOAT32; dtype <= BT_MODEL_BFLOAT16; dtype++) {
        for (const char *const *kernels = bt_kernels_available(); *kernels; kernels++) {
            struct rig rig;
            uint32_t before = atomic_load(&allocations);
            rig_open(&rig, *kernels, (enum bt_model_dtype)dtype, 2);
            assert_true(atomic_load(&allocations) > before); /* it does count */
            before = atomic_load(&allocations);
            run(&rig, BT_FORWARD_MULTI_HEAD, 0, 16);
            for (uint32_t i = 0; i < STEPS; i++)
                run(&rig, BT_FORWARD_ABSORBED, 16 + i, 1);
            uint32_t more = atomic_load(&allocations) - before;
            if (more)
                fail_msg("%s, %s: %u allocations", *kernels,
                         bt_model_dtype_name((enum bt_model_dtype)dtype), more);
            rig_close(&rig);
        }
    }
}

static void test_profile(void **state)
{
    (void)state;
    struct rig rig;
    struct bt_profile profile = {0};
    rig_open(&rig, "auto", BT_MODEL_FLOAT32, 1);
    uint32_t layers = rig.model->config.num_hidden_layers;
    run(&rig, BT_FORWARD_MULTI_HEAD, 0, 16);
    bt_forward_profile(rig.forward, &profile);
    int64_t start_ns = bt_clock_now_ns(), sum_ns = 0;
    run(&rig, BT_FORWARD_ABSORBED, 16, 1);
    run(&rig, BT_FORWARD_ABSORBED, 17, 1);
    int64_t took_ns = bt_clock_now_ns() - start_ns;
    bt_forward_profile(rig.forward, NULL);
    run(&rig, BT_FORWARD_ABSORBED, 18, 1);

    assert_int_equal(profile.calls[BT_PROFILE_EMBED], 2);
    assert_int_equal(profile.calls[BT_PROFILE_HEAD], 2);
    assert_int_equal(profile.calls[BT_PROFILE_MLA_DECODE], 2 * layers);
    assert_int_equal(profile.calls[BT_PROFILE_MLA_PREFILL], 0);
    assert_int_equal(profile.calls[BT_PROFILE_KV_WRITE], 2 * layers);
    assert_int_equal(profile.calls[BT_PROFILE_MLP], 2 * layers);
    assert_int_equal(profile.calls[BT_PROFILE_EXPERTS], 2 * (layers - 1));
    assert_int_equal(profile.calls[BT_PROFILE_ROUTE], 2 * (layers - 1));
    for (int i = 0; i < BT_PROFILE_KINDS; i++) {
        assert_true(bt_profile_kind_name((enum bt_profile_kind)i)[0] != '\0');
        assert_true((profile.ns[i] > 0) == (profile.calls[i] > 0));
        sum_ns += profile.ns[i];
    }
    assert_true(sum_ns <= took_ns);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs_do_not_allocate),
        cmocka_unit_test(test_profile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
