/*
 * Counter-based random numbers: a pure function of (seed, position, draw), so that a sequence
 * draws the same numbers wherever and whenever it runs. Philox 4x32-10 (Salmon et al., SC 2011).
 */
#ifndef BATON_COMMON_BASE_RANDOM_H
#define BATON_COMMON_BASE_RANDOM_H

#include <stdint.h>

/* The block function itself: 4 words of counter and 2 of key give 4 random words. */
void bt_random_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t ret_words[4]);

/* 64 random bits: key = seed, counter = {position, draw, 0}, low words first; words 1:0 of the
 * block. */
uint64_t bt_random_u64(uint64_t seed, uint64_t position, uint32_t draw);

/* Uniform in [0, 1) with 53 bits. */
double bt_random_unit(uint64_t seed, uint64_t position, uint32_t draw);

/* From the kernel: for ids and seeds nobody gave. Never 0. */
uint64_t bt_random_entropy(void);

#endif
