#include "tests/golden/engine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"

bool engine_is_gpu(const char *kernels)
{
    return !strncmp(kernels, "cuda", 4);
}

static enum bt_status open_device(const char *kernels, struct bt_error *error,
                                  struct bt_device **ret_device)
{
    bool is_gpu = engine_is_gpu(kernels);
    return bt_device_open(is_gpu ? kernels : "cpu", is_gpu ? NULL : kernels, error, ret_device);
}

bool engine_can_open(const char *kernels, struct bt_error *error)
{
    struct bt_device *device;
    if (open_device(kernels, error, &device) != BT_OK)
        return false;
    bt_device_close(device);
    return true;
}

bool engine_is_emulated(const char *kernels)
{
    struct bt_device *device;
    struct bt_device_info info;
    struct bt_error error;
    if (open_device(kernels, &error, &device) != BT_OK)
        return false;
    bt_device_info(device, &info);
    bt_device_close(device);
    return !strncmp(info.description, "Emulated", 8);
}

/* All bits set: NaN, so that a read of what was not written shows. */
static enum bt_status make_pool(struct engine *engine, struct bt_error *error)
{
    size_t bytes = bt_kv_pool_bytes(&engine->layout, engine->pool_pages);
    void *ones = NULL;
    enum bt_status status = bt_device_alloc(engine->device, bytes, error, &engine->pool);
    if (status == BT_OK)
        status = bt_device_alloc_host(engine->device, bytes, error, &ones);
    if (status != BT_OK)
        return status;
    memset(ones, 0xff, bytes);
    bt_device_copy(engine->device, engine->copies, engine->pool, ones, bytes);
    status = bt_device_synchronize(engine->device, engine->copies, error);
    bt_device_free_host(engine->device, ones);
    return status;
}

static enum bt_status load(struct engine *engine, const char *dir,
                           const struct engine_options *options, struct bt_error *error)
{
    const struct bt_model_options model = {.dir = dir,
                                           .device = engine->device,
                                           .dtype = options->dtype,
                                           .max_tokens = options->pool_pages * BT_PAGE_TOKENS,
                                           .team = engine->team};
    const struct bt_forward_options forward = {.max_rows = options->max_rows,
                                               .max_logits = options->max_rows};
    enum bt_status status = bt_model_load(&model, error, &engine->model);
    if (status == BT_OK)
        status = bt_forward_create(engine->model, &forward, error, &engine->forward);
    return status;
}

struct engine *engine_open(const char *dir, const struct engine_options *options)
{
    struct bt_error error = {0};
    struct engine *engine = calloc(1, sizeof(*engine));
    const struct bt_team_options team = {.threads = options->threads};
    const struct bt_stream_limits nothing = {.max_rows = 1, .max_cols = 1};
    if (options->threads && bt_team_create(&team, &error, &engine->team) != BT_OK)
        fail_msg("%s", error.text);
    if (open_device(options->kernels, &error, &engine->device) != BT_OK ||
        bt_device_enter(engine->device, &error) != BT_OK ||
        load(engine, dir, options, &error) != BT_OK ||
        bt_device_stream_create(engine->device, &nothing, NULL, &error, &engine->copies) != BT_OK)
        fail_msg("%s", error.text);
    engine->pool_pages = options->pool_pages;
    engine->layout = bt_model_kv_layout(engine->model, options->kv_dtype);
    engine->vocab = engine->model->config.vocab_size;
    if (make_pool(engine, &error) != BT_OK)
        fail_msg("%s", error.text);
    return engine;
}

void engine_close(struct engine *engine)
{
    bt_forward_destroy(engine->forward);
    bt_device_stream_destroy(engine->device, engine->copies);
    bt_device_free(engine->device, engine->pool);
    bt_model_destroy(engine->model);
    bt_device_close(engine->device);
    bt_team_destroy(engine->team);
    free(engine);
}

void engine_read_pool(const struct engine *engine, size_t offset, size_t bytes, void *ret_bytes)
{
    struct bt_error error = {0};
    void *copy;
    if (bt_device_alloc_host(engine->device, bytes, &error, &copy) != BT_OK)
        fail_msg("%s", error.text);
    bt_device_copy(engine->device, engine->copies, copy, (const char *)engine->pool + offset,
                   bytes);
    if (bt_device_synchronize(engine->device, engine->copies, &error) != BT_OK)
        fail_msg("%s", error.text);
    memcpy(ret_bytes, copy, bytes);
    bt_device_free_host(engine->device, copy);
}

