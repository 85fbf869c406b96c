/*
 * The stand-in for NCCL: ranks of one machine, processes or threads, whose bytes go through rings
 * in memory that they share. It is found by the unique id, which names a file of rank 0's process,
 * so nothing is left behind. A call on a communicator that does not block may be taken only when
 * its state is asked for; until then nothing else may be called. A rank that is gone is an error of
 * the state, and what waits for it waits until the communicator is aborted. An abort, too, returns
 * only when no graph has a call of the communicator any more; and what a rank has sent and nobody
 * took yet goes with it, unless it was finalized before.
 */
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#include <nccl.h>

#include "tests/cuda-emulation/runtime.h"

namespace {

constexpr uint64_t file_magic = UINT64_C(0x6c63636e6e6f7462);
constexpr uint32_t most_ranks = 64;
constexpr size_t rings_bytes = (size_t)16 << 20; /* of all pairs */

enum RankState : uint32_t { absent, here, gone };

struct Member {
    std::atomic<uint32_t> state;
    uint32_t device;
};

/* The beginning of the shared file; the rings come behind, by sender, then receiver. */
struct Header {
    std::atomic<uint64_t> magic;
    std::atomic<uint32_t> ranks; /* of the first who came; 0: nobody yet */
    Member member[most_ranks];
};

struct Ring {
    std::atomic<uint64_t> sent, taken;
    std::atomic<uint32_t> cut; /* its sender was aborted: what was not taken is lost */
};
constexpr size_t rings_offset = 8192;
static_assert(sizeof(Header) <= rings_offset, "fits");

struct IdName {
    uint64_t magic;
    int32_t process, file;
};

size_t ring_bytes(uint32_t ranks)
{
    size_t each = rings_bytes / ((size_t)ranks * ranks) / 4096 * 4096;
    return each < 4096 ? 4096 : each > 65536 * 4 ? 65536 * 4 : each;
}

size_t file_bytes(uint32_t ranks)
{
    return rings_offset + (size_t)ranks * ranks * ring_bytes(ranks);
}

/* One end of a transfer. */
struct Part {
    bool is_send;
    uint32_t peer;
    char *data;
    size_t bytes, done;
};

} // namespace

/* Opaque to callers. */
struct ncclComm {
    uint32_t rank, ranks;
    int file;
    int id_file = -1; /* rank 0's, until all have come */
    char *memory;
    size_t bytes;
    bool blocks;
    std::atomic<bool> aborted{false}, lost{false};
    std::atomic<uint32_t> references{1};
    std::atomic<uint32_t> in_graphs{0}; /* calls that graphs hold */
    bool finalizing = false, finalized = false;
    bool is_complete = false; /* all have come */
    ncclResult_t error = ncclSuccess;
    unsigned polls = 0;                          /* until the deferred call is taken */
    std::vector<std::function<void()>> deferred; /* calls that are not taken yet */
    uint64_t random;

    Header *header() const
    {
        return (Header *)memory;
    }
    char *ring(uint32_t from, uint32_t to) const
    {
        return memory + rings_offset + ((size_t)from * ranks + to) * ring_bytes(ranks);
    }
};

