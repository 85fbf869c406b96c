/*
 * A device under the cases, which know the host's memory alone: a table whose operations take their
 * buffers to the device, between canaries and at the same address modulo 256, run there, and take
 * back what was written. Whatever an operation only reads has to be the same afterwards. Streams
 * are the CPU's; each has one of the device behind it.
 */
#ifndef BATON_TESTS_CHECKKERN_DEVICE_H
#define BATON_TESTS_CHECKKERN_DEVICE_H

#include "common/kernels/device.h"
#include "tests/checkkern/check.h"

/* False: there is none; says why on stdout. */
bool check_device_open(const char *name);
void check_device_close(void);
struct bt_device *check_device(void); /* NULL: the CPU is under test */

const struct bt_kernels *check_device_kernels(void);
/* `oracle` for weights that were packed for the device: it has its own packed ones. */
const struct bt_kernels *check_device_oracle(const struct bt_kernels *oracle);

/* For faults of buffers. */
void check_device_begin(struct check *check);
/* At the end of a shape: weights that were packed are given back. */
void check_device_end(void);

#endif
