/* Prompts that begin like earlier ones: how much of them is computed, and that nobody could tell
 * from the KV or the first token. One test a run: its name is the argument. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/kvcache/prefix_hash.h"
#include "tests/unit/prefill/ranks.h"

#define PROMPT_MAX 2048
#define TEXTS      6

/* A prompt, and what a worker that shares nothing, with chunks of another size, makes of it. */
struct text {
    uint32_t tokens[PROMPT_MAX];
    uint32_t count;
    int first;
    size_t kv_bytes;
    char *kv;
};

static struct text texts[TEXTS];

static uint32_t draw(uint32_t text, uint32_t i)
{
    return 2 + (uint32_t)(bt_random_u64(31, text, i) % 2000);
}

/* The tokens of text 0 up to `same`, then others. */
static void write_text(uint32_t index, uint32_t same, uint32_t count)
{
    texts[index].count = count;
    for (uint32_t i = 0; i < count; i++) {
        texts[index].tokens[i] = draw(i < same ? 0 : index, i);
    }
}

static void forget_texts(void)
{
    for (uint32_t i = 0; i < TEXTS; i++) {
        free(texts[i].kv);
        texts[i].kv = NULL;
    }
}

/* ---- runs ---- */

static void start(struct ranks *ranks, struct attempt *attempt, uint64_t request, uint32_t text)
{
    attempt_init(attempt, request, texts[text].tokens, texts[text].count, 2);
    assert_int_equal(cluster_reserve(&ranks->cluster, attempt), BT_OK);
    cluster_run(&ranks->cluster, attempt);
}

static void finish(struct ranks *ranks, const struct attempt *attempt)
{
    cluster_until(&ranks->cluster, attempt->run_ended && attempt->finish != 0);
    if (attempt->run_status != BT_OK) {
        fail_msg("%s", attempt->run_text);
    }
    assert_int_equal(attempt->first_token, attempt->tokens[0]);
}

static void expect_bits(const struct attempt *attempt, uint32_t index)
{
    const struct text *text = &texts[index];
    const struct kv_landed *kv = kv_of(attempt->request);
    assert_int_equal(attempt->first_token, text->first);
    assert_int_equal(kv->bytes, text->kv_bytes);
    if (memcmp(kv->data, text->kv, kv->bytes) != 0) {
        fail_msg("KV of text %u is not what it is without a cache", index);
    }
}

static double hits(struct ranks *ranks)
{
    return ranks_metric(ranks, 0, "vllm:prefix_cache_hits_total");
}

/* To its end; the tokens that were found. */
static uint32_t run_text(struct ranks *ranks, struct attempt *attempt, uint64_t request,
                         uint32_t text)
{
    double before = hits(ranks);
    kv_forget();
    start(ranks, attempt, request, text);
    finish(ranks, attempt);
    expect_bits(attempt, text);
    return (uint32_t)(hits(ranks) - before);
}

static void learn_texts(uint32_t size, enum bt_dtype kv_dtype)
{
    struct ranks ranks;
    static struct attempt attempts[TEXTS];
    ranks_open(&ranks,
               &(struct ranks_options){
                   .size = size, .kv_dtype = kv_dtype, .chunk = "192", .no_prefix_caching = true});
    for (uint32_t i = 0; i < TEXTS; i++) {
        kv_forget();
        start(&ranks, &attempts[i], i + 1, i);
        finish(&ranks, &attempts[i]);
        const struct kv_landed *kv = kv_of(i + 1);
        texts[i].first = attempts[i].first_token;
        texts[i].kv_bytes = kv->bytes;
        texts[i].kv = malloc(kv->bytes);
        memcpy(texts[i].kv, kv->data, kv->bytes);
    }
    assert_true(hits(&ranks) == 0);
    assert_true(ranks_metric(&ranks, 0, "vllm:prefix_cache_queries_total") == 0);
    assert_true(ranks_metric(&ranks, 0, "baton_prefix_pages") == 0);
    ranks_close(&ranks);
}

