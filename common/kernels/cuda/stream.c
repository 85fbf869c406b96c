#include <stdio.h>
#include <stdlib.h>

#include "common/kernels/cuda/device_ops.h"
#include "common/kernels/cuda/grouped_gemm.h"
#include "common/kernels/cuda/pack.h"
#include "common/kernels/cuda/table.h"

/* ---- faults ---- */

bool bt_cuda_ok(struct bt_cuda_stream *stream, cudaError_t result)
{
    if (stream->fault == cudaSuccess)
        stream->fault = result;
    return stream->fault == cudaSuccess;
}

static enum bt_status tell_fault(const struct bt_cuda_device *device, cudaError_t fault,
                                 struct bt_error *error)
{
    if (fault == cudaSuccess)
        return BT_OK;
    return bt_error_set(error, BT_ERR_INTERNAL, "%s: %s", device->base.name,
                        cudaGetErrorString(fault));
}

/* Of a call that is no stream's; the runtime's last error is told with it. */
static enum bt_status told(const struct bt_device *device, cudaError_t result, const char *what,
                           struct bt_error *error)
{
    (void)cudaGetLastError();
    return bt_error_set(error, BT_ERR_INTERNAL, "%s: %s: %s", device->name, what,
                        cudaGetErrorString(result));
}

/* ---- creation ---- */

/* The most that any operation takes within the limits. */
static size_t scratch_bytes(const struct bt_cuda_stream *stream)
{
    size_t (*const needs[])(const struct bt_cuda_stream *) = {
        bt_cuda_row_ops_scratch,     bt_cuda_linear_scratch,     bt_cuda_mlp_scratch,
        bt_cuda_mla_prefill_scratch, bt_cuda_mla_decode_scratch, bt_cuda_route_scratch,
        bt_cuda_moe_scratch,         bt_cuda_draw_scratch,
    };
    size_t most = 256;
    for (size_t i = 0; i < sizeof(needs) / sizeof(needs[0]); i++) {
        size_t bytes = (needs[i](stream) + 255) / 256 * 256;
        most = bytes > most ? bytes : most;
    }
    return most;
}

static enum bt_status no_cublas(const struct bt_cuda_device *device, cublasStatus_t status,
                                struct bt_error *error)
{
    (void)cudaGetLastError(); /* whatever it met */
    return bt_error_set(
        error, status == CUBLAS_STATUS_ALLOC_FAILED ? BT_ERR_NO_MEMORY : BT_ERR_INTERNAL,
        "%s: cuBLASLt does not start (its status %d)", device->base.name, (int)status);
}

/* Why there is no room for lists of rows the runtime knows, or else there was none of the host. */
static enum bt_status no_rows(struct bt_cuda_stream *stream, struct bt_error *error)
{
    const struct bt_stream_limits *limits = &stream->base.limits;
    cudaError_t result = cudaGetLastError();
    char what[128];
    snprintf(what, sizeof(what), "lists of %u rows and %u page numbers", limits->max_rows,
             limits->max_page_numbers);
    return bt_cuda_no_memory(stream->device, what,
                             result == cudaSuccess ? cudaErrorMemoryAllocation : result, error);
}

/* What operations need beside the stream: none where the limits let none run, for copies alone. */
static enum bt_status make_scratch(struct bt_cuda_stream *stream, struct bt_error *error)
{
    struct bt_device *device = &stream->device->base;
    cublasStatus_t started = cublasLtCreate(&stream->cublas);
    if (started != CUBLAS_STATUS_SUCCESS)
        return no_cublas(stream->device, started, error);
    enum bt_status status =
        bt_cuda_alloc(stream->device, BT_CUDA_WORKSPACE, error, &stream->workspace);
    if (status != BT_OK) {
        bt_error_prefix(error, "workspace of cuBLASLt: ");
        return status;
    }
    if (!bt_cuda_products_create(stream))
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for a stream", device->name);
    if (!bt_cuda_rows_create(stream))
        return no_rows(stream, error);
    stream->scratch_bytes = scratch_bytes(stream);
    void *scratch = NULL;
    status = bt_cuda_alloc(stream->device, stream->scratch_bytes, error, &scratch);
    stream->scratch = scratch;
    if (status != BT_OK)
        bt_error_prefix(error, "scratch of kernels, for %u rows: ", stream->base.limits.max_rows);
    return status;
}

