/*
 * mla_prefill and mla_decode over long sequences whose results are known without a reference.
 *
 * With random KV each of n tokens weighs about 1/n, and losing some of thousands hides below any
 * bound that allows for the rounding to bf16. Here a lost token, or one that is seen too early,
 * shows in an output that has little else in it. kv_b picks elements of the latent, so that keys
 * and values are what the pages hold, and what they hold is exact in each dtype.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/kernels/weight.h"
#include "tests/checkkern/sequences.h"

enum form { MULTI_HEAD, ABSORBED, FORMS };

struct field {
    struct bt_mla_shape shape;
    struct check_batch batch;
    struct bt_matrix kv_b;
    struct bt_kv_layer kv;
    float *q, *out;
    size_t head_dim;
    struct bt_stream *stream, *on_team;
};

static size_t pages_of(size_t tokens)
{
    return (tokens + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
}

/* Key row i of each head is element key_from + i of the latent, value row i element i. */
static struct bt_matrix picking_kv_b(struct check *check, const struct bt_mla_shape *shape,
                                     uint32_t key_from, enum bt_layout layout)
{
    size_t nope = shape->qk_nope_head_dim, v = shape->v_head_dim, lora = shape->kv_lora_rank;
    size_t rows = shape->heads * (nope + v);
    uint16_t *data = check_buffer(check, rows * lora * sizeof(*data));
    struct bt_matrix kv_b = {.data = data,
                             .rows = (uint32_t)rows,
                             .cols = (uint32_t)lora,
                             .dtype = BT_BF16,
                             .layout = BT_LAYOUT_ROWS};
    memset(data, 0, rows * lora * sizeof(*data));
    for (size_t i = 0; i < rows; i++) {
        size_t in_head = i % (nope + v);
        size_t from = in_head < nope ? key_from + in_head : in_head - nope;
        BT_ASSERT(from < lora);
        data[i * lora + from] = bt_f32_to_bf16(1);
    }
    return layout == BT_LAYOUT_ROWS ? kv_b : check_packed(check, &kv_b, BT_USE_KV_B, shape);
}

/* x [lora + rope], each of them an e4m3 and a bf16. */
static void store_token(const struct bt_kv_layer *kv, const float *x, char *token)
{
    size_t lora = kv->kv_lora_rank, rope = kv->qk_rope_head_dim;
    char *key = token + bt_kv_rope_offset(kv);
    const float one = 1;
    for (size_t i = 0; i < lora; i++) {
        if (kv->dtype == BT_F8_E4M3)
            token[i] = (char)bt_f32_to_f8_e4m3(x[i]);
        else
            bt_element_store(token, kv->dtype, i, x[i]);
    }
    for (size_t i = 0; kv->dtype == BT_F8_E4M3 && i < bt_kv_scale_count(kv); i++)
        memcpy(token + lora + i * sizeof(one), &one, sizeof(one));
    for (size_t i = 0; i < rope; i++) {
        uint16_t bits = bt_f32_to_bf16(x[lora + i]);
        if (kv->dtype == BT_F32)
            memcpy(key + i * sizeof(float), &x[lora + i], sizeof(float));
        else
            memcpy(key + i * sizeof(bits), &bits, sizeof(bits));
    }
}

typedef void (*token_fn)(const struct field *field, uint32_t position, float *x);

