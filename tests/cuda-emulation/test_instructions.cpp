/*
 * Each emulated instruction against its definition, written anew from the PTX ISA: fragments and
 * layouts as formulas of the element's index, numbers by exhaustive search.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

extern "C" {
#include <cmocka.h>
}

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/launch.cuh"

/* Memory of the device, a vector of the host. */
template <typename Type> struct Device {
    size_t count;
    Type *at;
    explicit Device(size_t wanted) : count(wanted)
    {
        size_t bytes = (count * sizeof(Type) + 1023) / 1024 * 1024;
        at = static_cast<Type *>(aligned_alloc(1024, bytes));
        memset(static_cast<void *>(at), 0, bytes);
        emulation::device_memory_add(at, bytes);
    }
    ~Device()
    {
        emulation::device_memory_remove(at);
        free(at);
    }
    Device(const Device &) = delete;
    Device &operator=(const Device &) = delete;
    Type &operator[](size_t i)
    {
        return at[i];
    }
};

static std::mt19937 &dice()
{
    static std::mt19937 made(20260);
    return made;
}

/* Integers that bf16 and e4m3 hold exactly. */
static float small_number()
{
    return static_cast<float>(static_cast<int>(dice()() % 17) - 8);
}

static uint16_t bf16_of(float exact)
{
    uint32_t bits;
    memcpy(&bits, &exact, 4);
    return static_cast<uint16_t>(bits >> 16);
}

/* By the format: 1 sign, 4 exponent (bias 7), 3 fraction; all ones is the NaN; no infinities. */
static double value_of_e4m3(unsigned byte)
{
    unsigned exponent = byte / 8 % 16, fraction = byte % 8;
    double size = exponent == 0 ? fraction / 8.0 * pow(2, -6)
                                : (1 + fraction / 8.0) * pow(2, static_cast<int>(exponent) - 7);
    return byte >= 128 ? -size : size;
}

static uint8_t e4m3_of(float exact)
{
    for (unsigned byte = 0; byte < 256; byte++)
        if (byte % 128 != 127 && static_cast<float>(value_of_e4m3(byte)) == exact)
            return static_cast<uint8_t>(byte);
    fail_msg("no e4m3 is %g", static_cast<double>(exact));
    return 0;
}

/* ---- ldmatrix ---- */

BT_KERNEL(32, 1) load_matrices(uint32_t *out, uint32_t pitch)
{
    uint16_t *halves = reinterpret_cast<uint16_t *>(bt_shared());
    for (uint32_t i = threadIdx.x; i < 32 * 8; i += 32)
        halves[i / 8 * pitch + i % 8] = static_cast<uint16_t>(i);
    bt_sync_warp();
    uint32_t got[12] = {0};
    const uint16_t *row = halves + threadIdx.x * pitch;
    bt_ldmatrix_x4(got, row);
    bt_ldmatrix_x4_trans(got + 4, row);
    bt_ldmatrix_x2(got + 8, row);
    bt_ldmatrix_x2_trans(got + 10, row);
    for (uint32_t i = 0; i < 12; i++)
        out[threadIdx.x * 12 + i] = got[i];
}

static void test_ldmatrix(void **)
{
    Device<uint32_t> out(32 * 12);
    for (uint32_t pitch : {8, 24}) {
        bt_cuda_launch(load_matrices, dim3(1), 32, 32 * pitch * 2, 0, out.at, pitch);
        for (unsigned lane = 0; lane < 32; lane++)
            for (unsigned m = 0; m < 4; m++)
                for (unsigned i = 0; i < 2; i++) {
                    /* Element (row, col) of matrix m has the value 64 m + 8 row + col. */
                    unsigned plain = 64 * m + lane / 4 * 8 + lane % 4 * 2 + i;
                    unsigned turned = 64 * m + (lane % 4 * 2 + i) * 8 + lane / 4;
                    const uint32_t *got = &out[lane * 12];
                    assert_int_equal(got[m] >> 16 * i & 0xffff, plain);
                    assert_int_equal(got[4 + m] >> 16 * i & 0xffff, turned);
                    if (m < 2) {
                        assert_int_equal(got[8 + m] >> 16 * i & 0xffff, plain);
                        assert_int_equal(got[10 + m] >> 16 * i & 0xffff, turned);
                    }
                }
    }
}

/* ---- mma ---- */

enum { BF16, S8, E4M3 };

/* A lane's registers: a 4, b 2, d 4. */
BT_KERNEL(32, 1) multiply_warp(uint32_t *registers, int kind)
{
    uint32_t *mine = registers + threadIdx.x * 10;
    if (kind == S8) {
        int32_t d[4];
        for (uint32_t i = 0; i < 4; i++)
            d[i] = static_cast<int32_t>(mine[6 + i]);
        bt_mma_s8(d, mine, mine + 4);
        for (uint32_t i = 0; i < 4; i++)
            mine[6 + i] = static_cast<uint32_t>(d[i]);
        return;
    }
    float d[4];
    for (uint32_t i = 0; i < 4; i++)
        d[i] = bt_float(mine[6 + i]);
    if (kind == BF16)
        bt_mma_bf16(d, mine, mine + 4);
    else
        bt_mma_e4m3(d, mine, mine + 4);
    for (uint32_t i = 0; i < 4; i++)
        mine[6 + i] = bt_bits(d[i]);
}

