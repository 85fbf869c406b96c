/*
 * Benchmarks on a device: opening the one that --device names, timing what it queues, and what it
 * can do at most, measured there in the same run. What goes wrong on an open device ends the
 * program with what it said. One thread.
 */
#ifndef BATON_TESTS_BENCH_DEVICE_BENCH_H
#define BATON_TESTS_BENCH_DEVICE_BENCH_H

#include <stdbool.h>

#include "common/kernels/device.h"

#define DEVICE_SKIPPED   77
#define DEVICE_EIGHT_BIT 2 /* products of 8-bit formats are held to so many times the bf16 ones */

/* `name` as the workers' --device, for rank `rank`, and enters it. 0; else the program's exit code,
 * and the reason is on stderr: 77, a device that is not here; 2, no such name or number. */
int device_open(const char *program, const char *name, const char *kernels, uint32_t rank,
                struct bt_device **ret_device);
/* GPUs of this machine, of which one is open. */
uint32_t device_count(void);
/* "_cuda"; "" of a CPU. For names of figures. */
const char *device_suffix(const struct bt_device *device);

void device_must(enum bt_status status, const struct bt_error *error);
void *device_take(struct bt_device *device, size_t bytes);
void device_wait(struct bt_device *device, struct bt_stream *stream);
/* Random floats in [-1, 1]; they repeat. `i` of them is device_filler(i). */
float device_filler(size_t i);
void device_fill(struct bt_device *device, struct bt_stream *stream, float *floats, size_t count);

/* Queues the work once. */
typedef void device_work_fn(void *context);

/* Seconds of the work: the best of five runs of many, one after the other. `quick`: of one, which
 * says nothing. */
double device_seconds(struct bt_device *device, struct bt_stream *stream, bool quick,
                      device_work_fn *work, void *context);
/* Bytes a second of one copy, either way or inside of one memory. */
double device_copy_rate(struct bt_device *device, struct bt_stream *stream, bool quick, void *to,
                        const void *from, size_t bytes);

struct device_rates {
    double memory_bytes; /* read and written a second, by a copy inside of its memory */
    double bf16_ops;     /* a second, of a product of 8192 x 8192 matrices */
};

/* Of a GPU. Takes, and gives back, about 1 GiB of its memory. `quick`: of small arrays, whose rates
 * say nothing. */
struct device_rates device_rates_measure(struct bt_device *device, bool quick);

#endif
