/*
 * The inside of the grid. A Run belongs to a thread of the system and is used again by each of its
 * grids. It runs a cluster of blocks at a time, most often of one; its threads are numbered
 * through, and so are the bytes of its blocks' shared memories: these are offsets, within() is what
 * kernels call them. Order between threads is kept in vector clocks: a clock counts what a thread
 * has released; at a barrier of all of them all begin anew at `base`, so that whatever is older
 * than that is ordered before everything.
 */
#ifndef BATON_TESTS_CUDA_EMULATION_RUN_H
#define BATON_TESTS_CUDA_EMULATION_RUN_H

#include <memory>
#include <string>
#include <vector>

#include "tests/cuda-emulation/counts.h"
#include "tests/cuda-emulation/grid.h"
#include "tests/cuda-emulation/hardware.h"

namespace emulation {

constexpr unsigned kThreads = 1024;
constexpr unsigned kLanes = 32, kGroupThreads = 128;
constexpr unsigned kWarps = kThreads / kLanes, kGroups = kThreads / kGroupThreads;
/* Who writes and reads asynchronously is numbered after the threads: wgmma by warpgroup, then
 * bulk copies by mbarrier. */
constexpr unsigned kAgents = 64, kClocks = kThreads + kAgents;
constexpr size_t kStackBytes = size_t(64) << 10;
constexpr size_t kSharedBytes = size_t(228) << 10;          /* room; a block has at most 227 KiB */
constexpr size_t kSharedGuard = size_t(64) << 10;           /* beside it, to tell near misses */
constexpr unsigned kClusterBlocks = 2;                      /* room; hardware has 8 */
constexpr size_t kSharedEach = kSharedBytes + kSharedGuard; /* from a block's to the next one's */
constexpr size_t kSharedAll = kClusterBlocks * kSharedEach;
constexpr uint32_t kSharedWindow = 1024; /* address of its first byte in the window */
constexpr unsigned kNamed = 16;

/* A clock and whose: 20 bits of clock, 11 bits of thread. With the highest bit: a set of readers.
 */
typedef uint32_t Stamp;
constexpr unsigned kClockBits = 20;
constexpr uint32_t kClockMask = (1u << kClockBits) - 1;
constexpr Stamp kMany = 1u << 31;

enum State : uint8_t {
    ready,
    at_warp,
    at_group,
    at_block,
    at_named,
    at_mbarrier,
    at_registers,
    done
};

/* Of a byte of shared memory. */
enum Content : uint8_t {
    poison,
    written,
    counted, /* by atomics, whose threads are its readers */
    under_way,
    barrier_object
};

struct Clocks {
    uint32_t era = 0;               /* valid in; else all zeros */
    std::unique_ptr<uint32_t[]> of; /* [kClocks] */
};

struct CopyAsync {
    unsigned char *to;
    const unsigned char *from;
    uint32_t bytes;
    bool valid;
    unsigned group;
    Place place;
};

struct Product { /* wgmma under way */
    Wgmma wgmma[kGroupThreads];
    uint32_t a[kGroupThreads][4];
    unsigned group;
    Place place;
};

struct Thread {
    void *sp;
    State state;
    bool fenced_wgmma;
    bool did_atomic;       /* in global memory, without a fence since */
    uint32_t fenced_era;   /* of its last fence for the device; 0: none */
    unsigned number, rank; /* rank: of its block in the cluster */
    uint32_t shared_at;    /* offset of its block's shared memory */
    uint3 index;
    Place place;
    const char *what;
    const void *argument;
    uint32_t value;
    uint32_t clock, proxied; /* writes up to `proxied` are seen by the async proxy */
    Clocks known;
    unsigned copy_group; /* next */
    std::vector<CopyAsync> copies;
    void *mbarrier;
    uint32_t parity;
};

/* Where lanes of a warp, or threads of a warpgroup, meet. */
struct Meeting {
    const char *what;
    Place place;
    unsigned count, turn;
    const void *argument[kGroupThreads];
    uint32_t value[2][kLanes];
};

struct Barrier {
    unsigned arrived, expected;
    Place place;
    uint32_t warp_arrived[kWarps];
    Clocks released;
};

struct Block { /* of the cluster */
    uint3 index;
    uint32_t number; /* in the grid */
    unsigned finished;
    Barrier barrier, named[kNamed];
    unsigned register_pool;    /* of a thread of a warpgroup */
    uint32_t touched[kClocks]; /* when other blocks last used its shared memory, by who; 0: never */
};

struct Waited { /* a thread has seen this phase end */
    Stamp stamp;
    uint32_t phase;
    Place place;
};

struct Mbarrier {
    bool live;
    uint32_t offset; /* in shared memory */
    uint32_t count, pending, phase;
    int64_t bytes;
    unsigned agent;
    Clocks released, completed;
    std::vector<Waited> waited;
};

struct BulkCopy {
    uint32_t offset, bytes;
    const unsigned char *from;
    TensorMap map;
    bool box, shared; /* shared: from shared memory, at `source` */
    uint32_t source;
    int32_t x, y;
    uint32_t mbarrier; /* index */
    unsigned issuer;
    Place place;
};

struct Group { /* warpgroup */
    std::vector<Product> products;
    unsigned next_group;
};

struct RegisterSet {                    /* of a warpgroup */
    unsigned count, wanted;             /* of a thread; wanted: what it waits for, else 0 */
    Stamp last[kGroupThreads / kLanes]; /* when its warps last changed it */
};

struct Readers { /* a set, the rest of it by number */
    uint32_t rest;
    Stamp stamp;
    uint32_t newest;
};

struct Counts;

struct Run {
    const Grid *grid;
    Counts *counts; /* NULL: nothing is counted */
    void (*body)(void *);
    void *context;
    size_t context_bytes;
    bool failed;
    fault_handler handler;
    std::string fault_text;
    uint64_t seed, random;

