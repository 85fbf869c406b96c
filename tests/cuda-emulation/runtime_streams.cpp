/*
 * Streams, events and graphs. A stream is a queue of work that nobody has done yet; who waits for
 * it does it. One thread of our own does what nobody waits for, a little later.
 */
#include <algorithm>
#include <chrono>
#include <ctime>
#include <thread>

#include "tests/cuda-emulation/runtime_state.h"

namespace emulation {

namespace {

using Lock = std::unique_lock<std::mutex>;
using std::chrono::microseconds;

struct Graph {
    std::vector<Item> items;
    Mark last; /* where it was launched */
};

struct Engine {
    std::mutex mutex;
    std::mutex grid; /* one kernel at once */
    std::condition_variable changed;
    std::set<StreamPointer> streams;
    std::vector<StreamPointer> defaults; /* by device */
    std::set<std::shared_ptr<Capture>> captures;
    uint64_t captures_made = 0, random = 0, launches = 0;
    bool has_thread = false;
    std::set<Event *> events;
    std::set<Graph *> graphs;
};

thread_local bool in_host_function;

Engine &engine()
{
    static Engine *the = new Engine; /* lives as long as the process */
    return *the;
}

uint64_t this_thread()
{
    return (uint64_t)std::hash<std::thread::id>()(std::this_thread::get_id());
}

/* splitmix64 */
uint64_t draw(Engine &e)
{
    uint64_t z = e.random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

bool is_reached(const Mark &mark)
{
    return !mark.stream || mark.stream->done >= mark.number;
}

/* What the first item waits for; NULL: nothing. */
const Mark *obstacle(const Stream &stream)
{
    for (const Mark &mark : stream.items.front().after)
        if (!is_reached(mark))
            return &mark;
    return nullptr;
}

/* The first item, which nothing stands before. False: it is not ready. */
bool run_first(Engine &e, Lock &lock, Stream &stream)
{
    Item &item = stream.items.front();
    stream.busy = true;
    lock.unlock();
    bool is_done = !item.work || sticky() != cudaSuccess || item.work();
    lock.lock();
    stream.busy = false;
    if (is_done) {
        stream.done = item.number;
        stream.items.pop_front();
    }
    e.changed.notify_all();
    return is_done;
}

/* At most `count` items, as far as nothing has to be waited for. */
void step(Engine &e, Lock &lock, const StreamPointer &stream, unsigned count)
{
    while (count-- > 0 && !stream->busy && !stream->items.empty() && !obstacle(*stream))
        if (!run_first(e, lock, *stream))
            break;
}

void advance(Engine &e, Lock &lock, const Mark &mark)
{
    StreamPointer stream = mark.stream;
    while (stream && stream->done < mark.number) {
        if (stream->busy) {
            e.changed.wait(lock);
            continue;
        }
        const Mark *before = obstacle(*stream);
        if (before) {
            Mark held = *before;
            advance(e, lock, held);
        } else if (!run_first(e, lock, *stream)) {
            e.changed.wait_for(lock, microseconds(50)); /* for a peer */
        }
    }
}

void wait_for(const Mark &mark)
{
    Engine &e = engine();
    Touch touch;
    Lock lock(e.mutex);
    advance(e, lock, mark);
}

/* What is queued is done some time, whether somebody waits or not. */
void work_behind()
{
    Engine &e = engine();
    Lock lock(e.mutex);
    for (;;) {
        std::vector<StreamPointer> waiting;
        for (const StreamPointer &stream : e.streams)
            if (!stream->busy && !stream->items.empty() && !obstacle(*stream))
                waiting.push_back(stream);
        if (waiting.empty()) {
            e.changed.wait(lock);
            continue;
        }
        e.changed.wait_for(lock, microseconds(draw(e) % 2000));
        StreamPointer stream = waiting[draw(e) % waiting.size()];
        unsigned count = 1 + (unsigned)(draw(e) % 8);
        lock.unlock();
        {
            Touch touch;
            lock.lock();
            step(e, lock, stream, count);
            lock.unlock();
        }
        lock.lock();
    }
}

/* Streams that were destroyed and are empty go. */
void sweep(Engine &e)
{
    for (auto it = e.streams.begin(); it != e.streams.end();)
        it = it->use_count() == 1 && (*it)->items.empty() && !(*it)->busy ? e.streams.erase(it)
                                                                          : std::next(it);
}

struct Handle {
    StreamPointer stream; /* what cudaStream_t points at */
};
std::set<Handle *> handles;

StreamPointer &default_of(Engine &e, int device)
{
    if (e.defaults.size() <= (size_t)device)
        e.defaults.resize((size_t)device + 1);
    if (!e.defaults[(size_t)device]) {
        e.defaults[(size_t)device] = std::make_shared<Stream>();
        e.defaults[(size_t)device]->device = device;
        e.streams.insert(e.defaults[(size_t)device]);
    }
    return e.defaults[(size_t)device];
}

/* NULL: there is no such stream. */
StreamPointer stream_of(Engine &e, cudaStream_t stream)
{
    if (stream == nullptr || stream == cudaStreamLegacy)
        return default_of(e, device());
    if (stream == cudaStreamPerThread)
        misuse("the default stream of a thread is not emulated");
    Handle *handle = (Handle *)(void *)stream;
    return handles.count(handle) ? handle->stream : nullptr;
}

/* The default stream and the blocking ones wait for each other. */
void order_with_default(Engine &e, const StreamPointer &stream, Item &item)
{
    StreamPointer common = default_of(e, stream->device);
    if (stream != common && stream->is_blocking && common->queued > common->done)
        item.after.push_back({common, common->queued});
    for (const StreamPointer &other : e.streams)
        if (stream == common && other != common && other->is_blocking &&
            other->device == stream->device && other->queued > other->done)
            item.after.push_back({other, other->queued});
}

void start_thread(Engine &e)
{
    if (e.has_thread)
        return;
    e.has_thread = true;
    e.random = settings().seed;
    std::thread(work_behind).detach();
}

void push(Engine &e, const StreamPointer &stream, Item item)
{
    start_thread(e);
    order_with_default(e, stream, item);
    if (item.external)
        item.external->mark = {stream, stream->queued + 1};
    item.number = ++stream->queued;
    stream->items.push_back(std::move(item));
    e.changed.notify_all();
}

void capture_item(Stream &stream, Item item)
{
    Capture &capture = *stream.capture;
    if (&stream != capture.origin)
        capture.unjoined.insert(&stream);
    capture.items.push_back(std::move(item));
}

int64_t now_ns()
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void invalidate_of(Stream &stream)
{
    if (stream.capture)
        stream.capture->is_invalid = true;
}

/* No call of the runtime may be made by a host function. */
bool is_forbidden()
{
    return in_host_function;
}

} // namespace

bool is_unsafe_now()
{
    Engine &e = engine();
    Lock lock(e.mutex);
    bool is_unsafe = false;
    for (const auto &capture : e.captures) {
        bool counts =
            capture->mode == cudaStreamCaptureModeGlobal ||
            (capture->mode == cudaStreamCaptureModeThreadLocal && capture->thread == this_thread());
        if (counts)
            capture->is_invalid = is_unsafe = true;
    }
    return is_unsafe || is_forbidden();
}

void invalidate(cudaStream_t stream)
{
    Engine &e = engine();
    Lock lock(e.mutex);
    StreamPointer found = stream_of(e, stream);
    if (found)
        invalidate_of(*found);
}

bool is_capturing(cudaStream_t stream)
{
    Engine &e = engine();
    Lock lock(e.mutex);
    StreamPointer found = stream_of(e, stream);
    return found && found->capture;
}

int device_of_stream(cudaStream_t stream)
{
    Engine &e = engine();
    Lock lock(e.mutex);
    StreamPointer found = stream_of(e, stream);
    return found ? found->device : -1;
}

bool is_in_use(const void *data, size_t bytes)
{
    Engine &e = engine();
    Lock lock(e.mutex);
    auto overlaps = [&](const Range &range) {
        return (const char *)data < (const char *)range.data + range.bytes &&
               (const char *)range.data < (const char *)data + bytes;
    };
    for (const StreamPointer &stream : e.streams)
        for (const Item &item : stream->items)
            if (overlaps(item.reads) || overlaps(item.writes))
                return true;
    return false;
}

cudaError_t queue_item(cudaStream_t stream, Item item)
{
    Engine &e = engine();
    Lock lock(e.mutex);
    StreamPointer found = stream_of(e, stream);
    if (!found || is_forbidden())
        return found ? cudaErrorNotPermitted : cudaErrorInvalidResourceHandle;
    if (sticky() != cudaSuccess)
        return sticky();
    if (!found->capture) {
        push(e, found, std::move(item));
        return cudaSuccess;
    }
    if (found->capture->is_invalid)
        return cudaErrorStreamCaptureInvalidated;
    capture_item(*found, std::move(item));
    return cudaSuccess;
}

cudaError_t queue(cudaStream_t stream, const char *name, std::function<bool()> work)
{
    Item item = {};
    item.name = name;
    item.work = std::move(work);
    return queue_item(stream, std::move(item));
}

void run_on_grid(const std::function<void()> &run)
{
    std::lock_guard<std::mutex> one(engine().grid);
    run();
}

uint64_t count_launch()
{
    Engine &e = engine();
    Lock lock(e.mutex);
    return ++e.launches;
}

cudaError_t synchronize(cudaStream_t stream)
{
    Engine &e = engine();
    Mark mark;
    {
        Lock lock(e.mutex);
        StreamPointer found = stream_of(e, stream);
        if (!found)
            return cudaErrorInvalidResourceHandle;
        if (found->capture) {
            invalidate_of(*found);
            return cudaErrorStreamCaptureUnsupported;
        }
        mark = {found, found->queued};
    }
    if (is_unsafe_now())
        return cudaErrorStreamCaptureUnsupported;
    wait_for(mark);
    return sticky();
}

cudaError_t synchronize_device(int device)
{
    Engine &e = engine();
    std::vector<Mark> marks;
    if (is_unsafe_now())
        return cudaErrorStreamCaptureUnsupported;
    {
        Lock lock(e.mutex);
        for (const StreamPointer &stream : e.streams)
            if (stream->device == device)
                marks.push_back({stream, stream->queued});
    }
    for (const Mark &mark : marks)
        wait_for(mark);
    return sticky();
}

} // namespace emulation

using namespace emulation;

/* ---- streams ---- */

extern "C" cudaError_t cudaStreamCreateWithFlags(cudaStream_t *ret_stream, unsigned int flags)
{
    Engine &e = engine();
    if (!ret_stream || (flags & ~(unsigned)cudaStreamNonBlocking))
        return result(cudaErrorInvalidValue);
    if (sticky() != cudaSuccess)
        return result(sticky());
    Lock lock(e.mutex);
    Handle *handle = new Handle{std::make_shared<Stream>()};
    handle->stream->device = device();
    handle->stream->is_blocking = !(flags & cudaStreamNonBlocking);
    sweep(e);
    e.streams.insert(handle->stream);
    handles.insert(handle);
    *ret_stream = (cudaStream_t)(void *)handle;
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamCreate(cudaStream_t *ret_stream)
{
    return cudaStreamCreateWithFlags(ret_stream, cudaStreamDefault);
}

extern "C" cudaError_t cudaStreamCreateWithPriority(cudaStream_t *ret_stream, unsigned int flags,
                                                    int priority)
{
    (void)priority;
    return cudaStreamCreateWithFlags(ret_stream, flags);
}

/* Returns at once; what is queued is done all the same. */
extern "C" cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    Engine &e = engine();
    Lock lock(e.mutex);
    Handle *handle = (Handle *)(void *)stream;
    if (!stream || !handles.count(handle))
        return result(cudaErrorInvalidResourceHandle);
    if (handle->stream->capture) {
        handle->stream->capture->is_invalid = true;
        return result(cudaErrorStreamCaptureUnsupported);
    }
    handles.erase(handle);
    delete handle;
    sweep(e);
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    return result(synchronize(stream));
}

extern "C" cudaError_t cudaDeviceSynchronize(void)
{
    return result(synchronize_device(device()));
}

/* Not ready more often than need be: asking makes nothing faster, but for a little. */
static cudaError_t look(const Mark &mark)
{
    Engine &e = engine();
    Touch touch;
    Lock lock(e.mutex);
    if (is_reached(mark))
        return sticky();
    if (draw(e) % 4 == 0)
        step(e, lock, mark.stream, 1 + (unsigned)(draw(e) % 16));
    return sticky() != cudaSuccess ? sticky() : cudaErrorNotReady;
}

static bool is_reached_now(const Mark &mark)
{
    Lock lock(engine().mutex);
    return is_reached(mark);
}

extern "C" cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    Engine &e = engine();
    Mark mark;
    {
        Lock lock(e.mutex);
        StreamPointer found = stream_of(e, stream);
        if (!found)
            return result(cudaErrorInvalidResourceHandle);
        mark = {found, found->queued};
        invalidate_of(*found);
        if (found->capture)
            return result(cudaErrorStreamCaptureUnsupported);
    }
    if (is_unsafe_now())
        return result(cudaErrorStreamCaptureUnsupported);
    return is_reached_now(mark) ? result(sticky()) : result(look(mark));
}

