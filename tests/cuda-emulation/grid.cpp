/* Blocks, and how fibers take turns and meet. */
#include "tests/cuda-emulation/grid.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/cuda-emulation/fiber.h"
#include "tests/cuda-emulation/run.h"

namespace emulation {

__thread Run *current __attribute__((tls_model("initial-exec")));

static thread_local fault_handler handler_now;
static thread_local uint64_t seed_now;
static thread_local bool seed_is_set;

void set_fault_handler(fault_handler handler)
{
    handler_now = handler;
}

void set_seed(uint64_t seed)
{
    seed_now = seed;
    seed_is_set = true;
}

static uint64_t seed_of_environment()
{
    const char *text = getenv("BATON_EMULATION_SEED");
    return text ? strtoull(text, nullptr, 0) : 0;
}

/* ---- memory of a run ---- */

static void *reserve(size_t bytes, int protection)
{
    void *memory =
        mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("emulated grid: mmap");
        abort();
    }
    return memory;
}

template <typename Type> static Type *reserve_array(size_t count)
{
    return static_cast<Type *>(reserve(count * sizeof(Type), PROT_READ | PROT_WRITE));
}

struct RunMemory {
    Run run{};
    unsigned stacks_ready = 0;

    RunMemory()
    {
        run.stacks = static_cast<unsigned char *>(reserve(kThreads * kStackBytes, PROT_NONE));
        run.shared_area =
            static_cast<unsigned char *>(reserve(kSharedGuard + kSharedAll, PROT_NONE));
        run.shared = run.shared_area + kSharedGuard;
        for (size_t at = 0; at < kSharedAll; at += kSharedEach)
            mprotect(run.shared + at, kSharedBytes, PROT_READ | PROT_WRITE);
        run.content = reserve_array<Content>(kSharedAll);
        run.writer = reserve_array<Stamp>(kSharedAll);
        run.reader = reserve_array<Stamp>(kSharedAll);
        run.being_read = reserve_array<uint8_t>(kSharedAll / 16);
        run.joined = reserve_array<Run::Joined>(kJoined);
        for (unsigned i = 0; i < kThreads; i++)
            run.thread[i].number = i;
    }
    ~RunMemory()
    {
        munmap(run.stacks, kThreads * kStackBytes);
        munmap(run.shared_area, kSharedGuard + kSharedAll);
        munmap(run.content, kSharedAll * sizeof *run.content);
        munmap(run.writer, kSharedAll * sizeof *run.writer);
        munmap(run.reader, kSharedAll * sizeof *run.reader);
        munmap(run.being_read, kSharedAll / 16);
        munmap(run.joined, kJoined * sizeof *run.joined);
    }
    RunMemory(const RunMemory &) = delete;
    RunMemory &operator=(const RunMemory &) = delete;

    /* The lowest page of each stack stays out of reach. */
    void need_stacks(unsigned threads)
    {
        for (; stacks_ready < threads; stacks_ready++)
            mprotect(run.stacks + stacks_ready * kStackBytes + 4096, kStackBytes - 4096,
                     PROT_READ | PROT_WRITE);
    }
};

static thread_local std::unique_ptr<RunMemory> memory_of_thread;

/* ---- turns ---- */

static uint32_t next_random(Run *run)
{
    run->random = run->random * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(run->random >> 33);
}

/* The first set bit, or with a seed any. */
static unsigned pick_bit(Run *run, uint32_t bits, unsigned from)
{
    if (run->seed != 0)
        from = next_random(run) % 32;
    uint32_t turned = bits >> from | (from ? bits << (32 - from) : 0);
    return (static_cast<unsigned>(__builtin_ctz(turned)) + from) % 32;
}

static Thread *pick(Run *run)
{
    if (run->ready_warps == 0)
        return nullptr;
    bool stay = run->ready[run->warp_now] != 0 && (run->seed == 0 || next_random(run) % 16 != 0);
    if (!stay)
        run->warp_now = pick_bit(run, run->ready_warps, run->warp_now);
    unsigned warp = run->warp_now, lane = pick_bit(run, run->ready[warp], 0);
    run->ready[warp] &= ~(1u << lane);
    if (run->ready[warp] == 0)
        run->ready_warps &= ~(1u << warp);
    return &run->thread[warp * kLanes + lane];
}

void wake(Run *run, Thread *thread)
{
    thread->state = ready;
    unsigned warp = thread->number / kLanes;
    run->ready[warp] |= 1u << thread->number % kLanes;
    run->ready_warps |= 1u << warp;
}

