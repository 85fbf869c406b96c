/*
 * What prompts are made of: drawn from a pool of ordinary tokens (or words) by the seed and the
 * request's number alone, with what is shared between them. Pure.
 */
#ifndef BATON_DEPLOY_BATONCTL_BENCH_PROMPT_H
#define BATON_DEPLOY_BATONCTL_BENCH_PROMPT_H

#include <stddef.h>
#include <stdint.h>

/* Ordinary words, separated by one blank; what the pool of tokens comes from. */
extern const char ctl_bench_words[];

struct ctl_bench_prompts {
    const uint32_t *pool; /* [pool_count] token ids */
    uint32_t pool_count;  /* > 0 */
    uint64_t seed;
    uint32_t prefix_tokens; /* that prompts of one prefix share */
    uint32_t prefix_count;  /* how many prefixes there are, taken in turn; > 0 */
    uint32_t block_tokens;  /* of one hash id of a trace; > 0 */
    double tokens_per_word;
};

/* The prefix and `count` tokens after it: prefix_tokens + count in all. */
void ctl_bench_prompt_ids(const struct ctl_bench_prompts *prompts, uint64_t index, uint32_t count,
                          uint32_t *ret_ids);
/* `count` tokens in all; those that the hashes do not cover are the request's own. */
void ctl_bench_prompt_blocks(const struct ctl_bench_prompts *prompts, uint64_t index,
                             const uint64_t *hashes, uint32_t hash_count, uint32_t count,
                             uint32_t *ret_ids);
/* As ctl_bench_prompt_ids, of about so many tokens; malloc'd. NULL: no memory. */
char *ctl_bench_prompt_text(const struct ctl_bench_prompts *prompts, uint64_t index,
                            uint32_t count);

#endif
