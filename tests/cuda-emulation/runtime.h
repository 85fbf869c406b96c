/*
 * The inside of the stand-in for the CUDA runtime, for the other parts of the emulation: the grid,
 * which runs kernels, and the stand-ins of cuBLASLt and NCCL. What programs see of it are the
 * functions of cuda_runtime_api.h.
 *
 * Work queued on a stream is run as late as may be: when somebody waits for it, or by a thread of
 * the emulation's own after a while drawn at random (environment BATON_EMULATED_SEED), so that a
 * wait that is missing shows. While work runs, device memory may be touched; for the host, outside
 * of it, it is a fault that names the allocation.
 */
#ifndef BATON_TESTS_CUDA_EMULATION_RUNTIME_H
#define BATON_TESTS_CUDA_EMULATION_RUNTIME_H

#include <cuda_runtime_api.h>

#include <functional>

namespace emulation {

/* One launch. `run` runs the whole grid to its end in the calling thread; it may run several times
 * (graphs), later than the launch, and in another thread. Never two at once in a process. */
struct Launch {
    const void *kernel; /* its address, as cudaFuncSetAttribute got it */
    dim3 grid;
    unsigned threads;    /* of a block */
    size_t shared_bytes; /* dynamic */
    std::function<void()> run;
    unsigned cluster = 1; /* blocks of a cluster, in x */
};

/* Checks the configuration as the hardware of this arch does, and queues (or captures) it. What is
 * wrong with it is for cudaGetLastError. */
void launch(cudaStream_t stream, Launch launch);

/* Work of a library. False: it can't be done yet (a peer has not come); it is asked again, with
 * nothing held, until it is true. Returns what the runtime's own functions would. */
cudaError_t queue(cudaStream_t stream, const char *name, std::function<bool()> work);

/* The device's error from now on, as after a kernel's fault: all calls return it. */
void fault(cudaError_t error);

int arch();   /* 80, 90, 100 */
int device(); /* of the calling thread */
bool is_capturing(cudaStream_t);
int device_of_stream(cudaStream_t stream); /* -1: there is no such stream */

enum class Memory { unknown, device, pinned, managed, registered, imported };
/* The allocation that holds this address; bytes from the address to its end. */
Memory memory_of(const void *address, size_t *ret_bytes = nullptr);

/* Device memory of which this thread needs the bytes outside of queued work: scopes nest. */
class Touch {
  public:
    Touch();
    ~Touch();
    Touch(const Touch &) = delete;
    Touch &operator=(const Touch &) = delete;
};

/* Reports on stderr and ends the process: a use that no program may make. */
[[noreturn]] void misuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

} // namespace emulation

#endif
