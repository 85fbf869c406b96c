/*
 * stage: a batch with rows of padding, against the same batch without any: the rows that are live
 * have the same bits, and nothing is written for the others, which have no experts and are finite.
 * The lists that are staged, and tokens that a draw left behind.
 */
#include <math.h>
#include <string.h>

#include "common/kernels/weight.h"
#include "tests/checkkern/sequences.h"

enum { HIDDEN = 64, VOCAB = 300, EXPERTS = 16, PICKS = 4, INNER = 32, MOST_PAGES = 32, EACH = 20 };

static const struct bt_mla_shape mla = {3, 32, 16, 32, 64, 0.15f};
static const struct bt_route_shape routes = {EXPERTS,        PICKS, 1, 1, BT_SCORING_SOFTMAX,
                                             BT_TOPK_GREEDY, true,  1};

/* What a pass is given, with padding, and as much of it as it works on. */
struct pass {
    struct check_batch batch;
    uint32_t padded, padded_wanted, wanted_count, wanted_sequence_count;
    struct bt_sequence_rows wanted_sequences[CHECK_MAX_SEQUENCES];
    uint32_t *tokens, *wanted;
    struct bt_draw *draws;
    struct bt_adjust *adjusts;
    uint32_t adjust_count;
    struct bt_matrix table, norm, kv_b, gate, expert_gate[EXPERTS], expert_up[EXPERTS],
        expert_down[EXPERTS];
    struct bt_rope_table rope;
    struct bt_kv_layer kv;
    size_t q_width, out_width;
    float *x, *q, *kv_a, *logits;
    struct bt_stream *stream, *plain;
};

/* What comes of it. */
struct results {
    char *pool;
    float *embedded, *q, *prefill, *decode, *product, *routed, *kept, *kept_decode;
    uint32_t *experts, *order, *begin, *drawn;
    float *weights, *adjusted;
    struct bt_logprobs *logprobs;
};

/* The last row of each sequence. */
static void choose_wanted(struct check *check, struct pass *p)
{
    p->wanted = check_buffer(check, (p->batch.rows + 1) * sizeof(*p->wanted));
    for (uint32_t s = 0; s < p->batch.count; s++) {
        const struct bt_sequence_rows *all = &p->batch.sequences[s];
        if (all->row_count == 0)
            continue;
        p->wanted_sequences[p->wanted_sequence_count++] = (struct bt_sequence_rows){
            all->pages, all->start + all->row_count - 1, p->wanted_count, 1};
        p->wanted[p->wanted_count++] = all->first_row + all->row_count - 1;
    }
}

static void make_experts(struct check *check, struct pass *p)
{
    struct bt_matrix gate = check_matrix(check, INNER, HIDDEN, BT_BF16, 0.2f);
    struct bt_matrix up = check_matrix(check, INNER, HIDDEN, BT_BF16, 0.2f);
    struct bt_matrix down = check_matrix(check, HIDDEN, INNER, BT_BF16, 0.2f);
    gate = check_packed(check, &gate, BT_USE_LINEAR, NULL);
    up = check_packed(check, &up, BT_USE_LINEAR, NULL);
    down = check_packed(check, &down, BT_USE_LINEAR, NULL);
    for (unsigned e = 0; e < EXPERTS; e++) {
        p->expert_gate[e] = gate;
        p->expert_up[e] = up;
        p->expert_down[e] = down;
    }
}

/* With adjusts of three kinds, EACH of them. */
static void make_draws(struct check *check, struct pass *p)
{
    p->draws = check_buffer(check, (p->padded_wanted + 1) * sizeof(*p->draws));
    p->adjusts =
        check_buffer(check, ((size_t)p->wanted_count * 3 * EACH + 1) * sizeof(*p->adjusts));
    for (uint32_t i = 0; i < p->wanted_count; i++) {
        p->draws[i] = (struct bt_draw){.seed = check_random(check),
                                       .position = i,
                                       .temperature = i % 3 ? 1 : 0,
                                       .top_p = i % 2 ? 0.9f : 1,
                                       .logprobs = i % 2 ? 4 : 0,
                                       .adjust_begin = p->adjust_count,
                                       .bias_count = EACH,
                                       .masked_count = EACH,
                                       .seen_count = EACH,
                                       .repetition = 1.5f,
                                       .presence = 0.5f,
                                       .newest = BT_NEWEST_GIVEN,
                                       .newest_token = check_below(check, VOCAB)};
        for (uint32_t a = 0; a < 3 * EACH; a++) {
            uint32_t token = a % EACH * (VOCAB / EACH) + check_below(check, VOCAB / EACH);
            struct bt_adjust adjust = {.token = token, .outputs = a};
            if (a < EACH)
                adjust.bias = check_uniform(check) * 2;
            p->adjusts[p->adjust_count++] = adjust;
        }
    }
}

