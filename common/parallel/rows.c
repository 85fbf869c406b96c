#include "common/parallel/rows.h"

#include <pthread.h>

#include "common/base/status.h"
#include "common/parallel/rows_tables.h"

#define TABLES_MAX 4

static const struct bt_row_ops *tables[TABLES_MAX];

static void find_tables(void)
{
    uint32_t count = 0;
    tables[count++] = &bt_rows_plain;
#ifdef BT_ROWS_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        tables[count++] = &bt_rows_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        tables[count++] = &bt_rows_avx512;
#endif
    tables[count] = NULL;
}

const struct bt_row_ops *const *bt_row_ops_available(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_tables);
    return tables;
}

const struct bt_row_ops *bt_row_ops_select(void)
{
    const struct bt_row_ops *const *found = bt_row_ops_available();
    while (found[1])
        found++;
    return *found;
}

static size_t f8_bytes(size_t n)
{
    return (n + 3) / 4 * 4;
}

size_t bt_row_bytes(enum bt_dtype payload, size_t n)
{
    if (payload == BT_F32)
        return n * sizeof(float);
    if (payload == BT_BF16)
        return (n * sizeof(uint16_t) + 3) / 4 * 4;
    BT_ASSERT(payload == BT_F8_E4M3);
    return f8_bytes(n) + (n + BT_ROW_SCALED - 1) / BT_ROW_SCALED * sizeof(float);
}

void bt_row_round(const struct bt_row_ops *ops, enum bt_dtype payload, const float *x, size_t n,
                  void *out)
{
    if (payload == BT_F32)
        memcpy(out, x, n * sizeof(*x));
    else if (payload == BT_BF16)
        ops->to_bf16(x, n, out);
    else
        ops->to_f8(x, n, out, (float *)((char *)out + f8_bytes(n)));
}

void bt_row_expand(const struct bt_row_ops *ops, enum bt_dtype payload, const void *row, size_t n,
                   float *out)
{
    if (payload == BT_F32)
        memcpy(out, row, n * sizeof(*out));
    else if (payload == BT_BF16)
        ops->from_bf16(row, n, out);
    else
        ops->from_f8(row, (const float *)((const char *)row + f8_bytes(n)), n, out);
}

void bt_row_add(const struct bt_row_ops *ops, enum bt_dtype payload, const void *row, float weight,
                size_t n, float *out)
{
    BT_ASSERT(payload == BT_F32 || payload == BT_BF16);
    if (payload == BT_F32)
        ops->add_f32(row, weight, n, out);
    else
        ops->add_bf16(row, weight, n, out);
}
