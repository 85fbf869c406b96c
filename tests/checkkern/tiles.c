/* Packing, by an image of every byte made from the text of common/kernels/tiles.h; expansion of
 * stored tiles; conversions of element types. */
#include "common/kernels/tiles.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/bench/limits.h"
#include "tests/checkkern/check.h"
#ifdef BT_HAVE_X86_KERNELS
#include "common/kernels/x86/x86.h"
#endif

/* ---- packing ---- */

static uint16_t bf16_bits(double value)
{
    float nearest = (float)check_nearest_bf16((float)value);
    uint32_t bits;
    memcpy(&bits, &nearest, sizeof(bits));
    return (uint16_t)(bits >> 16);
}

/* Bytes from the start of a tile to input k of output n. */
static size_t in_bf16_tile(size_t n, size_t k)
{
    return k / 2 * 64 + n * 4 + k % 2 * 2;
}

static size_t in_int8_tile(size_t n, size_t k)
{
    return k / 4 * 64 + n * 4 + k % 4;
}

static size_t ceiling(size_t count, size_t each)
{
    return count / each + (count % each != 0);
}

static uint8_t raw_byte(const struct bt_matrix *m, size_t n, size_t k)
{
    return ((const uint8_t *)m->data)[n * m->cols + k];
}

static uint8_t raw_nibble(const struct bt_matrix *m, size_t n, size_t k)
{
    uint8_t pair = ((const uint8_t *)m->data)[(n * m->cols + k) / 2];
    return k % 2 ? pair >> 4 : pair & 15;
}

/* Element (n, k) into an image that is all zeros before. */
static void put(const struct bt_matrix *m, size_t n, size_t k, uint8_t *image)
{
    bool is_int8 = m->dtype == BT_I8 || m->dtype == BT_I4;
    size_t inputs = is_int8 ? 64 : 32,
           bytes = m->dtype == BT_F8_E4M3 || m->dtype == BT_I4 ? 512 : 1024;
    uint8_t *tile = image + (n / 16 * ceiling(m->cols, inputs) + k / inputs) * bytes;
    size_t at = is_int8 ? in_int8_tile(n % 16, k % 64) : in_bf16_tile(n % 16, k % 32);
    if (m->dtype == BT_F8_E4M3) {
        tile[at / 2] = raw_byte(m, n, k);
    } else if (m->dtype == BT_I8) {
        tile[at] = raw_byte(m, n, k);
    } else if (m->dtype == BT_I4) {
        tile[at % 512] |= (uint8_t)(raw_nibble(m, n, k) << (at < 512 ? 0 : 4));
    } else {
        uint16_t bits = bf16_bits(check_matrix_at(m, n, k));
        memcpy(tile + at, &bits, 2);
    }
}

static size_t round_line(size_t bytes)
{
    return ceiling(bytes, 64) * 64;
}

/* Returns the bytes of the whole image, out NULL: only that. */
static size_t image_of(const struct bt_matrix *m, uint8_t *out)
{
    bool is_int8 = m->dtype == BT_I8 || m->dtype == BT_I4;
    size_t panels = ceiling(m->rows, 16), groups = ceiling(m->cols, 128);
    size_t tiles = panels * ceiling(m->cols, is_int8 ? 64 : 32) *
                   (m->dtype == BT_F8_E4M3 || m->dtype == BT_I4 ? 512 : 1024);
    size_t scales = m->dtype == BT_F8_E4M3 ? ceiling(m->rows, 128) * groups
                    : is_int8              ? panels * 16
                                           : 0;
    size_t group_scales = m->dtype == BT_I4 ? panels * groups * 16 : 0;
    size_t bytes = tiles + round_line(scales * 4) + round_line(group_scales);
    if (!out)
        return bytes;
    memset(out, 0, bytes);
    for (size_t n = 0; n < m->rows; n++) {
        for (size_t k = 0; k < m->cols; k++)
            put(m, n, k, out);
        if (is_int8)
            memcpy(out + tiles + n * 4, &m->scales[n], 4);
        for (size_t g = 0; g < groups && m->dtype == BT_I4; g++)
            out[tiles + round_line(scales * 4) + (n / 16 * groups + g) * 16 + n % 16] =
                m->group_scales[n * groups + g];
    }
    if (m->dtype == BT_F8_E4M3)
        memcpy(out + tiles, m->scales, scales * 4);
    return bytes;
}