[[noreturn]] static void report_deadlock(Run *run);

static void leave(Run *run, void **kept)
{
    Thread *next = pick(run);
    if (next == nullptr && run->finished < run->threads) {
        if (!finish_for_waiting(run))
            report_deadlock(run);
        next = pick(run);
    }
    run->now = next;
    fiber_switch(kept, next ? next->sp : run->main_sp);
}

void wait(Run *run, Thread *self, State state, const char *what, Place place)
{
    self->state = state;
    self->what = what;
    self->place = place;
    leave(run, &self->sp);
}

void abandon(Run *run)
{
    run->failed = true;
    Thread *self = run->now;
    run->now = nullptr;
    fiber_switch(&self->sp, run->main_sp);
    abort();
}

static void check_end_of_thread(Run *run, Thread *self)
{
    unsigned warp = self->number / kLanes, group = self->number / kGroupThreads;
    const Meeting *meeting = &run->warp_meeting[warp];
    if (meeting->count == 0)
        meeting = &run->group_meeting[group];
    if (meeting->count != 0)
        fault(run, "%s has ended, while others of its %s wait at %s (%s)",
              thread_name(run, self->number).c_str(),
              meeting == &run->group_meeting[group] ? "warpgroup" : "warp", meeting->what,
              place_name(meeting->place).c_str());
    const Barrier *block = &block_of(run, self)->barrier, *cluster = &run->cluster_barrier;
    const Barrier *barrier = block->arrived != 0 ? block : cluster;
    if (barrier->arrived != 0)
        fault(run, "divergence: %s has ended, while %u threads wait at the %s's barrier (%s)",
              thread_name(run, self->number).c_str(), barrier->arrived,
              barrier == block ? "block" : "cluster", place_name(barrier->place).c_str());
}

/* Its shared memory goes: what others did with it has come before, in every order of the threads.
 */
static void check_touches(Run *run, unsigned rank)
{
    const Block &block = run->block[rank];
    for (unsigned who = 0; who < kClocks; who++) {
        uint32_t clock = block.touched[who];
        if (clock == 0 || clock < run->base)
            continue;
        bool known = false;
        for (unsigned i = 0; i < run->block_threads && !known; i++)
            known = ordered(run, &run->thread[rank * run->block_threads + i],
                            who << kClockBits | clock);
        if (!known)
            fault(run,
                  "the block ended, while nothing says that what %s did with its shared memory "
                  "has come before",
                  thread_name(run, who).c_str());
    }
}

static void check_end_of_block(Run *run, unsigned rank)
{
    const Barrier *named = run->block[rank].named;
    counts_flush_if(run, rank * run->block_threads, whole_warps(run->block_threads));
    for (unsigned i = 1; i < kNamed; i++)
        if (named[i].arrived != 0)
            fault(run, "the block ended with %u of %u threads arrived at barrier %u (%s)",
                  named[i].arrived, named[i].expected, i, place_name(named[i].place).c_str());
    matrix_end(run, rank);
    async_end(run, rank);
    check_touches(run, rank);
}

static void fiber_entry()
{
    Run *run = current;
    run->body(run->context);
    Thread *self = run->now;
    check_end_of_thread(run, self);
    self->state = done;
    run->finished++;
    if (++block_of(run, self)->finished == run->block_threads)
        check_end_of_block(run, self->rank);
    leave(run, &self->sp);
    abort();
}

[[noreturn]] static void report_deadlock(Run *run)
{
    std::string text =
        run->finished ? "divergence: no thread can go on, " : "no thread can go on, ";
    text += std::to_string(run->finished) + " have ended; the others wait:";
    unsigned told = 0;
    for (unsigned i = 0; i < run->threads; i++) {
        const Thread *thread = &run->thread[i], *before = i ? thread - 1 : nullptr;
        if (thread->state == done)
            continue;
        if (before && before->state == thread->state && before->what == thread->what &&
            before->place.line == thread->place.line && i % kLanes != 0)
            continue;
        if (++told > 40)
            break;
        text += "\n    from " + thread_name(run, i) + ": at " + thread->what + " (" +
                place_name(thread->place) + ")";
    }
    fault(run, "%s", text.c_str());
}

/* ---- meetings ---- */

