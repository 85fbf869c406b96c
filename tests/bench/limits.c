#include "tests/bench/limits.h"

#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "common/base/clock.h"
#include "common/kernels/team.h"

#define RUNS 5

int64_t limit_clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

int64_t limit_now_ns(struct bt_team *team)
{
    return bt_team_threads(team) == 1 ? limit_clock_ns() : bt_clock_now_ns();
}

/* The second best of some rates: beside other processes a clock that is late once makes one run
 * faster than the machine. */
struct rates {
    double best, second;
};

static void rates_add(struct rates *rates, double rate)
{
    if (rate > rates->best) {
        rates->second = rates->best;
        rates->best = rate;
    } else if (rate > rates->second) {
        rates->second = rate;
    }
}

/* ---- operations ---- */

#ifdef __x86_64__

#define CHAINS 12
#define ROUNDS 200000

/* So many chains that neither latency nor registers bound it; `step` is what a table does. */
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

#define TILE_ROUNDS 20000

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
    /* the compiler does not see that the instruction reads what was stored */
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

static const struct probe {
    const char *kernels;
    enum limit_unit unit;
    void (*run)(void);
    double ops; /* of one run */
} probes[] = {
    {"avx2", LIMIT_F32, f32_256, 16.0 * CHAINS *ROUNDS},
    {"avx2", LIMIT_BF16, f32_256, 16.0 * CHAINS *ROUNDS},
    {"avx2", LIMIT_INT8, words_256, 32.0 * CHAINS *ROUNDS},
    {"avx512", LIMIT_F32, f32_512, 32.0 * CHAINS *ROUNDS},
    {"avx512", LIMIT_BF16, f32_512, 32.0 * CHAINS *ROUNDS},
    {"avx512", LIMIT_INT8, words_512, 64.0 * CHAINS *ROUNDS},
    {"avx512_bf16", LIMIT_F32, f32_512, 32.0 * CHAINS *ROUNDS},
    {"avx512_bf16", LIMIT_BF16, bf16_512, 64.0 * CHAINS *ROUNDS},
    {"avx512_bf16", LIMIT_INT8, int8_512, 128.0 * CHAINS *ROUNDS},
    {"amx", LIMIT_F32, f32_512, 32.0 * CHAINS *ROUNDS},
    {"amx", LIMIT_BF16, tiles_bf16, 4.0 * 16 * 16 * 64 * TILE_ROUNDS},
    {"amx", LIMIT_INT8, tiles_int8, 4.0 * 16 * 16 * 128 * TILE_ROUNDS},
};

static void run_probe(void *context, uint32_t part, uint32_t thread)
{
    const struct probe *probe = context;
    (void)part;
    (void)thread;
    probe->run();
}

double limit_ops(const char *kernels, enum limit_unit unit, struct bt_team *team)
{
    uint32_t threads = bt_team_threads(team);
    struct probe probe = {0};
    struct rates rates = {0};
    for (size_t i = 0; i < sizeof(probes) / sizeof(probes[0]); i++) {
        if (strcmp(probes[i].kernels, kernels) == 0 && probes[i].unit == unit)
            probe = probes[i];
    }
    for (int i = 0; probe.run && i < RUNS; i++) {
        int64_t start = limit_now_ns(team);
        bt_team_run(team, run_probe, &probe, threads);
        rates_add(&rates, probe.ops * threads / (double)(limit_now_ns(team) - start) * 1e9);
    }
    return rates.second;
}

#else

double limit_ops(const char *kernels, enum limit_unit unit, struct bt_team *team)
{
    (void)kernels;
    (void)unit;
    (void)team;
    return 0;
}

#endif

/* ---- memory ---- */

#define READ_BYTES ((size_t)256 << 20)
#define LINE       64

/* Streams, each a piece that begins where the one before it ends; `ahead` bytes of each are asked
 * for before they are read, 0: the hardware is left to it. */
struct way {
    size_t streams, piece, ahead;
};

