/*
 * Memory of the emulated devices: an arena each, which the host may not touch (PROT_NONE) but while
 * work runs. Every allocation is poisoned, and stands between two strips that nobody may write.
 */
#include <algorithm>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <map>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/cuda-emulation/grid.h"
#include "tests/cuda-emulation/runtime_state.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes)   ((void)(at), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#endif

namespace emulation {

namespace {

constexpr size_t page = 4096;
constexpr size_t strip = 256; /* before and after each allocation */
constexpr unsigned char guard = 0xa5;
constexpr int poison = 0xff; /* NaN as f32 and bf16 */
constexpr size_t protected_ends = (size_t)64 << 10;
constexpr size_t poison_ends = (size_t)4 << 20; /* of larger ones, both ends */

struct Allocation {
    size_t bytes;
    Memory kind;
    int device;
    const void *caller;
    bool exposed;
    size_t block, block_bytes; /* in the arena, with the strips */
};

struct Arena {
    unsigned char *base = nullptr;
    int file = -1;                       /* its memory, for other processes to map */
    size_t room = 0, high = 0, used = 0; /* reserved; ever given out; now */
    std::map<size_t, size_t> holes;      /* offset -> bytes, below `high` */
};

struct State {
    std::mutex mutex;
    std::map<uintptr_t, Allocation> allocations;
    std::map<int, Arena> arenas;
    unsigned open = 0;
    bool closed = false; /* to the host */
    uint64_t closings = 0;
    bool changed = false; /* allocations, since the ranges were found */
    std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
    struct sigaction before;
};

State &state()
{
    static State *the = new State; /* lives as long as the process */
    return *the;
}

std::map<uintptr_t, Allocation>::iterator find(uintptr_t at)
{
    State &s = state();
    auto next = s.allocations.upper_bound(at);
    if (next == s.allocations.begin())
        return s.allocations.end();
    --next;
    return at < next->first + std::max<size_t>(next->second.bytes, 1) ? next : s.allocations.end();
}

const char *caller_name(const void *caller, char *text, size_t room)
{
    Dl_info info;
    if (caller && dladdr(caller, &info) && info.dli_sname)
        snprintf(text, room, "%s", info.dli_sname);
    else
        snprintf(text, room, "%p", caller);
    return text;
}

/* What the host may not touch: of large allocations their ends, as to change the rights of all
 * pages at each piece of work takes longer than the work. Changes only while all is open. */
void find_ranges(State &s)
{
    s.ranges.clear();
    for (auto &entry : s.allocations) {
        const Allocation &allocation = entry.second;
        if (allocation.kind != Memory::device || allocation.exposed)
            continue;
        uintptr_t from = entry.first / page * page;
        uintptr_t to = (entry.first + allocation.bytes + page - 1) / page * page;
        if (to - from > 2 * protected_ends) {
            s.ranges.push_back({from, from + protected_ends});
            s.ranges.push_back({to - protected_ends, to});
        } else if (!s.ranges.empty() && s.ranges.back().second >= from) {
            s.ranges.back().second = std::max(s.ranges.back().second, to);
        } else {
            s.ranges.push_back({from, to});
        }
    }
    for (auto &entry : s.allocations) { /* pages that small ones share with an exposed one */
        if (!entry.second.exposed || entry.second.kind != Memory::device)
            continue;
        uintptr_t from = entry.first / page * page;
        uintptr_t to = (entry.first + entry.second.bytes + page - 1) / page * page;
        for (auto &range : s.ranges) {
            if (range.first < to && range.second > from && range.first >= from)
                range.first = std::min(to, range.second);
            else if (range.first < from && range.second > from)
                range.second = from;
        }
    }
}

void protect(int rights)
{
    for (const auto &range : state().ranges)
        if (range.second > range.first)
            mprotect((void *)range.first, range.second - range.first, rights);
}

/* Writes in a signal handler: the process is at its end. */
void on_fault(int signal, siginfo_t *info, void *context)
{
    State &s = state();
    uintptr_t at = (uintptr_t)info->si_addr;
    for (auto &entry : s.arenas) {
        const Arena &arena = entry.second;
        if (at < (uintptr_t)arena.base || at >= (uintptr_t)arena.base + arena.room)
            continue;
        auto found = find(at);
        char name[128] = "nobody", text[512];
        int length;
        if (found == s.allocations.end())
            length = snprintf(text, sizeof(text),
                              "emulated CUDA: the host touched %p, which is no allocation of "
                              "device %d\n",
                              info->si_addr, entry.first);
        else
            length = snprintf(text, sizeof(text),
                              "emulated CUDA: the host touched memory of device %d: byte %zu of "
                              "the %zu bytes that %s allocated\n",
                              entry.first, (size_t)(at - found->first), found->second.bytes,
                              caller_name(found->second.caller, name, sizeof(name)));
        if (write(STDERR_FILENO, text, (size_t)length) < 0)
            break;
    }
    struct sigaction before = s.before;
    if ((before.sa_flags & SA_SIGINFO) && before.sa_sigaction) {
        before.sa_sigaction(signal, info, context);
        return;
    }
    struct sigaction plain = {};
    plain.sa_handler = SIG_DFL;
    sigaction(signal, &plain, nullptr);
}

void install_handler()
{
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &state().before);
}

Arena &arena_of(int device)
{
    State &s = state();
    Arena &arena = s.arenas[device];
    if (!arena.base) {
        if (s.arenas.size() == 1)
            install_handler();
        /* room for holes that nothing fits in */
        arena.room = (settings().memory * 2 + ((size_t)64 << 20)) / page * page;
        const int rights = PROT_READ | PROT_WRITE;
        arena.file = memfd_create("emulated-gpu", MFD_CLOEXEC);
        if (arena.file < 0 || ftruncate(arena.file, (off_t)arena.room) != 0)
            misuse("no memory for device %d", device);
        void *base = mmap(nullptr, arena.room, rights, MAP_SHARED | MAP_NORESERVE, arena.file, 0);
        if (base == MAP_FAILED)
            misuse("no address space for the memory of device %d", device);
        arena.base = (unsigned char *)base;
    }
    return arena;
}

/* `bytes` with both strips; SIZE_MAX: none. Whole pages for large ones, so that they may be
 * exposed without others. */
size_t take(Arena &arena, size_t bytes)
{
    for (auto hole = arena.holes.begin(); hole != arena.holes.end(); ++hole) {
        if (hole->second < bytes)
            continue;
        size_t at = hole->first, left = hole->second - bytes;
        arena.holes.erase(hole);
        if (left > 0)
            arena.holes[at + bytes] = left;
        return at;
    }
    size_t at = arena.high;
    if (bytes > arena.room - at)
        return SIZE_MAX;
    arena.high += bytes;
    return at;
}

size_t padded(size_t bytes)
{
    return bytes >= page * 4 ? (bytes + page - 1) / page * page + 2 * page
                             : (bytes + strip - 1) / strip * strip + 2 * strip;
}

/* From the beginning of the block to the allocation. */
size_t offset_in(size_t at, size_t bytes)
{
    if (bytes < page * 4)
        return strip;
    return (at + strip + page - 1) / page * page - at;
}

void fill(unsigned char *data, size_t bytes)
{
    if (bytes <= 2 * poison_ends) {
        memset(data, poison, bytes);
    } else {
        memset(data, poison, poison_ends);
        memset(data + bytes - poison_ends, poison, poison_ends);
    }
}

void check_strips(const unsigned char *data, const Allocation &allocation)
{
    char name[128];
    for (size_t i = 0; i < strip; i++) {
        if (data[allocation.bytes + i] != guard || data[-1 - (ptrdiff_t)i] != guard)
            misuse("written outside the %zu bytes that %s allocated", allocation.bytes,
                   caller_name(allocation.caller, name, sizeof(name)));
    }
}

} // namespace

