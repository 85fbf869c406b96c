/*
 * Products by cuBLASLt. For each shape but m one algorithm, found once and used for every m: the
 * first that the heuristic names for PINNED_ROWS, that splits nothing along k and that can do one
 * row as well as many. So the order of a row's sum does not depend on the other rows.
 *
 * Matrices in rows are the transposes of cuBLASLt's in columns: out^T = weight * x^T, its m is n.
 */
#include "common/kernels/cuda/product.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/status.h"

/* Between the batches of decode and the chunks of prefill. */
#define PINNED_ROWS 64
#define MANY_ROWS   8192
#define CANDIDATES  16
/* More shapes than any model has; the oldest makes room. */
#define PLANS 256

/* All that an algorithm may depend on. */
struct shape {
    uint32_t in, out, n, k, batch;
    uint32_t x_pitch, weight_pitch, out_pitch;
    uint32_t is_k_major;
};

/* Another product would have other bits, so one that could not be asked for is no answer. */
enum outcome { WORKS, IS_NOT_THERE, FAILED };

struct plan {
    struct shape shape;
    enum outcome outcome;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t weight, x, out;
    cublasLtMatmulAlgo_t algorithm;
};

struct bt_cuda_products {
    struct plan plans[PLANS];
    size_t count; /* ever made */
};

static cudaDataType type_of(uint32_t dtype)
{
    return dtype == BT_F32 ? CUDA_R_32F : dtype == BT_BF16 ? CUDA_R_16BF : CUDA_R_8F_E4M3;
}

/* What rows of this pitch are aligned to, when the first is to 16. */
static uint32_t alignment_of(uint32_t pitch, uint32_t dtype)
{
    size_t bytes = pitch * bt_dtype_bytes((enum bt_dtype)dtype);
    return bytes % 16 == 0 ? 16 : (uint32_t)(bytes & -bytes);
}

static bool is_aligned(const void *data, size_t distance, uint32_t pitch, uint32_t dtype)
{
    uint32_t alignment = alignment_of(pitch, dtype);
    return (uintptr_t)data % alignment == 0 &&
           distance * bt_dtype_bytes((enum bt_dtype)dtype) % alignment == 0;
}

static bool ok(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS;
}

/* ---- what cuBLASLt is told of a shape ---- */

static bool set_operation(cublasLtMatmulDesc_t operation, int attribute, int32_t value)
{
    return ok(cublasLtMatmulDescSetAttribute(operation, (cublasLtMatmulDescAttributes_t)attribute,
                                             &value, sizeof(value)));
}

static bool describe_operation(struct plan *plan)
{
    const struct shape *shape = &plan->shape;
    /* f32 is multiplied as f32 */
    cublasComputeType_t compute =
        shape->in == BT_F32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F;
    if (!ok(cublasLtMatmulDescCreate(&plan->operation, compute, CUDA_R_32F)))
        return false;
    if (!set_operation(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA,
                       shape->is_k_major ? CUBLAS_OP_T : CUBLAS_OP_N))
        return false;
    return shape->in != BT_F8_E4M3 ||
           (set_operation(plan->operation, CUBLASLT_MATMUL_DESC_A_SCALE_MODE,
                          CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F) &&
            set_operation(plan->operation, CUBLASLT_MATMUL_DESC_B_SCALE_MODE,
                          CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F));
}

static bool set_batch(cublasLtMatrixLayout_t layout, uint32_t batch)
{
    int32_t count = (int32_t)batch;
    return ok(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                               sizeof(count)));
}

static bool describe_layouts(struct plan *plan)
{
    const struct shape *s = &plan->shape;
    uint32_t rows = s->is_k_major ? s->k : s->n, cols = s->is_k_major ? s->n : s->k;
    return ok(cublasLtMatrixLayoutCreate(&plan->weight, type_of(s->in), rows, cols,
                                         s->weight_pitch)) &&
           ok(cublasLtMatrixLayoutCreate(&plan->x, type_of(s->in), s->k, PINNED_ROWS,
                                         s->x_pitch)) &&
           ok(cublasLtMatrixLayoutCreate(&plan->out, type_of(s->out), s->n, PINNED_ROWS,
                                         s->out_pitch)) &&
           set_batch(plan->weight, s->batch) && set_batch(plan->x, s->batch) &&
           set_batch(plan->out, s->batch);
}

static bool set_rows(struct plan *plan, uint64_t m)
{
    return ok(cublasLtMatrixLayoutSetAttribute(plan->x, CUBLASLT_MATRIX_LAYOUT_COLS, &m,
                                               sizeof(m))) &&
           ok(cublasLtMatrixLayoutSetAttribute(plan->out, CUBLASLT_MATRIX_LAYOUT_COLS, &m,
                                               sizeof(m)));
}

