/* Rotary tables and the softmax scale, with YaRN (Peng et al., 2023) as DeepSeek applies it. */
#include <math.h>
#include <stdlib.h>

#include "common/model/config.h"

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

struct bt_mla_shape bt_model_mla_shape(const struct bt_model_config *config)
{
    double scale = 1.0 / sqrt((double)config->qk_nope_head_dim + config->qk_rope_head_dim);
    if (config->yarn.enabled && config->yarn.mscale_all_dim != 0) {
        double mscale = yarn_mscale(config->yarn.factor, config->yarn.mscale_all_dim);
        scale *= mscale * mscale;
    }
    return (struct bt_mla_shape){
        .heads = config->num_attention_heads,
        .qk_nope_head_dim = config->qk_nope_head_dim,
        .qk_rope_head_dim = config->qk_rope_head_dim,
        .v_head_dim = config->v_head_dim,
        .kv_lora_rank = config->kv_lora_rank,
        .softmax_scale = (float)scale,
    };
}

/* The dimension whose wave turns `rotations` times within the original context. */
static double correction_dim(const struct bt_model_config *config, double rotations)
{
    double original = config->yarn.original_max_position_embeddings;
    return config->qk_rope_head_dim * log(original / (rotations * 2 * M_PI)) /
           (2 * log(config->rope_theta));
}

/* Below `low` frequencies stay, above `high` they are interpolated, a ramp between. */
static float yarn_frequency(const struct bt_model_config *config, uint32_t index, float frequency)
{
    const struct bt_yarn *yarn = &config->yarn;
    double low = fmax(floor(correction_dim(config, yarn->beta_fast)), 0);
    double high =
        fmin(ceil(correction_dim(config, yarn->beta_slow)), (double)config->qk_rope_head_dim - 1);
    if (low == high)
        high += 0.001;
    float ramp = ((float)index - (float)low) / (float)(high - low);
    float keep = 1.0f - fminf(fmaxf(ramp, 0.0f), 1.0f);
    float interpolated = frequency / (float)yarn->factor;
    return interpolated * (1.0f - keep) + frequency * keep;
}

static float table_scale(const struct bt_yarn *yarn)
{
    if (!yarn->enabled)
        return 1.0f;
    return (float)(yarn_mscale(yarn->factor, yarn->mscale) /
                   yarn_mscale(yarn->factor, yarn->mscale_all_dim));
}

/* In float as the published code has it: the angle is a rounded product, and so the tables of
 * another implementation are met to the last bits also at far positions. */
void bt_model_rope_fill(const struct bt_model_config *config, uint32_t positions, float *ret_cos,
                        float *ret_sin)
{
    uint32_t half = config->qk_rope_head_dim / 2;
    float scale = table_scale(&config->yarn);
    for (uint32_t i = 0; i < half; i++) {
        float exponent = (float)(2 * i) / (float)config->qk_rope_head_dim;
        float frequency = 1.0f / powf((float)config->rope_theta, exponent);
        if (config->yarn.enabled)
            frequency = yarn_frequency(config, i, frequency);
        for (uint32_t position = 0; position < positions; position++) {
            float angle = (float)position * frequency;
            ret_cos[(size_t)position * half + i] = cosf(angle) * scale;
            ret_sin[(size_t)position * half + i] = sinf(angle) * scale;
        }
    }
}
