/* rope_q, kv_write */
#include <complex.h>
#include <math.h>
#include <string.h>

#include "common/kernels/weight.h"
#include "tests/checkkern/sequences.h"

/* The rotation as a product of complex numbers, the pairs being (real, imaginary). */
static void naive_rotate(const float *x, const struct bt_rope_table *rope, uint32_t position,
                         double *want, double *magnitude)
{
    uint32_t half = rope->half_dim;
    for (uint32_t i = 0; i < half; i++) {
        double complex turn =
            (double)rope->cos[position * half + i] + I * (double)rope->sin[position * half + i];
        double complex turned = ((double)x[2 * i] + I * (double)x[2 * i + 1]) * turn;
        want[i] = creal(turned);
        want[i + half] = cimag(turned);
        magnitude[i] = magnitude[i + half] = fabs(x[2 * i]) + fabs(x[2 * i + 1]);
    }
}

static uint32_t position_of(const struct check_batch *batch, uint32_t row,
                            const struct bt_sequence_rows **ret_sequence)
{
    for (uint32_t s = 0; s < batch->count; s++) {
        const struct bt_sequence_rows *sequence = &batch->sequences[s];
        if (row >= sequence->first_row && row < sequence->first_row + sequence->row_count) {
            *ret_sequence = sequence;
            return sequence->start + row - sequence->first_row;
        }
    }
    BT_ASSERT(!"row of no sequence");
    return 0;
}

/* Two products and a sum: each element rounds three times at most, ref once more. */
static void check_rope_shape(struct check *check, const struct check_layout *layout, uint32_t heads,
                             uint32_t nope, uint32_t dim)
{
    struct bt_mla_shape shape = {.heads = heads, .qk_nope_head_dim = nope, .qk_rope_head_dim = dim};
    struct bt_stream_limits limits = {.mla = shape};
    struct check_batch batch;
    check_begin(check, "%s heads %u nope %u rope %u", layout->name, heads, nope, dim);
    check_batch_init(check, layout, &batch);
    struct bt_rope_table rope = check_rope(check, dim);
    struct bt_stream *stream = check_stream_team(check, &limits);
    size_t width = nope + dim, count = (size_t)batch.rows * heads * width;
    float *q = check_floats_random(check, count, CHECK_NORMAL);
    float *in = check_floats(check, count), *other = check_floats(check, count);
    double *want = check_buffer(check, count * sizeof(double));
    double *magnitude = check_buffer(check, count * sizeof(double));

    memcpy(in, q, count * sizeof(*q));
    for (size_t i = 0; i < count; i += width) {
        const struct bt_sequence_rows *sequence;
        uint32_t position = position_of(&batch, (uint32_t)(i / width / heads), &sequence);
        for (size_t j = i; j < i + nope; j++) {
            want[j] = q[j];
            magnitude[j] = 0;
        }
        naive_rotate(q + i + nope, &rope, position, want + i + nope, magnitude + i + nope);
    }
    check->kernels->rope_q(stream, q, &shape, &rope, batch.sequences, batch.count);
    if (check->oracle) {
        memcpy(other, in, count * sizeof(*q));
        check->oracle->rope_q(stream, other, &shape, &rope, batch.sequences, batch.count);
        for (size_t i = 0; i < count; i++)
            want[i] = other[i];
    }
    check_close(check, "q", q, want, magnitude, count, CHECK_EPS * 4, 0);
    if (check->twin) {
        memcpy(other, in, count * sizeof(*q));
        check->twin->rope_q(stream, other, &shape, &rope, batch.sequences, batch.count);
        check_bits(check, check->twin->name, other, q, count, sizeof(float));
    }
    memcpy(other, in, count * sizeof(*q));
    for (uint32_t row = 0; row < batch.rows; row++) {
        const struct bt_sequence_rows *sequence;
        struct bt_sequence_rows one = {.start = position_of(&batch, row, &sequence),
                                       .row_count = 1};
        check->kernels->rope_q(stream, other + row * heads * width, &shape, &rope, &one, 1);
    }
    check_bits(check, "row alone", other, q, count, sizeof(float));
    bt_stream_destroy(stream);
    check_end(check);
}

void check_rope_q(struct check *check)
{
    for (unsigned i = 0; i < check_layout_count; i++) {
        check_rope_shape(check, &check_layouts[i], 1, 5, 2);
        check_rope_shape(check, &check_layouts[i], 3, 32, 16);
        check_rope_shape(check, &check_layouts[i], 16, 0, 34);
    }
}

/* Largest of the 128 elements of the latent that share a scale with element i. */
static double block_max(const double *latent, size_t lora, size_t i)
{
    double max = 0;
    for (size_t j = i / 128 * 128; j < lora && j < i / 128 * 128 + 128; j++)
        max = fmax(max, fabs(latent[j]));
    return max;
}

/*
 * The norm's bound as for rms_norm, the rotation's as for rope_q; a bf16 pool rounds once more, by
 * at most 2^-8 of the value, and two values on both sides of a tie may round apart. e4m3 has four
 * significant bits, so rounds by at most 2^-4 of the value, or below 2^-6 of the scale by at most
 * 2^-10 of it; the scale is the largest by 448.
 */
