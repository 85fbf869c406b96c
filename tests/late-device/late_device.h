/*
 * A device that does its work as late as it may: what is queued waits until the host waits for it,
 * and then no more is done than was waited for. Kernels are those of a CPU. What a copy is going to
 * write to the host's memory is spoilt until then. It stages, pads, draws and has graphs as
 * kernels.h and device.h say, so that a program that runs on it waits where it has to, and a test
 * can count where.
 */
#ifndef BATON_TESTS_LATE_DEVICE_LATE_DEVICE_H
#define BATON_TESTS_LATE_DEVICE_LATE_DEVICE_H

#include "common/kernels/device.h"

/* `cpu`: the table that computes; outlives it. Ends the program where there is no memory. */
struct bt_device *late_device_create(const struct bt_kernels *cpu);
void late_device_destroy(struct bt_device *device);

struct late_device_counts {
    uint64_t waits, stages, launches, captures;
    uint64_t queued, done; /* operations, those of graphs not counted one by one */
    uint64_t allocations;
};
struct late_device_counts late_device_count(const struct bt_device *device);

/* From now on every wait fails. */
void late_device_break(struct bt_device *device);

#endif
