/* The page pool against a naive shadow, its choice of runs, and the fingerprint. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "common/kvcache/layout.h"
#include "common/kvcache/page_pool.h"

static const struct bt_page_owner owner_a = {.request = 1, .epoch = 11};
static const struct bt_page_owner owner_b = {.request = 2, .epoch = 12};
static const struct bt_page_owner nobody = {0};

static struct bt_page_owner owner_in(enum bt_page_state state, struct bt_page_owner owner)
{
    return state == BT_PAGE_CACHED ? nobody : owner;
}

static void free_range(struct bt_page_pool *pool, uint32_t first, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t page = first + i;
        bt_page_pool_move(pool, &page, 1, owner_a, BT_PAGE_RESERVED, BT_PAGE_FREE);
    }
}

static void test_alloc_takes_smallest_run_that_holds_all(void **state)
{
    struct bt_page_pool *pool = bt_page_pool_create(200);
    uint32_t pages[200];

    (void)state;
    assert_true(bt_page_pool_alloc(pool, 200, owner_a, pages));
    free_range(pool, 10, 20);
    free_range(pool, 60, 8); /* crosses a word of the bitmap */
    free_range(pool, 120, 9);
    assert_true(bt_page_pool_alloc(pool, 8, owner_b, pages));
    for (uint32_t i = 0; i < 8; i++)
        assert_int_equal(pages[i], 60 + i);
    assert_true(bt_page_pool_alloc(pool, 3, owner_b, pages));
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(pages[i], 120 + i);
    bt_page_pool_destroy(pool);
}

static void test_alloc_takes_largest_runs_first(void **state)
{
    struct bt_page_pool *pool = bt_page_pool_create(100);
    struct bt_page_run runs[100];
    uint32_t pages[100];

    (void)state;
    assert_true(bt_page_pool_alloc(pool, 100, owner_a, pages));
    free_range(pool, 0, 2);
    free_range(pool, 50, 7);
    free_range(pool, 90, 5);
    assert_true(bt_page_pool_alloc(pool, 10, owner_b, pages));
    assert_int_equal(bt_page_runs(pages, 10, runs), 2);
    assert_int_equal(runs[0].first, 50);
    assert_int_equal(runs[0].count, 7);
    assert_int_equal(runs[1].first, 90);
    assert_int_equal(runs[1].count, 3);
    assert_int_equal(bt_page_pool_count(pool, BT_PAGE_FREE), 4);
    assert_false(bt_page_pool_alloc(pool, 5, owner_b, pages));
    assert_int_equal(bt_page_pool_count(pool, BT_PAGE_FREE), 4);
    assert_true(bt_page_pool_alloc(pool, 4, owner_b, pages));
    assert_false(bt_page_pool_alloc(pool, 1, owner_b, pages));
    bt_page_pool_destroy(pool);
}

static void test_runs(void **state)
{
    const uint32_t pages[] = {7, 8, 9, 3, 2, 1, 4, 5};
    const struct bt_page_run expected[] = {{7, 3}, {3, 1}, {2, 1}, {1, 1}, {4, 2}};
    const uint32_t last_and_first[] = {UINT32_MAX, 0};
    struct bt_page_run runs[8];

    (void)state;
    assert_int_equal(bt_page_runs(pages, 8, runs), 5);
    assert_memory_equal(runs, expected, sizeof(expected));
    assert_int_equal(bt_page_runs(pages, 0, runs), 0);
    assert_int_equal(bt_page_runs(last_and_first, 2, runs), 2);
}

/* Which steps the header's picture allows. */
static bool step_allowed(enum bt_page_state from, enum bt_page_state to)
{
    switch (from) {
    case BT_PAGE_RESERVED:
        return to == BT_PAGE_LANDING || to == BT_PAGE_FREE || to == BT_PAGE_READY;
    case BT_PAGE_LANDING:
        return to == BT_PAGE_READY || to == BT_PAGE_QUARANTINED || to == BT_PAGE_FREE;
    case BT_PAGE_READY:
        return to == BT_PAGE_FREE || to == BT_PAGE_CACHED;
    case BT_PAGE_QUARANTINED:
    case BT_PAGE_CACHED:
        return to == BT_PAGE_FREE;
    default:
        return false;
    }
}

