/*
 * What rank 0 has the ranks compute in one iteration: chunks of prompts, as words that a rank takes
 * in whole or not at all. Pure.
 *
 * The words: how many chunks; for each its job's serial (low, high), start, rows, whether the
 * prompt ends with it; then the pages of all chunks, then the tokens of all.
 */
#ifndef BATON_PREFILL_NODE_PLAN_H
#define BATON_PREFILL_NODE_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"

struct pf_plan_chunk {
    uint64_t serial; /* see struct pf_job */
    uint32_t start, rows;
    bool is_last;           /* the prompt ends with it: its last row has logits */
    const uint32_t *pages;  /* [bt_kv_pages_for(start + rows)], of every rank's pool */
    const uint32_t *tokens; /* [rows] */
    struct pf_layer_times
        *times; /* of the prompt, on rank 0 and not in the words; NULL: nobody asks */
};

struct pf_plan_limits {
    uint32_t max_chunks, max_rows; /* of one iteration */
    uint32_t max_tokens;           /* of a prompt */
    uint32_t pool_pages, vocab_size;
};

/* Of any plan; prompts may share pages. */
uint32_t pf_plan_max_words(const struct pf_plan_limits *limits);

/* ret_words holds pf_plan_max_words; at least one chunk. Returns how many words. */
uint32_t pf_plan_encode(const struct pf_plan_chunk *chunks, uint32_t count,
                        const struct pf_plan_limits *limits, uint32_t *ret_words);

/* ret_chunks holds limits->max_chunks and points into `words`. PROTOCOL says what is wrong: with
 * what comes out a rank may compute, whatever the words were. */
enum bt_status pf_plan_decode(const uint32_t *words, uint32_t word_count,
                              const struct pf_plan_limits *limits, struct bt_error *error,
                              struct pf_plan_chunk *ret_chunks, uint32_t *ret_count);

#endif
