/* A prefill engine and a decode engine on one pool of pages, and requests for them: their tokens
 * are compared. */
#ifndef BATON_TESTS_ENGINE_BENCH_H
#define BATON_TESTS_ENGINE_BENCH_H

#include "decode-node/engine.h"
#include "prefill-node/engine.h"

#define SEQUENCES    10
#define MAX_TOKENS   90
#define POOL_PAGES   64
#define MAX_PROMPT   150
#define PROMPT_CHUNK 10 /* of what the decode engine computes itself */

/* Both engines on one pool: nothing has to be moved. */
struct bench {
    struct bt_model *model;
    struct bt_kv_layout layout;
    void *pool;
    struct pf_engine *prefill;
    struct dc_engine *decode;
    struct dc_step step;
};

struct subject {
    uint32_t prompt[MAX_PROMPT];
    uint32_t prompt_tokens;
    struct bt_sampling sampling;
    struct bt_sampler_history *history;
    uint32_t pages[8];
    uint32_t replay[MAX_TOKENS];
    uint32_t replay_count;
    struct pf_job job;
    struct dc_sequence sequence;
    struct bt_sample samples[MAX_TOKENS];
    uint32_t sample_count;
    enum dc_finish finish;
};

void bench_open(struct bench *bench, uint32_t max_num_seqs, enum bt_dtype kv_dtype);
void bench_close(struct bench *bench);

void order_pages(uint32_t *order, uint64_t seed); /* [POOL_PAGES]; seed 0: ascending */
/* Every kind of sampling, prompts of other lengths, pages all over the pool. */
void subject_init(struct subject *subject, uint32_t index, const uint32_t *page_order);
/* Its prompt, by the prefill engine. */
void prefill(struct bench *bench, struct subject *subject, uint32_t serial);
void join(struct bench *bench, struct subject *subject, uint32_t request, uint32_t pages);
/* The decode engine computes the prompt. */
void join_with_prompt(struct bench *bench, struct subject *subject, uint32_t request,
                      uint32_t pages);
void take_step(struct bench *bench);
/* As if `before` had been cut off after the first `count` tokens. */
void replay_from(struct subject *subject, const struct subject *before, uint32_t count);
void remember(struct subject *subject);

/* All SEQUENCES of them, one after the other, by a prefill engine. */
void run_alone(struct subject *subjects, enum bt_dtype kv_dtype);
void expect_same(const struct subject *a, const struct subject *b);

#endif
