/*
 * Packed weights, quantised rows and grouped products, on the emulated grid, against what their
 * headers say: int8 and int4 exactly; bf16, e4m3 and f32 within the roundings of their sums, each
 * of which is one of at most 2^-23 of a partial sum, no larger than the sum of magnitudes.
 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/status.h"
#include "common/kernels/cuda/grouped_gemm.h"
#include "common/kernels/cuda/table.h"
#include "common/kernels/weight.h"
#include "tests/seed.h"

#define SCRATCH ((size_t)8 << 20)

static uint64_t state;
static struct bt_cuda_device device;
static struct bt_cuda_stream stream;

bool bt_cuda_ok(struct bt_cuda_stream *of, cudaError_t result)
{
    if (of->fault == cudaSuccess)
        of->fault = result;
    return of->fault == cudaSuccess;
}

/* ---- numbers ---- */

static uint32_t draw(uint32_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % below);
}

static float draw_float(void)
{
    return ((float)draw(2001) - 1000) * 0x1p-9f;
}

static void *copied(const void *from, size_t bytes)
{
    void *memory = NULL;
    assert_int_equal(cudaMalloc(&memory, bytes + 16), cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(memory, from, bytes, cudaMemcpyHostToDevice, stream.stream),
                     cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream.stream), cudaSuccess);
    return memory;
}

