/*
 * What the emulated instructions.cuh asks of the grid, called by fibers alone. `Place` is where the
 * kernel says the instruction: it tells instructions apart, and faults name it.
 */
#ifndef BATON_TESTS_CUDA_EMULATION_HARDWARE_H
#define BATON_TESTS_CUDA_EMULATION_HARDWARE_H

#include <vector_types.h>

#include <cstdint>

namespace emulation {

struct Place {
    const char *file;
    int line;
};

inline Place here(const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    return {file, line};
}

/* A fiber stays the thread that it is: the compiler may keep these. */
[[gnu::const]] uint3 thread_index();
[[gnu::const]] uint3 block_index();
[[gnu::const]] uint3 block_size();
[[gnu::const]] uint3 grid_size();
[[gnu::const]] unsigned char *shared_memory();

uint32_t shared_address(const void *shared);

void sync_block(Place place);
uint32_t cluster_rank();
uint32_t cluster_size();
void sync_cluster(Place place);
void sync_named(uint32_t barrier, uint32_t threads, bool wait, Place place);
void sync_warp(Place place);
/* The value of lane `lane`. */
uint32_t shuffle(uint32_t value, uint32_t lane, Place place);
uint32_t ballot(bool is, Place place);
void fence_device();
void fence_async();
uint32_t atomic_add(uint32_t *at, uint32_t value, Place place);
uint32_t atomic_max(uint32_t *at, uint32_t value, Place place);

/* An instruction that the architecture lacks: real code would silently do nothing. */
void missing(const char *what, Place place);

/* Accesses that are more than plain: 16 bytes, aligned, of the state space named. */
void check_global(const void *at, bool write, bool constant, Place place);
void check_shared(const void *at, bool write, Place place);

void copy_async(void *shared, const void *global, uint32_t bytes, bool valid, Place place);
void copy_async_commit();
void copy_async_wait(unsigned left);

void mbarrier_init(void *mbarrier, uint32_t count, Place place);
void mbarrier_arrive(void *mbarrier, uint32_t expect, Place place);
void mbarrier_arrive_cluster(void *mbarrier, uint32_t rank, Place place);
void mbarrier_wait(void *mbarrier, uint32_t parity, Place place);
void bulk_copy(void *shared, const void *global, uint32_t bytes, void *mbarrier, Place place);
void bulk_copy_cluster(const void *shared, uint32_t bytes, void *mbarrier, uint32_t rank,
                       Place place);
void bulk_copy_box(void *shared, const void *map, uint32_t x, uint32_t y, void *mbarrier,
                   Place place);

void ldmatrix(uint32_t *out, const void *shared, unsigned matrices, bool transposed, Place place);
void mma_bf16(float *d, const uint32_t *a, const uint32_t *b, Place place);
void mma_s8(int32_t *d, const uint32_t *a, const uint32_t *b, Place place);
void mma_e4m3(float *d, const uint32_t *a, const uint32_t *b, Place place);

enum class Element { bf16, e4m3, s8 };
struct Wgmma {
    void *d;           /* of 4 bytes each: f32, of s8 int32 */
    const uint32_t *a; /* registers, or NULL: by descriptor */
    uint64_t a_descriptor, b_descriptor;
    unsigned n;
    bool more, transpose_a, transpose_b;
    Element element; /* 16 k of bf16, 32 of bytes */
};
void wgmma(const Wgmma &wgmma, Place place);
void wgmma_fence(Place place);
void wgmma_commit(Place place);
void wgmma_wait(unsigned left, Place place);

void set_registers(unsigned count, bool raise, Place place);

/* A fused multiply-add, for counting. */
void fused();

float exp2_fast(float x);
uint8_t e4m3_from(float value);

} // namespace emulation

#endif
