/*
 * The seed of a test that draws at random: BATON_TEST_SEED, or one that is the same in every
 * run, so that what passed passes again. Printed in either case.
 */
#ifndef BATON_TESTS_SEED_H
#define BATON_TESTS_SEED_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static inline uint64_t test_seed(void)
{
    const char *given = getenv("BATON_TEST_SEED");
    uint64_t value = given ? strtoull(given, NULL, 0) : 20261122;
    printf("BATON_TEST_SEED=%" PRIu64 "\n", value);
    fflush(stdout);
    return value;
}

#endif
