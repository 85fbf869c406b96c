/*
 * What one thread of this machine can do, measured when asked: the denominators of the benchmarks.
 */
#ifndef BATON_TESTS_BENCH_LIMITS_H
#define BATON_TESTS_BENCH_LIMITS_H

#include <stdbool.h>
#include <stddef.h>

struct bt_team;

/* The unit that multiplies for a table of kernels (kernels.h). */
enum limit_unit {
    LIMIT_FMA_AVX2,   /* 8 f32 */
    LIMIT_FMA_AVX512, /* 16 f32 */
    LIMIT_DOT_BF16,   /* vdpbf16ps, 512 bits */
    LIMIT_DOT_INT8,   /* vpdpbusd, 512 bits */
    LIMIT_AMX_BF16,   /* tdpbf16ps */
    LIMIT_AMX_INT8,   /* tdpbssd */
};

/* The unit behind a table's products of bf16 or int8 inputs in tiles; false: none (ref). */
bool limit_unit_of(const char *kernels, bool int8, enum limit_unit *ret_unit);
const char *limit_unit_name(enum limit_unit unit);

/* Operations (a multiplication and an addition are two) a second of all threads of the team
 * together: the best of a few short runs. The CPU must have the unit. */
double limit_flops(enum limit_unit unit, struct bt_team *team);

/* Bytes a second that all threads of the team together read from memory: best of a few runs over
 * 256 MiB. 0: no memory. */
double limit_read_bytes(struct bt_team *team);

#endif
