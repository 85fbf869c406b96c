#include "deploy/batonctl/doctor_gpu.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/process.h"
#include "common/kernels/cuda/module.h"
#include "kvtransfer/preflight.h"

#define LOOK_NS (60 * BT_NS_PER_S) /* at least: a context on each of many GPUs takes its time */

/* ---- looking ---- */

static void look_at_gpu(const struct bt_cuda_module *module, uint32_t index, struct ctl_gpu *gpu)
{
    struct bt_device *device = NULL;
    struct bt_device_info info = {0};
    struct bt_error error = {0};

    snprintf(gpu->name, sizeof(gpu->name), "cuda:%u", index);
    if (module->device_open(index, &error, &device) != BT_OK) {
        snprintf(gpu->problem, sizeof(gpu->problem), "%.255s", error.text);
        return;
    }
    bt_device_info(device, &info);
    bt_device_close(device);
    memcpy(gpu->description, info.description, sizeof(gpu->description));
    gpu->total_bytes = info.total_bytes;
    gpu->free_bytes = info.free_bytes;
    gpu->peer_memory = info.peer_memory;
    snprintf(gpu->peer_memory_missing, sizeof(gpu->peer_memory_missing), "%.255s",
             info.peer_memory_missing);
}

static void look_at_ucx(struct ctl_gpus *gpus)
{
    struct bt_error error = {0};
    const char *version = "";

    gpus->ucx = kvt_preflight_ucx(&error, &version) == BT_OK;
    snprintf(gpus->ucx_text, sizeof(gpus->ucx_text), "%.255s", gpus->ucx ? version : error.text);
}

void ctl_gpus_look(struct ctl_gpus *ret_gpus)
{
    struct ctl_gpus *gpus = ret_gpus;
    const struct bt_cuda_module *module = NULL;
    struct bt_cuda_versions versions;
    struct bt_error error = {0};
    uint32_t count = 0;

    *gpus = (struct ctl_gpus){.is_likely = bt_cuda_module_is_likely()};
    if (bt_cuda_module_load(&error, &module) != BT_OK) {
        snprintf(gpus->problem, sizeof(gpus->problem), "%.511s", error.text);
        return;
    }
    module->versions(&versions);
    gpus->driver = versions.driver;
    gpus->runtime = versions.runtime;
    gpus->nccl = versions.nccl;
    if (module->device_count(&error, &count) != BT_OK) {
        snprintf(gpus->problem, sizeof(gpus->problem), "%.511s", error.text);
        return;
    }
    gpus->count = count < CTL_GPUS_MAX ? count : CTL_GPUS_MAX;
    for (uint32_t i = 0; i < gpus->count; i++) {
        look_at_gpu(module, i, &gpus->gpus[i]);
        for (uint32_t j = 0; j < gpus->count; j++)
            gpus->reaches[i][j] = i != j && module->reaches(i, j);
    }
    look_at_ucx(gpus);
}

/* ---- judging ---- */

/* What they are; whether they go together is the module's to say. */
static void judge_versions(struct ctl_report *report, const struct ctl_gpus *gpus)
{
    int nccl = gpus->nccl;
    char driver[32] = "no driver";

    if (gpus->driver != 0)
        snprintf(driver, sizeof(driver), "driver of CUDA %d.%d", gpus->driver / 1000,
                 gpus->driver % 1000 / 10);
    ctl_report_add(report, CTL_FINE, "cuda", "%s, runtime %d.%d, NCCL %d.%d.%d", driver,
                   gpus->runtime / 1000, gpus->runtime % 1000 / 10, nccl / 10000, nccl / 100 % 100,
                   nccl % 100);
}

static bool is_of_use(const struct ctl_gpu *gpu)
{
    return gpu->problem[0] == '\0';
}

static void judge_gpu(struct ctl_report *report, const struct ctl_gpu *gpu, bool rails)
{
    char what[96];

    snprintf(what, sizeof(what), "gpu %.15s", gpu->name);
    if (!is_of_use(gpu)) {
        ctl_report_add(report, CTL_DEGRADED, what, "%s", gpu->problem);
        return;
    }
    ctl_report_add(report, CTL_FINE, what, "%s, %.1f GiB, %.1f free", gpu->description,
                   (double)gpu->total_bytes / (1 << 30), (double)gpu->free_bytes / (1 << 30));
    snprintf(what, sizeof(what), "gpudirect %.15s", gpu->name);
    if (gpu->peer_memory)
        ctl_report_add(report, CTL_FINE, what, "NICs may read and write its memory");
    else
        ctl_report_add(report, rails ? CTL_DEGRADED : CTL_FINE, what,
                       "NICs don't reach its memory: %s; between machines: --kv-staging host",
                       gpu->peer_memory_missing);
}

