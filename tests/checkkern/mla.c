/* mla_prefill, mla_decode */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/kernels/weight.h"
#include "tests/checkkern/sequences.h"

enum form { MULTI_HEAD, ABSORBED, FORMS };

/* One shape of attention with its data. */
struct problem {
    struct bt_mla_shape shape;
    struct check_batch batch;
    struct bt_matrix rows, kv_b; /* kv_b in ROWS, and as the operation gets it */
    struct bt_kv_layer kv;
    const float *q;
    size_t out_count;
    struct bt_stream *stream;
    double *want, *bound[FORMS];
};

typedef void (*attention)(struct bt_stream *stream, const float *q,
                          const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                          const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                          const struct bt_kv_layer *kv, float *out);

/* Half a unit in the last place of 1 in bf16. */
#define BF16_EPS 0x1p-8

/* What attention multiplies, by the definition: in tile arithmetic kv_b, latents, keys and queries
 * rounded to bf16. For sums also the sums of the terms' magnitudes. */
struct expanded {
    double *weights;            /* [nope + v][lora], of one head */
    double *latent;             /* [token][lora] */
    double *key, *key_size;     /* [token][nope + rope] */
    double *value, *value_size; /* [token][v] */
    double *q;                  /* [nope + rope] */
    double *q_lat, *o_lat;      /* [lora] */
    double *weight;             /* [token], of the softmax */
};

CHECK_FORMULA static bool in_tiles(const struct problem *p)
{
    return p->kv_b.layout == BT_LAYOUT_TILES;
}

CHECK_FORMULA static double maybe_bf16(const struct problem *p, float value)
{
    double rounded;
    if (!in_tiles(p))
        return value;
    check_tile_input(&value, 1, BT_BF16, &rounded);
    return rounded;
}

static double *doubles(size_t count)
{
    double *x = malloc((count + 1) * sizeof(*x));
    BT_ASSERT(x);
    return x;
}

static void expanded_init(const struct problem *p, size_t tokens, struct expanded *e)
{
    size_t v = p->shape.v_head_dim, lora = p->shape.kv_lora_rank;
    size_t dim = p->shape.qk_nope_head_dim + p->shape.qk_rope_head_dim;
    e->weights = doubles((p->shape.qk_nope_head_dim + v) * lora);
    e->latent = doubles(tokens * lora);
    e->key = doubles(tokens * dim);
    e->key_size = doubles(tokens * dim);
    e->value = doubles(tokens * v);
    e->value_size = doubles(tokens * v);
    e->q = doubles(dim);
    e->q_lat = doubles(lora);
    e->o_lat = doubles(lora);
    e->weight = doubles(tokens);
}

static void expanded_finish(struct expanded *e)
{
    double *all[] = {e->weights,    e->latent, e->key,   e->key_size, e->value,
                     e->value_size, e->q,      e->q_lat, e->o_lat,    e->weight};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        free(all[i]);
}

CHECK_FORMULA static void project(const struct problem *p, const double *latent,
                                  const double *weights, double *out, double *size)
{
    *out = *size = 0;
    for (size_t l = 0; l < p->shape.kv_lora_rank; l++) {
        double term = latent[l] * weights[l];
        *out += term;
        *size += fabs(term);
    }
}

/* Keys and values of one head. */
CHECK_FORMULA static void expand(const struct problem *p, const struct bt_sequence_rows *sequence,
                                 size_t head, size_t tokens, const struct expanded *e)
{
    size_t nope = p->shape.qk_nope_head_dim, v = p->shape.v_head_dim, lora = p->shape.kv_lora_rank;
    size_t dim = nope + p->shape.qk_rope_head_dim;
    for (size_t i = 0; i < (nope + v) * lora; i++) {
        size_t row = head * (nope + v) + i / lora;
        e->weights[i] = in_tiles(p) ? check_tile_at(&p->rows, row, i % lora)
                                    : check_matrix_at(&p->rows, row, i % lora);
    }
    for (size_t t = 0; t < tokens; t++) {
        const void *token = bt_kv_token(&p->kv, sequence->pages, (uint32_t)t);
        double *latent = e->latent + t * lora;
        for (size_t i = 0; i < lora; i++)
            latent[i] = maybe_bf16(p, bt_kv_at(&p->kv, token, i));
        for (size_t i = 0; i < nope; i++)
            project(p, latent, e->weights + i * lora, &e->key[t * dim + i],
                    &e->key_size[t * dim + i]);
        for (size_t i = 0; i < dim - nope; i++) {
            e->key[t * dim + nope + i] = maybe_bf16(p, bt_kv_at(&p->kv, token, lora + i));
            e->key_size[t * dim + nope + i] = fabs(e->key[t * dim + nope + i]);
        }
        for (size_t i = 0; i < v; i++)
            project(p, latent, e->weights + (nope + i) * lora, &e->value[t * v + i],
                    &e->value_size[t * v + i]);
    }
}

