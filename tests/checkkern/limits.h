/*
 * What this core can do at this moment, for ratios: neighbours and clocks move it, so it is
 * measured beside each figure. Each call takes a few milliseconds.
 */
#ifndef BATON_TESTS_CHECKKERN_LIMITS_H
#define BATON_TESTS_CHECKKERN_LIMITS_H

#include <stddef.h>
#include <stdint.h>

/* Time that this thread was on a core: what others took of it does not count. */
int64_t limit_clock_ns(void);

/* The instruction that a table multiplies with. */
enum limit_unit {
    LIMIT_F32,  /* fused multiply-add */
    LIMIT_BF16, /* of tiles in bf16: TDPBF16PS, VDPBF16PS, or LIMIT_F32 */
    LIMIT_INT8, /* of tiles in int8: TDPBSSD, VPDPBUSD, or VPMADDWD and an addition */
};

/* Operations a second (a multiply-add is two) of the table named so. 0: not known here. */
double limit_ops(const char *kernels, enum limit_unit unit);

/* Bytes a second that this core reads from memory. The buffer of it (256 MiB) stays. */
double limit_read(void);

#endif
