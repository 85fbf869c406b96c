/*
 * What batonctl doctor says of GPUs: of planted answers, and of the emulated module where it is
 * given (the first argument).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "deploy/batonctl/doctor_gpu.h"

#define TIMEOUT_NS (120 * BT_NS_PER_S)

static const char *module;

/* In place of that in doctor.c, which the whole program hangs on. */
void ctl_report_add(struct ctl_report *report, enum ctl_level level, const char *what,
                    const char *format, ...)
{
    struct ctl_finding *finding = &report->findings[report->finding_count++];
    va_list arguments;

    assert_true(report->finding_count <= CTL_FINDINGS_MAX);
    finding->level = level;
    snprintf(finding->what, sizeof(finding->what), "%s", what);
    va_start(arguments, format);
    vsnprintf(finding->text, sizeof(finding->text), format, arguments);
    va_end(arguments);
}

static const struct ctl_finding *find(const struct ctl_report *report, const char *what)
{
    for (uint32_t i = 0; i < report->finding_count; i++)
        if (strcmp(report->findings[i].what, what) == 0)
            return &report->findings[i];
    return NULL;
}

static void expect(const struct ctl_report *report, const char *what, enum ctl_level level,
                   const char *text)
{
    const struct ctl_finding *finding = find(report, what);

    if (finding == NULL)
        fail_msg("nothing is said of %s", what);
    if (finding->level != level || strstr(finding->text, text) == NULL)
        fail_msg("%s is %d, and not %d with \"%s\": %s", what, (int)finding->level, (int)level,
                 text, finding->text);
}

static enum ctl_level worst(const struct ctl_report *report)
{
    enum ctl_level level = CTL_FINE;

    for (uint32_t i = 0; i < report->finding_count; i++)
        level = report->findings[i].level > level ? report->findings[i].level : level;
    return level;
}

/* Two H100 with all that there is. */
static struct ctl_gpus two(void)
{
    struct ctl_gpus gpus = {.is_likely = true,
                            .driver = 13000,
                            .runtime = 12090,
                            .nccl = 22703,
                            .count = 2,
                            .ucx = true,
                            .ucx_text = "1.18.0"};

    for (uint32_t i = 0; i < 2; i++) {
        struct ctl_gpu *gpu = &gpus.gpus[i];
        *gpu = (struct ctl_gpu){.description = "NVIDIA H100, sm_90, driver 580.65",
                                .total_bytes = UINT64_C(80) << 30,
                                .free_bytes = UINT64_C(79) << 30,
                                .peer_memory = true};
        snprintf(gpu->name, sizeof(gpu->name), "cuda:%u", i);
        gpus.reaches[i][1 - i] = true;
    }
    return gpus;
}

static struct ctl_report report;

static void judge(const struct ctl_gpus *gpus, bool rails)
{
    report = (struct ctl_report){0};
    ctl_gpus_judge(&report, gpus, rails);
}

static void test_all_is_there(void **state)
{
    struct ctl_gpus gpus = two();

    (void)state;
    judge(&gpus, true);
    assert_int_equal(worst(&report), CTL_FINE);
    expect(&report, "cuda", CTL_FINE, "driver of CUDA 13.0, runtime 12.9, NCCL 2.27.3");
    expect(&report, "gpu cuda:0", CTL_FINE,
           "NVIDIA H100, sm_90, driver 580.65, 80.0 GiB, 79.0 free");
    expect(&report, "gpu cuda:1", CTL_FINE, "NVIDIA H100");
    expect(&report, "gpudirect cuda:1", CTL_FINE, "may read and write");
    expect(&report, "gpu peers", CTL_FINE, "each reaches");
    expect(&report, "gpu ucx", CTL_FINE, "UCX 1.18.0 knows");
}

/* A machine without GPUs is as good as it was; one with a driver and no way to use it is not. */
static void test_none(void **state)
{
    struct ctl_gpus gpus = {.problem = "cuda: not in this build"};

    (void)state;
    judge(&gpus, true);
    assert_int_equal(report.finding_count, 1);
    expect(&report, "gpus", CTL_FINE, "cuda: not in this build");
    gpus = (struct ctl_gpus){.is_likely = true,
                             .problem = "cuda: the driver is of CUDA 11.8",
                             .driver = 11080,
                             .runtime = 13000};
    judge(&gpus, false);
    expect(&report, "gpus", CTL_DEGRADED, "the driver is of CUDA 11.8");
    expect(&report, "cuda", CTL_FINE, "driver of CUDA 11.8, runtime 13.0");
    assert_null(find(&report, "gpu ucx"));
}

