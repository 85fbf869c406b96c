/*
 * How many tokens a request will generate: the sliding mean of what requests of its class (tenant
 * and kind of prompt, as the caller divides them) generated lately. Internal to the core.
 *
 * The classes share a table of RT_OUTPUT_CLASSES; two that fall together share a mean. The first
 * samples are weighed with the prior as if that had been RT_OUTPUT_PRIOR of them, later ones count
 * 1 / RT_OUTPUT_SPAN each.
 */
#ifndef BATON_ROUTER_OUTPUT_MEAN_H
#define BATON_ROUTER_OUTPUT_MEAN_H

#include <stdint.h>

#define RT_OUTPUT_CLASSES 1024
#define RT_OUTPUT_PRIOR   8
#define RT_OUTPUT_SPAN    64

struct rt_output_mean {
    float mean[RT_OUTPUT_CLASSES];
    uint32_t samples[RT_OUTPUT_CLASSES];
    uint32_t prior;
};

void rt_output_mean_init(struct rt_output_mean *outputs, uint32_t prior);
void rt_output_mean_learn(struct rt_output_mean *outputs, uint32_t tenant, uint32_t prompt_class,
                          uint32_t generated);
/* At least 1, at most `max_tokens`. */
uint32_t rt_output_mean_expect(const struct rt_output_mean *outputs, uint32_t tenant,
                               uint32_t prompt_class, uint32_t max_tokens);

#endif