static void check_read(struct check *check, const struct bt_matrix *rows,
                       const struct bt_matrix *packed)
{
    bool is_int8 = rows->dtype == BT_I8 || rows->dtype == BT_I4;
    for (size_t n = 0; n < rows->rows; n++) {
        for (size_t k = 0; k < rows->cols; k++) {
            double want = check_tile_at(rows, n, k);
            double got = bt_tiles_at(packed, n, k);
            if (is_int8)
                got *= packed->scales[n];
            if (got == want)
                continue;
            check_fail(check, "element %zu, %zu reads %g, expected %g", n, k, got, want);
            return;
        }
    }
}

static void check_pack_shape(struct check *check, uint32_t outs, uint32_t cols, enum bt_dtype dtype)
{
    struct bt_stream_limits limits = {.max_rows = 1};
    check_begin(check, "linear outs %u cols %u dtype %s", outs, cols, bt_dtype_name(dtype));
    struct bt_matrix rows = check_matrix(check, outs, cols, dtype, 1);
    struct bt_matrix packed = check_packed(check, &rows, BT_USE_LINEAR, NULL), shared;
    size_t bytes = image_of(&rows, NULL);
    uint8_t *image = check_buffer(check, bytes), *other = check_buffer_aligned(check, bytes);
    struct bt_stream *stream = check_stream_team(check, &limits);
    image_of(&rows, image);
    if (check->kernels->packed_bytes(&rows, BT_USE_LINEAR, NULL) != bytes)
        check_fail(check, "packed_bytes is not %zu", bytes);
    else
        check_bits(check, "packed", packed.data, image, bytes, 1);
    if (packed.rows != outs || packed.cols != rows.cols || packed.layout != BT_LAYOUT_TILES ||
        packed.dtype != (dtype == BT_F32 || dtype == BT_F16 ? BT_BF16 : dtype))
        check_fail(check, "the matrix packed is described wrongly");
    check_read(check, &rows, &packed);
    check->kernels->pack(stream, &rows, BT_USE_LINEAR, NULL, other, &shared);
    check_bits(check, "by two threads", other, image, bytes, 1);
    bt_stream_destroy(stream);
    check_end(check);
}

/* The three operands of each head, all from the definition of the weight. */
static void kv_b_image(const struct bt_matrix *m, const struct bt_mla_shape *s, uint8_t *out)
{
    size_t nope = s->qk_nope_head_dim, v = s->v_head_dim, lora = s->kv_lora_rank;
    size_t nope_tiles = ceiling(nope, 32), lora_tiles = ceiling(lora, 32);
    for (size_t h = 0; h < s->heads; h++) {
        uint8_t *keys = out + ceiling(lora, 16) * nope_tiles * 1024;
        uint8_t *values = keys + ceiling(nope, 16) * lora_tiles * 1024;
        for (size_t i = 0; i < nope + v; i++) {
            for (size_t l = 0; l < lora; l++) {
                uint16_t bits = bf16_bits(check_matrix_at(m, h * (nope + v) + i, l));
                size_t n = i - nope;
                if (i < nope) {
                    memcpy(out + (l / 16 * nope_tiles + i / 32) * 1024 +
                               in_bf16_tile(l % 16, i % 32),
                           &bits, 2);
                    memcpy(keys + (i / 16 * lora_tiles + l / 32) * 1024 + i % 16 * 64 + l % 32 * 2,
                           &bits, 2);
                } else {
                    memcpy(values + (n / 16 * lora_tiles + l / 32) * 1024 +
                               in_bf16_tile(n % 16, l % 32),
                           &bits, 2);
                }
            }
        }
        out = values + ceiling(v, 16) * lora_tiles * 1024;
    }
}