static void make_pass(struct check *check, const struct check_layout *layout, uint32_t padding,
                      enum bt_dtype pool, bool has_limits, struct pass *p)
{
    struct bt_matrix kv_b;
    *p = (struct pass){0};
    check_batch_init(check, layout, &p->batch);
    choose_wanted(check, p);
    p->padded = p->batch.rows + padding;
    p->padded_wanted = p->wanted_count + padding;
    p->tokens = check_buffer(check, (p->batch.rows + 1) * sizeof(*p->tokens));
    for (uint32_t i = 0; i < p->batch.rows; i++)
        p->tokens[i] = check_below(check, VOCAB);
    make_draws(check, p);
    p->table = check_matrix(check, VOCAB, HIDDEN, BT_F32, 1);
    p->norm = check_matrix(check, 1, mla.kv_lora_rank, BT_F32, 1);
    p->gate = check_matrix(check, EXPERTS, HIDDEN, BT_F32, 1);
    kv_b = check_matrix(check, mla.heads * (mla.qk_nope_head_dim + mla.v_head_dim),
                        mla.kv_lora_rank, BT_BF16, 1);
    p->kv_b = check_packed(check, &kv_b, BT_USE_KV_B, &mla);
    make_experts(check, p);
    p->rope = check_rope(check, mla.qk_rope_head_dim);
    p->kv = check_pool(check, &p->batch, pool, mla.kv_lora_rank, mla.qk_rope_head_dim);
    p->q_width = (size_t)mla.heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim);
    p->out_width = (size_t)mla.heads * mla.v_head_dim;
    p->x = check_floats_random(check, (size_t)p->padded * HIDDEN, CHECK_NORMAL);
    p->q = check_floats_random(check, p->padded * p->q_width, CHECK_NORMAL);
    p->kv_a = check_floats_random(check, p->padded * bt_kv_width(&p->kv), CHECK_NORMAL);
    p->logits = check_floats_random(check, (size_t)p->padded_wanted * VOCAB, CHECK_NORMAL);
    struct bt_stream_limits limits = {.max_rows = p->padded,
                                      .max_cols = HIDDEN,
                                      .hidden = HIDDEN,
                                      .moe_intermediate = INNER,
                                      .experts = EXPERTS,
                                      .experts_per_token = PICKS,
                                      .mla = mla,
                                      .max_page_numbers = has_limits ? MOST_PAGES : 0,
                                      .vocab_size = VOCAB,
                                      .max_adjusts = p->adjust_count};
    p->stream = check_stream(&limits);
    p->plain = check_stream(&limits);
}

static struct results make_results(struct check *check, const struct pass *p)
{
    size_t rows = p->padded, wanted = p->padded_wanted;
    return (struct results){
        .pool = check_buffer(check, check_pool_bytes(&p->batch, &p->kv)),
        .embedded = check_floats(check, rows * HIDDEN),
        .q = check_floats(check, rows * p->q_width),
        .prefill = check_floats(check, rows * p->out_width),
        .decode = check_floats(check, rows * p->out_width),
        .product = check_floats(check, rows * INNER),
        .routed = check_floats(check, rows * HIDDEN),
        .kept = check_floats(check, rows * p->q_width),
        .kept_decode = check_floats(check, wanted * p->out_width),
        .experts = check_buffer(check, rows * PICKS * sizeof(uint32_t)),
        .order = check_buffer(check, rows * PICKS * sizeof(uint32_t)),
        .begin = check_buffer(check, (EXPERTS + 1) * sizeof(uint32_t)),
        .drawn = check_buffer(check, wanted * sizeof(uint32_t)),
        .weights = check_floats(check, rows * PICKS),
        .adjusted = check_floats(check, wanted * VOCAB),
        .logprobs = check_buffer(check, wanted * sizeof(struct bt_logprobs)),
    };
}

/* The sequences' tokens before the batch, as some other pass would have left them. */
static void fill_pool(struct check *check, const struct pass *p, char *pool)
{
    struct bt_kv_layer kv = p->kv;
    kv.data = pool;
    for (uint32_t s = 0; s < p->batch.count; s++) {
        struct bt_sequence_rows before = p->batch.sequences[s];
        before.row_count = before.start;
        before.start = before.first_row = 0;
        float *kv_a =
            check_floats_random(check, (before.row_count + 1) * bt_kv_width(&kv), CHECK_NORMAL);
        check->kernels->kv_write(p->plain, kv_a, &p->norm, 1e-6f, &p->rope, &before, 1, &kv);
    }
}