    unsigned char *stacks, *shared_area, *shared; /* shared: the block's bytes */
    uint32_t cluster;                             /* blocks */
    uint32_t threads, warps;                      /* of the cluster */
    uint32_t block_threads;
    uint3 blocks, block_size_;
    Block block[kClusterBlocks];
    uint32_t launch; /* tells launches apart in the shadow of global memory */

    void *main_sp;
    Thread *now;
    unsigned warp_now, finished;
    uint32_t ready[kWarps]; /* lanes */
    uint32_t ready_warps;
    Thread thread[kThreads];
    Meeting warp_meeting[kWarps], group_meeting[kGroups];
    Barrier cluster_barrier;
    std::vector<Mbarrier> mbarriers;
    std::vector<BulkCopy> bulk;
    Group group[kGroups];
    RegisterSet registers[kGroups];

    uint32_t base, newest; /* clocks */
    uint32_t era;          /* counts bases */
    uint32_t agent_clock[kAgents];

    Content *content;         /* [kSharedAll] */
    Stamp *writer, *reader;   /* [kSharedAll] */
    uint8_t *being_read;      /* [kSharedAll / 16] by how many wgmma and bulk copies */
    unsigned wgmma_under_way; /* and bulk copies out of shared memory */
    std::vector<Readers> readers;
    struct Joined {
        Stamp set, with, result;
    } * joined; /* [kJoined] cache of unions */