/* Nobody has a page, and each may be had. */
static void expect_all_free(struct ranks *ranks)
{
    cluster_until(&ranks->cluster, ranks_metric(ranks, 0, "vllm:kv_cache_usage_perc") == 0 &&
                                       ranks_metric(ranks, 0, "vllm:num_requests_running") == 0);
}

/* ---- what is found, and what goes out ---- */

static bool is_told(const struct ranks_prefixes *prefixes, const struct text *text,
                    struct bt_prefix_hash start)
{
    struct bt_prefix_hash hashes[PROMPT_MAX / BT_PAGE_TOKENS];
    uint32_t count = bt_prefix_hash_prompt(start, text->tokens, text->count, hashes);
    uint32_t parent = UINT32_MAX;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t page = 0;
        while (page < RANKS_PAGES_MAX && (prefixes->block[page] != bt_prefix_block_id(hashes[i]) ||
                                          prefixes->parent[page] != parent)) {
            page++;
        }
        if (page == RANKS_PAGES_MAX) {
            return false;
        }
        parent = page;
    }
    return true;
}

/* The heartbeats' news add up to the blocks of all texts, once each. */
static void expect_told(struct ranks *ranks, enum bt_dtype kv_dtype, uint32_t distinct)
{
    struct bt_fingerprint fingerprint;
    bt_model_fingerprint(ranks->cluster.model, "whatever", kv_dtype, &fingerprint);
    struct bt_prefix_hash first = bt_prefix_hash_start(&fingerprint);
    for (uint32_t i = 0; i < TEXTS; i++) {
        cluster_until(&ranks->cluster, is_told(ranks->prefixes, &texts[i], first));
    }
    uint32_t blocks = 0;
    for (uint32_t page = 0; page < RANKS_PAGES_MAX; page++) {
        blocks += ranks->prefixes->block[page] != 0;
    }
    assert_int_equal(blocks, distinct);
}

static void share(uint32_t size, enum bt_dtype kv_dtype)
{
    /* The next ones: another tail; another last token of block 9; the last token ends block 9; the
     * same again; it goes on. */
    write_text(0, 0, 701);
    write_text(1, 640, 900);
    write_text(2, 639, 701);
    write_text(3, 640, 640);
    write_text(4, 701, 701);
    write_text(5, 1000, 1000);
    static const uint32_t found[TEXTS] = {0, 640, 576, 576, 640, 640};
    learn_texts(size, kv_dtype);
    struct ranks ranks;
    static struct attempt attempts[TEXTS];
    static struct ranks_prefixes prefixes;
    uint32_t asked = 0, sum = 0;
    double bytes = 0;
    prefixes = (struct ranks_prefixes){0};
    ranks_open(&ranks,
               &(struct ranks_options){.size = size, .kv_dtype = kv_dtype, .heartbeat_ms = 50});
    ranks.prefixes = &prefixes;
    for (uint32_t i = 0; i < TEXTS; i++) {
        assert_int_equal(run_text(&ranks, &attempts[i], i + 1, i), found[i]);
        assert_int_equal(attempts[i].by_prefill.kv_bytes, texts[i].kv_bytes);
        bytes += (double)texts[i].kv_bytes;
        asked += texts[i].count;
        sum += found[i];
    }
    for (uint32_t rank = 0; rank < size; rank++) {
        bytes -= ranks_metric(&ranks, rank, "baton_kv_pushed_bytes_total");
    }
    assert_true(bytes == 0);
    assert_true(ranks_metric(&ranks, 0, "vllm:prefix_cache_queries_total") == asked);
    assert_true(ranks_metric(&ranks, 0, "baton_prefill_computed_tokens_total") == asked - sum);
    assert_true(ranks_metric(&ranks, 0, "baton_prefix_evictions_total") == 0);
    /* 15 of text 5, 4 more of text 1, 1 more of text 2. */
    assert_true(ranks_metric(&ranks, 0, "baton_prefix_pages") == 20);
    expect_told(&ranks, kv_dtype, 20);
    expect_all_free(&ranks);
    ranks_close(&ranks);
    forget_texts();
}

