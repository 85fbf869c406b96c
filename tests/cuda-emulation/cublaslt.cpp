/*
 * The stand-in for cuBLASLt: the products that are asked of it, summed up in f32 in ascending order
 * of k, as queued work. It refuses what the real one refuses. As there, the heuristic's choice
 * hangs on all three sizes: it splits k differently for different numbers of columns, so that who
 * asks anew for every batch gets other bits (BATON_EMULATED_HEURISTIC=same: one choice for all).
 * BATON_EMULATED_BLOCK_SCALES=none: a version before 12.9, without products of scaled blocks.
 */
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include <cublasLt.h>

#include "tests/cuda-emulation/runtime.h"

namespace {

struct Layout {
    int32_t type;
    int32_t order;
    uint64_t rows, cols;
    int64_t pitch;
    int32_t batch;
    int32_t unused;
    int64_t distance;
};
static_assert(sizeof(Layout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "fits");

struct Operation {
    int32_t compute, scale_type, pointer_mode;
    int32_t trans_a, trans_b, trans_c;
    uint32_t epilogue;
    int32_t sm_count;
    const float *a_scale, *b_scale, *d_scale;
    int32_t a_mode, b_mode;
    int8_t fast_accumulation;
};
static_assert(sizeof(Operation) <= sizeof(cublasLtMatmulDescOpaque_t), "fits");

struct Preference {
    uint64_t workspace;
    uint32_t reduction_mask;
    uint32_t alignment[4]; /* a, b, c, d */
};
static_assert(sizeof(Preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t), "fits");

constexpr uint64_t algo_magic = UINT64_C(0x6f676c61);

/* What a cublasLtMatmulAlgo_t holds. */
struct Algo {
    uint64_t magic;
    int32_t id, splits, tile, unused;
    int32_t a_type, b_type, d_type, compute;
};
static_assert(sizeof(Algo) <= sizeof(cublasLtMatmulAlgo_t), "fits");

struct Handle {
    uint64_t magic;
};
constexpr uint64_t handle_magic = UINT64_C(0x74736c62);

Layout *layout_of(cublasLtMatrixLayout_t layout)
{
    return (Layout *)(void *)layout;
}

Operation *operation_of(cublasLtMatmulDesc_t desc)
{
    return (Operation *)(void *)desc;
}

size_t element_bytes(int32_t type)
{
    switch (type) {
    case CUDA_R_32F:
        return 4;
    case CUDA_R_16BF:
        return 2;
    case CUDA_R_8F_E4M3:
        return 1;
    default:
        return 0;
    }
}

float from_e4m3(uint8_t value)
{
    int exponent = value >> 3 & 15, part = value & 7;
    if ((value & 0x7f) == 0x7f)
        return NAN;
    float size =
        exponent ? std::ldexp(1.0f + (float)part / 8, exponent - 7) : std::ldexp((float)part, -9);
    return value & 0x80 ? -size : size;
}

struct E4m3Table {
    float of[256];
    E4m3Table()
    {
        for (int i = 0; i < 256; i++)
            of[i] = from_e4m3((uint8_t)i);
    }
};
const E4m3Table e4m3;

float load(const void *data, int32_t type, size_t at)
{
    if (type == CUDA_R_32F)
        return ((const float *)data)[at];
    if (type == CUDA_R_8F_E4M3)
        return e4m3.of[((const uint8_t *)data)[at]];
    uint32_t bits = (uint32_t)((const uint16_t *)data)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

void store(void *data, int32_t type, size_t at, float value)
{
    if (type == CUDA_R_32F) {
        ((float *)data)[at] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    ((uint16_t *)data)[at] = (bits & 0x7fffffffu) > 0x7f800000u
                                 ? (uint16_t)(bits >> 16 | 0x40)
                                 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* ---- the product ---- */

/* One operand: element (outer, k). */
struct Operand {
    const char *data;
    int32_t type;
    size_t outer_step, k_step, batch_step; /* elements */
    size_t outer;
    const float *scales; /* by blocks; else NULL */
    int32_t mode;

    float scale(size_t i, size_t block, size_t blocks) const
    {
        if (mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F)
            return scales[block * outer + i];
        return scales[i / 128 * ((blocks + 3) / 4 * 4) + block];
    }
};

struct Product {
    Operand a, b;
    size_t m, n, k, batch;
    char *d;
    const char *c;
    int32_t d_type;
    size_t d_row, d_col, d_batch, c_row, c_col, c_batch;
    float alpha, beta;
    int splits;
};

constexpr size_t lanes = 64; /* outputs at once */
constexpr size_t columns = 4;

/* acc [columns][lanes] += a [k][lanes] * b [columns][k], k ascending, fused. */
inline __attribute__((always_inline)) void sum_any(const float *a, const float *const *b,
                                                   size_t count, float *acc)
{
    for (size_t k = 0; k < count; k++)
        for (size_t j = 0; j < columns; j++) {
            float factor = b[j][k];
            for (size_t i = 0; i < lanes; i++)
                acc[j * lanes + i] = __builtin_fmaf(a[k * lanes + i], factor, acc[j * lanes + i]);
        }
}

__attribute__((target("avx512f,fma"))) void sum_avx512(const float *a, const float *const *b,
                                                       size_t count, float *acc)
{
    sum_any(a, b, count, acc);
}

__attribute__((target("avx2,fma"))) void sum_avx2(const float *a, const float *const *b,
                                                  size_t count, float *acc)
{
    sum_any(a, b, count, acc);
}

void sum_plain(const float *a, const float *const *b, size_t count, float *acc)
{
    sum_any(a, b, count, acc);
}

typedef void sum_fn(const float *a, const float *const *b, size_t count, float *acc);

sum_fn *best_sum()
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        return sum_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return sum_avx2;
    return sum_plain;
}

/* Runs of k that are summed up on their own, then one after the other. */
size_t run_length(const Product &p)
{
    if (p.a.scales)
        return 128;
    size_t length = (p.k + (size_t)p.splits - 1) / (size_t)p.splits;
    return std::max<size_t>((length + 31) / 32 * 32, 32);
}

void block(const Product &p, const float *a, const std::vector<const float *> &b, size_t first_row,
           size_t first_col, float *total)
{
    static sum_fn *const sum = best_sum();
    size_t length = run_length(p), blocks = (p.k + 127) / 128;
    std::fill(total, total + lanes * columns, 0.0f);
    for (size_t at = 0; at < p.k; at += length) {
        float acc[lanes * columns] = {0};
        const float *from[columns];
        for (size_t j = 0; j < columns; j++)
            from[j] = b[j] + at;
        sum(a + at * lanes, from, std::min(length, p.k - at), acc);
        for (size_t j = 0; j < columns; j++)
            for (size_t i = 0; i < lanes; i++) {
                float part = acc[j * lanes + i];
                if (p.a.scales)
                    part *= p.a.scale(std::min(first_row + i, p.m - 1), at / 128, blocks) *
                            p.b.scale(std::min(first_col + j, p.n - 1), at / 128, blocks);
                total[j * lanes + i] += part;
            }
    }
}

void multiply_batch(const Product &p, size_t batch)
{
    std::vector<float> a(lanes * p.k), b(p.n * p.k);
    const char *a_data = p.a.data + batch * p.a.batch_step * element_bytes(p.a.type);
    const char *b_data = p.b.data + batch * p.b.batch_step * element_bytes(p.b.type);
    for (size_t j = 0; j < p.n; j++)
        for (size_t k = 0; k < p.k; k++)
            b[j * p.k + k] = load(b_data, p.b.type, j * p.b.outer_step + k * p.b.k_step);
    for (size_t row = 0; row < p.m; row += lanes) {
        size_t rows = std::min(lanes, p.m - row);
        std::fill(a.begin(), a.end(), 0.0f);
        for (size_t i = 0; i < rows; i++)
            for (size_t k = 0; k < p.k; k++)
                a[k * lanes + i] =
                    load(a_data, p.a.type, (row + i) * p.a.outer_step + k * p.a.k_step);
        for (size_t col = 0; col < p.n; col += columns) {
            float total[lanes * columns];
            std::vector<const float *> from(columns);
            for (size_t j = 0; j < columns; j++)
                from[j] = &b[std::min(col + j, p.n - 1) * p.k];
            block(p, a.data(), from, row, col, total);
            for (size_t j = 0; j < columns && col + j < p.n; j++)
                for (size_t i = 0; i < rows; i++) {
                    float value = p.alpha * total[j * lanes + i];
                    if (p.beta != 0)
                        value += p.beta * load(p.c, p.d_type,
                                               batch * p.c_batch + (row + i) * p.c_row +
                                                   (col + j) * p.c_col);
                    store(p.d, p.d_type,
                          batch * p.d_batch + (row + i) * p.d_row + (col + j) * p.d_col, value);
                }
        }
    }
}

/* ---- what may be asked ---- */

struct Shape {
    uint64_t m, n, k;
};

bool shape_of(const Operation &o, const Layout &a, const Layout &b, const Layout &d, Shape *ret)
{
    uint64_t a_k = o.trans_a == CUBLAS_OP_N ? a.cols : a.rows;
    uint64_t b_k = o.trans_b == CUBLAS_OP_N ? b.rows : b.cols;
    ret->m = o.trans_a == CUBLAS_OP_N ? a.rows : a.cols;
    ret->n = o.trans_b == CUBLAS_OP_N ? b.cols : b.rows;
    ret->k = a_k;
    return a_k == b_k && d.rows == ret->m && d.cols == ret->n && ret->m > 0 && ret->n > 0 &&
           a_k > 0;
}

bool layout_is_fine(const Layout &l)
{
    uint64_t least = l.order == CUBLASLT_ORDER_COL ? l.rows : l.cols;
    return element_bytes(l.type) && l.pitch >= (int64_t)least && l.batch >= 1 &&
           (l.order == CUBLASLT_ORDER_COL || l.order == CUBLASLT_ORDER_ROW);
}

bool has_blocks(int32_t mode)
{
    return mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F ||
           mode == CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
}

bool has_block_scales()
{
    const char *text = getenv("BATON_EMULATED_BLOCK_SCALES");
    return !text || strcmp(text, "none") != 0;
}

/* Of 8-bit floats: K is the contiguous dimension of both, and everything is a multiple of 16. */
cublasStatus_t check_f8(const Operation &o, const Layout &a, const Layout &b, const Layout &d,
                        const Shape &shape)
{
    int arch = emulation::arch();
    if (arch < 89 || o.trans_a != CUBLAS_OP_T || o.trans_b != CUBLAS_OP_N ||
        a.order != CUBLASLT_ORDER_COL || b.order != CUBLASLT_ORDER_COL ||
        d.order != CUBLASLT_ORDER_COL)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (shape.k % 16 || shape.m % 16 || a.pitch % 16 || b.pitch % 16 ||
        d.pitch * (int64_t)element_bytes(d.type) % 16)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (has_blocks(o.a_mode) != has_blocks(o.b_mode))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    /* scales of blocks are Hopper's alone; both of 128 x 128 are not offered; outputs are of fours,
     * and where the scales are is known before anything is asked */
    if (has_blocks(o.a_mode) &&
        (!has_block_scales() || shape.n % 4 || !o.a_scale || !o.b_scale || arch != 90 ||
         (o.a_mode == CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F &&
          o.b_mode == CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F)))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return o.compute == CUBLAS_COMPUTE_32F ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t check(const Operation *o, const Layout *a, const Layout *b, const Layout *c,
                     const Layout *d, Shape *ret_shape)
{
    if (!o || !a || !b || !c || !d)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!layout_is_fine(*a) || !layout_is_fine(*b) || !layout_is_fine(*c) || !layout_is_fine(*d) ||
        !shape_of(*o, *a, *b, *d, ret_shape) || c->rows != d->rows || c->cols != d->cols ||
        c->order != d->order || a->batch != d->batch || b->batch != d->batch ||
        c->batch != d->batch || (c == d ? false : c->type != d->type))
        return CUBLAS_STATUS_INVALID_VALUE;
    bool is_f32 = o->compute == CUBLAS_COMPUTE_32F || o->compute == CUBLAS_COMPUTE_32F_PEDANTIC;
    if (!is_f32 || o->scale_type != CUDA_R_32F || o->epilogue != CUBLASLT_EPILOGUE_DEFAULT ||
        o->trans_c != CUBLAS_OP_N || o->pointer_mode != CUBLASLT_POINTER_MODE_HOST)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (a->type != b->type || (d->type != CUDA_R_32F && d->type != CUDA_R_16BF) ||
        (a->type == CUDA_R_32F && d->type != CUDA_R_32F))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (a->type == CUDA_R_8F_E4M3)
        return check_f8(*o, *a, *b, *d, *ret_shape);
    return o->a_scale || o->b_scale || o->a_mode || o->b_mode ? CUBLAS_STATUS_NOT_SUPPORTED
                                                              : CUBLAS_STATUS_SUCCESS;
}

bool same_for_all()
{
    static const bool is = [] {
        const char *text = getenv("BATON_EMULATED_HEURISTIC");
        return text && strcmp(text, "same") == 0;
    }();
    return is;
}

Algo choose(const Operation &o, const Layout &a, const Layout &b, const Layout &d,
            const Shape &shape)
{
    Algo algo = {};
    algo.magic = algo_magic;
    algo.id = 66;
    algo.splits = same_for_all() ? 1 : 1 + (int)((shape.n * 7 + shape.m / 64 + shape.k / 64) % 4);
    algo.tile = CUBLASLT_MATMUL_TILE_128x128;
    algo.a_type = a.type;
    algo.b_type = b.type;
    algo.d_type = d.type;
    algo.compute = o.compute;
    return algo;
}

size_t workspace_of(const Algo &algo, const Shape &shape, int32_t batch)
{
    return algo.splits == 1 ? 0 : (size_t)algo.splits * shape.m * shape.n * (size_t)batch * 4;
}

/* Splits that need more than there is are taken back; real heuristics leave such choices out. */
void fit(Algo *algo, const Shape &shape, int32_t batch, uint64_t room)
{
    while (algo->splits > 1 && workspace_of(*algo, shape, batch) > room)
        algo->splits--;
}

/* Bytes that a matrix takes; all of them must be the device's. */
bool is_there(const void *data, const Layout &l)
{
    size_t lines = l.order == CUBLASLT_ORDER_COL ? l.cols : l.rows;
    size_t width = l.order == CUBLASLT_ORDER_COL ? l.rows : l.cols, room = 0;
    size_t bytes =
        ((size_t)(l.batch - 1) * (size_t)l.distance + (lines - 1) * (size_t)l.pitch + width) *
        element_bytes(l.type);
    emulation::Memory kind = emulation::memory_of(data, &room);
    return (kind == emulation::Memory::device || kind == emulation::Memory::managed) &&
           bytes <= room;
}

size_t scale_count(const Layout &l, int32_t mode)
{
    size_t k = l.rows, outer = l.cols, blocks = (k + 127) / 128;
    if (mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F)
        return outer * blocks;
    return has_blocks(mode) ? (outer + 127) / 128 * ((blocks + 3) / 4 * 4) : 1;
}

bool scales_are_there(const float *scales, const Layout &l, int32_t mode)
{
    size_t room = 0;
    return emulation::memory_of(scales, &room) == emulation::Memory::device &&
           room >= scale_count(l, mode) * sizeof(float) && (uintptr_t)scales % 16 == 0;
}

Operand operand(const void *data, const Layout &l, bool is_transposed, uint64_t outer,
                const float *scales, int32_t mode)
{
    bool outer_is_contiguous = (l.order == CUBLASLT_ORDER_COL) != is_transposed;
    Operand o = {};
    o.data = (const char *)data;
    o.type = l.type;
    o.outer_step = outer_is_contiguous ? 1 : (size_t)l.pitch;
    o.k_step = outer_is_contiguous ? (size_t)l.pitch : 1;
    o.batch_step = (size_t)l.distance;
    o.outer = outer;
    o.scales = has_blocks(mode) ? scales : nullptr;
    o.mode = mode;
    return o;
}

/* Scalar scales of the whole tensors are the device's: read when the work is done. */
struct Factors {
    const float *a, *b;
};

template <typename T> cublasStatus_t set(T *to, const void *from, size_t bytes)
{
    if (!from || bytes != sizeof(T))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, from, sizeof(T));
    return CUBLAS_STATUS_SUCCESS;
}

template <typename T> T *zeroed()
{
    return (T *)calloc(1, sizeof(T));
}

} // namespace

/* ---- handles and descriptions ---- */

extern "C" cublasStatus_t cublasLtCreate(cublasLtHandle_t *ret_handle)
{
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    Handle *handle = zeroed<Handle>();
    handle->magic = handle_magic;
    *ret_handle = (cublasLtHandle_t)(void *)handle;
    return CUBLAS_STATUS_SUCCESS;
}

static bool is_handle(cublasLtHandle_t handle)
{
    return handle && ((Handle *)(void *)handle)->magic == handle_magic;
}

extern "C" cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    if (!is_handle(handle))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    ((Handle *)(void *)handle)->magic = 0;
    free((void *)handle);
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" size_t cublasLtGetVersion(void)
{
    return CUBLAS_VERSION;
}

extern "C" const char *cublasLtGetStatusString(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "success";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "the functionality requested is not supported";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "an unsupported value or parameter was passed";
    default:
        return "an error";
    }
}

extern "C" const char *cublasLtGetStatusName(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    default:
        return "CUBLAS_STATUS_INTERNAL_ERROR";
    }
}

