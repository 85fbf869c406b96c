#include "common/model/quantize.h"

#include <math.h>
#include <string.h>

/* A step of less might be no normal number. */
#define LEAST 1e-30f

static float largest(const float *x, size_t count)
{
    float most = 0;
    for (size_t i = 0; i < count; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

static float clamp(float x, float limit)
{
    return x > limit ? limit : x < -limit ? -limit : x;
}

static bool is_finite(const float *x, size_t count)
{
    uint32_t bits, bad = 0;
    for (size_t i = 0; i < count; i++) {
        memcpy(&bits, &x[i], sizeof(bits));
        bad |= (bits & 0x7f800000) == 0x7f800000;
    }
    return bad == 0;
}

float bt_quantize_row_i8(const float *weights, size_t cols, int8_t *ret_values)
{
    if (!is_finite(weights, cols))
        return NAN;
    float most = largest(weights, cols), scale = most > LEAST ? most / 127 : 1;
    for (size_t i = 0; i < cols; i++)
        ret_values[i] = (int8_t)clamp(rintf(weights[i] / scale), 127);
    return scale;
}

/* What a group loses when its step is `step`. */
static float group_error(const float *weights, const float *importance, size_t count, float step)
{
    float sums[16] = {0}, inverse = 1 / step, sum = 0;
    for (size_t i = 0; i < count; i++) {
        float value = clamp(rintf(weights[i] * inverse), 7);
        float off = value * step - weights[i];
        sums[i % 16] += off * off * (importance ? importance[i] : 1);
    }
    for (int i = 0; i < 16; i++)
        sum += sums[i];
    return sum;
}

/* The step of a group that loses least, of the whole range and four clipped ones. */
static float best_step(const float *weights, const float *importance, size_t count, bool search)
{
    float most = largest(weights, count), best = most / 7, least = INFINITY;
    if (most <= LEAST || !search)
        return best;
    for (int clip = 20; clip >= 14; clip--) {
        float step = most / 7 * (float)clip / 20;
        float error = group_error(weights, importance, count, step);
        if (error < least) {
            least = error;
            best = step;
        }
    }
    return best;
}

static int best_group_scale(const float *weights, const float *importance, size_t count, float step,
                            float scale, bool search)
{
    int near = (int)rintf(step / scale), best = near;
    float least = INFINITY;
    near = near < 1 ? 1 : near > BT_QUANTIZE_MAX_GROUP_SCALE ? BT_QUANTIZE_MAX_GROUP_SCALE : near;
    best = near;
    for (int s = near - 1; search && s <= near + 1; s++) {
        if (s < 1 || s > BT_QUANTIZE_MAX_GROUP_SCALE)
            continue;
        float error = group_error(weights, importance, count, (float)s * scale);
        if (error < least) {
            least = error;
            best = s;
        }
    }
    return best;
}

static size_t group_size(size_t cols, size_t group)
{
    size_t left = cols - group * BT_QUANTIZE_GROUP;
    return left < BT_QUANTIZE_GROUP ? left : BT_QUANTIZE_GROUP;
}

float bt_quantize_row_i4(const float *weights, size_t cols, const float *importance, bool search,
                         int8_t *ret_values, uint8_t *ret_group_scales)
{
    size_t groups = (cols + BT_QUANTIZE_GROUP - 1) / BT_QUANTIZE_GROUP;
    float widest = 0;
    if (!is_finite(weights, cols))
        return NAN;
    for (size_t g = 0; g < groups; g++) {
        size_t at = g * BT_QUANTIZE_GROUP;
        float step = best_step(weights + at, importance ? importance + at : NULL,
                               group_size(cols, g), search);
        widest = step > widest ? step : widest;
    }
    float scale = widest > LEAST ? widest / BT_QUANTIZE_MAX_GROUP_SCALE : 1;
    for (size_t g = 0; g < groups; g++) {
        size_t at = g * BT_QUANTIZE_GROUP, count = group_size(cols, g);
        const float *in = weights + at, *matter = importance ? importance + at : NULL;
        float step = best_step(in, matter, count, search);
        int group_scale = best_group_scale(in, matter, count, step, scale, search);
        float inverse = 1 / ((float)group_scale * scale);
        ret_group_scales[g] = (uint8_t)group_scale;
        for (size_t i = 0; i < count; i++)
            ret_values[at + i] = (int8_t)clamp(rintf(in[i] * inverse), 7);
    }
    return scale;
}

void bt_quantize_pack_i4(const int8_t *values, size_t cols, uint8_t *ret_bytes)
{
    for (size_t i = 0; i < cols; i += 2)
        ret_bytes[i / 2] = (uint8_t)((values[i] & 15) | (values[i + 1] & 15) << 4);
}
