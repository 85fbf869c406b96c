/* What steps of a group cost by the placement of experts. */
#ifndef BATON_TESTS_BENCH_STEPS_H
#define BATON_TESTS_BENCH_STEPS_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Two processes on two CPUs decode together: a synthetic model (4 layers, 3 of them with 32
 * experts, 4 a token; hidden 1024) whose routers prefer some experts, in runs of neighbours, about
 * five times as much as the others; rows of random tokens that are new in every step. Prints
 *
 *     figure skewed_{contiguous,roundrobin,balanced}_max_over_mean VALUE x 1 RATIO
 *     figure step_{contiguous,roundrobin,balanced} VALUE us LIMIT RATIO
 *
 * medians of steps in turns. LIMIT: of step_balanced, a step of the same model without preferences,
 * placed round-robin; of the others, step_balanced. False: something failed, and was said.
 */
bool bench_steps(uint32_t rounds);

/* One line: the median step with so many rows on each rank, without preferences; for comparing two
 * builds. */
bool bench_uneven_steps(uint32_t rounds, const uint32_t rows[2]);

#endif
