#include "router/prefix_holders.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/status.h"

#define FEW       4
#define NO_HOLDER UINT16_MAX

struct block {
    uint64_t id;
    union {
        uint16_t few[FEW]; /* in any order, NO_HOLDER where there is none */
        uint64_t *many;    /* [word_count] */
    };
    uint32_t next; /* in the same bucket, or free */
    uint32_t uses : 31;
    uint32_t is_many : 1;
};

struct rt_prefix_holders {
    uint32_t max_blocks, word_count;
    struct block *blocks; /* [max_blocks] */
    uint32_t touched;     /* blocks that were ever in use: the first ones */
    uint32_t free;        /* of these, linked by next */
    uint32_t count;
    uint32_t many_count;
    uint32_t *buckets; /* [1 << bucket_bits] block + 1; 0: none */
    uint32_t bucket_bits;
    uint64_t multiplier; /* odd */
};

struct rt_prefix_holders *rt_prefix_holders_create(uint32_t max_blocks, uint32_t max_holders,
                                                   uint64_t salt)
{
    BT_ASSERT(max_holders < NO_HOLDER && max_blocks < UINT32_C(1) << 31);
    struct rt_prefix_holders *holders = calloc(1, sizeof(*holders));
    if (!holders) {
        return NULL;
    }
    holders->max_blocks = max_blocks;
    holders->word_count = max_holders / 64 + (max_holders % 64 != 0);
    holders->free = RT_NO_BLOCK;
    holders->multiplier = salt | 1;
    holders->bucket_bits = 1;
    while (UINT32_C(1) << holders->bucket_bits < max_blocks) {
        holders->bucket_bits++;
    }
    holders->blocks = calloc((size_t)max_blocks + 1, sizeof(*holders->blocks));
    holders->buckets = calloc((size_t)1 << holders->bucket_bits, sizeof(*holders->buckets));
    if (!holders->blocks || !holders->buckets) {
        rt_prefix_holders_destroy(holders);
        return NULL;
    }
    return holders;
}

void rt_prefix_holders_destroy(struct rt_prefix_holders *holders)
{
    if (!holders) {
        return;
    }
    for (uint32_t i = 0; holders->blocks && i < holders->touched; i++) {
        if (holders->blocks[i].is_many) {
            free(holders->blocks[i].many);
        }
    }
    free(holders->blocks);
    free(holders->buckets);
    free(holders);
}

/* ------------------------------------------------------------------ blocks */

/* As in the prefix index: ids that meet in a bucket can't be chosen without the multiplier. */
static uint32_t *bucket_of(const struct rt_prefix_holders *holders, uint64_t id)
{
    return &holders->buckets[id * holders->multiplier >> (64 - holders->bucket_bits)];
}

uint32_t rt_prefix_holders_find(const struct rt_prefix_holders *holders, uint64_t id)
{
    uint32_t block = *bucket_of(holders, id) - 1;
    while (block != RT_NO_BLOCK && holders->blocks[block].id != id) {
        block = holders->blocks[block].next;
    }
    return block;
}

uint32_t rt_prefix_holders_use(struct rt_prefix_holders *holders, uint64_t id)
{
    uint32_t block = rt_prefix_holders_find(holders, id);
    if (block == RT_NO_BLOCK) {
        BT_ASSERT(holders->count < holders->max_blocks);
        block = holders->free;
        if (block == RT_NO_BLOCK) {
            block = holders->touched++;
        } else {
            holders->free = holders->blocks[block].next;
        }
        uint32_t *bucket = bucket_of(holders, id);
        holders->blocks[block] = (struct block){
            .id = id, .few = {NO_HOLDER, NO_HOLDER, NO_HOLDER, NO_HOLDER}, .next = *bucket - 1};
        *bucket = block + 1;
        holders->count++;
    }
    holders->blocks[block].uses++;
    return block;
}

static void block_unlink(struct rt_prefix_holders *holders, uint32_t block)
{
    uint32_t *bucket = bucket_of(holders, holders->blocks[block].id);
    uint32_t next = holders->blocks[block].next;
    uint32_t before = *bucket - 1;
    if (before == block) {
        *bucket = next + 1;
        return;
    }
    while (holders->blocks[before].next != block) {
        before = holders->blocks[before].next;
    }
    holders->blocks[before].next = next;
}

void rt_prefix_holders_release(struct rt_prefix_holders *holders, uint32_t block)
{
    struct block *it = &holders->blocks[block];
    BT_ASSERT(it->uses > 0);
    if (--it->uses > 0) {
        return;
    }
    BT_ASSERT(!it->is_many);
    block_unlink(holders, block);
    it->next = holders->free;
    holders->free = block;
    holders->count--;
}

/* ------------------------------------------------------------------ who holds them */

