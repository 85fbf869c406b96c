/*
 * Why there is no GPU: what a program says of modules that are not there, can't be loaded or are of
 * another build, and what the module says of driver and GPUs (on the emulated one). Each case is a
 * process of its own: what was loaded stays.
 *
 *     test-device-module FOLDER-OF-FAKES [EMULATED-MODULE]
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/kernels/device.h"
#include "common/parallel/group.h"

static const char *fakes, *emulated;

struct attempt {
    const char *module;     /* BATON_CUDA_MODULE; NULL: not set */
    const char *setting[4]; /* name and value, of the environment */
    const char *name;       /* of the device; NULL: a group by NCCL */
    uint32_t rank;
};

struct outcome {
    int status;
    char text[BT_ERROR_TEXT_SIZE];
    char device[64];
    char log[1024];
};

static void try_in_child(const struct attempt *attempt, struct outcome *outcome)
{
    const struct bt_group_options group = {.transport = "nccl", .size = 1};
    struct bt_error error = {0};
    struct bt_device *device = NULL;
    struct bt_group *ret_group;
    unsetenv("BATON_CUDA_MODULE");
    if (attempt->module)
        setenv("BATON_CUDA_MODULE", attempt->module, 1);
    for (int i = 0; i < 4 && attempt->setting[i]; i += 2)
        setenv(attempt->setting[i], attempt->setting[i + 1], 1);
    outcome->status =
        attempt->name ? bt_device_open_for_rank(attempt->name, NULL, attempt->rank, &error, &device)
                      : bt_group_create(&group, &error, &ret_group);
    snprintf(outcome->text, sizeof(outcome->text), "%s", error.text);
    snprintf(outcome->device, sizeof(outcome->device), "%s", device ? device->name : "");
}

/* Its stderr is the outcome's log. */
static struct outcome outcome_of(const struct attempt *attempt)
{
    struct outcome outcome = {0};
    FILE *log = tmpfile(), *result = tmpfile();
    int status = 0;
    assert_true(log && result);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(fileno(log), STDERR_FILENO);
        try_in_child(attempt, &outcome);
        fwrite(&outcome, sizeof(outcome), 1, result);
        fflush(result);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    rewind(result);
    rewind(log);
    assert_int_equal(fread(&outcome, sizeof(outcome), 1, result), 1);
    outcome.log[fread(outcome.log, 1, sizeof(outcome.log) - 1, log)] = '\0';
    fclose(log);
    fclose(result);
    return outcome;
}

static void expect(const struct attempt *attempt, enum bt_status status, const char *wanted)
{
    struct outcome outcome = outcome_of(attempt);
    if (outcome.status != (int)status || strcmp(outcome.text, wanted) != 0)
        fail_msg("'%s' (%s), not '%s'", outcome.text, bt_status_name(outcome.status), wanted);
}

static void expect_of_fake(const char *file, const char *wanted)
{
    char path[512], text[1024];
    snprintf(path, sizeof(path), "%s/%s", fakes, file);
    snprintf(text, sizeof(text), "cuda: %s: %s", path, wanted);
    expect(&(struct attempt){.module = path, .name = "cuda"}, BT_ERR_UNSUPPORTED, text);
    /* a group says the same */
    expect(&(struct attempt){.module = path}, BT_ERR_UNSUPPORTED, text);
}

static void test_files(void **state)
{
    (void)state;
    expect_of_fake("nothing.so", "no such module (BATON_CUDA_MODULE names it)");
    expect_of_fake("fake-other-name.so", "is no module of Baton: it has no bt_cuda_module");
    expect_of_fake("fake-abi.so",
                   "has interface 1000, this program needs 2: install both of one version");
    expect_of_fake("fake-struct.so",
                   "is of another build than this program: install both of one version");
}

static void test_libraries(void **state)
{
    (void)state;
    expect_of_fake("fake-cudart.so",
                   "libcudart.so.99: cannot open shared object file: No such file or directory: "
                   "install the CUDA 99 runtime, or use --device cpu");
    expect_of_fake("fake-cublasLt.so",
                   "libcublasLt.so.99: cannot open shared object file: No such file or directory: "
                   "install cuBLAS of CUDA 99, or use --device cpu");
    expect_of_fake("fake-nccl.so",
                   "libnccl.so.99: cannot open shared object file: No such file or directory: "
                   "install NCCL 99, or use --device cpu");
    expect_of_fake("fake-other.so",
                   "libother.so.99: cannot open shared object file: No such file or directory: "
                   "use --device cpu");
}

/* A rank without an index takes GPU rank modulo their number; the log of a module is the
 * program's. */
static void test_ranks(void **state)
{
    char path[512];
    (void)state;
    snprintf(path, sizeof(path), "%s/fake-sound.so", fakes);
    expect(&(struct attempt){.module = path, .name = "cuda"}, BT_ERR_UNSUPPORTED, "cuda: fake 0");
    expect(&(struct attempt){.module = path, .name = "cuda", .rank = 5}, BT_ERR_UNSUPPORTED,
           "cuda: fake 2");
    expect(&(struct attempt){.module = path, .name = "cuda:7", .rank = 5}, BT_ERR_UNSUPPORTED,
           "cuda: fake 7");
    struct outcome outcome = outcome_of(&(struct attempt){.module = path, .name = "cuda"});
    assert_non_null(strstr(outcome.log, "warn"));
    assert_non_null(strstr(outcome.log, "the fake was asked"));
}

