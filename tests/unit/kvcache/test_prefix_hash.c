/* Hashes of blocks against those of OpenSSL: `openssl mac -macopt c-rounds:1 -macopt d-rounds:3
 * -macopt size:16 -macopt hexkey:… SIPHASH`. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/kvcache/prefix_hash.h"

static const struct bt_fingerprint fingerprint = {
    .layout_version = 1,
    .model_hash = 0x1234567890abcdef,
    .model_name = "tiny",
    .arithmetic = "bfloat16",
    .layout = {.layer_count = 4, .kv_lora_rank = 48, .qk_rope_head_dim = 16, .dtype = BT_BF16},
};

static void assert_hash(struct bt_prefix_hash hash, uint64_t low, uint64_t high)
{
    assert_true(hash.low == low);
    assert_true(hash.high == high);
}

static void test_block(void **state)
{
    const struct bt_prefix_hash key = {0x0706050403020100, 0x0f0e0d0c0b0a0908};
    uint32_t tokens[BT_PAGE_TOKENS] = {0};
    (void)state;
    assert_hash(bt_prefix_hash_block(key, tokens), 0x98024629bdb688c7, 0x9a2ffe91f831d5da);
    for (uint32_t i = 0; i < BT_PAGE_TOKENS; i++) {
        tokens[i] = i * UINT32_C(2654435761);
    }
    assert_hash(bt_prefix_hash_block(key, tokens), 0xc980ead80524f73e, 0x8ff02f8dc104acc2);
}

static void test_start(void **state)
{
    struct bt_fingerprint other = fingerprint;
    (void)state;
    assert_hash(bt_prefix_hash_start(&fingerprint), 0xcffa8a80e5276ba2, 0xe854c10a7ddf75d2);
    strcpy(other.model_name, "another");
    assert_hash(bt_prefix_hash_start(&other), 0xcffa8a80e5276ba2, 0xe854c10a7ddf75d2);
    other.layout.dtype = BT_F8_E4M3;
    strcpy(other.arithmetic, "float32_with_a_longer_name");
    assert_hash(bt_prefix_hash_start(&other), 0xa60ee2e49c7cd5d8, 0x4c282fbe1fc8c05c);
}

static void test_start_differs_with_each_field(void **state)
{
    struct bt_fingerprint all[8];
    (void)state;
    for (int i = 0; i < 8; i++) {
        all[i] = fingerprint;
    }
    all[1].layout_version++;
    all[2].model_hash++;
    all[3].layout.dtype = BT_F32;
    all[4].layout.layer_count++;
    all[5].layout.kv_lora_rank++;
    all[6].layout.qk_rope_head_dim++;
    strcpy(all[7].arithmetic, "float32");
    for (int i = 0; i < 8; i++) {
        for (int j = 0; j < i; j++) {
            struct bt_prefix_hash a = bt_prefix_hash_start(&all[i]);
            struct bt_prefix_hash b = bt_prefix_hash_start(&all[j]);
            assert_true(a.low != b.low && a.high != b.high);
        }
    }
}

/* 150 tokens are two full blocks. */
static void test_prompt(void **state)
{
    struct bt_prefix_hash hashes[3] = {{0}, {0}, {1, 2}};
    struct bt_prefix_hash start = bt_prefix_hash_start(&fingerprint);
    uint32_t tokens[150];
    (void)state;
    for (uint32_t i = 0; i < 150; i++) {
        tokens[i] = 7 * i + 3;
    }
    assert_int_equal(bt_prefix_hash_prompt(start, tokens, 150, hashes), 2);
    assert_hash(hashes[0], 0xe0191c9b423aff7e, 0xcc4c4b9b2c772476);
    assert_hash(hashes[1], 0x1b8d4e996cda6b17, 0x0066d2209c97ad30);
    assert_hash(hashes[2], 1, 2);
    assert_int_equal(bt_prefix_hash_prompt(start, tokens, 128, hashes), 2);
    assert_int_equal(bt_prefix_hash_prompt(start, tokens, 127, hashes), 1);
    assert_int_equal(bt_prefix_hash_prompt(start, tokens, 63, hashes), 0);
}

static void test_ids_are_never_0(void **state)
{
    (void)state;
    assert_true(bt_prefix_block_id((struct bt_prefix_hash){7, 9}) == 7);
    assert_true(bt_prefix_block_id((struct bt_prefix_hash){0, 9}) != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_block),
        cmocka_unit_test(test_start),
        cmocka_unit_test(test_start_differs_with_each_field),
        cmocka_unit_test(test_prompt),
        cmocka_unit_test(test_ids_are_never_0),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
