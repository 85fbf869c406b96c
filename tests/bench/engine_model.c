#include "tests/bench/engine_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/base/clock.h"
#include "tests/bench/device_bench.h"

static uint32_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 32);
}

/* bf16 values of ±[0.5, 1): all that attention does has something to do. */
static void random_kv(struct bench_model *bench, uint16_t *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        values[i] = (uint16_t)(0x3f00 | (next_random(&bench->random) & 0x807f));
}

#define PIECE ((size_t)16 << 20) /* of a device's pool that is filled at a time */

static enum bt_status make_device_pool(struct bench_model *bench, size_t bytes,
                                       struct bt_error *error)
{
    struct bt_stream *stream = bt_forward_stream(bench->forward);
    size_t piece = bytes < PIECE ? bytes : PIECE;
    void *pinned = NULL;
    enum bt_status status = bt_device_alloc(bench->device, bytes, error, &bench->pool);
    if (status == BT_OK)
        status = bt_device_alloc_host(bench->device, piece, error, &pinned);
    for (size_t at = 0; status == BT_OK && at < bytes; at += piece) {
        size_t some = bytes - at < piece ? bytes - at : piece;
        random_kv(bench, pinned, some / 2);
        bt_device_copy(bench->device, stream, (char *)bench->pool + at, pinned, some);
        status = bt_device_synchronize(bench->device, stream, error);
    }
    if (pinned)
        bt_device_free_host(bench->device, pinned);
    return status;
}

static enum bt_status make_host_pool(struct bench_model *bench, size_t bytes,
                                     struct bt_error *error)
{
    void *pool = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pool == MAP_FAILED)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a pool of %zu bytes", bytes);
    madvise(pool, bytes, MADV_HUGEPAGE);
    bench->pool = pool;
    random_kv(bench, pool, bytes / 2);
    return BT_OK;
}

static enum bt_status make_pool(struct bench_model *bench, uint32_t tokens, struct bt_error *error)
{
    bench->pool_pages = bt_kv_pages_for(tokens);
    bench->pages = calloc(bench->pool_pages, sizeof(*bench->pages));
    bench->tokens = calloc(bench->max_rows, sizeof(*bench->tokens));
    size_t bytes = bt_kv_pool_bytes(&bench->layout, bench->pool_pages);
    if (!bench->pages || !bench->tokens)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for %u pages", bench->pool_pages);
    for (uint32_t i = 0; i < bench->pool_pages; i++)
        bench->pages[i] = i;
    return bench->device ? make_device_pool(bench, bytes, error)
                         : make_host_pool(bench, bytes, error);
}

void bench_profile(struct bench_model *bench, bool on)
{
    bt_forward_profile(bench->forward, on ? &bench->profile : NULL);
}

enum bt_status bench_model_open(const struct bench_model_options *options, struct bt_error *error,
                                struct bench_model **ret_model)
{
    struct bench_model *bench = calloc(1, sizeof(*bench));
    if (!bench)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "bench: no memory");
    const struct bt_model_options load = {
        .dir = options->dir,
        .device = options->device,
        .kernels = options->device ? NULL : options->kernels,
        .dtype = BT_MODEL_BFLOAT16,
        .team = options->team,
    };
    bench->device = options->device;
    bench->quick = options->quick;
    bench->team = options->team;
    bench->random = 88172645463325252u;
    bench->max_rows = options->max_rows;
    enum bt_status status = bt_model_load(&load, error, &bench->model);
    const struct bt_forward_options forward = {.max_rows = options->max_rows,
                                               .max_logits = options->max_logits};
    if (status == BT_OK)
        status = bt_forward_create(bench->model, &forward, error, &bench->forward);
    if (status == BT_OK) {
        bench_profile(bench, !bench->device);
        bench->layout = bt_model_kv_layout(bench->model, BT_BF16);
        status = make_pool(bench, options->pool_tokens, error);
    }
    if (status != BT_OK) {
        bench_model_close(bench);
        return status;
    }
    *ret_model = bench;
    return BT_OK;
}

void bench_model_close(struct bench_model *bench)
{
    if (!bench)
        return;
    bt_forward_destroy(bench->forward);
    if (bench->device)
        bt_device_free(bench->device, bench->pool);
    else if (bench->pool)
        munmap(bench->pool, bt_kv_pool_bytes(&bench->layout, bench->pool_pages));
    bt_model_destroy(bench->model);
    free(bench->pages);
    free(bench->tokens);
    free(bench);
}