static void bring_to(struct bt_page_pool *pool, uint32_t page, enum bt_page_state state)
{
    if (state == BT_PAGE_RESERVED || state == BT_PAGE_FREE)
        return;
    enum bt_page_state before = state == BT_PAGE_QUARANTINED ? BT_PAGE_LANDING
                                : state == BT_PAGE_CACHED    ? BT_PAGE_READY
                                                             : BT_PAGE_RESERVED;
    if (before != BT_PAGE_RESERVED)
        bt_page_pool_move(pool, &page, 1, owner_a, BT_PAGE_RESERVED, before);
    bt_page_pool_move(pool, &page, 1, owner_a, before, state);
}

/* Runs the move in a child: true when it came through, false when it was aborted. */
static bool move_survives(enum bt_page_state real, enum bt_page_state from, enum bt_page_state to,
                          struct bt_page_owner owner)
{
    struct bt_page_pool *pool = bt_page_pool_create(1);
    uint32_t page = 0;
    int status;
    pid_t child;

    if (real != BT_PAGE_FREE)
        assert_true(bt_page_pool_alloc(pool, 1, owner_a, &page));
    bring_to(pool, 0, real);
    fflush(NULL);
    child = fork();
    if (child == 0) {
        fclose(stderr);
        bt_page_pool_move(pool, &page, 1, owner, from, to);
        _exit(bt_page_pool_state(pool, 0, NULL) == to ? 0 : 1);
    }
    bt_page_pool_destroy(pool);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFEXITED(status))
        assert_int_equal(WEXITSTATUS(status), 0);
    return WIFEXITED(status);
}

/* Rules 1 and 2. */
static void test_every_transition_is_asserted(void **state)
{
    (void)state;
    for (int from = 0; from < BT_PAGE_STATE_COUNT; from++)
        for (int to = 0; to < BT_PAGE_STATE_COUNT; to++)
            assert_int_equal(move_survives(from, from, to, owner_in(from, owner_a)),
                             step_allowed(from, to));
    assert_false(move_survives(BT_PAGE_LANDING, BT_PAGE_RESERVED, BT_PAGE_FREE, owner_a));
    assert_false(move_survives(BT_PAGE_LANDING, BT_PAGE_LANDING, BT_PAGE_READY, owner_b));
    assert_false(move_survives(BT_PAGE_READY, BT_PAGE_READY, BT_PAGE_CACHED, nobody));
    assert_false(move_survives(BT_PAGE_CACHED, BT_PAGE_CACHED, BT_PAGE_FREE, owner_a));
}

#define SHADOW_PAGES 150
#define SHADOW_SETS  40

struct shadow_set {
    uint32_t pages[SHADOW_PAGES];
    uint32_t count;
    struct bt_page_owner owner;
    enum bt_page_state state;
};

static void check_shadow(const struct bt_page_pool *pool, const struct shadow_set *sets)
{
    uint32_t counts[BT_PAGE_STATE_COUNT] = {[BT_PAGE_FREE] = SHADOW_PAGES};
    int set_of[SHADOW_PAGES] = {0}; /* from 1 */
    struct bt_page_owner owner;

    for (int i = 0; i < SHADOW_SETS; i++) {
        counts[sets[i].state] += sets[i].state == BT_PAGE_FREE ? 0 : sets[i].count;
        for (uint32_t j = 0; sets[i].state != BT_PAGE_FREE && j < sets[i].count; j++) {
            counts[BT_PAGE_FREE]--;
            assert_int_equal(set_of[sets[i].pages[j]], 0);
            set_of[sets[i].pages[j]] = i + 1;
            assert_int_equal(bt_page_pool_state(pool, sets[i].pages[j], &owner), sets[i].state);
            assert_int_equal(owner.epoch, sets[i].owner.epoch);
        }
    }
    for (uint32_t page = 0; page < SHADOW_PAGES; page++)
        if (set_of[page] == 0)
            assert_int_equal(bt_page_pool_state(pool, page, NULL), BT_PAGE_FREE);
    for (int s = 0; s < BT_PAGE_STATE_COUNT; s++)
        assert_int_equal(bt_page_pool_count(pool, s), counts[s]);
}