static void fetch(void *to, const void *from, size_t bytes)
{
    assert_int_equal(cudaStreamSynchronize(stream.stream), cudaSuccess);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(stream.fault, cudaSuccess);
    assert_int_equal(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
}

/* ---- weights ---- */

/* In ROWS, of the host's memory, which is freed by free_weight. */
static struct bt_matrix make_weight(uint32_t rows, uint32_t cols, enum bt_dtype dtype)
{
    size_t count = (size_t)rows * cols, blocks = (cols + 127) / 128;
    size_t bytes = count * bt_dtype_bits(dtype) / 8;
    size_t scale_count = dtype == BT_F8_E4M3 ? (rows + 127) / 128 * blocks : rows;
    unsigned char *data = malloc(bytes);
    float *scales = malloc(scale_count * sizeof(*scales));
    uint8_t *groups = malloc(rows * blocks);
    for (size_t i = 0; i < bytes; i++)
        data[i] = (unsigned char)draw(256);
    for (size_t i = 0; i < count && dtype == BT_F8_E4M3; i++)
        data[i] = bt_f32_to_f8_e4m3(draw_float() * 100);
    for (size_t i = 0; i < count && dtype <= BT_F16; i++) {
        float value = draw_float();
        if (dtype == BT_F32)
            ((float *)(void *)data)[i] = value;
        else if (dtype == BT_BF16)
            ((uint16_t *)(void *)data)[i] = bt_f32_to_bf16(value);
        else
            ((uint16_t *)(void *)data)[i] = (uint16_t)(draw(2) << 15 | draw(24) << 10 | draw(1024));
    }
    for (size_t i = 0; i < bytes && dtype == BT_I4; i++)
        data[i] =
            (unsigned char)((draw(15) - 7) & 15) | (unsigned char)(((draw(15) - 7) & 15) << 4);
    for (size_t i = 0; i < scale_count; i++)
        scales[i] = (float)(1 + draw(1000)) * 0x1p-12f;
    for (size_t i = 0; i < rows * blocks; i++)
        groups[i] = (uint8_t)(1 + draw(18));
    return (struct bt_matrix){data, rows, cols, dtype, BT_LAYOUT_ROWS, scales, groups};
}

static void free_weight(struct bt_matrix *weight)
{
    free((void *)(uintptr_t)weight->data);
    free((void *)(uintptr_t)weight->scales);
    free((void *)(uintptr_t)weight->group_scales);
}

/* An integer of I8, of I4 times its group scale; else what is multiplied, without scales. */
static double value_of(const struct bt_matrix *w, size_t row, size_t col)
{
    size_t index = row * w->cols + col;
    if (w->dtype == BT_F8_E4M3)
        return bt_f8_e4m3_to_f32(((const uint8_t *)w->data)[index]);
    if (w->dtype == BT_I8)
        return ((const int8_t *)w->data)[index];
    if (w->dtype == BT_I4) {
        int byte = ((const uint8_t *)w->data)[index / 2], v = index % 2 ? byte >> 4 : byte & 15;
        return (v >= 8 ? v - 16 : v) * w->group_scales[row * ((w->cols + 127) / 128) + col / 128];
    }
    return bt_weight_at(w, index);
}

/* Packed, in chunks of uneven numbers, on the device. */
static struct bt_matrix packed(const struct bt_matrix *weight)
{
    struct bt_cuda_layout layout = bt_cuda_layout_of(weight, BT_USE_LINEAR, NULL);
    unsigned char *bytes = malloc(layout.bytes);
    memset(bytes, 0xee, layout.bytes);
    for (uint32_t i = 0, count; i < layout.chunks; i += count) {
        count = 1 + draw(layout.chunks - i);
        bt_cuda_pack_chunks(weight, BT_USE_LINEAR, NULL, i, count, bytes + i * layout.chunk_bytes);
    }
    if (layout.scales_offset < layout.bytes)
        bt_cuda_pack_scales(weight, BT_USE_LINEAR, NULL, bytes + layout.scales_offset);
    struct bt_matrix result =
        bt_cuda_packed_at(weight, BT_USE_LINEAR, NULL, copied(bytes, layout.bytes));
    free(bytes);
    return result;
}

/* In ROWS of the device. */
static struct bt_matrix uploaded(const struct bt_matrix *weight)
{
    struct bt_matrix result = *weight;
    size_t bytes = (size_t)weight->rows * weight->cols * bt_dtype_bytes(weight->dtype);
    result.data = copied(weight->data, bytes);
    return result;
}

static void test_kv_b(void **unused)
{
    struct bt_mla_shape shape = {3, 5, 4, 9, 70, 1};
    struct bt_matrix w = make_weight(3 * 14, 70, BT_F32);
    struct bt_cuda_layout layout = bt_cuda_layout_of(&w, BT_USE_KV_B, &shape);
    uint16_t *bytes = malloc(layout.bytes);
    (void)unused;
    bt_cuda_pack_chunks(&w, BT_USE_KV_B, &shape, 1, 2, (unsigned char *)bytes + layout.chunk_bytes);
    bt_cuda_pack_chunks(&w, BT_USE_KV_B, &shape, 0, 1, bytes);
    struct bt_matrix at = bt_cuda_packed_at(&w, BT_USE_KV_B, &shape, bytes);
    struct bt_cuda_kv_b parts = bt_cuda_kv_b_of(&at, &shape);
    assert_int_equal(parts.pitch, 128);
    assert_int_equal(parts.nope_rows, 8);
    assert_int_equal(parts.v_rows, 16);
    for (size_t h = 0; h < 3; h++) {
        for (size_t r = 0; r < 8 + 16; r++) {
            const uint16_t *row =
                (r < 8 ? parts.keys + r * 128 : parts.values + (r - 8) * 128) + h * parts.distance;
            bool is_there = r < 8 ? r < 5 : r - 8 < 9;
            for (size_t l = 0; l < 128; l++) {
                size_t from = h * 14 + (r < 8 ? r : 5 + r - 8);
                float want = is_there && l < 70 ? bt_weight_at(&w, from * 70 + l) : 0;
                assert_int_equal(row[l], bt_f32_to_bf16(want));
            }
        }
    }
    free(bytes);
    free_weight(&w);
}

/* ---- rows ---- */

static float scale_for(const float *x, size_t count, float most)
{
    float max = 0;
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(x[i]))
            return NAN;
        max = fmaxf(max, fabsf(x[i]));
    }
    return max > 0 ? fmaxf(max / most, FLT_MIN) : 1;
}

