/* Plans: what comes out is what went in, and no words whatever make a chunk that a rank may not
 * compute. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "common/kvcache/layout.h"
#include "prefill-node/plan.h"

static const struct pf_plan_limits limits = {
    .max_chunks = 6, .max_rows = 300, .max_tokens = 1000, .pool_pages = 90, .vocab_size = 500};

struct sample {
    struct pf_plan_chunk chunks[6];
    uint32_t count;
    uint32_t pages[90], tokens[300];
};

/* Chunks of other pages each, as rank 0 has them. */
static void draw_sample(struct sample *sample, uint64_t seed)
{
    uint32_t page = 0, token = 0;
    sample->count = 1 + (uint32_t)(bt_random_u64(seed, 0, 0) % 6);
    for (uint32_t i = 0; i < 90; i++) {
        sample->pages[i] = (i * 37 + 11) % 90;
    }
    for (uint32_t i = 0; i < 300; i++) {
        sample->tokens[i] = (uint32_t)(bt_random_u64(seed, 1, i) % 500);
    }
    for (uint32_t i = 0; i < sample->count; i++) {
        struct pf_plan_chunk *chunk = &sample->chunks[i];
        *chunk = (struct pf_plan_chunk){
            .serial = bt_random_u64(seed, 2, i) | 1,
            .start = (uint32_t)(bt_random_u64(seed, 3, i) % 900),
            .rows = 1 + (uint32_t)(bt_random_u64(seed, 4, i) % 50),
            .is_last = bt_random_u64(seed, 5, i) % 2,
            .pages = &sample->pages[page],
            .tokens = &sample->tokens[token],
        };
        page += bt_kv_pages_for(chunk->start + chunk->rows);
        token += chunk->rows;
    }
}

static uint32_t *new_words(void)
{
    return calloc(pf_plan_max_words(&limits), sizeof(uint32_t));
}

static void test_what_goes_in_comes_out(void **state)
{
    (void)state;
    uint32_t *words = new_words();
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct sample sample;
        struct pf_plan_chunk chunks[6];
        struct bt_error error;
        uint32_t count;
        draw_sample(&sample, seed);
        uint32_t length = pf_plan_encode(sample.chunks, sample.count, &limits, words);
        assert_true(length <= pf_plan_max_words(&limits));
        assert_int_equal(pf_plan_decode(words, length, &limits, &error, chunks, &count), BT_OK);
        assert_int_equal(count, sample.count);
        for (uint32_t i = 0; i < count; i++) {
            const struct pf_plan_chunk *in = &sample.chunks[i], *out = &chunks[i];
            assert_true(in->serial == out->serial);
            assert_int_equal(in->start, out->start);
            assert_int_equal(in->rows, out->rows);
            assert_int_equal(in->is_last, out->is_last);
            assert_memory_equal(in->pages, out->pages,
                                bt_kv_pages_for(in->start + in->rows) * sizeof(uint32_t));
            assert_memory_equal(in->tokens, out->tokens, in->rows * sizeof(uint32_t));
        }
    }
    free(words);
}

/* The longest prompts at once, all with the same pages but the last. */
static void test_prompts_share_pages(void **state)
{
    (void)state;
    static uint32_t pages[6][16], tokens[300];
    struct pf_plan_chunk in[6], out[6];
    struct bt_error error;
    uint32_t *words = new_words(), count;
    for (uint32_t i = 0; i < 6; i++) {
        for (uint32_t k = 0; k < 16; k++) {
            pages[i][k] = k < 15 ? 40 + k : i;
        }
        in[i] = (struct pf_plan_chunk){.serial = i + 1,
                                       .start = 960,
                                       .rows = 40,
                                       .is_last = true,
                                       .pages = pages[i],
                                       .tokens = &tokens[40 * i]};
    }
    uint32_t length = pf_plan_encode(in, 6, &limits, words);
    assert_true(length <= pf_plan_max_words(&limits));
    assert_int_equal(pf_plan_decode(words, length, &limits, &error, out, &count), BT_OK);
    assert_int_equal(count, 6);
    for (uint32_t i = 0; i < 6; i++) {
        assert_memory_equal(out[i].pages, pages[i], sizeof(pages[i]));
    }
    free(words);
}

