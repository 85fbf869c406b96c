/*
 * What this machine can do at this moment, the denominators of the benchmarks: neighbours and
 * clocks move it, so it is measured beside each figure. A call takes some milliseconds. One thread
 * at a time.
 */
#ifndef BATON_TESTS_BENCH_LIMITS_H
#define BATON_TESTS_BENCH_LIMITS_H

#include <stddef.h>
#include <stdint.h>

struct bt_team;

/* Time that this thread was on a core: what others took of it does not count. */
int64_t limit_clock_ns(void);
/* That for a team of one thread (or NULL); of several none's says when all were done: the time that
 * passes. */
int64_t limit_now_ns(struct bt_team *team);

/* The instruction that a table of kernels multiplies with. */
enum limit_unit {
    LIMIT_F32,  /* fused multiply-add */
    LIMIT_BF16, /* of tiles in bf16: TDPBF16PS, VDPBF16PS, or LIMIT_F32 */
    LIMIT_INT8, /* of tiles in int8: TDPBSSD, VPDPBUSD, or VPMADDWD and an addition */
};

/*
 * Operations a second (a multiply-add is two) of all threads of the team together (NULL: of this
 * one), with the unit of the table named so; the CPU must have it. The second best of a few short
 * runs. 0: not known here, or a table without such a unit (ref).
 */
double limit_ops(const char *kernels, enum limit_unit unit, struct bt_team *team);

/*
 * Bytes a second that they read from memory: 256 MiB of huge pages, in one of the best of many ways
 * (how many streams, how far ahead they are asked for). The first call finds the ways that are good
 * here; later ones run those. The memory stays. 0: no memory.
 */
double limit_read(struct bt_team *team);

#endif