/* What row `row` of inputs is, as numbers: without scales. */
static void check_row(const struct bt_cuda_inputs *inputs, const unsigned char *data,
                      const float *scales, const float *x, uint32_t row)
{
    uint32_t cols = inputs->cols, blocks = inputs->pitch / 128;
    for (uint32_t k = 0; k < inputs->pitch; k++) {
        uint32_t first = k / 128 * 128, count = cols - first < 128 ? cols - first : 128;
        float value = k < cols ? x[k] : 0;
        size_t at = (size_t)row * inputs->pitch + k;
        if (inputs->dtype == BT_BF16) {
            uint16_t got = ((const uint16_t *)(const void *)data)[at];
            assert_int_equal(isnan(value) ? 0 : got, isnan(value) ? 0 : bt_f32_to_bf16(value));
            assert_int_equal(isnan(bt_bf16_to_f32(got)) != 0, isnan(value) != 0);
            continue;
        }
        bool f8 = inputs->dtype == BT_F8_E4M3;
        float scale =
            f8 ? scale_for(x + first, first < cols ? count : 0, 448) : scale_for(x, cols, 127);
        float got = scales[f8 ? bt_cuda_scale_at(inputs->head, blocks, row, k / 128) : row];
        if (isnan(scale)) {
            assert_true(isnan(got));
            continue;
        }
        assert_true(got == scale);
        if (f8)
            assert_int_equal(data[at], bt_f32_to_f8_e4m3(value / scale));
        else
            assert_int_equal((int8_t)data[at], (int)rintf(value / scale));
    }
}

static void check_quantised(enum bt_dtype dtype, uint32_t cols)
{
    enum { SOURCES = 5, ROWS = 11, LIVE = 9 };
    uint32_t picks[ROWS], live = LIVE;
    float *x = malloc((size_t)(SOURCES * cols + 1) * sizeof(*x)), *zeros = calloc(cols, sizeof(*x));
    for (size_t i = 0; i < SOURCES * cols; i++)
        x[i] = draw(40) ? draw_float() * 100 : 0;
    memset(x, 0, (cols < 128 ? cols : 128) * sizeof(*x));
    x[2 * cols + cols / 2] = NAN;
    x[3 * cols + cols - 1] = INFINITY;
    for (uint32_t i = 0; i < ROWS; i++)
        picks[i] = draw(SOURCES * 3);
    memset(picks + LIVE, 0xff, (ROWS - LIVE) * sizeof(*picks)); /* are not read */
    float *device_x = copied(x, SOURCES * cols * sizeof(*x));
    uint32_t *device_picks = copied(picks, sizeof(picks)), *device_live = copied(&live, 4);
    stream.used_bytes = 0;
    struct bt_cuda_inputs inputs = bt_cuda_inputs_take(&stream, dtype, ROWS, cols);
    bt_cuda_launch_quantise_rows(device_x, device_picks, 3, ROWS, device_live, &inputs,
                                 stream.stream);
    size_t bytes = (size_t)ROWS * inputs.pitch * bt_dtype_bytes(dtype);
    size_t scale_count = dtype == BT_F8_E4M3 ? 12 * (size_t)(inputs.pitch / 128) : ROWS;
    unsigned char *data = malloc(bytes);
    float *scales = malloc(scale_count * sizeof(*scales));
    fetch(data, inputs.data, bytes);
    if (dtype != BT_BF16)
        fetch(scales, inputs.scales, scale_count * sizeof(*scales));
    for (uint32_t i = 0; i < ROWS; i++)
        check_row(&inputs, data, scales, i < LIVE ? x + (size_t)(picks[i] / 3) * cols : zeros, i);
    cudaFree(device_x);
    cudaFree(device_picks);
    cudaFree(device_live);
    free(data);
    free(scales);
    free(zeros);
    free(x);
}

static void test_quantised_rows(void **unused)
{
    static const uint32_t cols[] = {1, 70, 128, 516, 1300};
    (void)unused;
    for (unsigned i = 0; i < 5; i++) {
        check_quantised(BT_BF16, cols[i]);
        check_quantised(BT_F8_E4M3, cols[i]);
        check_quantised(BT_I8, cols[i]);
    }
}

