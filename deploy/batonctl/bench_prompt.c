#include "deploy/batonctl/bench_prompt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/random.h"

#define WORD_COUNT 96
#define WORD_SIZE  12 /* with the blank, at most */

/* Streams of draws that have nothing to do with each other. */
enum stream { STREAM_OWN = 1, STREAM_PREFIX, STREAM_BLOCK };

const char ctl_bench_words[] =
    "the river keeps a small house near old trees while every morning people walk along its quiet "
    "water and look for stones that shine after rain some of them count birds others read letters "
    "from far cities where winter lasts longer than summer nobody knows how many doors the tower "
    "has but children say it must be more than twelve because light comes out at night between "
    "seven windows under grey clouds one man draws maps of roads which lead to green hills then "
    "north";

static uint64_t stream_seed(const struct ctl_bench_prompts *prompts, enum stream stream)
{
    return bt_random_u64(prompts->seed, stream, 0);
}

/* Below `bound`; draw `i` of a stream. */
static uint32_t draw(uint64_t seed, uint64_t position, uint32_t i, uint32_t bound)
{
    uint64_t both = bt_random_u64(seed, position, i / 2);
    uint32_t word = (uint32_t)(i % 2 ? both >> 32 : both);
    return (uint32_t)((uint64_t)word * bound >> 32);
}

static void fill(const struct ctl_bench_prompts *prompts, enum stream stream, uint64_t position,
                 uint32_t first, uint32_t count, uint32_t *ids)
{
    uint64_t seed = stream_seed(prompts, stream);
    for (uint32_t i = 0; i < count; i++)
        ids[i] = prompts->pool[draw(seed, position, first + i, prompts->pool_count)];
}

void ctl_bench_prompt_ids(const struct ctl_bench_prompts *prompts, uint64_t index, uint32_t count,
                          uint32_t *ret_ids)
{
    fill(prompts, STREAM_PREFIX, index % prompts->prefix_count, 0, prompts->prefix_tokens, ret_ids);
    fill(prompts, STREAM_OWN, index, 0, count, ret_ids + prompts->prefix_tokens);
}

void ctl_bench_prompt_blocks(const struct ctl_bench_prompts *prompts, uint64_t index,
                             const uint64_t *hashes, uint32_t hash_count, uint32_t count,
                             uint32_t *ret_ids)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < hash_count && at < count; i++) {
        uint32_t left = count - at;
        uint32_t size = left < prompts->block_tokens ? left : prompts->block_tokens;
        fill(prompts, STREAM_BLOCK, hashes[i], 0, size, ret_ids + at);
        at += size;
    }
    fill(prompts, STREAM_OWN, index, at, count - at, ret_ids + at);
}

/* ------------------------------------------------------------------ text */

static char *add_words(const struct ctl_bench_prompts *prompts, enum stream stream,
                       uint64_t position, uint32_t words, char *at)
{
    const char *starts[WORD_COUNT];
    uint32_t known = 0;
    for (const char *word = ctl_bench_words; word && known < WORD_COUNT;) {
        starts[known++] = word;
        word = strchr(word, ' ');
        word = word ? word + 1 : NULL;
    }
    uint64_t seed = stream_seed(prompts, stream);
    for (uint32_t i = 0; i < words; i++) {
        const char *word = starts[draw(seed, position, i, known)];
        size_t size = strcspn(word, " ");
        memcpy(at, word, size);
        at[size] = ' ';
        at += size + 1;
    }
    return at;
}

static uint32_t words_of(const struct ctl_bench_prompts *prompts, uint32_t tokens)
{
    double words = round(tokens / fmax(prompts->tokens_per_word, 0.5));
    return tokens ? (uint32_t)fmax(words, 1) : 0;
}

char *ctl_bench_prompt_text(const struct ctl_bench_prompts *prompts, uint64_t index, uint32_t count)
{
    uint32_t shared = words_of(prompts, prompts->prefix_tokens), own = words_of(prompts, count);
    char *text = malloc(((size_t)shared + own) * WORD_SIZE + 1);
    if (!text)
        return NULL;
    char *at = add_words(prompts, STREAM_PREFIX, index % prompts->prefix_count, shared, text);
    at = add_words(prompts, STREAM_OWN, index, own, at);
    *(at > text ? at - 1 : at) = '\0';
    return text;
}
