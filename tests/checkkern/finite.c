/*
 * Rows of numbers that are none: what kv_write makes of them is finite, and a row of attention that
 * does not see them, or shares a product with a query of them, has the bits it has without them.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "common/kernels/weight.h"
#include "tests/checkkern/sequences.h"

/* What a token's row of kv_a, or the weights of the norm, are spoilt with. */
static const struct {
    const char *name;
    float value;
} poisons[] = {{"nan", NAN}, {"inf", INFINITY}, {"-inf", -INFINITY}, {"largest", FLT_MAX}};
#define POISONS (sizeof(poisons) / sizeof(poisons[0]))

enum place { IN_LATENT, IN_KEY, IN_BOTH_OF_KEY, IN_NORM, PLACES };

static double made_finite(double value)
{
    value = isnan(value) ? 0 : value;
    return fmax(-0x1.fep127, fmin(value, 0x1.fep127));
}

/*
 * A row by the definition, in double; then finite. Tolerance: roundings of f32 as in
 * check_kv_write, 2^-8 of bf16; of e4m3 2^-4, or 2^-9 of the largest of its 128, which a NaN is not
 * part of.
 */
static void check_token(struct check *check, const float *in, const struct bt_matrix *norm,
                        const struct bt_rope_table *rope, uint32_t position,
                        const struct bt_kv_layer *kv, const char *token)
{
    size_t lora = kv->kv_lora_rank, half = kv->qk_rope_head_dim / 2;
    const float *cosines = rope->cos + position * half, *sines = rope->sin + position * half;
    double sum = 0, want[64], most = 0, coarse = kv->dtype == BT_F8_E4M3 ? 0x1p-4 : 0;
    float got[64];
    BT_ASSERT(bt_kv_width(kv) <= 64);
    for (size_t i = 0; i < lora; i++)
        sum += (double)in[i] * in[i];
    /* a sum of squares in f32 is infinite where that of ref, in double, is not */
    double scale = check->oracle && sum > FLT_MAX ? 0 : 1 / sqrt(sum / lora + 1e-6);
    for (size_t i = 0; i < lora; i++) {
        want[i] = made_finite(check_matrix_at(norm, 0, i) * (in[i] * scale));
        most = fmax(most, fabs(want[i]));
    }
    for (size_t i = 0; i < half; i++) {
        double even = in[lora + 2 * i], odd = in[lora + 2 * i + 1];
        want[lora + i] = made_finite(even * cosines[i] - odd * sines[i]);
        want[lora + half + i] = made_finite(odd * cosines[i] + even * sines[i]);
    }
    for (size_t i = 0; i < bt_kv_width(kv); i++) {
        double bound = fabs(want[i]) * (0x1.02p-8 + coarse) + 1e-6;
        bound += i < lora && coarse > 0 ? most * 0x1p-9 : 0;
        got[i] = bt_kv_at(kv, token, i);
        if (!(fabs(got[i] - want[i]) <= bound)) {
            check_fail(check, "element %zu is %g, expected %g", i, (double)got[i], want[i]);
            return;
        }
    }
}

#define ROWS   20
#define SPOILT 7 /* a row */

static void spoil(float *kv_a, float *norm, size_t lora, enum place place, float value)
{
    if (place == IN_LATENT)
        kv_a[3] = value;
    if (place == IN_KEY || place == IN_BOTH_OF_KEY)
        kv_a[lora] = value;
    if (place == IN_BOTH_OF_KEY)
        kv_a[lora + 1] = -value;
    if (place == IN_NORM)
        norm[5] = value;
}

