#include "kvtransfer/checksum.h"

#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LANES        8
#define STRIPE_BYTES 64
#define PREFETCH     1024 /* bytes ahead: the hardware's own stops at every 4 KiB page */

static uint64_t mix(uint64_t value)
{
    value ^= value >> 32;
    value *= UINT64_C(0xd6e8feb86659fd93);
    value ^= value >> 29;
    value *= UINT64_C(0xa0761d6478bd642f);
    return value ^ value >> 32;
}

static void make_keys(uint64_t seed, uint64_t ret_keys[LANES])
{
    for (uint64_t j = 0; j < LANES; j++)
        ret_keys[j] = mix(seed + (j + 1) * UINT64_C(0xe7037ed1a0b428db));
}

static void add_stripe(uint64_t sums[LANES], const uint64_t keys[LANES], const void *from)
{
    uint64_t lanes[LANES];

    memcpy(lanes, from, sizeof(lanes));
    for (unsigned j = 0; j < LANES; j++) {
        uint64_t k = lanes[j] ^ keys[j];
        sums[j] += (k & UINT32_MAX) * (k >> 32);
        sums[j ^ 1] += lanes[j];
    }
}

/* What is left after the whole stripes, `keys` being those of its place. */
static uint64_t finish(uint64_t sums[LANES], const uint64_t keys[LANES], const void *rest,
                       size_t bytes, uint64_t seed)
{
    uint64_t padded[LANES] = {0}, hash = mix(seed ^ bytes * KVT_CHECKSUM_STEP);

    if (bytes % STRIPE_BYTES != 0) {
        memcpy(padded, rest, bytes % STRIPE_BYTES);
        add_stripe(sums, keys, padded);
    }
    for (uint64_t j = 0; j < LANES; j++)
        hash = (hash ^ mix(sums[j] + j)) * UINT64_C(0x8ebc6af09c88c6e3);
    return mix(hash);
}

/* `to`: NULL, or where to copy; NULL and not NULL are two loops to the compiler. */
static uint64_t hash_plain(void *to, const void *from, size_t bytes, uint64_t seed)
{
    uint64_t keys[LANES], sums[LANES] = {0};
    const char *at = from;

    make_keys(seed, keys);
    for (size_t i = 0; i < bytes / STRIPE_BYTES; i++, at += STRIPE_BYTES) {
        add_stripe(sums, keys, at);
        for (unsigned j = 0; j < LANES; j++)
            keys[j] += KVT_CHECKSUM_STEP;
    }
    if (to != NULL)
        memcpy(to, from, bytes);
    return finish(sums, keys, at, bytes, seed);
}

#if defined(__x86_64__)

__attribute__((target("avx512f"))) static uint64_t hash_avx512(void *to, const void *from,
                                                               size_t bytes, uint64_t seed)
{
    uint64_t keys[LANES], sums[LANES];
    const char *at = from;
    char *put = to;
    __m512i step = _mm512_set1_epi64((long long)KVT_CHECKSUM_STEP), key, products, plain;

    make_keys(seed, keys);
    key = _mm512_loadu_si512(keys);
    products = plain = _mm512_setzero_si512();
    for (size_t i = 0; i < bytes / STRIPE_BYTES; i++, at += STRIPE_BYTES) {
        __m512i data = _mm512_loadu_si512(at), k = _mm512_xor_si512(data, key);
        _mm_prefetch(at + PREFETCH, _MM_HINT_T0);
        if (put != NULL) {
            _mm512_stream_si512((void *)put, data);
            put += STRIPE_BYTES;
        }
        products = _mm512_add_epi64(products, _mm512_mul_epu32(k, _mm512_srli_epi64(k, 32)));
        plain = _mm512_add_epi64(plain, data);
        key = _mm512_add_epi64(key, step);
    }
    products = _mm512_add_epi64(products, _mm512_shuffle_epi32(plain, 0x4e));
    _mm512_storeu_si512(sums, products);
    _mm512_storeu_si512(keys, key);
    if (put != NULL)
        memcpy(put, at, bytes % STRIPE_BYTES);
    return finish(sums, keys, at, bytes, seed);
}