struct Tile { /* a [16][K], b [K][8], d [16][8] as real numbers */
    int kind;
    unsigned k;
    std::vector<float> a, b, d;
    explicit Tile(int of) : kind(of), k(of == BF16 ? 16 : 32), a(16 * k), b(k * 8), d(16 * 8)
    {
        for (auto *each : {&a, &b, &d})
            for (float &value : *each)
                value = small_number();
    }
    uint32_t code(float value) const
    {
        return kind == BF16 ? bf16_of(value)
               : kind == S8 ? static_cast<uint8_t>(static_cast<int8_t>(value))
                            : e4m3_of(value);
    }
    /* The PTX ISA's figures: a_i, b_i, c_i of a lane with group = lane / 4, in = lane % 4. */
    void each(const std::function<void(unsigned lane, char operand, unsigned i, float *value)> &act)
    {
        bool halves = kind == BF16;
        for (unsigned lane = 0; lane < 32; lane++) {
            unsigned group = lane >> 2, in = lane % 4;
            for (unsigned i = 0; i < (halves ? 8 : 16); i++) {
                bool low_row =
                    halves ? (i < 2 || (i >= 4 && i < 6)) : (i < 4 || (i >= 8 && i < 12));
                unsigned row = low_row ? group : group + 8;
                unsigned col = halves ? in * 2 + (i & 1) + (i >= 4 ? 8 : 0)
                                      : in * 4 + (i & 3) + (i >= 8 ? 16 : 0);
                act(lane, 'a', i, &a[row * k + col]);
            }
            for (unsigned i = 0; i < (halves ? 4 : 8); i++) {
                unsigned row = halves ? in * 2 + (i & 1) + (i >= 2 ? 8 : 0)
                                      : in * 4 + (i & 3) + (i >= 4 ? 16 : 0);
                act(lane, 'b', i, &b[row * 8 + group]);
            }
            for (unsigned i = 0; i < 4; i++)
                act(lane, 'd', i, &d[(i < 2 ? group : group + 8) * 8 + in * 2 + (i & 1)]);
        }
    }
    void run()
    {
        Device<uint32_t> registers(320);
        unsigned each_bits = kind == BF16 ? 16 : 8, in_word = 32 / each_bits;
        each([&](unsigned lane, char operand, unsigned i, float *value) {
            uint32_t *mine = &registers[lane * 10];
            if (operand != 'd')
                mine[(operand == 'b' ? 4 : 0) + i / in_word] |= code(*value)
                                                                << i % in_word * each_bits;
            else if (kind == S8)
                mine[6 + i] = static_cast<uint32_t>(static_cast<int32_t>(*value));
            else
                memcpy(&mine[6 + i], value, 4);
        });
        bt_cuda_launch(multiply_warp, dim3(1), 32, 0, 0, registers.at, kind);
        each([&](unsigned lane, char operand, unsigned i, float *value) {
            const uint32_t *mine = &registers[lane * 10];
            if (operand == 'd' && kind == S8)
                *value = static_cast<float>(static_cast<int32_t>(mine[6 + i]));
            else if (operand == 'd')
                memcpy(value, &mine[6 + i], 4);
        });
    }
};

static void test_mma(void **)
{
    for (int kind : {BF16, S8, E4M3})
        for (int rounding = 0; rounding < 4; rounding++) {
            emulation::set_rounding(static_cast<emulation::Rounding>(rounding));
            Tile tile(kind);
            std::vector<float> expected = tile.d;
            for (unsigned row = 0; row < 16; row++)
                for (unsigned col = 0; col < 8; col++)
                    for (unsigned k = 0; k < tile.k; k++)
                        expected[row * 8 + col] += tile.a[row * tile.k + k] * tile.b[k * 8 + col];
            tile.run();
            for (unsigned i = 0; i < 128; i++)
                assert_true(tile.d[i] == expected[i]);
        }
    emulation::set_rounding(emulation::Rounding::nearest);
}

static float first_sum(emulation::Rounding rounding, float d, std::vector<float> a)
{
    emulation::set_rounding(rounding);
    Tile tile(BF16);
    std::fill(tile.a.begin(), tile.a.end(), 0.0f);
    std::fill(tile.b.begin(), tile.b.end(), 1.0f);
    std::copy(a.begin(), a.end(), tile.a.begin());
    tile.d[0] = d;
    tile.run();
    emulation::set_rounding(emulation::Rounding::nearest);
    return tile.d[0];
}

static void test_rounding(void **)
{
    using emulation::Rounding;
    const float one = 1.0f, half = 0x1p-24f; /* half of the last place of 1 */
    /* 1 + 3 halves: between 1 + 1 and 1 + 2 last places, the tie goes to the even one. */
    std::vector<float> three = {half, half, half};
    assert_true(first_sum(Rounding::nearest, one, three) == 1 + 0x1p-22f);
    assert_true(first_sum(Rounding::truncate, one, three) == 1 + 0x1p-23f);
    assert_true(first_sum(Rounding::sequential, one, three) == one);
    assert_true(first_sum(Rounding::halves, one, three) == 1 + 0x1p-23f);
    /* One half in each half of k. */
    std::vector<float> apart(16);
    apart[0] = apart[15] = half;
    assert_true(first_sum(Rounding::truncate, one, apart) == 1 + 0x1p-23f);
    assert_true(first_sum(Rounding::halves, one, apart) == one);
    /* Towards zero from below. */
    assert_true(first_sum(Rounding::truncate, -one, {-half}) == -one);
    assert_true(first_sum(Rounding::truncate, one, {-0x1p-26f}) == 1 - 0x1p-24f);
    /* NaN and infinity. */
    float nan = first_sum(Rounding::nearest, one, {INFINITY, -INFINITY});
    assert_int_equal(bt_bits(nan), 0x7fffffff);
    assert_true(first_sum(Rounding::nearest, one, {INFINITY}) == INFINITY);
}

