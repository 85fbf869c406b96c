/* Summaries of workers' prefixes, good and bad, and what prompts find in them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/kvcache/prefix_hash.h"
#include "common/messaging/registration.h"
#include "router/worker_prefixes.h"

#define TOKENS 1000 /* 15 blocks and 40 tokens */
#define BLOCKS (TOKENS / BT_PAGE_TOKENS)

static const struct bt_fingerprint fingerprint = {.layout_version = 1, .model_hash = 5};
static uint32_t prompt[TOKENS];

/* Lists longer than a summary may have. */
#define LIST_MAX (BT_REGISTRATION_MAX_PREFIXES + 1)
static uint32_t pages[LIST_MAX], parents[LIST_MAX];
static uint64_t blocks[LIST_MAX];

/* The first `count` blocks of the prompt, in pages from 7 on. */
static Baton__V1__PrefixSummary summary_of(uint32_t count, uint64_t since, uint64_t version)
{
    struct bt_prefix_hash hashes[BLOCKS];
    bt_prefix_hash_prompt(bt_prefix_hash_start(&fingerprint), prompt, TOKENS, hashes);
    for (uint32_t i = 0; i < count; i++) {
        pages[i] = 7 + i;
        parents[i] = i > 0 ? 6 + i : UINT32_MAX;
        blocks[i] = bt_prefix_block_id(hashes[i]);
    }
    Baton__V1__PrefixSummary summary = BATON__V1__PREFIX_SUMMARY__INIT;
    summary.since = since;
    summary.version = version;
    summary.page = pages;
    summary.parent = parents;
    summary.block = blocks;
    summary.n_page = summary.n_parent = summary.n_block = count;
    return summary;
}

static int setup(void **state)
{
    for (uint32_t i = 0; i < TOKENS; i++) {
        prompt[i] = i * i;
    }
    *state = rt_worker_prefixes_create(4096);
    return *state ? 0 : -1;
}

static int teardown(void **state)
{
    rt_worker_prefixes_destroy(*state);
    return 0;
}

static uint32_t find(struct rt_worker_prefixes *prefixes, uint32_t tokens, struct rt_cached *cached)
{
    return rt_worker_prefixes_find(prefixes, &fingerprint, prompt, tokens, 1, cached);
}

static void expect_found(struct rt_worker_prefixes *prefixes, uint32_t tokens, uint32_t found)
{
    struct rt_cached cached[RT_CACHED_MAX];
    uint32_t count = find(prefixes, tokens, cached);
    assert_int_equal(count, found > 0);
    assert_true(count == 0 || (cached[0].worker == 3 && cached[0].tokens == found));
}

static void test_what_is_told_is_found(void **state)
{
    struct rt_worker_prefixes *prefixes = *state;
    Baton__V1__PrefixSummary summary = summary_of(10, 0, 10);
    expect_found(prefixes, TOKENS, 0);
    assert_int_equal(rt_worker_prefixes_hear(prefixes, 3, NULL), 0);
    assert_int_equal(rt_worker_prefixes_hear(prefixes, 3, &summary), 10);
    assert_int_equal(rt_worker_prefixes_hear(prefixes, 3, NULL), 10);
    expect_found(prefixes, TOKENS, 640);
    expect_found(prefixes, 641, 640);
    expect_found(prefixes, 640, 576); /* the last token is computed */
    expect_found(prefixes, 64, 0);
    expect_found(prefixes, 1, 0);
    prompt[63]++;
    expect_found(prefixes, TOKENS, 0);
    prompt[63]--;
    prompt[639]++;
    expect_found(prefixes, TOKENS, 576);
    prompt[639]--;
    struct rt_cached cached[RT_CACHED_MAX];
    struct bt_fingerprint other = fingerprint;
    other.model_hash++;
    assert_int_equal(rt_worker_prefixes_find(prefixes, &other, prompt, TOKENS, 1, cached), 0);
    /* Another worker has more of it. */
    summary = summary_of(12, 0, 900);
    assert_int_equal(rt_worker_prefixes_hear(prefixes, 8, &summary), 900);
    assert_int_equal(find(prefixes, TOKENS, cached), 2);
    assert_int_equal(cached[0].worker, 8);
    assert_int_equal(cached[0].tokens, 768);
    assert_int_equal(cached[1].worker, 3);
    rt_worker_prefixes_forget(prefixes, 8);
    expect_found(prefixes, TOKENS, 640);
    rt_worker_prefixes_forget(prefixes, 3);
    expect_found(prefixes, TOKENS, 0);
    assert_int_equal(rt_worker_prefixes_hear(prefixes, 3, NULL), 0);
}

static void test_news_follow_what_is_known(void **state)
{
    struct rt_worker_prefixes *prefixes = *state;
    Baton__V1__PrefixSummary summary = summary_of(10, 0, 10);
    rt_worker_prefixes_hear(prefixes, 3, &summary);
    uint32_t page = 16, none = UINT32_MAX;
    uint64_t nothing = 0;
    summary.since = 9; /* one was lost */
    summary.version = 11;
    summary.page = &page;
    summary.parent = &none;
    summary.block = &nothing;
    summary.n_page = summary.n_parent = summary.n_block = 1;
    assert_int_equal(rt_worker_prefixes_hear(prefixes, 3, &summary), 10);
    expect_found(prefixes, TOKENS, 640);
    summary.since = 10;
    assert_int_equal(rt_worker_prefixes_hear(prefixes, 3, &summary), 11);
    expect_found(prefixes, TOKENS, 576);
    /* All from new. */
    summary = summary_of(2, 0, 30);
    assert_int_equal(rt_worker_prefixes_hear(prefixes, 3, &summary), 30);
    expect_found(prefixes, TOKENS, 128);
}

static void test_what_can_not_be_is_forgotten(void **state)
{
    struct rt_worker_prefixes *prefixes = *state;
#define REFUSED(count, change)                                                                     \
    do {                                                                                           \
        Baton__V1__PrefixSummary good = summary_of(10, 0, 10), bad;                                \
        assert_int_equal(rt_worker_prefixes_hear(prefixes, 3, &good), 10);                         \
        expect_found(prefixes, TOKENS, 640);                                                       \
        bad = summary_of(count, 0, 20);                                                            \
        change;                                                                                    \
        assert_int_equal(rt_worker_prefixes_hear(prefixes, 3, &bad), 0);                           \
        expect_found(prefixes, TOKENS, 0);                                                         \
    } while (0)
    REFUSED(10, bad.n_page--);
    REFUSED(10, bad.n_parent--);
    REFUSED(10, bad.n_block--);
    REFUSED(10, bad.n_page = bad.n_parent = bad.n_block = LIST_MAX);
    REFUSED(10, pages[4] = UINT32_MAX);
    REFUSED(10, parents[4] = UINT32_MAX - 1);
    REFUSED(10, parents[4] = pages[4]);
    REFUSED(10, bad.version = 0);
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    rt_worker_prefixes_render(prefixes, out);
    fclose(out);
    assert_non_null(strstr(text, "\nbaton_router_prefix_summaries_refused_total 8\n"));
    assert_non_null(strstr(text, "\nbaton_router_prefix_blocks 0\n"));
    assert_non_null(strstr(text, "\nbaton_router_prefix_hits_total 5120\n"));
    assert_non_null(strstr(text, "\nbaton_router_prefix_queries_total 16000\n"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_is_told_is_found, setup, teardown),
        cmocka_unit_test_setup_teardown(test_news_follow_what_is_known, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_can_not_be_is_forgotten, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