extern "C" cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event,
                                           unsigned int flags)
{
    Engine &e = engine();
    Event *of = (Event *)(void *)event;
    (void)flags;
    Lock lock(e.mutex);
    StreamPointer found = stream_of(e, stream);
    if (!found || !e.events.count(of))
        return result(cudaErrorInvalidResourceHandle);
    if (of->capture) {
        std::shared_ptr<Capture> capture;
        for (const auto &c : e.captures)
            if (c->id == of->capture)
                capture = c;
        if (!capture || (found->capture && found->capture != capture))
            return result(cudaErrorStreamCaptureIsolation);
        if (!found->capture) { /* forks */
            found->capture = capture;
            capture->joined.insert(found.get());
            capture->unjoined.insert(found.get());
        } else if (found.get() == capture->origin) { /* joins */
            capture->unjoined.erase(of->mark.stream.get());
        }
        return cudaSuccess;
    }
    if (found->capture) {
        if (of->mark.stream && !(flags & cudaEventWaitExternal)) {
            found->capture->is_invalid = true;
            return result(cudaErrorStreamCaptureIsolation);
        }
        return cudaSuccess;
    }
    if (is_reached(of->mark))
        return cudaSuccess;
    Item item = {};
    item.name = "wait";
    item.after.push_back(of->mark);
    push(e, found, std::move(item));
    return cudaSuccess;
}

