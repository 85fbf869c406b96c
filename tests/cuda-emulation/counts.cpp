/*
 * Counting (counts.h): each lane keeps what it accesses until its warp meets; then accesses of
 * lanes become accesses of the warp, and are added up by where in the code they are.
 */
#include "tests/cuda-emulation/counts.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <unordered_map>

#include "tests/cuda-emulation/run.h"

namespace emulation {

constexpr uint32_t kBanks = 32, kSectorBytes = 32, kPageBytes = 4096;

struct LaneAccess {
    const void *code;
    uintptr_t at;
    uint32_t bytes;
    Counted kind;
};

struct WarpAccess {
    const void *code;
    Counted kind;
    uint32_t bytes, lanes;
    uintptr_t at[kLanes];
};

/* Where in the code, and what. */
struct Key {
    const void *code;
    Counted kind;
    uint32_t turn; /* how often this lane came there since its warp met; of a site 0 */
    bool operator==(const Key &other) const
    {
        return code == other.code && kind == other.kind && turn == other.turn;
    }
    bool operator<(const Key &other) const
    {
        return code != other.code ? code < other.code : kind < other.kind;
    }
};
struct KeyHash {
    size_t operator()(const Key &key) const
    {
        uint64_t all = reinterpret_cast<uintptr_t>(key.code) * 8 + static_cast<unsigned>(key.kind);
        return (all ^ uint64_t(key.turn) << 40) * 0x9e3779b97f4a7c15u >> 13;
    }
};

struct Site {
    uint64_t requests, lanes, bytes, cost, least;
};

struct Touched { /* bytes of a page of global memory */
    uint64_t read[kPageBytes / 64], written[kPageBytes / 64];
};

struct Counts {
    std::vector<LaneAccess> lane[kThreads];
    std::map<Key, Site> sites;
    std::unordered_map<uintptr_t, Touched> pages;
    uint64_t products, fmas;
    /* of a flush */
    std::vector<WarpAccess> accesses;
    std::unordered_map<Key, uint32_t, KeyHash> turns, found;
};

static const char *file_of_environment()
{
    static const char *const file = [] {
        const char *text = getenv("BATON_EMULATION_COUNTS");
        return text != nullptr && text[0] != '\0' ? text : nullptr;
    }();
    return file;
}

void counts_begin(Run *run)
{
    if (file_of_environment() != nullptr)
        run->counts = new Counts();
}

void fused()
{
    Run *run = current;
    if (__builtin_expect(run != nullptr && run->counts != nullptr, 0))
        run->counts->fmas++;
}

void counts_products(Run *run, uint64_t products)
{
    if (run->counts != nullptr)
        run->counts->products += products;
}

/* ---- what a warp's access costs ---- */

struct Cost {
    uint64_t cost, least;
};

/*
 * 32 banks of 4 bytes: a wavefront has of each bank one word, for all lanes that want it. Accesses
 * of 8 bytes go by half a warp, of 16 by a quarter; a part that wants nothing new costs nothing.
 */
static Cost wavefronts(const WarpAccess &access, uintptr_t shared)
{
    uint32_t parts = access.bytes == 16 ? 4 : access.bytes == 8 ? 2 : 1;
    bool counts_lanes = access.kind == Counted::shared_atomic;
    std::vector<uintptr_t> all;
    Cost result = {0, 0};
    for (uint32_t part = 0; part < parts; part++) {
        uint32_t of_bank[kBanks] = {}, most = 0;
        size_t before = all.size();
        for (uint32_t i = part * kLanes / parts; i < (part + 1) * kLanes / parts; i++) {
            if (!(access.lanes >> i & 1))
                continue;
            uintptr_t first = (access.at[i] - shared) / 4;
            uintptr_t last = (access.at[i] - shared + access.bytes - 1) / 4;
            for (uintptr_t word = first; word <= last; word++) {
                bool known = std::find(all.begin(), all.end(), word) != all.end();
                if (!known)
                    all.push_back(word);
                bool mine = std::find(all.begin() + before, all.end(), word) != all.end();
                if (mine && (!known || counts_lanes))
                    most = std::max(most, ++of_bank[word % kBanks]);
            }
        }
        result.cost += most;
    }
    result.least = (all.size() + kBanks - 1) / kBanks;
    return result;
}

static uint64_t bits_between(uint32_t from, uint32_t to)
{
    uint64_t below = to == 64 ? ~uint64_t(0) : (uint64_t(1) << to) - 1;
    return below & ~((uint64_t(1) << from) - 1);
}

/* Reads of what this launch wrote itself are not counted. */
static void touch(Counts *counts, uintptr_t at, size_t bytes, bool write)
{
    for (uintptr_t i = at; i < at + bytes;) {
        Touched &page = counts->pages[i / kPageBytes];
        uint32_t word = i % kPageBytes / 64, from = i % 64;
        uint32_t to = static_cast<uint32_t>(std::min<uintptr_t>(64, from + (at + bytes - i)));
        uint64_t bits = bits_between(from, to);
        if (write)
            page.written[word] |= bits;
        else
            page.read[word] |= bits & ~page.written[word];
        i += to - from;
    }
}

static Cost sectors(Counts *counts, const WarpAccess &access)
{
    std::pair<uintptr_t, uintptr_t> spans[kLanes];
    size_t count = 0;
    for (uint32_t i = 0; i < kLanes; i++)
        if (access.lanes >> i & 1) {
            spans[count++] = {access.at[i], access.at[i] + access.bytes};
            touch(counts, access.at[i], access.bytes, access.kind != Counted::global_read);
        }
    std::sort(spans, spans + count);
    uintptr_t useful = 0, end = 0, next_sector = 0;
    Cost result = {0, 0};
    for (size_t i = 0; i < count; i++) {
        useful += spans[i].second > end ? spans[i].second - std::max(end, spans[i].first) : 0;
        end = std::max(end, spans[i].second);
        uintptr_t first = std::max(next_sector, spans[i].first / kSectorBytes);
        uintptr_t last = (spans[i].second - 1) / kSectorBytes;
        if (last + 1 > first) {
            result.cost += last + 1 - first;
            next_sector = last + 1;
        }
    }
    result.least = (useful + kSectorBytes - 1) / kSectorBytes;
    return result;
}

static void add_site(Counts *counts, const WarpAccess &access, Cost cost)
{
    Site &site = counts->sites[{access.code, access.kind, 0}];
    unsigned lanes = static_cast<unsigned>(__builtin_popcount(access.lanes));
    site.requests++;
    site.lanes += lanes;
    site.bytes += uint64_t(lanes) * access.bytes;
    site.cost += cost.cost;
    site.least += cost.least;
}

/* ---- from lanes to warps ---- */

void counts_flush(Run *run, unsigned warp)
{
    Counts *counts = run->counts;
    if (counts == nullptr)
        return;
    counts->accesses.clear();
    counts->found.clear();
    for (unsigned lane = 0; lane < kLanes; lane++) {
        std::vector<LaneAccess> &log = counts->lane[warp * kLanes + lane];
        counts->turns.clear();
        for (const LaneAccess &access : log) {
            Key key = {access.code, access.kind, 0};
            key.turn = ++counts->turns[key];
            auto found = counts->found.emplace(key, counts->accesses.size());
            if (found.second)
                counts->accesses.push_back({access.code, access.kind, access.bytes, 0, {}});
            WarpAccess &all = counts->accesses[found.first->second];
            all.bytes = std::max(all.bytes, access.bytes);
            all.lanes |= 1u << lane;
            all.at[lane] = access.at;
        }
        log.clear();
    }
    for (const WarpAccess &access : counts->accesses) {
        const void *first = reinterpret_cast<const void *>(access.at[__builtin_ctz(access.lanes)]);
        if (access.kind < Counted::global_read)
            add_site(counts, access, wavefronts(access, reinterpret_cast<uintptr_t>(run->shared)));
        else if (device_memory_holds(first, access.bytes))
            add_site(counts, access, sectors(counts, access));
    }
}

void counts_access(Run *run, Counted kind, const void *at, uint32_t bytes, const void *code)
{
    run->counts->lane[run->now->number].push_back(
        {code, reinterpret_cast<uintptr_t>(at), bytes, kind});
}

void counts_plain(Run *run, const void *address, size_t bytes, bool write, const void *code)
{
    const unsigned char *at = static_cast<const unsigned char *>(address);
    if (!write && static_cast<size_t>(at - static_cast<const unsigned char *>(run->context)) <
                      run->context_bytes)
        return;
    bool in_shared = in_shared_area(run, at);
    counts_access(run,
                  in_shared ? write ? Counted::shared_write : Counted::shared_read
                  : write   ? Counted::global_write
                            : Counted::global_read,
                  at, static_cast<uint32_t>(bytes), code);
}

void counts_matrices(Run *run, const unsigned char *const *rows, unsigned count, const void *code)
{
    if (run->counts == nullptr)
        return;
    WarpAccess access = {code, Counted::shared_read, 16, 0, {}};
    access.lanes = count == kLanes ? ~0u : (1u << count) - 1;
    for (unsigned i = 0; i < count; i++)
        access.at[i] = reinterpret_cast<uintptr_t>(rows[i]);
    add_site(run->counts, access, wavefronts(access, reinterpret_cast<uintptr_t>(run->shared)));
}

void counts_bulk(Run *run, const void *from, size_t bytes, const void *code)
{
    if (run->counts == nullptr || bytes == 0)
        return;
    uintptr_t at = reinterpret_cast<uintptr_t>(from), end = at + bytes;
    touch(run->counts, at, bytes, false);
    Site &site = run->counts->sites[{code, Counted::bulk_read, 0}];
    site.requests++;
    site.lanes++;
    site.bytes += bytes;
    site.cost += (end - 1) / kSectorBytes - at / kSectorBytes + 1;
    site.least += (bytes + kSectorBytes - 1) / kSectorBytes;
}

/* ---- the account of a launch ---- */

static std::string code_place(const void *code)
{
    Dl_info info;
    if (dladdr(code, &info) == 0 || info.dli_fname == nullptr)
        return "?\t0";
    char text[512];
    snprintf(text, sizeof text, "%s\t%zx", info.dli_fname,
             static_cast<size_t>(static_cast<const char *>(code) -
                                 static_cast<const char *>(info.dli_fbase)));
    return text;
}

static void write_out(const std::string &text)
{
    int file = open(file_of_environment(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    bool done = file >= 0 && write(file, text.data(), text.size()) == ssize_t(text.size());
    if (!done) {
        perror("emulated grid: BATON_EMULATION_COUNTS");
        abort();
    }
    close(file);
}

void counts_end(Run *run)
{
    static const char *const kinds[] = {"shared read", "shared write", "shared atomic",
                                        "global read", "global write", "global atomic",
                                        "global bulk"};
    Counts *counts = run->counts;
    if (counts == nullptr)
        return;
    run->counts = nullptr;
    uint64_t read = 0, written = 0;
    for (const auto &page : counts->pages)
        for (uint32_t i = 0; i < kPageBytes / 64; i++) {
            read += static_cast<uint64_t>(__builtin_popcountll(page.second.read[i]));
            written += static_cast<uint64_t>(__builtin_popcountll(page.second.written[i]));
        }
    char line[512];
    snprintf(line, sizeof line,
             "\t%u\t%u\t%u\t%u\t%zu\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\n",
             run->blocks.x, run->blocks.y, run->blocks.z, run->block_threads,
             run->grid->shared_bytes, read, written, counts->products, counts->fmas);
    std::string text = "launch\t" + code_place(run->grid->kernel) + line;
    for (const auto &each : counts->sites) {
        const Site &site = each.second;
        snprintf(line, sizeof line,
                 "\t%s\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\n",
                 kinds[static_cast<unsigned>(each.first.kind)], site.requests, site.lanes,
                 site.bytes, site.cost, site.least);
        text += "site\t" + code_place(each.first.code) + line;
    }
    write_out(text);
    delete counts;
}

} // namespace emulation
