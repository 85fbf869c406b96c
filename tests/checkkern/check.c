#include "tests/checkkern/check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/kernels/weight.h"

#define CANARY_BYTES 128
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
    for (unsigned i = 0; i < check->buffer_count; i++) {
        unsigned char *base = check->buffers[i];
        for (size_t j = 0; j < CANARY_BYTES; j++) {
            if (base[j] != CANARY || base[CANARY_BYTES + check->buffer_bytes[i] + j] != CANARY) {
                check_fail(check, "buffer %u: written outside its %zu bytes", i,
                           check->buffer_bytes[i]);
                break;
            }
        }
        free(base);
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

void *check_buffer(struct check *check, size_t bytes)
{
    BT_ASSERT(check->buffer_count < CHECK_MAX_BUFFERS);
    unsigned char *base = malloc(bytes + 2 * CANARY_BYTES);
    BT_ASSERT(base);
    memset(base, CANARY, CANARY_BYTES);
    memset(base + CANARY_BYTES, PATTERN, bytes);
    memset(base + CANARY_BYTES + bytes, CANARY, CANARY_BYTES);
    check->buffers[check->buffer_count] = base;
    check->buffer_bytes[check->buffer_count++] = bytes;
    return base + CANARY_BYTES;
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

struct bt_matrix check_matrix(struct check *check, uint32_t rows, uint32_t cols,
                              enum bt_dtype dtype, float scale)
{
    size_t count = (size_t)rows * cols, bytes = bt_dtype_bytes(dtype);
    char *data = (char *)check_buffer(check, (count + 1) * bytes) + bytes;
    for (size_t i = 0; i < count; i++) {
        if (dtype == BT_F16)
            ((uint16_t *)data)[i] = random_f16(check);
        else
            bt_element_store(data, dtype, i, check_uniform(check) * scale);
    }
    return (struct bt_matrix){data, rows, cols, dtype};
}

double check_matrix_at(const struct bt_matrix *matrix, size_t row, size_t col)
{
    return bt_weight_at(matrix, row * matrix->cols + col);
}

struct bt_stream *check_stream(const struct bt_stream_limits *limits)
{
    struct bt_error error;
    struct bt_stream *stream = NULL;
    if (bt_stream_create(limits, NULL, &error, &stream) != BT_OK) {
        printf("FAIL stream: %s\n", error.text);
        exit(1);
    }
    return stream;
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
