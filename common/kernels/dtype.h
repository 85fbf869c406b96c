/* Element types and their conversions to and from float (round to nearest even). */
#ifndef BATON_COMMON_KERNELS_DTYPE_H
#define BATON_COMMON_KERNELS_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum bt_dtype { BT_F32, BT_BF16, BT_F16 };

static inline size_t bt_dtype_bytes(enum bt_dtype dtype)
{
    return dtype == BT_F32 ? 4 : 2;
}

/* "f32", "bf16", "f16". */
const char *bt_dtype_name(enum bt_dtype dtype);

static inline float bt_bf16_to_f32(uint16_t value)
{
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof(result));
    return result;
}

/* Round to nearest even; NaN stays NaN. */
uint16_t bt_f32_to_bf16(float value);
float bt_f16_to_f32(uint16_t value);

#endif
