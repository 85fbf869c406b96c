/*
 * What rounding to bf16 does to a model, found by rounding at random: a table of kernels that
 * computes in f32 and rounds what products take to one of the two nearest bf16, the nearer one the
 * likelier. The variance of that is twice that of rounding to the nearest, so what a model does in
 * bfloat16 arithmetic lies within what it does under such noise, wherever the errors of one place
 * are independent of those of others.
 *
 * Inputs of products are rounded as kernels.h says they are in tile arithmetic, but those inside of
 * attention: queries a second time for the keys, with whose rounding their error is alike, and
 * results for probabilities and values.
 */
#ifndef BATON_TESTS_GOLDEN_NOISE_H
#define BATON_TESTS_GOLDEN_NOISE_H

#include "tests/golden/engine.h"

/* From now on the engine, which has float32 weights, makes noise of `seed`. One engine at a time.
 */
void noise_begin(struct engine *engine, uint64_t seed);

#endif