/* One line says why it is the CPU. */
static void test_auto(void **state)
{
    char path[512];
    (void)state;
    snprintf(path, sizeof(path), "%s/fake-sound.so", fakes);
    struct outcome outcome = outcome_of(&(struct attempt){.module = path, .name = "auto"});
    assert_int_equal(outcome.status, BT_OK);
    assert_string_equal(outcome.device, "cpu");
    assert_non_null(strstr(outcome.log, "info"));
    assert_non_null(strstr(outcome.log, "device auto: the cpu, as cuda: fake 0\n"));
    if (access("/dev/nvidiactl", F_OK) == 0 || access("/dev/dxg", F_OK) == 0)
        return;
    outcome = outcome_of(&(struct attempt){.name = "auto"});
    assert_string_equal(outcome.device, "cpu");
    assert_non_null(strstr(
        outcome.log, "device auto: the cpu, as cuda: there is no GPU's driver on this machine\n"));
}

/* The real module, as it lies in the build: it loads with all that it needs, and then there is a
 * GPU or not. */
static void test_build(void **state)
{
    (void)state;
    if (!emulated)
        skip();
    struct outcome outcome = outcome_of(&(struct attempt){.name = "cuda:0"});
    if (outcome.status == BT_OK)
        assert_string_equal(outcome.device, "cuda:0");
    else if (strncmp(outcome.text, "cuda: no NVIDIA driver here", 27) != 0 &&
             strncmp(outcome.text, "cuda: the driver is of CUDA", 27) != 0 &&
             strncmp(outcome.text, "cuda: no GPU", 12) != 0 && !strstr(outcome.text, " is sm_"))
        fail_msg("'%s'", outcome.text);
}

/* ---- driver and GPUs ---- */

static void expect_emulated(const char *name, const char *setting, const char *value,
                            enum bt_status status, const char *wanted)
{
    const struct attempt attempt = {.module = emulated, .setting = {setting, value}, .name = name};
    struct outcome outcome = outcome_of(&attempt);
    if (outcome.status != (int)status || strncmp(outcome.text, wanted, strlen(wanted)) != 0)
        fail_msg("'%s' (%s), not '%s'", outcome.text, bt_status_name(outcome.status), wanted);
}

static void test_driver(void **state)
{
    (void)state;
    if (!emulated)
        skip();
    expect_emulated("cuda", "BATON_EMULATED_DRIVER", "none", BT_ERR_UNSUPPORTED,
                    "cuda: no NVIDIA driver here: install one for CUDA 13.0, or use --device cpu");
    expect_emulated("cuda:0", "BATON_EMULATED_DRIVER_VERSION", "12040", BT_ERR_UNSUPPORTED,
                    "cuda: the driver is of CUDA 12.4, this needs one for CUDA 13.0: install a "
                    "newer driver, or use --device cpu");
    expect_emulated("cuda", "BATON_EMULATED_DEVICES", "0", BT_ERR_UNSUPPORTED,
                    "cuda: no GPU here (or none by CUDA_VISIBLE_DEVICES): use --device cpu");
    expect_emulated("cuda", "BATON_EMULATED_ARCH", "75", BT_ERR_UNSUPPORTED, "cuda:0: ");
    struct outcome outcome = outcome_of(&(struct attempt){
        .module = emulated, .setting = {"BATON_EMULATED_ARCH", "75"}, .name = "cuda"});
    assert_non_null(strstr(outcome.text, " is sm_75, and sm_80 or later is needed: use another "
                                         "GPU, or --device cpu"));
}

static void test_gpus(void **state)
{
    (void)state;
    if (!emulated)
        skip();
    expect_emulated("cuda:2", "BATON_EMULATED_DEVICES", "2", BT_ERR_INVALID_ARGUMENT,
                    "cuda:2: no such GPU; there are: cuda:0 ");
    struct outcome outcome = outcome_of(&(struct attempt){
        .module = emulated, .setting = {"BATON_EMULATED_DEVICES", "2"}, .name = "cuda:2"});
    assert_non_null(strstr(outcome.text, ", cuda:1 "));
    assert_null(strstr(outcome.text, ", cuda:2 "));
    outcome = outcome_of(&(struct attempt){
        .module = emulated, .setting = {"BATON_EMULATED_DEVICES", "2"}, .name = "auto", .rank = 3});
    assert_string_equal(outcome.text, "");
    assert_string_equal(outcome.device, "cuda:1");
    outcome = outcome_of(&(struct attempt){
        .module = emulated, .setting = {"BATON_EMULATED_DRIVER", "none"}, .name = "auto"});
    assert_string_equal(outcome.device, "cpu");
    assert_non_null(strstr(outcome.log, "device auto: the cpu, as cuda: no NVIDIA driver here"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files), cmocka_unit_test(test_libraries),
        cmocka_unit_test(test_ranks), cmocka_unit_test(test_auto),
        cmocka_unit_test(test_build), cmocka_unit_test(test_driver),
        cmocka_unit_test(test_gpus),
    };
    if (argc < 2) {
        fprintf(stderr, "usage: %s FOLDER-OF-FAKES [EMULATED-MODULE]\n", argv[0]);
        return 2;
    }
    fakes = argv[1];
    emulated = argc > 2 ? argv[2] : NULL;
    return cmocka_run_group_tests_name("device-module", tests, NULL, NULL);
}
