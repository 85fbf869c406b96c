/*
 * Every access of a kernel comes here: kernels are compiled with -fsanitize=thread, and these are
 * the functions that the compiler then calls. They are of this module alone.
 */
#include <dlfcn.h>

#include <cstdio>

#include "tests/cuda-emulation/run.h"

namespace emulation {

static std::string code_name(const void *code)
{
    Dl_info info;
    char text[512];
    if (dladdr(code, &info) == 0 || info.dli_fname == nullptr)
        snprintf(text, sizeof text, "%p", code);
    else
        snprintf(text, sizeof text, "%s of %s+0x%zx", info.dli_sname ? info.dli_sname : "code",
                 info.dli_fname,
                 static_cast<size_t>(static_cast<const char *>(code) -
                                     static_cast<const char *>(info.dli_fbase)));
    return text;
}

static void local_access(Run *run, const unsigned char *at, size_t bytes, bool write)
{
    const Thread *self = run->now;
    size_t owner = static_cast<size_t>(at - run->stacks) / kStackBytes;
    if (owner != self->number)
        fault(run, "%s by %s in the local memory of thread %zu", write ? "a store" : "a load",
              thread_name(run, self->number).c_str(), owner);
    if (is_accumulating(run, self, at, bytes))
        fault(run, "%s by %s of a register that a wgmma, not waited for, accumulates in",
              write ? "a store" : "a load", thread_name(run, self->number).c_str());
}

static const char *access_name(Run *run, bool write, const void *code)
{
    (void)run;
    static thread_local char text[640];
    snprintf(text, sizeof text, "a %s (%s)", write ? "store" : "load", code_name(code).c_str());
    return text;
}

/* Names of accesses cost more than accesses: told when there is a fault. */
struct Lazy {
    bool write;
    const void *code;
};
static thread_local Lazy lazy __attribute__((tls_model("initial-exec")));

const char *access_text(const char *what)
{
    return what ? what : access_name(nullptr, lazy.write, lazy.code);
}

static inline void check(const void *address, size_t bytes, size_t align, bool write,
                         const void *code)
{
    Run *run = current;
    if (__builtin_expect(run == nullptr, 0))
        return;
    const unsigned char *at = static_cast<const unsigned char *>(address);
    size_t in_stacks = static_cast<size_t>(at - run->stacks);
    if (in_stacks < kThreads * kStackBytes) {
        size_t owner = in_stacks / kStackBytes;
        if (__builtin_expect(owner != run->now->number || run->wgmma_under_way != 0, 0))
            local_access(run, at, bytes, write);
        return;
    }
    if (static_cast<size_t>(at - static_cast<const unsigned char *>(run->context)) <
            run->context_bytes &&
        !write)
        return;
    lazy = {write, code};
    if (__builtin_expect(reinterpret_cast<uintptr_t>(at) & (align - 1), 0))
        fault(run, "misaligned: a %s of %zu bytes (%s) by %s at %s", write ? "store" : "load",
              bytes, code_name(code).c_str(), thread_name(run, run->now->number).c_str(),
              address_name(run, at).c_str());
    size_t in_shared = static_cast<size_t>(at - run->shared_area);
    if (in_shared < kSharedBytes + 2 * kSharedGuard) {
        uint32_t offset = shared_offset(run, at, bytes, 1, nullptr);
        if (write)
            shared_write(run, run->now, offset, bytes, nullptr);
        else
            shared_read(run, run->now, offset, bytes, nullptr);
        return;
    }
    global_access(run, at, bytes, write ? Access::write : Access::read, nullptr);
}

} // namespace emulation

#define HERE __builtin_return_address(0)
#define ACCESSES(bytes)                                                                            \
    void __tsan_read##bytes(void *at)                                                              \
    {                                                                                              \
        emulation::check(at, bytes, bytes, false, HERE);                                           \
    }                                                                                              \
    void __tsan_write##bytes(void *at)                                                             \
    {                                                                                              \
        emulation::check(at, bytes, bytes, true, HERE);                                            \
    }                                                                                              \
    void __tsan_unaligned_read##bytes(void *at)                                                    \
    {                                                                                              \
        emulation::check(at, bytes, 1, false, HERE);                                               \
    }                                                                                              \
    void __tsan_unaligned_write##bytes(void *at)                                                   \
    {                                                                                              \
        emulation::check(at, bytes, 1, true, HERE);                                                \
    }                                                                                              \
    void __tsan_volatile_read##bytes(void *at)                                                     \
    {                                                                                              \
        emulation::check(at, bytes, bytes, false, HERE);                                           \
    }                                                                                              \
    void __tsan_volatile_write##bytes(void *at)                                                    \
    {                                                                                              \
        emulation::check(at, bytes, bytes, true, HERE);                                            \
    }

#pragma GCC visibility push(hidden)
extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void *at, size_t bytes)
{
    emulation::check(at, bytes, 1, false, HERE);
}
void __tsan_write_range(void *at, size_t bytes)
{
    emulation::check(at, bytes, 1, true, HERE);
}
void __tsan_vptr_update(void **, void *)
{
}
void __tsan_vptr_read(void **)
{
}
void __tsan_func_entry(void *)
{
}
void __tsan_func_exit(void)
{
}
void __tsan_init(void)
{
}
}
#pragma GCC visibility pop
