/* The amx table of kernels on a CPU without tiles, some thousand times slower. */
#ifndef BATON_TESTS_GOLDEN_EMULATED_H
#define BATON_TESTS_GOLDEN_EMULATED_H

#include <stdbool.h>
#include <stdint.h>

/* From now on bt_kernels_select knows amx. False: the CPU has tiles itself, or lacks more. */
bool golden_amx_emulate(void);

/* Instructions that were emulated so far. */
uint64_t golden_amx_emulated(void);

#endif
