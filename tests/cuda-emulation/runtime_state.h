/* What the files of the runtime's stand-in share. */
#ifndef BATON_TESTS_CUDA_EMULATION_RUNTIME_STATE_H
#define BATON_TESTS_CUDA_EMULATION_RUNTIME_STATE_H

#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "tests/cuda-emulation/runtime.h"

namespace emulation {

/* ---- settings: the environment, read once ---- */

struct Settings {
    bool has_driver;      /* BATON_EMULATED_DRIVER: "none" */
    int driver_version;   /* BATON_EMULATED_DRIVER_VERSION, 13000 */
    int devices;          /* BATON_EMULATED_DEVICES, 2 */
    int arch;             /* BATON_EMULATED_ARCH, 90 */
    int multiprocessors;  /* BATON_EMULATED_MULTIPROCESSORS, 4 */
    size_t memory;        /* BATON_EMULATED_MEMORY, bytes of each device, 2 GiB */
    uint64_t seed;        /* BATON_EMULATED_SEED */
    uint64_t fail_launch; /* BATON_EMULATED_FAIL_LAUNCH: this launch of the process, from 1 on */
    bool host_access;     /* BATON_EMULATED_HOST_ACCESS: the host may touch device memory */
    bool leaks_fail;      /* BATON_EMULATED_LEAKS: "fail": the process ends with 99 */
};
const Settings &settings();

/* ---- errors ---- */

/* What the calls of this thread return from here on; success changes nothing. */
cudaError_t result(cudaError_t error);
cudaError_t sticky();

/* ---- memory ---- */

void *device_alloc(int device, size_t bytes, const void *caller); /* NULL: none left */
bool device_free(void *memory);                                   /* false: never was */
void *host_alloc(size_t bytes, Memory kind, const void *caller);
bool host_free(void *memory, Memory kind);
bool host_register(void *memory, size_t bytes); /* false: is known already */
bool host_unregister(void *memory);
void device_usage(int device, size_t *ret_free, size_t *ret_total);
/* NICs may touch it, and with them the host. */
bool device_expose(const void *memory);
int device_of(const void *memory);
bool memory_export(const void *memory, void *handle, size_t handle_bytes);
void *memory_import(const void *handle); /* NULL: not there, or of this process */
bool memory_forget(void *memory);
/* Of a device, this process's or imported. False: it is none. */
bool memory_range(const void *memory, uintptr_t *ret_begin, size_t *ret_bytes);
void report_leaks();

/* ---- streams ---- */

struct Stream;
using StreamPointer = std::shared_ptr<Stream>;

/* A place in a stream: reached when all up to `number` is done. */
struct Mark {
    StreamPointer stream;
    uint64_t number = 0;
};

struct Event {
    Mark mark;
    int device = 0; /* that it was made on: only streams of it record it */
    uint64_t capture = 0; /* the capture it was recorded in; 0: none */
    unsigned flags = 0;
    std::shared_ptr<int64_t> time_ns = std::make_shared<int64_t>(0);
};

struct Range {
    const void *data = nullptr;
    size_t bytes = 0;
};

struct Item {
    const char *name;
    std::function<bool()> work;
    std::vector<Mark> after;
    Range reads, writes;       /* of pinned memory, by a copy */
    Event *external = nullptr; /* an event that a graph records */
    uint64_t number = 0;
};

struct Capture {
    uint64_t id;
    Stream *origin;
    cudaStreamCaptureMode mode;
    uint64_t thread;
    bool is_invalid = false;
    std::set<Stream *> joined;   /* streams that take part */
    std::set<Stream *> unjoined; /* that have work which the origin does not wait for */
    std::vector<Item> items;
};

struct Stream {
    int device = 0;
    bool is_blocking = true;
    bool busy = false;
    uint64_t queued = 0, done = 0;
    std::deque<Item> items;
    std::shared_ptr<Capture> capture;
};

/* For copies and the like: queues or captures. */
cudaError_t queue_item(cudaStream_t stream, Item item);
/* The same stream's work so far, and its own. */
cudaError_t synchronize(cudaStream_t stream);
cudaError_t synchronize_device(int device);
/* The host may not call this now: a capture is under way. Invalidates it. */
bool is_unsafe_now();
/* Of a stream that is being captured: the call is an error there, and ends the capture. */
void invalidate(cudaStream_t stream);
/* Whether queued work names these bytes of pinned memory. */
bool is_in_use(const void *data, size_t bytes);

} // namespace emulation

#endif