/* Changing rights takes longer than most work: after a while only now and then. */
static bool is_due(uint64_t closing)
{
    return closing < 200 || closing % 64 == 0;
}

Touch::Touch()
{
    State &s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (s.open++ == 0 && s.closed)
        protect(PROT_READ | PROT_WRITE);
    s.closed = false;
}

Touch::~Touch()
{
    State &s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (--s.open > 0 || settings().host_access || !is_due(s.closings++))
        return;
    if (s.changed)
        find_ranges(s);
    s.changed = false;
    s.closed = true;
    protect(PROT_NONE);
}

void *device_alloc(int device, size_t bytes, const void *caller)
{
    State &s = state();
    Touch touch;
    unsigned char *data = nullptr;
    {
        std::lock_guard<std::mutex> lock(s.mutex);
        Arena &arena = arena_of(device);
        if (bytes > settings().memory || bytes > settings().memory - arena.used)
            return nullptr;
        size_t block_bytes = padded(bytes), block = take(arena, block_bytes);
        if (block == SIZE_MAX)
            return nullptr;
        arena.used += bytes;
        data = arena.base + block + offset_in(block, bytes);
        s.allocations[(uintptr_t)data] = {bytes, Memory::device, device,     caller,
                                          false, block,          block_bytes};
        s.changed = true;
    }
    ASAN_UNPOISON_MEMORY_REGION(data - strip, bytes + 2 * strip);
    memset(data - strip, guard, strip);
    memset(data + bytes, guard, strip);
    fill(data, bytes);
    ASAN_POISON_MEMORY_REGION(data - strip, strip);
    ASAN_POISON_MEMORY_REGION(data + bytes, strip);
    device_memory_add(data, bytes);
    return data;
}

