/* The emulator of tile instructions: cases worked out by hand, faults, and the CPU's own where it
 * has them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "common/kernels/dtype.h"
#include "common/kernels/kernels.h"
#include "tests/checkkern/amx_emulator.h"

/* Written by the assembler, so that nothing of the decoder is taken from itself. */
#define SAMPLE(name, text)                                                                         \
    extern const uint8_t name[], name##_end[];                                                     \
    __asm__(".pushsection .rodata\n" #name ":\n" text "\n" #name "_end:\n.popsection\n")

SAMPLE(code_config, "ldtilecfg (%rdi)");
SAMPLE(code_config_far, "ldtilecfg 0x1234(%r13,%r12,8)");
SAMPLE(code_store_config, "sttilecfg -8(%r12)");
SAMPLE(code_release, "tilerelease");
SAMPLE(code_zero5, "tilezero %tmm5");
SAMPLE(code_load0, "tileloadd (%rsi,%rcx,1), %tmm0");
SAMPLE(code_load1, "tileloadd 64(%r9,%r10,4), %tmm1");
SAMPLE(code_load2, "tileloaddt1 0x200(%rax,%r15,2), %tmm2");
SAMPLE(code_load_no_base, "tileloadd 0x40(,%rcx,1), %tmm0");
SAMPLE(code_store0, "tilestored %tmm0, (%rsp,%rbp,1)");
SAMPLE(code_bf16, "tdpbf16ps %tmm2, %tmm1, %tmm0");
SAMPLE(code_bf16_same, ".byte 0xc4, 0xe2, 0x72, 0x5c, 0xc1"); /* tdpbf16ps %tmm1, %tmm1, %tmm0 */
SAMPLE(code_ss, "tdpbssd %tmm2, %tmm1, %tmm0");
SAMPLE(code_su, "tdpbsud %tmm2, %tmm1, %tmm0");
SAMPLE(code_us, "tdpbusd %tmm2, %tmm1, %tmm0");
SAMPLE(code_uu, "tdpbuud %tmm2, %tmm1, %tmm0");
SAMPLE(code_other, "vpaddb %xmm1, %xmm2, %xmm3");

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };

struct config {
    uint8_t palette, start_row, reserved[14];
    uint16_t colsb[16];
    uint8_t rows[16];
};

static struct amx_machine machine;
static struct amx_context context;
static const char *name;

static uint64_t address(const void *p)
{
    return (uint64_t)(uintptr_t)p;
}

/* Executes and checks that the whole instruction was read. NULL or the reason of the fault. */
static const char *step(const uint8_t *code, const uint8_t *end)
{
    size_t length = 0;
    context.code = code;
    const char *reason = amx_execute(&machine, &context, &name, &length);
    if (!reason)
        assert_int_equal(length, end - code);
    return reason;
}
#define STEP(sample)  step(code_##sample, code_##sample##_end)
#define GOOD(sample)  assert_null(STEP(sample))
#define FAULT(sample) assert_non_null(STEP(sample))

static const char *configure(const struct config *config)
{
    context.registers[RDI] = address(config);
    return STEP(config);
}

/* tmm0: 2 x 3 results, tmm1: 2 x 4 pairs or quads, tmm2: 4 x 3. */
static struct config small_config(void)
{
    return (struct config){
        .palette = 1, .colsb = {12, 16, 12, 0, 0, 20}, .rows = {2, 4 - 2, 4, 0, 0, 1}};
}

static void set(unsigned tile, const void *data)
{
    for (unsigned row = 0; row < machine.rows[tile]; row++)
        memcpy(machine.tiles[tile][row], (const char *)data + row * machine.colsb[tile],
               machine.colsb[tile]);
}

static void set_bf16(unsigned tile, const float *data)
{
    uint16_t bits[AMX_ROWS * 32];
    for (unsigned n = 0; n < machine.rows[tile] * machine.colsb[tile] / 2u; n++)
        bits[n] = bt_f32_to_bf16(data[n]);
    set(tile, bits);
}

