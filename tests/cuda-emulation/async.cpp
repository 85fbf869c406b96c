/*
 * Copies that take their time: done as late as they may be, at the wait, and until then nobody may
 * touch where they go.
 */
#include <algorithm>
#include <cstring>

#include "tests/cuda-emulation/run.h"

namespace emulation {

void async_begin(Run *run)
{
    run->mbarriers.clear();
    run->bulk.clear();
    for (unsigned i = 0; i < run->threads; i++) {
        run->thread[i].copies.clear();
        run->thread[i].copy_group = 0;
    }
}

void async_end(Run *run, unsigned rank)
{
    for (const BulkCopy &copy : run->bulk) {
        if (copy.offset / kSharedEach == rank)
            fault(run,
                  "the block ended before a bulk copy (%s) to shared memory + %u was waited for",
                  place_name(copy.place).c_str(), within(copy.offset));
        if (copy.shared && copy.source / kSharedEach == rank)
            fault(run, "the block ended, while a bulk copy (%s) reads its shared memory + %u",
                  place_name(copy.place).c_str(), within(copy.source));
    }
}

/* ---- copies of 16 bytes, and of 4 ---- */

void copy_async(void *shared, const void *global, uint32_t bytes, bool valid, Place place)
{
    static const char whats[2][24] = {"bt_copy_async_4", "bt_copy_async_16"};
    const char *what = whats[bytes == 16];
    Run *run = current;
    Thread *self = run->now;
    self->place = place;
    uint32_t offset = shared_offset(run, shared, bytes, bytes, what);
    if (reinterpret_cast<uintptr_t>(global) % bytes != 0)
        fault(run, "misaligned: %s (%s) by %s from %s", what, place_name(place).c_str(),
              thread_name(run, self->number).c_str(), address_name(run, global).c_str());
    if (valid)
        global_access(run, global, bytes, Access::read, what);
    if (run->counts != nullptr) {
        if (valid)
            counts_access(run, Counted::global_read, global, bytes, __builtin_return_address(0));
        counts_access(run, Counted::shared_write, shared, bytes, __builtin_return_address(0));
    }
    shared_write_begin(run, self, offset, bytes, what);
    self->copies.push_back({static_cast<unsigned char *>(shared),
                            static_cast<const unsigned char *>(global), bytes, valid,
                            self->copy_group, place});
}

void copy_async_commit()
{
    current->now->copy_group++;
}

void copy_async_wait(unsigned left)
{
    Run *run = current;
    Thread *self = run->now;
    size_t kept = 0;
    for (const CopyAsync &copy : self->copies) {
        if (copy.group + left >= self->copy_group) {
            self->copies[kept++] = copy;
            continue;
        }
        if (copy.valid)
            memcpy(copy.to, copy.from, copy.bytes);
        else
            memset(copy.to, 0, copy.bytes);
        shared_write_end(run, static_cast<uint32_t>(copy.to - run->shared), copy.bytes,
                         stamp_of(self));
    }
    self->copies.resize(kept);
}

/* ---- mbarriers ---- */

static Mbarrier *find_mbarrier(Run *run, uint32_t offset, const char *what)
{
    for (Mbarrier &each : run->mbarriers)
        if (each.offset == offset) {
            Thread *self = run->now;
            if (!ordered(run, self, run->writer[offset]))
                fault(run,
                      "race: %s by %s at an mbarrier (shared memory + %u) that %s inits, "
                      "without a barrier between",
                      what, thread_name(run, self->number).c_str(), within(offset),
                      thread_name(run, run->writer[offset] >> kClockBits).c_str());
            return &each;
        }
    fault(run, "%s by %s at shared memory + %u, where there is no mbarrier", what,
          thread_name(run, run->now->number).c_str(), within(offset));
}

/* The same place in the shared memory of another block of the cluster, or of this one. */
static uint32_t offset_in(Run *run, uint32_t offset, uint32_t rank, const char *what, Place place)
{
    const Thread *self = run->now;
    if (rank >= run->cluster)
        fault(run, "%s (%s) by %s to block %u of a cluster of %u", what, place_name(place).c_str(),
              thread_name(run, self->number).c_str(), rank, run->cluster);
    if (run->block[rank].finished == run->block_threads)
        fault(run, "%s (%s) by %s to block %u of the cluster, which has ended", what,
              place_name(place).c_str(), thread_name(run, self->number).c_str(), rank);
    return within(offset) + rank * static_cast<uint32_t>(kSharedEach);
}

/* Until this is known there, the block must not end. */
static void touch(Run *run, uint32_t offset, unsigned who, uint32_t clock)
{
    uint32_t *touched = &run->block[offset / kSharedEach].touched[who];
    *touched = std::max(*touched, clock);
}

void mbarrier_init(void *mbarrier, uint32_t count, Place place)
{
    static const char what[] = "bt_mbarrier_init";
    Run *run = current;
    Thread *self = run->now;
    self->place = place;
    uint32_t offset = shared_offset(run, mbarrier, 8, 8, what);
    if (count == 0 || count >= 1u << 20)
        fault(run, "%s (%s) with a count of %u", what, place_name(place).c_str(), count);
    for (const Mbarrier &each : run->mbarriers)
        if (each.offset == offset)
            fault(run, "%s (%s) of an mbarrier that is one already", what,
                  place_name(place).c_str());
    shared_write(run, self, offset, 8, what);
    memset(run->content + offset, barrier_object, 8);
    unsigned agent = kGroups + static_cast<unsigned>(run->mbarriers.size()) % (kAgents - kGroups);
    Mbarrier made{};
    made.offset = offset;
    made.count = made.pending = count;
    made.agent = agent;
    run->mbarriers.push_back(std::move(made));
}

static void keep_wait(Run *run, Mbarrier *mbarrier, Thread *thread, uint32_t phase, Place place)
{
    mbarrier->waited.push_back({stamp_of(thread), phase, place});
    clocks_advance(run, thread);
}

/*
 * A phase ends: who waited for the one before has to have come to that before this end, in every
 * order of the threads. Who looks later sees the parity of a phase that has yet to end, and hangs.
 */
static void check_waits(Run *run, Mbarrier *mbarrier)
{
    const Clocks &known = mbarrier->released;
    for (const Waited &wait : mbarrier->waited) {
        uint32_t clock = wait.stamp & kClockMask, who = wait.stamp >> kClockBits;
        if (wait.phase + 1 != mbarrier->phase || clock < run->base ||
            (known.era == run->era && known.of[who] >= clock))
            continue;
        fault(run,
              "a phase of the mbarrier at shared memory + %u ends, while nothing says that %s has "
              "seen the end of the phase before (bt_mbarrier_wait, %s)",
              within(mbarrier->offset), thread_name(run, who).c_str(),
              place_name(wait.place).c_str());
    }
    mbarrier->waited.clear();
}

static void end_phase_if_due(Run *run, Mbarrier *mbarrier)
{
    if (mbarrier->pending != 0 || mbarrier->bytes != 0)
        return;
    check_waits(run, mbarrier);
    uint32_t ended = mbarrier->phase++;
    mbarrier->pending = mbarrier->count;
    clocks_join(run, &mbarrier->completed, &mbarrier->released);
    for (unsigned i = 0; i < run->threads; i++) {
        Thread *thread = &run->thread[i];
        if (thread->state != at_mbarrier || thread->mbarrier != run->shared + mbarrier->offset ||
            (mbarrier->phase & 1) == thread->parity)
            continue;
        clocks_acquire(run, thread, &mbarrier->completed);
        keep_wait(run, mbarrier, thread, ended, thread->place);
        wake(run, thread);
    }
}

static void arrive(Run *run, Mbarrier *mbarrier, uint32_t expect, Place place)
{
    Thread *self = run->now;
    if (mbarrier->pending == 0)
        fault(run,
              "%s arrives at an mbarrier (%s) of which all %u have arrived, while its bytes "
              "are under way",
              thread_name(run, self->number).c_str(), place_name(place).c_str(), mbarrier->count);
    mbarrier->bytes += expect;
    if (mbarrier->bytes >= 1 << 20)
        fault(run, "an mbarrier (%s) expects %lld bytes: at most 2^20 - 1",
              place_name(place).c_str(), static_cast<long long>(mbarrier->bytes));
    clocks_release(run, self, &mbarrier->released);
    mbarrier->pending--;
    end_phase_if_due(run, mbarrier);
}

void mbarrier_arrive(void *at, uint32_t expect, Place place)
{
    static const char what[] = "bt_mbarrier_arrive";
    Run *run = current;
    run->now->place = place;
    arrive(run, find_mbarrier(run, shared_offset(run, at, 8, 8, what), what), expect, place);
}

void mbarrier_arrive_cluster(void *at, uint32_t rank, Place place)
{
    static const char what[] = "bt_mbarrier_arrive_cluster";
    Run *run = current;
    Thread *self = run->now;
    self->place = place;
    uint32_t offset = offset_in(run, shared_offset(run, at, 8, 8, what), rank, what, place);
    Mbarrier *mbarrier = find_mbarrier(run, offset, what);
    if (rank != self->rank)
        touch(run, offset, self->number, self->clock);
    arrive(run, mbarrier, 0, place);
}

/* ---- bulk copies ---- */

static uint32_t swizzled(uint32_t address, uint32_t mode)
{
    static const uint32_t bits[] = {0, 1, 3, 7};
    return address ^ (address >> 3 & bits[mode] << 4);
}

/* A box: element by element, zeros outside of the tensor. */
static void copy_box(Run *run, const BulkCopy &copy)
{
    const TensorMap &map = copy.map;
    uint32_t row_bytes = map.box[0] * map.element_bytes;
    for (uint32_t row = 0; row < map.box[1]; row++)
        for (uint32_t i = 0; i < map.box[0]; i++) {
            int64_t x = int64_t(copy.x) + i, y = int64_t(copy.y) + row;
            uint32_t at =
                copy.offset + swizzled(row * row_bytes + i * map.element_bytes, map.swizzle);
            bool in = x >= 0 && y >= 0 && uint64_t(x) < map.size[0] && uint64_t(y) < map.size[1];
            if (in)
                memcpy(run->shared + at,
                       static_cast<const unsigned char *>(map.base) + uint64_t(y) * map.pitch +
                           uint64_t(x) * map.element_bytes,
                       map.element_bytes);
            else
                memset(run->shared + at, 0, map.element_bytes);
        }
}

static void finish_copies(Run *run, uint32_t number)
{
    Mbarrier *mbarrier = &run->mbarriers[number];
    size_t kept = 0;
    for (BulkCopy &copy : run->bulk) {
        if (copy.mbarrier != number) {
            run->bulk[kept++] = copy;
            continue;
        }
        if (copy.box)
            copy_box(run, copy);
        else
            memcpy(run->shared + copy.offset, copy.from, copy.bytes);
        uint32_t *clock = &run->agent_clock[mbarrier->agent];
        if (*clock < kClockMask)
            ++*clock;
        run->newest = *clock > run->newest ? *clock : run->newest;
        Stamp stamp = stamp_of_agent(run, mbarrier->agent);
        shared_write_end(run, copy.offset, copy.bytes, stamp);
        if (copy.shared) {
            for (uint32_t i = 0; i < copy.bytes; i += 16)
                shared_read_end(run, copy.source + i, stamp);
            touch(run, copy.source, kThreads + mbarrier->agent, *clock);
        }
        clocks_set(run, &mbarrier->released, kThreads + mbarrier->agent, *clock);
        mbarrier->bytes -= copy.bytes;
    }
    run->bulk.resize(kept);
    end_phase_if_due(run, mbarrier);
}

void mbarrier_wait(void *at, uint32_t parity, Place place)
{
    static const char what[] = "bt_mbarrier_wait";
    Run *run = current;
    Thread *self = run->now;
    self->place = place;
    Mbarrier *mbarrier = find_mbarrier(run, shared_offset(run, at, 8, 8, what), what);
    if ((mbarrier->phase & 1) == (parity & 1))
        finish_copies(run, static_cast<uint32_t>(mbarrier - run->mbarriers.data()));
    if ((mbarrier->phase & 1) != (parity & 1)) {
        clocks_acquire(run, self, &mbarrier->completed);
        keep_wait(run, mbarrier, self, mbarrier->phase - 1, place);
        return;
    }
    self->mbarrier = at;
    self->parity = parity & 1;
    wait(run, self, at_mbarrier, what, place);
    self->mbarrier = nullptr;
}

/* Who waits already will not ask again: what is issued while all wait is done when nobody can go
 * on. True: somebody can now. */
bool finish_for_waiting(Run *run)
{
    for (unsigned i = 0; i < run->threads; i++) {
        const Thread *thread = &run->thread[i];
        if (thread->state != at_mbarrier)
            continue;
        for (uint32_t m = 0; m < run->mbarriers.size(); m++)
            if (run->shared + run->mbarriers[m].offset == thread->mbarrier) {
                finish_copies(run, m);
                if (run->ready_warps != 0)
                    return true;
            }
    }
    return false;
}

/* What threads stored where it goes is there before, by their proxy fence. */
static void check_stores(Run *run, const BulkCopy &copy, const char *what)
{
    for (uint32_t i = copy.offset; i < copy.offset + copy.bytes; i++) {
        unsigned who = run->writer[i] >> kClockBits;
        if (run->content[i] == written && who < kThreads &&
            (run->writer[i] & kClockMask) > run->thread[who].proxied)
            fault(run,
                  "%s (%s) to shared memory + %u, which %s wrote without a bt_fence_async after it",
                  what, place_name(copy.place).c_str(), within(i), thread_name(run, who).c_str());
    }
}

/* `mbarrier`: its offset. */
static void issue(Run *run, BulkCopy copy, uint32_t mbarrier, const char *what)
{
    check_stores(run, copy, what);
    Mbarrier *found = find_mbarrier(run, mbarrier, what);
    copy.mbarrier = static_cast<uint32_t>(found - run->mbarriers.data());
    copy.issuer = run->now->number;
    shared_write_begin(run, run->now, copy.offset, copy.bytes, what);
    run->bulk.push_back(copy);
}

void bulk_copy(void *shared, const void *global, uint32_t bytes, void *mbarrier, Place place)
{
    static const char what[] = "bt_bulk_copy";
    Run *run = current;
    run->now->place = place;
    if (bytes % 16 != 0 || bytes == 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0)
        fault(run, "misaligned: %s (%s) of %u bytes from %s", what, place_name(place).c_str(),
              bytes, address_name(run, global).c_str());
    BulkCopy copy{};
    copy.offset = shared_offset(run, shared, bytes, 16, what);
    copy.bytes = bytes;
    copy.from = static_cast<const unsigned char *>(global);
    copy.place = place;
    global_access(run, global, bytes, Access::read, what);
    counts_bulk(run, global, bytes, __builtin_return_address(0));
    issue(run, copy, shared_offset(run, mbarrier, 8, 8, what), what);
}

/* Its source stays as it is until the copy is done. */
void bulk_copy_cluster(const void *shared, uint32_t bytes, void *mbarrier, uint32_t rank,
                       Place place)
{
    static const char what[] = "bt_bulk_copy_cluster";
    Run *run = current;
    Thread *self = run->now;
    self->place = place;
    if (bytes % 16 != 0 || bytes == 0)
        fault(run, "misaligned: %s (%s) of %u bytes", what, place_name(place).c_str(), bytes);
    BulkCopy copy{};
    copy.shared = true;
    copy.source = shared_offset(run, shared, bytes, 16, what);
    copy.from = run->shared + copy.source;
    copy.offset = offset_in(run, copy.source, rank, what, place);
    copy.bytes = bytes;
    copy.place = place;
    if (rank == self->rank)
        fault(run, "%s (%s) by %s over its own source", what, place_name(place).c_str(),
              thread_name(run, self->number).c_str());
    uint32_t signalled =
        offset_in(run, shared_offset(run, mbarrier, 8, 8, what), rank, what, place);
    for (uint32_t i = 0; i < bytes; i += 16)
        shared_read_begin(run, self, copy.source + i, what);
    issue(run, copy, signalled, what);
}

static void check_map(Run *run, const TensorMap &map, Place place)
{
    static const uint32_t most[] = {UINT32_MAX, 32, 64, 128};
    uint32_t row_bytes = map.box[0] * map.element_bytes;
    if (map.magic != TensorMap::kMagic || map.swizzle > 3)
        fault(run, "bt_bulk_copy_box (%s): that is no tensor map", place_name(place).c_str());
    if (reinterpret_cast<uintptr_t>(map.base) % 16 != 0 || map.pitch % 16 != 0 || map.box[0] == 0 ||
        map.box[1] == 0 || map.box[0] > 256 || map.box[1] > 256 || row_bytes % 16 != 0 ||
        row_bytes > most[map.swizzle])
        fault(run,
              "bt_bulk_copy_box (%s): a map with base %p, pitch %llu, box %u x %u of %u bytes, "
              "swizzle %u",
              place_name(place).c_str(), map.base, static_cast<unsigned long long>(map.pitch),
              map.box[0], map.box[1], map.element_bytes, map.swizzle);
}

void bulk_copy_box(void *shared, const void *at, uint32_t x, uint32_t y, void *mbarrier,
                   Place place)
{
    static const char what[] = "bt_bulk_copy_box";
    static const size_t aligns[] = {128, 256, 512, 1024};
    Run *run = current;
    run->now->place = place;
    if (reinterpret_cast<uintptr_t>(at) % 64 != 0)
        fault(run, "misaligned: %s (%s): a map at %p", what, place_name(place).c_str(), at);
    BulkCopy copy{};
    memcpy(&copy.map, at, sizeof copy.map);
    const TensorMap &map = copy.map;
    check_map(run, map, place);
    copy.box = true;
    copy.bytes = map.box[0] * map.box[1] * map.element_bytes;
    copy.offset = shared_offset(run, shared, copy.bytes, aligns[map.swizzle], what);
    copy.x = static_cast<int32_t>(x);
    copy.y = static_cast<int32_t>(y);
    copy.place = place;
    for (uint32_t row = 0; row < map.box[1]; row++) {
        int64_t first = copy.x < 0 ? 0 : copy.x, line = int64_t(copy.y) + row;
        int64_t end = std::min<int64_t>(int64_t(copy.x) + map.box[0], int64_t(map.size[0]));
        if (line < 0 || line >= int64_t(map.size[1]) || first >= end)
            continue;
        const unsigned char *from = static_cast<const unsigned char *>(map.base) +
                                    uint64_t(line) * map.pitch +
                                    uint64_t(first) * map.element_bytes;
        size_t bytes = static_cast<size_t>(end - first) * map.element_bytes;
        global_access(run, from, bytes, Access::read, what);
        counts_bulk(run, from, bytes, __builtin_return_address(0));
    }
    issue(run, copy, shared_offset(run, mbarrier, 8, 8, what), what);
}

} // namespace emulation