void meet_begin(Run *run, Meeting *meeting, unsigned first, unsigned count, const char *what,
                Place place)
{
    if (meeting->count == 0) {
        if (first + count > run->threads)
            fault(run, "%s needs %u threads, but only %u of them are in the block", what, count,
                  run->threads - first);
        if (run->finished != 0)
            for (unsigned i = first; i < first + count; i++)
                if (run->thread[i].state == done)
                    fault(run, "%s (%s), while %s has ended", what, place_name(place).c_str(),
                          thread_name(run, i).c_str());
        meeting->what = what;
        meeting->place = place;
        return;
    }
    if (meeting->what != what || meeting->place.line != place.line ||
        meeting->place.file != place.file)
        fault(run, "divergence: %s is at %s (%s), while others wait at %s (%s)",
              thread_name(run, run->now->number).c_str(), what, place_name(place).c_str(),
              meeting->what, place_name(meeting->place).c_str());
}

void meet_end(Run *run, unsigned first, unsigned count)
{
    for (unsigned i = first; i < first + count; i++)
        run->thread[i].state = ready;
    unsigned self = run->now->number;
    for (unsigned warp = first / kLanes; warp < (first + count) / kLanes; warp++) {
        run->ready[warp] = self / kLanes == warp ? ~(1u << self % kLanes) : ~0u;
        run->ready_warps |= 1u << warp;
    }
}

/* ---- threads ---- */

uint3 thread_index()
{
    return current->now->index;
}
uint3 block_index()
{
    return block_of(current, current->now)->index;
}
uint3 block_size()
{
    return current->block_size_;
}
uint3 grid_size()
{
    return current->blocks;
}
unsigned char *shared_memory()
{
    return current->shared + current->now->shared_at;
}

void missing(const char *what, Place place)
{
    fault(current, "%s (%s) on an architecture that does not have it", what,
          place_name(place).c_str());
}

/* Threads `first` … first + count - 1 meet, of whom `finished` have ended. */
static void sync_all(Run *run, Barrier *barrier, unsigned first, unsigned count, unsigned finished,
                     const char *what, Place place)
{
    Thread *self = run->now;
    if (finished != 0)
        fault(run, "divergence: %s is at %s (%s), but %u threads have ended",
              thread_name(run, self->number).c_str(), what, place_name(place).c_str(), finished);
    if (barrier->arrived == 0)
        barrier->place = place;
    else if (barrier->place.line != place.line || barrier->place.file != place.file)
        fault(run, "divergence: %s is at %s at %s, while others wait at %s",
              thread_name(run, self->number).c_str(), what, place_name(place).c_str(),
              place_name(barrier->place).c_str());
    bool is_part = count < run->threads;
    if (is_part)
        clocks_release(run, self, &barrier->released);
    if (++barrier->arrived < count)
        return wait(run, self, at_block, what, place);
    barrier->arrived = 0;
    counts_flush_if(run, first, whole_warps(count));
    if (!is_part)
        clocks_barrier(run);
    for (unsigned i = first; i < first + count; i++) {
        Thread *thread = &run->thread[i];
        if (is_part)
            clocks_acquire(run, thread, &barrier->released);
        if (thread != self)
            wake(run, thread);
    }
    barrier->released.era = 0;
}

void sync_block(Place place)
{
    Run *run = current;
    Block *block = block_of(run, run->now);
    sync_all(run, &block->barrier, run->now->rank * run->block_threads, run->block_threads,
             block->finished, "the block's barrier", place);
}

void sync_cluster(Place place)
{
    Run *run = current;
    sync_all(run, &run->cluster_barrier, 0, run->threads, run->finished, "the cluster's barrier",
             place);
}

uint32_t cluster_rank()
{
    return current->now->rank;
}
uint32_t cluster_size()
{
    return current->cluster;
}

static void check_named(Run *run, Barrier *barrier, uint32_t number, uint32_t threads, Place place)
{
    if (number == 0 || number >= kNamed || threads == 0 || threads % kLanes != 0 ||
        threads > run->block_threads)
        fault(run,
              "%s: barrier %u for %u threads (of %u): numbers are 1 … 15, threads a multiple "
              "of 32",
              place_name(place).c_str(), number, threads, run->block_threads);
    if (barrier->arrived == 0) {
        barrier->expected = threads;
        barrier->place = place;
        memset(barrier->warp_arrived, 0, sizeof barrier->warp_arrived);
    }
    if (barrier->expected != threads)
        fault(run, "%s comes to barrier %u for %u threads (%s), others for %u (%s)",
              thread_name(run, run->now->number).c_str(), number, threads,
              place_name(place).c_str(), barrier->expected, place_name(barrier->place).c_str());
    uint32_t *warp = &barrier->warp_arrived[run->now->number / kLanes];
    uint32_t lane = 1u << run->now->number % kLanes;
    if (*warp & lane)
        fault(run, "%s comes to barrier %u (%s) twice, before all have come",
              thread_name(run, run->now->number).c_str(), number, place_name(place).c_str());
    *warp |= lane;
}