namespace {

void release(ncclComm *comm)
{
    if (comm->references.fetch_sub(1) > 1)
        return;
    munmap(comm->memory, comm->bytes);
    close(comm->file);
    if (comm->id_file >= 0)
        close(comm->id_file);
    delete comm;
}

/* Held by every queued operation. */
struct Hold {
    ncclComm *comm;
    explicit Hold(ncclComm *of) : comm(of)
    {
        comm->references.fetch_add(1);
    }
    ~Hold()
    {
        release(comm);
    }
    Hold(const Hold &) = delete;
    Hold &operator=(const Hold &) = delete;
};

/* Held by a graph and what was launched of it. */
struct InGraph {
    Hold held;
    explicit InGraph(ncclComm *of) : held(of)
    {
        of->in_graphs.fetch_add(1);
    }
    ~InGraph()
    {
        held.comm->in_graphs.fetch_sub(1);
    }
    InGraph(const InGraph &) = delete;
    InGraph &operator=(const InGraph &) = delete;
};

/* A lock that goes with the process: byte `rank` of the file. */
bool is_held(const ncclComm *comm, uint32_t rank)
{
    struct flock lock = {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = (off_t)rank;
    lock.l_len = 1;
    return fcntl(comm->file, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

bool hold(const ncclComm *comm)
{
    struct flock lock = {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = (off_t)comm->rank;
    lock.l_len = 1;
    return fcntl(comm->file, F_OFD_SETLK, &lock) == 0;
}

bool is_gone(const ncclComm *comm, uint32_t rank)
{
    uint32_t state = comm->header()->member[rank].state.load();
    return rank != comm->rank && (state == gone || (state == here && !is_held(comm, rank)));
}

/* As much as goes now. */
bool move(ncclComm *comm, Part &part)
{
    char *memory =
        part.is_send ? comm->ring(comm->rank, part.peer) : comm->ring(part.peer, comm->rank);
    Ring *ring = (Ring *)memory;
    char *bytes = memory + sizeof(Ring);
    size_t room = ring_bytes(comm->ranks) - sizeof(Ring);
    while (part.done < part.bytes) {
        uint64_t sent = ring->sent.load(std::memory_order_acquire);
        uint64_t taken = ring->taken.load(std::memory_order_acquire);
        size_t can = part.is_send ? room - (size_t)(sent - taken) : (size_t)(sent - taken);
        if (!part.is_send && ring->cut.load(std::memory_order_acquire))
            can = 0;
        size_t at = (size_t)((part.is_send ? sent : taken) % room);
        size_t now = std::min({can, part.bytes - part.done, room - at});
        if (now == 0)
            return false;
        if (part.is_send) {
            memcpy(bytes + at, part.data + part.done, now);
            ring->sent.store(sent + now, std::memory_order_release);
        } else {
            memcpy(part.data + part.done, bytes + at, now);
            ring->taken.store(taken + now, std::memory_order_release);
        }
        part.done += now;
    }
    return true;
}

/* ---- operations ---- */

/* What one collective, or a group of calls, has to move, and what follows. Made anew each time it
 * is run: a graph runs it again. */
struct Run {
    std::vector<Part> parts;
    std::vector<std::vector<char>> held;
    std::vector<std::function<void()>> after;
    unsigned looks = 0;

    char *hold(size_t bytes)
    {
        held.emplace_back(bytes);
        return held.back().data();
    }
};

/* All of it, each pair's parts one after the other. */
bool advance(ncclComm *comm, Run &run)
{
    bool blocked[2][most_ranks] = {{false}}, is_done = true;
    for (Part &part : run.parts) {
        bool &is_blocked = blocked[part.is_send][part.peer];
        if (part.done == part.bytes || is_blocked) {
            is_done = is_done && part.done == part.bytes;
            continue;
        }
        if (!move(comm, part)) {
            is_blocked = true;
            is_done = false;
            if (++run.looks % 64 == 0 && is_gone(comm, part.peer) && !move(comm, part))
                comm->lost.store(true);
        }
    }
    return is_done;
}

using Begin = std::function<void(ncclComm *comm, Run &run)>;

/* Sums, in an order that is fixed, but not by rank: the last is first. */
void sum(ncclDataType_t type, void *to, const std::vector<const char *> &from, size_t first,
         size_t count)
{
    size_t ranks = from.size();
    for (size_t i = 0; i < count; i++) {
        float total = 0;
        uint64_t whole = 0;
        for (size_t j = 0; j < ranks; j++) {
            const char *one = from[(first + j) % ranks];
            if (type == ncclFloat)
                total = j == 0 ? ((const float *)one)[i] : total + ((const float *)one)[i];
            else
                whole += ((const uint64_t *)one)[i];
        }
        if (type == ncclFloat)
            ((float *)to)[i] = total;
        else
            ((uint64_t *)to)[i] = whole;
    }
}

size_t type_bytes(ncclDataType_t type)
{
    switch (type) {
    case ncclUint8:
    case ncclInt8:
        return 1;
    case ncclBfloat16:
    case ncclFloat16:
        return 2;
    case ncclFloat32:
    case ncclUint32:
    case ncclInt32:
        return 4;
    default:
        return 8;
    }
}

void send_to(Run &run, uint32_t peer, const void *data, size_t bytes)
{
    run.parts.push_back({true, peer, (char *)const_cast<void *>(data), bytes, 0});
}

void receive_from(Run &run, uint32_t peer, void *data, size_t bytes)
{
    run.parts.push_back({false, peer, (char *)data, bytes, 0});
}

/* Everybody's `bytes`, in memory of the run; the own ones are copied, for they may be overwritten
 * when the sum is made. */
std::vector<const char *> gather(ncclComm *comm, Run &run, const void *mine, size_t bytes)
{
    std::vector<const char *> from(comm->ranks);
    for (uint32_t r = 0; r < comm->ranks; r++) {
        char *to = run.hold(bytes);
        from[r] = to;
        if (r == comm->rank)
            memcpy(to, mine, bytes);
        else
            receive_from(run, r, to, bytes);
    }
    return from;
}

/* ---- calls ---- */

struct Call {
    ncclComm *comm;
    cudaStream_t stream;
    Begin begin;
};

thread_local unsigned group_depth;
thread_local std::vector<Call> group_calls;

/* As one operation of the stream. */
void take(ncclComm *comm, cudaStream_t stream, const std::vector<Begin> &begins)
{
    auto held = std::make_shared<Hold>(comm);
    auto run = std::make_shared<std::unique_ptr<Run>>();
    std::shared_ptr<InGraph> in_graph;
    if (emulation::is_capturing(stream))
        in_graph = std::make_shared<InGraph>(comm);
    cudaError_t queued = emulation::queue(stream, "nccl", [held, run, begins, in_graph] {
        ncclComm *of = held->comm;
        emulation::Touch touch;
        if (of->aborted.load()) {
            run->reset();
            return true;
        }
        if (!*run) {
            run->reset(new Run);
            for (const Begin &begin : begins)
                begin(of, **run);
        }
        if (of->lost.load() || !advance(of, **run))
            return false;
        for (const auto &after : (*run)->after)
            after();
        run->reset();
        return true;
    });
    if (queued != cudaSuccess)
        comm->error = ncclUnhandledCudaError;
}

/* Sometimes only when the state is asked for. */
ncclResult_t submit(ncclComm *comm, cudaStream_t stream, std::vector<Begin> begins)
{
    comm->random = comm->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    unsigned later = comm->blocks ? 0 : (unsigned)(comm->random >> 33) % 3;
    if (later == 0) {
        take(comm, stream, begins);
        return comm->error;
    }
    comm->polls = later;
    comm->deferred.push_back([=] { take(comm, stream, begins); });
    return ncclInProgress;
}

/* What any call finds first. */
ncclResult_t usable(ncclComm *comm)
{
    if (!comm)
        return ncclInvalidArgument;
    if (!comm->is_complete || !comm->deferred.empty())
        return ncclInvalidUsage; /* the state has to be asked for first */
    return comm->lost.load() ? ncclRemoteError : comm->error;
}

bool is_there(const void *data, size_t bytes)
{
    size_t room = 0;
    emulation::Memory kind = emulation::memory_of(data, &room);
    return bytes == 0 || (kind != emulation::Memory::unknown && room >= bytes);
}

ncclResult_t call(ncclComm *comm, cudaStream_t stream, Begin begin)
{
    ncclResult_t result = usable(comm);
    if (result != ncclSuccess)
        return result;
    if (group_depth > 0) {
        group_calls.push_back({comm, stream, std::move(begin)});
        return ncclSuccess;
    }
    return submit(comm, stream, {std::move(begin)});
}

/* ---- joining ---- */

bool open_file(ncclComm *comm, const IdName &name)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", name.process, name.file);
    comm->file = open(path, O_RDWR | O_CLOEXEC);
    if (comm->file < 0)
        return false;
    comm->bytes = file_bytes(comm->ranks);
    if (ftruncate(comm->file, (off_t)comm->bytes) != 0) /* to the same size by all */
        return false;
    void *memory = mmap(nullptr, comm->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, comm->file, 0);
    comm->memory = memory == MAP_FAILED ? nullptr : (char *)memory;
    return comm->memory != nullptr;
}

/* Success: all are there. */
ncclResult_t meet(ncclComm *comm)
{
    Header *header = comm->header();
    Member *own = &header->member[comm->rank];
    uint32_t nobody = 0, present = 0;
    if (!header->ranks.compare_exchange_strong(nobody, comm->ranks) && nobody != comm->ranks)
        return ncclInvalidArgument;
    for (uint32_t r = 0; r < comm->ranks; r++) {
        const Member *other = &header->member[r];
        if (other->state.load() == absent)
            continue;
        present++;
        if (r != comm->rank && other->device == own->device)
            return ncclInvalidUsage; /* one GPU each */
    }
    comm->is_complete = present == comm->ranks;
    if (comm->is_complete && comm->id_file >= 0) {
        close(comm->id_file);
        comm->id_file = -1;
    }
    return comm->is_complete ? ncclSuccess : ncclInProgress;
}

/* Of what this rank sent. */
bool all_is_taken(const ncclComm *comm)
{
    for (uint32_t r = 0; r < comm->ranks; r++) {
        const Ring *ring = (const Ring *)comm->ring(comm->rank, r);
        if (!is_gone(comm, r) && ring->sent.load() != ring->taken.load())
            return false;
    }
    return true;
}

} // namespace

extern "C" ncclResult_t ncclGetVersion(int *ret_version)
{
    *ret_version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

extern "C" const char *ncclGetErrorString(ncclResult_t result)
{
    switch (result) {
    case ncclSuccess:
        return "no error";
    case ncclUnhandledCudaError:
        return "unhandled cuda error";
    case ncclSystemError:
        return "unhandled system error";
    case ncclInternalError:
        return "internal error";
    case ncclInvalidArgument:
        return "invalid argument";
    case ncclInvalidUsage:
        return "invalid usage";
    case ncclRemoteError:
        return "remote process exited or there was a network error";
    case ncclInProgress:
        return "NCCL operation in progress";
    default:
        return "unknown result code";
    }
}

extern "C" const char *ncclGetLastError(ncclComm_t comm)
{
    return comm && comm->lost.load() ? "a peer closed its connection" : "";
}

/* The file lives while this process does. */
extern "C" ncclResult_t ncclGetUniqueId(ncclUniqueId *ret_id)
{
    IdName name = {file_magic, (int32_t)getpid(), memfd_create("nccl", MFD_CLOEXEC)};
    if (name.file < 0)
        return ncclSystemError;
    memset(ret_id, 0, sizeof(*ret_id));
    memcpy(ret_id, &name, sizeof(name));
    return ncclSuccess;
}

extern "C" ncclResult_t ncclCommInitRankConfig(ncclComm_t *ret_comm, int ranks, ncclUniqueId id,
                                               int rank, ncclConfig_t *config)
{
    IdName name;
    memcpy(&name, &id, sizeof(name));
    if (!ret_comm || ranks < 1 || ranks > (int)most_ranks || rank < 0 || rank >= ranks ||
        name.magic != file_magic)
        return ncclInvalidArgument;
    ncclComm *comm = new ncclComm;
    comm->rank = (uint32_t)rank;
    comm->ranks = (uint32_t)ranks;
    comm->blocks = !config || config->blocking != 0;
    comm->memory = nullptr;
    comm->random = (uint64_t)rank + 1;
    if (!open_file(comm, name) || !hold(comm)) {
        if (comm->file >= 0)
            close(comm->file);
        delete comm;
        return ncclSystemError;
    }
    if (name.process == getpid() && rank == 0)
        comm->id_file = name.file;
    Member *own = &comm->header()->member[rank];
    own->device = (uint32_t)emulation::device();
    own->state.store(here);
    *ret_comm = comm;
    if (!comm->blocks)
        return ncclInProgress;
    while ((comm->error = meet(comm)) == ncclInProgress)
        usleep(1000);
    return comm->error;
}

extern "C" ncclResult_t ncclCommInitRank(ncclComm_t *ret_comm, int ranks, ncclUniqueId id, int rank)
{
    return ncclCommInitRankConfig(ret_comm, ranks, id, rank, nullptr);
}

/* Of the state; asking makes calls go on. */
extern "C" ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *ret_state)
{
    if (!comm || !ret_state)
        return ncclInvalidArgument;
    if (comm->error == ncclSuccess && comm->lost.load())
        comm->error = ncclRemoteError;
    if (comm->error == ncclSuccess && !comm->is_complete) {
        ncclResult_t met = meet(comm);
        if (met != ncclInProgress)
            comm->error = met;
        *ret_state = met;
        return ncclSuccess;
    }
    if (comm->error == ncclSuccess && comm->finalizing && !comm->finalized) {
        comm->finalized = all_is_taken(comm);
        *ret_state = comm->finalized ? ncclSuccess : ncclInProgress;
        return ncclSuccess;
    }
    if (comm->error == ncclSuccess && !comm->deferred.empty()) {
        if (--comm->polls > 0) {
            *ret_state = ncclInProgress;
            return ncclSuccess;
        }
        for (const auto &call : comm->deferred)
            call();
        comm->deferred.clear();
    }
    *ret_state = comm->error;
    return ncclSuccess;
}

/* Gone for the others; what is queued here ends. Returns when no graph needs it. */
extern "C" ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    if (!comm)
        return ncclInvalidArgument;
    comm->aborted.store(true);
    for (uint32_t r = 0; r < comm->ranks && !comm->finalized; r++)
        ((Ring *)comm->ring(comm->rank, r))->cut.store(1, std::memory_order_release);
    comm->header()->member[comm->rank].state.store(gone);
    comm->deferred.clear();
    while (comm->in_graphs.load() > 0)
        usleep(200);
    release(comm);
    return ncclSuccess;
}

/* Its state is in progress until the others have what was sent. */
extern "C" ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    ncclResult_t result = usable(comm);
    if (result != ncclSuccess)
        return result;
    comm->finalizing = true;
    return ncclInProgress;
}

extern "C" ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    return ncclCommAbort(comm);
}