static void check_kv_b(struct check *check, struct bt_mla_shape shape, enum bt_dtype dtype)
{
    struct bt_stream_limits limits = {.max_rows = 1};
    size_t nope = shape.qk_nope_head_dim, v = shape.v_head_dim, lora = shape.kv_lora_rank;
    check_begin(check, "kv_b heads %u nope %zu v %zu lora %zu dtype %s", shape.heads, nope, v, lora,
                bt_dtype_name(dtype));
    struct bt_matrix rows =
        check_matrix(check, shape.heads * (uint32_t)(nope + v), (uint32_t)lora, dtype, 1);
    struct bt_matrix packed = check_packed(check, &rows, BT_USE_KV_B, &shape);
    size_t bytes = check->kernels->packed_bytes(&rows, BT_USE_KV_B, &shape);
    size_t want = shape.heads * 1024 *
                  (ceiling(lora, 16) * ceiling(nope, 32) + ceiling(nope, 16) * ceiling(lora, 32) +
                   ceiling(v, 16) * ceiling(lora, 32));
    float *read = check_floats(check, lora);
    struct bt_stream *stream = check_stream_team(check, &limits);
    if (bytes != want) {
        check_fail(check, "packed_bytes is %zu, expected %zu", bytes, want);
    } else {
        uint8_t *image = memset(check_buffer(check, bytes), 0, bytes);
        void *other = check_buffer_aligned(check, bytes);
        kv_b_image(&rows, &shape, image);
        check_bits(check, "packed", packed.data, image, bytes, 1);
        check->kernels->pack(stream, &rows, BT_USE_KV_B, &shape, other, &packed);
        check_bits(check, "by two threads", other, image, bytes, 1);
    }
    for (size_t i = 0; i < 2 * (nope + v); i++) {
        size_t row = i % (nope + v), head = shape.heads - 1;
        bt_tiles_read_kv_b(&packed, &shape, head, row, i >= nope + v, read);
        for (size_t l = 0; l < lora; l++) {
            uint32_t bits;
            memcpy(&bits, &read[l], sizeof(bits));
            if (bits >> 16 != bf16_bits(check_matrix_at(&rows, head * (nope + v) + row, l)))
                check_fail(check, "row %zu, %zu reads %g", row, l, (double)read[l]);
        }
    }
    bt_stream_destroy(stream);
    check_end(check);
}

void check_pack(struct check *check)
{
    static const uint32_t sizes[][2] = {{1, 1},   {16, 32},   {16, 64},   {15, 31}, {17, 65},
                                        {48, 96}, {129, 257}, {130, 128}, {33, 300}};
    static const struct bt_mla_shape shapes[] = {{2, 32, 16, 32, 64, 1}, {3, 19, 6, 17, 33, 1}};
    for (unsigned dtype = BT_F32; dtype <= BT_I4; dtype++) {
        for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
            check_pack_shape(check, sizes[i][0], sizes[i][1], (enum bt_dtype)dtype);
        for (unsigned i = 0; i < 10; i++)
            check_pack_shape(check, 1 + (uint32_t)((check->seed * 7 + i * 37) % 150),
                             1 + (uint32_t)((check->seed * 13 + i * 101) % 400),
                             (enum bt_dtype)dtype);
        if (dtype != BT_I4) {
            check_kv_b(check, shapes[0], (enum bt_dtype)dtype);
            check_kv_b(check, shapes[1], (enum bt_dtype)dtype);
        }
    }
    check_kv_b(check, (struct bt_mla_shape){2, 19, 6, 17, 128, 1}, BT_I4);
}

/* ---- expansion ---- */

typedef void (*expand_tiles)(const struct bt_matrix *matrix, size_t panel, size_t first,
                             size_t count, void *out);