extern "C" cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data)
{
    if (!function)
        return result(cudaErrorInvalidValue);
    return result(queue(stream, "host function", [=] {
        in_host_function = true;
        function(data);
        in_host_function = false;
        return true;
    }));
}

/* ---- events ---- */

extern "C" cudaError_t cudaEventCreateWithFlags(cudaEvent_t *ret_event, unsigned int flags)
{
    Engine &e = engine();
    if (!ret_event)
        return result(cudaErrorInvalidValue);
    Lock lock(e.mutex);
    Event *event = new Event;
    event->flags = flags;
    event->device = device();
    e.events.insert(event);
    *ret_event = (cudaEvent_t)(void *)event;
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventCreate(cudaEvent_t *ret_event)
{
    return cudaEventCreateWithFlags(ret_event, cudaEventDefault);
}

extern "C" cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    Engine &e = engine();
    Event *of = (Event *)(void *)event;
    Lock lock(e.mutex);
    if (!e.events.erase(of))
        return result(cudaErrorInvalidResourceHandle);
    delete of;
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream,
                                                unsigned int flags)
{
    Engine &e = engine();
    Event *of = (Event *)(void *)event;
    Lock lock(e.mutex);
    StreamPointer found = stream_of(e, stream);
    if (!found || !e.events.count(of) || of->device != found->device)
        return result(cudaErrorInvalidResourceHandle);
    std::shared_ptr<int64_t> time_ns = of->time_ns;
    Item item = {};
    item.name = "event";
    item.work = [time_ns] {
        *time_ns = now_ns();
        return true;
    };
    if (!found->capture) {
        of->capture = 0;
        push(e, found, std::move(item));
        of->mark = {found, found->queued};
    } else if (flags & cudaEventRecordExternal) {
        item.external = of;
        capture_item(*found, std::move(item));
    } else {
        of->capture = found->capture->id;
        of->mark = {found, 0};
    }
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

/* Its mark; an error for an event that a capture recorded, or that is none. */
static cudaError_t mark_of(cudaEvent_t event, Mark *ret_mark)
{
    Engine &e = engine();
    Event *of = (Event *)(void *)event;
    if (is_unsafe_now())
        return cudaErrorStreamCaptureUnsupported;
    Lock lock(e.mutex);
    if (!e.events.count(of))
        return cudaErrorInvalidResourceHandle;
    if (of->capture)
        return cudaErrorCapturedEvent;
    *ret_mark = of->mark;
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventQuery(cudaEvent_t event)
{
    Mark mark;
    cudaError_t found = mark_of(event, &mark);
    if (found != cudaSuccess)
        return result(found);
    return is_reached_now(mark) ? result(sticky()) : result(look(mark));
}

extern "C" cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    Mark mark;
    cudaError_t found = mark_of(event, &mark);
    if (found != cudaSuccess)
        return result(found);
    if (!is_reached_now(mark))
        wait_for(mark);
    return result(sticky());
}

extern "C" cudaError_t cudaEventElapsedTime(float *ret_ms, cudaEvent_t start, cudaEvent_t end)
{
    Event *first = (Event *)(void *)start, *last = (Event *)(void *)end;
    Engine &e = engine();
    Lock lock(e.mutex);
    if (!ret_ms || !e.events.count(first) || !e.events.count(last) || !first->mark.stream ||
        !last->mark.stream || ((first->flags | last->flags) & cudaEventDisableTiming))
        return result(cudaErrorInvalidResourceHandle);
    if (!is_reached(first->mark) || !is_reached(last->mark))
        return result(cudaErrorNotReady);
    *ret_ms = (float)((double)(*last->time_ns - *first->time_ns) / 1e6);
    return cudaSuccess;
}

/* ---- graphs ---- */

extern "C" cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    Engine &e = engine();
    Lock lock(e.mutex);
    if (!stream || stream == cudaStreamLegacy)
        return result(cudaErrorStreamCaptureUnsupported);
    StreamPointer found = stream_of(e, stream);
    if (!found || found->capture)
        return result(found ? cudaErrorIllegalState : cudaErrorInvalidResourceHandle);
    found->capture = std::make_shared<Capture>();
    found->capture->id = ++e.captures_made;
    found->capture->origin = found.get();
    found->capture->mode = mode;
    found->capture->thread = this_thread();
    found->capture->joined.insert(found.get());
    e.captures.insert(found->capture);
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *ret_graph)
{
    Engine &e = engine();
    Lock lock(e.mutex);
    StreamPointer found = stream_of(e, stream);
    if (!found || !ret_graph || !found->capture)
        return result(found ? cudaErrorIllegalState : cudaErrorInvalidResourceHandle);
    std::shared_ptr<Capture> capture = found->capture;
    if (capture->origin != found.get())
        return result(cudaErrorStreamCaptureUnmatched);
    if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != this_thread())
        return result(cudaErrorStreamCaptureWrongThread);
    for (const StreamPointer &other : e.streams)
        if (other->capture == capture)
            other->capture = nullptr;
    found->capture = nullptr;
    e.captures.erase(capture);
    *ret_graph = nullptr;
    if (capture->is_invalid)
        return result(cudaErrorStreamCaptureInvalidated);
    if (!capture->unjoined.empty())
        return result(cudaErrorStreamCaptureUnjoined);
    Graph *graph = new Graph;
    graph->items = std::move(capture->items);
    e.graphs.insert(graph);
    *ret_graph = (cudaGraph_t)(void *)graph;
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamIsCapturing(cudaStream_t stream,
                                             enum cudaStreamCaptureStatus *ret_status)
{
    Engine &e = engine();
    Lock lock(e.mutex);
    StreamPointer found = stream_of(e, stream);
    if (!found || !ret_status)
        return result(found ? cudaErrorInvalidValue : cudaErrorInvalidResourceHandle);
    *ret_status = !found->capture              ? cudaStreamCaptureStatusNone
                  : found->capture->is_invalid ? cudaStreamCaptureStatusInvalidated
                                               : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

static Graph *graph_of(Engine &e, void *handle)
{
    Graph *graph = (Graph *)handle;
    return e.graphs.count(graph) ? graph : nullptr;
}

extern "C" cudaError_t cudaGraphInstantiate(cudaGraphExec_t *ret_exec, cudaGraph_t graph,
                                            unsigned long long flags)
{
    Engine &e = engine();
    Lock lock(e.mutex);
    Graph *of = graph_of(e, graph);
    if (!of || !ret_exec || (flags & ~(unsigned long long)cudaGraphInstantiateFlagUpload))
        return result(cudaErrorInvalidValue);
    Graph *exec = new Graph(*of);
    e.graphs.insert(exec);
    *ret_exec = (cudaGraphExec_t)(void *)exec;
    return cudaSuccess;
}

extern "C" cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream)
{
    Engine &e = engine();
    Lock lock(e.mutex);
    (void)stream;
    return result(graph_of(e, exec) ? cudaSuccess : cudaErrorInvalidValue);
}

