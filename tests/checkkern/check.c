#include "tests/checkkern/check.h"

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/kernels/weight.h"
#include "tests/checkkern/device.h"

#define CANARY_BYTES 128
#define BUFFER_ALIGN 64
#define PATTERN      0xff /* NaN as f32, bf16 and f16 */
#define CANARY       0xa5

void check_begin(struct check *check, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(check->shape, sizeof(check->shape), format, args);
    va_end(args);
    check->random = check->seed;
    for (const char *c = check->shape; *c; c++)
        check->random = (check->random ^ (unsigned char)*c) * UINT64_C(0x100000001b3);
    check->shapes++;
}

void check_end(struct check *check)
{
    check_device_end();
    for (unsigned i = 0; i < check->buffer_count; i++) {
        unsigned char *base = check->buffers[i];
        for (size_t j = 0; j < CANARY_BYTES; j++) {
            if (base[j] != CANARY || base[CANARY_BYTES + check->buffer_bytes[i] + j] != CANARY) {
                check_fail(check, "buffer %u: written outside its %zu bytes", i,
                           check->buffer_bytes[i]);
                break;
            }
        }
        free(base - (uintptr_t)base % BUFFER_ALIGN);
    }
    check->buffer_count = 0;
}

void check_fail(struct check *check, const char *format, ...)
{
    va_list args;
    check->failures++;
    if (check->failures > 20)
        return;
    printf("FAIL %s %s [%s] seed %llu: ", check->kernels->name, check->op, check->shape,
           (unsigned long long)check->seed);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
}

