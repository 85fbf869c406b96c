/*
 * The shadow of shared memory: of each byte what it holds, who wrote it last and who has
 * read it since.
 */
#include <algorithm>
#include <cstring>

#include "tests/cuda-emulation/run.h"

namespace emulation {

void shared_begin(Run *run)
{
    size_t bytes = std::min(kSharedBytes, (run->grid->shared_bytes + 15) / 16 * 16);
    for (size_t at = 0; at < run->cluster * kSharedEach; at += kSharedEach) {
        memset(run->content + at, poison, bytes);
        memset(run->being_read + at / 16, 0, bytes / 16);
        memset(run->shared + at, 0xa5, bytes);
    }
    run->wgmma_under_way = 0;
}

uint32_t shared_address(const void *shared)
{
    Run *run = current;
    const unsigned char *at = static_cast<const unsigned char *>(shared);
    const unsigned char *own = run->shared + run->now->shared_at;
    if (at < own || at > own + run->grid->shared_bytes)
        fault(run, "%s asks for the shared address of %s",
              thread_name(run, run->now->number).c_str(), address_name(run, shared).c_str());
    return static_cast<uint32_t>(at - own) + kSharedWindow;
}

uint32_t shared_offset(Run *run, const void *at, size_t bytes, size_t align, const char *what)
{
    const unsigned char *byte = static_cast<const unsigned char *>(at);
    const unsigned char *own = run->shared + run->now->shared_at;
    size_t offset = static_cast<size_t>(byte - own);
    if (byte < own || bytes > run->grid->shared_bytes || offset > run->grid->shared_bytes - bytes)
        fault(run, "%s of %zu bytes by %s is out of the block's shared memory: %s",
              access_text(what), bytes, thread_name(run, run->now->number).c_str(),
              address_name(run, at).c_str());
    if (offset % align != 0)
        fault(run, "misaligned: %s by %s needs an address that is a multiple of %zu: %s",
              access_text(what), thread_name(run, run->now->number).c_str(), align,
              address_name(run, at).c_str());
    return run->now->shared_at + static_cast<uint32_t>(offset);
}

/* ---- faults ---- */

[[noreturn]] static void race(Run *run, const Thread *by, uint32_t offset, const char *what,
                              Stamp other, const char *did)
{
    fault(run, "race: %s by %s at shared memory + %u, which %s %s, without a barrier between",
          access_text(what), thread_name(run, by->number).c_str(), within(offset),
          thread_name(run, other >> kClockBits & 0x7ff).c_str(), did);
}

[[noreturn]] static void bad_content(Run *run, const Thread *by, uint32_t offset, const char *what)
{
    static const char *const names[] = {"was never written in this block", "", "",
                                        "an asynchronous copy has yet to write (no wait)",
                                        "belongs to an mbarrier"};
    fault(run, "%s by %s at shared memory + %u, which %s", access_text(what),
          thread_name(run, by->number).c_str(), within(offset), names[run->content[offset]]);
}

/* ---- sets of readers ---- */

/* All members were ordered before `thread`; else one that is not. */
static bool set_is_ordered(const Run *run, const Thread *thread, Stamp set, Stamp *ret_other)
{
    while (set & kMany) {
        const Readers *readers = &run->readers[set & ~kMany];
        if (readers->newest < run->base)
            return true;
        if (!ordered(run, thread, readers->stamp)) {
            *ret_other = readers->stamp;
            return false;
        }
        set = readers->rest;
    }
    *ret_other = set;
    return ordered(run, thread, set);
}

static Stamp set_add(Run *run, Stamp set, Stamp stamp)
{
    uint32_t newest = std::max(stamp & kClockMask,
                               set & kMany ? run->readers[set & ~kMany].newest : set & kClockMask);
    run->readers.push_back({set, stamp, newest});
    return kMany | static_cast<uint32_t>(run->readers.size() - 1);
}

/* The set and `by`, without those that `by` follows. */
static Stamp join_readers(Run *run, const Thread *by, Stamp set)
{
    Stamp me = stamp_of(by);
    if (set & kMany && run->readers[set & ~kMany].stamp == me)
        return set;
    Run::Joined *kept = joined_place(run, set, me);
    if (kept->set == set && kept->with == me)
        return kept->result;
    Stamp others[kClocks * 2];
    unsigned count = 0;
    bool all = true, contained = false;
    for (Stamp rest = set, more = kMany; more != 0;) {
        more = rest & kMany;
        Stamp stamp = more ? run->readers[rest & ~kMany].stamp : rest;
        rest = more ? run->readers[rest & ~kMany].rest : 0;
        contained = contained || stamp == me;
        if (ordered(run, by, stamp) || count == kClocks * 2)
            all = false;
        else
            others[count++] = stamp;
    }
    Stamp result = me;
    if (contained)
        result = set;
    else if (all)
        result = set_add(run, set, me);
    else if (count != 0) {
        result = others[count - 1];
        while (--count > 0)
            result = set_add(run, result, others[count - 1]);
        result = set_add(run, result, me);
    }
    *kept = {set, me, result};
    return result;
}

/* ---- accesses ---- */

template <typename Type> static inline bool all_are(const Type *from, size_t count, Type value)
{
    Type differ = 0;
    for (size_t i = 0; i < count; i++)
        differ = static_cast<Type>(differ | (from[i] ^ value));
    return differ == 0;
}

static inline bool all_written(const Content *content, size_t bytes)
{
    const uint8_t *from = reinterpret_cast<const uint8_t *>(content);
    uint64_t eight;
    uint32_t four;
    switch (bytes) {
    case 16:
        memcpy(&eight, from + 8, 8);
        if (eight != 0x0101010101010101u)
            return false;
        [[fallthrough]];
    case 8:
        memcpy(&eight, from, 8);
        return eight == 0x0101010101010101u;
    case 4:
        memcpy(&four, from, 4);
        return four == 0x01010101u;
    default:
        return all_are<uint8_t>(from, bytes, written);
    }
}

static void check_writer(Run *run, const Thread *by, uint32_t offset, size_t bytes,
                         const char *what)
{
    const Stamp *writer = run->writer + offset;
    size_t distinct = all_are(writer, bytes, writer[0]) ? 1 : bytes;
    for (size_t i = 0; i < distinct; i++)
        if (!ordered(run, by, writer[i]))
            race(run, by, offset + static_cast<uint32_t>(i), what, writer[i], "wrote");
}

static Stamp with_reader(Run *run, const Thread *by, Stamp reader, Stamp me)
{
    if (!(reader & kMany))
        return ordered(run, by, reader) ? me : join_readers(run, by, reader);
    return run->readers[reader & ~kMany].newest < run->base ? me : join_readers(run, by, reader);
}

/* A plain read of what atomics wrote: all of them came before. */
static void settle_atomics(Run *run, const Thread *by, uint32_t offset, const char *what)
{
    Stamp other = run->reader[offset];
    if (!set_is_ordered(run, by, other, &other))
        race(run, by, offset, what, other, "changed atomically");
    run->content[offset] = written;
    run->writer[offset] =
        other & kMany ? 0 : other; /* a set that is left is of before the barrier */
}

void shared_read(Run *run, Thread *by, uint32_t offset, size_t bytes, const char *what)
{
    if (!all_written(run->content + offset, bytes))
        for (uint32_t i = offset; i < offset + bytes; i++) {
            if (run->content[i] == counted)
                settle_atomics(run, by, i, what);
            else if (run->content[i] != written)
                bad_content(run, by, i, what);
        }
    check_writer(run, by, offset, bytes, what);
    Stamp *reader = run->reader + offset, me = stamp_of(by), first = reader[0];
    if (all_are(reader, bytes, first)) {
        if (first == me)
            return;
        std::fill(reader, reader + bytes, with_reader(run, by, first, me));
        return;
    }
    for (size_t i = 0; i < bytes; i++)
        if (reader[i] != me)
            reader[i] = with_reader(run, by, reader[i], me);
}

/* Nobody touches these bytes now who was not ordered before. */
static void check_free(Run *run, const Thread *by, uint32_t offset, size_t bytes, const char *what)
{
    if (!all_written(run->content + offset, bytes))
        for (size_t i = 0; i < bytes; i++)
            if (run->content[offset + i] >= under_way)
                bad_content(run, by, offset + static_cast<uint32_t>(i), what);
    if (run->wgmma_under_way != 0)
        for (size_t i = offset / 16; i <= (offset + bytes - 1) / 16; i++)
            if (run->being_read[i] != 0)
                fault(run,
                      "%s by %s at shared memory + %u, which a wgmma or a bulk copy that has not "
                      "been waited for reads",
                      access_text(what), thread_name(run, by->number).c_str(), within(offset));
    check_writer(run, by, offset, bytes, what);
    const Stamp *reader = run->reader + offset;
    size_t distinct = all_are(reader, bytes, reader[0]) ? 1 : bytes;
    for (size_t i = 0; i < distinct; i++) {
        Stamp other;
        if (!set_is_ordered(run, by, reader[i], &other))
            race(run, by, offset + static_cast<uint32_t>(i), what, other, "read");
    }
}

void shared_write(Run *run, Thread *by, uint32_t offset, size_t bytes, const char *what)
{
    check_free(run, by, offset, bytes, what);
    shared_write_end(run, offset, bytes, stamp_of(by));
}

void shared_atomic(Run *run, Thread *by, uint32_t offset, size_t bytes, const char *what)
{
    if (!all_are(reinterpret_cast<const uint8_t *>(run->content + offset), bytes,
                 uint8_t(counted))) {
        if (run->content[offset] == poison)
            bad_content(run, by, offset, what);
        shared_write(run, by, offset, bytes, what);
    }
    Stamp me = stamp_of(by);
    for (uint32_t i = offset; i < offset + bytes; i++) {
        run->reader[i] = with_reader(run, by, run->reader[i], me);
        run->content[i] = counted;
    }
}

void shared_write_begin(Run *run, Thread *by, uint32_t offset, size_t bytes, const char *what)
{
    check_free(run, by, offset, bytes, what);
    memset(run->content + offset, under_way, bytes);
    memset(run->shared + offset, 0xa5, bytes);
}

void shared_write_end(Run *run, uint32_t offset, size_t bytes, Stamp stamp)
{
    memset(run->content + offset, written, bytes);
    std::fill(run->writer + offset, run->writer + offset + bytes, stamp);
    memset(run->reader + offset, 0, bytes * sizeof(Stamp));
}

void shared_read_begin(Run *run, const Thread *by, uint32_t offset, const char *what)
{
    for (uint32_t i = offset; i < offset + 16; i++) {
        if (run->content[i] != written)
            bad_content(run, by, i, what);
        Stamp writer = run->writer[i];
        if (i > offset && writer == run->writer[i - 1])
            continue;
        if (!ordered(run, by, writer))
            race(run, by, i, what, writer, "wrote");
        unsigned who = writer >> kClockBits;
        if (who < kThreads && (writer & kClockMask) > run->thread[who].proxied)
            fault(run, "%s at shared memory + %u, which %s wrote without a bt_fence_async after it",
                  what, within(i), thread_name(run, who).c_str());
    }
    run->being_read[offset / 16]++;
    run->wgmma_under_way++;
}

void shared_read_end(Run *run, uint32_t offset, Stamp stamp)
{
    run->being_read[offset / 16]--;
    run->wgmma_under_way--;
    /* What read it generically before has its own order with a writer to come. */
    for (uint32_t i = offset; i < offset + 16; i++) {
        Stamp *reader = &run->reader[i];
        if (*reader == stamp)
            continue;
        bool old = *reader & kMany ? run->readers[*reader & ~kMany].newest < run->base
                                   : (*reader & kClockMask) < run->base;
        if (old)
            *reader = stamp;
        else if (i > offset && run->reader[i - 1] & kMany &&
                 run->readers[run->reader[i - 1] & ~kMany].stamp == stamp &&
                 run->readers[run->reader[i - 1] & ~kMany].rest == *reader)
            *reader = run->reader[i - 1];
        else
            *reader = set_add(run, *reader, stamp);
    }
}

void check_shared(const void *at, bool write, Place place)
{
    Run *run = current;
    const char *what = write ? "bt_store_shared_16" : "bt_load_shared_16";
    run->now->place = place;
    uint32_t offset = shared_offset(run, at, 16, 16, what);
    if (write)
        shared_write(run, run->now, offset, 16, what);
    else
        shared_read(run, run->now, offset, 16, what);
}

void fence_async()
{
    Run *run = current;
    run->now->proxied = run->now->clock;
    clocks_advance(run, run->now);
}

} // namespace emulation