BT_KERNEL(32, 1) wrap_around(int32_t *out)
{
    int32_t d[4] = {INT32_MAX, INT32_MIN, 0, 0};
    uint32_t a[4] = {0x7f7f7f7f, 0x80808080, 0x7f7f7f7f, 0x80808080},
             b[2] = {0x01010101, 0x01010101};
    bt_mma_s8(d, a, b);
    for (uint32_t i = 0; i < 4; i++)
        out[threadIdx.x * 4 + i] = d[i];
}

static void test_s8_extremes(void **)
{
    Device<int32_t> out(128);
    bt_cuda_launch(wrap_around, dim3(1), 32, 0, 0, out.at);
    for (unsigned lane = 0; lane < 32; lane++) {
        assert_int_equal(out[lane * 4], static_cast<int32_t>(0x7fffffffu + 32 * 127));
        assert_int_equal(out[lane * 4 + 1], INT32_MIN + 32 * 127);
        assert_int_equal(out[lane * 4 + 2], -32 * 128);
    }
}

/* ---- wgmma ---- */

/*
 * Where element (mn, k) of an operand lies, in bytes, as the PTX ISA draws it: patterns of 8 rows
 * of `span` bytes (16: none), whose pieces of 16 bytes are exchanged by the row. Elements along the
 * contiguous dimension are `x`, along the other `y`; patterns follow each other first in y.
 */
static uint32_t place_in_pattern(uint32_t x, uint32_t y, uint32_t y_count, uint32_t span)
{
    uint32_t in_row = span / 2, row = y % 8, piece = x % in_row / 8;
    static const uint32_t rows_alike[] = {8, 4, 2, 1}; /* of 16, 32, 64, 128 bytes */
    uint32_t turn = span == 16    ? 0
                    : span == 32  ? row / rows_alike[1]
                    : span == 64  ? row / rows_alike[2]
                    : span == 128 ? row / rows_alike[3]
                                  : 0;
    return x / in_row * (y_count * span) + y / 8 * (8 * span) + row * span + (piece ^ turn) * 16 +
           x % 8 * 2;
}

struct Shape {
    unsigned n, k_total; /* k in steps of 16 */
    unsigned span_a, span_b;
    int mn_a, mn_b;
    bool registers;
};

/* Of `rows` x k_total elements from `base` on, the descriptor of 16 k from step `step` on. */
BT_DEVICE uint64_t descriptor_of(unsigned char *base, uint32_t rows, uint32_t k_total,
                                 uint32_t span, bool mn_major, uint32_t step)
{
    enum bt_swizzle swizzle = span == 128  ? BT_SWIZZLE_128
                              : span == 64 ? BT_SWIZZLE_64
                              : span == 32 ? BT_SWIZZLE_32
                                           : BT_SWIZZLE_NONE;
    uint32_t next_rows = 8 * span; /* from 8 rows (y) to the next 8 */
    if (!mn_major) {               /* x is k */
        uint32_t next_x = rows * span;
        uint32_t at = step * 16 / (span / 2) * next_x + step * 32 % span;
        return bt_matrix_descriptor(base + at, next_x, next_rows, swizzle);
    }
    uint32_t next_x = k_total * span; /* x is m or n */
    uint32_t at = step * 2 * next_rows;
    if (span == 16) /* from 8 k to the next; from 8 rows to the next */
        return bt_matrix_descriptor(base + at, next_rows, next_x, swizzle);
    return bt_matrix_descriptor(base + at, next_x, next_rows, swizzle);
}

template <int N, int MnA, int MnB>
BT_DEVICE void wgmma_step(float *d, uint64_t a, uint64_t b, bool more)
{
    if (N == 16)
        bt_wgmma_n16_bf16<MnA, MnB>(d, a, b, more);
    else if (N == 64)
        bt_wgmma_n64_bf16<MnA, MnB>(d, a, b, more);
    else if (N == 128)
        bt_wgmma_n128_bf16<MnA, MnB>(d, a, b, more);
    else
        bt_wgmma_n256_bf16<MnA, MnB>(d, a, b, more);
}
template <int N, int MnB>
BT_DEVICE void wgmma_step_registers(float *d, const uint32_t *a, uint64_t b, bool more)
{
    if (N == 64)
        bt_wgmma_n64_bf16_registers<MnB>(d, a, b, more);
    else if (N == 128)
        bt_wgmma_n128_bf16_registers<MnB>(d, a, b, more);
    else
        bt_wgmma_n256_bf16_registers<MnB>(d, a, b, more);
}

