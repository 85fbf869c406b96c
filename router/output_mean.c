#include "router/output_mean.h"

static uint32_t place(uint32_t tenant, uint32_t prompt_class)
{
    uint64_t hash = ((uint64_t)tenant << 32 | prompt_class) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(hash >> 32) % RT_OUTPUT_CLASSES;
}

void rt_output_mean_init(struct rt_output_mean *outputs, uint32_t prior)
{
    *outputs = (struct rt_output_mean){.prior = prior};
}

void rt_output_mean_learn(struct rt_output_mean *outputs, uint32_t tenant, uint32_t prompt_class,
                          uint32_t generated)
{
    uint32_t at = place(tenant, prompt_class);
    float *mean = &outputs->mean[at];
    uint32_t samples = outputs->samples[at];
    if (samples == 0) {
        *mean = (float)outputs->prior;
    }
    if (samples < RT_OUTPUT_SPAN) {
        outputs->samples[at]++;
    }
    uint32_t span = samples + 1 + RT_OUTPUT_PRIOR;
    *mean += ((float)generated - *mean) / (float)(span < RT_OUTPUT_SPAN ? span : RT_OUTPUT_SPAN);
}

uint32_t rt_output_mean_expect(const struct rt_output_mean *outputs, uint32_t tenant,
                               uint32_t prompt_class, uint32_t max_tokens)
{
    uint32_t at = place(tenant, prompt_class);
    uint32_t expected =
        outputs->samples[at] > 0 ? (uint32_t)(outputs->mean[at] + 0.5f) : outputs->prior;
    expected = expected > 0 ? expected : 1;
    return expected < max_tokens ? expected : max_tokens;
}