static enum bt_status make_stream(struct bt_cuda_stream *stream, struct bt_error *error)
{
    struct bt_device *device = &stream->device->base;
    cudaError_t result = cudaStreamCreateWithFlags(&stream->stream, cudaStreamNonBlocking);
    if (result != cudaSuccess)
        return told(device, result, "no stream", error);
    return stream->base.limits.max_rows > 0 ? make_scratch(stream, error) : BT_OK;
}

/* What kernels are made for, beyond what no stream is. */
static enum bt_status check_limits(const struct bt_device *device,
                                   const struct bt_stream_limits *limits, struct bt_error *error)
{
    enum bt_status status = bt_stream_check_limits(limits, error);
    if (status != BT_OK || limits->experts <= BT_CUDA_MAX_GROUPS)
        return status;
    return bt_error_set(error, BT_ERR_UNSUPPORTED,
                        "%s: a layer has %u experts, and the kernels of GPUs take %u at most: use "
                        "--device cpu",
                        device->name, limits->experts, BT_CUDA_MAX_GROUPS);
}

enum bt_status bt_cuda_stream_create(struct bt_device *device,
                                     const struct bt_stream_limits *limits, struct bt_team *team,
                                     struct bt_error *error, struct bt_stream **ret_stream)
{
    enum bt_status status = check_limits(device, limits, error);
    if (status == BT_OK)
        status = bt_device_enter(device, error);
    if (status != BT_OK)
        return status;
    struct bt_cuda_stream *stream = calloc(1, sizeof(*stream));
    if (!stream)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for a stream", device->name);
    stream->base.limits = *limits;
    stream->base.team = team;
    stream->device = (struct bt_cuda_device *)device;
    status = make_stream(stream, error);
    if (status != BT_OK) {
        bt_cuda_stream_destroy(&stream->base);
        return status;
    }
    *ret_stream = &stream->base;
    return BT_OK;
}

void bt_cuda_stream_destroy(struct bt_stream *base)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    struct bt_device *device = &stream->device->base;
    (void)bt_device_enter(device, NULL);
    if (stream->stream) {
        bt_cuda_count_wait(stream->device);
        bt_cuda_let_go(cudaStreamSynchronize(stream->stream));
    }
    bt_cuda_staging_destroy(stream);
    bt_cuda_rows_destroy(stream);
    bt_cuda_products_destroy(stream);
    bt_device_free(device, stream->workspace);
    bt_device_free(device, stream->scratch);
    if (stream->cublas)
        (void)cublasLtDestroy(stream->cublas);
    if (stream->stream)
        bt_cuda_let_go(cudaStreamDestroy(stream->stream));
    free(stream);
}

/* ---- work ---- */

void bt_cuda_copy(struct bt_stream *base, void *to, const void *from, size_t bytes)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    if (bytes > 0)
        bt_cuda_ok(stream, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream->stream));
}

enum bt_status bt_cuda_synchronize(struct bt_stream *base, struct bt_error *error)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    bt_cuda_count_wait(stream->device);
    bt_cuda_ok(stream, cudaGetLastError()); /* of a launch */
    bt_cuda_ok(stream, cudaStreamSynchronize(stream->stream));
    return tell_fault(stream->device, stream->fault, error);
}

/* ---- events ---- */

struct bt_event {
    struct bt_cuda_device *device;
    cudaEvent_t event;
    cudaError_t fault; /* of the stream, when it was recorded */
};

