/*
 * Counting, on with BATON_EMULATION_COUNTS=FILE: of each launch, what its warps ask of shared and
 * global memory and of the units, by the place in the code. README.md says what is counted and how;
 * count_kernels.py reads the file.
 */
#ifndef BATON_TESTS_CUDA_EMULATION_COUNTS_H
#define BATON_TESTS_CUDA_EMULATION_COUNTS_H

#include <cstddef>
#include <cstdint>

namespace emulation {

struct Run;

enum class Counted : uint8_t {
    shared_read,
    shared_write,
    shared_atomic,
    global_read,
    global_write,
    global_atomic,
    bulk_read
};

/* A launch; without counting run->counts stays NULL. Its account is written at the end. */
void counts_begin(Run *run);
void counts_end(Run *run);

/* Only with run->counts: an access of the thread that runs. */
void counts_access(Run *run, Counted kind, const void *at, uint32_t bytes, const void *code);
/* Of shared or global memory, or of the kernel's parameters, which are not counted. */
void counts_plain(Run *run, const void *at, size_t bytes, bool write, const void *code);
/* These do nothing without run->counts. All lanes of the warp have met. */
void counts_flush(Run *run, unsigned warp);
/* ldmatrix: rows of 16 bytes of shared memory. */
void counts_matrices(Run *run, const unsigned char *const *rows, unsigned count, const void *code);
void counts_bulk(Run *run, const void *from, size_t bytes, const void *code);
/* Multiplications of tensor cores. */
void counts_products(Run *run, uint64_t products);

} // namespace emulation

#endif
