/*
 * Rows on their way between ranks: rounded to the payload, expanded again, added up. The same bits
 * whatever the instruction set. Pure; any thread.
 *
 * A row of n floats travels as n f32, n bf16, or n f8_e4m3 (rounded up to whole words) with an f32
 * scale for every BT_ROW_SCALED of them behind.
 */
#ifndef BATON_COMMON_PARALLEL_ROWS_H
#define BATON_COMMON_PARALLEL_ROWS_H

#include <stddef.h>
#include <stdint.h>

#include "common/kernels/dtype.h"

#define BT_ROW_SCALED 128

struct bt_row_ops {
    const char *name;
    void (*to_bf16)(const float *x, size_t n, uint16_t *out);
    void (*from_bf16)(const uint16_t *x, size_t n, float *out);
    /* scale = max |x| / 448 of each BT_ROW_SCALED, 1 where all are 0; out = f8(x / scale). */
    void (*to_f8)(const float *x, size_t n, uint8_t *out, float *scales);
    void (*from_f8)(const uint8_t *x, const float *scales, size_t n, float *out);
    /* out += weight * y, fused */
    void (*add_f32)(const float *y, float weight, size_t n, float *out);
    void (*add_bf16)(const uint16_t *y, float weight, size_t n, float *out);
    /* A copy past the caches, for another core to read: to take lines that this core has written
     * out of its cache costs several times what memory does. Done when it returns. */
    void (*show)(void *to, const void *from, size_t bytes);
    /* out = ((x[0] + x[1]) + x[2]) + …; out may be one of them. */
    void (*sum)(const float *const *x, uint32_t count, size_t n, float *out);
};

/* The fastest that this CPU has; the table is static. */
const struct bt_row_ops *bt_row_ops_select(void);
/* All that this CPU has, the plain one first; ends with NULL. */
const struct bt_row_ops *const *bt_row_ops_available(void);

/* BT_F32, BT_BF16 or BT_F8_E4M3. A multiple of 4. */
size_t bt_row_bytes(enum bt_dtype payload, size_t n);
void bt_row_round(const struct bt_row_ops *ops, enum bt_dtype payload, const float *x, size_t n,
                  void *out);
void bt_row_expand(const struct bt_row_ops *ops, enum bt_dtype payload, const void *row, size_t n,
                   float *out);
/* out += weight * row; BT_F32 or BT_BF16. */
void bt_row_add(const struct bt_row_ops *ops, enum bt_dtype payload, const void *row, float weight,
                size_t n, float *out);

#endif
