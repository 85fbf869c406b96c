/*
 * The inside of a stream on a GPU. Host code of this backend alone.
 *
 * An operation divides the scratch memory anew, as on CPUs: it is sized at creation to the largest
 * need of any operation within the limits (each file of operations says its own, see table.h).
 */
#ifndef BATON_COMMON_KERNELS_CUDA_STREAM_H
#define BATON_COMMON_KERNELS_CUDA_STREAM_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <pthread.h>

#include "common/kernels/cuda/rows.h"
#include "common/kernels/device.h"
#include "common/kernels/stream.h"

struct bt_cuda_staging;  /* pack.c */
struct bt_cuda_products; /* linear.c: what cuBLASLt was asked before, by shape */

/* How e4m3 weights are multiplied: f8_products.c. */
enum bt_cuda_f8_way { BT_CUDA_F8_UNKNOWN, BT_CUDA_F8_LIBRARY, BT_CUDA_F8_OWN };

#define BT_CUDA_F8_SHAPES 64 /* of a model; more are not asked for */

struct bt_cuda_f8 {
    pthread_mutex_t mutex;
    enum bt_cuda_f8_way way; /* atomic */
    uint32_t count;
    struct {
        uint32_t outs, pitch;
    } shapes[BT_CUDA_F8_SHAPES];
};

struct bt_cuda_device {
    struct bt_device base;
    int ordinal;
    int arch;                   /* 80, 90, 100 … */
    int multiprocessors;        /* for grids that stay */
    size_t shared_bytes;        /* a block may have */
    size_t memory_bytes;        /* all of it */
    uint64_t waits;             /* atomic */
    cudaStream_t memory_stream; /* that fills fresh memory with zeros */
    struct bt_cuda_f8 f8;
};

struct bt_cuda_stream {
    struct bt_stream base; /* limits; team and arena NULL */
    struct bt_cuda_device *device;
    cudaStream_t stream;
    cudaError_t fault; /* the first; kept */
    bool capturing;
    unsigned char *scratch; /* of the device, 256-byte aligned */
    size_t scratch_bytes, used_bytes;
    struct bt_cuda_rows_memory *rows; /* rows.c: what was staged */
    cublasLtHandle_t cublas;
    void *workspace; /* of cuBLASLt, BT_CUDA_WORKSPACE bytes */
    struct bt_cuda_products *products;
    struct bt_cuda_staging *staging; /* NULL: nothing was packed yet */
};

/* What ends something has ended it, whatever it says: that is no error of what is called next. */
static inline void bt_cuda_let_go(cudaError_t result)
{
    if (result != cudaSuccess)
        (void)cudaGetLastError();
}

#define BT_CUDA_WORKSPACE ((size_t)32 << 20)

static inline struct bt_cuda_stream *bt_cuda_stream(struct bt_stream *stream)
{
    return (struct bt_cuda_stream *)stream;
}

/* Keeps a fault. True: there is none, now or before. */
bool bt_cuda_ok(struct bt_cuda_stream *stream, cudaError_t result);

/* An operation asks this first, and does nothing on a stream at fault: what the device has of the
 * batch may be that of another one, whose pages these are no more. */
static inline bool bt_cuda_is_fine(struct bt_cuda_stream *stream)
{
    return bt_cuda_ok(stream, cudaGetLastError()); /* that of a launch */
}

/* An operation calls this first: all of the scratch is free again. */
static inline void bt_cuda_scratch_reset(struct bt_cuda_stream *stream)
{
    stream->used_bytes = 0;
}
/* Aligned to 256, contents undefined, the operation's own. */
static inline void *bt_cuda_scratch_take(struct bt_cuda_stream *stream, size_t bytes)
{
    bytes = (bytes + 255) / 256 * 256;
    BT_ASSERT(bytes <= stream->scratch_bytes - stream->used_bytes);
    void *block = stream->scratch + stream->used_bytes;
    stream->used_bytes += bytes;
    return block;
}

#endif
