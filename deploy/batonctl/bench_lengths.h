/* Lengths of prompts and outputs in tokens: fixed, or drawn. Pure. */
#ifndef BATON_DEPLOY_BATONCTL_BENCH_LENGTHS_H
#define BATON_DEPLOY_BATONCTL_BENCH_LENGTHS_H

#include <stdint.h>

#include "common/base/status.h"

#define CTL_BENCH_LENGTH_MAX (4u << 20)

/*
 * "512": all alike; "128:1024": uniform, both ends included; "lognormal:512:0.8": of mean 512,
 * whose logarithms deviate by 0.8.
 */
struct ctl_bench_lengths {
    uint32_t low, high;
    double mean, sigma; /* sigma 0: not lognormal */
};

enum bt_status ctl_bench_lengths_parse(const char *text, struct bt_error *error,
                                       struct ctl_bench_lengths *ret_lengths);

/* 1..CTL_BENCH_LENGTH_MAX (0 where low is). */
uint32_t ctl_bench_lengths_draw(const struct ctl_bench_lengths *lengths, uint64_t seed,
                                uint64_t index);

/*
 * Cuts what was drawn so that both fit into `room` tokens: the prompt first, of which one token
 * stays, then the output. What was named is not touched, be it too long.
 */
void ctl_bench_lengths_fit(const struct ctl_bench_lengths *input,
                           const struct ctl_bench_lengths *output, uint32_t room,
                           uint32_t *input_tokens, uint32_t *output_tokens);

#endif