/* shared: images of a and b as they are to lie; fragments: of a [step][thread][4]. */
template <int N, int MnA, int MnB>
BT_KERNEL(128, 1)
multiply_group(const unsigned char *images, const uint32_t *fragments, float *out, Shape shape)
{
    uint32_t a_bytes = 64 * shape.k_total * 2, bytes = a_bytes + N * shape.k_total * 2;
    for (uint32_t i = threadIdx.x * 16; i < bytes; i += 128 * 16)
        bt_store_shared_16(bt_shared() + i, bt_load_16(images + i));
    bt_fence_async();
    bt_sync_block();
    float d[N / 2];
    bt_wgmma_fence();
    for (uint32_t step = 0; step < shape.k_total / 16; step++) {
        uint64_t a = descriptor_of(bt_shared(), 64, shape.k_total, shape.span_a, MnA, step);
        uint64_t b =
            descriptor_of(bt_shared() + a_bytes, N, shape.k_total, shape.span_b, MnB, step);
        if (shape.registers)
            wgmma_step_registers<N, MnB>(d, fragments + (step * 128 + threadIdx.x) * 4, b,
                                         step > 0);
        else
            wgmma_step<N, MnA, MnB>(d, a, b, step > 0);
    }
    bt_wgmma_commit();
    bt_wgmma_wait<0>();
    bt_wgmma_hold(d);
    for (uint32_t i = 0; i < N / 2; i++)
        out[threadIdx.x * (N / 2) + i] = d[i];
}

template <int N>
static void launch_group(const Shape &shape, const unsigned char *images, const uint32_t *fragments,
                         float *out)
{
    unsigned bytes = (64 + N) * shape.k_total * 2;
    if (shape.mn_a && shape.mn_b)
        bt_cuda_launch((multiply_group<N, 1, 1>), dim3(1), 128, bytes, 0, images, fragments, out,
                       shape);
    else if (shape.mn_a)
        bt_cuda_launch((multiply_group<N, 1, 0>), dim3(1), 128, bytes, 0, images, fragments, out,
                       shape);
    else if (shape.mn_b)
        bt_cuda_launch((multiply_group<N, 0, 1>), dim3(1), 128, bytes, 0, images, fragments, out,
                       shape);
    else
        bt_cuda_launch((multiply_group<N, 0, 0>), dim3(1), 128, bytes, 0, images, fragments, out,
                       shape);
}

static void check_group(const Shape &shape)
{
    unsigned k_total = shape.k_total, n = shape.n;
    std::vector<float> a(64 * k_total), b(n * k_total), expected(64 * n);
    for (float &value : a)
        value = small_number();
    for (float &value : b)
        value = small_number();
    Device<unsigned char> images((64 + n) * k_total * 2);
    Device<uint32_t> fragments(k_total / 16 * 128 * 4);
    Device<float> out(64 * n);
    auto put = [&](uint32_t at, float value) {
        uint16_t half = bf16_of(value);
        memcpy(&images[at], &half, 2);
    };
    for (unsigned k = 0; k < k_total; k++) {
        for (unsigned m = 0; m < 64; m++)
            put(shape.mn_a ? place_in_pattern(m, k, k_total, shape.span_a)
                           : place_in_pattern(k, m, 64, shape.span_a),
                a[m * k_total + k]);
        for (unsigned j = 0; j < n; j++)
            put(64 * k_total * 2 + (shape.mn_b ? place_in_pattern(j, k, k_total, shape.span_b)
                                               : place_in_pattern(k, j, n, shape.span_b)),
                b[j * k_total + k]);
        for (unsigned m = 0; m < 64; m++)
            for (unsigned j = 0; j < n; j++)
                expected[m * n + j] += a[m * k_total + k] * b[j * k_total + k];
    }
    /* A in registers: warp w has rows 16 w …, fragments of m16k16 each. */
    for (unsigned step = 0; step < k_total / 16; step++)
        for (unsigned thread = 0; thread < 128; thread++)
            for (unsigned i = 0; i < 8; i++) {
                unsigned row = thread / 32 * 16 + thread % 32 / 4 + (i / 2 % 2 ? 8 : 0);
                unsigned col = step * 16 + thread % 4 * 2 + i % 2 + (i >= 4 ? 8 : 0);
                fragments[(step * 128 + thread) * 4 + i / 2] |=
                    uint32_t(bf16_of(a[row * k_total + col])) << i % 2 * 16;
            }
    n == 16    ? launch_group<16>(shape, images.at, fragments.at, out.at)
    : n == 64  ? launch_group<64>(shape, images.at, fragments.at, out.at)
    : n == 128 ? launch_group<128>(shape, images.at, fragments.at, out.at)
               : launch_group<256>(shape, images.at, fragments.at, out.at);
    for (unsigned thread = 0; thread < 128; thread++)
        for (unsigned i = 0; i < n / 2; i++) {
            unsigned row = thread / 32 * 16 + thread % 32 / 4 + (i % 4 >= 2 ? 8 : 0);
            unsigned col = i / 4 * 8 + thread % 4 * 2 + i % 2;
            if (out[thread * (n / 2) + i] != expected[row * n + col])
                fail_msg(
                    "n %u, swizzles %u %u, mn-major %d %d, registers %d: (%u, %u) is %g, not %g", n,
                    shape.span_a, shape.span_b, shape.mn_a, shape.mn_b, shape.registers, row, col,
                    static_cast<double>(out[thread * (n / 2) + i]),
                    static_cast<double>(expected[row * n + col]));
        }
}

static void test_wgmma(void **)
{
    for (unsigned n : {64, 128, 256})
        for (unsigned span_a : {16, 32, 64, 128})
            for (unsigned span_b : {16, 32, 64, 128})
                for (int majors = 0; majors < 4; majors++)
                    if (n == 64 || span_a == 128)
                        check_group({n, 64, span_a, span_b, majors & 1, majors >> 1,
                                     n == 128 && majors % 2 == 0});
    check_group({64, 64, 128, 128, 0, 0, true});
    check_group({256, 128, 128, 128, 0, 1, true});
    check_group({16, 64, 128, 128, 0, 0, false});
    check_group({16, 64, 32, 16, 1, 0, false});
}

