/*
 * The stand-in for the runtime: what it does late, what it refuses, what it reports. Each fault is
 * a process of its own, whose end is looked at.
 */
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

extern "C" {
#include <cmocka.h>
}

#include "tests/cuda-emulation/runtime.h"

namespace {

template <typename T> T *device_memory(size_t count)
{
    void *memory = nullptr;
    assert_int_equal(cudaMalloc(&memory, count * sizeof(T)), cudaSuccess);
    return (T *)memory;
}

template <typename T> T *pinned_memory(size_t count)
{
    void *memory = nullptr;
    assert_int_equal(cudaMallocHost(&memory, count * sizeof(T)), cudaSuccess);
    return (T *)memory;
}

cudaStream_t new_stream()
{
    cudaStream_t stream;
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    return stream;
}

/* A kernel of one thread. */
void run(cudaStream_t stream, std::function<void()> body)
{
    emulation::launch(stream, {(const void *)&run, dim3(1), 1, 0, std::move(body)});
}

/* How `body` ends in a process of its own, and what it wrote to stderr. */
int end_of(const std::function<void()> &body, std::string *ret_text)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(nullptr);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        signal(SIGABRT, SIG_DFL);
        body();
        exit(0);
    }
    close(ends[1]);
    char text[512];
    for (ssize_t n; (n = read(ends[0], text, sizeof(text))) > 0;)
        ret_text->append(text, (size_t)n);
    close(ends[0]);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void assert_says(const std::string &text, const char *words)
{
    if (text.find(words) == std::string::npos)
        fail_msg("'%s' is not in '%s'", words, text.c_str());
}

