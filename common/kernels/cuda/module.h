/*
 * Between a program and the GPU backend, which is a shared object of its own: baton-cuda.so, or
 * another one of this interface, as BATON_CUDA_MODULE says. It exports one function, is loaded once
 * and never let go, and has its own copies of whatever pure code it uses; what has state (the log,
 * the threads of a team) it takes from the program.
 *
 * Both sides are of one build: structs are shared by layout. Which is checked: by a number, which
 * goes up when a meaning changes, and by the sizes of the structs.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_MODULE_H
#define BATON_COMMON_KERNELS_CUDA_MODULE_H

#include "common/base/log.h"
#include "common/kernels/device.h"
#include "common/kernels/team.h"

#define BT_CUDA_MODULE_ABI     2
#define BT_CUDA_MODULE_FILE    "baton-cuda.so"
#define BT_CUDA_MODULE_SYMBOL  "bt_cuda_module"
#define BT_CUDA_MODULE_STRUCTS 6

struct bt_group;
struct bt_group_options;

/* What the program gives; valid for ever. */
struct bt_cuda_host {
    uint32_t abi;
    /* A line as bt_log writes it. */
    void (*log)(enum bt_log_level level, uint64_t request, const char *line);
    void (*team_run)(struct bt_team *team, bt_team_fn *fn, void *context, uint32_t parts);
    uint32_t (*team_threads)(const struct bt_team *team);
};

/* As CUDA (1000 * major + 10 * minor) and NCCL (10000 * major + 100 * minor + patch) number them;
 * 0: not there. */
struct bt_cuda_versions {
    int driver, runtime, nccl;
};

/* What the module gives; static. Errors begin with "cuda: ", without the module's path. */
struct bt_cuda_module {
    uint32_t abi; /* first in every version */
    uint32_t struct_bytes[BT_CUDA_MODULE_STRUCTS];
    /* How many GPUs there are, 1 or more. UNSUPPORTED: no driver, one that is too old, no GPU. */
    enum bt_status (*device_count)(struct bt_error *error, uint32_t *ret_count);
    /* UNSUPPORTED: likewise, or an architecture before sm_80. INVALID_ARGUMENT: no such index, with
     * those that there are. */
    enum bt_status (*device_open)(uint32_t index, struct bt_error *error,
                                  struct bt_device **ret_device);
    /* See common/parallel/group.h: of transport nccl, on the device that is current. */
    enum bt_status (*group_create)(const struct bt_group_options *options, struct bt_error *error,
                                   struct bt_group **ret_group);
    /* For tools: also where there is no GPU. */
    void (*versions)(struct bt_cuda_versions *ret_versions);
    /* Whether GPU `from` reads and writes memory of `to` by itself, over NVLink or PCIe. */
    bool (*reaches)(uint32_t from, uint32_t to);
};

typedef const struct bt_cuda_module *bt_cuda_module_fn(const struct bt_cuda_host *host);

/* For bt_cuda_module.struct_bytes. */
#define BT_CUDA_MODULE_STRUCT_BYTES                                                                \
    {                                                                                              \
        sizeof(struct bt_cuda_module), sizeof(struct bt_device), sizeof(struct bt_device_ops),     \
            sizeof(struct bt_kernels), sizeof(struct bt_stream_limits), sizeof(struct bt_stage)    \
    }

/*
 * Loads the module, the first time; program side (cuda_module.c). UNSUPPORTED: there is none, a
 * library that it needs is not there, or it is of another build; the message names the file and
 * what would help.
 */
enum bt_status bt_cuda_module_load(struct bt_error *error,
                                   const struct bt_cuda_module **ret_module);

/* Whether looking for a GPU is worth loading it: a module was named, or a GPU's driver is here. */
bool bt_cuda_module_is_likely(void);

#endif