static void make_field(struct check *check, const struct check_layout *layout,
                       const struct bt_mla_shape *shape, uint32_t key_from, enum bt_layout weights,
                       enum bt_dtype pool, token_fn token, struct field *f)
{
    *f = (struct field){.shape = *shape};
    f->head_dim = (size_t)shape->qk_nope_head_dim + shape->qk_rope_head_dim;
    check_batch_init(check, layout, &f->batch);
    f->kv_b = picking_kv_b(check, shape, key_from, weights);
    f->kv = check_pool(check, &f->batch, pool, shape->kv_lora_rank, shape->qk_rope_head_dim);
    f->q = check_floats(check, f->batch.rows * shape->heads * f->head_dim);
    f->out = check_floats(check, (size_t)f->batch.rows * shape->heads * shape->v_head_dim);
    memset(f->q, 0, f->batch.rows * shape->heads * f->head_dim * sizeof(*f->q));
    float *x = check_floats(check, bt_kv_width(&f->kv));
    for (uint32_t s = 0; s < f->batch.count; s++) {
        const struct bt_sequence_rows *sequence = &f->batch.sequences[s];
        for (uint32_t t = 0; t < sequence->start + sequence->row_count; t++) {
            memset(x, 0, bt_kv_width(&f->kv) * sizeof(*x));
            token(f, t, x);
            store_token(&f->kv, x, bt_kv_token(&f->kv, sequence->pages, t));
        }
    }
    struct bt_stream_limits limits = {.max_rows = f->batch.rows, .mla = *shape};
    f->stream = check_stream(&limits);
    f->on_team = check_stream_team(check, &limits);
}

static void finish_field(struct check *check, struct field *f)
{
    bt_stream_destroy(f->stream);
    bt_stream_destroy(f->on_team);
    check_end(check);
}

static void run(struct check *check, const struct field *f, enum form form, bool on_team)
{
    (form == ABSORBED ? check->kernels->mla_decode : check->kernels->mla_prefill)(
        on_team ? f->on_team : f->stream, f->q, &f->shape, &f->kv_b, f->batch.sequences,
        f->batch.count, &f->kv, f->out);
}

/* ---- needles: one token has all the weight ---- */

/*
 * A token's key and value are a word of CODE_BITS values of 1 and -1, no two tokens of a sequence
 * the same. A query is the word of the token it looks for: half of it over the latent, half over
 * the rotated key, so neither alone finds the token.
 *
 * Tolerance. SHARPNESS is how much a differing bit takes from the score, so all other tokens
 * together weigh at most (1 + e^-SHARPNESS)^CODE_BITS - 1 < 2e-6 of the one, whose value they can
 * miss by 2 each. Scores are below 2^7, and a few roundings of them 2^-24 each: 1e-4 covers both.
 * Rounded to bf16 are the weight and the result, both 1 but for that: 2^-8 in all.
 */
#define CODE_BITS 16
#define SHARPNESS 16.0f
#define CODE_SIZE 16.0f /* of an element of a query; times softmax_scale half of SHARPNESS */

static float code_bit(uint32_t position, size_t bit)
{
    uint32_t word = position * 40503u & 0xffff; /* odd: no two of 2^16 the same */
    return word >> bit % CODE_BITS & 1 ? 1 : -1;
}

static void code_token(const struct field *f, uint32_t position, float *x)
{
    for (size_t i = 0; i < f->shape.kv_lora_rank; i++)
        x[i] = code_bit(position, i);
    for (size_t i = 0; i < f->shape.qk_rope_head_dim; i++)
        x[f->shape.kv_lora_rank + i] = code_bit(position, i);
}

/* Which token the next query looks for. */
struct walk {
    uint32_t
        step; /* 1: each; BT_PAGE_TOKENS: the first and the last of each page; 0: as it comes */
    uint32_t next;
};

/* A token that a row at `position` sees. */
static uint32_t next_needle(struct check *check, struct walk *walk, uint32_t position)
{
    uint32_t page = BT_PAGE_TOKENS, at = walk->next++;
    if (walk->step == BT_PAGE_TOKENS)
        at = at / 2 * page + (at % 2 ? page - 1 : 0);
    if (walk->step)
        return at < position ? at : position;
    switch (at % 4) {
    case 0:
        return position;
    case 1:
        return position / page * page;
    case 2:
        at = check_below(check, position + 1) / page * page;
        return at && check_below(check, 2) ? at - 1 : at;
    default:
        return check_below(check, position + 1);
    }
}