/* ---- products ---- */

/* What x is multiplied as: the scales of a row for F8 by block, for I8 one. */
struct row {
    double *values;
    float *scales;
};

static struct row row_of(const struct bt_matrix *w, const float *x)
{
    size_t cols = w->cols, blocks = (cols + 127) / 128;
    struct row row = {malloc(cols * sizeof(double)), malloc(blocks * sizeof(float))};
    bool int8 = w->dtype == BT_I8 || w->dtype == BT_I4, f8 = w->dtype == BT_F8_E4M3;
    for (size_t b = 0; b < blocks; b++)
        row.scales[b] =
            int8 ? scale_for(x, cols, 127)
                 : scale_for(x + b * 128, cols - b * 128 < 128 ? cols - b * 128 : 128, 448);
    for (size_t k = 0; k < cols; k++) {
        float scaled = x[k] / row.scales[k / 128];
        row.values[k] = int8 ? rintf(scaled)
                        : f8 ? bt_f8_e4m3_to_f32(bt_f32_to_f8_e4m3(scaled))
                             : x[k];
        if (w->dtype == BT_BF16)
            row.values[k] = bt_bf16_to_f32(bt_f32_to_bf16(x[k]));
    }
    return row;
}

static void check_output(const struct bt_matrix *w, bool tiles, const float *x, const float *out,
                         size_t step, bool rounded)
{
    struct bt_matrix as = *w;
    as.dtype = tiles ? w->dtype : BT_F32;
    struct row row = row_of(&as, x);
    size_t blocks = (w->cols + 127) / 128;
    for (size_t n = 0; n < w->rows; n += step) {
        double sum = 0, size = 0;
        for (size_t k = 0; k < w->cols; k++) {
            double term = row.values[k] * value_of(w, n, k);
            if (tiles && w->dtype == BT_F8_E4M3)
                term *= (double)row.scales[k / 128] * w->scales[n / 128 * blocks + k / 128];
            sum += term;
            size += fabs(term);
        }
        if (w->dtype == BT_I8 || w->dtype == BT_I4) {
            float want = (float)sum * row.scales[0] * w->scales[n];
            assert_true(out[n] == (rounded ? bt_bf16_to_f32(bt_f32_to_bf16(want)) : want));
            continue;
        }
        double bound = size * (double)(w->cols + 8) * 0x1p-23 + 0x1p-120;
        bound += rounded ? fabs(sum) * 0x1p-8 : 0;
        if (!(fabs(out[n] - sum) <= bound))
            fail_msg("output %zu: %.9g, not %.9g +- %.3g", n, out[n], sum, bound);
    }
    free(row.values);
    free(row.scales);
}

struct products_case {
    enum bt_dtype dtype;
    bool tiles;
    uint32_t cols, outs, weights, groups;
    uint32_t most; /* rows of a group */
    bool picks, rounds;
};

#define MAX_GROUPS 9

/* The same products, of other tiles: group by group, with a launch each. */
static void check_apart(const struct products_case *c, const struct bt_cuda_grouped *gemm,
                        const uint32_t *begin, const void *all)
{
    size_t element = bt_dtype_bytes(gemm->out_dtype), row_bytes = c->outs * element;
    for (uint32_t e = 0; e < c->groups; e++) {
        uint32_t rows = begin[e + 1] - begin[e], both[2] = {begin[e], begin[e + 1]};
        if (!gemm->weights[0][e].data || rows == 0)
            continue;
        struct bt_cuda_grouped one = *gemm;
        one.weights[0] += e;
        one.weights[1] = NULL;
        one.groups = 1;
        one.begin = copied(both, sizeof(both));
        one.rows = draw(2) ? 500 : rows; /* the tiles of many rows, or what fits */
        assert_int_equal(cudaMemsetAsync(gemm->out[0], 0xff, gemm->rows * row_bytes, stream.stream),
                         cudaSuccess);
        bt_cuda_grouped_gemm(&stream, &one);
        unsigned char *got = malloc(gemm->rows * row_bytes);
        fetch(got, gemm->out[0], gemm->rows * row_bytes);
        assert_memory_equal(got + begin[e] * row_bytes,
                            (const unsigned char *)all + begin[e] * row_bytes, rows * row_bytes);
        free(got);
        cudaFree((void *)(uintptr_t)one.begin);
    }
}

