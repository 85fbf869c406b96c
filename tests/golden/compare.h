/* Comparison of one checkpoint's engine with its goldens: what tiny and the variants share. */
#ifndef BATON_TESTS_GOLDEN_COMPARE_H
#define BATON_TESTS_GOLDEN_COMPARE_H

#include "common/model/safetensors.h"
#include "tests/golden/engine.h"

struct golden {
    struct bt_safetensors *file;
    const char *name;
    uint32_t token_count, position_count, greedy_count;
    const uint32_t *ids;       /* [token_count] */
    const uint32_t *positions; /* [position_count] */
    const float *logits;       /* [position_count][vocab] */
    const uint32_t *greedy;    /* [greedy_count] */
    const float *greedy_gap;   /* [greedy_count] */
};

void golden_open(const char *path, const char *name, struct golden *ret_golden);
void golden_close(struct golden *golden);
/* NULL where the golden has no such tensor. */
const void *golden_data(const struct golden *golden, const char *tensor);

/* The largest |a - b|; a NaN counts as infinite. */
double largest_difference(const float *a, const float *b, size_t count);
/* Fails with the first place where the bits differ. */
void assert_same_bits(const char *what, const float *a, const float *b, size_t count);

/* Logits at the golden's positions within `tolerance`; the largest difference. */
double compare_logits(struct engine *engine, const struct golden *golden, uint32_t chunk,
                      double tolerance);

/*
 * All states of one pass where the golden has them: residual stream, latents in the pages, expert
 * choices (exactly: the index proves that no choice is near a tie) and their weights.
 */
void compare_states(struct engine *engine, const struct golden *golden);

/* Prefill in the multi-head form, decode in the absorbed form, token for token. */
void compare_greedy(struct engine *engine, const struct golden *golden);

#endif
