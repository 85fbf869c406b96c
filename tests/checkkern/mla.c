/* mla_prefill, mla_decode */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/kernels/weight.h"
#include "tests/checkkern/sequences.h"

/* One shape of attention with its data. */
struct problem {
    struct bt_mla_shape shape;
    struct check_batch batch;
    struct bt_matrix kv_b;
    struct bt_kv_layer kv;
    const float *q;
    size_t out_count;
    struct bt_stream *stream;
    double *want, *bound;
};

typedef void (*attention)(struct bt_stream *stream, const float *q,
                          const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                          const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                          const struct bt_kv_layer *kv, float *out);

/* Keys and values of one head by the definition, and the sums of the terms' magnitudes. */
struct expanded {
    double *key, *key_size;     /* [token][nope + rope] */
    double *value, *value_size; /* [token][v] */
};

static void project(const struct problem *p, const double *latent, size_t kv_b_row, double *out,
                    double *size)
{
    *out = *size = 0;
    for (size_t l = 0; l < p->shape.kv_lora_rank; l++) {
        double term = latent[l] * check_matrix_at(&p->kv_b, kv_b_row, l);
        *out += term;
        *size += fabs(term);
    }
}

static void expand(const struct problem *p, const struct bt_sequence_rows *sequence, size_t head,
                   size_t tokens, const struct expanded *e)
{
    size_t nope = p->shape.qk_nope_head_dim, v = p->shape.v_head_dim, lora = p->shape.kv_lora_rank;
    size_t width = lora + p->shape.qk_rope_head_dim, dim = nope + p->shape.qk_rope_head_dim;
    double *latent = malloc(width * sizeof(*latent));
    for (size_t t = 0; t < tokens; t++) {
        size_t slot = (size_t)sequence->pages[t / 64] * 64 + t % 64;
        for (size_t i = 0; i < width; i++)
            latent[i] = bt_element_load(p->kv.data, p->kv.dtype, slot * width + i);
        for (size_t i = 0; i < nope; i++)
            project(p, latent, head * (nope + v) + i, &e->key[t * dim + i],
                    &e->key_size[t * dim + i]);
        for (size_t i = 0; i < dim - nope; i++) {
            e->key[t * dim + nope + i] = latent[lora + i];
            e->key_size[t * dim + nope + i] = fabs(latent[lora + i]);
        }
        for (size_t i = 0; i < v; i++)
            project(p, latent, head * (nope + v) + nope + i, &e->value[t * v + i],
                    &e->value_size[t * v + i]);
    }
    free(latent);
}

/*
 * The whole row of the softmax matrix, then its product with the values.
 *
 * Bound. A score is off by at most eps * c1 * S, S being the sum of the magnitudes of its terms in
 * kv_b, latent and q times the scale, c1 the roundings on the longest way: lora/16 + 5 of the
 * projection, dim/16 + 5 (or lora + rope, and nope in sequence, in the absorbed form) of the
 * product, 1 of the scale. That moves each weight by the factor e^(2 * that) at most; the
 * exponential itself and the difference before it add 4 + 2 max|score|. The values sum up to one
 * rounding per token and page, and their own projection.
 */
static void naive_row(const struct problem *p, const float *q, size_t seen,
                      const struct expanded *e, double *want, double *bound)
{
    size_t dim = p->shape.qk_nope_head_dim + p->shape.qk_rope_head_dim, v = p->shape.v_head_dim;
    double *score = malloc(seen * sizeof(*score));
    double max = -INFINITY, sum = 0, size_max = 0;
    for (size_t t = 0; t < seen; t++) {
        double size = 0;
        score[t] = 0;
        for (size_t i = 0; i < dim; i++) {
            score[t] += q[i] * e->key[t * dim + i];
            size += fabs(q[i]) * e->key_size[t * dim + i];
        }
        score[t] *= p->shape.softmax_scale;
        size_max = fmax(size_max, size * p->shape.softmax_scale);
        max = fmax(max, score[t]);
    }
    for (size_t t = 0; t < seen; t++)
        sum += score[t] = exp(score[t] - max);
    double roundings = (p->shape.kv_lora_rank + dim) / 16.0 + p->shape.qk_nope_head_dim + 11;
    double factor = 2 * roundings * size_max + 4 + 2 * size_max + 64 + seen / 32.0 + roundings;
    for (size_t i = 0; i < v; i++) {
        double out = 0, size = 0;
        for (size_t t = 0; t < seen; t++) {
            out += score[t] / sum * e->value[t * v + i];
            size += score[t] / sum * e->value_size[t * v + i];
        }
        want[i] = out;
        bound[i] = size * factor;
    }
    free(score);
}