/* A graph does not overtake itself. */
extern "C" cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    Engine &e = engine();
    Lock lock(e.mutex);
    Graph *of = graph_of(e, exec);
    StreamPointer found = stream_of(e, stream);
    if (!of || !found)
        return result(of ? cudaErrorInvalidResourceHandle : cudaErrorInvalidValue);
    if (sticky() != cudaSuccess)
        return result(sticky());
    if (found->capture) {
        found->capture->is_invalid = true;
        return result(cudaErrorStreamCaptureUnsupported);
    }
    Mark last = of->last;
    for (size_t i = 0; i < of->items.size(); i++) {
        Item item = of->items[i];
        if (i == 0 && last.stream)
            item.after.push_back(last);
        push(e, found, std::move(item));
    }
    of->last = {found, found->queued};
    return cudaSuccess;
}

static cudaError_t graph_destroy(void *handle)
{
    Engine &e = engine();
    Lock lock(e.mutex);
    Graph *of = graph_of(e, handle);
    if (!of)
        return result(cudaErrorInvalidValue);
    e.graphs.erase(of);
    delete of;
    return cudaSuccess;
}

extern "C" cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    return graph_destroy(graph);
}

extern "C" cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    return graph_destroy(exec);
}

extern "C" cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes,
                                         size_t *ret_count)
{
    Engine &e = engine();
    Lock lock(e.mutex);
    Graph *of = graph_of(e, graph);
    if (!of || !ret_count || nodes)
        return result(cudaErrorInvalidValue);
    *ret_count = of->items.size();
    return cudaSuccess;
}