    /* A thread of this block has done an atomic and then fenced: who, and in what era. */
    bool acquired;
    unsigned acquired_by;
    uint32_t acquired_era;
    std::vector<bool> released_blocks;
};
constexpr unsigned kJoined = 1u << 14;

inline Block *block_of(Run *run, const Thread *thread)
{
    return &run->block[thread->rank];
}
/* Where in its block's shared memory a byte is. */
inline uint32_t within(uint32_t offset)
{
    return offset % kSharedEach;
}
inline bool in_shared_area(const Run *run, const void *at)
{
    return static_cast<size_t>(static_cast<const unsigned char *>(at) - run->shared_area) <
           kSharedGuard + kSharedAll;
}

/* Where the cache has the union of a set and a stamp, if it has it. */
inline Run::Joined *joined_place(Run *run, Stamp set, Stamp with)
{
    return &run->joined[(uint64_t(set) << 32 | with) * 0x9e3779b97f4a7c15u >> 50];
}

/* Not thread_local, whose uses first ask whether it has been made. */
extern __thread Run *current __attribute__((tls_model("initial-exec")));

/* Gives the grid up: does not return. Called by a fiber or by the run's own thread. */
[[noreturn]] void fault(Run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] void abandon(Run *run);
std::string thread_name(const Run *run, unsigned thread);
std::string address_name(const Run *run, const void *address);
std::string place_name(Place place);

/* access.cpp: of an access without a name, the plain one that is being checked. */
const char *access_text(const char *what);

/* grid.cpp: waiting and waking. */
void wait(Run *run, Thread *self, State state, const char *what, Place place);
void wake(Run *run, Thread *thread);
/* All lanes of the warp say the same; the last one runs `act` for all. */
void meet_begin(Run *run, Meeting *meeting, unsigned first, unsigned count, const char *what,
                Place place);
void meet_end(Run *run, unsigned first, unsigned count);

/* Of so many threads, all of their warps. */
inline unsigned whole_warps(unsigned threads)
{
    return (threads + kLanes - 1) / kLanes * kLanes;
}
inline void counts_flush_if(Run *run, unsigned first, unsigned count)
{
    if (__builtin_expect(run->counts != nullptr, 0))
        for (unsigned warp = first / kLanes; warp < (first + count) / kLanes; warp++)
            counts_flush(run, warp);
}

template <typename Act>
inline void meet_warp(Run *run, const char *what, const void *argument, Place place, const Act &act)
{
    Thread *self = run->now;
    unsigned lane = self->number % kLanes, first = self->number - lane;
    Meeting *meeting = &run->warp_meeting[first / kLanes];
    meet_begin(run, meeting, first, kLanes, what, place);
    meeting->argument[lane] = argument;
    if (++meeting->count < kLanes)
        return wait(run, self, at_warp, what, place);
    meeting->count = 0;
    meeting->turn ^= 1;
    counts_flush_if(run, first, kLanes);
    act(*meeting);
    meet_end(run, first, kLanes);
}
template <typename Act>
inline void meet_group(Run *run, const char *what, const void *argument, Place place,
                       const Act &act)
{
    Thread *self = run->now;
    unsigned place_in = self->number % kGroupThreads, first = self->number - place_in;
    Meeting *meeting = &run->group_meeting[first / kGroupThreads];
    meet_begin(run, meeting, first, kGroupThreads, what, place);
    meeting->argument[place_in] = argument;
    if (++meeting->count < kGroupThreads)
        return wait(run, self, at_group, what, place);
    meeting->count = 0;
    counts_flush_if(run, first, kGroupThreads);
    act(*meeting);
    meet_end(run, first, kGroupThreads);
}

/* clocks.cpp */
void clocks_begin(Run *run);   /* a cluster */
void clocks_barrier(Run *run); /* all of the cluster have met */
void clocks_advance(Run *run, Thread *thread);
void clocks_release(Run *run, Thread *thread, Clocks *to);
void clocks_acquire(Run *run, Thread *thread, const Clocks *from);
void clocks_join(Run *run, Clocks *to, const Clocks *from);
void clocks_set(Run *run, Clocks *to, unsigned who, uint32_t clock);
/* Arrays hold the block's threads, then the agents. */
inline unsigned place_of(const Run *run, unsigned who)
{
    return who < kThreads ? who : run->threads + (who - kThreads);
}
inline bool ordered(const Run *run, const Thread *thread, Stamp before)
{
    uint32_t clock = before & kClockMask, who = before >> kClockBits;
    if (clock < run->base || who == thread->number)
        return true;
    return thread->known.era == run->era && thread->known.of[place_of(run, who)] >= clock;
}
inline Stamp stamp_of(const Thread *thread)
{
    return thread->number << kClockBits | thread->clock;
}
inline Stamp stamp_of_agent(const Run *run, unsigned agent)
{
    return (kThreads + agent) << kClockBits | run->agent_clock[agent];
}

/* shared.cpp: offsets of shared memory; of an address in the block's own one. `what` names the
 * access in faults. */
void shared_begin(Run *run);
uint32_t shared_offset(Run *run, const void *at, size_t bytes, size_t align, const char *what);
void shared_read(Run *run, Thread *by, uint32_t offset, size_t bytes, const char *what);
void shared_write(Run *run, Thread *by, uint32_t offset, size_t bytes, const char *what);
/* An asynchronous write begins (nobody may touch the bytes), and ends (it was `stamp`'s). */
void shared_write_begin(Run *run, Thread *by, uint32_t offset, size_t bytes, const char *what);
/* An atomic: races with everything but atomics. */
void shared_atomic(Run *run, Thread *by, uint32_t offset, size_t bytes, const char *what);
void shared_write_end(Run *run, uint32_t offset, size_t bytes, Stamp stamp);
/* An asynchronous read of 16 bytes: from when it is issued, what is there must be written, ordered
 * and fenced, and stay. */
void shared_read_begin(Run *run, const Thread *by, uint32_t offset, const char *what);
void shared_read_end(Run *run, uint32_t offset, Stamp stamp);

/* memory.cpp: global memory. */
bool is_constant_memory(const void *at, size_t bytes);
uint32_t global_launch_begin();
void global_launch_end(uint32_t launch);
enum class Access { read, read_constant, write, atomic };
void global_access(Run *run, const void *at, size_t bytes, Access access, const char *what);
std::string nearest_allocation(const void *at);

/* async.cpp */
void async_begin(Run *run);              /* a cluster */
void async_end(Run *run, unsigned rank); /* a block */
bool finish_for_waiting(Run *run);

/* registers.cpp */
void registers_begin(Run *run);

/* matrix.cpp */
void matrix_begin(Run *run);
void matrix_end(Run *run, unsigned rank); /* a block */
/* Whether these registers of the thread wait for a wgmma. */
bool is_accumulating(const Run *run, const Thread *thread, const void *at, size_t bytes);

} // namespace emulation

#endif