extern "C" ncclResult_t ncclCommCount(const ncclComm_t comm, int *ret_count)
{
    *ret_count = (int)comm->ranks;
    return ncclSuccess;
}

extern "C" ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *ret_rank)
{
    *ret_rank = (int)comm->rank;
    return ncclSuccess;
}

extern "C" ncclResult_t ncclGroupStart(void)
{
    group_depth++;
    return ncclSuccess;
}

/* The calls of each communicator and stream are one operation. */
extern "C" ncclResult_t ncclGroupEnd(void)
{
    ncclResult_t result = ncclSuccess;
    if (group_depth == 0)
        return ncclInvalidUsage;
    if (--group_depth > 0)
        return ncclSuccess;
    std::vector<Call> calls = std::move(group_calls);
    group_calls.clear();
    while (!calls.empty()) {
        ncclComm *comm = calls.front().comm;
        cudaStream_t stream = calls.front().stream;
        std::vector<Begin> begins;
        for (auto it = calls.begin(); it != calls.end();) {
            if (it->comm != comm || it->stream != stream) {
                ++it;
                continue;
            }
            begins.push_back(std::move(it->begin));
            it = calls.erase(it);
        }
        ncclResult_t one = submit(comm, stream, std::move(begins));
        if (result == ncclSuccess)
            result = one;
    }
    return result;
}

