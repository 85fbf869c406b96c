/* The pages of prompts, taken and let go of at random, against a list of what each page holds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "prefill-node/prompt_pages.h"

#define POOL       40
#define PROMPTS    6
#define TOKENS_MAX 700
#define STEPS      20000

static const struct bt_fingerprint fingerprint = {.layout_version = 1, .model_hash = 3};

static uint64_t draws;
static uint32_t draw(uint32_t below)
{
    return (uint32_t)(bt_random_u64(77, draws++, 0) % below);
}

/* A prompt that has its pages, or none. */
struct holder {
    struct pf_prompt_pages pages;
    uint32_t tokens[TOKENS_MAX], count;
    bool shares;
};

/* What was computed into each page: its tokens and those before. */
static struct {
    uint32_t tokens[TOKENS_MAX], count;
} written[POOL];

static struct pf_pages pages;
static struct holder holders[PROMPTS];
static uint64_t request;

/* Of few kinds, so that many begin alike. */
static void holder_begin(struct holder *holder)
{
    uint32_t kind = draw(3), turn = draw(TOKENS_MAX);
    holder->count = 1 + draw(TOKENS_MAX);
    holder->shares = draw(8) > 0;
    for (uint32_t i = 0; i < holder->count; i++) {
        holder->tokens[i] = i < turn ? kind * 1000 + i : draw(2);
    }
    const struct bt_page_owner owner = {++request, 1};
    assert_true(pf_prompt_pages_init(&holder->pages, &pages, owner, holder->tokens, holder->count,
                                     holder->shares));
}

/* Cached pages hold what the prompt begins with; nobody else may write the others. */
static void expect_taken(const struct holder *holder)
{
    const struct pf_prompt_pages *mine = &holder->pages;
    uint32_t cached = pf_prompt_pages_cached_tokens(mine);
    assert_true(cached < holder->count && cached % BT_PAGE_TOKENS == 0);
    assert_true(holder->shares || cached == 0);
    for (uint32_t i = 0; i < cached / BT_PAGE_TOKENS; i++) {
        uint32_t page = mine->list[i], count = (i + 1) * BT_PAGE_TOKENS;
        assert_int_equal(written[page].count, count);
        assert_memory_equal(written[page].tokens, holder->tokens, count * sizeof(uint32_t));
        assert_int_equal(bt_page_pool_state(pages.pool, page, NULL), BT_PAGE_CACHED);
    }
    for (uint32_t i = cached / BT_PAGE_TOKENS; i < mine->count; i++) {
        for (uint32_t k = 0; k < PROMPTS; k++) {
            for (uint32_t p = 0;
                 &holders[k] != holder && holders[k].pages.list && p < holders[k].pages.count;
                 p++) {
                assert_int_not_equal(mine->list[i], holders[k].pages.list[p]);
            }
        }
    }
}

static void compute(struct holder *holder, uint32_t computed)
{
    uint32_t cached = pf_prompt_pages_cached_tokens(&holder->pages) / BT_PAGE_TOKENS;
    for (uint32_t i = cached; i * BT_PAGE_TOKENS < computed; i++) {
        uint32_t page = holder->pages.list[i], end = (i + 1) * BT_PAGE_TOKENS;
        written[page].count = end < computed ? end : computed;
        memcpy(written[page].tokens, holder->tokens, written[page].count * sizeof(uint32_t));
    }
}

static void holder_end(struct holder *holder)
{
    uint32_t computed = draw(3) ? holder->count : draw(holder->count + 1);
    compute(holder, computed);
    if (computed == holder->count && draw(4)) {
        pf_prompt_pages_computed(&holder->pages);
    }
    pf_prompt_pages_release(&holder->pages, computed);
    pf_prompt_pages_release(&holder->pages, computed);
    pf_prompt_pages_finish(&holder->pages);
}

static void expect_counts(void)
{
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    bool held[POOL] = {false};
    uint32_t in_use = 0;
    for (uint32_t i = 0; i < PROMPTS; i++) {
        for (uint32_t k = 0; holders[i].pages.list && k < holders[i].pages.count; k++) {
            in_use += !held[holders[i].pages.list[k]];
            held[holders[i].pages.list[k]] = true;
        }
    }
    pf_pages_load(&pages, &load);
    assert_int_equal(load.pages_total, POOL);
    assert_int_equal(load.pages_free, pf_pages_free(&pages));
    assert_int_equal(load.pages_free + load.pages_reserved + load.pages_ready, POOL);
    assert_true(load.pages_reserved + load.pages_ready >= in_use);
    if (in_use == 0) {
        assert_int_equal(load.pages_free, POOL);
    }
    const char *wrong = bt_prefix_index_check(pages.prefixes);
    if (wrong) {
        fail_msg("not so: %s", wrong);
    }
}

/* All can be had at once, cached or not; that is refused only where the others have too many. */
static void test_pages_at_random(void **state)
{
    (void)state;
    uint32_t hits = 0, refusals = 0;
    draws = 0;
    assert_true(pf_pages_init(&pages, POOL, &fingerprint, true));
    for (uint32_t step = 0; step < STEPS; step++) {
        struct holder *holder = &holders[draw(PROMPTS)];
        if (holder->pages.list) {
            holder_end(holder);
        } else {
            holder_begin(holder);
            uint32_t before = pf_pages_free(&pages);
            if (pf_prompt_pages_take(&holder->pages)) {
                expect_taken(holder);
                hits += pf_prompt_pages_cached_tokens(&holder->pages) > 0;
            } else {
                assert_int_equal(pf_pages_free(&pages), before);
                assert_true(before < holder->pages.count);
                refusals++;
                pf_prompt_pages_finish(&holder->pages);
            }
        }
        expect_counts();
    }
    print_message("%u hits, %u refusals, %u evictions\n", hits, refusals,
                  (unsigned)bt_prefix_index_evictions(pages.prefixes));
    assert_true(hits > STEPS / 20 && refusals > 20);
    assert_true(bt_prefix_index_evictions(pages.prefixes) > 1000);
    for (uint32_t i = 0; i < PROMPTS; i++) {
        if (holders[i].pages.list) {
            holder_end(&holders[i]);
        }
    }
    expect_counts();
    pf_pages_finish(&pages);
}

static void test_without_prefixes(void **state)
{
    (void)state;
    assert_true(pf_pages_init(&pages, POOL, &fingerprint, false));
    for (uint32_t i = 0; i < 100; i++) {
        holder_begin(&holders[0]);
        assert_true(pf_prompt_pages_take(&holders[0].pages));
        assert_int_equal(pf_prompt_pages_cached_tokens(&holders[0].pages), 0);
        assert_int_equal(pf_pages_free(&pages), POOL - holders[0].pages.count);
        holder_end(&holders[0]);
        assert_int_equal(bt_page_pool_count(pages.pool, BT_PAGE_FREE), POOL);
    }
    pf_pages_finish(&pages);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages_at_random),
        cmocka_unit_test(test_without_prefixes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