static float result(unsigned row, unsigned column)
{
    float value;
    memcpy(&value, &machine.tiles[0][row][column * 4], 4);
    return value;
}

static int32_t result_int(unsigned row, unsigned column)
{
    int32_t value;
    memcpy(&value, &machine.tiles[0][row][column * 4], 4);
    return value;
}

static void test_config(void **state)
{
    (void)state;
    struct config config = small_config(), stored;
    assert_null(configure(&config));
    assert_true(machine.configured);
    context.registers[R12] = address(&stored) + 8;
    GOOD(store_config);
    assert_memory_equal(&stored, &config, sizeof(config));
    context.registers[R12] = address(&config) / 8 % 4; /* base + 8 * index + displacement */
    context.registers[R13] = address(&config) - 8 * context.registers[R12] - 0x1234;
    GOOD(config_far);
    GOOD(release);
    assert_false(machine.configured);
    context.registers[R12] = address(&stored) + 8;
    GOOD(store_config);
    assert_memory_equal(&stored, &(struct config){0}, sizeof(stored));
}

static void test_bad_config(void **state)
{
    (void)state;
    struct config bad[7];
    for (unsigned n = 0; n < 7; n++)
        bad[n] = small_config();
    bad[0].palette = 2;
    bad[1].reserved[13] = 1;
    bad[2].colsb[3] = 68, bad[2].rows[3] = 1;
    bad[3].rows[1] = 17;
    bad[4].colsb[1] = 0;
    bad[5].colsb[8] = 4, bad[5].rows[8] = 1;
    bad[6].rows[7] = 1;
    for (unsigned n = 0; n < 7; n++)
        assert_non_null(configure(&bad[n]));
    assert_string_equal(name, "LDTILECFG");
}

static void test_memory(void **state)
{
    (void)state;
    struct config config = small_config();
    uint8_t source[1024], out[3 * 40];
    for (unsigned n = 0; n < sizeof(source); n++)
        source[n] = (uint8_t)(n * 7 + n / 256);
    assert_null(configure(&config));
    context.registers[RSI] = address(source);
    context.registers[RCX] = 100;
    GOOD(load0); /* two rows of 12 bytes */
    assert_memory_equal(machine.tiles[0][1], source + 100, 12);
    for (unsigned n = 12; n < 64; n++)
        assert_int_equal(machine.tiles[0][1][n], 0);
    context.registers[R9] = address(source) + 300 - 64;
    context.registers[R10] = (uint64_t)-25; /* rows may go backwards */
    GOOD(load1);
    assert_memory_equal(machine.tiles[1][0], source + 300, 16);
    assert_memory_equal(machine.tiles[1][1], source + 200, 16);
    context.registers[RAX] = address(source) - 0x200;
    context.registers[R15] = 8;
    GOOD(load2);
    assert_memory_equal(machine.tiles[2][3], source + 48, 12);
    memset(out, 0xee, sizeof(out));
    context.registers[RSP] = address(out);
    context.registers[RBP] = 40;
    GOOD(store0);
    assert_memory_equal(out, source, 12);
    assert_memory_equal(out + 40, source + 100, 12);
    assert_int_equal(out[12], 0xee);
    assert_int_equal(out[80], 0xee);
    /* the index is the stride also where there is no base: row r at displacement + r * stride */
    context.registers[RCX] = 1;
    const char *reason;
    size_t length;
    context.code = code_load_no_base;
    machine.rows[0] = 0; /* so that the absolute address is not read */
    reason = amx_execute(&machine, &context, &name, &length);
    assert_non_null(reason);
    assert_string_equal(name, "TILELOADD");
}

static void test_zero(void **state)
{
    (void)state;
    struct config config = small_config();
    assert_null(configure(&config));
    memset(machine.tiles, 7, sizeof(machine.tiles));
    GOOD(zero5);
    for (unsigned n = 0; n < 64; n++)
        assert_int_equal(machine.tiles[5][0][n], 0);
    assert_int_equal(machine.tiles[4][0][0], 7);
}