#ifdef BT_HAVE_X86_KERNELS
void bt_avx2_expand_tiles(const struct bt_matrix *, size_t, size_t, size_t, void *);
void bt_avx512_expand_tiles(const struct bt_matrix *, size_t, size_t, size_t, void *);
void bt_avx512_bf16_expand_tiles(const struct bt_matrix *, size_t, size_t, size_t, void *);
void bt_amx_expand_tiles(const struct bt_matrix *, size_t, size_t, size_t, void *);

static expand_tiles expand_of(const struct bt_kernels *kernels)
{
    if (kernels == &bt_kernels_avx2)
        return bt_avx2_expand_tiles;
    if (kernels == &bt_kernels_avx512)
        return bt_avx512_expand_tiles;
    if (kernels == &bt_kernels_avx512_bf16)
        return bt_avx512_bf16_expand_tiles;
    return kernels == &bt_kernels_amx ? bt_amx_expand_tiles : NULL;
}
#else
static expand_tiles expand_of(const struct bt_kernels *kernels)
{
    (void)kernels;
    return NULL;
}
#endif

/* One expanded tile: what each element must be. */
static void check_tile(struct check *check, const struct bt_matrix *rows, size_t panel, size_t t,
                       const uint8_t *tile)
{
    bool f8 = rows->dtype == BT_F8_E4M3;
    for (size_t n = 0; n < 16; n++) {
        for (size_t k = 0; k < (f8 ? 32 : 64); k++) {
            size_t row = panel * 16 + n, col = t * (f8 ? 32 : 64) + k;
            bool there = row < rows->rows && col < rows->cols;
            double want = there ? check_tile_at(rows, row, col) : 0, got;
            if (f8) {
                uint16_t bits;
                memcpy(&bits, tile + in_bf16_tile(n, k), 2);
                got = bt_bf16_to_f32(bits);
            } else {
                got = (int8_t)tile[in_int8_tile(n, k)];
                want = there ? rint(want / rows->scales[row]) : 0;
            }
            if (got == want ? signbit(got) == signbit(want) || got != 0 || !there
                            : isnan(got) && isnan(want))
                continue;
            check_fail(check, "panel %zu tile %zu output %zu input %zu is %g, expected %g", panel,
                       t, n, k, got, want);
            return;
        }
    }
}

static void check_expand_shape(struct check *check, expand_tiles expand, uint32_t outs,
                               uint32_t cols, enum bt_dtype dtype, float scale)
{
    check_begin(check, "outs %u cols %u dtype %s scale %g", outs, cols, bt_dtype_name(dtype),
                (double)scale);
    struct bt_matrix rows = check_matrix(check, outs, cols, dtype, scale);
    for (size_t i = 0; i < 256 && dtype == BT_F8_E4M3 && i < (size_t)outs * cols; i++)
        ((uint8_t *)(uintptr_t)rows.data)[i] = (uint8_t)i; /* each value, NaN too */
    struct bt_matrix packed = check_packed(check, &rows, BT_USE_LINEAR, NULL);
    size_t tiles = bt_panel_tiles(&packed);
    uint8_t *out = check_buffer_aligned(check, tiles * 1024);
    for (size_t panel = 0; panel * 16 < outs; panel++) {
        size_t first = check_below(check, (uint32_t)tiles);
        size_t count = 1 + check_below(check, (uint32_t)(tiles - first));
        expand(&packed, panel, 0, tiles, out);
        for (size_t t = 0; t < tiles; t++)
            check_tile(check, &rows, panel, t, out + t * 1024);
        memset(out, 0xff, tiles * 1024);
        expand(&packed, panel, first, count, out);
        for (size_t t = 0; t < count; t++)
            check_tile(check, &rows, panel, first + t, out + t * 1024);
        for (size_t i = count * 1024; i < tiles * 1024; i++) {
            if (out[i] != 0xff) {
                check_fail(check, "written behind %zu tiles", count);
                break;
            }
        }
    }
    check_end(check);
}

