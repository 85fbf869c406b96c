/*
 * The emulated grid: runs a kernel that was compiled for this machine, every thread of it a fiber
 * of the calling thread, block after block, those of a cluster beside each other. A thread of the
 * system may run one grid at a time; several threads run theirs at the same time.
 *
 * What kernels do wrong is a fault: it is printed to stderr and the process aborted, or handed to a
 * handler. README.md says which there are.
 *
 * Environment: BATON_EMULATION_SEED permutes blocks, warps and lanes (0, the default: in order);
 * BATON_EMULATION_MMA is the rounding of tensor cores (see Rounding).
 */
#ifndef BATON_TESTS_CUDA_EMULATION_GRID_H
#define BATON_TESTS_CUDA_EMULATION_GRID_H

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace emulation {

struct Grid {
    const char *name; /* of the kernel, for faults */
    dim3 blocks;
    unsigned threads; /* of a block, in x; at most 1024 */
    size_t shared_bytes;
    unsigned cluster = 1;         /* blocks of a cluster, neighbours in x: 1 or 2 */
    const void *kernel = nullptr; /* its code, for counting */
};

/* Every thread calls body(context), and may read these bytes at `context`: the kernel's parameters.
 * False: there was a fault, and a handler took it. */
bool run_grid(const Grid &grid, void (*body)(void *context), void *context, size_t context_bytes);

/* What `body` captures by reference it may not read. */
template <typename Body> bool run_grid(const Grid &grid, const Body &body)
{
    void *context = const_cast<void *>(static_cast<const void *>(std::addressof(body)));
    return run_grid(
        grid, [](void *kept) { (*static_cast<const Body *>(kept))(); }, context, sizeof(Body));
}

/* Global memory: kernels may touch nothing else of it. Thread safe. An allocation begins written
 * (the runtime's memory is zeroed or poisoned by itself); removing also forgets its shadow. */
void device_memory_add(const void *memory, size_t bytes);
void device_memory_remove(const void *memory);
bool device_memory_holds(const void *memory, size_t bytes);

/* Of this thread's grids from now on: gets the text; the grid is given up. NULL: print, abort. */
typedef void (*fault_handler)(const char *text);
void set_fault_handler(fault_handler handler);
/* Of this thread's grids from now on, in place of the environment's. */
void set_seed(uint64_t seed);

/*
 * Products are exact. How the sum of a dot product and the accumulator is rounded inside of tensor
 * cores no specification says, so results may not hinge on it.
 */
enum class Rounding {
    nearest,    /* summed in double from k = 0 on, the accumulator last; one rounding, to even */
    truncate,   /* the same, one rounding towards zero */
    sequential, /* k after k to the accumulator, each rounded to even */
    halves      /* as truncate, but 8 products at a time */
};
/* Of all threads. */
void set_rounding(Rounding rounding);

/* What a tensor map of two dimensions holds here, in place of the driver's 128 opaque bytes. */
struct TensorMap {
    static constexpr uint64_t kMagic = 0x70616d726f736e65;
    uint64_t magic;
    const void *base; /* of the device, a multiple of 16 */
    uint64_t size[2]; /* elements; [0] is contiguous */
    uint64_t pitch;   /* bytes from one y to the next, a multiple of 16 */
    uint32_t box[2];  /* elements, each 1 … 256 */
    uint32_t element_bytes;
    uint32_t swizzle; /* CU_TENSOR_MAP_SWIZZLE_: 0 none, 1 of 32 bytes, 2 of 64, 3 of 128 */
};
static_assert(sizeof(TensorMap) <= 128, "a CUtensorMap has 128 bytes");

} // namespace emulation

#endif