extern "C" ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type,
                                      ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    size_t bytes = count * type_bytes(type);
    if (op != ncclSum || (type != ncclFloat && type != ncclUint64) || !is_there(from, bytes) ||
        !is_there(to, bytes))
        return ncclInvalidArgument;
    return call(comm, stream, [=](ncclComm *of, Run &run) {
        std::vector<const char *> all = gather(of, run, from, bytes);
        for (uint32_t r = 0; r < of->ranks; r++)
            if (r != of->rank)
                send_to(run, r, all[of->rank], bytes);
        run.after.push_back([=] { sum(type, to, all, all.size() - 1, count); });
    });
}

extern "C" ncclResult_t ncclReduce(const void *from, void *to, size_t count, ncclDataType_t type,
                                   ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream)
{
    size_t bytes = count * type_bytes(type);
    if (op != ncclSum || type != ncclFloat || !is_there(from, bytes) || root < 0 ||
        (comm && (uint32_t)root >= comm->ranks))
        return ncclInvalidArgument;
    return call(comm, stream, [=](ncclComm *of, Run &run) {
        if (of->rank != (uint32_t)root) {
            send_to(run, (uint32_t)root, from, bytes);
            return;
        }
        std::vector<const char *> all = gather(of, run, from, bytes);
        run.after.push_back([=] { sum(type, to, all, all.size() - 1, count); });
    });
}