/* Fills q; needles [row][head]. */
static void look_for(struct check *check, const struct field *f, struct walk *walk,
                     uint32_t *needles)
{
    size_t heads = f->shape.heads, nope = f->shape.qk_nope_head_dim;
    for (uint32_t s = 0; s < f->batch.count; s++) {
        const struct bt_sequence_rows *sequence = &f->batch.sequences[s];
        for (size_t i = 0; i < sequence->row_count * heads; i++) {
            size_t at = sequence->first_row * heads + i;
            float *q = f->q + at * f->head_dim;
            needles[at] = next_needle(check, walk, sequence->start + (uint32_t)(i / heads));
            for (size_t bit = 0; bit < CODE_BITS / 2; bit++) {
                size_t other = bit + CODE_BITS / 2;
                q[bit] = CODE_SIZE * code_bit(needles[at], bit);
                q[nope + other] = CODE_SIZE * code_bit(needles[at], other);
            }
        }
    }
}

static void check_found(struct check *check, const struct field *f, const uint32_t *needles)
{
    size_t v = f->shape.v_head_dim, heads = f->shape.heads;
    double tolerance = f->kv_b.layout == BT_LAYOUT_TILES ? 1e-4 + 0x1p-8 : 1e-4;
    for (size_t i = 0; i < f->batch.rows * heads; i++) {
        for (size_t j = 0; j < v; j++) {
            double got = f->out[i * v + j], want = code_bit(needles[i], j);
            if (fabs(got - want) <= tolerance)
                continue;
            check_fail(check, "row %zu head %zu looks for token %u: value %zu is %g, expected %g",
                       i / heads, i % heads, needles[i], j, got, want);
            return;
        }
    }
}

static void check_needles(struct check *check, enum form form, const struct check_layout *layout,
                          struct bt_mla_shape shape, enum bt_layout weights, enum bt_dtype pool,
                          uint32_t step)
{
    struct field f;
    struct walk walk = {step, 0};
    shape.softmax_scale = SHARPNESS / CODE_SIZE / 2;
    check_begin(check, "needles %s %s heads %u lora %u%s pool %u step %u", layout->name,
                form == ABSORBED ? "absorbed" : "multi-head", shape.heads, shape.kv_lora_rank,
                weights == BT_LAYOUT_TILES ? " in tiles" : "", pool, step);
    make_field(check, layout, &shape, 0, weights, pool, code_token, &f);
    uint32_t *needles = check_buffer(check, f.batch.rows * shape.heads * sizeof(*needles));
    uint32_t tokens = layout->sequences[0].start + layout->sequences[0].rows;
    uint32_t wanted = step == 1 ? tokens : step ? 2 * (uint32_t)pages_of(tokens) : 1;
    unsigned failures = check->failures;
    for (unsigned pass = 0; walk.next < wanted && check->failures == failures; pass++) {
        look_for(check, &f, &walk, needles);
        run(check, &f, form, pass % 2);
        check_found(check, &f, needles);
    }
    finish_field(check, &f);
}

/* ---- shares: each page's weight alone in an output ---- */

/*
 * Value i of a token is 1 on page i, else 0, so output i is the share of page i: the weights of
 * those of its tokens that the row sees, by the weights of all. All tokens of a page have the same
 * score, a level of 0 … LEVELS - 1 times ln 4, half of it from the latent, half from the rotated
 * key. So weights are powers of two, which rounding to bf16 leaves, and a maximum changes
 * LEVELS - 1 times at most.
 *
 * Tolerance, of each share by itself, as nothing else is added to it: softmax_scale is rounded, and
 * so is a score, which is below 16 LEVELS / 9: 2^-19 of the weight. In f32 exponentials are off by
 * 2^-22, in tile arithmetic by 3e-6 (and then rounded back), and what was summed up is rescaled
 * LEVELS times at most; a sum has a rounding for every token in a lane, of which there are 16, and
 * for every page: 6e-5 and tokens * 2^-27 cover both sums. In tile arithmetic the result in the
 * latent space is rounded to bf16: 2^-8. One token of a page is 2^-6 of its share.
 */