static void check_products(struct products_case c)
{
    struct bt_matrix host[2][MAX_GROUPS] = {0}, there[2][MAX_GROUPS] = {0};
    uint32_t begin[MAX_GROUPS + 1] = {0}, *picks;
    print_message("%s%s cols %u outs %u x %u, %u groups of up to %u\n", bt_dtype_name(c.dtype),
                  c.tiles ? "" : " in rows", c.cols, c.outs, c.weights, c.groups, c.most);
    for (uint32_t e = 0; e < c.groups; e++) {
        begin[e + 1] = begin[e] + (e == 1 && c.groups > 2 ? 0 : 1 + draw(c.most));
        for (uint32_t w = 0; w < c.weights && !(e == 2 && c.groups > 3); w++) {
            host[w][e] = make_weight(c.outs, c.cols, c.dtype);
            there[w][e] = c.tiles ? packed(&host[w][e]) : uploaded(&host[w][e]);
        }
    }
    uint32_t rows = begin[c.groups], sources = c.picks ? rows / 2 + 1 : rows;
    float *x = malloc((size_t)sources * c.cols * sizeof(*x));
    picks = malloc(rows * sizeof(*picks));
    for (size_t i = 0; i < (size_t)sources * c.cols; i++)
        x[i] = draw_float();
    for (uint32_t i = 0; i < rows; i++)
        picks[i] = c.picks ? draw(sources * 3) : i * 3;
    float *device_x = copied(x, (size_t)sources * c.cols * sizeof(*x));
    size_t element = c.rounds ? 2 : 4, bytes = (size_t)rows * c.outs * element;
    struct bt_cuda_grouped gemm = {.picks = c.picks ? copied(picks, rows * 4) : NULL,
                                   .per_row = 3,
                                   .out_dtype = c.rounds ? BT_BF16 : BT_F32,
                                   .groups = c.groups,
                                   .begin = copied(begin, sizeof(begin)),
                                   .rows = rows};
    unsigned char *got = malloc(bytes);
    memset(got, 0x55, bytes);
    for (uint32_t w = 0; w < c.weights; w++) {
        gemm.weights[w] = there[w];
        gemm.out[w] = copied(got, bytes);
    }
    stream.used_bytes = 0;
    gemm.x = bt_cuda_inputs_of(&stream, &there[0][0], device_x, sources);
    bt_cuda_grouped_gemm(&stream, &gemm);
    for (uint32_t w = c.weights; w-- > 0;) {
        fetch(got, gemm.out[w], bytes);
        float *row = malloc(c.outs * sizeof(*row));
        for (uint32_t e = 0, i = 0; i < rows; i++) {
            while (i >= begin[e + 1])
                e++;
            const unsigned char *at = got + (size_t)i * c.outs * element;
            for (size_t n = 0; n < c.outs; n++) {
                uint16_t half;
                memcpy(&half, at + n * element, 2);
                memcpy(&row[n], at + n * element, element);
                row[n] = c.rounds ? bt_bf16_to_f32(half) : row[n];
            }
            if (host[w][e].data)
                check_output(&host[w][e], c.tiles, x + (size_t)(picks[i] / 3) * c.cols, row,
                             rows > 64 && i % 16 ? 7 : 1, c.rounds);
            for (size_t b = 0; b < c.outs * element && !host[w][e].data; b++)
                assert_int_equal(at[b], 0x55);
        }
        free(row);
    }
    check_apart(&c, &gemm, begin, got);
    for (uint32_t w = 0; w < c.weights; w++) {
        for (uint32_t e = 0; e < c.groups; e++) {
            free_weight(&host[w][e]);
            cudaFree((void *)(uintptr_t)there[w][e].data);
        }
        cudaFree(gemm.out[w]);
    }
    cudaFree((void *)(uintptr_t)gemm.picks);
    cudaFree((void *)(uintptr_t)gemm.begin);
    cudaFree(device_x);
    free(got);
    free(picks);
    free(x);
}