/* From a batch to the next, elements; no matter for the choice of an algorithm. */
static bool set_distance(cublasLtMatrixLayout_t layout, size_t distance)
{
    int64_t elements = (int64_t)distance;
    return ok(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                               &elements, sizeof(elements)));
}

static bool set_alignment(cublasLtMatmulPreference_t preference, int attribute, uint32_t pitch,
                          uint32_t dtype)
{
    uint32_t alignment = alignment_of(pitch, dtype);
    return ok(cublasLtMatmulPreferenceSetAttribute(preference,
                                                   (cublasLtMatmulPreferenceAttributes_t)attribute,
                                                   &alignment, sizeof(alignment)));
}

static bool describe_preference(const struct shape *shape, cublasLtMatmulPreference_t preference)
{
    uint32_t none = CUBLASLT_REDUCTION_SCHEME_NONE;
    size_t workspace = BT_CUDA_WORKSPACE;
    return ok(cublasLtMatmulPreferenceSetAttribute(preference,
                                                   CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                   &workspace, sizeof(workspace))) &&
           ok(cublasLtMatmulPreferenceSetAttribute(
               preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none, sizeof(none))) &&
           set_alignment(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                         shape->weight_pitch, shape->in) &&
           set_alignment(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape->x_pitch,
                         shape->in) &&
           set_alignment(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape->out_pitch,
                         shape->out) &&
           set_alignment(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape->out_pitch,
                         shape->out);
}

/* Before anything is asked: without scales there may be no algorithm for products that have some.
 */
static bool set_scales(struct plan *plan, const struct bt_cuda_product_scales *scales)
{
    return !scales ||
           (ok(cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
                                              &scales->weight, sizeof(scales->weight))) &&
            ok(cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER,
                                              &scales->x, sizeof(scales->x))));
}

/* ---- the algorithm ---- */

static bool splits(const cublasLtMatmulAlgo_t *algorithm)
{
    int32_t parts = 1;
    size_t written = 0;
    return ok(cublasLtMatmulAlgoConfigGetAttribute(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
                                                   &parts, sizeof(parts), &written)) &&
           parts > 1;
}

static bool works_for(cublasLtHandle_t cublas, struct plan *plan,
                      const cublasLtMatmulAlgo_t *algorithm, uint64_t m)
{
    cublasLtMatmulHeuristicResult_t result;
    return set_rows(plan, m) &&
           ok(cublasLtMatmulAlgoCheck(cublas, plan->operation, plan->weight, plan->x, plan->out,
                                      plan->out, algorithm, &result)) &&
           result.workspaceSize <= BT_CUDA_WORKSPACE;
}

static enum outcome choose(cublasLtHandle_t cublas, struct plan *plan,
                           cublasLtMatmulPreference_t preference)
{
    cublasLtMatmulHeuristicResult_t results[CANDIDATES];
    int count = 0;
    uint64_t fewest = plan->shape.in == BT_F8_E4M3 ? 4 : 1;
    if (!describe_preference(&plan->shape, preference) || !set_rows(plan, PINNED_ROWS))
        return FAILED;
    cublasStatus_t asked =
        cublasLtMatmulAlgoGetHeuristic(cublas, plan->operation, plan->weight, plan->x, plan->out,
                                       plan->out, preference, CANDIDATES, results, &count);
    if (asked == CUBLAS_STATUS_NOT_SUPPORTED || asked == CUBLAS_STATUS_INVALID_VALUE)
        return IS_NOT_THERE;
    if (!ok(asked))
        return FAILED;
    for (int i = 0; i < count; i++) {
        if (!ok(results[i].state) || splits(&results[i].algo) ||
            !works_for(cublas, plan, &results[i].algo, fewest) ||
            !works_for(cublas, plan, &results[i].algo, MANY_ROWS))
            continue;
        plan->algorithm = results[i].algo;
        return WORKS;
    }
    return IS_NOT_THERE;
}

static void unmake(struct plan *plan)
{
    if (plan->operation)
        (void)cublasLtMatmulDescDestroy(plan->operation);
    if (plan->weight)
        (void)cublasLtMatrixLayoutDestroy(plan->weight);
    if (plan->x)
        (void)cublasLtMatrixLayoutDestroy(plan->x);
    if (plan->out)
        (void)cublasLtMatrixLayoutDestroy(plan->out);
    *plan = (struct plan){0};
}

