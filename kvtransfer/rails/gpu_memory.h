/*
 * Whether a NIC can reach GPU memory on this machine, and how: through the kernel's dma-buf, or
 * through the peer memory module of the NVIDIA driver. UCX finds the type of memory that it is
 * given by itself; what it then needs of the kernel is looked at here and said in words.
 */
#ifndef BATON_KVTRANSFER_RAILS_GPU_MEMORY_H
#define BATON_KVTRANSFER_RAILS_GPU_MEMORY_H

#include <stdbool.h>

struct kvt_gpu_memory {
    bool gpu_driver;  /* the NVIDIA kernel module is loaded */
    bool peer_memory; /* nvidia_peermem (or nv_peer_mem) is loaded */
    bool dmabuf;      /* kernel (5.12 or later) and libibverbs can register dma-buf memory */
    char words[256];  /* one line */
};

/* `root`: of /proc and /sys, "" for this machine. `kernel`: as uname -r says it. `verbs_dmabuf`:
 * libibverbs has ibv_reg_dmabuf_mr. */
void kvt_gpu_memory_judge(const char *root, const char *kernel, bool verbs_dmabuf,
                          struct kvt_gpu_memory *ret_memory);

/* This machine. */
void kvt_gpu_memory_probe(struct kvt_gpu_memory *ret_memory);

#endif
