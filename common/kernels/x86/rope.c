/* Rotary embedding of the queries; normalisation, rotation and storing of the KV. */
#include "common/kernels/stream.h"
#include "common/kernels/x86/kv_f8.h"
#include "common/kernels/x86/mla_memory.h"
#include "common/kernels/x86/tables.h"

#define PART_ROWS 16

struct call {
    const struct bt_rope_table *rope;
    const struct bt_sequence_rows *sequences;
    size_t rows; /* rows are counted through the sequences, in their order */
    char *threads;
    size_t thread_bytes;
    /* rope_q */
    float *q;
    const struct bt_mla_shape *shape;
    /* kv_write */
    const float *kv_a;
    const struct bt_matrix *norm;
    float eps;
    const struct bt_kv_layer *kv;
};

/* A row of a part: row `index` of its sequence. */
struct row {
    const struct bt_sequence_rows *sequence;
    size_t index;
};

static struct row row_at(const struct call *call, size_t row)
{
    const struct bt_sequence_rows *sequence = call->sequences;
    for (; row >= sequence->row_count; sequence++)
        row -= sequence->row_count;
    return (struct row){sequence, row};
}

static void next_row(struct row *row)
{
    row->index++;
    while (row->index >= row->sequence->row_count) {
        row->index = 0;
        row->sequence++;
    }
}

/* The even and the odd of 32 floats. */
static void split_pairs(const float *x, struct bt_v16 *even, struct bt_v16 *odd)
{
#ifdef __AVX512F__
    __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    even->v = _mm512_permutex2var_ps(a, index, b);
    odd->v = _mm512_permutex2var_ps(a, _mm512_or_si512(index, _mm512_set1_epi32(1)), b);
#else
    __m256 parts[2][2];
    for (size_t i = 0; i < 2; i++) {
        __m256 a = _mm256_loadu_ps(x + 16 * i), b = _mm256_loadu_ps(x + 16 * i + 8);
        __m256d evens = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
        __m256d odds = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
        parts[i][0] = _mm256_castpd_ps(_mm256_permute4x64_pd(evens, 0xd8));
        parts[i][1] = _mm256_castpd_ps(_mm256_permute4x64_pd(odds, 0xd8));
    }
    *even = (struct bt_v16){parts[0][0], parts[1][0]};
    *odd = (struct bt_v16){parts[0][1], parts[1][1]};
#endif
}

/* out [2 * half] = x [2 * half] turned, pairs to halves; out is not x. */
static void rotate(const float *x, const struct bt_rope_table *rope, size_t position, float *out)
{
    size_t half = rope->half_dim, i = 0;
    const float *cos = rope->cos + position * half, *sin = rope->sin + position * half;
    for (; i + BT_LANES <= half; i += BT_LANES) {
        struct bt_v16 even, odd, c = bt_v16_load(cos + i), s = bt_v16_load(sin + i);
        split_pairs(x + 2 * i, &even, &odd);
        bt_v16_store(out + i, bt_v16_sub(bt_v16_mul(even, c), bt_v16_mul(odd, s)));
        bt_v16_store(out + i + half, bt_v16_add(bt_v16_mul(odd, c), bt_v16_mul(even, s)));
    }
    for (; i < half; i++) {
        float even = x[2 * i], odd = x[2 * i + 1];
        out[i] = even * cos[i] - odd * sin[i];
        out[i + half] = odd * cos[i] + even * sin[i];
    }
}

static void run(struct bt_stream *stream, struct call *call, bt_team_fn *fn,
                uint32_t sequence_count)
{
    for (uint32_t s = 0; s < sequence_count; s++) {
        const struct bt_sequence_rows *sequence = &call->sequences[s];
        call->rows += sequence->row_count;
        BT_ASSERT(sequence->row_count == 0 ||
                  (size_t)sequence->start + sequence->row_count <= call->rope->max_position);
    }
    bt_scratch_reset(stream);
    call->threads = bt_scratch_take(stream, bt_team_threads(stream->team), call->thread_bytes);
    bt_team_run(stream->team, fn, call, (uint32_t)((call->rows + PART_ROWS - 1) / PART_ROWS));
}

static size_t end_of(const struct call *call, size_t first)
{
    return call->rows - first < PART_ROWS ? call->rows : first + PART_ROWS;
}