static void run_attention(const struct bt_kernels *k, struct bt_stream *stream,
                          const struct pass *p, struct results *r)
{
    const struct check_batch *batch = &p->batch;
    struct bt_kv_layer kv = p->kv;
    kv.data = r->pool;
    k->rope_q(stream, r->q, &mla, &p->rope, batch->sequences, batch->count);
    k->kv_write(stream, p->kv_a, &p->norm, 1e-6f, &p->rope, batch->sequences, batch->count, &kv);
    k->mla_prefill(stream, r->q, &mla, &p->kv_b, batch->sequences, batch->count, &kv, r->prefill);
    k->mla_decode(stream, r->q, &mla, &p->kv_b, batch->sequences, batch->count, &kv, r->decode);
}

/* With so many rows: all, or as many as there are. */
static void run(struct check *check, struct bt_stream *stream, const struct pass *p, uint32_t rows,
                uint32_t wanted, struct results *r)
{
    const struct bt_kernels *k = check->kernels;
    struct bt_matrix no_bias = {0};
    struct bt_routing routing = {r->experts, r->weights, r->order, r->begin};
    struct bt_expert_weights experts = {p->expert_gate, p->expert_up, p->expert_down, EXPERTS};
    struct bt_kv_layer kv = p->kv;
    kv.data = r->pool;
    memcpy(r->q, p->q, rows * p->q_width * sizeof(float));
    memcpy(r->routed, p->x, (size_t)rows * HIDDEN * sizeof(float));
    k->embed(stream, &p->table, p->tokens, rows, r->embedded);
    run_attention(k, stream, p, r);
    k->linear(stream, p->x, rows, &(struct bt_linear){&p->expert_gate[0], r->product}, 1);
    k->moe_route(stream, p->x, rows, &p->gate, &no_bias, &routes, &routing);
    k->moe_experts(stream, p->x, rows, &routes, &routing, &experts, r->routed);
    memcpy(r->kept, r->q, rows * p->q_width * sizeof(float));
    k->gather_rows(stream, r->kept, (uint32_t)p->q_width, p->wanted, wanted);
    k->mla_decode(stream, r->kept, &mla, &p->kv_b, p->wanted_sequences, p->wanted_sequence_count,
                  &kv, r->kept_decode);
    memcpy(r->adjusted, p->logits, (size_t)wanted * VOCAB * sizeof(float));
    k->draw(stream, r->adjusted, wanted, VOCAB, p->draws, p->adjusts, r->drawn, r->logprobs);
}

/* Rows 0 … live - 1 as they are without padding, those behind them finite. */
static void check_live(struct check *check, const char *what, const float *got, const float *want,
                       uint32_t live, uint32_t padded, size_t width)
{
    check_bits(check, what, got, want, live * width, sizeof(float));
    for (size_t i = live * width; i < padded * width; i++) {
        if (!isfinite(got[i])) {
            check_fail(check, "%s: padding %zu is %g", what, i / width, (double)got[i]);
            return;
        }
    }
}

static void compare(struct check *check, const struct pass *p, const struct results *got,
                    const struct results *want)
{
    uint32_t live = p->batch.rows, rows = p->padded, kept = p->wanted_count;
    check_bits(check, "pool", got->pool, want->pool, check_pool_bytes(&p->batch, &p->kv), 1);
    check_live(check, "embedded", got->embedded, want->embedded, live, rows, HIDDEN);
    check_live(check, "rotated", got->q, want->q, live, rows, p->q_width);
    check_live(check, "prefill", got->prefill, want->prefill, live, rows, p->out_width);
    check_live(check, "decode", got->decode, want->decode, live, rows, p->out_width);
    check_live(check, "product", got->product, want->product, live, rows, INNER);
    check_live(check, "routed", got->routed, want->routed, live, rows, HIDDEN);
    check_live(check, "kept", got->kept, want->kept, kept, p->padded_wanted, p->q_width);
    check_live(check, "kept decode", got->kept_decode, want->kept_decode, kept, p->padded_wanted,
               p->out_width);
    check_bits(check, "experts", got->experts, want->experts, live * (size_t)PICKS, 4);
    check_bits(check, "weights", got->weights, want->weights, live * (size_t)PICKS, 4);
    check_bits(check, "order", got->order, want->order, live * (size_t)PICKS, 4);
    check_bits(check, "begin", got->begin, want->begin, EXPERTS + 1, 4);
    check_bits(check, "drawn", got->drawn, want->drawn, kept, 4);
    check_bits(check, "logprobs", got->logprobs, want->logprobs, kept, sizeof(*got->logprobs));
}

