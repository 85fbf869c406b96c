/*
 * setmaxnreg: registers go from a warpgroup to the block's pool and from there to another.
 *
 * A block is launched with all that a multiprocessor has for one block of so many threads, as ptxas
 * makes it of launch bounds of one block; tests/cuda compares that with what ptxas reports. Counts
 * are of a thread; the pool counts them by warpgroups.
 */
#include "tests/cuda-emulation/run.h"

namespace emulation {

constexpr unsigned kFile = 65536, kMost = 256;

void registers_begin(Run *run)
{
    unsigned each = kFile / (run->warps / run->cluster * kLanes) / 8 * 8;
    for (Block &block : run->block)
        block.register_pool = 0;
    for (RegisterSet &set : run->registers)
        set = {each < kMost ? each : kMost, 0, {}};
}

static void check_count(Run *run, const RegisterSet &set, unsigned count, bool raise, Place place)
{
    const char *what = raise ? "bt_registers_raise" : "bt_registers_lower";
    if (count % 8 != 0 || count < 24 || count > kMost)
        fault(run, "%s (%s) to %u registers: a multiple of 8, from 24 to 256", what,
              place_name(place).c_str(), count);
    if (raise ? count < set.count : count > set.count)
        fault(run, "%s (%s) by %s to %u registers, of %u", what, place_name(place).c_str(),
              thread_name(run, run->now->number).c_str(), count, set.count);
}

/* Between two of them the warps of a warpgroup must have met. */
static void check_order(Run *run, const RegisterSet &set, unsigned first, Place place)
{
    for (unsigned i = first; i < first + kGroupThreads; i++)
        for (unsigned warp = 0; warp < kGroupThreads / kLanes; warp++)
            if (!ordered(run, &run->thread[i], set.last[warp]))
                fault(run,
                      "setmaxnreg (%s) again by %s, without a barrier between it and that of %s",
                      place_name(place).c_str(), thread_name(run, i).c_str(),
                      thread_name(run, first + warp * kLanes).c_str());
}

/* To those that wait for it, as far as it goes. */
static void hand_out(Run *run, Block *block)
{
    for (unsigned group = 0; group < kGroups; group++) {
        RegisterSet *set = &run->registers[group];
        if (set->wanted == 0 || set->wanted - set->count > block->register_pool ||
            block_of(run, &run->thread[group * kGroupThreads]) != block)
            continue;
        block->register_pool -= set->wanted - set->count;
        set->count = set->wanted;
        set->wanted = 0;
        for (unsigned i = group * kGroupThreads; i < (group + 1) * kGroupThreads; i++)
            if (run->thread[i].state == at_registers)
                wake(run, &run->thread[i]);
    }
}

void set_registers(unsigned count, bool raise, Place place)
{
    const char *what = raise ? "bt_registers_raise" : "bt_registers_lower";
    Run *run = current;
    Thread *self = run->now;
    unsigned first = self->number / kGroupThreads * kGroupThreads;
    RegisterSet *set = &run->registers[first / kGroupThreads];
    Block *block = block_of(run, self);
    meet_group(run, what, nullptr, place, [=](Meeting &) {
        check_count(run, *set, count, raise, place);
        check_order(run, *set, first, place);
        for (unsigned warp = 0; warp < kGroupThreads / kLanes; warp++) {
            Thread *thread = &run->thread[first + warp * kLanes];
            set->last[warp] = stamp_of(thread);
            clocks_advance(run, thread);
        }
        if (raise) {
            set->wanted = count;
        } else {
            block->register_pool += set->count - count;
            set->count = count;
        }
        hand_out(run, block);
    });
    if (raise && set->wanted != 0)
        wait(run, self, at_registers, what, place);
}

} // namespace emulation