static void check_dtype(enum bt_dtype dtype, bool tiles)
{
    bool groups = dtype == BT_I4; /* whole ones */
    /* few rows an expert; two weights; unlike widths */
    check_products(
        (struct products_case){dtype, tiles, groups ? 256 : 300, 70, 2, 5, 19, true, true});
    check_products(
        (struct products_case){dtype, tiles, groups ? 128 : 33, 33, 1, 9, 3, false, false});
    /* many rows an expert, more than a strip of outputs */
    check_products(
        (struct products_case){dtype, tiles, groups ? 384 : 385, 150, 2, 2, 140, true, false});
    check_products((struct products_case){dtype, tiles, 1408, 64, 1, 1, 2, false, true});
}

/*
 * Of one weight, rows in one group, and the same in groups of unlike sizes, on few multiprocessors
 * and on many, so that each tile that there is has had them: the same bits. Of outputs there is an
 * odd number of strips, of which clusters make no more rounds on 16, then an even one, of tiles of
 * one step each.
 */
static void check_tiles_of(enum bt_dtype dtype, uint32_t cols, uint32_t outs)
{
    enum { ROWS = 366, GROUPS = 5 };
    static const uint32_t begins[2][GROUPS + 1] = {{0, ROWS}, {0, 260, 261, 280, 346, ROWS}};
    static const int multiprocessors[] = {2, 16, 200};
    struct bt_matrix host = make_weight(outs, cols, dtype), there = packed(&host), all[GROUPS];
    const size_t count = (size_t)ROWS * outs, bytes = count * sizeof(float);
    float *x = malloc((size_t)ROWS * cols * sizeof(*x)), *first = malloc(bytes);
    float *got = malloc(bytes);
    print_message("tiles of %s, cols %u outs %u\n", bt_dtype_name(dtype), cols, outs);
    for (size_t i = 0; i < (size_t)ROWS * cols; i++)
        x[i] = draw_float();
    for (unsigned e = 0; e < GROUPS; e++)
        all[e] = there;
    memset(got, 0xff, bytes);
    float *device_x = copied(x, (size_t)ROWS * cols * sizeof(*x)), *out = copied(got, bytes);
    stream.used_bytes = 0;
    struct bt_cuda_inputs inputs = bt_cuda_inputs_of(&stream, &there, device_x, ROWS);
    for (unsigned run = 0; run < 6; run++) {
        const uint32_t *begin = begins[run % 2];
        struct bt_cuda_grouped gemm = {.x = inputs,
                                       .weights = {all},
                                       .out = {out},
                                       .out_dtype = BT_F32,
                                       .groups = run % 2 ? GROUPS : 1,
                                       .begin = copied(begin, sizeof(begins[0])),
                                       .rows = ROWS};
        device.multiprocessors = multiprocessors[run / 2];
        assert_int_equal(cudaMemsetAsync(out, 0xff, bytes, stream.stream), cudaSuccess);
        bt_cuda_grouped_gemm(&stream, &gemm);
        fetch(run ? got : first, out, bytes);
        if (run)
            assert_memory_equal(got, first, bytes);
        cudaFree((void *)(uintptr_t)gemm.begin);
    }
    device.multiprocessors = 2;
    for (size_t i = 0; i < ROWS; i += 45)
        check_output(&host, true, x + i * cols, first + i * outs, 1, false);
    cudaFree(device_x);
    cudaFree(out);
    cudaFree((void *)(uintptr_t)there.data);
    free_weight(&host);
    free(x);
    free(first);
    free(got);
}

static void check_tiles(enum bt_dtype dtype)
{
    check_tiles_of(dtype, 384, 300);
    check_tiles_of(dtype, dtype == BT_BF16 ? 64 : 128, 200);
}

