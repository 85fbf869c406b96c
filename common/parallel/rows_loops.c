/* The loops of rows.h, compiled once for each instruction set: BT_ROWS names the table. */
#include <float.h>
#include <math.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "common/parallel/rows_tables.h"

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline uint32_t choose(uint32_t condition, uint32_t yes, uint32_t no)
{
    return condition ? yes : no;
}

static void to_bf16(const float *restrict x, size_t n, uint16_t *restrict out)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = bits_of(x[i]);
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        uint32_t quiet = bits >> 16 | 0x40; /* NaN stays NaN */
        out[i] = (uint16_t)choose((bits & 0x7fffffffu) > 0x7f800000u, quiet, rounded);
    }
}

static void from_bf16(const uint16_t *restrict x, size_t n, float *restrict out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = float_of((uint32_t)x[i] << 16);
}

static float scale_of(const float *x, size_t n)
{
    uint32_t max = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
        magnitude = choose(magnitude > 0x7f800000u, 0, magnitude);
        max = choose(magnitude > max, magnitude, max);
    }
    return max == 0 ? 1.0f : fmaxf(float_of(max) / 448.0f, FLT_MIN);
}

static inline uint32_t to_e4m3(float value)
{
    uint32_t bits = bits_of(value), sign = bits >> 24 & 0x80;
    bits &= 0x7fffffffu;
    /* below 2^-6 there are steps of 2^-9: the sum rounds to even */
    uint32_t small = bits_of(float_of(bits) + 0x1p14f) & 0x0f;
    uint32_t large = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120u << 3);
    large = choose(large > 0x7e, 0x7e, large);
    uint32_t finite = choose(bits < 0x3c800000u, small, large);
    return sign | choose(bits > 0x7f800000u, 0x7f, finite);
}

static void to_f8(const float *restrict x, size_t n, uint8_t *restrict out,
                  float *restrict ret_scales)
{
    for (size_t first = 0; first < n; first += BT_ROW_SCALED) {
        size_t end = n - first < BT_ROW_SCALED ? n : first + BT_ROW_SCALED;
        float scale = scale_of(x + first, end - first);
        for (size_t i = first; i < end; i++)
            out[i] = (uint8_t)to_e4m3(x[i] / scale);
        ret_scales[first / BT_ROW_SCALED] = scale;
    }
}

static inline float from_e4m3(uint32_t value)
{
    uint32_t sign = (value & 0x80) << 24, magnitude = value & 0x7f;
    uint32_t normal = (magnitude << 20) + (120u << 23);
    uint32_t small = bits_of((float)(int32_t)magnitude * 0x1p-9f);
    uint32_t finite = choose(magnitude < 8, small, normal);
    return float_of(sign | choose(magnitude == 0x7f, 0x7fc00000u, finite));
}

static void from_f8(const uint8_t *restrict x, const float *restrict scales, size_t n,
                    float *restrict out)
{
    for (size_t first = 0; first < n; first += BT_ROW_SCALED) {
        size_t end = n - first < BT_ROW_SCALED ? n : first + BT_ROW_SCALED;
        float scale = scales[first / BT_ROW_SCALED];
        for (size_t i = first; i < end; i++)
            out[i] = from_e4m3(x[i]) * scale;
    }
}

static void add_f32(const float *restrict y, float weight, size_t n, float *restrict out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = fmaf(weight, y[i], out[i]);
}

static void add_bf16(const uint16_t *restrict y, float weight, size_t n, float *restrict out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = fmaf(weight, float_of((uint32_t)y[i] << 16), out[i]);
}

#ifdef __AVX2__
/* Whole lines; the ends that are none are copied. */
static void show(void *to, const void *from, size_t bytes)
{
    char *out = to;
    const char *in = from;
    size_t head = (64 - ((uintptr_t)out & 63)) & 63;
    head = head < bytes ? head : bytes;
    memcpy(out, in, head);
    for (out += head, in += head, bytes -= head; bytes >= 64; out += 64, in += 64, bytes -= 64) {
        __m256i low = _mm256_loadu_si256((const __m256i *)in);
        __m256i high = _mm256_loadu_si256((const __m256i *)(in + 32));
        _mm256_stream_si256((__m256i *)out, low);
        _mm256_stream_si256((__m256i *)(out + 32), high);
    }
    memcpy(out, in, bytes);
    _mm_sfence();
}
#else
static void show(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}
#endif

static void sum_two(const float *a, const float *b, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = a[i] + b[i];
}

static void sum_four(const float *a, const float *b, const float *c, const float *d, size_t n,
                     float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = ((a[i] + b[i]) + c[i]) + d[i];
}

/* In blocks that stay in the first cache, as the result may be read again for every rank. */
static void sum(const float *const *x, uint32_t count, size_t n, float *out)
{
    enum { BLOCK = 1024 };
    float block[BLOCK];
    for (size_t first = 0; first < n; first += BLOCK) {
        size_t width = n - first < BLOCK ? n - first : BLOCK;
        uint32_t r = count >= 4 ? 4 : count >= 2 ? 2 : 1;
        if (r == 4)
            sum_four(x[0] + first, x[1] + first, x[2] + first, x[3] + first, width, block);
        else if (r == 2)
            sum_two(x[0] + first, x[1] + first, width, block);
        else
            memcpy(block, x[0] + first, width * sizeof(*block));
        for (; r < count; r++)
            sum_two(block, x[r] + first, width, block);
        memcpy(out + first, block, width * sizeof(*block));
    }
}

#define NAME_OF(table)  #table
#define NAME_TEXT(name) NAME_OF(name)

const struct bt_row_ops BT_ROWS = {
    .name = NAME_TEXT(BT_ROWS),
    .to_bf16 = to_bf16,
    .from_bf16 = from_bf16,
    .to_f8 = to_f8,
    .from_f8 = from_f8,
    .add_f32 = add_f32,
    .add_bf16 = add_bf16,
    .show = show,
    .sum = sum,
};