/*
 * The most that the rounding to bf16 of keys, or of queries in the latent space, moves a score of
 * the first `seen` tokens.
 */
CHECK_FORMULA static double score_error(const struct problem *p, size_t seen,
                                        const struct expanded *e, enum form form)
{
    size_t nope = p->shape.qk_nope_head_dim, lora = p->shape.kv_lora_rank;
    size_t dim = nope + p->shape.qk_rope_head_dim;
    double most = 0;
    for (size_t l = 0; l < lora; l++) {
        e->q_lat[l] = 0;
        for (size_t i = 0; i < nope; i++)
            e->q_lat[l] += e->q[i] * e->weights[i * lora + l];
    }
    for (size_t t = 0; t < seen; t++) {
        double sum = 0;
        for (size_t i = 0; form == MULTI_HEAD && i < nope; i++)
            sum += fabs(e->q[i] * e->key[t * dim + i]);
        for (size_t l = 0; form == ABSORBED && l < lora; l++)
            sum += fabs(e->q_lat[l] * e->latent[t * lora + l]);
        most = fmax(most, sum);
    }
    return BF16_EPS * most * p->shape.softmax_scale;
}

/*
 * What rounding to bf16 adds to the bound of output i: scores that are off by d at most move each
 * weight by a factor of e^(2 d) at most; the weights themselves are rounded once, and so are the
 * values, or the result in the latent space.
 */
CHECK_FORMULA static double tile_bound(const struct problem *p, size_t seen,
                                       const struct expanded *e, size_t i, double d, enum form form)
{
    size_t v = p->shape.v_head_dim, lora = p->shape.kv_lora_rank;
    const double *weights = e->weights + (p->shape.qk_nope_head_dim + i) * lora;
    double size = 0, result = 0;
    for (size_t t = 0; t < seen; t++)
        size += e->weight[t] * fabs(e->value[t * v + i]);
    for (size_t l = 0; l < lora; l++)
        result += fabs(e->o_lat[l] * weights[l]);
    return (expm1(2 * d) + BF16_EPS) * size + BF16_EPS * (form == ABSORBED ? result : size);
}

/*
 * The whole row of the softmax matrix, then its product with the values.
 *
 * Bound. A score is off by at most eps * c1 * S, S being the sum of the magnitudes of its terms in
 * kv_b, latent and q times the scale, c1 the roundings on the longest way: lora/16 + 5 of the
 * projection, dim/16 + 5 (or lora + rope, and nope in sequence, in the absorbed form) of the
 * product, 1 of the scale. That moves each weight by the factor e^(2 * that) at most; the
 * exponential itself and the difference before it add 4 + 2 max|score| (tile arithmetic: 3e-6 of
 * the exponential, sums in any order). The values sum up to one rounding per token and page, and
 * their own projection.
 */