/* ---- wgmma of bytes ---- */

template <int N> BT_DEVICE void wgmma_bytes(float *d, uint64_t a, uint64_t b, bool more)
{
    if (N == 16)
        bt_wgmma_n16_e4m3(d, a, b, more);
    else if (N == 64)
        bt_wgmma_n64_e4m3(d, a, b, more);
    else
        bt_wgmma_n128_e4m3(d, a, b, more);
}
template <int N> BT_DEVICE void wgmma_bytes(int32_t *d, uint64_t a, uint64_t b, bool more)
{
    if (N == 16)
        bt_wgmma_n16_s8(d, a, b, more);
    else if (N == 64)
        bt_wgmma_n64_s8(d, a, b, more);
    else if (N == 128)
        bt_wgmma_n128_s8(d, a, b, more);
    else
        bt_wgmma_n256_s8(d, a, b, more);
}
template <int N>
BT_DEVICE void wgmma_registers(int32_t *d, const uint32_t *a, uint64_t b, bool more)
{
    if (N == 16)
        bt_wgmma_n16_s8_registers(d, a, b, more);
    else if (N == 64)
        bt_wgmma_n64_s8_registers(d, a, b, more);
    else if (N == 128)
        bt_wgmma_n128_s8_registers(d, a, b, more);
    else
        bt_wgmma_n256_s8_registers(d, a, b, more);
}
template <int N> BT_DEVICE void wgmma_registers(float *, const uint32_t *, uint64_t, bool)
{
}

/* a [64][k_total], b [N][k_total] as images; d begins as what is in out. */
template <int N, typename Sum>
BT_KERNEL(128, 1)
multiply_bytes(const unsigned char *images, const uint32_t *fragments, Sum *out, uint32_t k_total,
               uint32_t span, bool registers)
{
    uint32_t a_bytes = 64 * k_total, bytes = a_bytes + N * k_total;
    for (uint32_t i = threadIdx.x * 16; i < bytes; i += 128 * 16)
        bt_store_shared_16(bt_shared() + i, bt_load_16(images + i));
    bt_fence_async();
    bt_sync_block();
    Sum d[N / 2];
    for (uint32_t i = 0; i < N / 2; i++)
        d[i] = out[threadIdx.x * (N / 2) + i];
    bt_wgmma_fence();
    for (uint32_t step = 0; step < k_total / 32; step++) {
        /* 32 k have as many bytes as 16 halves */
        uint64_t a = descriptor_of(bt_shared(), 64, k_total / 2, span, false, step);
        uint64_t b = descriptor_of(bt_shared() + a_bytes, N, k_total / 2, span, false, step);
        if (registers)
            wgmma_registers<N>(d, fragments + (step * 128 + threadIdx.x) * 4, b, true);
        else
            wgmma_bytes<N>(d, a, b, true);
    }
    bt_wgmma_commit();
    bt_wgmma_wait<0>();
    bt_wgmma_hold(d);
    for (uint32_t i = 0; i < N / 2; i++)
        out[threadIdx.x * (N / 2) + i] = d[i];
}

template <int N, typename Sum> static void check_bytes(uint32_t span, bool registers)
{
    constexpr unsigned k_total = 128;
    constexpr bool is_integer = std::is_same<Sum, int32_t>::value;
    std::vector<unsigned char> a(64 * k_total), b(N * k_total);
    std::vector<int64_t> expected(64 * N);
    auto draw = [&](unsigned char *byte) {
        *byte = static_cast<unsigned char>(is_integer ? dice()() : e4m3_of(small_number()));
    };
    auto number = [&](unsigned char byte) {
        return static_cast<int64_t>(is_integer ? static_cast<int8_t>(byte) : value_of_e4m3(byte));
    };
    for (unsigned char &byte : a)
        draw(&byte);
    for (unsigned char &byte : b)
        draw(&byte);
    Device<unsigned char> images((64 + N) * k_total);
    Device<uint32_t> fragments(k_total / 32 * 128 * 4);
    Device<Sum> out(64 * N);
    /* a core matrix has 8 rows of 16 bytes, whatever elements they are */
    for (unsigned k = 0; k < k_total; k++) {
        for (unsigned m = 0; m < 64; m++)
            images[place_in_pattern(k / 2, m, 64, span) + k % 2] = a[m * k_total + k];
        for (unsigned j = 0; j < N; j++)
            images[64 * k_total + place_in_pattern(k / 2, j, N, span) + k % 2] = b[j * k_total + k];
    }
    /* Element i of a thread's 16: row lane / 4, for 4 … 7 and 12 … 15 eight further; k 4 (lane % 4)
     * + i % 4, for the last eight 16 further. */
    for (unsigned step = 0; step < k_total / 32; step++)
        for (unsigned thread = 0; thread < 128; thread++)
            for (unsigned i = 0; i < 16; i++) {
                unsigned row = thread / 32 * 16 + thread % 32 / 4 + (i / 4 % 2 ? 8 : 0);
                unsigned col = step * 32 + thread % 4 * 4 + i % 4 + (i >= 8 ? 16 : 0);
                fragments[(step * 128 + thread) * 4 + i / 4] |= uint32_t(a[row * k_total + col])
                                                                << i % 4 * 8;
            }
    for (unsigned thread = 0; thread < 128; thread++)
        for (unsigned i = 0; i < N / 2; i++) {
            unsigned row = thread / 32 * 16 + thread % 32 / 4 + (i % 4 >= 2 ? 8 : 0);
            unsigned col = i / 4 * 8 + thread % 4 * 2 + i % 2;
            int64_t begin = is_integer ? static_cast<int32_t>(dice()()) : 3;
            out[thread * (N / 2) + i] = static_cast<Sum>(begin);
            expected[row * N + col] += begin;
            for (unsigned k = 0; k < k_total; k++)
                expected[row * N + col] +=
                    number(a[row * k_total + k]) * number(b[col * k_total + k]);
        }
    bt_cuda_launch((multiply_bytes<N, Sum>), dim3(1), 128, (64 + N) * k_total, 0, images.at,
                   fragments.at, out.at, k_total, span, registers);
    for (unsigned thread = 0; thread < 128; thread++)
        for (unsigned i = 0; i < N / 2; i++) {
            unsigned row = thread / 32 * 16 + thread % 32 / 4 + (i % 4 >= 2 ? 8 : 0);
            unsigned col = i / 4 * 8 + thread % 4 * 2 + i % 2;
            int64_t want = expected[row * N + col];
            Sum got = out[thread * (N / 2) + i];
            bool same = is_integer ? static_cast<int32_t>(got) == static_cast<int32_t>(want)
                                   : static_cast<double>(got) == static_cast<double>(want);
            if (!same)
                fail_msg("n %d, swizzle %u, registers %d: (%u, %u) is %g, not %lld", N, span,
                         registers, row, col, static_cast<double>(got),
                         static_cast<long long>(want));
        }
}