/* 2^-8 is half the last place of 1: what is kept tells the order and the roundings. */
static void test_bf16(void **state)
{
    (void)state;
    struct config config = small_config();
    /* row 0: even elements 1 2 3 4, odd 10 20 30 40; row 1: one 1, the rest 0 */
    float a[2][8] = {{1, 10, 2, 20, 3, 30, 4, 40}, {0, 1, 0, 0, 0, 0, 0, 0}};
    float b[4][6] = {
        {1, 2, 0, 1, -1, 0}, {1, 2, 0, 1, -1, 0}, {1, 2, 0, 1, -1, 0}, {1, 2, 1, 1, -1, 0}};
    float c[2][3] = {{0.5f, 1, 2}, {3, 4, 5}};
    assert_null(configure(&config));
    set_bf16(1, &a[0][0]);
    set_bf16(2, &b[0][0]);
    set(0, c);
    GOOD(bf16);
    assert_true(result(0, 0) == 0.5f + 10 + 200);
    assert_true(result(0, 1) == 1 + 4 + 100);
    assert_true(result(0, 2) == 2 - 10);
    assert_true(result(1, 0) == 3 + 2);
    assert_true(result(1, 1) == 4 + 1);
    assert_true(result(1, 2) == 5);
}

static float single(const float *a, const float *b, float c)
{
    struct config config = {.palette = 1, .colsb = {4, 16, 4}, .rows = {1, 1, 4}};
    assert_null(configure(&config));
    set_bf16(1, a);
    set_bf16(2, b);
    set(0, &c);
    GOOD(bf16);
    return result(0, 0);
}

/* Chains, fusion and rounding of single outputs over four pairs. */
static void test_bf16_order(void **state)
{
    (void)state;
    const float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    /* even chain: 2^24 + 1 + 1: each 1 is lost to the tie; in one sum with the odd 2 it would be:
     * 2^24, 2^24 + 1 -> 2^24, ... ; odd chain: 1 + 1 = 2, which is kept */
    assert_true(single((float[]){0x1p24f, 1, 1, 1, 1, 0, 0, 0}, ones, 0) == 0x1p24f + 2);
    /* the destination comes last: 2^24 + (1 + 1), not (2^24 + 1) + 1 */
    assert_true(single((float[]){1, 1, 0, 0, 0, 0, 0, 0}, ones, 0x1p24f) == 0x1p24f + 2);
    /* fused: (1 + 2^-7)² = 1 + 2^-6 + 2^-14 is exact; 2^24 - 1 + product rounds once */
    float x = 1 + 0x1p-7f;
    assert_true(single((float[]){0x1p12f, 0, -0x1p12f, 0, x, 0, 0, 0},
                       (float[]){0x1p12f, 0, 0x1p12f, 0, x, 0, 0, 0}, 0) == x * x);
    /* 2^24 + 2 * 1.5 = 2^24 + 3 rounds to 2^24 + 4; a product is never rounded itself */
    assert_true(single((float[]){0x1p24f, 0, 2, 0, 0, 0, 0, 0},
                       (float[]){1, 0, 1.5f, 0, 0, 0, 0, 0}, 0) == 0x1p24f + 4);
}