CHECK_FORMULA static void naive_row(const struct problem *p, size_t seen, const struct expanded *e,
                                    double *want, double *const bound[FORMS])
{
    size_t dim = p->shape.qk_nope_head_dim + p->shape.qk_rope_head_dim, v = p->shape.v_head_dim;
    size_t lora = p->shape.kv_lora_rank;
    double max = -INFINITY, sum = 0, size_max = 0, d[FORMS] = {0};
    for (size_t t = 0; t < seen; t++) {
        double size = 0, score = 0;
        for (size_t i = 0; i < dim; i++) {
            score += e->q[i] * e->key[t * dim + i];
            size += fabs(e->q[i]) * e->key_size[t * dim + i];
        }
        e->weight[t] = score * p->shape.softmax_scale;
        size_max = fmax(size_max, size * p->shape.softmax_scale);
        max = fmax(max, e->weight[t]);
    }
    for (size_t t = 0; t < seen; t++)
        sum += e->weight[t] = exp(e->weight[t] - max);
    for (size_t l = 0; l < lora; l++)
        e->o_lat[l] = 0;
    for (size_t t = 0; t < seen; t++) {
        e->weight[t] /= sum;
        for (size_t l = 0; in_tiles(p) && l < lora; l++)
            e->o_lat[l] += e->weight[t] * e->latent[t * lora + l];
    }
    for (enum form form = 0; in_tiles(p) && form < FORMS; form++)
        d[form] = score_error(p, seen, e, form);
    double roundings = (lora + dim) / 16.0 + p->shape.qk_nope_head_dim + 11;
    if (in_tiles(p))
        roundings += lora + dim + seen + 100;
    double factor = 2 * roundings * size_max + 4 + 2 * size_max + 64 + seen / 32.0 + roundings;
    for (size_t i = 0; i < v; i++) {
        double out = 0, size = 0;
        for (size_t t = 0; t < seen; t++) {
            out += e->weight[t] * e->value[t * v + i];
            size += e->weight[t] * e->value_size[t * v + i];
        }
        want[i] = out;
        for (enum form form = 0; form < FORMS; form++)
            bound[form][i] = CHECK_EPS * size * factor +
                             (in_tiles(p) ? tile_bound(p, seen, e, i, d[form], form) : 0);
    }
}

static void naive(const struct problem *p)
{
    size_t heads = p->shape.heads, v = p->shape.v_head_dim, most = 0;
    size_t dim = p->shape.qk_nope_head_dim + p->shape.qk_rope_head_dim;
    struct expanded e;
    for (uint32_t s = 0; s < p->batch.count; s++) {
        size_t tokens = p->batch.sequences[s].start + p->batch.sequences[s].row_count;
        most = tokens > most ? tokens : most;
    }
    expanded_init(p, most, &e);
    for (uint32_t s = 0; s < p->batch.count; s++) {
        const struct bt_sequence_rows *sequence = &p->batch.sequences[s];
        for (size_t h = 0; sequence->row_count && h < heads; h++) {
            expand(p, sequence, h, sequence->start + sequence->row_count, &e);
            for (size_t i = 0; i < sequence->row_count; i++) {
                size_t at = (sequence->first_row + i) * heads + h;
                double *const bound[FORMS] = {p->bound[0] + at * v, p->bound[1] + at * v};
                for (size_t j = 0; j < dim; j++)
                    e.q[j] = maybe_bf16(p, p->q[at * dim + j]);
                naive_row(p, sequence->start + i + 1, &e, p->want + at * v, bound);
            }
        }
    }
    expanded_finish(&e);
}

/* Random elements of size `scale`; e4m3 of any bits but NaN. */
static void fill_token(struct check *check, const struct bt_kv_layer *kv, char *token, float scale)
{
    size_t lora = kv->kv_lora_rank, rope = kv->qk_rope_head_dim;
    char *key = token + bt_kv_rope_offset(kv);
    for (size_t i = 0; kv->dtype != BT_F8_E4M3 && i < lora; i++)
        bt_element_store(token, kv->dtype, i, check_uniform(check) * scale);
    for (size_t i = 0; kv->dtype == BT_F8_E4M3 && i < lora; i++)
        token[i] = (char)(check_below(check, 127) | check_below(check, 2) << 7);
    for (size_t i = 0; kv->dtype == BT_F8_E4M3 && i < bt_kv_scale_count(kv); i++) {
        float of_block = (check_uniform(check) * 0.4f + 0.6f) * scale / 448;
        memcpy(token + lora + i * sizeof(of_block), &of_block, sizeof(of_block));
    }
    for (size_t i = 0; i < rope; i++) {
        float value = check_uniform(check) * scale;
        uint16_t bits = bt_f32_to_bf16(value);
        if (kv->dtype == BT_F32)
            memcpy(key + i * sizeof(value), &value, sizeof(value));
        else
            memcpy(key + i * sizeof(bits), &bits, sizeof(bits));
    }
}