#define LEVELS 9
#define LN_4   1.3862944f

static uint32_t level_of(uint32_t position)
{
    uint32_t page = position / BT_PAGE_TOKENS;
    return page < 3 ? page : (page * 2654435761u >> 16) % LEVELS;
}

static void share_token(const struct field *f, uint32_t position, float *x)
{
    x[position / BT_PAGE_TOKENS] = 1;
    x[f->shape.v_head_dim] = (float)level_of(position); /* what key row 0 is */
    x[f->shape.kv_lora_rank] = (float)level_of(position);
}

static void check_row_shares(struct check *check, const struct field *f, enum form form,
                             uint32_t seen, const float *out, double *weights)
{
    size_t pages = pages_of(seen), v = f->shape.v_head_dim;
    double sum = 0, tolerance = 6e-5 + seen * 0x1p-27;
    if (form == ABSORBED && f->kv_b.layout == BT_LAYOUT_TILES)
        tolerance += 0x1p-8;
    for (size_t i = 0; i < pages; i++) {
        size_t tokens = seen - i * BT_PAGE_TOKENS;
        tokens = tokens < BT_PAGE_TOKENS ? tokens : BT_PAGE_TOKENS;
        weights[i] = (double)tokens * exp2(2 * (double)level_of((uint32_t)i * BT_PAGE_TOKENS));
        sum += weights[i];
    }
    for (size_t i = 0; i < v; i++) {
        double want = i < pages ? weights[i] / sum : 0;
        if (fabs(out[i] - want) <= tolerance * want)
            continue;
        check_fail(check, "of %u tokens page %zu has the share %g, expected %g", seen, i,
                   (double)out[i], want);
        return;
    }
}

static void check_shares(struct check *check, enum form form, const struct check_layout *layout,
                         uint32_t heads, enum bt_layout weights, enum bt_dtype pool)
{
    struct field f;
    uint32_t most = 0;
    for (uint32_t s = 0; s < layout->count; s++) {
        uint32_t tokens = layout->sequences[s].start + layout->sequences[s].rows;
        most = tokens > most ? tokens : most;
    }
    uint32_t pages = (uint32_t)pages_of(most);
    /* whole tiles, so that pages of bf16 are an operand as they lie */
    struct bt_mla_shape shape = {heads, 1, 32, pages, (pages + 32) / 32 * 32, LN_4 / 2};
    check_begin(check, "shares %s %s heads %u%s pool %u", layout->name,
                form == ABSORBED ? "absorbed" : "multi-head", heads,
                weights == BT_LAYOUT_TILES ? " in tiles" : "", pool);
    make_field(check, layout, &shape, pages, weights, pool, share_token, &f);
    double *share = check_buffer(check, pages * sizeof(*share));
    for (size_t i = 0; i < f.batch.rows * heads; i++)
        f.q[i * f.head_dim] = f.q[i * f.head_dim + 1] = 1;
    for (unsigned on_team = 0; on_team < 2; on_team++) {
        run(check, &f, form, on_team);
        for (uint32_t s = 0; s < f.batch.count; s++) {
            const struct bt_sequence_rows *sequence = &f.batch.sequences[s];
            for (size_t i = 0; i < sequence->row_count * heads; i++)
                check_row_shares(check, &f, form, sequence->start + (uint32_t)(i / heads) + 1,
                                 f.out + (sequence->first_row * heads + i) * shape.v_head_dim,
                                 share);
        }
    }
    finish_field(check, &f);
}

/* ---- where ---- */

/* Around the blocks, splits, spans, reaches and groups of rows of all tables. */
static const struct check_layout edges = {
    "edges", 4, {{1020, 9}, {2045, 5}, {4090, 12}, {1150, 3}}};