static void test_bf16_extremes(void **state)
{
    (void)state;
    const float one[8] = {1};
    float tiny = 0x1p-127f, least = 0x1p-126f; /* a denormal, the smallest normal */
    /* denormal inputs are zero, and so is a denormal destination */
    assert_true(single((float[8]){tiny}, (float[8]){0x1p100f}, 0) == 0);
    assert_true(single((float[8]){0}, one, tiny) == 0);
    assert_true(single((float[8]){least}, one, 0) == least);
    /* denormal results are flushed, after each step */
    assert_true(single((float[8]){least}, (float[8]){0.5f}, 0) == 0);
    assert_true(single((float[8]){least * 1.5f, 0, least}, (float[8]){1, 0, -1}, 0) == 0);
    /* 2^-127 + 2^-127 in one chain: the first is flushed before the second comes */
    assert_true(single((float[8]){least, 0, least}, (float[8]){0.5f, 0, 0.5f}, 0) == 0);
    assert_true(isinf(single((float[8]){0x1p127f, 0, 0x1p127f}, (float[8]){1, 0, 1}, 0)));
    assert_true(isnan(single((float[8]){INFINITY, 0, -INFINITY}, (float[8]){1, 0, 1}, 0)));
    assert_true(isnan(single((float[8]){NAN}, (float[8]){0}, 1)));
}

static void test_int8(void **state)
{
    (void)state;
    struct config config = {.palette = 1, .colsb = {8, 4, 8}, .rows = {1, 1, 1}};
    const uint8_t a[4] = {255, 128, 1, 2}, b[8] = {255, 128, 127, 3, 1, 0, 0, 0};
    const int32_t c[2] = {1000, -5};
    struct {
        const uint8_t *code, *end;
        int32_t want[2];
    } cases[] = {
        {code_ss, code_ss_end, {1000 + 1 + 16384 + 127 + 6, -5 - 1}},
        {code_su, code_su_end, {1000 - 255 - 16384 + 127 + 6, -5 - 1}},
        {code_us, code_us_end, {1000 - 255 - 16384 + 127 + 6, -5 + 255}},
        {code_uu, code_uu_end, {1000 + 65025 + 16384 + 127 + 6, -5 + 255}},
    };
    for (unsigned n = 0; n < 4; n++) {
        assert_null(configure(&config));
        set(1, a);
        set(2, b);
        set(0, c);
        assert_null(step(cases[n].code, cases[n].end));
        assert_int_equal(result_int(0, 0), cases[n].want[0]);
        assert_int_equal(result_int(0, 1), cases[n].want[1]);
    }
    set(0, (int32_t[]){INT32_MAX, 0});
    GOOD(ss); /* sums wrap around */
    assert_int_equal(result_int(0, 0), INT32_MIN + 16517);
}

static void test_faults(void **state)
{
    (void)state;
    struct config config = small_config();
    GOOD(release);
    FAULT(bf16);
    FAULT(load0);
    FAULT(store0);
    FAULT(zero5);
    assert_null(configure(&config));
    FAULT(bf16_same);
    GOOD(bf16);
    FAULT(other);
    assert_null(name);
    config.rows[1] = 3; /* more rows than the destination */
    assert_null(configure(&config));
    FAULT(bf16);
    config = small_config();
    config.colsb[2] = 16; /* more columns than the destination */
    assert_null(configure(&config));
    FAULT(ss);
    config = small_config();
    config.rows[2] = 3; /* fewer than pairs in a row of the first source */
    assert_null(configure(&config));
    FAULT(uu);
    config = small_config();
    config.colsb[0] = config.colsb[2] = 10;
    assert_null(configure(&config));
    FAULT(bf16);
    FAULT(load0);
    config = small_config();
    config.start_row = 2;
    assert_null(configure(&config));
    FAULT(load0);
}

/* ---- a whole product in the instructions themselves ---- */