/* Random KV for every token of the sequences; all else in the pool stays NaN. */
static void fill_pool(struct check *check, struct problem *p, float scale)
{
    for (uint32_t s = 0; s < p->batch.count; s++) {
        const struct bt_sequence_rows *sequence = &p->batch.sequences[s];
        uint32_t tokens = sequence->row_count ? sequence->start + sequence->row_count : 0;
        for (uint32_t t = 0; t < tokens; t++)
            fill_token(check, &p->kv, bt_kv_token(&p->kv, sequence->pages, t), scale);
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
            uint32_t left = whole->row_count - at;
            rows = chunk ? chunk : 1 + check_below(check, left);
            rows = rows < left ? rows : left;
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

/* What a shape of attention is checked with. */
struct data {
    enum bt_layout layout;
    enum bt_dtype weights, pool;
    float scale;
};

static void make_problem(struct check *check, const struct check_layout *layout,
                         struct bt_mla_shape shape, struct data data, struct problem *p)
{
    uint32_t per_head = shape.qk_nope_head_dim + shape.v_head_dim;
    size_t dim = shape.qk_nope_head_dim + shape.qk_rope_head_dim;
    *p = (struct problem){.shape = shape};
    check_batch_init(check, layout, &p->batch);
    p->out_count = (size_t)p->batch.rows * shape.heads * shape.v_head_dim;
    p->rows = check_matrix(check, shape.heads * per_head, shape.kv_lora_rank, data.weights, 1);
    p->kv_b = data.layout == BT_LAYOUT_TILES ? check_packed(check, &p->rows, BT_USE_KV_B, &p->shape)
                                             : p->rows;
    p->kv = check_pool(check, &p->batch, data.pool, shape.kv_lora_rank, shape.qk_rope_head_dim);
    p->q = check_floats_random(check, p->batch.rows * shape.heads * dim, CHECK_NORMAL);
    p->want = check_buffer(check, p->out_count * sizeof(double));
    for (enum form form = 0; form < FORMS; form++)
        p->bound[form] = check_buffer(check, p->out_count * sizeof(double));
    fill_pool(check, p, data.scale);
}

static attention op_of(const struct bt_kernels *kernels, enum form form)
{
    return form == ABSORBED ? kernels->mla_decode : kernels->mla_prefill;
}

/* The sums of tile arithmetic take denormals as 0. */
static double floor_of(const struct problem *p)
{
    return in_tiles(p) ? 0x1p-100 : 0x1p-140;
}

/*
 * Roundings to bf16 are random, and many are summed up: together they are far below the bound.
 * Not where one token has all the weight, as then they are few.
 */
static void check_spread(struct check *check, const struct problem *p, const float *out,
                         const double *bound)
{
    double error_square = 0, bound_square = 0;
    for (size_t i = 0; i < p->out_count; i++) {
        error_square += (out[i] - p->want[i]) * (out[i] - p->want[i]);
        bound_square += bound[i] * bound[i];
    }
    if (error_square > bound_square / 9)
        check_fail(check, "normalised error %.3g of the bound, expected a third at most",
                   sqrt(error_square / bound_square));
}

/* Bits that must not depend on anything but the row. */
static void check_alone(struct check *check, const struct problem *p, attention op, float *other,
                        const float *out)
{
    uint32_t few = check_on_grid(check) && p->batch.rows > 25 ? 23 : 7;
    run_chunked(check, p, op, check->is_emulated && p->batch.rows > 9 ? few : 1, other);
    check_bits(check, "row alone", other, out, p->out_count, sizeof(float));
    run_chunked(check, p, op, 0, other);
    check_bits(check, "chunked", other, out, p->out_count, sizeof(float));
    if (!check_on_grid(check) || p->batch.rows > 64) {
        run_chunked(check, p, op, 64, other);
        check_bits(check, "chunks of 64", other, out, p->out_count, sizeof(float));
    }
    run_moved(check, p, op, other);
    check_bits(check, "other pages", other, out, p->out_count, sizeof(float));
}

static void check_shape(struct check *check, enum form form, const struct check_layout *layout,
                        struct bt_mla_shape shape, struct data data)
{
    struct problem p, on_team;
    attention op = op_of(check->kernels, form);
    check_begin(check, "%s heads %u nope %u rope %u v %u lora %u dtype %u%s pool %u scale %g",
                layout->name, shape.heads, shape.qk_nope_head_dim, shape.qk_rope_head_dim,
                shape.v_head_dim, shape.kv_lora_rank, data.weights,
                data.layout == BT_LAYOUT_TILES ? " in tiles" : "", data.pool, (double)data.scale);
    make_problem(check, layout, shape, data, &p);
    struct bt_stream_limits limits = {.max_rows = p.batch.rows, .mla = shape};
    p.stream = check_stream(&limits);
    on_team = p;
    on_team.stream = check_stream_team(check, &limits);
    float *out = check_floats(check, p.out_count), *other = check_floats(check, p.out_count);

    run(&p, op, out);
    naive(&p);
    if (check->oracle && !in_tiles(&p)) {
        run(&p, op_of(check->oracle, form), other);
        for (size_t i = 0; i < p.out_count; i++)
            p.want[i] = other[i];
    }
    check_close(check, "out", out, p.want, p.bound[form], p.out_count, 1, floor_of(&p));
    if (in_tiles(&p) && data.scale == 1 && p.out_count > 500)
        check_spread(check, &p, out, p.bound[form]);
    if (!check_on_grid(check) || p.batch.rows < 20) {
        run(&p, op_of(check->kernels, !form), other);
        check_close(check, "the other form", other, p.want, p.bound[!form], p.out_count, 1,
                    floor_of(&p));
    }
    check_alone(check, &p, op, other, out);
    run(&on_team, op, other);
    check_bits(check, "two threads", other, out, p.out_count, sizeof(float));
    if (check->twin) {
        run(&p, op_of(check->twin, form), other);
        check_bits(check, check->twin->name, other, out, p.out_count, sizeof(float));
    }
    bt_stream_destroy(p.stream);
    bt_stream_destroy(on_team.stream);
    check_end(check);
}

static struct data rows_of(enum bt_dtype weights, enum bt_dtype pool, float scale)
{
    return (struct data){BT_LAYOUT_ROWS, weights, pool, scale};
}

static struct data tiles_of(enum bt_dtype weights, enum bt_dtype pool, float scale)
{
    return (struct data){BT_LAYOUT_TILES, weights, pool, scale};
}

static const struct bt_mla_shape shapes[] = {
    {1, 8, 4, 5, 12, 0.3f}, {3, 32, 16, 32, 64, 0.15f}, {16, 19, 6, 17, 33, 0.2f}};
static const struct bt_mla_shape many_heads = {128, 16, 8, 16, 32, 0.25f};

static void check_rows(struct check *check, enum form form)
{
    static const enum bt_dtype pools[] = {BT_BF16, BT_F32, BT_F8_E4M3};
    for (unsigned i = 0; i < check_layout_count; i++) {
        for (unsigned j = 0; j < 3; j++) {
            if (j == 2 && check_layouts[i].sequences[0].rows > 65)
                continue; /* ref takes long */
            if (check_on_grid(check) && (i + j) % 4 != 1)
                continue;
            check_shape(check, form, &check_layouts[i], shapes[j],
                        rows_of((enum bt_dtype)((i + j) % 3), pools[(i + 2 * j) % 3], 1));
        }
    }
    check_shape(check, form, &check_layouts[8], many_heads, rows_of(BT_BF16, BT_BF16, 1));
    /* sharp: one key takes all; flat: all weigh the same */
    check_shape(check, form, &check_layouts[7], shapes[0], rows_of(BT_F32, BT_F32, 100));
    check_shape(check, form, &check_layouts[7], shapes[1], rows_of(BT_BF16, BT_BF16, 1e-20f));
    check_shape(check, form, &check_layouts[7], shapes[0], rows_of(BT_BF16, BT_F32, 1e-40f));
    check_shape(check, form, &check_layouts[7], shapes[1], rows_of(BT_F16, BT_F32, 0));
}

/* Positions around the blocks, splits, spans and reaches of tile arithmetic. */
static const struct check_layout tile_layouts[] = {
    {"block", 3, {{250, 9}, {255, 1}, {256, 1}}},
    {"blocks", 1, {{0, 330}}},
    {"split", 4, {{1020, 9}, {1023, 1}, {1024, 1}, {2047, 2}}},
    {"span", 1, {{990, 70}}},
    {"reach", 1, {{4090, 30}}},
    {"batch", 4, {{0, 33}, {700, 12}, {1500, 3}, {40, 30}}},
};
#define TILE_LAYOUTS (sizeof(tile_layouts) / sizeof(tile_layouts[0]))

static void check_tiles(struct check *check, enum form form)
{
    static const enum bt_dtype pools[] = {BT_BF16, BT_F32, BT_F8_E4M3};
    /* the tiny model, odd ones, one of whole tiles */
    static const struct bt_mla_shape more[] = {{8, 32, 16, 32, 64, 0.15f},
                                               {3, 24, 8, 40, 48, 0.2f},
                                               {1, 33, 2, 7, 130, 0.1f},
                                               {2, 32, 32, 16, 64, 0.15f},
                                               {20, 16, 32, 16, 32, 0.2f}};
    static const struct bt_mla_shape lite = {16, 128, 64, 128, 512, 0.072f};
    static const struct bt_mla_shape full = {128, 128, 64, 128, 512, 0.072f};
    bool slow = check->is_emulated || !check->oracle;
    unsigned step = slow ? 3 : 1;
    for (unsigned i = 0; i < check_layout_count; i += step) {
        for (unsigned j = check_on_grid(check) ? i % 2 : 0; j < 3;
             j += check_on_grid(check) ? 2 : 1)
            check_shape(check, form, &check_layouts[i], shapes[j],
                        tiles_of((enum bt_dtype)((i + j) % 3), pools[(i + 2 * j) % 3], 1));
    }
    for (unsigned i = 0; i < TILE_LAYOUTS; i++) {
        for (unsigned j = i % step; j < 5; j += step) {
            if (j != 2 && j != 3 && tile_layouts[i].sequences[0].start > 4000)
                continue; /* takes long */
            /* needles reach as far; steps of decode have few rows */
            if (check_on_grid(check) &&
                (j >= step || i == 4 || (form == ABSORBED && (i == 1 || i == 3))))
                continue;
            check_shape(check, form, &tile_layouts[i], more[j],
                        tiles_of(BT_BF16, pools[(i + j) % 3], 1));
        }
    }
    /* sharp enough that few of many tokens count, so that each part's share shows */
    for (unsigned i = 2; i < (check_on_grid(check) ? 3 : 5); i++)
        check_shape(check, form, &tile_layouts[i], more[2 + i % 2], tiles_of(BT_BF16, BT_F32, 3));
    for (unsigned i = 0; i < 3 && !slow; i++)
        check_shape(check, form, &check_layouts[1 + 2 * i], lite, tiles_of(BT_BF16, pools[i], 1));
    if (!slow)
        check_shape(check, form, &check_layouts[1], full, tiles_of(BT_BF16, BT_BF16, 1));
    check_shape(check, form, &check_layouts[8], many_heads, tiles_of(BT_BF16, BT_F8_E4M3, 1));
    check_shape(check, form, &check_layouts[7], shapes[0], tiles_of(BT_F32, BT_F32, 100));
    check_shape(check, form, &check_layouts[7], shapes[1], tiles_of(BT_BF16, BT_BF16, 1e5f));
    check_shape(check, form, &check_layouts[7], shapes[1], tiles_of(BT_BF16, BT_BF16, 1e-20f));
    check_shape(check, form, &check_layouts[7], more[3], tiles_of(BT_BF16, BT_BF16, 1e-40f));
    check_shape(check, form, &check_layouts[7], shapes[1], tiles_of(BT_F16, BT_F32, 0));
}

static void check_mla(struct check *check, enum form form)
{
    check_rows(check, form);
    check_tiles(check, form);
}

void check_mla_prefill(struct check *check)
{
    check_mla(check, MULTI_HEAD);
}

void check_mla_decode(struct check *check)
{
    check_mla(check, ABSORBED);
}
