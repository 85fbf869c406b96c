/*
 * A device for pools, as late as a GPU may be: what is queued on a stream is done when somebody has
 * asked for it a few times, or waits. Its memory is the host's, but says that it is a GPU's.
 */
#ifndef BATON_TESTS_CONFORMANCE_POOL_DEVICE_H
#define BATON_TESTS_CONFORMANCE_POOL_DEVICE_H

#include "common/kernels/device.h"

struct bt_device *pool_device(void);
/* Allocations that are not freed. */
unsigned pool_device_blocks(void);

#endif