void sync_named(uint32_t number, uint32_t threads, bool waits, Place place)
{
    static const char *const whats[kNamed] = {
        "",           "barrier 1",  "barrier 2",  "barrier 3", "barrier 4",  "barrier 5",
        "barrier 6",  "barrier 7",  "barrier 8",  "barrier 9", "barrier 10", "barrier 11",
        "barrier 12", "barrier 13", "barrier 14", "barrier 15"};
    Run *run = current;
    Thread *self = run->now;
    Barrier *barrier = &block_of(run, self)->named[number < kNamed ? number : 0];
    check_named(run, barrier, number, threads, place);
    clocks_release(run, self, &barrier->released);
    self->mbarrier = waits ? barrier : nullptr;
    if (++barrier->arrived < barrier->expected) {
        if (waits)
            wait(run, self, at_named, whats[number], place);
        return;
    }
    for (unsigned warp = 0; warp < run->warps; warp++)
        if (barrier->warp_arrived[warp] != 0 && barrier->warp_arrived[warp] != ~0u)
            fault(run, "barrier %u (%s): of warp %u only lanes %08x have come", number,
                  place_name(place).c_str(), warp, barrier->warp_arrived[warp]);
    barrier->arrived = 0;
    for (unsigned i = 0; i < run->threads; i++) {
        Thread *thread = &run->thread[i];
        if (thread->mbarrier != barrier)
            continue;
        thread->mbarrier = nullptr;
        clocks_acquire(run, thread, &barrier->released);
        if (thread != self)
            wake(run, thread);
    }
    barrier->released.era = 0;
}

void sync_warp(Place place)
{
    Run *run = current;
    meet_warp(run, "bt_sync_warp", nullptr, place, [&](Meeting &) {
        unsigned first = run->now->number / kLanes * kLanes;
        static thread_local Clocks all;
        all.era = 0;
        for (unsigned i = first; i < first + kLanes; i++)
            clocks_release(run, &run->thread[i], &all);
        for (unsigned i = first; i < first + kLanes; i++)
            clocks_acquire(run, &run->thread[i], &all);
    });
}

uint32_t shuffle(uint32_t value, uint32_t lane, Place place)
{
    Run *run = current;
    unsigned self = run->now->number;
    Meeting *meeting = &run->warp_meeting[self / kLanes];
    if (lane >= kLanes)
        fault(run, "%s: shuffle from lane %u (%s)", thread_name(run, self).c_str(), lane,
              place_name(place).c_str());
    unsigned turn = meeting->turn;
    meeting->value[turn][self % kLanes] = value;
    meet_warp(run, "bt_shuffle", nullptr, place, [](Meeting &) {});
    return meeting->value[turn][lane];
}

uint32_t ballot(bool is, Place place)
{
    Run *run = current;
    unsigned self = run->now->number;
    Meeting *meeting = &run->warp_meeting[self / kLanes];
    unsigned turn = meeting->turn;
    meeting->value[turn][self % kLanes] = is;
    meet_warp(run, "bt_ballot", nullptr, place, [turn](Meeting &all) {
        uint32_t bits = 0;
        for (unsigned i = 0; i < kLanes; i++)
            bits |= all.value[turn][i] << i;
        for (unsigned i = 0; i < kLanes; i++)
            all.value[turn][i] = bits;
    });
    return meeting->value[turn][self % kLanes];
}

/* ---- grids ---- */

static void begin_block(Run *run, unsigned rank, uint64_t number)
{
    Block *block = &run->block[rank];
    block->number = static_cast<uint32_t>(number);
    block->index.x = static_cast<unsigned>(number % run->blocks.x);
    block->index.y = static_cast<unsigned>(number / run->blocks.x % run->blocks.y);
    block->index.z = static_cast<unsigned>(number / run->blocks.x / run->blocks.y);
    block->finished = 0;
    block->barrier.arrived = 0;
    for (Barrier &barrier : block->named)
        barrier.arrived = 0;
    memset(block->touched, 0, sizeof block->touched);
}