static void naive(const struct problem *p)
{
    size_t heads = p->shape.heads, v = p->shape.v_head_dim;
    size_t dim = p->shape.qk_nope_head_dim + p->shape.qk_rope_head_dim;
    struct expanded e = {malloc(CHECK_MAX_POSITION * dim * 8), malloc(CHECK_MAX_POSITION * dim * 8),
                         malloc(CHECK_MAX_POSITION * v * 8), malloc(CHECK_MAX_POSITION * v * 8)};
    for (uint32_t s = 0; s < p->batch.count; s++) {
        const struct bt_sequence_rows *sequence = &p->batch.sequences[s];
        for (size_t h = 0; h < heads; h++) {
            expand(p, sequence, h, sequence->start + sequence->row_count, &e);
            for (size_t i = 0; i < sequence->row_count; i++) {
                size_t at = (sequence->first_row + i) * heads + h;
                naive_row(p, p->q + at * dim, sequence->start + i + 1, &e, p->want + at * v,
                          p->bound + at * v);
            }
        }
    }
    free(e.key);
    free(e.key_size);
    free(e.value);
    free(e.value_size);
}

/* Random KV for every token of the sequences; all else in the pool stays NaN. */
static void fill_pool(struct check *check, struct problem *p, float scale)
{
    size_t width = bt_kv_width(&p->kv);
    for (uint32_t s = 0; s < p->batch.count; s++) {
        const struct bt_sequence_rows *sequence = &p->batch.sequences[s];
        uint32_t tokens = sequence->row_count ? sequence->start + sequence->row_count : 0;
        for (uint32_t t = 0; t < tokens; t++) {
            size_t slot = (size_t)sequence->pages[t / 64] * 64 + t % 64;
            for (size_t i = 0; i < width; i++)
                bt_element_store(p->kv.data, p->kv.dtype, slot * width + i,
                                 check_uniform(check) * scale);
        }
    }
}

static void run(const struct problem *p, attention op, float *out)
{
    op(p->stream, p->q, &p->shape, &p->kv_b, p->batch.sequences, p->batch.count, &p->kv, out);
}

/* Each sequence in chunks of `chunk` rows, or of random sizes (0). */
static void run_chunked(struct check *check, const struct problem *p, attention op, uint32_t chunk,
                        float *out)
{
    size_t heads = p->shape.heads, v = p->shape.v_head_dim;
    size_t dim = p->shape.qk_nope_head_dim + p->shape.qk_rope_head_dim;
    for (uint32_t s = 0; s < p->batch.count; s++) {
        const struct bt_sequence_rows *whole = &p->batch.sequences[s];
        for (uint32_t at = 0, rows; at < whole->row_count; at += rows) {
            rows = chunk ? chunk : 1 + check_below(check, whole->row_count - at);
            struct bt_sequence_rows part = {whole->pages, whole->start + at, 0, rows};
            size_t row = whole->first_row + at;
            op(p->stream, p->q + row * heads * dim, &p->shape, &p->kv_b, &part, 1, &p->kv,
               out + row * heads * v);
        }
    }
}

/* The same sequences in other pages. */
static void run_moved(struct check *check, const struct problem *p, attention op, float *out)
{
    struct problem moved = *p;
    size_t page_bytes = check_pool_bytes(&p->batch, &p->kv) / p->batch.page_count;
    uint32_t *pages = check_buffer(check, p->batch.page_count * sizeof(*pages));
    moved.kv.data = check_buffer(check, page_bytes * p->batch.page_count);
    uint32_t shift = 1 + check_below(check, p->batch.page_count - 1), used = 0;
    for (uint32_t s = 0; s < p->batch.count; s++) {
        const struct bt_sequence_rows *sequence = &p->batch.sequences[s];
        uint32_t count = (sequence->start + sequence->row_count + 63) / 64;
        moved.batch.sequences[s].pages = pages + used;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t to = pages[used++] = (sequence->pages[i] + shift) % p->batch.page_count;
            memcpy((char *)moved.kv.data + to * page_bytes,
                   (char *)p->kv.data + sequence->pages[i] * page_bytes, page_bytes);
        }
    }
    run(&moved, op, out);
}