/* A hole, and those beside it, are one. */
static void give_back(Arena &arena, size_t at, size_t bytes)
{
    auto next = arena.holes.lower_bound(at);
    if (next != arena.holes.end() && next->first == at + bytes) {
        bytes += next->second;
        next = arena.holes.erase(next);
    }
    if (next != arena.holes.begin()) {
        auto last = std::prev(next);
        if (last->first + last->second == at) {
            at = last->first;
            bytes += last->second;
            arena.holes.erase(last);
        }
    }
    arena.holes[at] = bytes;
}

bool device_free(void *memory)
{
    State &s = state();
    unsigned char *data = (unsigned char *)memory;
    Touch touch;
    std::lock_guard<std::mutex> lock(s.mutex);
    auto found = s.allocations.find((uintptr_t)memory);
    if (found == s.allocations.end() || found->second.kind != Memory::device)
        return false;
    Allocation allocation = found->second;
    Arena &arena = arena_of(allocation.device);
    ASAN_UNPOISON_MEMORY_REGION(data - strip, allocation.bytes + 2 * strip);
    check_strips(data, allocation);
    fill(data, allocation.bytes);
    ASAN_POISON_MEMORY_REGION(data, allocation.bytes);
    s.allocations.erase(found);
    s.changed = true;
    device_memory_remove(data);
    arena.used -= allocation.bytes;
    give_back(arena, allocation.block, allocation.block_bytes);
    return true;
}

void *host_alloc(size_t bytes, Memory kind, const void *caller)
{
    State &s = state();
    void *data = nullptr;
    if (posix_memalign(&data, page, std::max<size_t>(bytes, 1)) != 0)
        return nullptr;
    memset(data, poison, bytes);
    std::lock_guard<std::mutex> lock(s.mutex);
    s.allocations[(uintptr_t)data] = {bytes, kind, device(), caller, false, 0, 0};
    device_memory_add(data, bytes);
    return data;
}

bool host_free(void *memory, Memory kind)
{
    State &s = state();
    {
        std::lock_guard<std::mutex> lock(s.mutex);
        auto found = s.allocations.find((uintptr_t)memory);
        if (found == s.allocations.end() || found->second.kind != kind)
            return false;
        s.allocations.erase(found);
    }
    device_memory_remove(memory);
    free(memory);
    return true;
}

bool host_register(void *memory, size_t bytes)
{
    State &s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (find((uintptr_t)memory) != s.allocations.end())
        return false;
    s.allocations[(uintptr_t)memory] = {bytes, Memory::registered, device(), nullptr, false, 0, 0};
    device_memory_add(memory, bytes);
    return true;
}

bool host_unregister(void *memory)
{
    State &s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    auto found = s.allocations.find((uintptr_t)memory);
    if (found == s.allocations.end() || found->second.kind != Memory::registered)
        return false;
    s.allocations.erase(found);
    device_memory_remove(memory);
    return true;
}

void device_usage(int device, size_t *ret_free, size_t *ret_total)
{
    State &s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    *ret_total = settings().memory;
    *ret_free = settings().memory - s.arenas[device].used;
}