static void check_written(struct check *check, const struct check_batch *batch, const float *kv_a,
                          const struct bt_matrix *norm, float eps, const struct bt_rope_table *rope,
                          const struct bt_kv_layer *kv)
{
    size_t lora = kv->kv_lora_rank, width = bt_kv_width(kv);
    float *got = check_floats(check, width);
    double *want = check_buffer(check, width * sizeof(double));
    double *magnitude = check_buffer(check, width * sizeof(double));
    for (uint32_t row = 0; row < batch->rows; row++) {
        const struct bt_sequence_rows *sequence;
        const float *in = kv_a + row * width;
        uint32_t position = position_of(batch, row, &sequence);
        double sum = 0;
        for (size_t i = 0; i < lora; i++)
            sum += (double)in[i] * in[i];
        for (size_t i = 0; i < lora; i++) {
            want[i] = check_matrix_at(norm, 0, i) * in[i] / sqrt(sum / lora + (double)eps);
            magnitude[i] = want[i];
        }
        naive_rotate(in + lora, rope, position, want + lora, magnitude + lora);
        const void *token = bt_kv_token(kv, sequence->pages, position);
        for (size_t i = 0; i < width; i++)
            got[i] = bt_kv_at(kv, token, i);
        double factor = CHECK_EPS * (lora / 16.0 + 12);
        for (size_t i = 0; kv->dtype == BT_F8_E4M3 && i < lora; i++)
            magnitude[i] = fabs(want[i]) * 0x1.02p4 + block_max(want, lora, i) / 448 * 0x1p-2;
        if (kv->dtype != BT_F32) {
            for (size_t i = lora; i < width; i++)
                magnitude[i] = fabs(want[i]) + 0x1p-14 * magnitude[i];
            factor += 0x1.02p-8;
        }
        check_close(check, "token", got, want, magnitude, width, factor, 0x1p-148);
    }
}

static void check_kv_write_shape(struct check *check, const struct check_layout *layout,
                                 uint32_t lora, uint32_t dim, enum bt_dtype dtype)
{
    struct bt_stream_limits limits = {.mla = {.kv_lora_rank = lora, .qk_rope_head_dim = dim}};
    struct check_batch batch;
    check_begin(check, "%s lora %u rope %u dtype %u", layout->name, lora, dim, dtype);
    check_batch_init(check, layout, &batch);
    struct bt_rope_table rope = check_rope(check, dim);
    struct bt_stream *stream = check_stream_team(check, &limits);
    struct bt_matrix norm = check_matrix(check, 1, lora, dtype == BT_F32 ? BT_F32 : BT_BF16, 1);
    float *kv_a = check_floats_random(check, (size_t)batch.rows * (lora + dim), CHECK_NORMAL);
    struct bt_kv_layer kv = check_pool(check, &batch, dtype, lora, dim), other = kv;
    size_t bytes = check_pool_bytes(&batch, &kv), token_bytes = bt_kv_token_size(&kv);

    check->kernels->kv_write(stream, kv_a, &norm, 1e-6f, &rope, batch.sequences, batch.count, &kv);
    check_written(check, &batch, kv_a, &norm, 1e-6f, &rope, &kv);
    other.data = check_buffer(check, bytes);
    for (uint32_t row = 0; row < batch.rows; row++) {
        const struct bt_sequence_rows *sequence;
        uint32_t position = position_of(&batch, row, &sequence);
        struct bt_sequence_rows one = {sequence->pages, position, 0, 1};
        check->kernels->kv_write(stream, kv_a + (size_t)row * (lora + dim), &norm, 1e-6f, &rope,
                                 &one, 1, &other);
    }
    /* tokens that nobody wrote keep the pattern in both */
    check_bits(check, "row alone", other.data, kv.data, bytes / token_bytes, token_bytes);
    size_t unwritten = 0;
    for (size_t i = 0; i < bytes / token_bytes; i++)
        unwritten += isnan(bt_kv_at(&kv, (char *)kv.data + i * token_bytes, lora));
    if (unwritten != bytes / token_bytes - batch.rows)
        check_fail(check, "%zu tokens written for %u rows", bytes / token_bytes - unwritten,
                   batch.rows);
    if (check->twin) {
        check->twin->kv_write(stream, kv_a, &norm, 1e-6f, &rope, batch.sequences, batch.count,
                              &other);
        check_bits(check, check->twin->name, other.data, kv.data, bytes, 1);
    }
    bt_stream_destroy(stream);
    check_end(check);
}

void check_kv_write(struct check *check)
{
    for (unsigned i = 0; i < check_layout_count; i++) {
        check_kv_write_shape(check, &check_layouts[i], 64, 16, BT_BF16);
        check_kv_write_shape(check, &check_layouts[i], 33, 6, BT_F32);
        check_kv_write_shape(check, &check_layouts[i], 7, 2, BT_BF16);
        check_kv_write_shape(check, &check_layouts[i], 33, 6, BT_F8_E4M3);
        check_kv_write_shape(check, &check_layouts[i], 300, 36, BT_F8_E4M3);
    }
}
