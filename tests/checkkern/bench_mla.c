/*
 * Attention with kv_b in tiles at the shapes of the family, against the peak of the instruction or
 * the reading of KV and kv_b, whichever binds; measured before and after each call.
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "common/kernels/weight.h"
#include "tests/bench/limits.h"
#include "tests/checkkern/check.h"

#define CALLS         5
#define MAX_SEQUENCES 8

struct attention {
    const char *name;
    bool decode;
    uint32_t heads, start, rows, sequences;
    enum bt_dtype pool;
};

static const struct attention attentions[] = {
    {"mla_prefill_16h_512", false, 16, 0, 512, 1, BT_BF16},
    {"mla_prefill_16h_2048", false, 16, 0, 2048, 1, BT_BF16},
    {"mla_prefill_16h_512_at_8k", false, 16, 7680, 512, 1, BT_BF16},
    {"mla_prefill_16h_512_at_8k_f8", false, 16, 7680, 512, 1, BT_F8_E4M3},
    {"mla_prefill_128h_512", false, 128, 0, 512, 1, BT_BF16},
    {"mla_decode_16h_4k", true, 16, 4095, 1, 1, BT_BF16},
    {"mla_decode_16h_4k_f8", true, 16, 4095, 1, 1, BT_F8_E4M3},
    {"mla_decode_16h_4k_b8", true, 16, 4095, 1, 8, BT_BF16},
    {"mla_decode_16h_32k", true, 16, 32767, 1, 1, BT_BF16},
    {"mla_decode_128h_4k", true, 128, 4095, 1, 1, BT_BF16},
    {"mla_decode_128h_32k", true, 128, 32767, 1, 1, BT_BF16},
};

static void *map(size_t bytes)
{
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    BT_ASSERT(data != MAP_FAILED);
    madvise(data, bytes, MADV_HUGEPAGE);
    return data;
}

/* Small numbers: bf16 of some size and either sign; as e4m3 and as its scales harmless too. */
static void *map_numbers(size_t bytes, uint16_t bits)
{
    uint16_t *data = map(bytes);
    for (size_t i = 0; i < bytes / sizeof(*data); i++)
        data[i] = (uint16_t)(bits + i * 40503 % 97 + (i % 3 ? 0x8000 : 0));
    return data;
}

static void set_scales(const struct bt_kv_layer *kv, size_t tokens)
{
    float one = 0.01f;
    for (size_t t = 0; kv->dtype == BT_F8_E4M3 && t < tokens; t++) {
        char *token = (char *)kv->data + t * bt_kv_token_size(kv);
        for (size_t i = 0; i < bt_kv_scale_count(kv); i++)
            memcpy(token + kv->kv_lora_rank + i * sizeof(one), &one, sizeof(one));
    }
}

/* Operations and bytes that cannot be saved: keys and values of each token are expanded once. */
static void floor_of(const struct attention *a, const struct bt_mla_shape *s, size_t token_bytes,
                     double *ops, double *bytes)
{
    double pairs = 0, tokens = (double)(a->start + a->rows) * a->sequences;
    double kv_b = (double)a->heads * (s->qk_nope_head_dim + s->v_head_dim) * s->kv_lora_rank;
    for (uint32_t i = 0; i < a->rows; i++)
        pairs += (double)(a->start + i + 1) * a->sequences * a->heads;
    if (a->decode)
        *ops = 2 * (pairs * (2.0 * s->kv_lora_rank + s->qk_rope_head_dim) +
                    kv_b * a->rows * a->sequences);
    else
        *ops = 2 * (pairs * (s->qk_nope_head_dim + s->qk_rope_head_dim + s->v_head_dim) +
                    kv_b * tokens);
    *bytes = tokens * (double)token_bytes + kv_b * sizeof(uint16_t);
}

static void bench(const struct bt_kernels *kernels, const struct attention *a)
{
    struct bt_mla_shape shape = {a->heads, 128, 64, 128, 512, 0.0722f};
    uint32_t rows = a->rows * a->sequences, page_count = (a->start + a->rows + 63) / 64;
    struct bt_kv_layer kv = {.dtype = a->pool, .kv_lora_rank = 512, .qk_rope_head_dim = 64};
    size_t tokens = (size_t)page_count * BT_PAGE_TOKENS * a->sequences;
    size_t kv_bytes = tokens * bt_kv_token_size(&kv), weight_bytes = (size_t)a->heads * 256 * 1024;
    size_t q_bytes = (size_t)rows * a->heads * 192 * 4, out_bytes = (size_t)rows * a->heads * 512;
    struct bt_matrix source = {map_numbers(weight_bytes, 0x3c00), a->heads * 256, 512, BT_BF16},
                     kv_b;
    size_t packed_bytes = kernels->packed_bytes(&source, BT_USE_KV_B, &shape);
    void *packed = map(packed_bytes);
    struct bt_stream_limits limits = {.max_rows = rows, .mla = shape};
    struct bt_stream *stream = check_stream(&limits);
    float *q = map(q_bytes), *out = map(out_bytes);
    uint32_t pages[MAX_SEQUENCES][1024];
    struct bt_sequence_rows sequences[MAX_SEQUENCES];
    double ops, bytes, best = 0, value = 0, limit = 0;

    kernels->pack(stream, &source, BT_USE_KV_B, &shape, packed, &kv_b);
    kv.data = map_numbers(kv_bytes, 0x3e20);
    set_scales(&kv, tokens);
    for (size_t i = 0; i < q_bytes / sizeof(*q); i++)
        q[i] = (float)(i * 40503 % 201) / 100 - 1;
    for (uint32_t s = 0; s < a->sequences; s++) {
        for (uint32_t i = 0; i < page_count; i++)
            pages[s][i] = s * page_count + (i * 7 + 3) % page_count;
        sequences[s] = (struct bt_sequence_rows){pages[s], a->start, s * a->rows, a->rows};
    }
    floor_of(a, &shape, bt_kv_token_size(&kv), &ops, &bytes);
    for (int call = 0; call < CALLS; call++) {
        double read = limit_read(NULL), before = limit_ops(kernels->name, LIMIT_BF16, NULL);
        int64_t start = limit_clock_ns();
        (a->decode ? kernels->mla_decode : kernels->mla_prefill)(stream, q, &shape, &kv_b,
                                                                 sequences, a->sequences, &kv, out);
        double seconds = (double)(limit_clock_ns() - start) / 1e9;
        double after = limit_ops(kernels->name, LIMIT_BF16, NULL),
               peak = before > after ? before : after;
        double least = ops / peak > bytes / read ? ops / peak : bytes / read;
        if (least / seconds > best) {
            best = least / seconds;
            value = ops / seconds / 1e9;
            limit = ops / least / 1e9;
        }
    }
    printf("figure %s/%s %.2f GFLOP/s %.2f %.3f\n", kernels->name, a->name, value, limit, best);
    bt_stream_destroy(stream);
    munmap((void *)(uintptr_t)source.data, weight_bytes);
    munmap(packed, packed_bytes);
    munmap(kv.data, kv_bytes);
    munmap(q, q_bytes);
    munmap(out, out_bytes);
}

void check_bench_mla(const struct bt_kernels *kernels)
{
    for (size_t i = 0; i < sizeof(attentions) / sizeof(attentions[0]); i++)
        bench(kernels, &attentions[i]);
}