static void test_f32(void **state)
{
    (void)state;
    share(1, BT_F32);
}

static void test_bf16(void **state)
{
    (void)state;
    share(1, BT_BF16);
}

static void test_fp8(void **state)
{
    (void)state;
    share(1, BT_F8_E4M3);
}

static void test_groups(void **state)
{
    (void)state;
    share(2, BT_F32);
    share(4, BT_BF16);
}

/* ---- what a cancelled prompt leaves ---- */

static double computed(struct ranks *ranks)
{
    return ranks_metric(ranks, 0, "baton_prefill_computed_tokens_total");
}

/* Blocks that were computed are there, those that were not are not; how far a prompt came before it
 * was cancelled is up to the machine, and the worker's to say. */
static void cancel(uint32_t size)
{
    write_text(0, 0, 1400);
    for (uint32_t i = 1; i < TEXTS; i++) {
        write_text(i, i * 64, 1400);
    }
    learn_texts(size, BT_F32);
    struct ranks ranks;
    static struct attempt attempts[3 * TEXTS];
    uint64_t request = 0;
    ranks_open(&ranks, &(struct ranks_options){.size = size, .chunk = "64", .pages = "160"});
    for (uint32_t i = 0; i < TEXTS; i++) {
        /* Text 0 whole, so that the others' first i blocks are there. */
        struct attempt *cancelled = &attempts[request++];
        double before = hits(&ranks) + computed(&ranks);
        start(&ranks, cancelled, request, i);
        cluster_until(&ranks.cluster, cancelled->run_ended || cancelled->started);
        for (uint32_t turn = 0; turn < i && !cancelled->run_ended; turn++) {
            cluster_turn(&ranks.cluster);
        }
        if (cancelled->run) {
            bt_rpc_pending_cancel(cancelled->run);
        }
        cluster_until(&ranks.cluster, cancelled->run_ended);
        cluster_cancel(&ranks.cluster, request, cancelled->epoch);
        bool all = cancelled->run_status == BT_OK; /* it was faster */
        cluster_until(&ranks.cluster, !all || cancelled->finish != 0);
        expect_all_free(&ranks);
        uint32_t there = (uint32_t)(hits(&ranks) + computed(&ranks) - before);
        struct attempt *whole = &attempts[request++];
        uint32_t found = run_text(&ranks, whole, request, i);
        print_message("text %u: %u tokens of the cancelled one's %u\n", i, found, there);
        assert_int_equal(found, there / 64 * 64);
        assert_true(there >= (i + 1) * 64 && there <= 1400 && (there == 1400 || !all));
        struct attempt *again = &attempts[request++];
        assert_int_equal(run_text(&ranks, again, request, i), 1344);
    }
    expect_all_free(&ranks);
    ranks_close(&ranks);
    forget_texts();
}

static void test_cancel(void **state)
{
    (void)state;
    cancel(1);
}

static void test_cancel_group(void **state)
{
    (void)state;
    cancel(2);
}

/* ---- in a pool that is too small for all ---- */