/* ---- limits ---- */

struct bench_limits bench_limits_probe(const struct bench_model *bench)
{
    const char *kernels = bench->model->kernels->name;
    if (bench->device) {
        struct device_rates rates = device_rates_measure(bench->device, bench->quick);
        return (struct bench_limits){
            .bf16_flops = rates.bf16_ops,
            .int8_flops = DEVICE_EIGHT_BIT * rates.bf16_ops,
            .read_bytes = rates.memory_bytes,
        };
    }
    return (struct bench_limits){
        .bf16_flops = limit_ops(kernels, LIMIT_BF16, bench->team),
        .int8_flops = limit_ops(kernels, LIMIT_INT8, bench->team),
        .read_bytes = limit_read(bench->team),
    };
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

struct bench_limits bench_limits_best(struct bench_limits a, struct bench_limits b)
{
    return (struct bench_limits){larger(a.bf16_flops, b.bf16_flops),
                                 larger(a.int8_flops, b.int8_flops),
                                 larger(a.read_bytes, b.read_bytes)};
}

double bench_seconds(const struct bench_needs *needs, const struct bench_limits *limits)
{
    double compute =
        needs->bf16_flops / limits->bf16_flops + needs->int8_flops / limits->int8_flops;
    return larger(compute, needs->bytes / limits->read_bytes);
}

double bench_serial_seconds(const struct bench_needs *needs, const struct bench_limits *limits)
{
    struct bench_needs rest = *needs;
    rest.bf16_flops -= needs->kv_flops;
    rest.bytes -= needs->kv_bytes;
    return bench_seconds(&rest, limits) +
           larger(needs->kv_flops / limits->bf16_flops, needs->kv_bytes / limits->read_bytes);
}

/* ---- needs ---- */

/* A device quantises rows for weights in e4m3, and multiplies 8 bits by 8. */
static bool is_eight_bit(const struct bench_model *bench, const struct bt_matrix *m)
{
    return m->dtype == BT_I8 || m->dtype == BT_I4 || (bench->device && m->dtype == BT_F8_E4M3);
}

static double stored_bytes(const struct bt_matrix *m)
{
    double bytes = (double)m->rows * m->cols * (double)bt_dtype_bits(m->dtype) / 8;
    if (m->dtype == BT_F8_E4M3)
        bytes += 4.0 * ((m->rows + 127) / 128) * ((m->cols + 127) / 128);
    if (m->dtype == BT_I8 || m->dtype == BT_I4)
        bytes += 4.0 * m->rows;
    if (m->dtype == BT_I4)
        bytes += (double)m->rows * ((m->cols + 127) / 128);
    return m->data ? bytes : 0;
}

/* A product of `rows` rows with a matrix, the matrix read once. */
static void add_product(const struct bench_model *bench, struct bench_needs *needs,
                        const struct bt_matrix *m, double rows)
{
    double flops = m->data ? 2.0 * rows * m->rows * m->cols : 0;
    if (is_eight_bit(bench, m))
        needs->int8_flops += flops;
    else
        needs->bf16_flops += flops;
    needs->bytes += stored_bytes(m);
}

static void add_mlp(const struct bench_model *bench, struct bench_needs *needs,
                    const struct bt_mlp *mlp, double rows)
{
    add_product(bench, needs, &mlp->gate, rows);
    add_product(bench, needs, &mlp->up, rows);
    add_product(bench, needs, &mlp->down, rows);
}

/* The projections of attention and the dense parts, without kv_b, routed experts and attention. */
static void add_layer(const struct bench_model *bench, struct bench_needs *needs, uint32_t layer,
                      double rows)
{
    const struct bt_layer_weights *w = &bench->model->layers[layer];
    const struct bt_model_config *c = &bench->model->config;
    const struct bt_matrix *projections[] = {&w->q, &w->q_a, &w->q_b, &w->kv_a, &w->o};
    for (int i = 0; i < 5; i++)
        add_product(bench, needs, projections[i], rows);
    add_mlp(bench, needs, &w->mlp, rows);
    add_product(bench, needs, &w->router, rows);
    if (w->experts.experts) {
        struct bench_needs one = {0};
        double picks = rows * c->route.experts_per_token;
        add_product(bench, &one, &w->experts.gate[0], picks);
        add_product(bench, &one, &w->experts.up[0], picks);
        add_product(bench, &one, &w->experts.down[0], picks);
        needs->bf16_flops += one.bf16_flops;
        needs->int8_flops += one.int8_flops;
    }
}

struct bench_needs bench_prefill_needs(const struct bench_model *bench, uint32_t length)
{
    struct bench_needs needs = {0};
    struct bt_mla_shape mla = bt_model_mla_shape(&bench->model->config);
    double pairs = (double)length * (length + 1) / 2;
    double scores =
        2.0 * mla.heads * pairs * (mla.qk_nope_head_dim + mla.qk_rope_head_dim + mla.v_head_dim);
    double expand =
        2.0 * mla.heads * length * (mla.qk_nope_head_dim + mla.v_head_dim) * mla.kv_lora_rank;
    for (uint32_t layer = 0; layer < bench->model->config.num_hidden_layers; layer++) {
        add_layer(bench, &needs, layer, length);
        needs.bf16_flops += scores + expand;
        needs.bytes += stored_bytes(&bench->model->layers[layer].kv_b);
    }
    add_product(bench, &needs, &bench->model->lm_head, 1);
    return needs;
}

struct bench_needs bench_decode_needs(const struct bench_model *bench, uint32_t kv, uint32_t batch)
{
    struct bench_needs needs = {.bytes = bench->experts.bytes};
    struct bt_mla_shape mla = bt_model_mla_shape(&bench->model->config);
    double pairs = (double)batch * (kv + 1);
    double width = 2.0 * mla.kv_lora_rank + mla.qk_rope_head_dim;
    for (uint32_t layer = 0; layer < bench->model->config.num_hidden_layers; layer++) {
        const struct bt_matrix *kv_b = &bench->model->layers[layer].kv_b;
        add_layer(bench, &needs, layer, batch);
        needs.kv_flops += 2.0 * mla.heads * pairs * width;
        add_product(bench, &needs, kv_b, batch);
        needs.kv_bytes += pairs * (double)bt_kv_token_bytes(&bench->layout);
    }
    needs.bf16_flops += needs.kv_flops;
    needs.bytes += needs.kv_bytes;
    add_product(bench, &needs, &bench->model->lm_head, batch);
    return needs;
}

/* ---- runs ---- */

static void see_nothing(void *context, int32_t layer, const float *x, const uint32_t *experts,
                        const float *weights)
{
    (void)context;
    (void)layer;
    (void)x;
    (void)experts;
    (void)weights;
}

struct decode_probe {
    struct bench_model *bench;
    uint32_t rows;
};

/* Counts the experts that a step reads. */
static void see_experts(void *context, int32_t layer, const float *x, const uint32_t *experts,
                        const float *weights)
{
    const struct decode_probe *probe = context;
    struct bench_model *bench = probe->bench;
    (void)x;
    (void)weights;
    if (layer < 0 || !experts)
        return;
    const struct bt_expert_weights *w = &bench->model->layers[layer].experts;
    uint32_t picks = probe->rows * bench->model->config.route.experts_per_token;
    bool seen[1024] = {false};
    for (uint32_t i = 0; i < picks; i++) {
        uint32_t e = experts[i] % 1024;
        if (seen[e])
            continue;
        seen[e] = true;
        bench->experts.distinct++;
        bench->experts.bytes +=
            stored_bytes(&w->gate[e]) + stored_bytes(&w->up[e]) + stored_bytes(&w->down[e]);
    }
}

static void random_tokens(struct bench_model *bench, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        bench->tokens[i] = next_random(&bench->random) % bench->model->config.vocab_size;
}

static struct bt_forward_batch batch_of(struct bench_model *bench, enum bt_forward_form form)
{
    return (struct bt_forward_batch){
        .form = form,
        .tokens = bench->tokens,
        .kv_pool = bench->pool,
        .layout = bench->layout,
        .pool_pages = bench->pool_pages,
    };
}

static int64_t now_ns(const struct bench_model *bench)
{
    return bench->device ? bt_clock_now_ns() : limit_now_ns(bench->team);
}

static double seconds_since(const struct bench_model *bench, int64_t start_ns)
{
    return (double)(now_ns(bench) - start_ns) / 1e9;
}

static _Noreturn void broken(const char *what, const char *why)
{
    fflush(stdout);
    fprintf(stderr, "engine: %s: %s\n", what, why);
    exit(1);
}

static void must(const struct bench_model *bench, enum bt_status status, const char *what)
{
    const char *why = bt_forward_error(bench->forward);
    if (status != BT_OK)
        broken(what, *why ? why : bt_status_name(status));
}

/* What was timed was computed: finite, and not nothing. */
static void check_logits(const struct bench_model *bench, const float *logits, size_t rows,
                         const char *what)
{
    size_t vocab = bench->model->config.vocab_size;
    for (size_t row = 0; row < rows; row++) {
        float most = 0;
        for (size_t i = 0; i < vocab; i++) {
            float value = fabsf(logits[row * vocab + i]);
            if (!isfinite(value))
                broken(what, "a logit is not finite");
            most = fmaxf(most, value);
        }
        if (most == 0)
            broken(what, "all logits are 0");
    }
}

double bench_prefill(struct bench_model *bench, uint32_t length, uint32_t chunk)
{
    double seconds = 0;
    const float *logits = NULL;
    for (uint32_t start = 0; start < length; start += chunk) {
        uint32_t rows = length - start < chunk ? length - start : chunk, last = rows - 1;
        struct bt_sequence_rows sequence = {bench->pages, start, 0, rows};
        struct bt_forward_batch batch = batch_of(bench, BT_FORWARD_MULTI_HEAD);
        random_tokens(bench, rows);
        batch.rows = rows;
        batch.sequences = &sequence;
        batch.sequence_count = 1;
        batch.logit_rows = &last;
        batch.logit_count = start + rows == length;
        batch.every_row = bench->device != NULL;
        batch.probe = bench->device ? NULL : see_nothing;
        int64_t begin_ns = now_ns(bench);
        enum bt_status status = bt_forward_run(bench->forward, &batch, &logits);
        seconds += seconds_since(bench, begin_ns);
        must(bench, status, "prefill");
    }
    check_logits(bench, logits, 1, "prefill");
    return seconds;
}

/* ---- steps on a CPU ---- */

static double cpu_step(struct bench_model *bench, uint32_t kv, uint32_t count)
{
    struct bt_sequence_rows sequences[BENCH_MAX_BATCH];
    uint32_t rows[BENCH_MAX_BATCH], each = bt_kv_pages_for(kv + 1);
    struct decode_probe probe = {bench, count};
    struct bt_forward_batch batch = batch_of(bench, BT_FORWARD_ABSORBED);
    const float *logits;
    BT_ASSERT(count <= BENCH_MAX_BATCH && (uint64_t)count * each <= bench->pool_pages);
    random_tokens(bench, count);
    for (uint32_t i = 0; i < count; i++) {
        sequences[i] = (struct bt_sequence_rows){bench->pages + i * each, kv, i, 1};
        rows[i] = i;
    }
    bench->experts = (struct bench_experts){0};
    batch.rows = batch.sequence_count = batch.logit_count = count;
    batch.sequences = sequences;
    batch.logit_rows = rows;
    batch.probe = see_experts;
    batch.context = &probe;
    int64_t begin_ns = now_ns(bench);
    enum bt_status status = bt_forward_run(bench->forward, &batch, &logits);
    double seconds = seconds_since(bench, begin_ns);
    must(bench, status, "decode");
    return seconds;
}

/* ---- steps on a device ---- */

struct steps {
    struct bench_model *bench;
    uint32_t kv, batch, each; /* pages of a sequence */
    /* [step][sequence] what goes in; one row more: what came out of the last */
    uint32_t tokens[BENCH_MAX_STEPS + 2][BENCH_MAX_BATCH];
    struct bt_sequence_rows sequences[BENCH_MAX_BATCH];
    uint32_t rows[BENCH_MAX_BATCH]; /* 0, 1, … */
    struct bt_draw draws[BENCH_MAX_BATCH];
};

/* Borrows from `s` what it points to: until begun. */
static struct bt_forward_batch step_batch(struct steps *s, uint32_t step)
{
    struct bt_forward_batch batch = batch_of(s->bench, BT_FORWARD_ABSORBED);
    for (uint32_t i = 0; i < s->batch; i++) {
        s->sequences[i] =
            (struct bt_sequence_rows){s->bench->pages + i * s->each, s->kv + step, i, 1};
        s->draws[i] =
            (struct bt_draw){.seed = i, .position = step, .temperature = 1.0f, .top_p = 1.0f};
        s->rows[i] = i;
    }
    batch.tokens = s->tokens[step];
    batch.rows = batch.sequence_count = batch.logit_count = s->batch;
    batch.sequences = s->sequences;
    batch.logit_rows = s->rows;
    batch.draws = s->draws;
    return batch;
}

/* The tokens of all but the first step are drawn by the one before, which is still under way. */
static void begin_step(struct steps *s, uint32_t step)
{
    struct bt_forward_batch batch = step_batch(s, step);
    batch.no_logits = true;
    batch.token_from = step > 0 ? s->rows : NULL;
    must(s->bench, bt_forward_begin(s->bench->forward, &batch), "decode");
}

static void finish_step(struct steps *s, uint32_t step)
{
    struct bt_forward_result result;
    must(s->bench, bt_forward_finish(s->bench->forward, &result), "decode");
    for (uint32_t i = 0; i < s->batch; i++) {
        if (result.tokens[i] >= s->bench->model->config.vocab_size)
            broken("decode", "a token that was drawn is none of the vocabulary");
        s->tokens[step + 1][i] = result.tokens[i];
    }
}

/* The step alone, looked at layer by layer. */
static void look_at_step(struct steps *s, uint32_t step)
{
    struct decode_probe probe = {s->bench, s->batch};
    struct bt_forward_batch batch = step_batch(s, step);
    struct bt_forward_result result;
    s->bench->experts = (struct bench_experts){0};
    batch.probe = see_experts;
    batch.context = &probe;
    must(s->bench, bt_forward_begin(s->bench->forward, &batch), "decode");
    must(s->bench, bt_forward_finish(s->bench->forward, &result), "decode");
    check_logits(s->bench, result.logits, s->batch, "decode");
    for (uint32_t i = 0; i < s->batch; i++)
        if (result.tokens[i] != s->tokens[step + 1][i])
            broken("decode", "a step that was replayed draws another token when it is run alone");
}

static void device_steps(struct bench_model *bench, uint32_t kv, uint32_t batch, uint32_t steps,
                         double *seconds, struct bench_needs *needs)
{
    static struct steps s;
    s = (struct steps){
        .bench = bench, .kv = kv, .batch = batch, .each = bt_kv_pages_for(kv + steps + 1)};
    if (!bt_forward_draws(bench->forward))
        broken("decode", "this device draws no tokens");
    BT_ASSERT((uint64_t)batch * s.each <= bench->pool_pages);
    random_tokens(bench, batch);
    memcpy(s.tokens[0], bench->tokens, batch * sizeof(*s.tokens[0]));
    struct bt_forward_batch warm = step_batch(&s, 0);
    must(bench, bt_forward_warm(bench->forward, &warm, batch), "warming");
    int64_t before_ns = 0;
    begin_step(&s, 0);
    for (uint32_t i = 0; i <= steps; i++) {
        if (i < steps)
            begin_step(&s, i + 1);
        finish_step(&s, i);
        int64_t end_ns = bt_clock_now_ns();
        if (i > 0)
            seconds[i - 1] = (double)(end_ns - before_ns) / 1e9;
        before_ns = end_ns;
    }
    for (uint32_t i = 0; needs && i < steps; i++) {
        look_at_step(&s, i + 1);
        needs[i] = bench_decode_needs(bench, kv + i + 1, batch);
    }
}

void bench_decode_steps(struct bench_model *bench, uint32_t kv, uint32_t batch, uint32_t steps,
                        double *seconds, struct bench_needs *needs)
{
    BT_ASSERT(batch <= BENCH_MAX_BATCH && steps <= BENCH_MAX_STEPS);
    if (bench->device) {
        device_steps(bench, kv, batch, steps, seconds, needs);
        return;
    }
    cpu_step(bench, kv, batch);
    for (uint32_t i = 0; i < steps; i++) {
        seconds[i] = cpu_step(bench, kv, batch);
        needs[i] = bench_decode_needs(bench, kv, batch);
    }
}

#define STEPS_OF_ONE 5 /* on a device, where one alone says nothing */
#define STEPS_FEW    2 /* quick */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_decode(struct bench_model *bench, uint32_t kv, uint32_t batch)
{
    double seconds[STEPS_OF_ONE];
    if (!bench->device)
        return cpu_step(bench, kv, batch);
    uint32_t steps = bench->quick ? STEPS_FEW : STEPS_OF_ONE;
    device_steps(bench, kv, batch, steps, seconds, NULL);
    qsort(seconds, steps, sizeof(*seconds), compare_doubles);
    return seconds[steps / 2];
}
