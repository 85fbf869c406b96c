/* Element types and their conversions to and from float (round to nearest even). */
#ifndef BATON_COMMON_KERNELS_DTYPE_H
#define BATON_COMMON_KERNELS_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum bt_dtype { BT_F32, BT_BF16, BT_F16, BT_F8_E4M3, BT_I8, BT_I4 };

static inline size_t bt_dtype_bits(enum bt_dtype dtype)
{
    return dtype == BT_F32 ? 32 : dtype <= BT_F16 ? 16 : dtype == BT_I4 ? 4 : 8;
}

/* Not for I4. */
static inline size_t bt_dtype_bytes(enum bt_dtype dtype)
{
    return bt_dtype_bits(dtype) / 8;
}

/* "f32", "bf16", "f16", "f8_e4m3", "i8", "i4". */
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
/* e4m3fn: no infinities, S.1111.111 is NaN, the largest is 448. */
float bt_f8_e4m3_to_f32(uint8_t value);
/* Round to nearest even; beyond 448 saturates; NaN stays NaN. */
uint8_t bt_f32_to_f8_e4m3(float value);

#endif