static bool few_find(const struct block *block, uint16_t holder, uint32_t *ret_place)
{
    for (uint32_t i = 0; i < FEW; i++) {
        if (block->few[i] == holder) {
            *ret_place = i;
            return true;
        }
    }
    return false;
}

bool rt_prefix_holders_has(const struct rt_prefix_holders *holders, uint32_t block, uint32_t holder)
{
    const struct block *it = &holders->blocks[block];
    uint32_t place;
    if (it->is_many) {
        return it->many[holder / 64] >> holder % 64 & 1;
    }
    return few_find(it, (uint16_t)holder, &place);
}

static bool grow(struct rt_prefix_holders *holders, struct block *block)
{
    uint64_t *words = calloc(holders->word_count, sizeof(*words));
    if (!words) {
        return false;
    }
    for (uint32_t i = 0; i < FEW; i++) {
        words[block->few[i] / 64] |= UINT64_C(1) << block->few[i] % 64;
    }
    block->many = words;
    block->is_many = true;
    holders->many_count++;
    return true;
}

static void shrink(struct rt_prefix_holders *holders, struct block *block)
{
    uint16_t few[FEW] = {NO_HOLDER, NO_HOLDER, NO_HOLDER, NO_HOLDER};
    uint32_t count = 0;
    for (uint32_t word = 0; word < holders->word_count; word++) {
        for (uint64_t bits = block->many[word]; bits != 0; bits &= bits - 1) {
            few[count++] = (uint16_t)(word * 64 + (uint32_t)__builtin_ctzll(bits));
        }
    }
    free(block->many);
    memcpy(block->few, few, sizeof(few));
    block->is_many = false;
    holders->many_count--;
}

bool rt_prefix_holders_add(struct rt_prefix_holders *holders, uint32_t block, uint32_t holder)
{
    struct block *it = &holders->blocks[block];
    uint32_t place;
    if (!it->is_many && few_find(it, NO_HOLDER, &place)) {
        it->few[place] = (uint16_t)holder;
        return true;
    }
    if (!it->is_many && !grow(holders, it)) {
        return false;
    }
    it->many[holder / 64] |= UINT64_C(1) << holder % 64;
    return true;
}

/* Uses tell how many holders there may be, this one included; less than FEW fit with some to spare,
 * so that one that comes and goes moves nothing. */
void rt_prefix_holders_remove(struct rt_prefix_holders *holders, uint32_t block, uint32_t holder)
{
    struct block *it = &holders->blocks[block];
    uint32_t place;
    if (!it->is_many) {
        if (few_find(it, (uint16_t)holder, &place)) {
            it->few[place] = NO_HOLDER;
        }
        return;
    }
    it->many[holder / 64] &= ~(UINT64_C(1) << holder % 64);
    if (it->uses < FEW) {
        shrink(holders, it);
    }
}

void rt_prefix_holders_read(const struct rt_prefix_holders *holders, uint32_t block,
                            uint64_t *ret_words)
{
    const struct block *it = &holders->blocks[block];
    if (it->is_many) {
        memcpy(ret_words, it->many, holders->word_count * sizeof(*ret_words));
        return;
    }
    memset(ret_words, 0, holders->word_count * sizeof(*ret_words));
    for (uint32_t i = 0; i < FEW; i++) {
        if (it->few[i] != NO_HOLDER) {
            ret_words[it->few[i] / 64] |= UINT64_C(1) << it->few[i] % 64;
        }
    }
}

uint32_t rt_prefix_holders_words(const struct rt_prefix_holders *holders)
{
    return holders->word_count;
}

/* ------------------------------------------------------------------ looking in */

uint32_t rt_prefix_holders_count(const struct rt_prefix_holders *holders)
{
    return holders->count;
}

uint64_t rt_prefix_holders_bytes(const struct rt_prefix_holders *holders)
{
    return (sizeof(uint32_t) << holders->bucket_bits) +
           holders->touched * (uint64_t)sizeof(struct block) +
           holders->many_count * (uint64_t)holders->word_count * sizeof(uint64_t);
}

bool rt_prefix_holders_check(const struct rt_prefix_holders *holders)
{
    uint32_t count = 0, many = 0, spare = 0;
    for (uint32_t bucket = 0; bucket < UINT32_C(1) << holders->bucket_bits; bucket++) {
        for (uint32_t block = holders->buckets[bucket] - 1; block != RT_NO_BLOCK;
             block = holders->blocks[block].next) {
            const struct block *it = &holders->blocks[block];
            count++;
            many += it->is_many;
            if (it->uses == 0 || rt_prefix_holders_find(holders, it->id) != block) {
                return false;
            }
        }
    }
    for (uint32_t block = holders->free; block != RT_NO_BLOCK;
         block = holders->blocks[block].next) {
        spare++;
    }
    return count == holders->count && many == holders->many_count &&
           count + spare == holders->touched;
}
