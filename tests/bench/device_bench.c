#include "tests/bench/device_bench.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/kernels/cuda/module.h"

#define ROUNDS   5
#define ROUND_NS (20 * BT_NS_PER_MS)
#define TOGETHER 16 /* queued before somebody looks at the clock */
#define FILLED   65536

int device_open(const char *program, const char *name, const char *kernels, uint32_t rank,
                struct bt_device **ret_device)
{
    struct bt_error error = {0};
    struct bt_device *device = NULL;
    enum bt_status status = bt_device_open_for_rank(name, kernels, rank, &error, &device);
    if (status == BT_OK)
        status = bt_device_enter(device, &error);
    if (status == BT_OK) {
        *ret_device = device;
        return 0;
    }
    bt_device_close(device);
    fprintf(stderr, "%s: %s\n", program, error.text);
    return status == BT_ERR_UNSUPPORTED        ? DEVICE_SKIPPED
           : status == BT_ERR_INVALID_ARGUMENT ? 2
                                               : 1;
}

uint32_t device_count(void)
{
    const struct bt_cuda_module *module = NULL;
    struct bt_error error;
    uint32_t count = 0;
    device_must(bt_cuda_module_load(&error, &module), &error);
    device_must(module->device_count(&error, &count), &error);
    return count;
}

const char *device_suffix(const struct bt_device *device)
{
    return device && device->memory == BT_MEMORY_CUDA ? "_cuda" : "";
}

void device_must(enum bt_status status, const struct bt_error *error)
{
    if (status == BT_OK)
        return;
    fflush(stdout);
    fprintf(stderr, "device: %s\n", error->text);
    exit(1);
}

void *device_take(struct bt_device *device, size_t bytes)
{
    struct bt_error error;
    void *memory = NULL;
    device_must(bt_device_alloc(device, bytes, &error, &memory), &error);
    return memory;
}

void device_wait(struct bt_device *device, struct bt_stream *stream)
{
    struct bt_error error;
    device_must(bt_device_synchronize(device, stream, &error), &error);
}

float device_filler(size_t i)
{
    return (float)(bt_random_u64(1, i % FILLED, 1) % 2001) / 1000.0f - 1.0f;
}

void device_fill(struct bt_device *device, struct bt_stream *stream, float *floats, size_t count)
{
    struct bt_error error;
    void *pinned = NULL;
    size_t some = count < FILLED ? count : FILLED;
    device_must(bt_device_alloc_host(device, some * sizeof(float), &error, &pinned), &error);
    for (size_t i = 0; i < some; i++)
        ((float *)pinned)[i] = device_filler(i);
    for (size_t at = 0; at < count; at += some)
        bt_device_copy(device, stream, floats + at, pinned,
                       (count - at < some ? count - at : some) * sizeof(float));
    device_wait(device, stream);
    bt_device_free_host(device, pinned);
}

double device_seconds(struct bt_device *device, struct bt_stream *stream, bool quick,
                      device_work_fn *work, void *context)
{
    double best = 1e30;
    work(context);
    device_wait(device, stream);
    for (int round = 0; round < (quick ? 1 : ROUNDS); round++) {
        int64_t start_ns = bt_clock_now_ns(), now_ns = start_ns;
        uint32_t count = 0;
        do {
            for (int i = 0; i < (quick ? 1 : TOGETHER); i++, count++)
                work(context);
            device_wait(device, stream);
            now_ns = bt_clock_now_ns();
        } while (!quick && now_ns - start_ns < ROUND_NS);
        double each = (double)(now_ns - start_ns) / 1e9 / count;
        best = each < best ? each : best;
    }
    return best;
}

/* ---- rates ---- */

struct copying {
    struct bt_device *device;
    struct bt_stream *stream;
    void *to;
    const void *from;
    size_t bytes;
};

static void copy_once(void *context)
{
    const struct copying *c = context;
    bt_device_copy(c->device, c->stream, c->to, c->from, c->bytes);
}

double device_copy_rate(struct bt_device *device, struct bt_stream *stream, bool quick, void *to,
                        const void *from, size_t bytes)
{
    struct copying copying = {device, stream, to, from, bytes};
    return (double)bytes / device_seconds(device, stream, quick, copy_once, &copying);
}

struct product {
    const struct bt_kernels *k;
    struct bt_stream *stream;
    const float *x;
    struct bt_linear linear;
    uint32_t rows;
};

static void multiply_once(void *context)
{
    const struct product *p = context;
    p->k->linear(p->stream, p->x, p->rows, &p->linear, 1);
}

/* Packed; `packed_memory` is the caller's to give back. Values of about 0.01. */
static struct bt_matrix square_weight(struct bt_device *device, struct bt_stream *stream,
                                      uint32_t side, void **ret_memory)
{
    const struct bt_mla_shape mla = {0};
    size_t bytes = (size_t)side * side * 2;
    unsigned char *data = malloc(bytes);
    struct bt_matrix source = {.data = data, .rows = side, .cols = side, .dtype = BT_BF16}, packed;
    struct bt_error error;
    if (!data)
        device_must(bt_error_set(&error, BT_ERR_NO_MEMORY, "no memory for %zu bytes", bytes),
                    &error);
    for (size_t i = 0; i < bytes; i++)
        data[i] = i % 2 ? 0x3c : (unsigned char)(i * 37);
    *ret_memory = device_take(device, device->kernels->packed_bytes(&source, BT_USE_LINEAR, &mla));
    device->kernels->pack(stream, &source, BT_USE_LINEAR, &mla, *ret_memory, &packed);
    device_wait(device, stream);
    free(data);
    return packed;
}

struct device_rates device_rates_measure(struct bt_device *device, bool quick)
{
    uint32_t side = quick ? 64 : 8192;
    size_t floats = (size_t)side * side, bytes = floats * sizeof(float);
    const struct bt_stream_limits limits = {.max_rows = side, .max_cols = side, .hidden = side};
    struct bt_stream *stream = NULL;
    struct bt_error error;
    struct device_rates rates;
    void *memory;
    device_must(bt_device_stream_create(device, &limits, NULL, &error, &stream), &error);
    float *x = device_take(device, bytes), *y = device_take(device, bytes);
    device_fill(device, stream, x, floats);
    rates.memory_bytes = 2 * device_copy_rate(device, stream, quick, y, x, bytes);
    struct bt_matrix weight = square_weight(device, stream, side, &memory);
    struct product product = {device->kernels, stream, x, {&weight, y}, side};
    rates.bf16_ops =
        2.0 * side * side * side / device_seconds(device, stream, quick, multiply_once, &product);
    bt_device_free(device, memory);
    bt_device_free(device, y);
    bt_device_free(device, x);
    bt_device_stream_destroy(device, stream);
    return rates;
}