/* Reads all that a rank would: the sanitizer sees what lies outside of the words. */
static void expect_computable(const struct pf_plan_chunk *chunks, uint32_t count)
{
    uint64_t rows = 0;
    assert_in_range(count, 1, limits.max_chunks);
    for (uint32_t i = 0; i < count; i++) {
        const struct pf_plan_chunk *chunk = &chunks[i];
        rows += chunk->rows;
        assert_true(chunk->rows > 0 && chunk->serial != 0);
        assert_true((uint64_t)chunk->start + chunk->rows <= limits.max_tokens);
        for (uint32_t k = 0; k < bt_kv_pages_for((uint64_t)chunk->start + chunk->rows); k++) {
            assert_true(chunk->pages[k] < limits.pool_pages);
        }
        for (uint32_t k = 0; k < chunk->rows; k++) {
            assert_true(chunk->tokens[k] < limits.vocab_size);
        }
        for (uint32_t k = 0; k < i; k++) {
            assert_true(chunks[k].serial != chunk->serial);
        }
    }
    assert_true(rows <= limits.max_rows);
}

/* In memory that ends where the words do. */
static bool decode(const uint32_t *words, uint32_t length)
{
    struct pf_plan_chunk chunks[6];
    struct bt_error error = {0};
    uint32_t count;
    uint32_t *exact = malloc(length * sizeof(uint32_t) + 1);
    memcpy(exact, words, length * sizeof(uint32_t));
    enum bt_status status = pf_plan_decode(exact, length, &limits, &error, chunks, &count);
    if (status == BT_OK) {
        expect_computable(chunks, count);
    } else {
        assert_int_equal(status, BT_ERR_PROTOCOL);
        assert_true(strncmp(error.text, "plan: ", 6) == 0);
    }
    free(exact);
    return status == BT_OK;
}

static void test_every_word_changed(void **state)
{
    (void)state;
    static const uint32_t values[] = {0,    1,    2,          5,          6,          7,
                                      64,   65,   90,         300,        500,        999,
                                      1000, 1001, 0x7fffffff, 0x80000000, 0xffffffc1, 0xffffffff};
    uint32_t *words = new_words();
    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct sample sample;
        draw_sample(&sample, seed);
        uint32_t length = pf_plan_encode(sample.chunks, sample.count, &limits, words);
        assert_true(decode(words, length));
        for (uint32_t i = 0; i < length; i++) {
            uint32_t was = words[i];
            for (size_t v = 0; v < sizeof(values) / sizeof(values[0]); v++) {
                words[i] = values[v];
                decode(words, length);
            }
            words[i] = was;
            assert_false(decode(words, i)); /* cut short */
        }
        words[length] = 1;
        assert_false(decode(words, length + 1));
    }
    free(words);
}

static void test_named_faults(void **state)
{
    (void)state;
    uint32_t *words = new_words();
    struct sample sample;
    draw_sample(&sample, 3);
    sample.count = 2;
    uint32_t length = pf_plan_encode(sample.chunks, sample.count, &limits, words);
    struct {
        uint32_t word, value;
    } faults[] = {
        {0, 0},   {0, 7},          {0, UINT32_MAX}, {3, 1000},         {4, 0},
        {4, 301}, {4, 0x80000000}, {5, 2},          {length - 1, 500}, {11, 90},
    };
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        uint32_t was = words[faults[i].word];
        words[faults[i].word] = faults[i].value;
        assert_false(decode(words, length));
        words[faults[i].word] = was;
    }
    memcpy(&words[6], &words[1], 2 * sizeof(uint32_t)); /* one job twice */
    assert_false(decode(words, length));
    words[1] = words[2] = 0;
    assert_false(decode(words, length));
    free(words);
}

static void test_noise(void **state)
{
    (void)state;
    uint32_t words[400];
    for (uint64_t seed = 1; seed <= 20000; seed++) {
        uint32_t length = (uint32_t)(bt_random_u64(seed, 0, 0) % 400);
        uint32_t bound = bt_random_u64(seed, 0, 1) % 2 ? 8 : UINT32_MAX;
        for (uint32_t i = 0; i < length; i++) {
            words[i] = (uint32_t)(bt_random_u64(seed, 1, i) % bound);
        }
        decode(words, length);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_goes_in_comes_out),
        cmocka_unit_test(test_prompts_share_pages),
        cmocka_unit_test(test_every_word_changed),
        cmocka_unit_test(test_named_faults),
        cmocka_unit_test(test_noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
