/*
 * A fuzz target is one file with these two functions. Linked with driver.c it is a test: a fixed
 * time of random changes to its seeds, from a seed that is printed. Built with libFuzzer instead
 * (clang -fsanitize=fuzzer), the same file is searched by coverage.
 */
#ifndef BATON_TESTS_FUZZ_DRIVER_H
#define BATON_TESTS_FUZZ_DRIVER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/base/status.h"

/* Must come back whatever the input; a fault ends the process. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Writes valid input number `index` to `ret_data`, at most `capacity` bytes; 0: no such input. */
size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity);

/* fuzz_seed of a target whose inputs are the texts seeds[0..count). */
static inline size_t fuzz_seed_text(const char *const *seeds, size_t count, size_t index,
                                    uint8_t *ret_data, size_t capacity)
{
    if (index >= count) {
        return 0;
    }
    size_t size = strlen(seeds[index]);
    BT_ASSERT(size <= capacity);
    memcpy(ret_data, seeds[index], size);
    return size;
}

#endif
