#include "tests/bench/limits.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "common/base/clock.h"
#include "common/kernels/team.h"

#define RUNS       7
#define CHAINS     12
#define READ_BYTES ((size_t)256 << 20)

bool limit_unit_of(const char *kernels, bool int8, enum limit_unit *ret_unit)
{
    if (!strcmp(kernels, "amx"))
        *ret_unit = int8 ? LIMIT_AMX_INT8 : LIMIT_AMX_BF16;
    else if (!strcmp(kernels, "avx512_bf16"))
        *ret_unit = int8 ? LIMIT_DOT_INT8 : LIMIT_DOT_BF16;
    else if (!strcmp(kernels, "avx512"))
        *ret_unit = LIMIT_FMA_AVX512;
    else if (!strcmp(kernels, "avx2"))
        *ret_unit = LIMIT_FMA_AVX2;
    else
        return false;
    return true;
}

const char *limit_unit_name(enum limit_unit unit)
{
    static const char *const names[] = {"avx2 fma",        "avx512 fma", "avx512 bf16 dot",
                                        "avx512 int8 dot", "amx bf16",   "amx int8"};
    return names[unit];
}

#ifdef __x86_64__

#define CHAIN_LOOP(op)                                                                             \
    for (size_t r = 0; r < rounds; r++) {                                                          \
        _Pragma("GCC unroll 12") for (size_t i = 0; i < CHAINS; i++) sums[i] = op;                 \
        __asm__ volatile("" : "+v"(x), "+v"(y));                                                   \
    }

__attribute__((target("avx2,fma"))) static double fma_avx2(size_t rounds)
{
    __m256 sums[CHAINS], x = _mm256_set1_ps(1), y = _mm256_set1_ps(1e-9f);
    for (size_t i = 0; i < CHAINS; i++)
        sums[i] = y;
    CHAIN_LOOP(_mm256_fmadd_ps(x, y, sums[i]))
    for (size_t i = 1; i < CHAINS; i++)
        sums[0] = _mm256_add_ps(sums[0], sums[i]);
    return (double)_mm256_cvtss_f32(sums[0]);
}

__attribute__((target("avx512f"))) static double fma_avx512(size_t rounds)
{
    __m512 sums[CHAINS], x = _mm512_set1_ps(1), y = _mm512_set1_ps(1e-9f);
    for (size_t i = 0; i < CHAINS; i++)
        sums[i] = y;
    CHAIN_LOOP(_mm512_fmadd_ps(x, y, sums[i]))
    for (size_t i = 1; i < CHAINS; i++)
        sums[0] = _mm512_add_ps(sums[0], sums[i]);
    return (double)_mm512_cvtss_f32(sums[0]);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) static double
dot_bf16(size_t rounds)
{
    __m512 sums[CHAINS];
    __m512i x = _mm512_set1_epi16(0x3f80), y = _mm512_set1_epi16(0x3080);
    for (size_t i = 0; i < CHAINS; i++)
        sums[i] = _mm512_setzero_ps();
    CHAIN_LOOP(_mm512_dpbf16_ps(sums[i], (__m512bh)x, (__m512bh)y))
    for (size_t i = 1; i < CHAINS; i++)
        sums[0] = _mm512_add_ps(sums[0], sums[i]);
    return (double)_mm512_cvtss_f32(sums[0]);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))) static double
dot_int8(size_t rounds)
{
    __m512i sums[CHAINS], x = _mm512_set1_epi8(1), y = _mm512_set1_epi8(1);
    for (size_t i = 0; i < CHAINS; i++)
        sums[i] = _mm512_setzero_si512();
    CHAIN_LOOP(_mm512_dpbusd_epi32(sums[i], x, y))
    for (size_t i = 1; i < CHAINS; i++)
        sums[0] = _mm512_add_epi32(sums[0], sums[i]);
    return (double)_mm512_reduce_add_epi32(sums[0]);
}

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
};