static const struct way ways[] = {
    {1, 65536, 0},      {1, 65536, 1024}, {1, 65536, 4096},   {2, 65536, 0},   {2, 65536, 1024},
    {2, 65536, 4096},   {3, 65536, 0},    {3, 65536, 1024},   {4, 65536, 0},   {4, 65536, 1024},
    {4, 65536, 4096},   {8, 65536, 0},    {8, 65536, 1024},   {2, 1 << 20, 0}, {4, 1 << 20, 0},
    {4, 1 << 20, 1024}, {8, 1 << 20, 0},  {8, 1 << 20, 1024},
};
#define WAYS (sizeof(ways) / sizeof(ways[0]))
#define KEPT 3 /* ways that later calls run */

struct read {
    const char *data;
    size_t bytes; /* of one part */
    struct way way;
};

/* 256 bytes from `at` of each stream. */
#ifdef __x86_64__
__attribute__((target("avx2"))) static inline void read_lines(const char *at, size_t ahead,
                                                              __m256i sums[8])
{
    for (size_t i = 0; ahead && i < 4; i++)
        _mm_prefetch(at + ahead + i * LINE, _MM_HINT_T0);
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++)
        sums[i] = _mm256_xor_si256(sums[i], _mm256_load_si256((const __m256i *)(at + i * 32)));
}

__attribute__((target("avx2"))) static void read_way(const char *data, size_t bytes, struct way way)
{
    __m256i sums[8];
    memset(sums, 0, sizeof(sums));
    for (size_t at = 0; at + way.piece * way.streams <= bytes; at += way.piece * way.streams) {
        for (size_t i = 0; i < way.piece; i += 4 * LINE) {
            for (size_t s = 0; s < way.streams; s++)
                read_lines(data + at + s * way.piece + i, way.ahead, sums);
        }
    }
    for (size_t i = 0; i < 8; i++)
        __asm__ volatile("" ::"x"(sums[i]));
}
#else
static void read_way(const char *data, size_t bytes, struct way way)
{
    uint64_t sum = 0;
    for (size_t at = 0; at + way.piece * way.streams <= bytes; at += way.piece * way.streams) {
        for (size_t i = 0; i < way.piece; i += sizeof(sum)) {
            for (size_t s = 0; s < way.streams; s++)
                sum ^= *(const uint64_t *)(data + at + s * way.piece + i);
        }
    }
    __asm__ volatile("" ::"r"(sum));
}
#endif

static void read_part(void *context, uint32_t part, uint32_t thread)
{
    const struct read *read = context;
    (void)thread;
    read_way(read->data + part * read->bytes, read->bytes, read->way);
}

static double read_rate(const char *data, struct way way, struct bt_team *team)
{
    uint32_t threads = bt_team_threads(team);
    size_t step = way.piece * way.streams, bytes = READ_BYTES / threads / step * step;
    struct read read = {data, bytes, way};
    int64_t start = limit_now_ns(team);
    bt_team_run(team, read_part, &read, threads);
    return (double)(bytes * threads) / (double)(limit_now_ns(team) - start) * 1e9;
}

/* The best of some runs of each way, the fastest KEPT ways in order of them. */
static void find_ways(const char *data, struct bt_team *team, struct way *kept)
{
    double best[WAYS] = {0};
    for (int run = 0; run < 3; run++) {
        for (size_t i = 0; i < WAYS; i++) {
            double rate = read_rate(data, ways[i], team);
            best[i] = rate > best[i] ? rate : best[i];
        }
    }
    for (size_t k = 0; k < KEPT; k++) {
        size_t fastest = 0;
        for (size_t i = 1; i < WAYS; i++)
            fastest = best[i] > best[fastest] ? i : fastest;
        kept[k] = ways[fastest];
        best[fastest] = 0;
    }
}

double limit_read(struct bt_team *team)
{
    static char *data;
    static struct {
        uint32_t threads; /* that they were found with */
        struct way kept[KEPT];
    } known;
    struct rates rates = {0};
    if (!data) {
        void *made =
            mmap(NULL, READ_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (made == MAP_FAILED)
            return 0;
        madvise(made, READ_BYTES, MADV_HUGEPAGE);
        data = memset(made, 1, READ_BYTES);
    }
    if (known.threads != bt_team_threads(team)) {
        find_ways(data, team, known.kept);
        known.threads = bt_team_threads(team);
    }
    for (size_t i = 0; i < KEPT; i++)
        rates_add(&rates, read_rate(data, known.kept[i], team));
    return rates.second;
}
