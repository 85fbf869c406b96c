/*
 * What this machine has for workers with --device cuda: the module, driver, runtime, NCCL, GPUs,
 * how they reach each other, and whether NICs and UCX reach their memory. Looked at by one process,
 * judged by another: drivers are not made for fork.
 */
#ifndef BATON_DEPLOY_BATONCTL_DOCTOR_GPU_H
#define BATON_DEPLOY_BATONCTL_DOCTOR_GPU_H

#include "common/base/status.h"
#include "deploy/batonctl/doctor.h"

#define CTL_GPUS_MAX 16

struct ctl_gpu {
    char name[16];     /* "cuda:0" */
    char problem[256]; /* why it is of no use; "": it is */
    char description[128];
    uint64_t total_bytes, free_bytes;
    bool peer_memory; /* NICs reach it */
    char peer_memory_missing[256];
};

/* Plain data, for a pipe. */
struct ctl_gpus {
    bool is_likely;    /* a module was named, or a GPU's driver is here */
    char problem[512]; /* why there is no GPU to be had; "": there are some */
    /* Of CUDA and NCCL as they number them; 0: not known. */
    int driver, runtime, nccl;
    uint32_t count; /* that are told; there may be more */
    struct ctl_gpu gpus[CTL_GPUS_MAX];
    bool reaches[CTL_GPUS_MAX][CTL_GPUS_MAX]; /* [from][to] */
    bool ucx;                                 /* knows memory of GPUs */
    char ucx_text[256];                       /* its version; or why not */
};

/* Loads module and driver into this process. */
void ctl_gpus_look(struct ctl_gpus *ret_gpus);
/* `rails`: there are RDMA ports that writes go over. Pure. */
void ctl_gpus_judge(struct ctl_report *report, const struct ctl_gpus *gpus, bool rails);
/* Both, the looking in a process of its own, which is given so much time, and a minute at least. */
void ctl_doctor_gpus(struct ctl_report *report, bool rails, int64_t timeout_ns);

#endif