enum bt_status bt_cuda_event_create(struct bt_device *device, struct bt_error *error,
                                    struct bt_event **ret_event)
{
    enum bt_status status = bt_device_enter(device, error);
    if (status != BT_OK)
        return status;
    struct bt_event *event = calloc(1, sizeof(*event));
    if (!event)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for an event", device->name);
    event->device = (struct bt_cuda_device *)device;
    cudaError_t result = cudaEventCreateWithFlags(&event->event, cudaEventDisableTiming);
    if (result != cudaSuccess) {
        free(event);
        return told(device, result, "no event", error);
    }
    *ret_event = event;
    return BT_OK;
}

void bt_cuda_event_destroy(struct bt_event *event)
{
    if (!event)
        return;
    bt_cuda_let_go(cudaEventDestroy(event->event));
    free(event);
}

void bt_cuda_event_record(struct bt_event *event, struct bt_stream *base)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    bt_cuda_ok(stream, cudaGetLastError());
    bt_cuda_ok(stream, cudaEventRecord(event->event, stream->stream));
    event->fault = stream->fault;
}

void bt_cuda_event_wait(struct bt_event *event, struct bt_stream *base)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    bt_cuda_ok(stream, event->fault);
    bt_cuda_ok(stream, cudaStreamWaitEvent(stream->stream, event->event, 0));
}

/* One whose stream is at fault is over: who waits for it learns why. */
bool bt_cuda_event_query(struct bt_event *event)
{
    if (event->fault == cudaSuccess)
        event->fault = cudaGetLastError(); /* of a launch: the answer would take its place */
    if (event->fault != cudaSuccess || cudaEventQuery(event->event) != cudaErrorNotReady)
        return true;
    (void)cudaGetLastError(); /* that, too, is kept as this thread's last error */
    return false;
}

enum bt_status bt_cuda_event_synchronize(struct bt_event *event, struct bt_error *error)
{
    bt_cuda_count_wait(event->device);
    cudaError_t result = cudaEventSynchronize(event->event);
    if (event->fault == cudaSuccess)
        event->fault = result;
    return tell_fault(event->device, event->fault, error);
}

/* ---- graphs ---- */

struct bt_graph {
    cudaGraphExec_t exec;
};

/* What other threads do meanwhile (loading experts, moving pages) is no part of it. */
enum bt_status bt_cuda_capture_begin(struct bt_stream *base, struct bt_error *error)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    stream->capturing =
        bt_cuda_is_fine(stream) &&
        bt_cuda_ok(stream,
                   cudaStreamBeginCapture(stream->stream, cudaStreamCaptureModeThreadLocal));
    return tell_fault(stream->device, stream->fault, error);
}

enum bt_status bt_cuda_capture_end(struct bt_stream *base, struct bt_error *error,
                                   struct bt_graph **ret_graph)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    cudaGraph_t graph = NULL;
    struct bt_graph *ours = calloc(1, sizeof(*ours));
    BT_ASSERT(stream->capturing);
    stream->capturing = false;
    bt_cuda_ok(stream, cudaStreamEndCapture(stream->stream, &graph));
    bt_cuda_ok(stream, cudaGetLastError());
    enum bt_status status = tell_fault(stream->device, stream->fault, error);
    if (!ours && status == BT_OK)
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for a graph",
                              stream->device->base.name);
    if (status == BT_OK) {
        bt_cuda_ok(stream, cudaGraphInstantiate(&ours->exec, graph, 0));
        status = tell_fault(stream->device, stream->fault, error);
    }
    if (graph)
        bt_cuda_let_go(cudaGraphDestroy(graph));
    if (status != BT_OK) {
        free(ours);
        return status;
    }
    *ret_graph = ours;
    return BT_OK;
}

void bt_cuda_graph_launch(struct bt_graph *graph, struct bt_stream *base)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    if (bt_cuda_is_fine(stream))
        bt_cuda_ok(stream, cudaGraphLaunch(graph->exec, stream->stream));
}

void bt_cuda_graph_destroy(struct bt_graph *graph)
{
    if (!graph)
        return;
    bt_cuda_let_go(cudaGraphExecDestroy(graph->exec));
    free(graph);
}
