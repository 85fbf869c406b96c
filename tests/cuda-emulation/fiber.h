/* Switching between fibers: stacks of one thread of the system. */
#ifndef BATON_TESTS_CUDA_EMULATION_FIBER_H
#define BATON_TESTS_CUDA_EMULATION_FIBER_H

#include <cstddef>

namespace emulation {

/* Keeps where this fiber is in *kept, goes on where `to` was kept. */
void fiber_switch(void **kept, void *to);
/* A fiber that has not begun: entry() never returns. The stack grows down from `end`. `slot`: one
 * for each fiber of a run, where there are no stack pointers to keep. */
void *fiber_make(unsigned char *end, size_t bytes, void (*entry)(), void **slot);

} // namespace emulation

#endif
