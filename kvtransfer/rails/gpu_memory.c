#include "kvtransfer/rails/gpu_memory.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

static bool listed_in_modules(const char *root, const char *module)
{
    char path[PATH_MAX], line[512];
    size_t length = strlen(module);
    bool found = false;
    FILE *file;

    snprintf(path, sizeof(path), "%s/proc/modules", root);
    file = fopen(path, "re");
    while (file != NULL && !found && fgets(line, sizeof(line), file) != NULL)
        found = strncmp(line, module, length) == 0 && line[length] == ' ';
    if (file != NULL)
        fclose(file);
    return found;
}

static bool has_module(const char *root, const char *module)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%s/sys/module/%s", root, module);
    return access(path, F_OK) == 0 || listed_in_modules(root, module);
}

static bool kernel_is_at_least(const char *kernel, int major, int minor)
{
    int has_major = 0, has_minor = 0;

    if (sscanf(kernel, "%d.%d", &has_major, &has_minor) != 2)
        return false;
    return has_major > major || (has_major == major && has_minor >= minor);
}

void kvt_gpu_memory_judge(const char *root, const char *kernel, bool verbs_dmabuf,
                          struct kvt_gpu_memory *ret_memory)
{
    struct kvt_gpu_memory *memory = ret_memory;
    bool new_kernel = kernel_is_at_least(kernel, 5, 12);

    memory->gpu_driver = has_module(root, "nvidia");
    memory->peer_memory = has_module(root, "nvidia_peermem") || has_module(root, "nv_peer_mem");
    memory->dmabuf = new_kernel && verbs_dmabuf;
    if (!memory->gpu_driver)
        snprintf(memory->words, sizeof(memory->words),
                 "no NVIDIA driver is loaded: no GPU memory for NICs to reach");
    else if (memory->peer_memory)
        snprintf(memory->words, sizeof(memory->words),
                 "NICs reach GPU memory through the peer memory module%s",
                 memory->dmabuf ? "; dma-buf is there, too" : "");
    else if (memory->dmabuf)
        snprintf(memory->words, sizeof(memory->words),
                 "NICs can reach GPU memory through dma-buf, where driver and UCX support it");
    else
        snprintf(memory->words, sizeof(memory->words),
                 "NICs can't reach GPU memory: nvidia_peermem is not loaded and there is no "
                 "dma-buf (%s)",
                 new_kernel ? "libibverbs is too old" : "the kernel is older than 5.12");
}

void kvt_gpu_memory_probe(struct kvt_gpu_memory *ret_memory)
{
    void *verbs = dlopen("libibverbs.so.1", RTLD_LAZY | RTLD_LOCAL);
    struct utsname name = {0};

    uname(&name);
    kvt_gpu_memory_judge("", name.release,
                         verbs != NULL && dlsym(verbs, "ibv_reg_dmabuf_mr") != NULL, ret_memory);
    if (verbs != NULL)
        dlclose(verbs);
}
