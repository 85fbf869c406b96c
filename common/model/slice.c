#include "common/model/slice.h"

#define GROUP 128 /* inputs of a group of I4, sides of a block of F8 */

uint32_t bt_slice_step(enum bt_dtype dtype, enum bt_split split)
{
    if (split == BT_SPLIT_NONE)
        return 1;
    return dtype == BT_F8_E4M3 || (dtype == BT_I4 && split == BT_SPLIT_INPUTS) ? GROUP : 1;
}

static size_t groups_of(uint32_t count)
{
    return ((size_t)count + GROUP - 1) / GROUP;
}

/* Rows of scales before the matrix's row `first`. */
static size_t scale_rows(const struct bt_matrix *matrix, uint32_t first)
{
    return matrix->dtype == BT_F8_E4M3 ? groups_of(first) : first;
}

/* Scales of one row of them. */
static size_t scale_cols(enum bt_dtype dtype, uint32_t cols)
{
    return dtype == BT_F8_E4M3 ? groups_of(cols) : 1;
}

static size_t row_bytes(enum bt_dtype dtype, uint32_t cols)
{
    return (size_t)cols * bt_dtype_bits(dtype) / 8;
}

struct bt_matrix bt_slice_outputs(const struct bt_matrix *whole, uint32_t first, uint32_t count)
{
    struct bt_matrix part = *whole;
    BT_ASSERT(whole->layout == BT_LAYOUT_ROWS && (uint64_t)first + count <= whole->rows);
    BT_ASSERT(first % bt_slice_step(whole->dtype, BT_SPLIT_OUTPUTS) == 0);
    part.rows = count;
    part.data = (const char *)whole->data + first * row_bytes(whole->dtype, whole->cols);
    if (whole->scales)
        part.scales += scale_rows(whole, first) * scale_cols(whole->dtype, whole->cols);
    if (whole->group_scales)
        part.group_scales += first * groups_of(whole->cols);
    return part;
}

/* Bytes of the elements alone, rounded up so that scales may follow. */
static size_t element_bytes(const struct bt_matrix *whole, uint32_t count)
{
    return (whole->rows * row_bytes(whole->dtype, count) + 3) / 4 * 4;
}

static size_t scale_bytes(const struct bt_matrix *whole, uint32_t count)
{
    return whole->scales
               ? scale_rows(whole, whole->rows) * scale_cols(whole->dtype, count) * sizeof(float)
               : 0;
}

size_t bt_slice_inputs_bytes(const struct bt_matrix *whole, uint32_t count)
{
    size_t groups = whole->group_scales ? whole->rows * groups_of(count) : 0;
    return element_bytes(whole, count) + scale_bytes(whole, count) + groups;
}

/* Bytes `first` … `first + count - 1` of each of `rows` rows of `stride` bytes. */
static void copy_columns(char *out, const void *in, size_t rows, size_t stride, size_t first,
                         size_t count)
{
    for (size_t row = 0; row < rows; row++)
        memcpy(out + row * count, (const char *)in + row * stride + first, count);
}

struct bt_matrix bt_slice_inputs(const struct bt_matrix *whole, uint32_t first, uint32_t count,
                                 void *out)
{
    enum bt_dtype dtype = whole->dtype;
    char *scales = (char *)out + element_bytes(whole, count);
    char *groups = scales + scale_bytes(whole, count);
    struct bt_matrix part = *whole;
    BT_ASSERT(whole->layout == BT_LAYOUT_ROWS && (uint64_t)first + count <= whole->cols);
    BT_ASSERT(first % bt_slice_step(dtype, BT_SPLIT_INPUTS) == 0);
    part.cols = count;
    part.data = out;
    copy_columns(out, whole->data, whole->rows, row_bytes(dtype, whole->cols),
                 row_bytes(dtype, first), row_bytes(dtype, count));
    if (whole->scales) {
        part.scales = (const float *)scales;
        /* scales of rows are taken whole */
        bool blocks = dtype == BT_F8_E4M3;
        copy_columns(scales, whole->scales, scale_rows(whole, whole->rows),
                     scale_cols(dtype, whole->cols) * sizeof(float),
                     blocks ? groups_of(first) * sizeof(float) : 0,
                     scale_cols(dtype, count) * sizeof(float));
    }
    if (whole->group_scales) {
        part.group_scales = (const uint8_t *)groups;
        copy_columns(groups, whole->group_scales, whole->rows, groups_of(whole->cols),
                     groups_of(first), groups_of(count));
    }
    return part;
}