/* Pairs of GPUs that are of use, and those of them of which one does not reach the other. */
static void judge_reach(struct ctl_report *report, const struct ctl_gpus *gpus)
{
    char missing[256] = "";
    size_t used = 0;
    uint32_t pairs = 0, apart = 0;

    for (uint32_t i = 0; i < gpus->count; i++) {
        for (uint32_t j = i + 1; j < gpus->count; j++) {
            if (!is_of_use(&gpus->gpus[i]) || !is_of_use(&gpus->gpus[j]))
                continue;
            pairs++;
            if (gpus->reaches[i][j] && gpus->reaches[j][i])
                continue;
            apart++;
            if (used < sizeof(missing))
                used +=
                    (size_t)snprintf(missing + used, sizeof(missing) - used, "%s%s and %s",
                                     used > 0 ? ", " : "", gpus->gpus[i].name, gpus->gpus[j].name);
        }
    }
    if (pairs == 0)
        return;
    if (apart == 0)
        ctl_report_add(report, CTL_FINE, "gpu peers", "each reaches the memory of each other");
    else
        ctl_report_add(report, CTL_DEGRADED, "gpu peers",
                       "%u of %u pairs don't reach each other: %s; cuda_ipc does not go there, "
                       "NCCL goes by memory of the host",
                       apart, pairs, missing);
}

static void judge_ucx(struct ctl_report *report, const struct ctl_gpus *gpus, bool rails)
{
    if (gpus->ucx)
        ctl_report_add(report, CTL_FINE, "gpu ucx", "UCX %s knows memory of GPUs", gpus->ucx_text);
    else
        ctl_report_add(report, rails ? CTL_DEGRADED : CTL_FINE, "gpu ucx",
                       "%s; between machines: --kv-staging host", gpus->ucx_text);
}

void ctl_gpus_judge(struct ctl_report *report, const struct ctl_gpus *gpus, bool rails)
{
    if (gpus->runtime != 0)
        judge_versions(report, gpus);
    if (gpus->problem[0] != '\0') {
        ctl_report_add(report, gpus->is_likely ? CTL_DEGRADED : CTL_FINE, "gpus", "%s",
                       gpus->problem);
        return;
    }
    for (uint32_t i = 0; i < gpus->count; i++)
        judge_gpu(report, &gpus->gpus[i], rails);
    judge_reach(report, gpus);
    judge_ucx(report, gpus, rails);
}

/* ---- both ---- */

static bool read_gpus(int fd, int64_t until_ns, struct ctl_gpus *ret_gpus)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

    for (size_t at = 0; at < sizeof(*ret_gpus);) {
        int64_t left_ns = until_ns - bt_clock_now_ns();
        ssize_t got = 0;
        if (left_ns > 0 && poll(&poll_fd, 1, (int)(left_ns / BT_NS_PER_MS) + 1) > 0)
            got = read(fd, (char *)ret_gpus + at, sizeof(*ret_gpus) - at);
        if (got <= 0)
            return false;
        at += (size_t)got;
    }
    return true;
}

static void tell_gpus(int fd)
{
    static struct ctl_gpus gpus;

    ctl_gpus_look(&gpus);
    for (size_t at = 0; at < sizeof(gpus);) {
        ssize_t put = write(fd, (const char *)&gpus + at, sizeof(gpus) - at);
        if (put <= 0)
            break;
        at += (size_t)put;
    }
}

void ctl_doctor_gpus(struct ctl_report *report, bool rails, int64_t timeout_ns)
{
    static struct ctl_gpus gpus;
    int fds[2];
    pid_t child = -1;

    fflush(NULL);
    if (pipe(fds) == 0)
        child = fork();
    if (child == 0) {
        close(fds[0]);
        if (bt_process_die_with_parent() == BT_OK)
            tell_gpus(fds[1]);
        _exit(0);
    }
    if (child < 0) {
        ctl_report_add(report, CTL_BROKEN, "gpus", "no process to look at them");
        return;
    }
    close(fds[1]);
    timeout_ns = timeout_ns > LOOK_NS ? timeout_ns : LOOK_NS;
    if (read_gpus(fds[0], bt_clock_now_ns() + timeout_ns, &gpus))
        ctl_gpus_judge(report, &gpus, rails);
    else
        ctl_report_add(report, CTL_BROKEN, "gpus",
                       "whoever looks at them hangs, or ended: the driver, or the module");
    close(fds[0]);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}