static void test_wgmma_bytes(void **)
{
    for (uint32_t span : {16, 32, 64, 128}) {
        check_bytes<16, float>(span, false);
        check_bytes<64, float>(span, false);
        check_bytes<128, float>(span, false);
        for (int registers = 0; registers < 2; registers++) {
            check_bytes<16, int32_t>(span, registers);
            check_bytes<64, int32_t>(span, registers);
            check_bytes<128, int32_t>(span, registers);
            check_bytes<256, int32_t>(span, registers);
        }
    }
}

/* ---- copies ---- */

struct alignas(64) Map {
    emulation::TensorMap map;
    unsigned char rest[128 - sizeof(emulation::TensorMap)];
};

BT_KERNEL(32, 1)
copy_box(const __grid_constant__ Map map, uint32_t x, uint32_t y, uint32_t bytes, uint16_t *out)
{
    uint64_t *done = reinterpret_cast<uint64_t *>(bt_shared() + bytes);
    if (threadIdx.x == 0)
        bt_mbarrier_init(done, 1);
    bt_sync_block();
    if (threadIdx.x == 0) {
        bt_mbarrier_arrive_expect(done, bytes);
        bt_bulk_copy_box(bt_shared(), &map, x, y, done);
    }
    bt_mbarrier_wait(done, 0);
    for (uint32_t i = threadIdx.x; i < bytes / 2; i += 32)
        out[i] = reinterpret_cast<const uint16_t *>(bt_shared())[i];
}

static void test_boxes(void **)
{
    constexpr unsigned width = 80, height = 20, box_rows = 16;
    Device<uint16_t> tensor(width * height), out(64 * box_rows);
    for (unsigned i = 0; i < width * height; i++)
        tensor[i] = static_cast<uint16_t>(i + 1);
    static const unsigned spans[] = {16, 32, 64, 128};
    for (unsigned swizzle = 0; swizzle < 4; swizzle++)
        for (int x : {0, 8, 56, -8})
            for (int y : {0, 3, 8, -1}) {
                unsigned span = spans[swizzle], box = swizzle ? span / 2 : 24;
                Map map = {};
                map.map = {emulation::TensorMap::kMagic,
                           tensor.at,
                           {width, height},
                           width * 2,
                           {box, box_rows},
                           2,
                           swizzle};
                unsigned bytes = box * box_rows * 2;
                bt_cuda_launch(copy_box, dim3(1), 32, bytes + 8, 0, map, static_cast<uint32_t>(x),
                               static_cast<uint32_t>(y), bytes, out.at);
                for (unsigned row = 0; row < box_rows; row++)
                    for (unsigned i = 0; i < box; i++) {
                        int at_x = x + static_cast<int>(i), at_y = y + static_cast<int>(row);
                        bool in = at_x >= 0 && at_y >= 0 && at_x < (int)width && at_y < (int)height;
                        unsigned expected = in ? at_y * (int)width + at_x + 1 : 0;
                        unsigned at =
                            swizzle ? place_in_pattern(i, row, box_rows, span) / 2 : row * box + i;
                        assert_int_equal(out[at], expected);
                    }
            }
}

BT_KERNEL(32, 1) copy_some(const uint32_t *in, uint32_t *out)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    bt_copy_async_16(words + 4 * threadIdx.x, in + 4 * threadIdx.x, threadIdx.x % 3 != 0);
    bt_copy_async_4(words + 128 + threadIdx.x, in + threadIdx.x, threadIdx.x % 5 != 0);
    bt_copy_async_commit();
    bt_copy_async_wait<0>();
    bt_store_16(out + 4 * threadIdx.x, bt_load_shared_16(words + 4 * threadIdx.x));
    out[128 + threadIdx.x] = words[128 + threadIdx.x];
}

