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
    case BT_F8_E4M3:
        return "f8_e4m3";
    case BT_I8:
        return "i8";
    case BT_I4:
        return "i4";
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

float bt_f8_e4m3_to_f32(uint8_t value)
{
    uint32_t sign = (uint32_t)(value & 0x80) << 24, exponent = value >> 3 & 15,
             mantissa = value & 7;
    uint32_t bits = sign | (exponent + 120) << 23 | mantissa << 20;
    float result;

    if (exponent == 0) {
        result = (float)mantissa * 0x1p-9f;
        return sign ? -result : result;
    }
    if ((value & 0x7f) == 0x7f)
        bits = sign | 0x7fc00000u;
    memcpy(&result, &bits, sizeof(result));
    return result;
}

uint8_t bt_f32_to_f8_e4m3(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    uint8_t sign = (uint8_t)(bits >> 24 & 0x80);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return sign | 0x7f;
    if (bits < 0x3c800000u) { /* below 2^-6: steps of 2^-9, the sum rounds to even */
        float magnitude;
        memcpy(&magnitude, &bits, sizeof(magnitude));
        float shifted = magnitude + 0x1p14f;
        memcpy(&bits, &shifted, sizeof(bits));
        return sign | (uint8_t)(bits & 0x0f);
    }
    bits += 0x7ffff + (bits >> 20 & 1);
    uint32_t rounded = (bits >> 20) - (120u << 3);
    return sign | (uint8_t)(rounded > 0x7e ? 0x7e : rounded);
}