__attribute__((target("avx2"))) static uint64_t hash_avx2(void *to, const void *from, size_t bytes,
                                                          uint64_t seed)
{
    uint64_t keys[LANES], sums[LANES];
    const char *at = from;
    char *put = to;
    __m256i step = _mm256_set1_epi64x((long long)KVT_CHECKSUM_STEP);
    __m256i key[2], products[2], plain[2];

    make_keys(seed, keys);
    for (unsigned h = 0; h < 2; h++) {
        key[h] = _mm256_loadu_si256((const __m256i *)(keys + 4 * h));
        products[h] = plain[h] = _mm256_setzero_si256();
    }
    for (size_t i = 0; i < bytes / STRIPE_BYTES; i++) {
        _mm_prefetch(at + PREFETCH, _MM_HINT_T0);
        for (unsigned h = 0; h < 2; h++, at += 32) {
            __m256i data = _mm256_loadu_si256((const __m256i *)at);
            __m256i k = _mm256_xor_si256(data, key[h]);
            if (put != NULL) {
                _mm256_stream_si256((__m256i *)put, data);
                put += 32;
            }
            products[h] =
                _mm256_add_epi64(products[h], _mm256_mul_epu32(k, _mm256_srli_epi64(k, 32)));
            plain[h] = _mm256_add_epi64(plain[h], data);
            key[h] = _mm256_add_epi64(key[h], step);
        }
    }
    for (unsigned h = 0; h < 2; h++) {
        products[h] = _mm256_add_epi64(products[h], _mm256_shuffle_epi32(plain[h], 0x4e));
        _mm256_storeu_si256((__m256i *)(sums + 4 * h), products[h]);
        _mm256_storeu_si256((__m256i *)(keys + 4 * h), key[h]);
    }
    if (put != NULL)
        memcpy(put, at, bytes % STRIPE_BYTES);
    return finish(sums, keys, at, bytes, seed);
}

static void stream_stripes(char *to, const char *from, size_t count)
{
    for (size_t i = 0; i < count; i++, to += STRIPE_BYTES, from += STRIPE_BYTES) {
        __m128i data[4];
        _mm_prefetch(from + PREFETCH, _MM_HINT_T0);
        for (unsigned q = 0; q < 4; q++)
            data[q] = _mm_loadu_si128((const __m128i *)from + q);
        for (unsigned q = 0; q < 4; q++)
            _mm_stream_si128((__m128i *)to + q, data[q]);
    }
}

void kvt_copy(void *to, const void *from, size_t bytes)
{
    size_t head = -(uintptr_t)to % STRIPE_BYTES, stripes;

    if (head > bytes)
        head = bytes;
    memcpy(to, from, head);
    stripes = (bytes - head) / STRIPE_BYTES;
    stream_stripes((char *)to + head, (const char *)from + head, stripes);
    head += stripes * STRIPE_BYTES;
    memcpy((char *)to + head, (const char *)from + head, bytes - head);
}

void kvt_copy_fence(void)
{
    _mm_sfence();
}

#else

void kvt_copy(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}

void kvt_copy_fence(void)
{
    atomic_thread_fence(memory_order_release);
}

#endif

kvt_checksum_hash_fn *kvt_checksum_variant(unsigned index, const char **ret_name)
{
    struct {
        const char *name;
        kvt_checksum_hash_fn *hash;
    } variants[3] = {{"plain", hash_plain}};
    unsigned count = 1;

#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        variants[count].name = "avx2";
        variants[count++].hash = hash_avx2;
    }
    if (__builtin_cpu_supports("avx512f")) {
        variants[count].name = "avx512";
        variants[count++].hash = hash_avx512;
    }
#endif
    if (index >= count)
        return NULL;
    *ret_name = variants[index].name;
    return variants[index].hash;
}

static uint64_t hash(void *to, const void *from, size_t bytes, uint64_t seed)
{
    static _Atomic(kvt_checksum_hash_fn *) chosen;
    kvt_checksum_hash_fn *function = atomic_load_explicit(&chosen, memory_order_relaxed);
    const char *name;

    if (function == NULL) {
        kvt_checksum_hash_fn *next;
        for (unsigned i = 0; (next = kvt_checksum_variant(i, &name)) != NULL; i++)
            function = next; /* the last is the widest */
        atomic_store_explicit(&chosen, function, memory_order_relaxed);
    }
    return function(to, from, bytes, seed);
}

uint64_t kvt_checksum_page(const struct bt_kv_layout *layout, const void *page, uint32_t layer,
                           uint32_t logical_page, uint32_t tokens)
{
    return hash(NULL, page, tokens * bt_kv_token_bytes(layout),
                kvt_checksum_seed(layer, logical_page));
}

uint64_t kvt_checksum_copy_page(const struct bt_kv_layout *layout, void *to, const void *page,
                                uint32_t layer, uint32_t logical_page, uint32_t tokens)
{
    return hash(to, page, tokens * bt_kv_token_bytes(layout),
                kvt_checksum_seed(layer, logical_page));
}

uint64_t kvt_checksum_sequence(const struct bt_kv_layout *layout, const void *pool,
                               uint32_t pool_pages, const uint32_t *pages, uint32_t tokens)
{
    uint32_t page_count = bt_kv_pages_for(tokens);
    uint64_t sum = 0;

    for (uint32_t layer = 0; layer < layout->layer_count; layer++) {
        for (uint32_t i = 0; i < page_count; i++) {
            uint32_t left = tokens - i * BT_PAGE_TOKENS;
            const char *page =
                (const char *)pool + bt_kv_offset(layout, pool_pages, layer, pages[i], 0);
            sum += kvt_checksum_page(layout, page, layer, i,
                                     left < BT_PAGE_TOKENS ? left : BT_PAGE_TOKENS);
        }
    }
    return sum;
}