static void make(cublasLtHandle_t cublas, const struct shape *shape,
                 const struct bt_cuda_product *product, const struct bt_cuda_product_scales *scales,
                 struct plan *plan)
{
    cublasLtMatmulPreference_t preference = NULL;
    plan->shape = *shape;
    plan->outcome = FAILED;
    if (!describe_operation(plan) || !describe_layouts(plan) || !set_scales(plan, scales))
        return;
    if (shape->batch > 1 && (!set_distance(plan->weight, product->weight_distance) ||
                             !set_distance(plan->x, product->x_distance) ||
                             !set_distance(plan->out, product->out_distance)))
        return;
    if (!ok(cublasLtMatmulPreferenceCreate(&preference)))
        return;
    plan->outcome = choose(cublas, plan, preference);
    (void)cublasLtMatmulPreferenceDestroy(preference);
}

static struct shape shape_of(const struct bt_cuda_product *product)
{
    return (struct shape){product->in,
                          product->out_dtype,
                          product->n,
                          product->k,
                          product->batch,
                          product->x_pitch,
                          product->weight_pitch,
                          product->out_pitch,
                          product->weight_is_k_major};
}

bool bt_cuda_product_is_there(cublasLtHandle_t cublas, uint32_t n, uint32_t k,
                              enum bt_dtype out_dtype, const struct bt_cuda_product_scales *scales)
{
    const struct bt_cuda_product product = {.in = BT_F8_E4M3,
                                            .out_dtype = out_dtype,
                                            .n = n,
                                            .k = k,
                                            .batch = 1,
                                            .x_pitch = k,
                                            .weight_pitch = k,
                                            .out_pitch = n,
                                            .weight_is_k_major = true};
    const struct shape shape = shape_of(&product);
    struct plan plan = {0};
    make(cublas, &shape, &product, scales, &plan);
    bool works = plan.outcome == WORKS;
    unmake(&plan);
    return works;
}

static struct plan *plan_of(struct bt_cuda_stream *stream, const struct bt_cuda_product *product,
                            const struct bt_cuda_product_scales *scales)
{
    struct bt_cuda_products *products = stream->products;
    const struct shape shape = shape_of(product);
    size_t count = products->count < PLANS ? products->count : PLANS;
    for (size_t i = 0; i < count; i++)
        if (memcmp(&products->plans[i].shape, &shape, sizeof(shape)) == 0)
            return &products->plans[i];
    struct plan *plan = &products->plans[products->count++ % PLANS];
    unmake(plan);
    make(stream->cublas, &shape, product, scales, plan);
    return plan;
}

/* ---- the product ---- */

static bool prepare(struct plan *plan, const struct bt_cuda_product *product,
                    const struct bt_cuda_product_scales *scales)
{
    if (!set_scales(plan, scales))
        return false;
    if (product->batch > 1 && (!set_distance(plan->weight, product->weight_distance) ||
                               !set_distance(plan->x, product->x_distance) ||
                               !set_distance(plan->out, product->out_distance)))
        return false;
    return set_rows(plan, product->m);
}

bool bt_cuda_product_try(struct bt_cuda_stream *stream, const struct bt_cuda_product *product,
                         const struct bt_cuda_product_scales *scales)
{
    const struct bt_cuda_product *p = product;
    static const float one = 1, zero = 0;
    struct plan *plan;
    bool batched = p->batch > 1;
    if (p->m == 0 || p->n == 0 || p->batch == 0)
        return true;
    BT_ASSERT(is_aligned(p->x, batched ? p->x_distance : 0, p->x_pitch, p->in) &&
              is_aligned(p->weight, batched ? p->weight_distance : 0, p->weight_pitch, p->in) &&
              is_aligned(p->out, batched ? p->out_distance : 0, p->out_pitch, p->out_dtype));
    plan = plan_of(stream, p, scales);
    if (plan->outcome == IS_NOT_THERE)
        return false;
    if (plan->outcome == FAILED || !prepare(plan, p, scales) ||
        !ok(cublasLtMatmul(stream->cublas, plan->operation, &one, p->weight, plan->weight, p->x,
                           plan->x, &zero, p->out, plan->out, p->out, plan->out, &plan->algorithm,
                           stream->workspace, BT_CUDA_WORKSPACE, stream->stream)))
        (void)bt_cuda_ok(stream, cudaErrorUnknown);
    return true;
}

void bt_cuda_product(struct bt_cuda_stream *stream, const struct bt_cuda_product *product)
{
    if (!bt_cuda_product_try(stream, product, NULL))
        (void)bt_cuda_ok(stream, cudaErrorNotSupported);
}

bool bt_cuda_products_create(struct bt_cuda_stream *stream)
{
    stream->products = calloc(1, sizeof(*stream->products));
    return stream->products != NULL;
}

void bt_cuda_products_destroy(struct bt_cuda_stream *stream)
{
    for (size_t i = 0; stream->products && i < PLANS; i++)
        unmake(&stream->products->plans[i]);
    free(stream->products);
    stream->products = NULL;
}
