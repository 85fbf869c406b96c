/* Vector clocks of a cluster's threads and of what works asynchronously for them. */
#include <algorithm>
#include <cstring>

#include "tests/cuda-emulation/run.h"

namespace emulation {

static unsigned clock_count(const Run *run)
{
    return run->threads + kAgents;
}

static void make_valid(const Run *run, Clocks *clocks)
{
    if (clocks->era == run->era)
        return;
    if (!clocks->of)
        clocks->of.reset(new uint32_t[kClocks]);
    memset(clocks->of.get(), 0, clock_count(run) * sizeof(uint32_t));
    clocks->era = run->era;
}

static void begin_era(Run *run)
{
    run->era++;
    bool forget = run->readers.size() > 1u << 18; /* sets are of before now: of no matter */
    if (run->newest >= kClockMask / 2) { /* begin anew: what was is ordered before what will be */
        memset(run->writer, 0, kSharedAll * sizeof(Stamp));
        memset(run->reader, 0, kSharedAll * sizeof(Stamp));
        run->newest = 0;
        forget = true;
        for (Thread &thread : run->thread)
            thread.proxied = 0;
    }
    run->base = ++run->newest;
    for (unsigned i = 0; i < run->threads; i++)
        run->thread[i].clock = run->base;
    std::fill(run->agent_clock, run->agent_clock + kAgents, run->base);
    if (forget) {
        for (size_t i = 0; i < kSharedAll; i++)
            if (run->reader[i] & kMany)
                run->reader[i] = 0;
        run->readers.clear();
        memset(run->joined, 0, kJoined * sizeof *run->joined);
    }
}

void clocks_begin(Run *run)
{
    begin_era(run);
    for (unsigned i = 0; i < run->threads; i++)
        run->thread[i].proxied = 0;
}

void clocks_barrier(Run *run)
{
    begin_era(run);
}

void clocks_advance(Run *run, Thread *thread)
{
    if (thread->clock < kClockMask)
        thread->clock++;
    run->newest = std::max(run->newest, thread->clock);
}

void clocks_join(Run *run, Clocks *to, const Clocks *from)
{
    if (from->era != run->era)
        return;
    make_valid(run, to);
    uint32_t *a = to->of.get();
    const uint32_t *b = from->of.get();
    for (unsigned i = 0, count = clock_count(run); i < count; i++)
        a[i] = std::max(a[i], b[i]);
}

void clocks_set(Run *run, Clocks *to, unsigned who, uint32_t clock)
{
    make_valid(run, to);
    uint32_t *at = &to->of[place_of(run, who)];
    *at = std::max(*at, clock);
}

void clocks_release(Run *run, Thread *thread, Clocks *to)
{
    clocks_join(run, to, &thread->known);
    clocks_set(run, to, thread->number, thread->clock);
    clocks_advance(run, thread);
}

void clocks_acquire(Run *run, Thread *thread, const Clocks *from)
{
    clocks_join(run, &thread->known, from);
}

} // namespace emulation
