/*
 * Passes over a row of logits, sixteen at a time, with the same bits on every CPU: no fused
 * multiply-add, one order of sums. A row is worked on in blocks.
 */
#ifndef BATON_COMMON_MODEL_LOGITS_H
#define BATON_COMMON_MODEL_LOGITS_H

#include <stdint.h>

#define BT_LOGITS_BLOCK 128

struct bt_logits_passes {
    /* The largest of one block; a NaN is not looked at; -inf if there is nothing else. */
    float (*max)(const float *block);
    /*
     * weights[i] = e^((block[i] - best) * inverse) in f32, within 3e-7 of itself where that is
     * above e^-1 and within 1e-5 elsewhere, rounded to a multiple of 2^-35; 1 where the logit is
     * best itself, 0 for a NaN, and where it is less than `least`. Returns their sum, which is
     * exact, as is in a double each sum of 262144 of them.
     */
    double (*weigh)(const float *block, float best, float inverse, float least, float *weights);
};

/* The fastest that this CPU has. */
const struct bt_logits_passes *bt_logits_passes(void);
/* All that this CPU has, ends with NULL; for tests. */
const struct bt_logits_passes *const *bt_logits_passes_available(void);

#endif
