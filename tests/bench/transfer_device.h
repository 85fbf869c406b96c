/*
 * The handoff between pools in the memory of GPUs, for `transfer --device`: source and target are
 * two processes, each with its GPU, the next one of this machine where there are several. What
 * arrived is checked by the sums of both ends and by bytes of its last layer. Prints figures; ends
 * the process where it fails.
 */
#ifndef BATON_TESTS_BENCH_TRANSFER_DEVICE_H
#define BATON_TESTS_BENCH_TRANSFER_DEVICE_H

#include <stdbool.h>

struct transfer_device {
    const char *name; /* of --device */
    bool quick;       /* short pushes, whose figures say nothing */
};

/* 0: a GPU; -1: the CPU; else the exit code, and the reason was said. Asks in a process of its own:
 * drivers are not made for fork. */
int transfer_device_look(const struct transfer_device *on);

/* cuda_ipc. Limit: one copy of as many bytes to the other's memory, which is the link's or the
 * memory's. */
void transfer_device_ipc(const struct transfer_device *on);
/* By pools in memory of the host, over `transport`, until it is in the target's GPU. Limit: the
 * slowest of the ways, each as one copy: out of the GPU, memory to memory, into the GPU. */
void transfer_device_staged(const struct transfer_device *on, const char *transport);
/* From GPU to GPU by the NICs. Limit: the rate of the rails. Says why where there is none. */
void transfer_device_rdma(const struct transfer_device *on);

#endif