extern "C" cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout,
                                                            size_t size, cudaDataType type,
                                                            uint64_t rows, uint64_t cols,
                                                            int64_t pitch)
{
    if (!layout || size < sizeof(Layout))
        return CUBLAS_STATUS_INVALID_VALUE;
    *layout_of(layout) = {type, CUBLASLT_ORDER_COL, rows, cols, pitch, 1, 0, 0};
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *ret_layout,
                                                     cudaDataType type, uint64_t rows,
                                                     uint64_t cols, int64_t pitch)
{
    *ret_layout = zeroed<cublasLtMatrixLayoutOpaque_t>();
    return cublasLtMatrixLayoutInit_internal(*ret_layout, sizeof(cublasLtMatrixLayoutOpaque_t),
                                             type, rows, cols, pitch);
}

extern "C" cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    free(layout);
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                           cublasLtMatrixLayoutAttribute_t name,
                                                           const void *value, size_t bytes)
{
    Layout *l = layout_of(layout);
    if (!l)
        return CUBLAS_STATUS_INVALID_VALUE;
    switch (name) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
        return set(&l->type, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
        return set(&l->order, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
        return set(&l->rows, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
        return set(&l->cols, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_LD:
        return set(&l->pitch, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
        return set(&l->batch, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
        return set(&l->distance, value, bytes);
    default:
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

extern "C" cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t desc, size_t size,
                                                          cublasComputeType_t compute,
                                                          cudaDataType_t scale_type)
{
    if (!desc || size < sizeof(Operation))
        return CUBLAS_STATUS_INVALID_VALUE;
    *operation_of(desc) = {};
    operation_of(desc)->compute = compute;
    operation_of(desc)->scale_type = scale_type;
    operation_of(desc)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *ret_desc,
                                                   cublasComputeType_t compute,
                                                   cudaDataType_t scale_type)
{
    *ret_desc = zeroed<cublasLtMatmulDescOpaque_t>();
    return cublasLtMatmulDescInit_internal(*ret_desc, sizeof(cublasLtMatmulDescOpaque_t), compute,
                                           scale_type);
}

extern "C" cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
    free(desc);
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                                         cublasLtMatmulDescAttributes_t name,
                                                         const void *value, size_t bytes)
{
    Operation *o = operation_of(desc);
    if (!o)
        return CUBLAS_STATUS_INVALID_VALUE;
    switch (name) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
        return set(&o->compute, value, bytes);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
        return set(&o->scale_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
        return set(&o->pointer_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return set(&o->trans_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return set(&o->trans_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSC:
        return set(&o->trans_c, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return set(&o->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET:
        return set(&o->sm_count, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
        return set(&o->a_scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
        return set(&o->b_scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_D_SCALE_POINTER:
        return set(&o->d_scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
        return set(&o->a_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
        return set(&o->b_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM:
        return set(&o->fast_accumulation, value, bytes);
    default:
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

extern "C" cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t pref,
                                                                size_t size)
{
    if (!pref || size < sizeof(Preference))
        return CUBLAS_STATUS_INVALID_VALUE;
    *(Preference *)(void *)pref = {0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *ret_pref)
{
    *ret_pref = zeroed<cublasLtMatmulPreferenceOpaque_t>();
    return cublasLtMatmulPreferenceInit_internal(*ret_pref,
                                                 sizeof(cublasLtMatmulPreferenceOpaque_t));
}

extern "C" cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t pref)
{
    free(pref);
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t
cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t pref,
                                     cublasLtMatmulPreferenceAttributes_t name, const void *value,
                                     size_t bytes)
{
    Preference *p = (Preference *)(void *)pref;
    if (!p)
        return CUBLAS_STATUS_INVALID_VALUE;
    switch (name) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return set(&p->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return set(&p->reduction_mask, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        return set(&p->alignment[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        return set(&p->alignment[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        return set(&p->alignment[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        return set(&p->alignment[3], value, bytes);
    default:
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

/* ---- algorithms ---- */

static void tell(const Algo &algo, const Shape &shape, int32_t batch,
                 cublasLtMatmulHeuristicResult_t *ret)
{
    *ret = {};
    memcpy(&ret->algo, &algo, sizeof(algo));
    ret->workspaceSize = workspace_of(algo, shape, batch);
    ret->state = CUBLAS_STATUS_SUCCESS;
    ret->wavesCount = 1;
}

extern "C" cublasStatus_t
cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                               cublasLtMatrixLayout_t a_layout, cublasLtMatrixLayout_t b_layout,
                               cublasLtMatrixLayout_t c_layout, cublasLtMatrixLayout_t d_layout,
                               cublasLtMatmulPreference_t pref, int requested,
                               cublasLtMatmulHeuristicResult_t results[], int *ret_count)
{
    const Preference *p = (const Preference *)(const void *)pref;
    const Operation *o = operation_of(desc);
    const Layout *a = layout_of(a_layout), *b = layout_of(b_layout), *d = layout_of(d_layout);
    Shape shape;
    if (!is_handle(handle))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (requested <= 0 || !results || !ret_count || !p)
        return CUBLAS_STATUS_INVALID_VALUE;
    *ret_count = 0;
    cublasStatus_t status = check(o, a, b, layout_of(c_layout), d, &shape);
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    if (a->type == CUDA_R_8F_E4M3 && (p->alignment[0] < 16 || p->alignment[1] < 16))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    Algo algo = choose(*o, *a, *b, *d, shape);
    if (!(p->reduction_mask & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE))
        algo.splits = 1; /* no split may be used */
    fit(&algo, shape, d->batch, p->workspace);
    for (int i = 0; i < requested && i < 4; i++) {
        tell(algo, shape, d->batch, &results[i]);
        *ret_count = i + 1;
        if (algo.splits == 1)
            break;
        algo.splits--; /* the next best */
    }
    return CUBLAS_STATUS_SUCCESS;
}

static bool is_algo(const Algo &algo, const Operation &o, const Layout &a, const Layout &b,
                    const Layout &d)
{
    return algo.magic == algo_magic && algo.splits >= 1 && algo.a_type == a.type &&
           algo.b_type == b.type && algo.d_type == d.type && algo.compute == o.compute;
}

static Algo algo_of(const cublasLtMatmulAlgo_t *from)
{
    Algo algo;
    memcpy(&algo, from, sizeof(algo));
    return algo;
}

extern "C" cublasStatus_t
cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                        cublasLtMatrixLayout_t a_layout, cublasLtMatrixLayout_t b_layout,
                        cublasLtMatrixLayout_t c_layout, cublasLtMatrixLayout_t d_layout,
                        const cublasLtMatmulAlgo_t *from, cublasLtMatmulHeuristicResult_t *ret)
{
    const Operation *o = operation_of(desc);
    const Layout *a = layout_of(a_layout), *b = layout_of(b_layout), *d = layout_of(d_layout);
    Shape shape;
    if (!is_handle(handle))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!from || !ret)
        return CUBLAS_STATUS_INVALID_VALUE;
    Algo algo = algo_of(from);
    cublasStatus_t status = check(o, a, b, layout_of(c_layout), d, &shape);
    if (status == CUBLAS_STATUS_SUCCESS && !is_algo(algo, *o, *a, *b, *d))
        status = CUBLAS_STATUS_INVALID_VALUE;
    if (status == CUBLAS_STATUS_SUCCESS)
        tell(algo, shape, d->batch, ret);
    return status;
}

extern "C" cublasStatus_t cublasLtMatmulAlgoGetIds(cublasLtHandle_t handle,
                                                   cublasComputeType_t compute,
                                                   cudaDataType_t scale_type, cudaDataType_t a,
                                                   cudaDataType_t b, cudaDataType_t c,
                                                   cudaDataType_t d, int requested, int ids[],
                                                   int *ret_count)
{
    (void)compute, (void)scale_type, (void)a, (void)b, (void)c, (void)d;
    if (!is_handle(handle) || requested <= 0)
        return CUBLAS_STATUS_INVALID_VALUE;
    ids[0] = 66;
    *ret_count = 1;
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t
cublasLtMatmulAlgoInit(cublasLtHandle_t handle, cublasComputeType_t compute,
                       cudaDataType_t scale_type, cudaDataType_t a, cudaDataType_t b,
                       cudaDataType_t c, cudaDataType_t d, int id, cublasLtMatmulAlgo_t *ret_algo)
{
    (void)scale_type, (void)c;
    if (!is_handle(handle) || id != 66 || !ret_algo)
        return CUBLAS_STATUS_INVALID_VALUE;
    Algo algo = {algo_magic, id, 1, CUBLASLT_MATMUL_TILE_128x128, 0, a, b, d, compute};
    memset(ret_algo, 0, sizeof(*ret_algo));
    memcpy(ret_algo, &algo, sizeof(algo));
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t
cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t *to,
                                     cublasLtMatmulAlgoConfigAttributes_t name, const void *value,
                                     size_t bytes)
{
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    int32_t unused;
    Algo algo = algo_of(to);
    switch (name) {
    case CUBLASLT_ALGO_CONFIG_SPLITK_NUM:
        status = set(&algo.splits, value, bytes);
        break;
    case CUBLASLT_ALGO_CONFIG_TILE_ID:
        status = set(&algo.tile, value, bytes);
        break;
    case CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME:
    case CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING:
    case CUBLASLT_ALGO_CONFIG_STAGES_ID:
    case CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION:
        status = set(&unused, value, bytes);
        break;
    default:
        status = CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (status == CUBLAS_STATUS_SUCCESS)
        memcpy(to, &algo, sizeof(algo));
    return status;
}

extern "C" cublasStatus_t
cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *from,
                                     cublasLtMatmulAlgoConfigAttributes_t name, void *value,
                                     size_t bytes, size_t *ret_bytes)
{
    Algo algo = algo_of(from);
    int32_t found = name == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? algo.splits
                    : name == CUBLASLT_ALGO_CONFIG_TILE_ID  ? algo.tile
                    : name == CUBLASLT_ALGO_CONFIG_ID       ? algo.id
                                                            : 0;
    if (bytes != sizeof(found))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(value, &found, sizeof(found));
    if (ret_bytes)
        *ret_bytes = sizeof(found);
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- the call ---- */

static bool is_aligned(const void *data, size_t to)
{
    return (uintptr_t)data % to == 0;
}

static cublasStatus_t check_memory(const Operation &o, const Layout &a, const Layout &b,
                                   const Layout &c, const Layout &d, const void *a_data,
                                   const void *b_data, const void *c_data, const void *d_data,
                                   float beta)
{
    if (!is_there(a_data, a) || !is_there(b_data, b) || !is_there(d_data, d) ||
        (beta != 0 && !is_there(c_data, c)))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!is_aligned(a_data, element_bytes(a.type)) || !is_aligned(b_data, element_bytes(b.type)) ||
        !is_aligned(d_data, element_bytes(d.type)))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (a.type != CUDA_R_8F_E4M3)
        return CUBLAS_STATUS_SUCCESS;
    bool fine = is_aligned(a_data, 16) && is_aligned(b_data, 16) && is_aligned(d_data, 16);
    if ((o.a_scale || has_blocks(o.a_mode)) && !scales_are_there(o.a_scale, a, o.a_mode))
        fine = false;
    if ((o.b_scale || has_blocks(o.b_mode)) && !scales_are_there(o.b_scale, b, o.b_mode))
        fine = false;
    return fine ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

static Product product_of(const Operation &o, const Layout &a, const Layout &b, const Layout &c,
                          const Layout &d, const Shape &shape)
{
    Product p = {};
    bool d_is_col = d.order == CUBLASLT_ORDER_COL;
    p.a = operand(nullptr, a, o.trans_a == CUBLAS_OP_T, shape.m, o.a_scale, o.a_mode);
    p.b = operand(nullptr, b, o.trans_b != CUBLAS_OP_T, shape.n, o.b_scale, o.b_mode);
    p.m = shape.m;
    p.n = shape.n;
    p.k = shape.k;
    p.batch = (size_t)d.batch;
    p.d_type = d.type;
    p.d_row = d_is_col ? 1 : (size_t)d.pitch;
    p.d_col = d_is_col ? (size_t)d.pitch : 1;
    p.d_batch = (size_t)d.distance;
    p.c_row = d_is_col ? 1 : (size_t)c.pitch;
    p.c_col = d_is_col ? (size_t)c.pitch : 1;
    p.c_batch = (size_t)c.distance;
    return p;
}

extern "C" cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                         const void *alpha, const void *a_data,
                                         cublasLtMatrixLayout_t a_layout, const void *b_data,
                                         cublasLtMatrixLayout_t b_layout, const void *beta,
                                         const void *c_data, cublasLtMatrixLayout_t c_layout,
                                         void *d_data, cublasLtMatrixLayout_t d_layout,
                                         const cublasLtMatmulAlgo_t *chosen, void *workspace,
                                         size_t workspace_bytes, cudaStream_t stream)
{
    const Operation *o = operation_of(desc);
    const Layout *a = layout_of(a_layout), *b = layout_of(b_layout), *c = layout_of(c_layout);
    const Layout *d = layout_of(d_layout);
    Shape shape;
    if (!is_handle(handle))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    cublasStatus_t status = check(o, a, b, c, d, &shape);
    if (status == CUBLAS_STATUS_SUCCESS)
        status =
            check_memory(*o, *a, *b, *c, *d, a_data, b_data, c_data, d_data, *(const float *)beta);
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    Algo algo = chosen ? algo_of(chosen) : choose(*o, *a, *b, *d, shape);
    if (!chosen)
        fit(&algo, shape, d->batch, workspace_bytes);
    size_t room = 0;
    if (!is_algo(algo, *o, *a, *b, *d))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (emulation::device_of_stream(stream) != emulation::device())
        return CUBLAS_STATUS_EXECUTION_FAILED; /* its kernels are launched here */
    if (workspace_of(algo, shape, d->batch) > workspace_bytes ||
        (workspace_bytes && (emulation::memory_of(workspace, &room) != emulation::Memory::device ||
                             room < workspace_bytes || !is_aligned(workspace, 256))))
        return CUBLAS_STATUS_INVALID_VALUE;
    Product p = product_of(*o, *a, *b, *c, *d, shape);
    p.a.data = (const char *)a_data;
    p.b.data = (const char *)b_data;
    p.c = (const char *)c_data;
    p.d = (char *)d_data;
    p.alpha = *(const float *)alpha;
    p.beta = *(const float *)beta;
    p.splits = algo.splits;
    Factors factors = {p.a.scales ? nullptr : o->a_scale, p.b.scales ? nullptr : o->b_scale};
    cudaError_t queued = emulation::queue(stream, "cublasLtMatmul", [p, factors] {
        emulation::Touch touch;
        Product now = p;
        now.alpha *= (factors.a ? *factors.a : 1) * (factors.b ? *factors.b : 1);
        for (size_t batch = 0; batch < p.batch; batch++)
            multiply_batch(now, batch);
        return true;
    });
    return queued == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
