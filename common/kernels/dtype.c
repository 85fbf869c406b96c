#include "common/kernels/dtype.h"

const char *bt_dtype_name(enum bt_dtype dtype)
{
    switch (dtype) {
    case BT_F32:
        return "f32";
    case BT_BF16:
        return "bf16";
    case BT_F16:
        return "f16";
    }
    return "unknown";
}

uint16_t bt_f32_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float bt_f16_to_f32(uint16_t value)
{
    uint32_t sign = (uint32_t)(value & 0x8000) << 16;
    uint32_t exponent = value >> 10 & 0x1f;
    uint32_t mantissa = value & 0x3ff;
    uint32_t bits;
    float result;

    if (exponent == 0) {
        result = (float)mantissa * 0x1p-24f; /* zero and subnormals: exact */
        return sign ? -result : result;
    }
    if (exponent == 31)
        bits = sign | 0x7f800000u | mantissa << 13;
    else
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    memcpy(&result, &bits, sizeof(result));
    return result;
}
