/*
 * The products that tile arithmetic is made of, apart from what is built on them: inputs that lie
 * apart as in a page, nothing behind the last row, steps along k.
 */
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/kernels/x86/gemm.h"
#include "common/kernels/x86/x86.h"
#include "tests/checkkern/check.h"

struct gemm {
    void (*begin)(void);
    void (*end)(void);
    void (*bf16)(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b, size_t tiles,
                 bool accumulate, float *c, size_t c_stride);
    void (*int8)(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b, size_t tiles,
                 bool accumulate, int32_t *c, size_t c_stride);
};

#define GEMM(isa)                                                                                  \
    void bt_##isa##_gemm_begin(void);                                                              \
    void bt_##isa##_gemm_end(void);                                                                \
    void bt_##isa##_gemm_bf16(struct bt_tile_rows, size_t, struct bt_tile_panels, size_t, bool,    \
                              float *, size_t);                                                    \
    void bt_##isa##_gemm_int8(struct bt_tile_rows, size_t, struct bt_tile_panels, size_t, bool,    \
                              int32_t *, size_t);                                                  \
    static const struct gemm gemm_##isa = {bt_##isa##_gemm_begin, bt_##isa##_gemm_end,             \
                                           bt_##isa##_gemm_bf16, bt_##isa##_gemm_int8};
GEMM(avx2)
GEMM(avx512)
GEMM(avx512_bf16)
GEMM(amx)

static const struct gemm *gemm_of(const struct bt_kernels *kernels)
{
    if (kernels == &bt_kernels_avx2)
        return &gemm_avx2;
    if (kernels == &bt_kernels_avx512)
        return &gemm_avx512;
    if (kernels == &bt_kernels_avx512_bf16)
        return &gemm_avx512_bf16;
    return kernels == &bt_kernels_amx ? &gemm_amx : NULL;
}

/* Operands of one shape. A ends where memory ends. */
struct operands {
    const struct gemm *gemm;
    char *map;
    size_t map_bytes;
    struct bt_tile_rows a;
    struct bt_tile_panels b;
    size_t rows, tiles, outs, c_stride;
    bool int8;
};

static void random_elements(struct check *check, char *out, size_t bytes, bool int8)
{
    for (size_t i = 0; i < bytes; i += 2) {
        uint16_t bits = bt_f32_to_bf16(check_uniform(check));
        if (int8) /* -128 too, which no weight is */
            bits = (uint16_t)check_random(check);
        memcpy(out + i, &bits, sizeof(bits));
    }
}

/*
 * like_page: rows lie apart by more than a row, tiles side by side in it. The other way they are
 * packed; then the last block of 16 is whole in memory only as far as its rows in the last tile.
 */
static void operands_make(struct check *check, struct operands *o, bool like_page)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), row_bytes = o->tiles * BT_TILE_LINE + 192;
    size_t bytes = like_page ? (o->rows - 1) * row_bytes + o->tiles * BT_TILE_LINE
                             : ((o->rows - 1) / 16 * o->tiles + o->tiles - 1) * BT_TILE_BYTES +
                                   ((o->rows - 1) % 16 + 1) * BT_TILE_LINE;
    size_t usable = (bytes + page - 1) / page * page;
    o->map_bytes = usable + page;
    o->map = mmap(NULL, o->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    BT_ASSERT(o->map != MAP_FAILED && mprotect(o->map + usable, page, PROT_NONE) == 0);
    char *data = o->map + usable - bytes;
    random_elements(check, data, bytes, o->int8);
    o->a = like_page
               ? (struct bt_tile_rows){data, 16 * row_bytes, BT_TILE_LINE, row_bytes}
               : (struct bt_tile_rows){data, o->tiles * BT_TILE_BYTES, BT_TILE_BYTES, BT_TILE_LINE};

    size_t panels = o->outs / BT_TILE_OUTS, panel_stride = o->tiles * BT_TILE_BYTES + 128;
    char *b = check_buffer_aligned(check, panels * panel_stride);
    random_elements(check, b, panels * panel_stride, o->int8);
    o->b = (struct bt_tile_panels){b, panel_stride, panels};
}

/* Rows from `row` on, tiles [first, first + tiles). */
static void run(const struct operands *o, size_t row, size_t rows, size_t first, size_t tiles,
                bool accumulate, void *c)
{
    struct bt_tile_rows a = o->a;
    struct bt_tile_panels b = o->b;
    a.data = (const char *)a.data + row / 16 * a.block_stride + row % 16 * a.row_stride +
             first * a.tile_stride;
    b.data = (const char *)b.data + first * BT_TILE_BYTES;
    o->gemm->begin();
    if (o->int8)
        o->gemm->int8(a, rows, b, tiles, accumulate, c, o->c_stride);
    else
        o->gemm->bf16(a, rows, b, tiles, accumulate, c, o->c_stride);
    o->gemm->end();
}

