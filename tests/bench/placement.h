/* How even the placements of experts are under a skewed load. */
#ifndef BATON_TESTS_BENCH_PLACEMENT_H
#define BATON_TESTS_BENCH_PLACEMENT_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Prints `figure {contiguous,roundrobin,balanced}_max_over_mean VALUE x 1 RATIO`: the largest load
 * of a rank over the mean (all layers together; a limit of 1 is perfectly even), and the share of
 * the limit that is reached. 256 experts, 8 ranks, 32 replicas for balanced; runs of neighbours are
 * hit five times as often as the others. False: no memory.
 */
bool bench_placement(void);

/* The same figures, after `prefix`, of loads [layers][experts] on so many ranks; no replicas. */
bool bench_placement_of(const char *prefix, uint32_t layers, uint32_t experts, uint32_t ranks,
                        const uint64_t *loads);

#endif