static void check_write(struct check *check, enum bt_dtype dtype, enum place place, unsigned poison)
{
    static const struct check_layout layout = {"write", 1, {{60, ROWS}}};
    enum { LORA = 40, DIM = 6 };
    struct bt_stream_limits limits = {.mla = {.kv_lora_rank = LORA, .qk_rope_head_dim = DIM}};
    struct check_batch batch;
    check_begin(check, "kv_write %s place %d dtype %u", poisons[poison].name, (int)place, dtype);
    check_batch_init(check, &layout, &batch);
    struct bt_rope_table rope = check_rope(check, DIM);
    struct bt_stream *stream = check_stream_team(check, &limits);
    float *norm = check_floats_random(check, LORA, CHECK_NORMAL);
    struct bt_matrix weight = {.data = norm, .rows = 1, .cols = LORA, .dtype = BT_F32};
    float *kv_a = check_floats_random(check, (size_t)ROWS * (LORA + DIM), CHECK_NORMAL);
    struct bt_kv_layer clean = check_pool(check, &batch, dtype, LORA, DIM), kv = clean;
    size_t token_bytes = bt_kv_token_size(&kv);
    kv.data = check_buffer(check, check_pool_bytes(&batch, &kv));

    check->kernels->kv_write(stream, kv_a, &weight, 1e-6f, &rope, batch.sequences, 1, &clean);
    spoil(kv_a + (size_t)SPOILT * (LORA + DIM), norm, LORA, place, poisons[poison].value);
    check->kernels->kv_write(stream, kv_a, &weight, 1e-6f, &rope, batch.sequences, 1, &kv);
    for (uint32_t i = 0; i < ROWS; i++) {
        uint32_t position = layout.sequences[0].start + i;
        const char *token = bt_kv_token(&kv, batch.sequences[0].pages, position);
        check_token(check, kv_a + i * (LORA + DIM), &weight, &rope, position, &kv, token);
        if (i != SPOILT && place != IN_NORM)
            check_bits(check, "other row", token,
                       bt_kv_token(&clean, batch.sequences[0].pages, position), 1, token_bytes);
    }
    bt_stream_destroy(stream);
    check_end(check);
}

/* ---- attention ---- */

struct scene {
    struct bt_mla_shape shape;
    struct check_batch batch;
    struct bt_matrix kv_b;
    struct bt_kv_layer kv;
    struct bt_stream *stream;
    float *q;
    size_t row_dim, out_count;
};

/* All elements of a token as large as kv_write leaves any, of either sign. */
static void fill_largest(struct check *check, const struct bt_kv_layer *kv, char *token)
{
    size_t lora = kv->kv_lora_rank;
    const float scale = BT_KV_LARGEST / 448;
    for (size_t i = 0; i < lora; i++) {
        float sign = check_below(check, 2) ? -1 : 1;
        if (kv->dtype == BT_F8_E4M3)
            token[i] = (char)bt_f32_to_f8_e4m3(sign * 448);
        else
            bt_element_store(token, kv->dtype, i, sign * BT_KV_LARGEST);
    }
    for (size_t i = 0; kv->dtype == BT_F8_E4M3 && i < bt_kv_scale_count(kv); i++)
        memcpy(token + lora + i * sizeof(scale), &scale, sizeof(scale));
}

static void run(const struct scene *s, const struct bt_kernels *kernels, bool is_decode, float *out)
{
    (is_decode ? kernels->mla_decode : kernels->mla_prefill)(
        s->stream, s->q, &s->shape, &s->kv_b, s->batch.sequences, s->batch.count, &s->kv, out);
}

/* Every row but `spoilt`, and those behind it if they see it, as before. */
static void check_undisturbed(struct check *check, const struct scene *s, uint32_t spoilt,
                              bool is_seen_behind, const float *out, const float *clean)
{
    size_t each = (size_t)s->shape.heads * s->shape.v_head_dim;
    check_bits(check, "rows before", out, clean, spoilt * each, sizeof(float));
    uint32_t end = s->batch.sequences[0].row_count;
    size_t next = is_seen_behind ? end : spoilt + 1;
    check_bits(check, "rows behind", out + next * each, clean + next * each,
               (s->batch.rows - next) * each, sizeof(float));
}