static double element(const void *p, size_t index, bool int8)
{
    uint16_t bits;
    if (int8)
        return ((const int8_t *)p)[index];
    memcpy(&bits, (const char *)p + index * sizeof(bits), sizeof(bits));
    return (double)bt_bf16_to_f32(bits);
}

/* One output; *ret_size: the sum of the magnitudes. */
static double naive(const struct operands *o, size_t row, size_t out, double *ret_size)
{
    size_t each = o->int8 ? 4 : 2, inputs = o->int8 ? 64 : 32;
    double sum = *ret_size = 0;
    for (size_t k = 0; k < o->tiles * inputs; k++) {
        const char *a = (const char *)o->a.data + row / 16 * o->a.block_stride +
                        row % 16 * o->a.row_stride + k / inputs * o->a.tile_stride;
        const char *b =
            (const char *)o->b.data + out / 16 * o->b.panel_stride + k / inputs * BT_TILE_BYTES;
        double term =
            element(a, k % inputs, o->int8) *
            element(b, k % inputs / each * 16 * each + out % 16 * each + k % each, o->int8);
        sum += term;
        *ret_size += fabs(term);
    }
    return sum;
}

static void check_values(struct check *check, const struct operands *o, const float *c)
{
    size_t count = o->rows * o->outs;
    double *want = check_buffer(check, count * sizeof(double));
    double *sizes = check_buffer(check, count * sizeof(double));
    float *got = check_floats(check, count);
    for (size_t i = 0; i < count; i++) {
        size_t row = i / o->outs, out = i % o->outs;
        const float *at = c + row * o->c_stride + out;
        int32_t sum;
        memcpy(&sum, at, sizeof(sum));
        want[i] = naive(o, row, out, &sizes[i]);
        got[i] = *at;
        if (o->int8 && sum != want[i])
            check_fail(check, "row %zu output %zu is %d, expected %.0f", row, out, sum, want[i]);
    }
    double inputs = (double)o->tiles * 32;
    if (!o->int8)
        check_close(check, "c", got, want, sizes, count, CHECK_EPS * (2 * sqrt(inputs) + 8),
                    0x1p-126 * inputs);
}

static void check_product(struct check *check, const struct gemm *gemm, size_t rows, size_t tiles,
                          size_t outs, bool int8, bool like_page)
{
    check_begin(check, "%s rows %zu tiles %zu outs %zu%s", int8 ? "int8" : "bf16", rows, tiles,
                outs, like_page ? " page" : "");
    struct operands o = {.gemm = gemm,
                         .rows = rows,
                         .tiles = tiles,
                         .outs = outs,
                         .c_stride = outs + 3,
                         .int8 = int8};
    operands_make(check, &o, like_page);
    size_t count = (rows - 1) * o.c_stride + outs, first = check_below(check, (uint32_t)tiles);
    float *c = check_floats(check, count), *other = check_floats(check, count);
    run(&o, 0, rows, 0, tiles, false, c);
    check_values(check, &o, c);
    if (first > 0) {
        run(&o, 0, rows, 0, first, false, other);
        run(&o, 0, rows, first, tiles - first, true, other);
        check_bits(check, "in steps", other, c, count, sizeof(float));
    }
    for (size_t row = 0; row < rows; row += check->is_emulated ? 7 : 1) {
        run(&o, row, 1, 0, tiles, false, other);
        check_bits(check, "row alone", other, c + row * o.c_stride, outs, sizeof(float));
    }
    munmap(o.map, o.map_bytes);
    check_end(check);
}

void check_gemm(struct check *check)
{
    static const size_t rows[] = {1,  2,  7,  8,  9,  15, 16, 17,  31,
                                  32, 33, 48, 49, 63, 64, 65, 100, 260};
    const struct gemm *gemm = gemm_of(check->kernels);
    if (!gemm) /* ref has none */
        return;
    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        for (unsigned j = 0; j < 4; j++) {
            size_t tiles = 1 + check_below(check, 40), outs = 16 + 16 * check_below(check, 8);
            if (check->is_emulated && (i + j) % 4 != 0)
                continue;
            check_product(check, gemm, rows[i], tiles, outs, j % 2 == 0, j / 2 == 0);
        }
    }
}