static void test_copy_async(void **)
{
    Device<uint32_t> in(128), out(160);
    for (unsigned i = 0; i < 128; i++)
        in[i] = i + 1;
    bt_cuda_launch(copy_some, dim3(1), 32, 640, 0, in.at, out.at);
    for (unsigned i = 0; i < 128; i++)
        assert_int_equal(out[i], i / 4 % 3 != 0 ? i + 1 : 0);
    for (unsigned i = 0; i < 32; i++)
        assert_int_equal(out[128 + i], i % 5 != 0 ? i + 1 : 0);
}

/* ---- clusters ---- */

/* Words 0 … 63 are of the first block and go to the second one, 64 … 127 the other way. */
BT_KERNEL(128, 1) pairs(uint32_t *out)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    uint64_t *full = reinterpret_cast<uint64_t *>(bt_shared() + 512), *all = full + 1;
    const uint32_t rank = bt_cluster_rank(), block = blockIdx.y * gridDim.x + blockIdx.x;
    uint32_t *mine = out + block * 132;
    if (threadIdx.x / 64 == rank)
        words[threadIdx.x] = block * 1000 + threadIdx.x;
    bt_fence_async();
    if (threadIdx.x == 0) {
        bt_mbarrier_init(full, 1);
        bt_mbarrier_init(all, 256);
    }
    bt_sync_cluster();
    if (threadIdx.x == 0) {
        bt_bulk_copy_cluster(words + 64 * rank, 128, full, rank ^ 1);
        bt_bulk_copy_cluster(words + 64 * rank + 32, 128, full, rank ^ 1);
        bt_mbarrier_arrive_expect(full, 256);
    }
    bt_mbarrier_wait(full, 0);
    mine[threadIdx.x] = words[threadIdx.x];
    bt_mbarrier_arrive_cluster(all, 0); /* once here, or there, for the other one */
    bt_mbarrier_arrive_cluster(all, 1);
    bt_mbarrier_wait(all, 0);
    words[threadIdx.x] = 0; /* both have read it, and what was sent has come */
    if (threadIdx.x == 0) {
        mine[128] = rank;
        mine[129] = bt_cluster_size();
        mine[130] = bt_shared_address(words);
    }
    bt_sync_cluster();
}

BT_KERNEL(32, 1) alone(uint32_t *out)
{
    out[2 * blockIdx.x] = bt_cluster_rank();
    out[2 * blockIdx.x + 1] = bt_cluster_size();
    bt_sync_cluster();
}

static void test_clusters(void **)
{
    Device<uint32_t> out(8 * 132);
    for (uint64_t seed : {0, 1, 5}) {
        emulation::set_seed(seed);
        memset(out.at, 0xff, out.count * 4);
        bt_cuda_launch_clusters(pairs, 2, dim3(4, 2), 128, 528, 0, out.at);
        for (unsigned block = 0; block < 8; block++) {
            const uint32_t *of = out.at + block * 132, first = block / 2 * 2;
            for (unsigned i = 0; i < 128; i++)
                assert_int_equal(of[i], (first + i / 64) * 1000 + i);
            assert_int_equal(of[128], block % 2);
            assert_int_equal(of[129], 2);
            assert_int_equal(of[130], out[130]); /* addresses are of each block's own */
        }
        bt_cuda_launch(alone, dim3(4), 32, 0, 0, out.at);
        for (unsigned block = 0; block < 4; block++) {
            assert_int_equal(out[2 * block], 0);
            assert_int_equal(out[2 * block + 1], 1);
        }
    }
    emulation::set_seed(0);
}

/* ---- lanes and atomics ---- */

BT_KERNEL(64, 1) lanes(uint32_t *out, uint32_t *counters)
{
    uint32_t lane = bt_lane();
    uint32_t *mine = out + threadIdx.x * 8, mixed = threadIdx.x * 2654435761u;
    mine[0] = bt_shuffle_xor(threadIdx.x, 5);
    mine[1] = bt_bits(bt_shuffle_xor(static_cast<float>(threadIdx.x), 16));
    mine[2] = bt_shuffle(threadIdx.x, (lane + 7) % 32);
    mine[3] = bt_bits(bt_shuffle(static_cast<float>(threadIdx.x), 3));
    mine[4] = bt_shuffle_up(threadIdx.x, 4);
    mine[5] = bt_ballot(threadIdx.x % 3 == 0);
    mine[6] = bt_warp_max(mixed);
    mine[7] = bt_warp_min(mixed) + bt_bits_set(threadIdx.x);
    bt_atomic_add(counters, threadIdx.x);
    bt_atomic_max(counters + 1, threadIdx.x * 3 % 64);
}

static void test_lanes(void **)
{
    Device<uint32_t> out(512), counters(2);
    for (uint64_t seed : {0, 3}) {
        emulation::set_seed(seed);
        counters[0] = counters[1] = 0;
        bt_cuda_launch(lanes, dim3(1), 64, 0, 0, out.at, counters.at);
        for (unsigned t = 0; t < 64; t++) {
            unsigned warp = t / 32 * 32, lane = t % 32, bits = 0, most = 0, least = ~0u;
            for (unsigned i = 0; i < 32; i++) {
                bits |= ((warp + i) % 3 == 0 ? 1u : 0u) << i;
                most = std::max(most, (warp + i) * 2654435761u);
                least = std::min(least, (warp + i) * 2654435761u);
            }
            unsigned set = 0;
            for (unsigned rest = t; rest != 0; rest /= 2)
                set += rest % 2;
            assert_int_equal(out[t * 8 + 6], most);
            assert_int_equal(out[t * 8 + 7], least + set);
            assert_int_equal(out[t * 8], warp + (lane ^ 5));
            assert_true(bt_float(out[t * 8 + 1]) == static_cast<float>(warp + (lane ^ 16)));
            assert_int_equal(out[t * 8 + 2], warp + (lane + 7) % 32);
            assert_true(bt_float(out[t * 8 + 3]) == static_cast<float>(warp + 3));
            assert_int_equal(out[t * 8 + 4], lane < 4 ? t : t - 4);
            assert_int_equal(out[t * 8 + 5], bits);
        }
        assert_int_equal(counters[0], 64 * 63 / 2);
        assert_int_equal(counters[1], 63);
    }
    emulation::set_seed(0);
}