bool device_expose(const void *memory)
{
    State &s = state();
    Touch touch;
    std::lock_guard<std::mutex> lock(s.mutex);
    auto found = find((uintptr_t)memory);
    if (found == s.allocations.end() || found->second.kind != Memory::device)
        return false;
    found->second.exposed = s.changed = true;
    return true;
}

/* ---- memory of another process ---- */

namespace {

struct Exported {
    int32_t process, file, device;
    uint64_t offset, bytes; /* of the allocation, in the file */
};

} // namespace

bool memory_export(const void *memory, void *handle, size_t handle_bytes)
{
    State &s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    auto found = find((uintptr_t)memory);
    if (found == s.allocations.end() || found->second.kind != Memory::device)
        return false;
    const Arena &arena = s.arenas[found->second.device];
    Exported exported = {(int32_t)getpid(), arena.file, found->second.device,
                         found->first - (uintptr_t)arena.base, found->second.bytes};
    memset(handle, 0, handle_bytes);
    memcpy(handle, &exported, sizeof(exported));
    return true;
}

/* Mapped whole pages; never protected, as the other process runs when it likes. */
void *memory_import(const void *handle)
{
    Exported exported;
    char path[64];
    memcpy(&exported, handle, sizeof(exported));
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", exported.process, exported.file);
    int file = exported.process == getpid() ? -1 : open(path, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return nullptr;
    size_t before = exported.offset % page;
    void *base = mmap(nullptr, exported.bytes + before, PROT_READ | PROT_WRITE, MAP_SHARED, file,
                      (off_t)(exported.offset - before));
    close(file);
    if (base == MAP_FAILED)
        return nullptr;
    unsigned char *data = (unsigned char *)base + before;
    State &s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    s.allocations[(uintptr_t)data] = {
        (size_t)exported.bytes, Memory::imported, exported.device, nullptr, true, before, 0};
    device_memory_add(data, exported.bytes);
    return data;
}

bool memory_forget(void *memory)
{
    State &s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    auto found = s.allocations.find((uintptr_t)memory);
    if (found == s.allocations.end() || found->second.kind != Memory::imported)
        return false;
    device_memory_remove(memory);
    munmap((unsigned char *)memory - found->second.block,
           found->second.bytes + found->second.block);
    s.allocations.erase(found);
    return true;
}

bool memory_range(const void *memory, uintptr_t *ret_begin, size_t *ret_bytes)
{
    State &s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    auto found = find((uintptr_t)memory);
    if (found == s.allocations.end() ||
        (found->second.kind != Memory::device && found->second.kind != Memory::imported))
        return false;
    *ret_begin = found->first;
    *ret_bytes = found->second.bytes;
    return true;
}

int device_of(const void *memory)
{
    State &s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    auto found = find((uintptr_t)memory);
    return found == s.allocations.end() ? -1 : found->second.device;
}

Memory memory_of(const void *address, size_t *ret_bytes)
{
    State &s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    auto found = find((uintptr_t)address);
    if (found == s.allocations.end())
        return Memory::unknown;
    if (ret_bytes)
        *ret_bytes = found->first + found->second.bytes - (uintptr_t)address;
    return found->second.kind == Memory::imported ? Memory::device : found->second.kind;
}

/* At the end of the process. */
void report_leaks()
{
    State &s = state();
    size_t count = 0;
    {
        Touch touch;
        std::lock_guard<std::mutex> lock(s.mutex);
        for (auto &entry : s.allocations) {
            char name[128];
            const Allocation &allocation = entry.second;
            unsigned char *data = (unsigned char *)entry.first;
            if (allocation.kind == Memory::device) {
                ASAN_UNPOISON_MEMORY_REGION(data - strip, allocation.bytes + 2 * strip);
                check_strips(data, allocation);
            }
            if (count++ < 20)
                fprintf(stderr, "emulated CUDA: leak: %zu bytes that %s allocated\n",
                        allocation.bytes, caller_name(allocation.caller, name, sizeof(name)));
        }
    }
    if (count && settings().leaks_fail)
        _exit(99);
}

void misuse(const char *format, ...)
{
    va_list args;
    fprintf(stderr, "emulated CUDA: ");
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
    abort();
}

} // namespace emulation
