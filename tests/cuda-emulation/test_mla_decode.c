/*
 * Absorbed attention on the emulated grid, from staged rows to results in the latent space, against
 * its definition in double; and the rows by themselves: a row's bits do not depend on the rows
 * beside it, on how its pieces are shared out, or on padding.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/status.h"
#include "common/kernels/cuda/mla_decode.h"
#include "common/kernels/cuda/mla_decode_wgmma.h"
#include "common/kernels/cuda/stream.h"
#include "common/kernels/cuda/table.h"
#include "common/kernels/weight.h"
#include "tests/seed.h"

#define PAGES     160 /* of the pool */
#define SEQUENCES 6
#define MAX_ROWS  64

static uint64_t state;
static struct bt_cuda_device device = {.multiprocessors = 3, .arch = 80};
static struct bt_cuda_stream stream = {.device = &device};

/* As stream.c has it, which is not part of this test. */
bool bt_cuda_ok(struct bt_cuda_stream *of, cudaError_t result)
{
    if (of->fault == cudaSuccess)
        of->fault = result;
    return of->fault == cudaSuccess;
}

static uint32_t draw(uint32_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % below);
}

static float draw_float(void)
{
    return ((float)draw(2001) - 1000) * 0.001f;
}

static void fetch(void *to, const void *from, size_t bytes)
{
    assert_int_equal(cudaStreamSynchronize(stream.stream), cudaSuccess);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(stream.fault, cudaSuccess);
    assert_int_equal(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
}

static void *device_memory(size_t bytes, int byte)
{
    void *memory = NULL;
    assert_int_equal(cudaMalloc(&memory, bytes), cudaSuccess);
    assert_int_equal(cudaMemset(memory, byte, bytes), cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    return memory;
}

/* ---- a problem ---- */

struct layout {
    uint32_t count;
    struct {
        uint32_t start, rows;
    } sequences[SEQUENCES];
};

struct problem {
    uint32_t heads, lora, rope;
    enum bt_dtype pool;
    bool is_rounded, is_wgmma;
    float scale; /* softmax_scale */
};

struct scene {
    struct problem p;
    struct bt_kv_layer host, kv; /* the pool; data of the device */
    uint32_t pages[PAGES];
    struct bt_sequence_rows sequences[SEQUENCES];
    uint32_t sequence_count, rows;
    float *queries; /* [row][head][lora + rope] */
};

static float maybe_rounded(const struct problem *p, float x)
{
    return p->is_rounded ? bt_bf16_to_f32(bt_f32_to_bf16(x)) : x;
}

static void write_token(const struct bt_kv_layer *kv, unsigned char *token)
{
    for (size_t i = 0; i < kv->kv_lora_rank; i++) {
        if (kv->dtype == BT_F8_E4M3)
            token[i] = bt_f32_to_f8_e4m3(draw_float() * 448);
        else
            bt_element_store(token, kv->dtype, i, draw_float());
    }
    for (size_t i = 0; kv->dtype == BT_F8_E4M3 && i < bt_kv_scale_count(kv); i++) {
        float scale = (draw_float() + 2) / 1000;
        memcpy(token + kv->kv_lora_rank + i * sizeof(scale), &scale, sizeof(scale));
    }
    unsigned char *key = token + bt_kv_rope_offset(kv);
    for (size_t i = 0; i < kv->qk_rope_head_dim; i++) {
        float x = draw_float();
        uint16_t bits = bt_f32_to_bf16(x);
        if (kv->dtype == BT_F32)
            memcpy(key + i * sizeof(x), &x, sizeof(x));
        else
            memcpy(key + i * sizeof(bits), &bits, sizeof(bits));
    }
}

/* Pages in random order; tokens that no row sees are NaN. */
static void make_scene(const struct problem *p, const struct layout *layout, struct scene *s)
{
    *s = (struct scene){.p = *p};
    s->host = (struct bt_kv_layer){
        .dtype = p->pool, .kv_lora_rank = p->lora, .qk_rope_head_dim = p->rope};
    size_t bytes = PAGES * BT_PAGE_TOKENS * bt_kv_token_size(&s->host);
    s->host.data = malloc(bytes);
    memset(s->host.data, 0xff, bytes);
    for (uint32_t i = 0; i < PAGES; i++)
        s->pages[i] = i;
    for (uint32_t i = PAGES - 1; i > 0; i--) {
        uint32_t other = draw(i + 1), kept = s->pages[i];
        s->pages[i] = s->pages[other];
        s->pages[other] = kept;
    }
    for (uint32_t i = 0, page = 0; i < layout->count; i++) {
        uint32_t rows = layout->sequences[i].rows, end = layout->sequences[i].start + rows;
        s->sequences[s->sequence_count++] =
            (struct bt_sequence_rows){s->pages + page, layout->sequences[i].start, s->rows, rows};
        for (uint32_t t = 0; t < end; t++)
            write_token(&s->host, bt_kv_token(&s->host, s->pages + page, t));
        s->rows += rows;
        page += (end + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
        assert_true(page <= PAGES && s->rows <= MAX_ROWS);
    }
    s->kv = s->host;
    s->kv.data = device_memory(bytes, 0);
    assert_int_equal(cudaMemcpy(s->kv.data, s->host.data, bytes, cudaMemcpyHostToDevice),
                     cudaSuccess);
    size_t count = (size_t)s->rows * p->heads * (p->lora + p->rope);
    s->queries = malloc(count * sizeof(*s->queries));
    for (size_t i = 0; i < count; i++)
        s->queries[i] = maybe_rounded(p, draw_float());
}

static void free_scene(struct scene *s)
{
    free(s->host.data);
    free(s->queries);
    assert_int_equal(cudaFree(s->kv.data), cudaSuccess);
}

/* ---- the operation ---- */

/* Rows from `first` on, as the device has them: [row][head][pitch], what they are padded with 0. */
static void *device_queries(const struct scene *s, uint32_t first, uint32_t live, uint32_t rows,
                            uint32_t pitch)
{
    size_t width = s->p.lora + s->p.rope, heads = s->p.heads;
    size_t element = s->p.is_rounded ? 2 : 4, bytes = rows * heads * pitch * element;
    unsigned char *host = calloc(bytes + 1, 1);
    for (size_t h = 0; h < live * heads; h++) {
        for (size_t i = 0; i < width; i++) {
            float x = s->queries[(first * heads + h) * width + i];
            uint16_t bits = bt_f32_to_bf16(x);
            memcpy(host + (h * pitch + i) * element, s->p.is_rounded ? (void *)&bits : (void *)&x,
                   element);
        }
    }
    void *memory = device_memory(bytes, 0);
    assert_int_equal(cudaMemcpy(memory, host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    free(host);
    return memory;
}

static void launch(const struct scene *s, const struct bt_cuda_mla_decode *call)
{
    CUtensorMap map;
    memset(&map, 0, sizeof(map));
    if (s->p.is_wgmma && s->p.pool == BT_BF16)
        assert_int_equal(bt_cuda_tensor_map(call->pages, 576, 64, &map), cudaSuccess);
    if (s->p.is_wgmma)
        bt_cuda_launch_mla_decode_wgmma(call, &map, 3, stream.stream);
    else if (s->p.is_rounded && (s->p.lora == 512 || s->p.lora == 64))
        bt_cuda_launch_mla_decode(call, 3, stream.stream);
    else
        bt_cuda_launch_mla_decode_plain(call, 5, stream.stream);
    bt_cuda_launch_mla_combine(call, stream.stream);
}

/* out [rows][head][lora]: of rows of the batch from `first` on. */
static void run(const struct scene *s, struct bt_cuda_rows rows, uint32_t first, uint32_t live,
                float *out)
{
    size_t heads = s->p.heads, element = s->p.is_rounded ? 2 : 4;
    struct bt_cuda_mla_decode call = {
        .rows = rows,
        .row_count = rows.rows,
        .is_rounded = s->p.is_rounded,
        .heads = s->p.heads,
        .kv_lora_rank = s->p.lora,
        .qk_rope_head_dim = s->p.rope,
        .scale = s->p.scale * 0x1.715476p+0f,
        .query_pitch = (s->p.lora + s->p.rope + 15) / 16 * 16,
        .pages = s->kv.data,
        .pool = s->p.pool,
        .token_bytes = (uint32_t)bt_kv_token_size(&s->kv),
        .result_pitch = (s->p.lora + 15) / 16 * 16,
    };
    size_t result_bytes = rows.rows * heads * call.result_pitch * element;
    void *queries = device_queries(s, first, live, rows.rows, call.query_pitch);
    call.queries = queries;
    call.results = device_memory(result_bytes, 0xff);
    call.sums = device_memory(rows.group_pieces * heads * s->p.lora * sizeof(float), 0xff);
    call.states = device_memory(rows.group_pieces * heads * 2 * sizeof(float), 0xff);
    launch(s, &call);
    unsigned char *results = malloc(result_bytes);
    fetch(results, call.results, result_bytes);
    for (size_t h = 0; h < rows.rows * heads; h++) {
        for (size_t i = 0; i < call.result_pitch; i++) {
            const unsigned char *at = results + (h * call.result_pitch + i) * element;
            float x = bt_element_load(at, s->p.is_rounded ? BT_BF16 : BT_F32, 0);
            if (i < s->p.lora)
                out[h * s->p.lora + i] = x;
            else
                assert_true(x == 0);
        }
    }
    free(results);
    void *all[] = {queries, call.results, call.sums, call.states};
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(cudaFree(all[i]), cudaSuccess);
}

/* ---- what it has to be ---- */

/*
 * One head of a row. Tolerance: scores are sums in f32 of a few hundred terms of 1 at most, which
 * moves weights by less than 1e-4; in tile arithmetic each weight is rounded to bf16, and the
 * result: 2^-8 each of the sum of magnitudes. Exponentials within 2^-21.
 */
static void check_head(const struct scene *s, const struct bt_sequence_rows *sequence,
                       uint32_t seen, const float *query, const float *got)
{
    size_t lora = s->p.lora, width = lora + s->p.rope;
    double *weights = malloc(seen * sizeof(*weights)), max = -INFINITY, sum = 0;
    double *tokens = malloc(seen * width * sizeof(*tokens));
    for (uint32_t t = 0; t < seen; t++) {
        const void *token = bt_kv_token(&s->host, sequence->pages, t);
        weights[t] = 0;
        for (size_t i = 0; i < width; i++) {
            tokens[t * width + i] = maybe_rounded(&s->p, bt_kv_at(&s->host, token, i));
            weights[t] += query[i] * tokens[t * width + i] * s->p.scale;
        }
        max = fmax(max, weights[t]);
    }
    for (uint32_t t = 0; t < seen; t++)
        sum += weights[t] = exp(weights[t] - max);
    for (size_t i = 0; i < lora; i++) {
        double want = 0, size = 0;
        for (uint32_t t = 0; t < seen; t++) {
            want += weights[t] / sum * tokens[t * width + i];
            size += weights[t] / sum * fabs(tokens[t * width + i]);
        }
        double bound = size * (s->p.is_rounded ? 0x1p-7 + 1e-4 : 1e-4) + 1e-7;
        if (!(fabs(got[i] - want) <= bound))
            fail_msg("%u heads, %u + %u, pool %d: of %u tokens element %zu is %g, expected %g "
                     "within %g",
                     s->p.heads, s->p.lora, s->p.rope, (int)s->p.pool, seen, i, (double)got[i],
                     want, bound);
    }
    free(weights);
    free(tokens);
}

static void check_definition(const struct scene *s, const float *out)
{
    size_t width = s->p.lora + s->p.rope;
    for (uint32_t q = 0; q < s->sequence_count; q++) {
        const struct bt_sequence_rows *sequence = &s->sequences[q];
        for (uint32_t i = 0; i < sequence->row_count * s->p.heads; i++) {
            size_t at = (size_t)sequence->first_row * s->p.heads + i;
            check_head(s, sequence, sequence->start + i / s->p.heads + 1, s->queries + at * width,
                       out + at * s->p.lora);
        }
    }
}

/* Each row in a batch of its own. */
static void check_alone(const struct scene *s, const float *out)
{
    size_t each = (size_t)s->p.heads * s->p.lora;
    float *alone = malloc(each * sizeof(*alone));
    for (uint32_t q = 0; q < s->sequence_count; q++) {
        struct bt_sequence_rows one = s->sequences[q];
        for (uint32_t i = 0; i < s->sequences[q].row_count;
             i += 1 + s->sequences[q].row_count / 3) {
            one.start = s->sequences[q].start + i;
            one.first_row = 0;
            one.row_count = 1;
            run(s, bt_cuda_rows_of(&stream, &one, 1), s->sequences[q].first_row + i, 1, alone);
            assert_memory_equal(alone, out + (s->sequences[q].first_row + i) * each,
                                each * sizeof(*alone));
        }
    }
    free(alone);
}

/* The same batch staged, with rows of padding. */
static void check_padded(const struct scene *s, const float *out)
{
    size_t each = (size_t)s->p.heads * s->p.lora;
    uint32_t rows = s->rows + 3, tokens[MAX_ROWS] = {0};
    float *padded = malloc(rows * each * sizeof(*padded));
    struct bt_stage stage = {.tokens = tokens,
                             .rows = s->rows,
                             .padded_rows = rows,
                             .sequences = s->sequences,
                             .sequence_count = s->sequence_count};
    bt_cuda_stage(&stream.base, &stage);
    struct bt_cuda_rows staged = bt_cuda_rows_of(&stream, s->sequences, s->sequence_count);
    assert_int_equal(staged.rows, rows);
    run(s, staged, 0, s->rows, padded);
    assert_memory_equal(padded, out, s->rows * each * sizeof(*padded));
    for (size_t i = s->rows * each; i < rows * each; i++)
        assert_true(padded[i] == 0);
    free(padded);
    /* the next scene's lists may have these addresses */
    bt_cuda_stage(&stream.base, &(struct bt_stage){0});
}

static void check(struct problem p, const struct layout *layout, bool alone)
{
    struct scene s;
    p.scale = 3 / sqrtf((float)(p.lora + p.rope) / 9);
    make_scene(&p, layout, &s);
    float *out = malloc((size_t)s.rows * p.heads * p.lora * sizeof(*out));
    run(&s, bt_cuda_rows_of(&stream, s.sequences, s.sequence_count), 0, s.rows, out);
    check_definition(&s, out);
    if (alone) {
        check_alone(&s, out);
        check_padded(&s, out);
    }
    free(out);
    free_scene(&s);
}

/* ---- cases ---- */

/* Ends of tiles, pages and pieces; more than BT_CUDA_PIECE_SPLIT_ROWS rows; no rows. */
static const struct layout edges = {6, {{0, 3}, {62, 4}, {0, 0}, {1022, 4}, {1030, 18}, {2100, 1}}};
static const struct layout brief = {4, {{0, 1}, {30, 3}, {127, 1}, {63, 1}}};
static const struct layout pieces = {2, {{1023, 2}, {2047, 1}}};

static const enum bt_dtype pools[] = {BT_BF16, BT_F8_E4M3, BT_F32};

static void test_small_shapes(void **context)
{
    (void)context;
    for (unsigned i = 0; i < 3; i++) {
        check((struct problem){5, 64, 16, pools[i], true, false, 0}, &edges, true);
        check((struct problem){17, 64, 8, pools[i], true, false, 0}, &brief, true);
        check((struct problem){1, 64, 64, pools[i], true, false, 0}, &brief, false);
    }
}

static void test_plain(void **context)
{
    (void)context;
    for (unsigned i = 0; i < 6; i++) {
        check((struct problem){2, 33, 6, pools[i / 2], i % 2, false, 0}, i < 2 ? &edges : &brief,
              i < 2);
        check((struct problem){1, 200, 32, pools[i / 2], i % 2, false, 0}, &brief, false);
    }
}

static void test_large_shapes(void **context)
{
    (void)context;
    for (unsigned i = 0; i < 3; i++) {
        check((struct problem){16, 512, 64, pools[i], true, false, 0}, &brief, i == 0);
        check((struct problem){20, 512, 64, pools[i], true, false, 0}, &brief, false);
    }
    check((struct problem){65, 512, 64, BT_F8_E4M3, true, false, 0}, &brief, false);
    check((struct problem){33, 512, 64, BT_BF16, true, false, 0}, &pieces, false);
}

static void test_wgmma(void **context)
{
    (void)context;
    for (unsigned i = 0; i < 2; i++) {
        check((struct problem){16, 512, 64, pools[i], true, true, 0}, &brief, true);
        check((struct problem){66, 512, 64, pools[i], true, true, 0}, &brief, false);
        check((struct problem){3, 512, 64, pools[i], true, true, 0}, &pieces, true);
    }
}

/* ---- lists ---- */

static void test_tokens_and_lists(void **context)
{
    (void)context;
    uint32_t tokens[] = {7, 8, 9}, from[] = {BT_TOKEN_GIVEN, 1, 0}, wanted[] = {0, 2}, got[8];
    const uint32_t drawn[] = {100, 101}, other[] = {5, 6, 7, 8};
    struct bt_draw draws[] = {{.seed = 1, .temperature = 2}, {.seed = 3, .temperature = 4}};
    const struct bt_adjust adjusts[] = {{.token = 4, .bias = 2}, {.token = 5, .outputs = 3}};
    struct bt_adjust got_adjusts[2];
    struct bt_draw got_draws[3];
    struct bt_stage stage = {.tokens = tokens,
                             .token_from = from,
                             .rows = 3,
                             .padded_rows = 5,
                             .wanted = wanted,
                             .wanted_count = 2,
                             .padded_wanted = 3,
                             .draws = draws,
                             .adjusts = adjusts,
                             .adjust_count = 2};
    draws[1].adjust_begin = 1;
    draws[1].seen_count = 1;
    assert_int_equal(
        cudaMemcpy(bt_cuda_drawn(&stream), drawn, sizeof(drawn), cudaMemcpyHostToDevice),
        cudaSuccess);
    bt_cuda_stage(&stream.base, &stage);
    const uint32_t *list = bt_cuda_list_of(&stream, tokens, 5);
    fetch(got, list, 5 * sizeof(*got));
    static const uint32_t resolved[] = {7, 101, 100, 0, 0}, kept[] = {0, 2, 2};
    assert_memory_equal(got, resolved, sizeof(resolved));
    fetch(got, bt_cuda_list_of(&stream, wanted, 3), sizeof(kept));
    assert_memory_equal(got, kept, sizeof(kept));
    fetch(got, bt_cuda_list_of(&stream, other, 4), sizeof(other));
    assert_memory_equal(got, other, sizeof(other));
    struct bt_cuda_draws there = bt_cuda_draws_of(&stream, draws, adjusts, 3);
    fetch(got_draws, there.draws, sizeof(got_draws));
    fetch(got_adjusts, there.adjusts, sizeof(got_adjusts));
    assert_memory_equal(got_draws, draws, sizeof(draws));
    assert_memory_equal(got_adjusts, adjusts, sizeof(adjusts));
    assert_true(got_draws[2].temperature == 0);
    fetch(got, bt_cuda_live_rows(&stream, 5), sizeof(*got));
    assert_int_equal(got[0], 3);
    fetch(got, bt_cuda_live_rows(&stream, 3), sizeof(*got));
    assert_int_equal(got[0], 2);
    assert_null(bt_cuda_live_rows(&stream, 4));
    /* not staged */
    const struct bt_draw others[] = {draws[1], draws[0]};
    there = bt_cuda_draws_of(&stream, others, adjusts, 2);
    fetch(got_draws, there.draws, sizeof(others));
    fetch(got_adjusts, there.adjusts, sizeof(adjusts));
    assert_memory_equal(got_draws, others, sizeof(others));
    assert_memory_equal(got_adjusts, adjusts, sizeof(adjusts));
    /* graphs rely on it */
    bt_cuda_stage(&stream.base, &stage);
    assert_ptr_equal(bt_cuda_list_of(&stream, tokens, 5), list);
}

/* Batches staged one after the other: each pass sees its own, and nobody waited for a buffer that
 * was free. */
static void test_stages_do_not_overtake(void **context)
{
    (void)context;
    enum { STAGES = 12 };
    uint32_t *results = device_memory(STAGES * sizeof(*results), 0), got[STAGES];
    for (uint32_t i = 0; i < STAGES; i++) {
        uint32_t token = 50 + i;
        struct bt_stage stage = {.tokens = &token, .rows = 1, .padded_rows = 1};
        bt_cuda_stage(&stream.base, &stage);
        token = 0;
        assert_int_equal(cudaMemcpyAsync(results + i, bt_cuda_list_of(&stream, &token, 1),
                                         sizeof(token), cudaMemcpyDeviceToDevice, stream.stream),
                         cudaSuccess);
    }
    fetch(got, results, sizeof(got));
    for (uint32_t i = 0; i < STAGES; i++)
        assert_int_equal(got[i], 50 + i);
    assert_int_equal(cudaFree(results), cudaSuccess);
}

static int set_up(void **context)
{
    (void)context;
    state = test_seed();
    stream.base.limits = (struct bt_stream_limits){
        .max_rows = MAX_ROWS, .max_page_numbers = PAGES, .max_adjusts = 2};
    assert_int_equal(cudaStreamCreateWithFlags(&stream.stream, cudaStreamNonBlocking), cudaSuccess);
    assert_true(bt_cuda_rows_create(&stream));
    assert_int_equal(cudaStreamSynchronize(stream.stream), cudaSuccess);
    return 0;
}

static int tear_down(void **context)
{
    (void)context;
    bt_cuda_rows_destroy(&stream);
    assert_int_equal(cudaStreamDestroy(stream.stream), cudaSuccess);
    return 0;
}

/* The kernels of sm_80 are those of every architecture but sm_90, where wgmma takes its shapes. */
int main(void)
{
    extern const int emulation_built_arch;
    const struct CMUnitTest all[] = {
        cmocka_unit_test(test_tokens_and_lists),
        cmocka_unit_test(test_stages_do_not_overtake),
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_small_shapes),
        cmocka_unit_test(test_large_shapes),
    };
    const struct CMUnitTest hopper[] = {
        cmocka_unit_test(test_tokens_and_lists),
        cmocka_unit_test(test_wgmma),
    };
    if (emulation_built_arch == 90)
        return cmocka_run_group_tests(hopper, set_up, tear_down);
    return cmocka_run_group_tests(all, set_up, tear_down);
}