struct text *engine_texts(const struct engine *engine, uint32_t count, uint32_t tokens,
                          uint64_t seed)
{
    uint32_t each = bt_kv_pages_for(tokens);
    assert_true(each * count <= engine->pool_pages);
    uint32_t *order = calloc(engine->pool_pages, sizeof(*order));
    for (uint32_t i = 0; i < engine->pool_pages; i++)
        order[i] = i;
    for (uint32_t i = engine->pool_pages; seed && i-- > 1;) {
        uint32_t j = (uint32_t)(bt_random_u64(seed, i, 0) % (i + 1)), held = order[i];
        order[i] = order[j];
        order[j] = held;
    }
    struct text *texts = calloc(count, sizeof(*texts));
    for (uint32_t i = 0; i < count; i++) {
        texts[i].pages = calloc(each, sizeof(uint32_t));
        memcpy(texts[i].pages, order + (size_t)i * each, each * sizeof(uint32_t));
    }
    free(order);
    return texts;
}

void engine_texts_free(struct text *texts, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        free(texts[i].pages);
    free(texts);
}

static struct bt_forward_batch batch_of(const struct engine *engine, enum bt_forward_form form)
{
    return (struct bt_forward_batch){
        .form = form,
        .kv_pool = engine->pool,
        .layout = engine->layout,
        .pool_pages = engine->pool_pages,
        .every_row = engine->direct,
    };
}

static void run(const struct engine *engine, const struct bt_forward_batch *batch,
                const float **ret_logits)
{
    if (bt_forward_run(engine->forward, batch, ret_logits) != BT_OK)
        fail_msg("a run failed: %s", bt_forward_error(engine->forward));
}

void engine_feed(struct engine *engine, struct text *text, enum bt_forward_form form,
                 const uint32_t *tokens, uint32_t count, uint32_t chunk, const uint32_t *positions,
                 uint32_t position_count, const struct probe *probe, float *ret_logits)
{
    uint32_t *rows = calloc(position_count + 1, sizeof(*rows));
    uint32_t done = 0, row_count;
    for (uint32_t at = 0; at < count; at += chunk) {
        if (chunk == 0)
            chunk = count;
        uint32_t size = count - at < chunk ? count - at : chunk;
        for (row_count = 0;
             done + row_count < position_count && positions[done + row_count] < at + size;
             row_count++)
            rows[row_count] = positions[done + row_count] - at;
        struct bt_sequence_rows sequence = {text->pages, text->length, 0, size};
        struct bt_forward_batch batch = batch_of(engine, form);
        batch.tokens = tokens + at;
        batch.rows = size;
        batch.sequences = &sequence;
        batch.sequence_count = 1;
        batch.logit_rows = rows;
        batch.logit_count = row_count;
        if (probe) {
            batch.probe = probe->function;
            batch.context = probe->context;
        }
        const float *logits;
        run(engine, &batch, &logits);
        if (row_count)
            memcpy(ret_logits + (size_t)done * engine->vocab, logits,
                   (size_t)row_count * engine->vocab * sizeof(float));
        done += row_count;
        text->length += size;
    }
    free(rows);
}

/* With the best token of each row drawn, where the device draws: what bt_forward_warm is for. */
static void run_drawn(const struct engine *engine, struct bt_forward_batch *batch,
                      float *ret_logits)
{
    struct bt_draw *best = calloc(batch->logit_count, sizeof(*best));
    struct bt_forward_result result;
    size_t vocab = engine->vocab;
    if (bt_forward_draws(engine->forward))
        batch->draws = best;
    if (bt_forward_begin(engine->forward, batch) != BT_OK ||
        bt_forward_finish(engine->forward, &result) != BT_OK)
        fail_msg("a run failed: %s", bt_forward_error(engine->forward));
    for (uint32_t i = 0; i < batch->logit_count && result.tokens; i++)
        assert_int_equal(result.tokens[i], argmax(result.logits + i * vocab, engine->vocab));
    memcpy(ret_logits, result.logits, batch->logit_count * vocab * sizeof(float));
    free(best);
}

void engine_feed_batch(struct engine *engine, struct text *texts, uint32_t text_count,
                       enum bt_forward_form form, const uint32_t *const *tokens,
                       const uint32_t *counts, float *ret_logits)
{
    uint32_t total = 0;
    for (uint32_t i = 0; i < text_count; i++)
        total += counts[i];
    uint32_t *all = calloc(total, sizeof(*all)), *rows = calloc(text_count, sizeof(*rows));
    struct bt_sequence_rows *sequences = calloc(text_count, sizeof(*sequences));
    for (uint32_t i = 0, at = 0; i < text_count; at += counts[i++]) {
        memcpy(all + at, tokens[i], counts[i] * sizeof(*all));
        rows[i] = at + counts[i] - 1;
        sequences[i] = (struct bt_sequence_rows){texts[i].pages, texts[i].length, at, counts[i]};
        texts[i].length += counts[i];
    }
    struct bt_forward_batch batch = batch_of(engine, form);
    batch.tokens = all;
    batch.rows = total;
    batch.sequences = sequences;
    batch.sequence_count = text_count;
    batch.logit_rows = rows;
    batch.logit_count = text_count;
    run_drawn(engine, &batch, ret_logits);
    free(all);
    free(rows);
    free(sequences);
}

uint32_t argmax(const float *logits, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}
