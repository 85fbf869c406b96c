/* Plans and checksums against naive copying and hashing, over random page tables. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "kvtransfer/checksum.h"
#include "kvtransfer/plan.h"

#define SOURCE_POOL 37
#define TARGET_POOL 53
#define PAGES_MAX   24
#define SEED        UINT64_C(7071)

static const struct bt_kv_layout layout = {
    .layer_count = 3, .kv_lora_rank = 5, .qk_rope_head_dim = 2, .dtype = BT_BF16};

static uint32_t draw(uint32_t *position, uint32_t bound)
{
    return (uint32_t)(bt_random_u64(SEED, (*position)++, 0) % bound);
}

/* A random table of distinct pages, in which neighbours are frequent. */
static void random_table(uint32_t *position, uint32_t pool, uint32_t count, uint32_t *pages)
{
    bool used[64] = {false};

    for (uint32_t i = 0; i < count; i++) {
        uint32_t page = draw(position, pool);
        if (i > 0 && draw(position, 4) != 0)
            page = (pages[i - 1] + 1) % pool;
        while (used[page])
            page = (page + 1) % pool;
        used[page] = true;
        pages[i] = page;
    }
}

/* Address of a token computed from the layout's definition, not from bt_kv_offset. */
static size_t token_address(uint32_t pool, uint32_t layer, uint32_t page, uint32_t token)
{
    return (((size_t)layer * pool + page) * 64 + token) * 7 * 2;
}

static void naive_copy(uint32_t layer, uint32_t begin, uint32_t end, const uint32_t *from,
                       const uint32_t *to, struct kvt_share share, const unsigned char *source,
                       unsigned char *target)
{
    for (uint32_t t = begin; t < end; t++)
        if (t / 64 % share.count == share.index)
            memcpy(target + token_address(TARGET_POOL, layer, to[t / 64], t % 64),
                   source + token_address(SOURCE_POOL, layer, from[t / 64], t % 64), 14);
}

/* Fewest writes: a new one exactly where a page does not follow its predecessor on both sides. */
static uint32_t naive_write_count(uint32_t begin, uint32_t end, const uint32_t *from,
                                  const uint32_t *to)
{
    uint32_t count = begin < end;

    for (uint32_t i = begin / 64 + 1; begin < end && i <= (end - 1) / 64; i++)
        count += from[i] != from[i - 1] + 1 || to[i] != to[i - 1] + 1;
    return count;
}

static void apply(const struct kvt_write *writes, uint32_t count, const unsigned char *source,
                  unsigned char *target, size_t source_bytes, size_t target_bytes)
{
    for (uint32_t i = 0; i < count; i++) {
        assert_true(writes[i].source_offset + writes[i].bytes <= source_bytes);
        assert_true(writes[i].target_offset + writes[i].bytes <= target_bytes);
        memcpy(target + writes[i].target_offset, source + writes[i].source_offset, writes[i].bytes);
    }
}

/* Rules 1 and 13. */
static void test_plan_moves_the_same_bytes_as_naive_copying(void **state)
{
    const size_t source_bytes = 3 * SOURCE_POOL * 64 * 14, target_bytes = 3 * TARGET_POOL * 64 * 14;
    unsigned char *source = malloc(source_bytes), *planned = malloc(target_bytes);
    unsigned char *expected = malloc(target_bytes);
    uint32_t from[PAGES_MAX], to[PAGES_MAX], position = 0;
    struct kvt_write writes[PAGES_MAX];

    (void)state;
    print_message("seed %llu\n", (unsigned long long)SEED);
    for (size_t i = 0; i < source_bytes; i++)
        source[i] = (unsigned char)(i * 2654435761u >> 11);
    for (int round = 0; round < 300; round++) {
        uint32_t count = 1 + draw(&position, PAGES_MAX);
        uint32_t begin = draw(&position, count * 64);
        uint32_t end = begin + draw(&position, count * 64 - begin + 1);
        uint32_t max = draw(&position, 2) ? PAGES_MAX : 1 + draw(&position, 4);
        uint32_t layer = draw(&position, 3), shares = 1 + draw(&position, 2) * draw(&position, 4);
        struct kvt_share share = {.index = draw(&position, shares), .count = shares};
        struct kvt_plan_side s = {.pages = from, .pool_pages = SOURCE_POOL};
        struct kvt_plan_side t = {.pages = to, .pool_pages = TARGET_POOL};
        uint32_t total = 0, tokens;

        random_table(&position, SOURCE_POOL, count, from);
        random_table(&position, TARGET_POOL, count, to);
        memset(planned, 0, target_bytes);
        memset(expected, 0, target_bytes);
        for (uint32_t at = begin; at < end; at += tokens) {
            uint32_t n =
                kvt_plan_layer(&layout, layer, at, end, &s, &t, share, writes, max, &tokens);
            assert_in_range(n, shares == 1, max);
            assert_in_range(tokens, 1, end - at);
            for (uint32_t i = 0; i < n; i++) /* the token is the one that lies there */
                assert_int_equal(writes[i].source_offset,
                                 token_address(SOURCE_POOL, layer, from[writes[i].token / 64],
                                               writes[i].token % 64));
            if (tokens < end - at)
                assert_int_equal(n, max);
            apply(writes, n, source, planned, source_bytes, target_bytes);
            total += n;
        }
        naive_copy(layer, begin, end, from, to, share, source, expected);
        assert_memory_equal(planned, expected, target_bytes);
        if (max == PAGES_MAX && shares == 1)
            assert_int_equal(total, naive_write_count(begin, end, from, to));
    }
    free(source);
    free(planned);
    free(expected);
}

