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

[[gnu::noinline]] static void local_access(Run *run, const unsigned char *at, size_t bytes,
                                           bool write)
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

/* ---- the usual access: of bytes that have one past, and no fault ---- */

template <size_t count, typename Word> static inline bool all_are(const Word *from, Word value)
{
    Word differ = 0;
    for (size_t i = 0; i < count; i++)
        differ = static_cast<Word>(differ | (from[i] ^ value));
    return differ == 0;
}

/* As shared_read. False: that has to look. */
template <size_t bytes> static inline bool quick_read(Run *run, const Thread *by, uint32_t offset)
{
    const uint8_t *content = reinterpret_cast<const uint8_t *>(run->content + offset);
    const Stamp *writer = run->writer + offset;
    Stamp *reader = run->reader + offset, wrote = *writer, before = *reader, me = stamp_of(by);
    if (!all_are<bytes>(content, uint8_t(written)) || !all_are<bytes>(writer, wrote) ||
        !all_are<bytes>(reader, before) || !ordered(run, by, wrote))
        return false;
    if (before == me)
        return true;
    Stamp after = me;
    if (before & kMany) {
        const Readers *readers = &run->readers[before & ~kMany];
        if (readers->newest >= run->base) {
            if (readers->stamp == me)
                return true;
            const Run::Joined *kept = joined_place(run, before, me);
            if (kept->set != before || kept->with != me)
                return false;
            after = kept->result;
        }
    } else if (!ordered(run, by, before))
        return false;
    for (size_t i = 0; i < bytes; i++)
        reader[i] = after;
    return true;
}

/* As shared_write. */
template <size_t bytes> static inline bool quick_write(Run *run, const Thread *by, uint32_t offset)
{
    uint8_t *content = reinterpret_cast<uint8_t *>(run->content + offset), was = *content;
    Stamp *writer = run->writer + offset, *reader = run->reader + offset;
    Stamp wrote = *writer, read = *reader, me = stamp_of(by);
    if (was >= under_way || run->wgmma_under_way != 0 || !all_are<bytes>(content, was) ||
        !all_are<bytes>(writer, wrote) || !all_are<bytes>(reader, read) || !ordered(run, by, wrote))
        return false;
    if (read & kMany ? run->readers[read & ~kMany].newest >= run->base : !ordered(run, by, read))
        return false;
    for (size_t i = 0; i < bytes; i++) {
        content[i] = written;
        writer[i] = me;
        reader[i] = 0;
    }
    return true;
}

static void look(Run *run, const unsigned char *at, size_t bytes, size_t align, bool write,
                 const void *code)
{
    lazy = {write, code};
    if (__builtin_expect(reinterpret_cast<uintptr_t>(at) & (align - 1), 0))
        fault(run, "misaligned: a %s of %zu bytes (%s) by %s at %s", write ? "store" : "load",
              bytes, code_name(code).c_str(), thread_name(run, run->now->number).c_str(),
              address_name(run, at).c_str());
    if (in_shared_area(run, at)) {
        uint32_t offset = shared_offset(run, at, bytes, 1, nullptr);
        if (write)
            shared_write(run, run->now, offset, bytes, nullptr);
        else
            shared_read(run, run->now, offset, bytes, nullptr);
        return;
    }
    global_access(run, at, bytes, write ? Access::write : Access::read, nullptr);
}

template <size_t bytes, size_t align, bool write>
[[gnu::noinline]] static void check_elsewhere(Run *run, const unsigned char *at, const void *code)
{
    if (__builtin_expect(run->counts != nullptr, 0))
        counts_plain(run, at, bytes, write, code);
    size_t own = run->now->shared_at, room = run->grid->shared_bytes;
    size_t offset = static_cast<size_t>(at - run->shared) - own;
    if (offset < room && bytes <= room - offset && (offset & (align - 1)) == 0) {
        uint32_t place = static_cast<uint32_t>(own + offset);
        bool is_done = write ? quick_write<bytes>(run, run->now, place)
                             : quick_read<bytes>(run, run->now, place);
        if (__builtin_expect(is_done, 1))
            return;
    } else if (!write && static_cast<size_t>(at - static_cast<const unsigned char *>(
                                                      run->context)) < run->context_bytes)
        return;
    look(run, at, bytes, align, write, code);
}

/* Whether it is of the thread's own local memory, and no register of a wgmma. */
static inline bool is_own(const Run *run, const unsigned char *at)
{
    return static_cast<size_t>(at - run->stacks) / kStackBytes == run->now->number &&
           run->wgmma_under_way == 0;
}

static inline bool in_stacks(const Run *run, const unsigned char *at)
{
    return static_cast<size_t>(at - run->stacks) < kThreads * kStackBytes;
}

template <size_t bytes, size_t align, bool write>
static inline void check(const void *address, const void *code)
{
    Run *run = current;
    const unsigned char *at = static_cast<const unsigned char *>(address);
    if (run == nullptr || is_own(run, at))
        return;
    if (in_stacks(run, at))
        return local_access(run, at, bytes, write);
    check_elsewhere<bytes, align, write>(run, at, code);
}

static void check_range(const void *address, size_t bytes, bool write, const void *code)
{
    Run *run = current;
    const unsigned char *at = static_cast<const unsigned char *>(address);
    if (run == nullptr || is_own(run, at))
        return;
    if (in_stacks(run, at))
        return local_access(run, at, bytes, write);
    if (!write && static_cast<size_t>(at - static_cast<const unsigned char *>(run->context)) <
                      run->context_bytes)
        return;
    if (run->counts != nullptr)
        counts_plain(run, at, bytes, write, code);
    look(run, at, bytes, 1, write, code);
}

} // namespace emulation

#define HERE __builtin_return_address(0)
#define ACCESSES(bytes)                                                                            \
    void __tsan_read##bytes(void *at)                                                              \
    {                                                                                              \
        emulation::check<bytes, bytes, false>(at, HERE);                                           \
    }                                                                                              \
    void __tsan_write##bytes(void *at)                                                             \
    {                                                                                              \
        emulation::check<bytes, bytes, true>(at, HERE);                                            \
    }                                                                                              \
    void __tsan_unaligned_read##bytes(void *at)                                                    \
    {                                                                                              \
        emulation::check<bytes, 1, false>(at, HERE);                                               \
    }                                                                                              \
    void __tsan_unaligned_write##bytes(void *at)                                                   \
    {                                                                                              \
        emulation::check<bytes, 1, true>(at, HERE);                                                \
    }                                                                                              \
    void __tsan_volatile_read##bytes(void *at)                                                     \
    {                                                                                              \
        emulation::check<bytes, bytes, false>(at, HERE);                                           \
    }                                                                                              \
    void __tsan_volatile_write##bytes(void *at)                                                    \
    {                                                                                              \
        emulation::check<bytes, bytes, true>(at, HERE);                                            \
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
    emulation::check_range(at, bytes, false, HERE);
}
void __tsan_write_range(void *at, size_t bytes)
{
    emulation::check_range(at, bytes, true, HERE);
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
