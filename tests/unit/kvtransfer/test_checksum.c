/* The checksum: every way to compute it agrees, copying included; every change is seen. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "kvtransfer/checksum.h"

#define BYTES 2048

static _Alignas(64) unsigned char from[BYTES + 64], to[BYTES + 64];

static void fill(uint64_t seed)
{
    for (size_t i = 0; i < sizeof(from); i++)
        from[i] = (unsigned char)bt_random_u64(seed, i, 0);
}

/* The definition in checksum.h, written once more. */
static uint64_t mix(uint64_t v)
{
    v ^= v >> 32;
    v *= UINT64_C(0xd6e8feb86659fd93);
    v ^= v >> 29;
    v *= UINT64_C(0xa0761d6478bd642f);
    return v ^ v >> 32;
}

static uint64_t defined(const unsigned char *bytes, size_t count, uint64_t seed)
{
    uint64_t sums[8] = {0}, hash = mix(seed ^ count * KVT_CHECKSUM_STEP);

    for (size_t at = 0; at < count; at += 8) {
        uint64_t word = 0, j = at / 8 % 8, stripe = at / 64, k;
        memcpy(&word, bytes + at, count - at < 8 ? count - at : 8);
        k = word ^
            (mix(seed + (j + 1) * UINT64_C(0xe7037ed1a0b428db)) + stripe * KVT_CHECKSUM_STEP);
        sums[j] += (uint64_t)(uint32_t)k * (uint32_t)(k >> 32);
        sums[j ^ 1] += word;
    }
    for (size_t at = (count + 7) / 8 * 8; at % 64 != 0; at += 8) { /* the padding is hashed, too */
        uint64_t j = at / 8 % 8, stripe = at / 64;
        uint64_t k =
            mix(seed + (j + 1) * UINT64_C(0xe7037ed1a0b428db)) + stripe * KVT_CHECKSUM_STEP;
        sums[j] += (uint64_t)(uint32_t)k * (uint32_t)(k >> 32);
    }
    for (uint64_t j = 0; j < 8; j++)
        hash = (hash ^ mix(sums[j] + j)) * UINT64_C(0x8ebc6af09c88c6e3);
    return mix(hash);
}

/* Rule 6. */
static void test_variants_agree(void **state)
{
    kvt_checksum_hash_fn *variant;
    const char *name;

    (void)state;
    fill(1);
    for (unsigned v = 0; (variant = kvt_checksum_variant(v, &name)) != NULL; v++) {
        for (size_t bytes = 1; bytes < 700; bytes++) {
            uint64_t expected = defined(from, bytes, bytes * 7);
            memset(to, 0xee, sizeof(to));
            assert_int_equal(variant(NULL, from, bytes, bytes * 7), expected);
            assert_int_equal(variant(to, from, bytes, bytes * 7), expected);
            kvt_copy_fence();
            assert_memory_equal(to, from, bytes);
            assert_int_equal(to[bytes], 0xee);
        }
    }
}

/* Rule 6. */
static void test_changes_are_seen(void **state)
{
    const char *name;
    kvt_checksum_hash_fn *hash = kvt_checksum_variant(0, &name);
    unsigned char stripe[64];
    uint64_t before;

    (void)state;
    fill(2);
    before = hash(NULL, from, BYTES, 3);
    for (size_t bit = 0; bit < (size_t)BYTES * 8; bit++) {
        from[bit / 8] ^= (unsigned char)(1 << bit % 8);
        assert_int_not_equal(hash(NULL, from, BYTES, 3), before);
        from[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    for (size_t at = 64; at < BYTES; at += 64) { /* two stripes change places */
        memcpy(stripe, from, 64);
        memcpy(from, from + at, 64);
        memcpy(from + at, stripe, 64);
        assert_int_not_equal(hash(NULL, from, BYTES, 3), before);
        memcpy(from + at, from, 64);
        memcpy(from, stripe, 64);
    }
    assert_int_not_equal(hash(NULL, from, BYTES - 1, 3), before);
    assert_int_not_equal(hash(NULL, from, BYTES, 4), before);
    memset(from, 0, BYTES); /* zeros: the length and the place still tell them apart */
    assert_int_not_equal(hash(NULL, from, 64, 3), hash(NULL, from, 128, 3));
    assert_int_not_equal(hash(NULL, from, 64, 3), hash(NULL, from, 64, 4));
}

/* Rule 6. */
static void test_copy_any_alignment(void **state)
{
    (void)state;
    fill(5);
    for (size_t begin = 0; begin < 64; begin += 7) {
        for (size_t bytes = 0; bytes < 300; bytes += 11) {
            memset(to, 0xee, sizeof(to));
            kvt_copy(to + begin, from + 3, bytes);
            kvt_copy_fence();
            assert_memory_equal(to + begin, from + 3, bytes);
            assert_int_equal(to[begin + bytes], 0xee);
            assert_true(begin == 0 || to[begin - 1] == 0xee);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_variants_agree),
        cmocka_unit_test(test_changes_are_seen),
        cmocka_unit_test(test_copy_any_alignment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