static void test_plan_of_nothing(void **state)
{
    uint32_t pages[1] = {0}, tokens = 99;
    struct kvt_plan_side side = {.pages = pages, .pool_pages = 1};
    struct kvt_write write;

    (void)state;
    assert_int_equal(kvt_plan_layer(&layout, 0, 5, 5, &side, &side, (struct kvt_share){0, 1},
                                    &write, 1, &tokens),
                     0);
    assert_int_equal(tokens, 0);
    assert_int_equal(kvt_plan_layer(&layout, 0, 5, 60, &side, &side, (struct kvt_share){1, 2},
                                    &write, 1, &tokens),
                     0);
    assert_int_equal(tokens, 55); /* of another share */
}

static void fill_tokens(unsigned char *pool, uint32_t pool_pages, const uint32_t *pages,
                        uint32_t tokens)
{
    for (uint32_t layer = 0; layer < 3; layer++)
        for (uint32_t t = 0; t < tokens; t++)
            for (uint32_t b = 0; b < 14; b++)
                pool[token_address(pool_pages, layer, pages[t / 64], t % 64) + b] =
                    (unsigned char)(bt_random_u64(SEED, t, layer * 14 + b));
}

/* Rules 6 and 13. */
static void test_checksum_is_the_sum_over_pages(void **state)
{
    const uint32_t tokens = 2 * 64 + 17, pages[] = {9, 4, 30};
    unsigned char *pool = calloc(3 * SOURCE_POOL * 64, 14);
    uint64_t expected = 0;

    (void)state;
    fill_tokens(pool, SOURCE_POOL, pages, tokens);
    for (int logical = 2; logical >= 0; logical--)
        for (uint64_t layer = 0; layer < 3; layer++)
            expected += kvt_checksum_page(
                &layout, pool + token_address(SOURCE_POOL, (uint32_t)layer, pages[logical], 0),
                (uint32_t)layer, (uint32_t)logical, logical == 2 ? 17 : 64);
    assert_int_equal(kvt_checksum_sequence(&layout, pool, SOURCE_POOL, pages, tokens), expected);
    free(pool);
}

/* Rule 6. */
static void test_checksum_sees_content_and_place_only(void **state)
{
    const uint32_t tokens = 3 * 64 + 1, here[] = {3, 9, 4, 30}, there[] = {50, 2, 3, 1};
    const uint32_t swapped[] = {9, 3, 4, 30};
    unsigned char *a = calloc(3 * SOURCE_POOL * 64, 14), *b = calloc(3 * TARGET_POOL * 64, 14);
    uint64_t sum;

    (void)state;
    memset(b, 0xee, 3 * TARGET_POOL * 64 * 14); /* what is past the tokens does not count */
    fill_tokens(a, SOURCE_POOL, here, tokens);
    fill_tokens(b, TARGET_POOL, there, tokens);
    sum = kvt_checksum_sequence(&layout, a, SOURCE_POOL, here, tokens);
    assert_int_equal(sum, kvt_checksum_sequence(&layout, b, TARGET_POOL, there, tokens));
    assert_int_not_equal(sum, kvt_checksum_sequence(&layout, a, SOURCE_POOL, swapped, tokens));
    assert_int_not_equal(sum, kvt_checksum_sequence(&layout, a, SOURCE_POOL, here, tokens - 1));
    b[token_address(TARGET_POOL, 2, 1, 0) + 13] ^= 1;
    assert_int_not_equal(sum, kvt_checksum_sequence(&layout, b, TARGET_POOL, there, tokens));
    free(a);
    free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_moves_the_same_bytes_as_naive_copying),
        cmocka_unit_test(test_plan_of_nothing),
        cmocka_unit_test(test_checksum_is_the_sum_over_pages),
        cmocka_unit_test(test_checksum_sees_content_and_place_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