static const struct check_layout last = {"last", 1, {{4222, 1}}};
static const struct check_layout eight = {"eight", 1, {{4215, 8}}};
static const struct check_layout chunk = {"chunk", 1, {{4050, 100}}};
static const struct check_layout whole = {"whole", 1, {{0, 2300}}};
static const struct check_layout late = {"late", 1, {{37, 4200}}};
static const struct check_layout far = {"far", 1, {{20006, 3}}};
static const struct check_layout farther = {"farther", 1, {{40001, 8}}};

static const struct bt_mla_shape few = {2, 16, 16, 16, 33, 0};
static const struct bt_mla_shape many = {16, 32, 32, 32, 64, 0};
static const struct bt_mla_shape lite = {16, 128, 64, 128, 512, 0};
static const struct bt_mla_shape full = {128, 128, 64, 128, 512, 0};

static void check_fast(struct check *check, enum form form, enum bt_layout weights,
                       enum bt_dtype pool)
{
    bool most = weights == BT_LAYOUT_TILES && pool == BT_BF16;
    check_needles(check, form, &edges, many, weights, pool, 0);
    check_needles(check, form, &eight, many, weights, pool, most ? 1 : BT_PAGE_TOKENS);
    check_needles(check, form, &far, few, weights, pool, 0);
    check_shares(check, form, &eight, 16, weights, pool);
    check_shares(check, form, form == ABSORBED ? &chunk : &whole, 1, weights, pool);
    check_shares(check, form, &far, 1, weights, pool);
    if (most && form == MULTI_HEAD) {
        check_needles(check, form, &whole, few, weights, pool, 0);
        check_shares(check, form, &late, 1, weights, pool);
    }
    if (!getenv("BATON_CHECKKERN_LONG"))
        return;
    check_needles(check, form, &late, few, weights, pool, 0);
    check_needles(check, form, &farther, many, weights, pool, BT_PAGE_TOKENS);
    check_shares(check, form, &farther, 16, weights, pool);
}

void check_mla_needle(struct check *check)
{
    static const enum bt_dtype pools[] = {BT_BF16, BT_F32, BT_F8_E4M3};
    bool slow = check->is_emulated || !check->oracle;
    for (unsigned i = 0; i < 3 * 2 * FORMS; i++) {
        enum form form = i % FORMS;
        enum bt_layout weights = i / FORMS % 2 ? BT_LAYOUT_TILES : BT_LAYOUT_ROWS;
        enum bt_dtype pool = pools[i / FORMS / 2];
        bool tiles = weights == BT_LAYOUT_TILES, grid = check_on_grid(check);
        if ((check->only_tiles && !tiles) || (grid && !tiles && pool != BT_F32))
            continue;
        if (check->is_emulated && tiles &&
            (!grid || pool == BT_BF16)) /* most columns for an instruction */
            check_needles(check, form, &eight, many, weights, pool, BT_PAGE_TOKENS);
        else if (!grid)
            check_needles(check, form, &last, few, weights, pool, BT_PAGE_TOKENS);
        if (!grid || i / FORMS % 4 == 1)
            check_needles(check, form, &edges, few, weights, pool, 0);
        check_shares(check, form, &last, 3, weights, pool);
        if (!grid || i / FORMS % 4 == 3)
            check_shares(check, form, &edges, 1, weights, pool);
        if (!slow)
            check_fast(check, form, weights, pool);
    }
    if (slow)
        return;
    check_needles(check, MULTI_HEAD, &edges, lite, BT_LAYOUT_TILES, BT_BF16, 0);
    check_needles(check, ABSORBED, &edges, lite, BT_LAYOUT_TILES, BT_F8_E4M3, 0);
    check_needles(check, ABSORBED, &last, full, BT_LAYOUT_TILES, BT_BF16, BT_PAGE_TOKENS);
}
