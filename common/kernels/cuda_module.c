#include "common/kernels/cuda/module.h"

#include <dlfcn.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODULE_ENV "BATON_CUDA_MODULE"
#define ANCESTORS  4 /* of a program's folder, up to the root of a build */
#define DRIVER     "/dev/nvidiactl"
#define DRIVER_WSL "/dev/dxg"

/* ---- what the module is given ---- */

static void log_line(enum bt_log_level level, uint64_t request, const char *line)
{
    bt_log(level, request, "%s", line);
}

static const struct bt_cuda_host host = {
    .abi = BT_CUDA_MODULE_ABI,
    .log = log_line,
    .team_run = bt_team_run,
    .team_threads = bt_team_threads,
};

/* ---- where it is ---- */

static bool is_there(const char *path)
{
    return access(path, R_OK) == 0;
}

/* In a build: some folders above the program's is the root of the build. */
static bool find_in_build(const char *program_dir, char ret_path[PATH_MAX])
{
    char dir[PATH_MAX];
    snprintf(dir, sizeof(dir), "%s", program_dir);
    for (int i = 0; i < ANCESTORS; i++) {
        char *slash = strrchr(dir, '/');
        if (!slash || slash == dir)
            return false;
        *slash = '\0';
        int length = snprintf(ret_path, PATH_MAX, "%s/common/parallel/" BT_CUDA_MODULE_FILE, dir);
        if (length < PATH_MAX && is_there(ret_path))
            return true;
    }
    return false;
}

/* Beside the program's bin, wherever that was put; then where it was to be installed. */
static bool find_installed(const char *program_dir, char ret_path[PATH_MAX])
{
    int length =
        snprintf(ret_path, PATH_MAX, "%s/../%s/baton/" BT_CUDA_MODULE_FILE, program_dir, BT_LIBDIR);
    if (length < PATH_MAX && is_there(ret_path))
        return true;
    snprintf(ret_path, PATH_MAX, "%s/%s/baton/" BT_CUDA_MODULE_FILE, BT_PREFIX, BT_LIBDIR);
    return is_there(ret_path);
}

static enum bt_status find(struct bt_error *error, char ret_path[PATH_MAX])
{
    const char *named = getenv(MODULE_ENV);
    char program[PATH_MAX];
    if (named && *named) {
        snprintf(ret_path, PATH_MAX, "%s", named);
        if (is_there(ret_path))
            return BT_OK;
        return bt_error_set(error, BT_ERR_UNSUPPORTED,
                            "cuda: %s: no such module (" MODULE_ENV " names it)", ret_path);
    }
    ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
    program[length > 0 ? length : 0] = '\0';
    const char *program_dir = dirname(program);
    if (find_installed(program_dir, ret_path) || find_in_build(program_dir, ret_path))
        return BT_OK;
#ifdef BT_HAVE_CUDA
    return bt_error_set(error, BT_ERR_UNSUPPORTED,
                        "cuda: %s: no such module: install it, name it by " MODULE_ENV
                        ", or use --device cpu",
                        ret_path);
#else
    return bt_error_set(error, BT_ERR_UNSUPPORTED,
                        "cuda: not in this build: build it where the CUDA toolkit, cuBLASLt and "
                        "NCCL are (meson option cuda), or use --device cpu");
#endif
}

/* ---- loading it ---- */

/* `fault` is dlerror's: which of the libraries that it needs is not there. */
static enum bt_status refuse(const char *path, const char *fault, struct bt_error *error)
{
    static const struct {
        const char *library, *before, *after;
    } known[] = {{"libcudart.so.", "install the CUDA ", " runtime, or "},
                 {"libcublasLt.so.", "install cuBLAS of CUDA ", ", or "},
                 {"libnccl.so.", "install NCCL ", ", or "}};
    char remedy[64] = "";
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        const char *version = fault + strlen(known[i].library);
        if (strncmp(fault, known[i].library, strlen(known[i].library)) == 0)
            snprintf(remedy, sizeof(remedy), "%s%.*s%s", known[i].before,
                     (int)strspn(version, "0123456789"), version, known[i].after);
    }
    return bt_error_set(error, BT_ERR_UNSUPPORTED, "cuda: %s: %s: %suse --device cpu", path, fault,
                        remedy);
}

static enum bt_status check(const struct bt_cuda_module *module, const char *path,
                            struct bt_error *error)
{
    static const uint32_t struct_bytes[BT_CUDA_MODULE_STRUCTS] = BT_CUDA_MODULE_STRUCT_BYTES;
    if (!module)
        return bt_error_set(error, BT_ERR_UNSUPPORTED, "cuda: %s: refuses this program", path);
    if (module->abi != BT_CUDA_MODULE_ABI)
        return bt_error_set(error, BT_ERR_UNSUPPORTED,
                            "cuda: %s: has interface %u, this program needs %u: install both of "
                            "one version",
                            path, module->abi, BT_CUDA_MODULE_ABI);
    if (memcmp(module->struct_bytes, struct_bytes, sizeof(struct_bytes)) != 0)
        return bt_error_set(error, BT_ERR_UNSUPPORTED,
                            "cuda: %s: is of another build than this program: install both of one "
                            "version",
                            path);
    return BT_OK;
}

static enum bt_status load(struct bt_error *error, const struct bt_cuda_module **ret_module)
{
    char path[PATH_MAX];
    enum bt_status status = find(error, path);
    if (status != BT_OK)
        return status;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return refuse(path, dlerror(), error);
    union {
        void *object;
        bt_cuda_module_fn *function;
    } symbol = {.object = dlsym(library, BT_CUDA_MODULE_SYMBOL)};
    const struct bt_cuda_module *module = NULL;
    if (symbol.object) {
        module = symbol.function(&host);
        status = check(module, path, error);
    } else {
        status =
            bt_error_set(error, BT_ERR_UNSUPPORTED,
                         "cuda: %s: is no module of Baton: it has no " BT_CUDA_MODULE_SYMBOL, path);
    }
    if (status == BT_OK)
        *ret_module = module;
    return status; /* it stays: libraries of CUDA do not like to go */
}

enum bt_status bt_cuda_module_load(struct bt_error *error, const struct bt_cuda_module **ret_module)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static const struct bt_cuda_module *loaded;
    pthread_mutex_lock(&mutex);
    enum bt_status status = loaded ? BT_OK : load(error, &loaded);
    if (status == BT_OK)
        *ret_module = loaded;
    pthread_mutex_unlock(&mutex);
    return status;
}

bool bt_cuda_module_is_likely(void)
{
    const char *named = getenv(MODULE_ENV);
    return (named && *named) || access(DRIVER, F_OK) == 0 || access(DRIVER_WSL, F_OK) == 0;
}