void check_expand(struct check *check)
{
    /* scales that bring values to overflow, to denormals and between them */
    static const float scales[] = {1, 448, 1e-3f, 1e38f, 3e38f, 1e-36f, 1e-40f};
    expand_tiles expand = expand_of(check->kernels);
    if (!expand)
        return;
    for (unsigned i = 0; i < sizeof(scales) / sizeof(scales[0]); i++)
        check_expand_shape(check, expand, 130, 300, BT_F8_E4M3, scales[i]);
    check_expand_shape(check, expand, 16, 32, BT_F8_E4M3, 1);
    check_expand_shape(check, expand, 3, 257, BT_F8_E4M3, 1);
    check_expand_shape(check, expand, 16, 128, BT_I4, 1);
    check_expand_shape(check, expand, 37, 384, BT_I4, 1);
}

/* ---- conversions ---- */

/* Of 1 + 4 + 3 bits by the definition. */
static double e4m3(unsigned code)
{
    double sign = code & 0x80 ? -1 : 1, fraction = (code & 7) / 8.0;
    int exponent = code >> 3 & 15;
    if ((code & 0x7f) == 0x7f)
        return NAN;
    return sign * (exponent == 0 ? ldexp(fraction, -6) : ldexp(1 + fraction, exponent - 7));
}

static double f16(unsigned code)
{
    double sign = code & 0x8000 ? -1 : 1, fraction = (code & 1023) / 1024.0;
    int exponent = code >> 10 & 31;
    if (exponent == 31)
        return fraction != 0 ? NAN : sign * INFINITY;
    return sign * (exponent == 0 ? ldexp(fraction, -14) : ldexp(1 + fraction, exponent - 15));
}

static bool same(double a, double b)
{
    return isnan(a) ? isnan(b) : a == b && signbit(a) == signbit(b);
}

/* The code whose value is nearest; of two as near, the even one. */
static unsigned nearest_e4m3(double x)
{
    unsigned best = 0;
    for (unsigned code = 1; code < 0x7f; code++) {
        double now = fabs(fabs(x) - e4m3(code)), before = fabs(fabs(x) - e4m3(best));
        if (now < before || (now == before && code % 2 == 0))
            best = code;
    }
    return best | (signbit(x) ? 0x80 : 0);
}

static void check_to_e4m3(struct check *check, float x)
{
    unsigned got = bt_f32_to_f8_e4m3(x), want = isnan(x) ? 0x7f : nearest_e4m3(x);
    if (isnan(x) ? (got & 0x7f) != 0x7f : got != want)
        check_fail(check, "%a is e4m3 0x%02x, expected 0x%02x", (double)x, got, want);
}

static void check_to_bf16(struct check *check, float x)
{
    uint16_t bits = bt_f32_to_bf16(x);
    if (!same(bt_bf16_to_f32(bits), check_nearest_bf16(x)))
        check_fail(check, "%a is bf16 0x%04x, expected %a", (double)x, bits, check_nearest_bf16(x));
}

/* x and its two neighbours. */
static void around(struct check *check, void (*to)(struct check *check, float x), float x)
{
    to(check, x);
    to(check, nextafterf(x, INFINITY));
    to(check, nextafterf(x, -INFINITY));
}