/* Two at once, 19 pages each of 40; some cancelled. */
static void test_pressure(void **state)
{
    (void)state;
    static struct attempt attempts[60];
    write_text(0, 0, 1200);
    for (uint32_t i = 1; i < TEXTS; i++) {
        write_text(i, i % 3 * 300, 1200 - i);
    }
    learn_texts(1, BT_F32);
    struct ranks ranks;
    ranks_open(&ranks, &(struct ranks_options){.size = 1, .pages = "40"});
    struct cluster *cluster = &ranks.cluster;
    uint32_t request = 0, matched = 0;
    for (uint32_t turn = 0; turn < 12; turn++) {
        uint32_t chosen[3];
        kv_forget();
        double before = hits(&ranks);
        for (uint32_t i = 0; i < 3; i++) {
            chosen[i] = (uint32_t)(bt_random_u64(5, turn, i) % TEXTS);
            start(&ranks, &attempts[request + i], request + i + 1, chosen[i]);
        }
        struct attempt *third = &attempts[request + 2];
        if (turn % 4 == 3) {
            bt_rpc_pending_cancel(third->run);
        }
        for (uint32_t i = 0; i < 2; i++) {
            finish(&ranks, &attempts[request + i]);
            expect_bits(&attempts[request + i], chosen[i]);
        }
        cluster_until(cluster, third->run_ended);
        if (third->run_status == BT_OK) {
            finish(&ranks, third);
            expect_bits(third, chosen[2]);
        } else {
            assert_int_equal(third->run_status, BT_ERR_CANCELLED);
            cluster_cancel(cluster, third->request, third->epoch);
        }
        request += 3;
        matched += hits(&ranks) > before;
    }
    print_message("found something in %u turns\n", matched);
    assert_true(ranks_metric(&ranks, 0, "baton_prefix_evictions_total") > 0);
    /* What is left of all that still finds: all of a text that was here last, but its last page. */
    for (uint32_t i = 0; i < TEXTS; i++) {
        expect_all_free(&ranks);
        run_text(&ranks, &attempts[request], request + 1, i);
        assert_int_equal(run_text(&ranks, &attempts[request + 1], request + 2, i), 1152);
        request += 2;
    }
    expect_all_free(&ranks);
    ranks_close(&ranks);
    forget_texts();
}

/* ---- pages of several at once ---- */

static void test_at_once(void **state)
{
    (void)state;
    static struct attempt attempts[12];
    write_text(0, 0, 1000);
    write_text(1, 640, 1001);
    write_text(2, 640, 1002);
    write_text(3, 960, 1003);
    write_text(4, 0, 900);
    write_text(5, 0, 300);
    learn_texts(1, BT_F32);
    struct ranks ranks;
    ranks_open(&ranks, &(struct ranks_options){.size = 1, .chunk = "64"});
    assert_int_equal(run_text(&ranks, &attempts[0], 1, 0), 0);
    /* Three that share the pages of the first, which go out from there at the same time. */
    double before = hits(&ranks);
    kv_forget();
    for (uint32_t i = 1; i <= 3; i++) {
        start(&ranks, &attempts[i], i + 1, i);
    }
    for (uint32_t i = 1; i <= 3; i++) {
        finish(&ranks, &attempts[i]);
        expect_bits(&attempts[i], i);
    }
    assert_true(hits(&ranks) - before == 640 + 640 + 960);
    /* Twice the same, which nobody has: one of them keeps its pages. */
    double pages = ranks_metric(&ranks, 0, "baton_prefix_pages");
    kv_forget();
    start(&ranks, &attempts[4], 5, 4);
    start(&ranks, &attempts[5], 6, 4);
    finish(&ranks, &attempts[4]);
    finish(&ranks, &attempts[5]);
    expect_bits(&attempts[4], 4);
    expect_bits(&attempts[5], 4);
    assert_true(ranks_metric(&ranks, 0, "baton_prefix_pages") == pages + 14);
    assert_int_equal(run_text(&ranks, &attempts[6], 7, 4), 896);
    assert_int_equal(run_text(&ranks, &attempts[7], 8, 5), 0);
    expect_all_free(&ranks);
    ranks_close(&ranks);
    forget_texts();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),      cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_fp8),      cmocka_unit_test(test_groups),
        cmocka_unit_test(test_cancel),   cmocka_unit_test(test_cancel_group),
        cmocka_unit_test(test_pressure), cmocka_unit_test(test_at_once),
    };
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