static void check_shape(struct check *check, bool decode, const struct check_layout *layout,
                        struct bt_mla_shape shape, enum bt_dtype weights, enum bt_dtype pool,
                        float scale)
{
    const struct bt_kernels *k = check->kernels;
    struct problem p = {.shape = shape};
    attention op = decode ? k->mla_decode : k->mla_prefill;
    check_begin(check, "%s heads %u nope %u rope %u v %u lora %u dtype %u pool %u scale %g",
                layout->name, shape.heads, shape.qk_nope_head_dim, shape.qk_rope_head_dim,
                shape.v_head_dim, shape.kv_lora_rank, weights, pool, (double)scale);
    check_batch_init(check, layout, &p.batch);
    uint32_t per_head = shape.qk_nope_head_dim + shape.v_head_dim;
    size_t dim = shape.qk_nope_head_dim + shape.qk_rope_head_dim;
    struct bt_stream_limits limits = {.max_rows = p.batch.rows, .mla = shape};
    p.out_count = (size_t)p.batch.rows * shape.heads * shape.v_head_dim;
    p.stream = check_stream(&limits);
    p.kv_b = check_matrix(check, shape.heads * per_head, shape.kv_lora_rank, weights, 1);
    p.kv = check_pool(check, &p.batch, pool, shape.kv_lora_rank, shape.qk_rope_head_dim);
    p.q = check_floats_random(check, p.batch.rows * shape.heads * dim, CHECK_NORMAL);
    p.want = check_buffer(check, p.out_count * sizeof(double));
    p.bound = check_buffer(check, p.out_count * sizeof(double));
    fill_pool(check, &p, scale);
    float *out = check_floats(check, p.out_count), *other = check_floats(check, p.out_count);

    run(&p, op, out);
    naive(&p);
    if (check->oracle) {
        run(&p, decode ? check->oracle->mla_decode : check->oracle->mla_prefill, other);
        for (size_t i = 0; i < p.out_count; i++)
            p.want[i] = other[i];
    }
    check_close(check, "out", out, p.want, p.bound, p.out_count, CHECK_EPS, 0x1p-140);
    run(&p, decode ? k->mla_prefill : k->mla_decode, other);
    check_close(check, "the other form", other, p.want, p.bound, p.out_count, CHECK_EPS, 0x1p-140);
    run_chunked(check, &p, op, 1, other);
    check_bits(check, "row alone", other, out, p.out_count, sizeof(float));
    run_chunked(check, &p, op, 0, other);
    check_bits(check, "chunked", other, out, p.out_count, sizeof(float));
    run_moved(check, &p, op, other);
    check_bits(check, "other pages", other, out, p.out_count, sizeof(float));
    if (check->twin) {
        run(&p, decode ? check->twin->mla_decode : check->twin->mla_prefill, other);
        check_bits(check, check->twin->name, other, out, p.out_count, sizeof(float));
    }
    bt_stream_destroy(p.stream);
    check_end(check);
}

static void check_mla(struct check *check, bool decode)
{
    static const struct bt_mla_shape shapes[] = {
        {1, 8, 4, 5, 12, 0.3f}, {3, 32, 16, 32, 64, 0.15f}, {16, 19, 6, 17, 33, 0.2f}};
    static const struct bt_mla_shape many_heads = {128, 16, 8, 16, 32, 0.25f};
    for (unsigned i = 0; i < check_layout_count; i++) {
        for (unsigned j = 0; j < 3; j++) {
            if (j == 2 && check_layouts[i].sequences[0].rows > 65)
                continue; /* ref takes long */
            check_shape(check, decode, &check_layouts[i], shapes[j], (enum bt_dtype)((i + j) % 3),
                        (i + j) % 2 ? BT_BF16 : BT_F32, 1);
        }
    }
    check_shape(check, decode, &check_layouts[8], many_heads, BT_BF16, BT_BF16, 1);
    /* sharp: one key takes all; flat: all weigh the same */
    check_shape(check, decode, &check_layouts[7], shapes[0], BT_F32, BT_F32, 100);
    check_shape(check, decode, &check_layouts[7], shapes[1], BT_BF16, BT_BF16, 1e-20f);
    check_shape(check, decode, &check_layouts[7], shapes[0], BT_BF16, BT_F32, 1e-40f);
    check_shape(check, decode, &check_layouts[7], shapes[1], BT_F16, BT_F32, 0);
}

void check_mla_prefill(struct check *check)
{
    check_mla(check, false);
}

void check_mla_decode(struct check *check)
{
    check_mla(check, true);
}