extern "C" ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count,
                                          ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
                                          cudaStream_t stream)
{
    size_t bytes = count * type_bytes(type);
    if (op != ncclSum || type != ncclFloat || !comm || !is_there(from, bytes * comm->ranks) ||
        !is_there(to, bytes))
        return ncclInvalidArgument;
    return call(comm, stream, [=](ncclComm *of, Run &run) {
        std::vector<const char *> all =
            gather(of, run, (const char *)from + of->rank * bytes, bytes);
        for (uint32_t r = 0; r < of->ranks; r++)
            if (r != of->rank)
                send_to(run, r, (const char *)from + r * bytes, bytes);
        run.after.push_back([=] { sum(type, to, all, all.size() - 1, count); });
    });
}

extern "C" ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type,
                                      int root, ncclComm_t comm, cudaStream_t stream)
{
    size_t bytes = count * type_bytes(type);
    if (!comm || root < 0 || (uint32_t)root >= comm->ranks || !is_there(to, bytes) ||
        (comm->rank == (uint32_t)root && !is_there(from, bytes)))
        return ncclInvalidArgument;
    return call(comm, stream, [=](ncclComm *of, Run &run) {
        if (of->rank != (uint32_t)root) {
            receive_from(run, (uint32_t)root, to, bytes);
            return;
        }
        for (uint32_t r = 0; r < of->ranks; r++)
            if (r != of->rank)
                send_to(run, r, from, bytes);
        run.after.push_back([=] {
            if (to != from)
                memmove(to, from, bytes);
        });
    });
}