/* c [16][16] += a * b, in whatever executes them. */
static void run(const uint8_t *which, const void *config, const void *a, const void *b, void *c)
{
    register const void *at_a __asm__("rsi") = a;
    register const void *at_b __asm__("r11") = b;
    register void *at_c __asm__("r13") = c;
    register uint64_t stride __asm__("r10") = 64;
    __asm__ volatile("ldtilecfg (%0)\n\ttileloadd (%1,%4,1), %%tmm1\n\t"
                     "tileloaddt1 (%2,%4,1), %%tmm2\n\ttileloadd (%3,%4,1), %%tmm0"
                     :
                     : "r"(config), "r"(at_a), "r"(at_b), "r"(at_c), "r"(stride)
                     : "memory");
    if (which == code_bf16)
        __asm__ volatile("tdpbf16ps %%tmm2, %%tmm1, %%tmm0" ::: "memory");
    else if (which == code_ss)
        __asm__ volatile("tdpbssd %%tmm2, %%tmm1, %%tmm0" ::: "memory");
    else if (which == code_su)
        __asm__ volatile("tdpbsud %%tmm2, %%tmm1, %%tmm0" ::: "memory");
    else if (which == code_us)
        __asm__ volatile("tdpbusd %%tmm2, %%tmm1, %%tmm0" ::: "memory");
    else
        __asm__ volatile("tdpbuud %%tmm2, %%tmm1, %%tmm0" ::: "memory");
    __asm__ volatile("tilestored %%tmm0, (%0,%1,1)\n\ttilerelease"
                     :
                     : "r"(at_c), "r"(stride)
                     : "memory");
}

static uint64_t seed = 1;

static uint8_t random_byte(void)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint8_t)(seed >> 56);
}

/* As run, by the functions. */
static void run_emulated(const uint8_t *which, const uint8_t *end, const struct config *config,
                         const uint8_t *a, const uint8_t *b, uint8_t *c)
{
    assert_null(configure(config));
    set(0, c), set(1, a), set(2, b);
    assert_null(step(which, end));
    memcpy(c, machine.tiles[0], sizeof(machine.tiles[0]));
}

/*
 * Random bits: NaN, infinities and denormals among them. Where the CPU executes the instructions
 * itself, this compares it with the emulator; elsewhere the handler with a call.
 */
static void test_native(void **state)
{
    (void)state;
    static const struct config full = {.palette = 1, .colsb = {64, 64, 64}, .rows = {16, 16, 16}};
    const uint8_t *samples[][2] = {{code_bf16, code_bf16_end},
                                   {code_ss, code_ss_end},
                                   {code_su, code_su_end},
                                   {code_us, code_us_end},
                                   {code_uu, code_uu_end}};
    static uint8_t a[1024], b[1024], start[1024], c[1024], want[1024];
    const struct bt_kernels *kernels;
    if (bt_kernels_select("amx", NULL, &kernels) == BT_OK)
        print_message("native instructions against the emulator\n");
    else if (!amx_emulator_install())
        skip();
    for (unsigned round = 0; round < 200; round++) {
        for (unsigned n = 0; n < 1024; n++) {
            a[n] = random_byte(), b[n] = random_byte(), start[n] = random_byte();
            if (round % 2 && n % 2) /* no extremes: sums that round */
                a[n] = (a[n] & 0x80) | 0x3f, b[n] = (b[n] & 0x80) | 0x3f;
            if (round % 2 && n % 4 == 3)
                start[n] = (start[n] & 0x80) | 0x3f;
        }
        const uint8_t **sample = samples[round % 5];
        memcpy(c, start, sizeof(c));
        memcpy(want, start, sizeof(want));
        run(sample[0], &full, a, b, c);
        run_emulated(sample[0], sample[1], &full, a, b, want);
        for (unsigned n = 0; n < 1024; n += 4) {
            float got, expected;
            memcpy(&got, c + n, 4);
            memcpy(&expected, want + n, 4);
            if (sample[0] != code_bf16 || !isnan(got) || !isnan(expected))
                assert_memory_equal(c + n, want + n, 4);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config),        cmocka_unit_test(test_bad_config),
        cmocka_unit_test(test_memory),        cmocka_unit_test(test_zero),
        cmocka_unit_test(test_bf16),          cmocka_unit_test(test_bf16_order),
        cmocka_unit_test(test_bf16_extremes), cmocka_unit_test(test_int8),
        cmocka_unit_test(test_faults),        cmocka_unit_test(test_native),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
