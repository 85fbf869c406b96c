/*
 * Sampling parameters of the client API: one table of names, ranges and defaults, for HTTP and RPC
 * alike, so that both refuse the same values with the same words. Pure.
 */
#ifndef BATON_ROUTER_OPENAI_SAMPLING_H
#define BATON_ROUTER_OPENAI_SAMPLING_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/types.pb-c.h"
#include "router/generation_limits.h"
#include "router/openai_error.h"

enum rt_sampling_type { RT_SAMPLING_REAL, RT_SAMPLING_INT32, RT_SAMPLING_UINT32 };

struct rt_sampling_field {
    const char *name; /* as in the API; NULL ends the table */
    enum rt_sampling_type type;
    size_t offset; /* in Baton__V1__SamplingParams */
    double min, max;
    bool above_min; /* min itself is not allowed */
    bool json;      /* read from a JSON body by this name */
    double default_value;
};

extern const struct rt_sampling_field rt_sampling_fields[];

const struct rt_sampling_field *rt_sampling_field_find(const char *name); /* asserts it is there */

/* Defaults of the API: temperature 1, everything else off, no logprobs, max_tokens 0 (not set). */
void rt_sampling_init(Baton__V1__SamplingParams *sampling);

/* Checks the range and stores. Any double may be given, NaN included. */
enum bt_status rt_sampling_set_real(Baton__V1__SamplingParams *sampling,
                                    const struct rt_sampling_field *field, double value,
                                    struct rt_openai_error *error);
enum bt_status rt_sampling_set_integer(Baton__V1__SamplingParams *sampling,
                                       const struct rt_sampling_field *field, int64_t value,
                                       struct rt_openai_error *error);

/* One bias: -100..100, a token below `vocab_size` (0: not checked here). */
enum bt_status rt_sampling_check_bias(int64_t token, double value, uint32_t vocab_size,
                                      struct rt_openai_error *error);

/* `size` bytes of a stop string; `count`: strings so far, this one included. */
enum bt_status rt_sampling_check_stop(size_t size, size_t count, struct rt_openai_error *error);

/* What concerns several fields: min_tokens against max_tokens. */
enum bt_status rt_sampling_check(const Baton__V1__SamplingParams *sampling,
                                 struct rt_openai_error *error);

#endif