void test_copies_there_and_back(void **)
{
    cudaStream_t stream = new_stream();
    int *device = device_memory<int>(100), *host = pinned_memory<int>(100);
    for (int i = 0; i < 100; i++)
        host[i] = i;
    assert_int_equal(cudaMemcpyAsync(device, host, 400, cudaMemcpyDefault, stream), cudaSuccess);
    run(stream, [=] {
        for (int i = 0; i < 100; i++)
            device[i] *= 3;
    });
    assert_int_equal(cudaMemcpyAsync(host, device, 400, cudaMemcpyDefault, stream), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    for (int i = 0; i < 100; i++)
        assert_int_equal(host[i], 3 * i);
    cudaFree(device);
    cudaFreeHost(host);
    cudaStreamDestroy(stream);
}

/* An answer that is read before it was waited for is no answer. */
void test_what_is_read_too_early_is_not_there(void **)
{
    cudaStream_t stream = new_stream();
    int *device = device_memory<int>(1), *host = pinned_memory<int>(1);
    bool go = false;
    *host = 7;
    emulation::queue(stream, "gate", [&] { return __atomic_load_n(&go, __ATOMIC_ACQUIRE); });
    cudaMemcpyAsync(device, host, 4, cudaMemcpyDefault, stream);
    assert_int_equal(*host, 7);
    *host = 8; /* too early: the copy takes this */
    __atomic_store_n(&go, true, __ATOMIC_RELEASE);
    cudaStreamSynchronize(stream);
    __atomic_store_n(&go, false, __ATOMIC_RELEASE);
    emulation::queue(stream, "gate", [&] { return __atomic_load_n(&go, __ATOMIC_ACQUIRE); });
    cudaMemcpyAsync(host, device, 4, cudaMemcpyDefault, stream);
    assert_int_equal(*host, -1);
    assert_int_equal(cudaStreamQuery(stream), cudaErrorNotReady);
    __atomic_store_n(&go, true, __ATOMIC_RELEASE);
    cudaStreamSynchronize(stream);
    assert_int_equal(*host, 8);
    cudaFree(device);
    cudaFreeHost(host);
    cudaStreamDestroy(stream);
}

/* What nobody waits for is done some time. */
void test_work_is_done_without_a_wait(void **)
{
    cudaStream_t stream = new_stream();
    static bool done;
    run(stream, [] { __atomic_store_n(&done, true, __ATOMIC_RELEASE); });
    while (!__atomic_load_n(&done, __ATOMIC_ACQUIRE))
        usleep(100);
    cudaStreamDestroy(stream);
}

void test_streams_meet_at_events(void **)
{
    cudaStream_t first = new_stream(), second = new_stream();
    cudaEvent_t event;
    int *device = device_memory<int>(1), got = 0;
    assert_int_equal(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
    assert_int_equal(cudaEventQuery(event), cudaSuccess);
    run(first, [=] { *device = 5; });
    cudaEventRecord(event, first);
    assert_int_equal(cudaStreamWaitEvent(second, event, 0), cudaSuccess);
    cudaMemcpyAsync(&got, device, 4, cudaMemcpyDefault, second);
    assert_int_equal(got, 5);
    assert_int_equal(cudaEventQuery(event), cudaSuccess);
    cudaEventDestroy(event);
    cudaFree(device);
    cudaStreamDestroy(first);
    cudaStreamDestroy(second);
}

void test_graphs_run_again(void **)
{
    cudaStream_t stream = new_stream();
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    int *device = device_memory<int>(1), *host = pinned_memory<int>(1);
    assert_int_equal(cudaMemsetAsync(device, 0, 4, stream), cudaSuccess);
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    run(stream, [=] { *device += 2; });
    assert_int_equal(cudaMemcpyAsync(host, device, 4, cudaMemcpyDefault, stream), cudaSuccess);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    cudaGraphDestroy(graph);
    for (int i = 1; i <= 3; i++) {
        assert_int_equal(cudaGraphLaunch(exec, stream), cudaSuccess);
        assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
        assert_int_equal(*host, 2 * i);
    }
    cudaGraphExecDestroy(exec);
    cudaFree(device);
    cudaFreeHost(host);
    cudaStreamDestroy(stream);
}

/* Each of these ends a capture. */
void test_what_no_capture_allows(void **)
{
    int *device = device_memory<int>(1), host = 0;
    cudaStream_t stream = new_stream();
    void *memory;
    const std::function<cudaError_t()> calls[] = {
        [&] { return cudaStreamSynchronize(stream); },
        [&] { return cudaStreamQuery(stream); },
        [&] { return cudaDeviceSynchronize(); },
        [&] { return cudaMalloc(&memory, 1); },
        [&] { return cudaFree(device); },
        [&] { return cudaMemcpyAsync(&host, device, 4, cudaMemcpyDefault, stream); },
    };
    for (const auto &call : calls) {
        cudaGraph_t graph = nullptr;
        cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
        assert_int_equal(call(), cudaErrorStreamCaptureUnsupported);
        assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
        assert_null(graph);
    }
    assert_int_equal(cudaGetLastError(), cudaErrorStreamCaptureInvalidated);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(cudaMalloc(&memory, 1), cudaSuccess);
    cudaFree(memory);
    cudaFree(device);
    cudaStreamDestroy(stream);
}

void test_what_the_hardware_refuses(void **)
{
    emulation::launch(nullptr, {(const void *)&run, dim3(1), 1025, 0, [] {}});
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    emulation::launch(nullptr, {(const void *)&run, dim3(3), 32, 0, [] {}, 2}); /* one and a half */
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    emulation::launch(nullptr, {(const void *)&run, dim3(1), 32, 50000, [] {}});
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(cudaFuncSetAttribute((const void *)&run,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, 50000),
                     cudaSuccess);
    emulation::launch(nullptr, {(const void *)&run, dim3(1), 32, 50000, [] {}});
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    int *device = device_memory<int>(10), host[11];
    assert_int_equal(cudaMemcpy(host, device, 44, cudaMemcpyDefault), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(device, host, 40, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(device + 1), cudaErrorInvalidValue);
    cudaFree(device);
    cudaGetLastError();
    void *memory;
    assert_int_equal(cudaMalloc(&memory, (size_t)1 << 50), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
}

/* Streams, events and kernels are of one device each. */
void test_devices_are_apart(void **)
{
    cudaStream_t stream = new_stream();
    cudaEvent_t event;
    int *memory = device_memory<int>(1), got = 0;
    run(stream, [=] { *memory = 3; });
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(cudaSetDevice(1), cudaSuccess);
    run(stream, [] {});
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidResourceHandle);
    assert_int_equal(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
    assert_int_equal(cudaEventRecord(event, stream), cudaErrorInvalidResourceHandle);
    assert_int_equal(cudaMemcpyAsync(&got, memory, 4, cudaMemcpyDefault, stream), cudaSuccess);
    assert_int_equal(got, 3); /* copies are where the stream is */
    assert_int_equal(cudaFuncSetAttribute((const void *)&test_devices_are_apart,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, 50000),
                     cudaSuccess);
    cudaSetDevice(0);
    cudaGetLastError();
    emulation::launch(stream, {(const void *)&test_devices_are_apart, dim3(1), 32, 50000, [] {}});
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    cudaEventDestroy(event);
    cudaFree(memory);
    cudaStreamDestroy(stream);
}

/* A kernel is loaded when it is first launched, which is no part of a capture. */
void test_no_capture_loads(void **)
{
    cudaStream_t stream = new_stream();
    const emulation::Launch launch = {(const void *)&test_no_capture_loads, dim3(1), 32, 0, [] {}};
    for (int i = 0; i < 2; i++) {
        cudaGraph_t graph = nullptr;
        cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
        emulation::launch(stream, launch);
        assert_int_equal(cudaGetLastError(),
                         i == 0 ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
        assert_int_equal(cudaStreamEndCapture(stream, &graph),
                         i == 0 ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
        cudaGetLastError();
        if (graph)
            cudaGraphDestroy(graph);
        emulation::launch(stream, launch);
        assert_int_equal(cudaGetLastError(), cudaSuccess);
    }
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
}

void test_faults_of_the_host_name_the_memory(void **)
{
    std::string text;
    assert_int_not_equal(end_of(
                             [] {
                                 volatile char *device = (char *)device_memory<char>(1000);
                                 device[10] = 1;
                             },
                             &text),
                         0);
    assert_says(text, "byte 10 of the 1000 bytes");
    text.clear();
    assert_int_not_equal(end_of(
                             [] {
                                 char *device = (char *)device_memory<char>(1000);
                                 cudaStream_t stream = new_stream();
                                 run(stream, [=] { *(volatile char *)(device + 1003) = 0; });
                                 cudaStreamSynchronize(stream);
                                 cudaFree(device);
                             },
                             &text),
                         0);
    assert_says(text, "written outside the 1000 bytes");
    text.clear();
    setenv("BATON_EMULATED_LEAKS", "fail", 1);
    int end = end_of([] { device_memory<char>(1234); }, &text);
    unsetenv("BATON_EMULATED_LEAKS");
    assert_says(text, "leak: 1234 bytes");
    assert_int_equal(end, 99);
}

int end_with(const char *name, const char *value, const std::function<int()> &body)
{
    std::string text;
    setenv(name, value, 1);
    int end = end_of([&] { _exit(body()); }, &text);
    unsetenv(name);
    return end;
}

void test_what_can_be_missing(void **)
{
    auto count = [] {
        int devices;
        return (int)cudaGetDeviceCount(&devices);
    };
    assert_int_equal(end_with("BATON_EMULATED_DRIVER", "none", count), cudaErrorInsufficientDriver);
    assert_int_equal(end_with("BATON_EMULATED_DRIVER_VERSION", "12040", count),
                     cudaErrorInsufficientDriver);
    assert_int_equal(end_with("BATON_EMULATED_DEVICES", "0", count), cudaErrorNoDevice);
    assert_int_equal(end_with("BATON_EMULATED_MEMORY", "1000",
                              [] {
                                  void *memory;
                                  cudaMalloc(&memory, 600);
                                  return (int)cudaMalloc(&memory, 600);
                              }),
                     cudaErrorMemoryAllocation);
    /* for ever */
    assert_int_equal(end_with("BATON_EMULATED_FAIL_LAUNCH", "2",
                              [] {
                                  cudaStream_t stream = new_stream();
                                  void *memory;
                                  run(stream, [] {});
                                  if (cudaStreamSynchronize(stream) != cudaSuccess)
                                      return 1;
                                  run(stream, [] {});
                                  if (cudaStreamSynchronize(stream) != cudaErrorLaunchFailure)
                                      return 2;
                                  return cudaMalloc(&memory, 1) == cudaErrorLaunchFailure ? 0 : 3;
                              }),
                     0);
}

void test_no_fork_survives(void **)
{
    std::string text;
    cudaFree(device_memory<char>(1));
    assert_int_equal(end_of(
                         [] {
                             void *memory;
                             _exit(cudaMalloc(&memory, 1));
                         },
                         &text),
                     cudaErrorInitializationError);
    assert_int_equal(end_of(
                         [] {
                             int count;
                             _exit(cudaGetDeviceCount(&count));
                         },
                         &text),
                     cudaErrorInitializationError);
}

} // namespace

int main()
{
    /* those with processes of their own first: a process that forks has no other thread */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faults_of_the_host_name_the_memory),
        cmocka_unit_test(test_what_can_be_missing),
        cmocka_unit_test(test_copies_there_and_back),
        cmocka_unit_test(test_what_is_read_too_early_is_not_there),
        cmocka_unit_test(test_work_is_done_without_a_wait),
        cmocka_unit_test(test_streams_meet_at_events),
        cmocka_unit_test(test_graphs_run_again),
        cmocka_unit_test(test_what_no_capture_allows),
        cmocka_unit_test(test_what_the_hardware_refuses),
        cmocka_unit_test(test_devices_are_apart),
        cmocka_unit_test(test_no_capture_loads),
        cmocka_unit_test(test_no_fork_survives),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
