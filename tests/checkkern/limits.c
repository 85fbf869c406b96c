#include "tests/checkkern/limits.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "common/base/status.h"

#define READ_BYTES (256u << 20)
#define PIECE      65536 /* bytes of one stream before the next piece */

int64_t limit_clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

#ifdef __x86_64__

#define CHAINS 12
#define ROUNDS 40000

/* So many chains that neither latency nor registers bound it; `step` is one instruction. */
#define PEAK(name, isa, vector, step)                                                              \
    __attribute__((target(isa), noinline)) static void name(void)                                  \
    {                                                                                              \
        vector sums[CHAINS], x = {0};                                                              \
        _Pragma("GCC unroll 12") for (size_t i = 0; i < CHAINS; i++) sums[i] = x;                  \
        for (size_t r = 0; r < ROUNDS; r++) {                                                      \
            __asm__ volatile("" : "+v"(x));                                                        \
            _Pragma("GCC unroll 12") for (size_t i = 0; i < CHAINS; i++) sums[i] =                 \
                step(sums[i], x);                                                                  \
            _Pragma("GCC unroll 12") for (size_t i = 0; i < CHAINS;                                \
                                          i++) __asm__ volatile("" : "+v"(sums[i]));               \
        }                                                                                          \
    }

#define FMA_256(sum, x)   _mm256_fmadd_ps(x, x, sum)
#define FMA_512(sum, x)   _mm512_fmadd_ps(x, x, sum)
#define WORDS_256(sum, x) _mm256_add_epi32(sum, _mm256_madd_epi16(x, sum))
#define WORDS_512(sum, x) _mm512_add_epi32(sum, _mm512_madd_epi16(x, sum))
#define BF16_512(sum, x)  _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)x)
#define INT8_512(sum, x)  _mm512_dpbusd_epi32(sum, x, x)

PEAK(f32_256, "avx2,fma", __m256, FMA_256)
PEAK(f32_512, "avx512f", __m512, FMA_512)
PEAK(words_256, "avx2", __m256i, WORDS_256)
PEAK(words_512, "avx512f,avx512bw", __m512i, WORDS_512)
PEAK(bf16_512, "avx512f,avx512bf16", __m512, BF16_512)
PEAK(int8_512, "avx512f,avx512vnni", __m512i, INT8_512)

#define TILE_ROUNDS 4000

__attribute__((target("amx-tile"))) static void configure(void)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t line_bytes[16];
        uint8_t lines[16];
    } config = {.palette = 1};
    for (size_t i = 0; i < 8; i++) {
        config.line_bytes[i] = 64;
        config.lines[i] = 16;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
    _tile_zero(6);
    _tile_zero(7);
}

__attribute__((target("amx-tile,amx-bf16"))) static void tiles_bf16(void)
{
    configure();
    for (size_t r = 0; r < TILE_ROUNDS; r++) {
        _tile_dpbf16ps(0, 6, 7);
        _tile_dpbf16ps(1, 6, 7);
        _tile_dpbf16ps(2, 6, 7);
        _tile_dpbf16ps(3, 6, 7);
    }
    _tile_release();
}

__attribute__((target("amx-tile,amx-int8"))) static void tiles_int8(void)
{
    configure();
    for (size_t r = 0; r < TILE_ROUNDS; r++) {
        _tile_dpbssd(0, 6, 7);
        _tile_dpbssd(1, 6, 7);
        _tile_dpbssd(2, 6, 7);
        _tile_dpbssd(3, 6, 7);
    }
    _tile_release();
}

/* `ops`: of one call. */
struct probe {
    void (*run)(void);
    double ops;
};

static struct probe probe_of(const char *kernels, enum limit_unit unit)
{
    const double calls = (double)ROUNDS * CHAINS, tiles = (double)TILE_ROUNDS * 4;
    bool avx2 = strcmp(kernels, "avx2") == 0, avx512 = strcmp(kernels, "avx512") == 0;
    if (strcmp(kernels, "amx") == 0 && unit == LIMIT_BF16)
        return (struct probe){tiles_bf16, tiles * 16 * 16 * 64};
    if (strcmp(kernels, "amx") == 0 && unit == LIMIT_INT8)
        return (struct probe){tiles_int8, tiles * 16 * 16 * 128};
    if (unit == LIMIT_INT8 && !avx2 && !avx512)
        return (struct probe){int8_512, calls * 128};
    if (unit == LIMIT_BF16 && !avx2 && !avx512)
        return (struct probe){bf16_512, calls * 64};
    if (unit == LIMIT_INT8)
        return avx2 ? (struct probe){words_256, calls * 32} : (struct probe){words_512, calls * 64};
    return avx2 ? (struct probe){f32_256, calls * 16} : (struct probe){f32_512, calls * 32};
}

double limit_ops(const char *kernels, enum limit_unit unit)
{
    struct probe probe = probe_of(kernels, unit);
    double best = 0;
    for (int i = 0; i < 5; i++) {
        int64_t start = limit_clock_ns();
        probe.run();
        double rate = probe.ops / (double)(limit_clock_ns() - start) * 1e9;
        best = rate > best ? rate : best;
    }
    return best;
}

/* Streams that begin a piece apart, as a core with several misses in flight reads best. */
__attribute__((target("avx2"))) static void read_all(const char *data, size_t streams)
{
    __m256i sums[4];
    memset(sums, 0, sizeof(sums));
    for (size_t at = 0; at < READ_BYTES; at += PIECE * streams) {
        for (size_t i = 0; i < PIECE; i += 128) {
            for (size_t s = 0; s < streams; s++) {
#pragma GCC unroll 4
                for (size_t j = 0; j < 4; j++)
                    sums[j] = _mm256_xor_si256(
                        sums[j],
                        _mm256_load_si256((const __m256i *)(data + at + s * PIECE + i + j * 32)));
            }
        }
    }
    __asm__ volatile("" ::"x"(sums[0]), "x"(sums[1]), "x"(sums[2]), "x"(sums[3]));
}

#else

double limit_ops(const char *kernels, enum limit_unit unit)
{
    (void)kernels;
    (void)unit;
    return 0;
}

static void read_all(const char *data, size_t streams)
{
    uint64_t sum = 0;
    (void)streams;
    for (size_t i = 0; i < READ_BYTES; i += sizeof(sum))
        sum += *(const uint64_t *)(data + i);
    __asm__ volatile("" ::"r"(sum));
}

#endif

double limit_read(void)
{
    static char *data;
    if (!data) {
        data = mmap(NULL, READ_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        BT_ASSERT(data != MAP_FAILED);
        madvise(data, READ_BYTES, MADV_HUGEPAGE);
        memset(data, 1, READ_BYTES);
    }
    double best = 0;
    for (size_t streams = 1; streams <= 8; streams *= 2) {
        int64_t start = limit_clock_ns();
        read_all(data, streams);
        double rate = (double)READ_BYTES / (double)(limit_clock_ns() - start) * 1e9;
        best = rate > best ? rate : best;
    }
    return best;
}