static void turn_queries(void *context, uint32_t part, uint32_t thread)
{
    const struct call *call = context;
    const struct bt_mla_shape *shape = call->shape;
    size_t dim = shape->qk_rope_head_dim, head_dim = shape->qk_nope_head_dim + dim;
    size_t first = (size_t)part * PART_ROWS, end = end_of(call, first);
    float *turned = (float *)(call->threads + thread * call->thread_bytes);
    struct row row = row_at(call, first);
    for (size_t i = first; i < end; i++) {
        size_t at = (row.sequence->first_row + row.index) * shape->heads * head_dim;
        for (size_t h = 0; h < shape->heads; h++) {
            float *x = call->q + at + h * head_dim + shape->qk_nope_head_dim;
            rotate(x, call->rope, row.sequence->start + row.index, turned);
            memcpy(x, turned, dim * sizeof(*x));
        }
        if (i + 1 < end)
            next_row(&row);
    }
}

void BT_X86_NAME(rope_q)(struct bt_stream *stream, float *q, const struct bt_mla_shape *shape,
                         const struct bt_rope_table *rope, const struct bt_sequence_rows *sequences,
                         uint32_t sequence_count)
{
    struct call call = {.rope = rope, .sequences = sequences, .q = q, .shape = shape};
    BT_ASSERT(rope->half_dim * 2 == shape->qk_rope_head_dim);
    call.thread_bytes = bt_rope_thread_bytes(0, shape->qk_rope_head_dim);
    run(stream, &call, turn_queries, sequence_count);
}

static void make_finite(float *x, size_t count)
{
    for (size_t i = 0; i < count; i++)
        x[i] = bt_kv_finite(x[i]);
}

static void store_bf16(const float *x, size_t count, char *out)
{
    size_t i = 0;
    for (; i + BT_LANES <= count; i += BT_LANES)
        bt_v16_store_bf16(out + i * sizeof(uint16_t), bt_v16_load(x + i));
    for (; i < count; i++) {
        uint16_t bits = bt_f32_to_bf16(x[i]);
        memcpy(out + i * sizeof(bits), &bits, sizeof(bits));
    }
}

static void store_token(const struct bt_kv_layer *kv, const float *latent, const float *key,
                        char *token)
{
    size_t lora = kv->kv_lora_rank, rope = kv->qk_rope_head_dim;
    char *key_at = token + bt_kv_rope_offset(kv);
    if (kv->dtype == BT_F32) {
        memcpy(token, latent, lora * sizeof(*latent));
        memcpy(key_at, key, rope * sizeof(*key));
        return;
    }
    if (kv->dtype == BT_F8_E4M3)
        bt_kv_f8_write(latent, kv, token);
    else
        store_bf16(latent, lora, token);
    store_bf16(key, rope, key_at);
}

static void write_tokens(void *context, uint32_t part, uint32_t thread)
{
    const struct call *call = context;
    const struct bt_kv_layer *kv = call->kv;
    size_t lora = kv->kv_lora_rank, first = (size_t)part * PART_ROWS, end = end_of(call, first);
    float *latent = (float *)(call->threads + thread * call->thread_bytes);
    float *key = latent + bt_mla_floats(lora) / sizeof(float);
    struct row row = row_at(call, first);
    for (size_t i = first; i < end; i++) {
        const struct bt_sequence_rows *sequence = row.sequence;
        const float *in = call->kv_a + (sequence->first_row + row.index) * bt_kv_width(kv);
        uint32_t position = sequence->start + (uint32_t)row.index;
        BT_X86_NAME(rms_norm_row)(in, lora, call->norm, call->eps, latent);
        rotate(in + lora, call->rope, position, key);
        make_finite(latent, lora);
        make_finite(key, kv->qk_rope_head_dim);
        store_token(kv, latent, key, bt_kv_token(kv, sequence->pages, position));
        if (i + 1 < end)
            next_row(&row);
    }
}

void BT_X86_NAME(kv_write)(struct bt_stream *stream, const float *kv_a,
                           const struct bt_matrix *norm, float eps,
                           const struct bt_rope_table *rope,
                           const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                           const struct bt_kv_layer *kv)
{
    struct call call = {
        .rope = rope, .sequences = sequences, .kv_a = kv_a, .norm = norm, .eps = eps, .kv = kv};
    BT_ASSERT(rope->half_dim * 2 == kv->qk_rope_head_dim);
    call.thread_bytes = bt_rope_thread_bytes(kv->kv_lora_rank, kv->qk_rope_head_dim);
    run(stream, &call, write_tokens, sequence_count);
}