static void begin_cluster(RunMemory *memory, uint64_t number)
{
    Run *run = &memory->run;
    for (unsigned rank = 0; rank < run->cluster; rank++)
        begin_block(run, rank, number * run->cluster + rank);
    run->finished = 0;
    run->warp_now = 0;
    run->acquired = false;
    run->cluster_barrier.arrived = 0;
    for (unsigned i = 0; i < run->warps; i++)
        run->warp_meeting[i].count = run->warp_meeting[i].turn = 0;
    for (Meeting &meeting : run->group_meeting)
        meeting.count = 0;
    clocks_begin(run);
    shared_begin(run);
    async_begin(run);
    matrix_begin(run);
    registers_begin(run);
    for (unsigned i = 0; i < run->threads; i++) {
        Thread *thread = &run->thread[i];
        thread->rank = i / run->block_threads;
        thread->shared_at = static_cast<uint32_t>(thread->rank * kSharedEach);
        thread->index = {i % run->block_threads, 0, 0};
        thread->fenced_wgmma = thread->did_atomic = false;
        thread->fenced_era = 0;
        thread->mbarrier = nullptr;
        /* Not all at the same place in a page: they would share lines of the cache. */
        unsigned char *end = run->stacks + (i + 1) * kStackBytes - i * 192 % 4096;
        thread->sp = fiber_make(end, kStackBytes - 8192, fiber_entry, &thread->sp);
        wake(run, thread);
    }
}

/* Of two blocks: whole warpgroups, and room for both. */
static bool is_cluster(const Grid &grid)
{
    return grid.cluster == 1 ||
           (grid.cluster == kClusterBlocks && grid.blocks.x % grid.cluster == 0 &&
            grid.threads % kGroupThreads == 0 && grid.threads * grid.cluster <= kThreads);
}

static void check_grid(const Grid &grid)
{
    if (current != nullptr || grid.threads == 0 || grid.threads > kThreads ||
        grid.shared_bytes > kSharedBytes - 1024 || grid.blocks.y > 65535 || grid.blocks.z > 65535 ||
        !is_cluster(grid)) {
        fprintf(stderr,
                "emulated grid: %s can't be launched: %u threads, %zu bytes of shared "
                "memory, %u x %u x %u blocks, clusters of %u%s\n",
                grid.name, grid.threads, grid.shared_bytes, grid.blocks.x, grid.blocks.y,
                grid.blocks.z, grid.cluster, current ? ", from inside of a kernel" : "");
        abort();
    }
}

static uint64_t coprime_step(uint64_t count, uint64_t seed)
{
    uint64_t step = seed % count | 1;
    for (;; step += 2) {
        uint64_t a = step, b = count;
        while (b != 0) {
            uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        if (a == 1)
            return step;
    }
}

bool run_grid(const Grid &grid, void (*body)(void *context), void *context, size_t context_bytes)
{
    check_grid(grid);
    if (!memory_of_thread)
        memory_of_thread.reset(new RunMemory());
    Run *run = &memory_of_thread->run;
    memory_of_thread->need_stacks(grid.threads * grid.cluster);
    run->grid = &grid;
    run->body = body;
    run->context = context;
    run->context_bytes = context_bytes;
    run->failed = false;
    run->handler = handler_now;
    run->seed = seed_is_set ? seed_now : seed_of_environment();
    run->random = run->seed;
    run->cluster = grid.cluster;
    run->block_threads = grid.threads;
    run->threads = grid.threads * grid.cluster;
    run->warps = (run->threads + kLanes - 1) / kLanes;
    run->block_size_ = {grid.threads, 1, 1};
    run->blocks = {grid.blocks.x, grid.blocks.y, grid.blocks.z};
    run->ready_warps = 0;
    memset(run->ready, 0, sizeof run->ready);
    run->launch = global_launch_begin();
    counts_begin(run);
    run->released_blocks.clear();
    uint64_t count = uint64_t(grid.blocks.x) / grid.cluster * grid.blocks.y * grid.blocks.z;
    uint64_t at = run->seed;
    uint64_t step = run->seed ? coprime_step(count, run->seed * 2654435761u) : 1;
    current = run;
    for (uint64_t i = 0; i < count && !run->failed; i++) {
        begin_cluster(memory_of_thread.get(), (at + i * step) % count);
        run->now = pick(run);
        fiber_switch(&run->main_sp, run->now->sp);
    }
    current = nullptr;
    counts_end(run);
    global_launch_end(run->launch);
    if (run->failed)
        run->handler(run->fault_text.c_str());
    return !run->failed;
}

} // namespace emulation