/* Rule 1. */
static void test_random_against_shadow(void **state)
{
    static struct shadow_set sets[SHADOW_SETS];
    struct bt_page_pool *pool = bt_page_pool_create(SHADOW_PAGES);
    uint64_t seed = 20260101;
    uint64_t epoch = 0;

    (void)state;
    print_message("seed %llu\n", (unsigned long long)seed);
    memset(sets, 0, sizeof(sets));
    for (uint32_t step = 0; step < 4000; step++) {
        struct shadow_set *set = &sets[bt_random_u64(seed, step, 0) % SHADOW_SETS];
        enum bt_page_state to = bt_random_u64(seed, step, 1) % BT_PAGE_STATE_COUNT;
        if (set->state == BT_PAGE_FREE) {
            uint32_t free_count = bt_page_pool_count(pool, BT_PAGE_FREE);
            set->count = 1 + bt_random_u64(seed, step, 2) % 20;
            set->owner = (struct bt_page_owner){.request = step, .epoch = ++epoch};
            bool got = bt_page_pool_alloc(pool, set->count, set->owner, set->pages);
            assert_int_equal(got, set->count <= free_count);
            set->state = got ? BT_PAGE_RESERVED : BT_PAGE_FREE;
        } else if (step_allowed(set->state, to)) {
            bt_page_pool_move(pool, set->pages, set->count, set->owner, set->state, to);
            set->owner = owner_in(to, set->owner);
            set->state = to;
        }
        check_shadow(pool, sets);
    }
    bt_page_pool_destroy(pool);
}

static const struct bt_fingerprint fingerprint = {
    .layout_version = BT_KV_LAYOUT_VERSION,
    .model_hash = 0x1234567890abcdef,
    .model_name = "tiny",
    .arithmetic = "bfloat16",
    .layout = {.layer_count = 4, .kv_lora_rank = 48, .qk_rope_head_dim = 16, .dtype = BT_BF16},
};

static void test_fingerprint_names_what_differs(void **state)
{
    struct bt_fingerprint other;
    struct bt_error error;

    (void)state;
    assert_int_equal(bt_fingerprint_compare(&fingerprint, &fingerprint, &error), BT_OK);
#define DIFFERS(field, value, expected_text)                                                       \
    do {                                                                                           \
        other = fingerprint;                                                                       \
        other.field = value;                                                                       \
        assert_int_equal(bt_fingerprint_compare(&fingerprint, &other, &error), BT_ERR_MISMATCH);   \
        assert_non_null(strstr(error.text, expected_text));                                        \
    } while (0)
    DIFFERS(layout_version, 2, "layout_version differs: ours is 1, theirs 2");
    DIFFERS(model_hash, 1, "model_hash differs: ours is 1234567890abcdef (tiny)");
    DIFFERS(layout.layer_count, 5, "layer_count differs: ours is 4, theirs 5");
    DIFFERS(layout.kv_lora_rank, 40, "kv_lora_rank differs: ours is 48, theirs 40");
    DIFFERS(layout.qk_rope_head_dim, 8, "qk_rope_head_dim differs: ours is 16, theirs 8");
    DIFFERS(layout.dtype, BT_F32, "kv_dtype differs: ours is bf16, theirs f32");
#undef DIFFERS
    other = fingerprint;
    strcpy(other.arithmetic, "float32");
    assert_int_equal(bt_fingerprint_compare(&fingerprint, &other, &error), BT_ERR_MISMATCH);
    assert_non_null(strstr(error.text, "arithmetic differs: ours is bfloat16, theirs float32"));
    other = fingerprint;
    strcpy(other.model_name, "another name");
    assert_int_equal(bt_fingerprint_compare(&fingerprint, &other, &error), BT_OK);
}

