/* Tensor cores: ldmatrix and mma of a warp, wgmma of a warpgroup, and conversions. */
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "tests/cuda-emulation/run.h"

namespace emulation {

/* ---- numbers ---- */

static float float_of(uint32_t bits)
{
    return __builtin_bit_cast(float, bits);
}

static float from_bf16(uint16_t half)
{
    return float_of(uint32_t(half) << 16);
}

static float from_e4m3(uint8_t byte)
{
    int exponent = byte >> 3 & 15, fraction = byte & 7;
    if ((byte & 0x7f) == 0x7f)
        return float_of(0x7fffffffu);
    float size = exponent ? ldexpf(static_cast<float>(8 + fraction), exponent - 10)
                          : ldexpf(static_cast<float>(fraction), -9);
    return byte & 0x80 ? -size : size;
}

struct E4m3Table {
    float of[256];
    E4m3Table()
    {
        for (unsigned i = 0; i < 256; i++)
            of[i] = from_e4m3(static_cast<uint8_t>(i));
    }
};

static float e4m3(uint8_t byte)
{
    static const E4m3Table table;
    return table.of[byte];
}

uint8_t e4m3_from(float value)
{
    uint8_t sign = std::signbit(value) ? 0x80 : 0;
    float size = fabsf(value);
    if (std::isnan(size))
        return 0x7f;
    if (size >= 448)
        return sign | 0x7e;
    int exponent = size < 0x1p-6f ? -6 : ilogbf(size);
    /* In steps of 2^(exponent - 3), 8 … 16 of them (below 2^-6 fewer). */
    int steps = static_cast<int>(nearbyintf(ldexpf(size, 3 - exponent)));
    int code = steps < 8 ? steps : (exponent + 7) * 8 + (steps - 8);
    return static_cast<uint8_t>(sign | code);
}

float exp2_fast(float x)
{
    double y = exp2(static_cast<double>(x));
    return y < 0x1p-126 ? 0.0f : static_cast<float>(y);
}

/* ---- sums ---- */

static Rounding rounding_of_environment()
{
    const char *text = getenv("BATON_EMULATION_MMA");
    if (text == nullptr || strcmp(text, "nearest") == 0)
        return Rounding::nearest;
    if (strcmp(text, "truncate") == 0)
        return Rounding::truncate;
    if (strcmp(text, "sequential") == 0)
        return Rounding::sequential;
    if (strcmp(text, "halves") == 0)
        return Rounding::halves;
    fprintf(stderr, "BATON_EMULATION_MMA=%s: is one of nearest, truncate, sequential, halves\n",
            text);
    abort();
}

static Rounding &rounding()
{
    static Rounding now = rounding_of_environment();
    return now;
}

void set_rounding(Rounding now)
{
    rounding() = now;
}

static float towards_zero(double x)
{
    float y = static_cast<float>(x);
    return fabs(static_cast<double>(y)) > fabs(x) ? nextafterf(y, 0.0f) : y;
}

constexpr unsigned kMaxN = 256;

/* sum [rows][n] += a [rows][k] b [k][n], b with this pitch: products of bf16 are exact in double.
 */
template <unsigned N>
static inline __attribute__((always_inline)) void
add_products(double (*sum)[N], const float *a, unsigned a_pitch, const float *b, unsigned b_pitch,
             unsigned rows, unsigned n, unsigned k)
{
    for (unsigned row = 0; row < rows; row++)
        for (unsigned i = 0; i < k; i++) {
            double factor = a[row * a_pitch + i];
            for (unsigned j = 0; j < n; j++)
                sum[row][j] += factor * static_cast<double>(b[i * b_pitch + j]);
        }
}

#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
CLONES static void add_products_8(double (*sum)[8], const float *a, unsigned a_pitch,
                                  const float *b, unsigned k)
{
    add_products<8>(sum, a, a_pitch, b, 8, 16, 8, k);
}
CLONES static void add_products_n(double (*sum)[kMaxN], const float *a, const float *b, unsigned n,
                                  unsigned k)
{
    add_products<kMaxN>(sum, a, 0, b, kMaxN, 1, n, k);
}

/* d [n] (+)= sum [n] */
static void round_sums(float *d, const double *sum, unsigned n, Rounding how)
{
    bool to_even = how == Rounding::nearest || how == Rounding::sequential;
    for (unsigned j = 0; j < n; j++) {
        double whole = sum[j] + static_cast<double>(d[j]);
        d[j] = to_even ? static_cast<float>(whole) : towards_zero(whole);
        if (d[j] != d[j])
            d[j] = float_of(0x7fffffffu);
    }
}

/* So many k at a time. */
static unsigned step_of(Rounding how, unsigned k)
{
    return how == Rounding::halves ? 8 : how == Rounding::sequential ? 1 : k;
}

/* ---- warp ---- */

struct LdmatrixArguments {
    uint32_t *out;
    const void *shared;
};

void ldmatrix(uint32_t *out, const void *shared, unsigned matrices, bool transposed, Place place)
{
    static const char what4[] = "bt_ldmatrix_x4", what2[] = "bt_ldmatrix_x2";
    const char *what = matrices == 4 ? what4 : what2;
    LdmatrixArguments mine = {out, shared};
    Run *run = current;
    const void *code = __builtin_return_address(0);
    meet_warp(run, what, &mine, place, [=](Meeting &all) {
        Thread *first = &run->thread[run->now->number / kLanes * kLanes];
        const unsigned char *rows[32];
        Thread *self = run->now;
        for (unsigned i = 0; i < 8 * matrices; i++) {
            const void *row = static_cast<const LdmatrixArguments *>(all.argument[i])->shared;
            run->now = first + i; /* whose access it is */
            shared_read(run, run->now, shared_offset(run, row, 16, 16, what), 16, what);
            rows[i] = static_cast<const unsigned char *>(row);
        }
        run->now = self;
        counts_matrices(run, rows, 8 * matrices, code);
        for (unsigned lane = 0; lane < kLanes; lane++)
            for (unsigned m = 0; m < matrices; m++) {
                uint16_t half[2];
                for (unsigned i = 0; i < 2; i++) {
                    unsigned along = lane % 4 * 2 + i, across = lane / 4;
                    unsigned row = transposed ? along : across, col = transposed ? across : along;
                    memcpy(&half[i], rows[8 * m + row] + 2 * col, 2);
                }
                static_cast<const LdmatrixArguments *>(all.argument[lane])->out[m] =
                    uint32_t(half[1]) << 16 | half[0];
            }
    });
}

struct MmaArguments {
    void *d;
    const uint32_t *a, *b;
};

/* Element i of 16 bits, or of 8, of a fragment's register. */
static uint16_t half_of(uint32_t word, unsigned i)
{
    return static_cast<uint16_t>(word >> 16 * i);
}
static uint8_t byte_of(uint32_t word, unsigned i)
{
    return static_cast<uint8_t>(word >> 8 * i);
}

/* Lane l has of a 16 x K the rows l / 4 and l / 4 + 8, registers 0 and 1 the first half of K, 2 and
 * 3 the second; of b the column l / 4, likewise; of d columns 2 (l % 4) and the next. */
template <unsigned PerWord, typename Value, typename Convert>
static void gather(const Meeting &all, Value (*a)[PerWord * 8], Value *b, unsigned pitch,
                   const Convert &convert)
{
    for (unsigned lane = 0; lane < kLanes; lane++) {
        const MmaArguments *of = static_cast<const MmaArguments *>(all.argument[lane]);
        unsigned group = lane / 4, first = lane % 4 * PerWord;
        for (unsigned i = 0; i < PerWord; i++) {
            for (unsigned word = 0; word < 4; word++)
                a[group + word % 2 * 8][first + i + word / 2 * 4 * PerWord] =
                    convert(of->a[word], i);
            for (unsigned word = 0; word < 2; word++)
                b[(first + i + word * 4 * PerWord) * pitch + group] = convert(of->b[word], i);
        }
    }
}

template <typename Value> static void each_d(const Meeting &all, Value (*d)[8], bool load)
{
    for (unsigned lane = 0; lane < kLanes; lane++) {
        Value *of = static_cast<Value *>(static_cast<const MmaArguments *>(all.argument[lane])->d);
        for (unsigned i = 0; i < 4; i++) {
            Value *at = &d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
            *(load ? at : of + i) = *(load ? of + i : at);
        }
    }
}

template <unsigned PerWord, typename Convert>
static void mma_float(const Meeting &all, const Convert &convert)
{
    constexpr unsigned k = PerWord * 8;
    float a[16][k], b[k * 8], d[16][8];
    Rounding how = rounding();
    unsigned step = step_of(how, k);
    gather<PerWord>(all, a, b, 8, convert);
    each_d(all, d, true);
    for (unsigned from = 0; from < k; from += step) {
        double sum[16][8] = {};
        add_products_8(sum, a[0] + from, k, b + from * 8, step);
        round_sums(d[0], sum[0], 16 * 8, how);
    }
    each_d(all, d, false);
}

void mma_bf16(float *d, const uint32_t *a, const uint32_t *b, Place place)
{
    MmaArguments mine = {d, a, b};
    meet_warp(current, "bt_mma_bf16", &mine, place, [](const Meeting &all) {
        counts_products(current, 16 * 8 * 16);
        mma_float<2>(all, [](uint32_t word, unsigned i) { return from_bf16(half_of(word, i)); });
    });
}

void mma_e4m3(float *d, const uint32_t *a, const uint32_t *b, Place place)
{
    MmaArguments mine = {d, a, b};
    meet_warp(current, "bt_mma_e4m3", &mine, place, [](const Meeting &all) {
        counts_products(current, 16 * 8 * 32);
        mma_float<4>(all, [](uint32_t word, unsigned i) { return e4m3(byte_of(word, i)); });
    });
}

void mma_s8(int32_t *d, const uint32_t *a, const uint32_t *b, Place place)
{
    MmaArguments mine = {d, a, b};
    meet_warp(current, "bt_mma_s8", &mine, place, [](const Meeting &all) {
        counts_products(current, 16 * 8 * 32);
        int32_t left[16][32], right[32 * 8], sums[16][8];
        gather<4>(all, left, right, 8, [](uint32_t word, unsigned i) {
            return int32_t(static_cast<int8_t>(byte_of(word, i)));
        });
        each_d(all, sums, true);
        for (unsigned row = 0; row < 16; row++)
            for (unsigned col = 0; col < 8; col++) {
                uint32_t sum = static_cast<uint32_t>(sums[row][col]); /* wraps around */
                for (unsigned k = 0; k < 32; k++)
                    sum += static_cast<uint32_t>(left[row][k] * right[k * 8 + col]);
                sums[row][col] = static_cast<int32_t>(sum);
            }
        each_d(all, sums, false);
    });
}

/* ---- warpgroup ---- */

void matrix_begin(Run *run)
{
    for (Group &group : run->group) {
        group.products.clear();
        group.next_group = 0;
    }
}

void matrix_end(Run *run, unsigned rank)
{
    for (unsigned group = 0; group < kGroups; group++)
        for (const Product &product : run->group[group].products)
            if (run->thread[group * kGroupThreads].rank == rank)
                fault(run, "the block ended before a wgmma (%s) was waited for",
                      place_name(product.place).c_str());
}

/*
 * Where an element of an operand lies, `major` its index along M (or N), as PTX's canonical
 * layouts say: K-major (the contiguous dimension is K) or MN-major.
 */
struct Operand {
    uint32_t start, leading, stride, span; /* span: of the swizzle in bytes; 16: none */
    bool mn_major;
};

static Operand operand_of(uint64_t descriptor, bool mn_major)
{
    static const uint32_t spans[] = {16, 128, 64, 32};
    Operand operand;
    operand.start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
    operand.leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
    operand.stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
    operand.span = spans[descriptor >> 62];
    operand.mn_major = mn_major;
    return operand;
}

static uint32_t address_of(const Operand &operand, uint32_t major, uint32_t k)
{
    uint32_t at = operand.start, elements = operand.span / 2;
    if (!operand.mn_major && operand.span == 16)
        at += major / 8 * operand.stride + major % 8 * 16 + k / 8 * operand.leading + k % 8 * 2;
    else if (!operand.mn_major)
        at += major / 8 * operand.stride + major % 8 * operand.span + k * 2;
    else if (operand.span == 16)
        at += major / 8 * operand.stride + major % 8 * 2 + k / 8 * operand.leading + k % 8 * 16;
    else
        at += major / elements * operand.leading + major % elements * 2 + k / 8 * operand.stride +
              k % 8 * operand.span;
    /* Bits 4 … are turned by bits 7 …, as many as the span has pieces of 16 bytes. */
    return at ^ (at >> 7 & (operand.span / 16 - 1)) << 4;
}

static void check_operand(Run *run, const Operand &operand, uint64_t descriptor, const char *name,
                          Place place)
{
    if (descriptor & 0x3fffc000c000c000u)
        fault(run, "wgmma (%s): descriptor %s = %016llx has bits that must be zero",
              place_name(place).c_str(), name, static_cast<unsigned long long>(descriptor));
    if (operand.span > 16 && operand.start % (8 * operand.span) >= operand.span)
        fault(run,
              "misaligned: wgmma (%s): descriptor %s begins at shared memory + %u, inside of a "
              "pattern of %u bytes (base offset is 0)",
              place_name(place).c_str(), name, operand.start - kSharedWindow, 8 * operand.span);
    if (operand.span > 16 && operand.stride % (8 * operand.span) != 0)
        fault(run, "misaligned: wgmma (%s): descriptor %s has a stride of %u, its pattern %u bytes",
              place_name(place).c_str(), name, operand.stride, 8 * operand.span);
}

/* All pieces of 16 bytes that the operand has. */
template <typename Do>
static void each_piece(Run *run, const Operand &operand, uint32_t majors, Place place,
                       const Do &act)
{
    uint32_t major_step = operand.mn_major ? 8 : 1, k_step = operand.mn_major ? 1 : 8;
    for (uint32_t major = 0; major < majors; major += major_step)
        for (uint32_t k = 0; k < 16; k += k_step) {
            uint32_t at = address_of(operand, major, k);
            if (at < kSharedWindow || at + 16 - kSharedWindow > run->grid->shared_bytes)
                fault(run,
                      "wgmma (%s) reads out of the block's shared memory: at %lld of %zu bytes",
                      place_name(place).c_str(),
                      static_cast<long long>(at) - static_cast<long long>(kSharedWindow),
                      run->grid->shared_bytes);
            act(run->now->shared_at + at - kSharedWindow);
        }
}

template <typename Do> static void each_piece_of(Run *run, const Product &product, const Do &act)
{
    const Wgmma &said = product.wgmma[0];
    if (!said.a)
        each_piece(run, operand_of(said.a_descriptor, said.transpose_a), 64, product.place, act);
    each_piece(run, operand_of(said.b_descriptor, said.transpose_b), said.n, product.place, act);
}

static void check_products(Run *run, const Product &product)
{
    const Wgmma &first = product.wgmma[0];
    unsigned number = run->now->number / kGroupThreads * kGroupThreads;
    for (unsigned i = 0; i < kGroupThreads; i++) {
        const Wgmma &other = product.wgmma[i];
        if (other.n != first.n || other.more != first.more || other.element != first.element ||
            other.a_descriptor != first.a_descriptor || other.b_descriptor != first.b_descriptor)
            fault(run, "wgmma (%s): %s has other operands than thread %u",
                  place_name(product.place).c_str(), thread_name(run, number + i).c_str(), number);
        if (!run->thread[number + i].fenced_wgmma)
            fault(run, "wgmma (%s) by %s without a bt_wgmma_fence since the last wait",
                  place_name(product.place).c_str(), thread_name(run, number + i).c_str());
    }
    if (!first.a)
        check_operand(run, operand_of(first.a_descriptor, first.transpose_a), first.a_descriptor,
                      "a", product.place);
    check_operand(run, operand_of(first.b_descriptor, first.transpose_b), first.b_descriptor, "b",
                  product.place);
}

void wgmma(const Wgmma &said, Place place)
{
    Run *run = current;
    meet_group(run, "wgmma", &said, place, [&](Meeting &all) {
        Group *group = &run->group[run->now->number / kGroupThreads];
        group->products.emplace_back();
        Product *product = &group->products.back();
        for (unsigned i = 0; i < kGroupThreads; i++) {
            product->wgmma[i] = *static_cast<const Wgmma *>(all.argument[i]);
            if (product->wgmma[i].a)
                memcpy(product->a[i], product->wgmma[i].a, sizeof product->a[i]);
        }
        product->group = group->next_group;
        product->place = place;
        check_products(run, *product);
        counts_products(run, uint64_t(64) * said.n * (said.element == Element::bf16 ? 16 : 32));
        run->wgmma_under_way++; /* registers, if not memory */
        each_piece_of(run, *product,
                      [&](uint32_t offset) { shared_read_begin(run, run->now, offset, "wgmma"); });
    });
}

bool is_accumulating(const Run *run, const Thread *thread, const void *at, size_t bytes)
{
    const unsigned char *begin = static_cast<const unsigned char *>(at);
    for (const Product &product : run->group[thread->number / kGroupThreads].products) {
        const Wgmma &said = product.wgmma[thread->number % kGroupThreads];
        const unsigned char *d = static_cast<const unsigned char *>(said.d);
        if (begin + bytes > d && begin < d + said.n / 2 * sizeof(float))
            return true;
    }
    return false;
}

void wgmma_fence(Place place)
{
    Run *run = current;
    run->now->fenced_wgmma = true;
    meet_group(run, "bt_wgmma_fence", nullptr, place, [](Meeting &) {});
}

void wgmma_commit(Place place)
{
    Run *run = current;
    meet_group(run, "bt_wgmma_commit", nullptr, place,
               [run](Meeting &) { run->group[run->now->number / kGroupThreads].next_group++; });
}

/* Numbers of one operand: an element of 16 k, or of 32 (two in the place of one), by its bits. */
static float number_of(Element element, uint32_t bits)
{
    if (element == Element::bf16)
        return from_bf16(static_cast<uint16_t>(bits));
    if (element == Element::e4m3)
        return e4m3(static_cast<uint8_t>(bits));
    return static_cast<float>(static_cast<int8_t>(bits));
}

static float load_number(const Run *run, const Operand &operand, Element element, uint32_t major,
                         uint32_t k)
{
    const unsigned char *shared = run->shared + run->now->shared_at - kSharedWindow;
    uint16_t half;
    if (element != Element::bf16)
        return number_of(element, shared[address_of(operand, major, k / 2) + k % 2]);
    memcpy(&half, shared + address_of(operand, major, k), 2);
    return number_of(element, half);
}

struct Room {
    float a[64][32], b[32 * kMaxN];
    uint32_t d[64][kMaxN]; /* bits */
};

static void load_operands(const Run *run, const Product &product, unsigned k_count, Room *room)
{
    const Wgmma &first = product.wgmma[0];
    Operand left = operand_of(first.a_descriptor, first.transpose_a);
    Operand right = operand_of(first.b_descriptor, first.transpose_b);
    for (uint32_t k = 0; k < k_count; k++)
        for (uint32_t n = 0; n < first.n; n++)
            room->b[k * kMaxN + n] = load_number(run, right, first.element, n, k);
    for (uint32_t row = 0; row < 64 && !first.a; row++)
        for (uint32_t k = 0; k < k_count; k++)
            room->a[row][k] = load_number(run, left, first.element, row, k);
    /* registers: four of so many elements; rows, rows 8 further, then the same of later k */
    unsigned each = k_count / 8, bits = 32 / each;
    for (unsigned i = 0; i < kGroupThreads && first.a; i++)
        for (unsigned word = 0; word < 4; word++)
            for (unsigned e = 0; e < each; e++)
                room->a[i / 32 * 16 + i % 32 / 4 + word % 2 * 8]
                       [i % 4 * each + e + word / 2 * (k_count / 2)] =
                    number_of(first.element, product.a[i][word] >> e * bits);
}

/* Of warp w: rows 16 w + lane / 4 (+ 8); columns 8 j + 2 (lane % 4) (+ 1) in d[4 j …]. */
static void each_sum(const Product &product, Room *room, bool load)
{
    const Wgmma &first = product.wgmma[0];
    for (unsigned i = 0; i < kGroupThreads; i++)
        for (unsigned j = 0; j < first.n / 2; j++) {
            uint32_t *mine = static_cast<uint32_t *>(product.wgmma[i].d) + j;
            uint32_t *at =
                &room->d[i / 32 * 16 + i % 32 / 4 + j / 2 % 2 * 8][j / 4 * 8 + i % 4 * 2 + j % 2];
            *(load ? at : mine) = load ? (first.more ? *mine : 0) : *at;
        }
}

static void multiply(Run *run, const Product &product)
{
    /* on the heap: a module that is loaded later has little room for what is a thread's own */
    static thread_local std::unique_ptr<Room> room(new Room);
    const Wgmma &first = product.wgmma[0];
    unsigned k_count = first.element == Element::bf16 ? 16 : 32;
    load_operands(run, product, k_count, room.get());
    each_sum(product, room.get(), true);
    Rounding how = rounding();
    bool is_integer = first.element == Element::s8;
    unsigned step = is_integer ? k_count : step_of(how, k_count);
    for (unsigned row = 0; row < 64; row++)
        for (unsigned from = 0; from < k_count; from += step) {
            double sum[1][kMaxN] = {};
            float values[kMaxN];
            add_products_n(sum, room->a[row] + from, room->b + from * kMaxN, first.n, step);
            for (unsigned n = 0; n < first.n && is_integer; n++) /* wraps around */
                room->d[row][n] += static_cast<uint32_t>(static_cast<int32_t>(sum[0][n]));
            if (is_integer)
                continue;
            memcpy(values, room->d[row], first.n * sizeof(float));
            round_sums(values, sum[0], first.n, how);
            memcpy(room->d[row], values, first.n * sizeof(float));
        }
    each_sum(product, room.get(), false);
}

void wgmma_wait(unsigned left, Place place)
{
    Run *run = current;
    run->now->fenced_wgmma = false;
    meet_group(run, "bt_wgmma_wait", nullptr, place, [=](Meeting &) {
        unsigned number = run->now->number / kGroupThreads;
        Group *group = &run->group[number];
        uint32_t *clock = &run->agent_clock[number];
        if (*clock < kClockMask)
            ++*clock;
        run->newest = *clock > run->newest ? *clock : run->newest;
        size_t kept = 0;
        for (size_t i = 0; i < group->products.size(); i++) {
            Product &product = group->products[i];
            if (product.group + left >= group->next_group) {
                if (kept != i)
                    group->products[kept] = product;
                kept++;
                continue;
            }
            multiply(run, product);
            each_piece_of(run, product, [&](uint32_t offset) {
                shared_read_end(run, offset, stamp_of_agent(run, number));
            });
            run->wgmma_under_way--;
        }
        group->products.resize(kept);
        for (unsigned i = 0; i < kGroupThreads; i++)
            clocks_set(run, &run->thread[number * kGroupThreads + i].known, kThreads + number,
                       *clock);
    });
}

} // namespace emulation
