/*
 * Whether cuBLASLt multiplies the e4m3 weights of a model: it is asked for each of their shapes
 * when all are packed, and if it lacks one, own kernels make all such products: one way a model,
 * which its fingerprint says.
 */
#include "common/base/log.h"
#include "common/kernels/cuda/device_ops.h"
#include "common/kernels/cuda/product.h"

void bt_cuda_f8_note(struct bt_cuda_device *device, uint32_t outs, uint32_t pitch)
{
    struct bt_cuda_f8 *f8 = &device->f8;
    uint32_t at = 0;
    pthread_mutex_lock(&f8->mutex);
    while (at < f8->count && (f8->shapes[at].outs != outs || f8->shapes[at].pitch != pitch))
        at++;
    if (at == f8->count && at < BT_CUDA_F8_SHAPES) {
        f8->shapes[at].outs = outs;
        f8->shapes[at].pitch = pitch;
        f8->count++;
    }
    pthread_mutex_unlock(&f8->mutex);
}

static bool library_has(struct bt_cuda_device *device, cublasLtHandle_t cublas, const void *scales)
{
    const struct bt_cuda_product_scales both = {scales, scales};
    for (uint32_t i = 0; i < device->f8.count; i++) {
        uint32_t outs = device->f8.shapes[i].outs, pitch = device->f8.shapes[i].pitch;
        if (!bt_cuda_f8_shape_is_fine(outs) ||
            (bt_cuda_product_is_there(cublas, outs, pitch, BT_F32, &both) &&
             bt_cuda_product_is_there(cublas, outs, pitch, BT_BF16, &both)))
            continue;
        bt_log_warn(0,
                    "%s: cuBLASLt %zu has no product for e4m3 weights of %u x %u (that of CUDA "
                    "12.9 and later has them on sm_90): own kernels make all of them, slower, and "
                    "with other bits",
                    device->base.name, cublasLtGetVersion(), outs, pitch);
        return false;
    }
    return true;
}

static enum bt_cuda_f8_way choose(struct bt_cuda_device *device)
{
    cublasLtHandle_t cublas = NULL;
    void *scales = NULL;
    struct bt_error error;
    enum bt_cuda_f8_way way = BT_CUDA_F8_OWN;
    if (device->arch != 90 || bt_cuda_alloc(device, 256, &error, &scales) != BT_OK)
        return way;
    if (cublasLtCreate(&cublas) == CUBLAS_STATUS_SUCCESS) {
        way = library_has(device, cublas, scales) ? BT_CUDA_F8_LIBRARY : BT_CUDA_F8_OWN;
        (void)cublasLtDestroy(cublas);
    }
    bt_device_free(&device->base, scales);
    return way;
}

bool bt_cuda_f8_is_own(struct bt_device *base)
{
    struct bt_cuda_device *device = (struct bt_cuda_device *)base;
    pthread_mutex_lock(&device->f8.mutex);
    enum bt_cuda_f8_way way = __atomic_load_n(&device->f8.way, __ATOMIC_RELAXED);
    if (way == BT_CUDA_F8_UNKNOWN && device->f8.count > 0) {
        way = choose(device);
        __atomic_store_n(&device->f8.way, way, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&device->f8.mutex);
    return way == BT_CUDA_F8_OWN;
}