static void test_fingerprint_message(void **state)
{
    Baton__V1__LayoutFingerprint message;
    struct bt_fingerprint parsed;
    struct bt_error error;
    char long_name[400];

    (void)state;
    bt_fingerprint_to_message(&fingerprint, &message);
    assert_int_equal(bt_fingerprint_from_message(&message, &error, &parsed), BT_OK);
    assert_int_equal(bt_fingerprint_compare(&fingerprint, &parsed, &error), BT_OK);
    assert_string_equal(parsed.model_name, "tiny");
    assert_int_equal(bt_fingerprint_from_message(NULL, &error, &parsed), BT_ERR_INVALID_ARGUMENT);
#define REFUSED(field, value, expected, expected_text)                                             \
    do {                                                                                           \
        bt_fingerprint_to_message(&fingerprint, &message);                                         \
        message.field = value;                                                                     \
        assert_int_equal(bt_fingerprint_from_message(&message, &error, &parsed), expected);        \
        assert_non_null(strstr(error.text, expected_text));                                        \
    } while (0)
    REFUSED(layout_version, 0, BT_ERR_INVALID_ARGUMENT, "layout_version is 0");
    REFUSED(kv_dtype, NULL, BT_ERR_INVALID_ARGUMENT, "kv_dtype is ''");
    REFUSED(kv_dtype, (char *)"f16", BT_ERR_INVALID_ARGUMENT, "kv_dtype is 'f16'");
    REFUSED(arithmetic, NULL, BT_ERR_INVALID_ARGUMENT, "arithmetic is no name");
    REFUSED(arithmetic, (char *)"", BT_ERR_INVALID_ARGUMENT, "arithmetic is no name");
    REFUSED(arithmetic, (char *)"a\nb", BT_ERR_INVALID_ARGUMENT, "arithmetic is no name");
    REFUSED(arithmetic, (char *)"abcdefghijklmnopqrstuvwxyz0123456", BT_ERR_INVALID_ARGUMENT,
            "arithmetic is no name");
    REFUSED(layer_count, 0, BT_ERR_INVALID_ARGUMENT, "layer_count is 0");
    REFUSED(layer_count, 1u << 20, BT_ERR_INVALID_ARGUMENT, "layer_count is 1048576");
    REFUSED(kv_lora_rank, UINT32_MAX, BT_ERR_INVALID_ARGUMENT, "kv_lora_rank is 4294967295");
    REFUSED(qk_rope_head_dim, 0, BT_ERR_INVALID_ARGUMENT, "qk_rope_head_dim is 0");
    REFUSED(page_tokens, 128, BT_ERR_MISMATCH, "page_tokens differs: ours is 64, theirs 128");
#undef REFUSED
    memset(long_name, 'x', sizeof(long_name) - 1);
    long_name[sizeof(long_name) - 1] = '\0';
    bt_fingerprint_to_message(&fingerprint, &message);
    message.model_name = long_name;
    assert_int_equal(bt_fingerprint_from_message(&message, &error, &parsed), BT_OK);
    assert_int_equal(strlen(parsed.model_name), BT_MODEL_NAME_SIZE - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alloc_takes_smallest_run_that_holds_all),
        cmocka_unit_test(test_alloc_takes_largest_runs_first),
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_every_transition_is_asserted),
        cmocka_unit_test(test_random_against_shadow),
        cmocka_unit_test(test_fingerprint_names_what_differs),
        cmocka_unit_test(test_fingerprint_message),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