/* splitmix64 */
uint64_t check_random(struct check *check)
{
    uint64_t z = check->random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

uint32_t check_below(struct check *check, uint32_t bound)
{
    return (uint32_t)(check_random(check) % bound);
}

float check_uniform(struct check *check)
{
    return (float)((double)(int64_t)check_random(check) * 0x1p-63);
}

/* A buffer whose address is `odd` modulo BUFFER_ALIGN. */
static void *buffer_at(struct check *check, size_t bytes, size_t odd)
{
    void *raw;
    BT_ASSERT(check->buffer_count < CHECK_MAX_BUFFERS);
    BT_ASSERT(posix_memalign(&raw, BUFFER_ALIGN, bytes + odd + 2 * CANARY_BYTES) == 0);
    unsigned char *base = (unsigned char *)raw + odd;
    memset(base, CANARY, CANARY_BYTES);
    memset(base + CANARY_BYTES, PATTERN, bytes);
    memset(base + CANARY_BYTES + bytes, CANARY, CANARY_BYTES);
    check->buffers[check->buffer_count] = base;
    check->buffer_bytes[check->buffer_count++] = bytes;
    return base + CANARY_BYTES;
}

void *check_buffer(struct check *check, size_t bytes)
{
    return buffer_at(check, bytes, 16);
}

void *check_buffer_aligned(struct check *check, size_t bytes)
{
    return buffer_at(check, bytes, 0);
}

float *check_floats(struct check *check, size_t count)
{
    return check_buffer(check, count * sizeof(float));
}

float *check_floats_random(struct check *check, size_t count, enum check_kind kind)
{
    static const float scale[CHECK_KINDS] = {1.0f, 1e15f, 1e-18f, 1e-40f, 0.0f};
    float *x = check_floats(check, count);
    for (size_t i = 0; i < count; i++)
        x[i] = check_uniform(check) * scale[kind];
    return x;
}

/* A random f16 of magnitude below 1: every exponent, subnormals among them. */
static uint16_t random_f16(struct check *check)
{
    return (uint16_t)(check_random(check) & 0x8000) |
           (uint16_t)(check_below(check, 15) << 10 | check_below(check, 1024));
}

/* Positive, f32, not a power of two. */
static float random_scale(struct check *check, float size)
{
    return size * (0.25f + 0.75f * fabsf(check_uniform(check)));
}

static float *random_scales(struct check *check, size_t count, float size)
{
    float *scales = check_floats(check, count);
    for (size_t i = 0; i < count; i++)
        scales[i] = random_scale(check, size);
    return scales;
}

/* Any finite value. */
static uint8_t random_f8(struct check *check)
{
    uint8_t bits = (uint8_t)check_random(check);
    return (bits & 0x7f) == 0x7f ? bits - 1 : bits;
}

static int8_t random_i8(struct check *check)
{
    return (int8_t)((int)check_below(check, 255) - 127);
}

/* Two of -7 … 7. */
static uint8_t random_i4(struct check *check)
{
    int even = (int)check_below(check, 15) - 7, odd = (int)check_below(check, 15) - 7;
    return (uint8_t)((even & 15) | (odd & 15) << 4);
}

static void fill_floats(struct check *check, char *data, size_t count, enum bt_dtype dtype,
                        float scale)
{
    for (size_t i = 0; i < count; i++) {
        if (dtype == BT_F16)
            ((uint16_t *)data)[i] = random_f16(check);
        else
            bt_element_store(data, dtype, i, check_uniform(check) * scale);
    }
}

static size_t groups_of(size_t count)
{
    return (count + 127) / 128;
}

/* Scales that bring the largest value of the dtype to `scale`. */
static void add_scales(struct check *check, struct bt_matrix *matrix, float scale)
{
    size_t rows = matrix->rows, groups = groups_of(matrix->cols);
    if (matrix->dtype == BT_F8_E4M3)
        matrix->scales = random_scales(check, groups_of(rows) * groups, scale / 448);
    if (matrix->dtype == BT_I8 || matrix->dtype == BT_I4)
        matrix->scales = random_scales(check, rows, scale / 127);
    if (matrix->dtype != BT_I4)
        return;
    uint8_t *group_scales = check_buffer(check, rows * groups);
    for (size_t i = 0; i < rows * groups; i++)
        group_scales[i] = (uint8_t)(1 + check_below(check, 18)); /* 7 * 18 <= 127 */
    matrix->group_scales = group_scales;
}

struct bt_matrix check_matrix(struct check *check, uint32_t rows, uint32_t cols,
                              enum bt_dtype dtype, float scale)
{
    if (dtype == BT_I4)
        cols = (uint32_t)groups_of(cols) * 128;
    size_t count = (size_t)rows * cols, bytes = dtype == BT_I4 ? 1 : bt_dtype_bytes(dtype);
    size_t stored = dtype == BT_I4 ? count / 2 : count;
    char *data = (char *)check_buffer(check, (stored + 1) * bytes) + bytes;
    struct bt_matrix matrix = {data, rows, cols, dtype, BT_LAYOUT_ROWS, NULL, NULL};
    for (size_t i = 0; i < stored && bytes == 1; i++)
        data[i] = (char)(dtype == BT_F8_E4M3 ? random_f8(check)
                         : dtype == BT_I8    ? (uint8_t)random_i8(check)
                                             : random_i4(check));
    if (bytes > 1)
        fill_floats(check, data, count, dtype, scale);
    add_scales(check, &matrix, scale);
    return matrix;
}

struct bt_matrix check_matrix_rows(const struct bt_matrix *matrix, uint32_t first, uint32_t count)
{
    struct bt_matrix part = *matrix;
    size_t groups = groups_of(matrix->cols);
    BT_ASSERT(matrix->layout == BT_LAYOUT_ROWS && first + count <= matrix->rows);
    BT_ASSERT(matrix->dtype != BT_F8_E4M3 || first % 128 == 0);
    part.rows = count;
    part.data = (const char *)matrix->data +
                (size_t)first * matrix->cols * bt_dtype_bits(matrix->dtype) / 8;
    if (matrix->scales)
        part.scales += matrix->dtype == BT_F8_E4M3 ? first / 128 * groups : first;
    if (matrix->group_scales)
        part.group_scales += first * groups;
    return part;
}

static int i4_at(const struct bt_matrix *matrix, size_t row, size_t col)
{
    uint8_t pair = ((const uint8_t *)matrix->data)[(row * matrix->cols + col) / 2];
    int value = col % 2 ? pair / 16 : pair % 16;
    return value > 7 ? value - 16 : value;
}

/* The value and its scale, whose product is the weight. */
static double stored_at(const struct bt_matrix *matrix, size_t row, size_t col, double *ret_scale)
{
    size_t groups = groups_of(matrix->cols), index = row * matrix->cols + col;
    BT_ASSERT(matrix->layout == BT_LAYOUT_ROWS);
    *ret_scale = 1;
    switch (matrix->dtype) {
    case BT_F8_E4M3:
        *ret_scale = matrix->scales[row / 128 * groups + col / 128];
        return bt_f8_e4m3_to_f32(((const uint8_t *)matrix->data)[index]);
    case BT_I8:
        *ret_scale = matrix->scales[row];
        return ((const int8_t *)matrix->data)[index];
    case BT_I4:
        *ret_scale = matrix->scales[row];
        return i4_at(matrix, row, col) * matrix->group_scales[row * groups + col / 128];
    default:
        return bt_weight_at(matrix, index);
    }
}

double check_matrix_at(const struct bt_matrix *matrix, size_t row, size_t col)
{
    double scale, value = stored_at(matrix, row, col, &scale);
    return value * scale;
}

struct bt_matrix check_packed(struct check *check, const struct bt_matrix *rows, enum bt_use use,
                              const struct bt_mla_shape *shape)
{
    struct bt_matrix packed = {0};
    size_t bytes = check->kernels->packed_bytes(rows, use, shape);
    check->kernels->pack(NULL, rows, use, shape, check_buffer_aligned(check, bytes), &packed);
    return packed;
}

double check_nearest_bf16(double value)
{
    int exponent;
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if ((bits >> 52 & 0x7ff) - (1023 - 126) < 126 + 127) { /* 2^-126 and more, below 2^127 */
        bits += (UINT64_C(1) << 44) - 1 + (bits >> 45 & 1);
        bits &= ~((UINT64_C(1) << 45) - 1); /* of 52 bits behind the first seven stay */
        memcpy(&value, &bits, sizeof(bits));
        return value;
    }
    if (value == 0 || !isfinite(value))
        return value;
    frexp(value, &exponent);
    double unit = ldexp(1, (exponent < -125 ? -125 : exponent) - 8);
    double nearest = nearbyint(value / unit) * unit;
    return fabs(nearest) < 0x1p128 ? nearest : copysign(INFINITY, value);
}

static bool f8_inputs;

void check_set_f8_inputs(bool is)
{
    f8_inputs = is;
}

bool check_f8_inputs(enum bt_dtype dtype)
{
    return f8_inputs && dtype == BT_F8_E4M3;
}

double check_tile_at(const struct bt_matrix *rows, size_t row, size_t col)
{
    double scale, value = stored_at(rows, row, col, &scale);
    if (rows->dtype == BT_I8 || rows->dtype == BT_I4 || check_f8_inputs(rows->dtype))
        return value * scale;
    return check_nearest_bf16((float)(value * scale));
}

/* Of each 128: e4m3(x / scale) * scale, the quotients f32. */
static void f8_input(const float *x, size_t cols, double *out)
{
    for (size_t at = 0; at < cols; at += 128) {
        size_t count = cols - at < 128 ? cols - at : 128;
        float max = 0;
        for (size_t i = at; i < at + count; i++)
            max = fmaxf(max, fabsf(x[i]));
        float scale = max > 0 ? fmaxf(max / 448, FLT_MIN) : 1;
        for (size_t i = at; i < at + count; i++)
            out[i] = (double)bt_f8_e4m3_to_f32(bt_f32_to_f8_e4m3(x[i] / scale)) * (double)scale;
    }
}

void check_tile_input(const float *x, size_t cols, enum bt_dtype dtype, double *out)
{
    double max = 0;
    if (check_f8_inputs(dtype)) {
        f8_input(x, cols, out);
        return;
    }
    bool finite = true;
    for (size_t i = 0; i < cols; i++) {
        finite = finite && isfinite(x[i]);
        max = fmax(max, fabs(x[i]));
    }
    float step = finite ? fmaxf((float)max / 127, FLT_MIN) : NAN;
    for (size_t i = 0; i < cols; i++) {
        if (dtype != BT_I8 && dtype != BT_I4)
            out[i] = check_nearest_bf16(x[i]);
        else
            out[i] = finite ? nearbyint(x[i] / step) * step : NAN;
    }
}

static struct bt_stream *stream_of(const struct bt_stream_limits *limits, struct bt_team *team)
{
    struct bt_error error;
    struct bt_stream *stream = NULL;
    if (bt_stream_create(limits, team, &error, &stream) != BT_OK) {
        printf("FAIL stream: %s\n", error.text);
        exit(1);
    }
    return stream;
}

struct bt_stream *check_stream(const struct bt_stream_limits *limits)
{
    return stream_of(limits, NULL);
}

struct bt_stream *check_stream_team(struct check *check, const struct bt_stream_limits *limits)
{
    return stream_of(limits, check->team);
}

void check_close(struct check *check, const char *what, const float *got, const double *want,
                 const double *magnitude, size_t count, double factor, double floor)
{
    double error_square = 0, bound_square = 0;
    for (size_t i = 0; i < count; i++) {
        double bound = factor * fabs(magnitude ? magnitude[i] : want[i]) + floor;
        double error = fabs(got[i] - want[i]);
        if (!(error <= bound)) {
            check_fail(check, "%s[%zu] is %.9g, expected %.9g: error %.3g, bound %.3g", what, i,
                       (double)got[i], want[i], error, bound);
            return;
        }
        error_square += error * error;
        bound_square += bound * bound;
    }
    /* a few elements may all sit near their bound; one rounding alone has 0.58 of its own */
    if (count >= 64 && error_square * 16 > bound_square * 9 && bound_square > 0)
        check_fail(check, "%s: normalised error %.3g of the bound", what,
                   sqrt(error_square / bound_square));
}

void check_bits(struct check *check, const char *what, const void *got, const void *want,
                size_t count, size_t element_bytes)
{
    const unsigned char *a = got, *b = want;
    if (memcmp(a, b, count * element_bytes) == 0)
        return;
    size_t i = 0;
    while (a[i] == b[i])
        i++;
    i /= element_bytes;
    if (element_bytes == sizeof(uint32_t))
        check_fail(check, "%s: element %zu of %zu is 0x%08x (%g), expected 0x%08x (%g)", what, i,
                   count, ((const uint32_t *)got)[i], (double)((const float *)got)[i],
                   ((const uint32_t *)want)[i], (double)((const float *)want)[i]);
    else
        check_fail(check, "%s: element %zu of %zu differs", what, i, count);
}