static void test_tiles(void **unused)
{
    (void)unused;
    check_tiles(BT_BF16);
    check_tiles(BT_F8_E4M3);
    check_tiles(BT_I8);
    check_tiles(BT_I4);
}

/* What sm_100 has: the instructions of sm_90 but wgmma. */
static void test_without_wgmma(void **unused)
{
    static const enum bt_dtype dtypes[] = {BT_BF16, BT_F8_E4M3, BT_I8, BT_I4};
    const int arch = device.arch;
    (void)unused;
    if (arch != 90)
        return; /* all tests have been that */
    device.arch = 100;
    check_dtype(BT_F8_E4M3, true);
    for (unsigned i = 0; i < 4; i++)
        check_tiles(dtypes[i]);
    device.arch = arch;
}

static void test_bf16(void **unused)
{
    (void)unused;
    check_dtype(BT_BF16, true);
}

static void test_f8(void **unused)
{
    (void)unused;
    check_dtype(BT_F8_E4M3, true);
}

static void test_i8(void **unused)
{
    (void)unused;
    check_dtype(BT_I8, true);
}

static void test_i4(void **unused)
{
    (void)unused;
    check_dtype(BT_I4, true);
}

static void test_rows(void **unused)
{
    (void)unused;
    check_dtype(BT_F32, false);
    check_dtype(BT_BF16, false);
    check_dtype(BT_F16, false);
}

/* ---- dense products ---- */

/* All rows at once, and each alone: the same bits. */
static void check_linear(enum bt_dtype dtype, bool tiles, uint32_t rows, uint32_t cols,
                         uint32_t outs)
{
    struct bt_matrix host = make_weight(outs, cols, dtype);
    struct bt_matrix there = tiles ? packed(&host) : uploaded(&host);
    size_t count = (size_t)rows * outs, bytes = count * sizeof(float);
    float *x = malloc((size_t)rows * cols * sizeof(*x)), *out = malloc(bytes), *got = malloc(bytes);
    print_message("linear of %s%s, %u rows, cols %u outs %u\n", bt_dtype_name(dtype),
                  tiles ? "" : " in rows", rows, cols, outs);
    for (size_t i = 0; i < (size_t)rows * cols; i++)
        x[i] = draw_float();
    memset(out, 0xff, bytes);
    float *device_x = copied(x, (size_t)rows * cols * sizeof(*x)), *device_out = copied(out, bytes);
    struct bt_linear linear = {&there, device_out};
    bt_cuda_linear(&stream.base, device_x, rows, &linear, 1);
    fetch(out, device_out, bytes);
    for (size_t i = 0; i < rows; i++)
        check_output(&host, tiles, x + i * cols, out + i * outs, 1, false);
    assert_int_equal(cudaMemsetAsync(device_out, 0xff, bytes, stream.stream), cudaSuccess);
    for (size_t i = 0; i < rows; i++) {
        linear.out = device_out + i * outs;
        bt_cuda_linear(&stream.base, device_x + i * cols, 1, &linear, 1);
    }
    fetch(got, device_out, bytes);
    assert_memory_equal(got, out, bytes);
    cudaFree(device_x);
    cudaFree(device_out);
    cudaFree((void *)(uintptr_t)there.data);
    free_weight(&host);
    free(x);
    free(out);
    free(got);
}

static void test_linear(void **unused)
{
    static const enum bt_dtype dtypes[] = {BT_BF16, BT_F8_E4M3, BT_I8, BT_I4};
    (void)unused;
    for (unsigned i = 0; i < 4; i++) {
        check_linear(dtypes[i], true, 7, 256, 160);
        check_linear(dtypes[i], true, 2, 128, 33);
        check_linear(dtypes[i], true, 8, 128, 16);
    }
    check_linear(BT_F8_E4M3, true, 5, 700, 144);
    check_linear(BT_BF16, true, 5, 77, 2);
    check_linear(BT_F32, false, 5, 77, 35);
}