/* ---- numbers ---- */

static void test_e4m3(void **)
{
    std::vector<double> sizes; /* of the codes 0 … 0x7e */
    for (unsigned byte = 0; byte < 256; byte++) {
        float value = bt_from_e4m3(static_cast<uint8_t>(byte));
        if (byte % 128 == 127) {
            assert_true(bt_is_nan(value));
            continue;
        }
        assert_true(static_cast<double>(value) == value_of_e4m3(byte));
        assert_int_equal(std::signbit(value), byte >= 128);
        assert_int_equal(bt_e4m3_from(value), byte);
        if (byte < 128)
            sizes.push_back(value);
    }
    for (unsigned i = 0; i + 1 < sizes.size(); i++) {
        float middle = static_cast<float>((sizes[i] + sizes[i + 1]) / 2);
        for (unsigned sign : {0u, 128u}) {
            float turn = sign ? -1.0f : 1.0f;
            assert_int_equal(bt_e4m3_from(turn * middle), sign | (i % 2 ? i + 1 : i));
            assert_int_equal(bt_e4m3_from(turn * nextafterf(middle, 0)), sign | i);
            assert_int_equal(bt_e4m3_from(turn * nextafterf(middle, 1000)), sign | (i + 1));
        }
    }
    for (float large : {448.0f, 449.0f, 464.0f, 1e30f, INFINITY}) {
        assert_int_equal(bt_e4m3_from(large), 0x7e);
        assert_int_equal(bt_e4m3_from(-large), 0xfe);
    }
    assert_int_equal(bt_e4m3_from(NAN), 0x7f);
    assert_int_equal(bt_e4m3_from(1e-40f), 0);
    assert_int_equal(bt_e4m3_from(-0.0f), 0x80);
}

static void test_bf16(void **)
{
    for (unsigned i = 0; i < 200000; i++) {
        uint32_t bits = dice()(), half = bits >> 16;
        if (i % 4 == 0) /* ties */
            bits = half << 16 | 0x8000;
        float value = bt_float(bits);
        if (std::isnan(value)) {
            assert_int_equal(bt_bf16_from(value), 0x7fff);
            continue;
        }
        /* Of the two neighbours the nearer, or the even; sizes grow with the code. */
        uint32_t rest = bits & 0xffff;
        bool up = rest > 0x8000 || (rest == 0x8000 && half % 2);
        assert_int_equal(bt_bf16_from(value), half + (up ? 1 : 0));
        uint32_t both = bt_bf16x2_from(value, 1.0f);
        assert_int_equal(both, 0x3f800000u | (half + (up ? 1 : 0)));
        assert_int_equal(bt_bits(bt_bf16x2_low(both)), both << 16);
        assert_int_equal(bt_bits(bt_bf16x2_high(both)), 0x3f800000);
    }
    assert_int_equal(bt_bf16_from(3.4e38f), 0x7f80); /* beyond the largest: infinity */
}

static void test_numbers(void **)
{
    assert_int_equal(bt_int_nearest(0.5f), 0);
    assert_int_equal(bt_int_nearest(1.5f), 2);
    assert_int_equal(bt_int_nearest(-2.5f), -2);
    assert_int_equal(bt_int_nearest(1e20f), INT32_MAX);
    assert_int_equal(bt_int_nearest(-1e20f), INT32_MIN);
    assert_int_equal(bt_int_nearest(NAN), 0);
    for (int i = -126; i < 128; i++)
        assert_true(bt_exp2_fast(static_cast<float>(i)) == ldexpf(1, i));
    assert_true(bt_exp2_fast(-126.5f) == 0);
    assert_true(bt_exp2_fast(-INFINITY) == 0);
    assert_true(bt_exp2_fast(200) == INFINITY);
    assert_true(bt_is_nan(bt_exp2_fast(NAN)));
    assert_true(bt_fma(1 + 0x1p-23f, 1 - 0x1p-23f, -1) == -0x1p-46f);
    assert_true(bt_mul(1 + 0x1p-23f, 1 - 0x1p-23f) == 1);
    assert_true(bt_max(NAN, 1) == 1);
    uint32_t limits = bt_bf16x2_from(2, 2);
    assert_int_equal(bt_bf16x2_clamp(bt_bf16x2_from(-5, NAN), limits), bt_bf16x2_from(-2, -2));
    assert_int_equal(bt_bf16x2_clamp(bt_bf16x2_from(1, INFINITY), limits), bt_bf16x2_from(1, 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ldmatrix), cmocka_unit_test(test_mma),
        cmocka_unit_test(test_rounding), cmocka_unit_test(test_s8_extremes),
        cmocka_unit_test(test_wgmma),    cmocka_unit_test(test_wgmma_bytes),
        cmocka_unit_test(test_boxes),    cmocka_unit_test(test_copy_async),
        cmocka_unit_test(test_clusters), cmocka_unit_test(test_lanes),
        cmocka_unit_test(test_e4m3),     cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
