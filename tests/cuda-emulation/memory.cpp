/* Global memory: allocations, who may touch what, and races between the blocks of a launch. */
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <map>
#include <mutex>
#include <shared_mutex>

#include "tests/cuda-emulation/run.h"

namespace emulation {

/*
 * The shadow of a byte: what was done with it last, in which launch, by which block. Launches are
 * numbered 1 … 4095 over and over; at each turn all shadows are cleared.
 */
typedef uint32_t Shade; /* kind 2, launch 12, block 18 */
enum Kind : uint32_t { kind_none, kind_read, kind_written, kind_atomic };
constexpr uint32_t kBlockMask = (1u << 18) - 1, kManyBlocks = kBlockMask;
constexpr uint32_t kLaunches = 4096;
constexpr size_t kShadedBytes = size_t(1) << 30; /* larger allocations have no shadow */

struct Allocation {
    uintptr_t begin, end;
    Shade *shades; /* of every byte, or NULL */
};

struct Allocations {
    std::shared_mutex mutex;
    std::map<uintptr_t, Allocation> by_begin;
    std::map<uintptr_t, size_t> freed;
    std::atomic<uint64_t> version{1};
    std::mutex launch_mutex;
    uint32_t last_launch = 0;
    std::vector<uint32_t> running, skipped;
};

static Allocations &allocations()
{
    static Allocations *const all = new Allocations(); /* threads may outlive main */
    return *all;
}

static size_t shade_bytes(const Allocation &allocation)
{
    return (allocation.end - allocation.begin) * sizeof(Shade);
}

void device_memory_add(const void *memory, size_t bytes)
{
    Allocations &all = allocations();
    Allocation allocation = {reinterpret_cast<uintptr_t>(memory),
                             reinterpret_cast<uintptr_t>(memory) + bytes, nullptr};
    if (bytes != 0 && bytes <= kShadedBytes) {
        void *shades = mmap(nullptr, shade_bytes(allocation), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        allocation.shades = shades == MAP_FAILED ? nullptr : static_cast<Shade *>(shades);
    }
    std::unique_lock<std::shared_mutex> lock(all.mutex);
    all.by_begin[allocation.begin] = allocation;
    all.version++;
}

void device_memory_remove(const void *memory)
{
    Allocations &all = allocations();
    std::unique_lock<std::shared_mutex> lock(all.mutex);
    auto found = all.by_begin.find(reinterpret_cast<uintptr_t>(memory));
    if (found == all.by_begin.end())
        return;
    if (found->second.shades)
        munmap(found->second.shades, shade_bytes(found->second));
    if (all.freed.size() < 65536)
        all.freed[found->first] = found->second.end - found->second.begin;
    all.by_begin.erase(found);
    all.version++;
}

static bool find_allocation(uintptr_t at, size_t bytes, Allocation *ret_allocation)
{
    Allocations &all = allocations();
    auto after = all.by_begin.upper_bound(at);
    if (after == all.by_begin.begin())
        return false;
    const Allocation &found = std::prev(after)->second;
    if (at >= found.end || bytes > found.end - at)
        return false;
    *ret_allocation = found;
    return true;
}

bool device_memory_holds(const void *memory, size_t bytes)
{
    Allocation found;
    std::shared_lock<std::shared_mutex> lock(allocations().mutex);
    return find_allocation(reinterpret_cast<uintptr_t>(memory), bytes, &found);
}

std::string nearest_allocation(const void *address)
{
    Allocations &all = allocations();
    uintptr_t at = reinterpret_cast<uintptr_t>(address);
    char text[256];
    std::shared_lock<std::shared_mutex> lock(all.mutex);
    auto after = all.by_begin.upper_bound(at);
    const Allocation *below = after == all.by_begin.begin() ? nullptr : &std::prev(after)->second;
    const Allocation *above = after == all.by_begin.end() ? nullptr : &after->second;
    if (below && at < below->end)
        snprintf(text, sizeof text, "%p, byte %zu of device memory of %zu bytes at %p", address,
                 at - below->begin, below->end - below->begin,
                 reinterpret_cast<void *>(below->begin));
    else if (below && (!above || at - below->end <= above->begin - at))
        snprintf(text, sizeof text,
                 "%p, %zu bytes behind the end of device memory of %zu bytes at "
                 "%p",
                 address, at - below->end, below->end - below->begin,
                 reinterpret_cast<void *>(below->begin));
    else if (above)
        snprintf(text, sizeof text, "%p, %zu bytes before device memory of %zu bytes at %p",
                 address, above->begin - at, above->end - above->begin,
                 reinterpret_cast<void *>(above->begin));
    else
        snprintf(text, sizeof text, "%p; there is no device memory", address);
    auto freed = all.freed.upper_bound(at);
    if ((!below || at >= below->end) && freed != all.freed.begin()) {
        --freed;
        if (at < freed->first + freed->second)
            return std::string(text) + "; once of device memory that was freed";
    }
    return text;
}

/* ---- launches ---- */

uint32_t global_launch_begin()
{
    Allocations &all = allocations();
    std::lock_guard<std::mutex> lock(all.launch_mutex);
    do {
        if (++all.last_launch == kLaunches) {
            /* Who runs across the turn goes on under its number: nobody else may get it. */
            all.last_launch = 1;
            all.skipped = all.running;
            std::unique_lock<std::shared_mutex> memory(all.mutex);
            for (auto &each : all.by_begin)
                if (each.second.shades)
                    madvise(each.second.shades, shade_bytes(each.second), MADV_DONTNEED);
        }
    } while (std::count(all.skipped.begin(), all.skipped.end(), all.last_launch) != 0);
    all.running.push_back(all.last_launch);
    return all.last_launch;
}

void global_launch_end(uint32_t launch)
{
    Allocations &all = allocations();
    std::lock_guard<std::mutex> lock(all.launch_mutex);
    all.running.erase(std::find(all.running.begin(), all.running.end(), launch));
}

/* ---- memory of the program that kernels may read ---- */

struct Search {
    uintptr_t at;
    size_t bytes;
    bool found;
};

/* Segments that can't be written, or no more once relocated. */
static int look_in_object(struct dl_phdr_info *info, size_t, void *data)
{
    Search *search = static_cast<Search *>(data);
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        bool constant =
            (part->p_type == PT_LOAD && !(part->p_flags & PF_W)) || part->p_type == PT_GNU_RELRO;
        uintptr_t begin = info->dlpi_addr + part->p_vaddr;
        if (constant && search->at >= begin && search->at < begin + part->p_memsz &&
            search->bytes <= begin + part->p_memsz - search->at)
            search->found = true;
    }
    return search->found;
}

bool is_constant_memory(const void *at, size_t bytes)
{
    /* Each thread remembers the last page that was. */
    static thread_local uintptr_t page;
    uintptr_t here = reinterpret_cast<uintptr_t>(at);
    if (here / 4096 == page && here % 4096 + bytes <= 4096)
        return true;
    Search search = {here, bytes, false};
    dl_iterate_phdr(look_in_object, &search);
    if (search.found) {
        Search whole = {here / 4096 * 4096, 4096, false};
        dl_iterate_phdr(look_in_object, &whole);
        if (whole.found)
            page = here / 4096;
    }
    return search.found;
}

/* ---- accesses ---- */

constexpr unsigned kKept = 8;
static thread_local struct {
    uint64_t version;
    unsigned next;
    Allocation kept[kKept];
} recent __attribute__((tls_model("initial-exec")));

static const Allocation *allocation_of(uintptr_t at, size_t bytes)
{
    uint64_t version = allocations().version.load(std::memory_order_acquire);
    if (recent.version != version) {
        recent.version = version;
        std::fill(recent.kept, recent.kept + kKept, Allocation{1, 0, nullptr});
    }
    for (Allocation &kept : recent.kept)
        if (at >= kept.begin && at < kept.end)
            return bytes <= kept.end - at ? &kept : nullptr;
    Allocation *kept = &recent.kept[recent.next++ % kKept];
    std::shared_lock<std::shared_mutex> lock(allocations().mutex);
    return find_allocation(at, bytes, kept) ? kept : nullptr;
}

[[noreturn]] static void global_race(Run *run, uintptr_t at, Access access, Shade before,
                                     const char *what)
{
    static const char *const did[] = {"", "read", "written", "changed atomically"};
    char block[64] = "several blocks";
    if ((before & kBlockMask) != kManyBlocks)
        snprintf(block, sizeof block, "block %u of the grid", before & kBlockMask);
    fault(run, "race: %s by %s at %s, which was %s by %s of this launch%s", access_text(what),
          thread_name(run, run->now->number).c_str(),
          nearest_allocation(reinterpret_cast<void *>(at)).c_str(), did[before >> 30], block,
          access == Access::read_constant ? " (a load that asks for constant memory)" : "");
}

/*
 * Whether this thread may rely on what that block did. There one thread fenced, after the block's
 * last barrier, and then did an atomic; here one has done an atomic, then fenced, and is this one
 * or has met it since. (What PTX calls release and acquire patterns are a fence and an atomic of
 * one thread; a barrier between them, behind fences of all, is none.) Blocks of clusters hand
 * nothing over here.
 */
static bool is_released(const Run *run, uint32_t block)
{
    return run->acquired &&
           (run->acquired_by == run->now->number || run->acquired_era != run->era) &&
           block < run->released_blocks.size() && run->released_blocks[block];
}

static Shade shade_after(Run *run, uintptr_t at, Access access, Shade before, Shade mine,
                         const char *what)
{
    uint32_t kind = before >> 30, block = before & kBlockMask, me = mine & kBlockMask;
    bool foreign = (before >> 18 & 0xfff) != run->launch;
    bool others = !foreign && block != me && !is_released(run, block);
    bool reads = access == Access::read || access == Access::read_constant;
    if (foreign)
        kind = kind_none;
    if (reads) {
        if (kind == kind_written || kind == kind_atomic) {
            if (others || access == Access::read_constant)
                global_race(run, at, access, before, what);
            return before;
        }
        return kind == kind_read && block != me ? before | kManyBlocks
                                                : (mine | uint32_t(kind_read) << 30);
    }
    if (access == Access::atomic) {
        if (others && kind != kind_none && kind != kind_atomic)
            global_race(run, at, access, before, what);
        return mine | uint32_t(kind_atomic) << 30;
    }
    if (others && kind != kind_none)
        global_race(run, at, access, before, what);
    return mine | uint32_t(kind_written) << 30;
}

void global_access(Run *run, const void *address, size_t bytes, Access access, const char *what)
{
    uintptr_t at = reinterpret_cast<uintptr_t>(address);
    const Allocation *allocation = allocation_of(at, bytes);
    if (allocation == nullptr) {
        if (access <= Access::read_constant && is_constant_memory(address, bytes))
            return;
        fault(run, "%s of %zu bytes by %s is not in device memory: %s", access_text(what), bytes,
              thread_name(run, run->now->number).c_str(), nearest_allocation(address).c_str());
    }
    if (allocation->shades == nullptr)
        return;
    Shade *shades = allocation->shades + (at - allocation->begin);
    uint32_t block = block_of(run, run->now)->number;
    Shade mine = run->launch << 18 | block % kManyBlocks, first = shades[0], differ = 0;
    for (size_t i = 1; i < bytes; i++)
        differ |= shades[i] ^ first;
    if (differ == 0) {
        Shade after = shade_after(run, at, access, first, mine, what);
        if (after != first)
            std::fill(shades, shades + bytes, after);
        return;
    }
    for (size_t i = 0; i < bytes; i++)
        shades[i] = shade_after(run, at + i, access, shades[i], mine, what);
}

void check_global(const void *at, bool write, bool constant, Place place)
{
    Run *run = current;
    const char *what = write ? "bt_store_16" : "bt_load_16";
    run->now->place = place;
    if (reinterpret_cast<uintptr_t>(at) % 16 != 0)
        fault(run, "misaligned: %s by %s at %s", what, thread_name(run, run->now->number).c_str(),
              address_name(run, at).c_str());
    global_access(run, at, 16,
                  write      ? Access::write
                  : constant ? Access::read_constant
                             : Access::read,
                  what);
}

void fence_device()
{
    Run *run = current;
    Thread *self = run->now;
    self->fenced_era = run->era;
    if (!self->did_atomic)
        return;
    self->did_atomic = false;
    run->acquired = true;
    run->acquired_by = self->number;
    run->acquired_era = run->era;
}

static void before_atomic(Run *run, uint32_t *at, Place place, const char *what, const void *code)
{
    Thread *self = run->now;
    self->place = place;
    bool is_global = !in_shared_area(run, at);
    if (run->counts != nullptr)
        counts_access(run, is_global ? Counted::global_atomic : Counted::shared_atomic, at, 4,
                      code);
    if (reinterpret_cast<uintptr_t>(at) % 4 != 0)
        fault(run, "misaligned: %s by %s at %s", what, thread_name(run, self->number).c_str(),
              address_name(run, at).c_str());
    if (is_global) {
        global_access(run, at, 4, Access::atomic, what);
        self->did_atomic = true;
        if (self->fenced_era == run->era && run->cluster == 1) {
            uint32_t block = block_of(run, self)->number;
            run->released_blocks.resize(std::max<size_t>(run->released_blocks.size(), block + 1));
            run->released_blocks[block] = true;
        }
        return;
    }
    shared_atomic(run, self, shared_offset(run, at, 4, 4, what), 4, what);
}

uint32_t atomic_add(uint32_t *at, uint32_t value, Place place)
{
    before_atomic(current, at, place, "bt_atomic_add", __builtin_return_address(0));
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}

uint32_t atomic_max(uint32_t *at, uint32_t value, Place place)
{
    before_atomic(current, at, place, "bt_atomic_max", __builtin_return_address(0));
    uint32_t old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (old < value &&
           !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
    return old;
}

} // namespace emulation