/* Batches, of which the weight's inputs or its outputs are contiguous. */
static void check_product(enum bt_dtype dtype, bool is_k_major)
{
    enum { M = 5, N = 24, K = 16, BATCH = 3, PITCH = 40 };
    bool f32 = dtype == BT_F32;
    size_t element = bt_dtype_bytes(dtype), weight_rows = is_k_major ? N : K;
    struct bt_matrix x = make_weight(BATCH * M, PITCH, dtype);
    struct bt_matrix w = make_weight((uint32_t)(BATCH * weight_rows), PITCH, dtype);
    float *out = malloc((size_t)BATCH * M * PITCH * sizeof(*out));
    memset(out, 0, (size_t)BATCH * M * PITCH * sizeof(*out));
    void *device_x = copied(x.data, (size_t)BATCH * M * PITCH * element);
    void *device_w = copied(w.data, BATCH * weight_rows * PITCH * element);
    float *device_out = copied(out, (size_t)BATCH * M * PITCH * sizeof(*out));
    struct bt_cuda_product product = {
        dtype,     BT_F32,     M,     N,     K,     BATCH,     device_x,
        device_w,  device_out, PITCH, PITCH, PITCH, M * PITCH, weight_rows * PITCH,
        M * PITCH, is_k_major};
    bt_cuda_product(&stream, &product);
    fetch(out, device_out, (size_t)BATCH * M * PITCH * sizeof(*out));
    for (size_t b = 0; b < BATCH; b++) {
        for (size_t m = 0; m < M; m++) {
            for (size_t n = 0; n < PITCH; n++) {
                double sum = 0, size = 0;
                for (size_t k = 0; n < N && k < K; k++) {
                    size_t row = b * weight_rows + (is_k_major ? n : k), col = is_k_major ? k : n;
                    double term = (double)bt_weight_at(&x, (b * M + m) * PITCH + k) *
                                  bt_weight_at(&w, row * PITCH + col);
                    sum += term;
                    size += fabs(term);
                }
                double bound = size * (f32 ? 0x1p-23 : 0x1p-22) * K;
                assert_true(fabs(out[(b * M + m) * PITCH + n] - sum) <= bound);
            }
        }
    }
    cudaFree(device_x);
    cudaFree(device_w);
    cudaFree(device_out);
    free_weight(&x);
    free_weight(&w);
    free(out);
}

static void test_product(void **unused)
{
    (void)unused;
    check_product(BT_F32, true);
    check_product(BT_F32, false);
    check_product(BT_BF16, true);
    check_product(BT_BF16, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kv_b),    cmocka_unit_test(test_quantised_rows),
        cmocka_unit_test(test_bf16),    cmocka_unit_test(test_f8),
        cmocka_unit_test(test_i8),      cmocka_unit_test(test_i4),
        cmocka_unit_test(test_tiles),   cmocka_unit_test(test_without_wgmma),
        cmocka_unit_test(test_rows),    cmocka_unit_test(test_linear),
        cmocka_unit_test(test_product),
    };
    void *scratch = NULL;
    state = test_seed();
    device.multiprocessors = 2;
    if (cudaDeviceGetAttribute(&device.arch, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess)
        return 1;
    device.arch *= 10; /* of those that kernels are compiled for: 8.0, 9.0, 10.0 */
    stream.device = &device;
    if (cudaStreamCreateWithFlags(&stream.stream, cudaStreamNonBlocking) != cudaSuccess ||
        cudaMalloc(&scratch, SCRATCH) != cudaSuccess ||
        cudaMalloc(&stream.workspace, BT_CUDA_WORKSPACE) != cudaSuccess ||
        cublasLtCreate(&stream.cublas) != CUBLAS_STATUS_SUCCESS ||
        !bt_cuda_products_create(&stream))
        return 1;
    stream.scratch = scratch;
    stream.scratch_bytes = SCRATCH;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bt_cuda_products_destroy(&stream);
    cublasLtDestroy(stream.cublas);
    cudaFree(stream.workspace);
    cudaFree(scratch);
    cudaStreamDestroy(stream.stream);
    return failed;
}