extern "C" ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type,
                                      ncclComm_t comm, cudaStream_t stream)
{
    size_t bytes = count * type_bytes(type);
    if (!comm || !is_there(from, bytes) || !is_there(to, bytes * comm->ranks))
        return ncclInvalidArgument;
    return call(comm, stream, [=](ncclComm *of, Run &run) {
        char *mine = (char *)to + of->rank * bytes;
        if (mine != from)
            memmove(mine, from, bytes);
        for (uint32_t r = 0; r < of->ranks; r++) {
            if (r == of->rank)
                continue;
            send_to(run, r, mine, bytes);
            receive_from(run, r, (char *)to + r * bytes, bytes);
        }
    });
}

/* To itself in a group alone, where both meet. */
extern "C" ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer,
                                 ncclComm_t comm, cudaStream_t stream)
{
    size_t bytes = count * type_bytes(type);
    if (!comm || peer < 0 || (uint32_t)peer >= comm->ranks || !is_there(from, bytes))
        return ncclInvalidArgument;
    if ((uint32_t)peer == comm->rank && group_depth == 0)
        return ncclInvalidUsage;
    return call(comm, stream,
                [=](ncclComm *, Run &run) { send_to(run, (uint32_t)peer, from, bytes); });
}

extern "C" ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer,
                                 ncclComm_t comm, cudaStream_t stream)
{
    size_t bytes = count * type_bytes(type);
    if (!comm || peer < 0 || (uint32_t)peer >= comm->ranks || !is_there(to, bytes))
        return ncclInvalidArgument;
    return call(comm, stream,
                [=](ncclComm *, Run &run) { receive_from(run, (uint32_t)peer, to, bytes); });
}