static void check_attention(struct check *check, bool is_decode, struct bt_mla_shape shape,
                            enum bt_layout weights, enum bt_dtype pool, uint32_t spoilt)
{
    static const struct check_layout layout = {"attention", 2, {{243, 28}, {30, 5}}};
    struct scene s = {.shape = shape};
    check_begin(check, "%s heads %u%s pool %u row %u", is_decode ? "mla_decode" : "mla_prefill",
                shape.heads, weights == BT_LAYOUT_TILES ? " in tiles" : "", pool, spoilt);
    check_batch_init(check, &layout, &s.batch);
    struct bt_stream_limits limits = {.max_rows = s.batch.rows, .mla = shape};
    s.stream = check_stream_team(check, &limits);
    uint32_t per_head = shape.qk_nope_head_dim + shape.v_head_dim;
    struct bt_matrix rows =
        check_matrix(check, shape.heads * per_head, shape.kv_lora_rank, BT_BF16, 1);
    s.kv_b = weights == BT_LAYOUT_TILES ? check_packed(check, &rows, BT_USE_KV_B, &s.shape) : rows;
    s.kv = check_pool(check, &s.batch, pool, shape.kv_lora_rank, shape.qk_rope_head_dim);
    struct bt_rope_table rope = check_rope(check, shape.qk_rope_head_dim);
    struct bt_matrix norm = check_matrix(check, 1, shape.kv_lora_rank, BT_F32, 1);
    struct check_batch all = s.batch;
    for (uint32_t i = 0, first = 0; i < all.count; i++) {
        all.sequences[i].row_count += all.sequences[i].start;
        all.sequences[i].start = 0;
        all.sequences[i].first_row = first;
        first += all.sequences[i].row_count;
        all.rows = first;
    }
    float *kv_a = check_floats_random(check, all.rows * bt_kv_width(&s.kv), CHECK_NORMAL);
    s.row_dim = (size_t)shape.heads * (shape.qk_nope_head_dim + shape.qk_rope_head_dim);
    s.q = check_floats_random(check, s.batch.rows * s.row_dim, CHECK_NORMAL);
    s.out_count = (size_t)s.batch.rows * shape.heads * shape.v_head_dim;
    float *clean = check_floats(check, s.out_count), *out = check_floats(check, s.out_count);
    uint32_t position = layout.sequences[0].start + spoilt;

    check->kernels->kv_write(s.stream, kv_a, &norm, 1e-6f, &rope, all.sequences, all.count, &s.kv);
    run(&s, check->kernels, is_decode, clean);
    /* the query of one row */
    float *query = s.q + spoilt * s.row_dim;
    for (unsigned i = 0; i < POISONS; i++) {
        float kept = query[i * 5 % s.row_dim];
        query[i * 5 % s.row_dim] = poisons[i].value;
        run(&s, check->kernels, is_decode, out);
        check_undisturbed(check, &s, spoilt, false, out, clean);
        query[i * 5 % s.row_dim] = kept;
    }
    /* the token that this row is the first to see */
    struct bt_sequence_rows one = {s.batch.sequences[0].pages, position, 0, 1};
    for (unsigned i = 0; i < POISONS; i++) {
        float *row = kv_a + position * bt_kv_width(&s.kv);
        row[i * 3] = row[shape.kv_lora_rank] = poisons[i].value;
        check->kernels->kv_write(s.stream, row, &norm, 1e-6f, &rope, &one, 1, &s.kv);
        run(&s, check->kernels, is_decode, out);
        check_undisturbed(check, &s, spoilt, true, out, clean);
    }
    fill_largest(check, &s.kv, bt_kv_token(&s.kv, s.batch.sequences[0].pages, position));
    run(&s, check->kernels, is_decode, out);
    check_undisturbed(check, &s, spoilt, true, out, clean);
    bt_stream_destroy(s.stream);
    check_end(check);
}

void check_mla_finite(struct check *check)
{
    static const enum bt_dtype pools[] = {BT_BF16, BT_F32, BT_F8_E4M3};
    static const struct bt_mla_shape shapes[] = {{2, 32, 32, 32, 64, 0.15f},
                                                 {3, 19, 6, 17, 33, 0.2f}};
    bool slow = check->is_emulated || !check->oracle;
    for (unsigned i = 0; i < 3 * PLACES * POISONS; i++)
        check_write(check, pools[i % 3], (enum place)(i / 3 % PLACES), i / 3 / PLACES);
    for (unsigned i = 0; i < 3 * 2 * 2 * 2; i++) {
        enum bt_layout weights = i / 6 % 2 ? BT_LAYOUT_TILES : BT_LAYOUT_ROWS;
        if (check->only_tiles && weights == BT_LAYOUT_ROWS)
            continue;
        if (check_on_grid(check) && (i + i / 6 + i / 12) % 2 != 0)
            continue;
        uint32_t first = check_on_grid(check) && i % 2 ? 26 : 1;
        uint32_t step = check_on_grid(check) ? 28 : slow ? 25 : 12;
        for (uint32_t spoilt = first; spoilt < 28; spoilt += step)
            check_attention(check, i / 12, shapes[i / 3 % 2], weights, pools[i % 3], spoilt);
    }
}