/* Eight full tiles: 0 to 3 are sums, 4 to 7 are inputs, all zero. */
__attribute__((target("amx-tile"))) static void tiles_begin(void)
{
    struct tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.column_bytes[i] = 64;
        config.rows[i] = 16;
    }
    /* the compiler does not know that ldtilecfg reads memory */
    __asm__ volatile("" ::"m"(config) : "memory");
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
}

__attribute__((target("amx-tile,amx-bf16"))) static double amx_bf16(size_t rounds)
{
    tiles_begin();
    for (size_t r = 0; r < rounds * 3; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return 0;
}

__attribute__((target("amx-tile,amx-int8"))) static double amx_int8(size_t rounds)
{
    tiles_begin();
    for (size_t r = 0; r < rounds * 3; r++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
    return 0;
}

static const struct {
    double (*run)(size_t rounds); /* CHAINS operations a round */
    double operations;            /* of one */
    size_t rounds;
} probes[] = {
    [LIMIT_FMA_AVX2] = {fma_avx2, 16, 2000000},   [LIMIT_FMA_AVX512] = {fma_avx512, 32, 2000000},
    [LIMIT_DOT_BF16] = {dot_bf16, 64, 2000000},   [LIMIT_DOT_INT8] = {dot_int8, 128, 2000000},
    [LIMIT_AMX_BF16] = {amx_bf16, 16384, 100000}, [LIMIT_AMX_INT8] = {amx_int8, 32768, 100000},
};

struct probe_run {
    enum limit_unit unit;
    double sinks[BT_TEAM_MAX_THREADS];
};

static void run_probe(void *context, uint32_t part, uint32_t thread)
{
    struct probe_run *run = context;
    (void)thread;
    run->sinks[part] = probes[run->unit].run(probes[run->unit].rounds);
}

double limit_flops(enum limit_unit unit, struct bt_team *team)
{
    struct probe_run run = {.unit = unit};
    uint32_t threads = bt_team_threads(team);
    double best = 0;
    for (int i = 0; i < RUNS; i++) {
        int64_t start = bt_clock_now_ns();
        bt_team_run(team, run_probe, &run, threads);
        double rate = (double)probes[unit].rounds * CHAINS * probes[unit].operations * threads /
                      (double)(bt_clock_now_ns() - start);
        best = rate > best ? rate : best;
    }
    return best * 1e9;
}

#else

double limit_flops(enum limit_unit unit, struct bt_team *team)
{
    (void)unit;
    (void)team;
    return 0;
}

#endif

struct read_run {
    const uint64_t *data;
    size_t count; /* of one part */
    uint64_t sinks[BT_TEAM_MAX_THREADS];
};

static void run_read(void *context, uint32_t part, uint32_t thread)
{
    struct read_run *run = context;
    const uint64_t *data = run->data + part * run->count;
    uint64_t sums[16] = {0};
    (void)thread;
    for (size_t i = 0; i + 16 <= run->count; i += 16) {
        for (size_t j = 0; j < 16; j++)
            sums[j] += data[i + j];
    }
    for (size_t j = 1; j < 16; j++)
        sums[0] += sums[j];
    run->sinks[part] = sums[0];
}

double limit_read_bytes(struct bt_team *team)
{
    uint32_t threads = bt_team_threads(team);
    uint64_t *data = aligned_alloc(2u << 20, READ_BYTES);
    double best = 0;
    if (!data)
        return 0;
    memset(data, 1, READ_BYTES);
    struct read_run run = {.data = data, .count = READ_BYTES / sizeof(*data) / threads};
    for (int i = 0; i < RUNS; i++) {
        int64_t start = bt_clock_now_ns();
        bt_team_run(team, run_read, &run, threads);
        double rate = (double)READ_BYTES / (double)(bt_clock_now_ns() - start);
        best = rate > best ? rate : best;
    }
    free(data);
    return best * 1e9;
}