/* One that is too old is told, and the others count. */
static void test_one_of_no_use(void **state)
{
    struct ctl_gpus gpus = two();

    (void)state;
    snprintf(gpus.gpus[1].problem, sizeof(gpus.gpus[1].problem),
             "cuda:1: sm_70, and sm_80 or later");
    memset(gpus.reaches, 0, sizeof(gpus.reaches));
    judge(&gpus, true);
    expect(&report, "gpu cuda:0", CTL_FINE, "H100");
    expect(&report, "gpu cuda:1", CTL_DEGRADED, "sm_80 or later");
    assert_null(find(&report, "gpudirect cuda:1"));
    assert_null(find(&report, "gpu peers")); /* there is no pair */
}

/* What only RDMA takes is missed only where there is RDMA. */
static void test_not_by_nics(void **state)
{
    struct ctl_gpus gpus = two();

    (void)state;
    gpus.gpus[1].peer_memory = false;
    snprintf(gpus.gpus[1].peer_memory_missing, sizeof(gpus.gpus[1].peer_memory_missing),
             "nvidia_peermem is not loaded");
    gpus.ucx = false;
    snprintf(gpus.ucx_text, sizeof(gpus.ucx_text), "this UCX is built without CUDA");
    for (int rails = 0; rails < 2; rails++) {
        enum ctl_level level = rails ? CTL_DEGRADED : CTL_FINE;
        judge(&gpus, rails);
        assert_int_equal(worst(&report), level);
        expect(&report, "gpudirect cuda:0", CTL_FINE, "may read");
        expect(&report, "gpudirect cuda:1", level, "nvidia_peermem is not loaded");
        expect(&report, "gpudirect cuda:1", level, "--kv-staging host");
        expect(&report, "gpu ucx", level, "built without CUDA");
    }
}

static void test_apart(void **state)
{
    struct ctl_gpus gpus = two();

    (void)state;
    gpus.reaches[1][0] = false; /* one way is not enough */
    judge(&gpus, false);
    expect(&report, "gpu peers", CTL_DEGRADED,
           "1 of 1 pairs don't reach each other: cuda:0 and cuda:1");
}

/* As many as there is room for, each with texts as long as can be. */
static void test_many(void **state)
{
    struct ctl_gpus gpus = two();

    (void)state;
    gpus.count = CTL_GPUS_MAX;
    for (uint32_t i = 0; i < CTL_GPUS_MAX; i++) {
        struct ctl_gpu *gpu = &gpus.gpus[i];
        *gpu = gpus.gpus[0];
        snprintf(gpu->name, sizeof(gpu->name), "cuda:%u", i);
        memset(gpu->description, 'd', sizeof(gpu->description) - 1);
        gpu->peer_memory = false;
        memset(gpu->peer_memory_missing, 'm', sizeof(gpu->peer_memory_missing) - 1);
    }
    memset(gpus.reaches, 0, sizeof(gpus.reaches));
    judge(&gpus, true);
    expect(&report, "gpu peers", CTL_DEGRADED, "120 of 120 pairs");
    assert_non_null(find(&report, "gpudirect cuda:15"));
}

/* ---- the module ---- */

static void look(void)
{
    report = (struct ctl_report){0};
    ctl_doctor_gpus(&report, false, TIMEOUT_NS);
}

static void test_emulated(void **state)
{
    (void)state;
    if (module == NULL)
        skip();
    setenv("BATON_CUDA_MODULE", module, 1);
    setenv("BATON_EMULATED_DEVICES", "3", 1);
    look();
    expect(&report, "cuda", CTL_FINE, "driver of CUDA 13.0");
    expect(&report, "gpu cuda:2", CTL_FINE, "Emulated GPU, sm_");
    expect(&report, "gpu cuda:2", CTL_FINE, ", 2.0 GiB, ");
    assert_null(find(&report, "gpu cuda:3"));
    expect(&report, "gpu peers", CTL_FINE, "each reaches");
    setenv("BATON_EMULATED_PEERS", "none", 1);
    look();
    expect(&report, "gpu peers", CTL_DEGRADED, "3 of 3 pairs");
    setenv("BATON_EMULATED_ARCH", "70", 1);
    look();
    expect(&report, "gpu cuda:0", CTL_DEGRADED, "sm_70");
    unsetenv("BATON_EMULATED_ARCH");
    setenv("BATON_EMULATED_DRIVER", "none", 1);
    look();
    expect(&report, "gpus", CTL_DEGRADED, "no NVIDIA driver here");
    expect(&report, "cuda", CTL_FINE, "no driver, runtime ");
}

static void test_no_module(void **state)
{
    (void)state;
    setenv("BATON_CUDA_MODULE", "/nowhere/baton-cuda.so", 1);
    look();
    assert_int_equal(report.finding_count, 1);
    expect(&report, "gpus", CTL_DEGRADED, "/nowhere/baton-cuda.so: no such module");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_is_there),  cmocka_unit_test(test_none),
        cmocka_unit_test(test_one_of_no_use), cmocka_unit_test(test_not_by_nics),
        cmocka_unit_test(test_apart),         cmocka_unit_test(test_many),
        cmocka_unit_test(test_no_module),     cmocka_unit_test(test_emulated),
    };

    module = argc > 1 ? argv[1] : NULL;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
