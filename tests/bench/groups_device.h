/*
 * The collectives of a group between two GPUs of this machine, over NCCL, for `groups --device
 * cuda`: the calls of groups.c on a stream, as decode queues them, each awaited. Prints
 *
 *     figure {dispatch,combine}_{1,8,32,128}rows_cuda   us, LIMIT: a copy of the bytes that come
 * in, from the other GPU's memory, and waited for figure allreduce_4m_cuda       likewise, for 4
 * MiB figure wire_bytes_over_formula_cuda
 *
 * What comes out is checked: sums by the numbers that went in.
 */
#ifndef BATON_TESTS_BENCH_GROUPS_DEVICE_H
#define BATON_TESTS_BENCH_GROUPS_DEVICE_H

#include <stdbool.h>

/* -1: --device names the CPU, or auto and there are no two GPUs; 0: two GPUs; else the exit code,
 * and the reason was said. Asks in a process of its own. */
int groups_device_look(const char *name);
/* 0: well. */
int groups_device_run(unsigned rounds, bool quick);

#endif
