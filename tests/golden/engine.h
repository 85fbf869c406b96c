/*
 * A model with a page pool and nothing else: prompts in chunks, decode steps, batches. What the
 * goldens are compared with.
 */
#ifndef BATON_TESTS_GOLDEN_ENGINE_H
#define BATON_TESTS_GOLDEN_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model/forward.h"

/* What else can be chosen; zeroes are float32, f32 pages and one thread. */
struct engine_options {
    const char *kernels;       /* of the CPU, or a GPU: "cuda" or "cuda:N" */
    enum bt_model_dtype dtype; /* AUTO: float32, the checkpoints being small */
    enum bt_dtype kv_dtype;
    uint32_t threads; /* 0: no team */
    uint32_t max_rows, pool_pages;
};

struct engine {
    struct bt_team *team;
    struct bt_device *device;
    struct bt_stream *copies; /* for reads of the pool while a run is under way */
    struct bt_model *model;
    struct bt_forward *forward;
    struct bt_kv_layout layout;
    void *pool; /* of the device */
    uint32_t pool_pages;
    uint32_t vocab;
    bool direct; /* runs are never replayed from a graph, nor padded */
};

/* One sequence: its pages and how many tokens of it are in them. */
struct text {
    uint32_t *pages; /* all it will need */
    uint32_t length;
};

struct probe {
    bt_forward_probe_fn *function;
    void *context;
};

bool engine_is_gpu(const char *kernels);
/* False: the reason why this machine can't. */
bool engine_can_open(const char *kernels, struct bt_error *error);
/* A GPU that tests/cuda-emulation makes up, which is some hundred times slower than this CPU. */
bool engine_is_emulated(const char *kernels);

/* An error ends the test with its text. */
struct engine *engine_open(const char *dir, const struct engine_options *options);
void engine_close(struct engine *engine);

/* Pages for `tokens` tokens; with a seed they are a random choice of the pool's, seed 0: from 0 on.
 * Texts that live at once must come from one call: `count` texts of `tokens` tokens. */
struct text *engine_texts(const struct engine *engine, uint32_t count, uint32_t tokens,
                          uint64_t seed);
void engine_texts_free(struct text *texts, uint32_t count);

/*
 * Appends tokens to the text, `chunk` rows a run (0: all at once). Logits of the ascending
 * `positions` (relative to the first token given) to `ret_logits` [position_count][vocab].
 */
void engine_feed(struct engine *engine, struct text *text, enum bt_forward_form form,
                 const uint32_t *tokens, uint32_t count, uint32_t chunk, const uint32_t *positions,
                 uint32_t position_count, const struct probe *probe, float *ret_logits);

/* One run over several texts: counts[i] tokens of text i, last logits of each. A device that draws
 * tokens draws the best, which is checked. */
void engine_feed_batch(struct engine *engine, struct text *texts, uint32_t text_count,
                       enum bt_forward_form form, const uint32_t *const *tokens,
                       const uint32_t *counts, float *ret_logits);

/* Bytes of the pool, also while a run is under way. */
void engine_read_pool(const struct engine *engine, size_t offset, size_t bytes, void *ret_bytes);

uint32_t argmax(const float *logits, uint32_t count);

#endif