/* What is wanted is known without another run, and so is the token of each row. */
static void check_lists(struct check *check, const struct pass *p, const struct results *got)
{
    for (uint32_t i = 0; i < p->wanted_count; i++)
        check_bits(check, "row that is kept", got->kept + i * p->q_width,
                   got->q + p->wanted[i] * p->q_width, p->q_width, sizeof(float));
    for (uint32_t i = 0; i < p->batch.rows; i++)
        check_bits(check, "token's row", got->embedded + (size_t)i * HIDDEN,
                   (const float *)p->table.data + (size_t)p->tokens[i] * HIDDEN, HIDDEN,
                   sizeof(float));
}

/* Tokens of the draw before, some of them, in another order. */
static void check_token_from(struct check *check, const struct pass *p, struct bt_stage stage,
                             const uint32_t *drawn)
{
    float *out = check_floats(check, (size_t)p->padded * HIDDEN);
    uint32_t *from = check_buffer(check, (p->batch.rows + 1) * sizeof(*from));
    for (uint32_t i = 0; i < p->batch.rows; i++)
        from[i] = i % 3 == 1 ? BT_TOKEN_GIVEN : check_below(check, p->wanted_count);
    stage.token_from = from;
    check->kernels->stage(p->stream, &stage);
    check->kernels->embed(p->stream, &p->table, p->tokens, p->padded, out);
    for (uint32_t i = 0; i < p->batch.rows; i++) {
        uint32_t token = from[i] == BT_TOKEN_GIVEN ? p->tokens[i] : drawn[from[i]];
        check_bits(check, "drawn token's row", out + (size_t)i * HIDDEN,
                   (const float *)p->table.data + (size_t)token * HIDDEN, HIDDEN, sizeof(float));
    }
}

static void check_stage_shape(struct check *check, const struct check_layout *layout,
                              uint32_t padding, enum bt_dtype pool, bool has_limits)
{
    struct pass p;
    check_begin(check, "%s and %u of padding, pool %u%s", layout->name, padding, pool,
                has_limits ? ", addresses that stay" : "");
    make_pass(check, layout, padding, pool, has_limits, &p);
    struct results got = make_results(check, &p), want = make_results(check, &p);
    fill_pool(check, &p, want.pool);
    memcpy(got.pool, want.pool, check_pool_bytes(&p.batch, &p.kv));
    run(check, p.plain, &p, p.batch.rows, p.wanted_count, &want);
    struct bt_stage stage = {.tokens = p.tokens,
                             .rows = p.batch.rows,
                             .padded_rows = p.padded,
                             .sequences = p.batch.sequences,
                             .sequence_count = p.batch.count,
                             .wanted = p.wanted,
                             .wanted_count = p.wanted_count,
                             .padded_wanted = p.padded_wanted,
                             .wanted_sequences = p.wanted_sequences,
                             .wanted_sequence_count = p.wanted_sequence_count,
                             .draws = p.draws,
                             .adjusts = p.adjusts,
                             .adjust_count = p.adjust_count};
    check->kernels->stage(p.stream, &stage);
    run(check, p.stream, &p, p.padded, p.padded_wanted, &got);
    compare(check, &p, &got, &want);
    check_lists(check, &p, &got);
    check_token_from(check, &p, stage, got.drawn);
    bt_stream_destroy(p.stream);
    bt_stream_destroy(p.plain);
    check_end(check);
}

void check_stage(struct check *check)
{
    static const struct check_layout layouts[] = {
        {"one", 1, {{0, 1}}},
        {"steps", 4, {{0, 1}, {63, 1}, {64, 1}, {130, 1}}},
        {"chunk", 1, {{60, 21}}},
        {"mixed", 4, {{0, 17}, {62, 3}, {70, 0}, {127, 1}}},
    };
    static const enum bt_dtype pools[] = {BT_BF16, BT_F32, BT_F8_E4M3};
    static const uint32_t paddings[] = {0, 1, 12, 43};
    for (unsigned i = 0; i < 4; i++)
        for (unsigned j = 0; j < 4; j++)
            check_stage_shape(check, &layouts[i], paddings[j], pools[(i + j) % 3], j % 2);
}