void check_dtype(struct check *check)
{
    if (check->oracle)
        return;
    check_begin(check, "all codes");
    for (unsigned code = 0; code < 256; code++) {
        if (!same(bt_f8_e4m3_to_f32((uint8_t)code), e4m3(code)))
            check_fail(check, "e4m3 0x%02x is %g", code, (double)bt_f8_e4m3_to_f32((uint8_t)code));
        if (!isnan(e4m3(code)))
            around(check, check_to_e4m3, (float)e4m3(code));
        if ((code & 0x7f) < 0x7e) /* and half way to the next */
            around(check, check_to_e4m3, (float)((e4m3(code) + e4m3(code + 1)) / 2));
    }
    for (unsigned code = 0; code < 65536; code++) {
        if (!same(bt_f16_to_f32((uint16_t)code), f16(code)))
            check_fail(check, "f16 0x%04x is %g", code, (double)bt_f16_to_f32((uint16_t)code));
        uint32_t half_way = code << 16 | 0x8000;
        float x = bt_bf16_to_f32((uint16_t)code);
        if (!isnan(x)) {
            around(check, check_to_bf16, x);
            memcpy(&x, &half_way, sizeof(x));
            around(check, check_to_bf16, x);
        }
    }
    check_end(check);
    check_begin(check, "random bits");
    for (unsigned i = 0; i < 100000; i++) {
        uint32_t bits = (uint32_t)check_random(check);
        float x;
        memcpy(&x, &bits, sizeof(x));
        check_to_bf16(check, x);
        if (i % 10 == 0) {
            check_to_e4m3(check, x);
            check_to_e4m3(check, check_uniform(check) * (float)ldexp(1, i / 10 % 24 - 12));
        }
    }
    check_end(check);
}

/* ---- timing ---- */

#define BENCH_NS 100000000

static void figure(const struct bt_kernels *kernels, const char *name, double bytes, int64_t ns,
                   double limit)
{
    double value = bytes / (double)ns;
    printf("figure %s/%s %.2f GB/s %.2f %.3f\n", kernels->name, name, value, limit / 1e9,
           value / (limit / 1e9));
}

/* Bytes of expanded tiles from and to caches, against reading memory. */
static void bench_expand(struct check *data, const char *name, enum bt_dtype dtype)
{
    expand_tiles expand = expand_of(data->kernels);
    struct bt_matrix rows = check_matrix(data, 16, 2048, dtype, 1);
    struct bt_matrix packed = check_packed(data, &rows, BT_USE_LINEAR, NULL);
    size_t tiles = bt_panel_tiles(&packed), count = 16;
    void *out = check_buffer_aligned(data, count * 1024);
    int64_t best = INT64_MAX, begin = limit_clock_ns();
    while (expand && limit_clock_ns() - begin < BENCH_NS) {
        int64_t start = limit_clock_ns();
        for (size_t round = 0; round < 64; round++) {
            for (size_t t = 0; t < tiles; t += count)
                expand(&packed, 0, t, count, out);
        }
        int64_t ns = limit_clock_ns() - start;
        best = ns < best ? ns : best;
    }
    if (expand)
        figure(data->kernels, name, 64.0 * (double)tiles * 1024, best, limit_read(NULL));
    check_end(data);
}

/* Bytes of the checkpoint packed, by one thread. */
static void bench_pack(struct check *data, const char *name, enum bt_dtype dtype)
{
    struct bt_matrix rows = check_matrix(data, 2048, 4096, dtype, 1), packed;
    void *out = check_buffer_aligned(data, data->kernels->packed_bytes(&rows, BT_USE_LINEAR, NULL));
    int64_t best = INT64_MAX, begin = limit_clock_ns();
    while (limit_clock_ns() - begin < BENCH_NS) {
        int64_t start = limit_clock_ns();
        data->kernels->pack(NULL, &rows, BT_USE_LINEAR, NULL, out, &packed);
        int64_t ns = limit_clock_ns() - start;
        best = ns < best ? ns : best;
    }
    figure(data->kernels, name, 2048.0 * 4096 * (double)bt_dtype_bits(dtype) / 8, best,
           limit_read(NULL));
    check_end(data);
}

void check_bench_tiles(const struct bt_kernels *kernels)
{
    struct check data = {.kernels = kernels, .op = "bench"};
    bench_expand(&data, "expand/f8", BT_F8_E4M3);
    bench_expand(&data, "expand/i4", BT_I4);
    bench_pack(&data, "pack/bf16", BT_BF16);
    bench_pack(&data, "pack/f32", BT_F32);
    bench_pack(&data, "pack/f8", BT_F8_E4M3);
    bench_pack(&data, "pack/i8", BT_I8);
    bench_pack(&data, "pack/i4", BT_I4);
}
