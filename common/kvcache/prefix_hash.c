#include "common/kvcache/prefix_hash.h"

#include <string.h>

/* SipHash (Aumasson and Bernstein, 2012) with 128 bits of output. */
struct state {
    uint64_t v0, v1, v2, v3;
};

static inline uint64_t rotate(uint64_t value, int bits)
{
    return value << bits | value >> (64 - bits);
}

static inline void state_round(struct state *s)
{
    s->v0 += s->v1;
    s->v2 += s->v3;
    s->v1 = rotate(s->v1, 13) ^ s->v0;
    s->v3 = rotate(s->v3, 16) ^ s->v2;
    s->v0 = rotate(s->v0, 32);
    s->v2 += s->v1;
    s->v0 += s->v3;
    s->v1 = rotate(s->v1, 17) ^ s->v2;
    s->v3 = rotate(s->v3, 21) ^ s->v0;
    s->v2 = rotate(s->v2, 32);
}

static inline void state_take(struct state *s, uint64_t word)
{
    s->v3 ^= word;
    state_round(s);
    s->v0 ^= word;
}

static inline uint64_t state_give(struct state *s)
{
    state_round(s);
    state_round(s);
    state_round(s);
    return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}

static inline struct state state_start(struct bt_prefix_hash key)
{
    return (struct state){
        .v0 = key.low ^ UINT64_C(0x736f6d6570736575),
        .v1 = key.high ^ UINT64_C(0x646f72616e646f6d) ^ 0xee,
        .v2 = key.low ^ UINT64_C(0x6c7967656e657261),
        .v3 = key.high ^ UINT64_C(0x7465646279746573),
    };
}

static inline struct bt_prefix_hash state_finish(struct state *s, uint64_t message_bytes)
{
    struct bt_prefix_hash hash;
    state_take(s, message_bytes << 56);
    s->v2 ^= 0xee;
    hash.low = state_give(s);
    s->v1 ^= 0xdd;
    hash.high = state_give(s);
    return hash;
}

/* Up to 8 characters. */
static uint64_t text_word(const char *text, size_t length)
{
    uint64_t word = 0;
    for (size_t i = 0; i < length && i < sizeof(word); i++) {
        word |= (uint64_t)(unsigned char)text[i] << 8 * i;
    }
    return word;
}

struct bt_prefix_hash bt_prefix_hash_start(const struct bt_fingerprint *fingerprint)
{
    const struct bt_kv_layout *layout = &fingerprint->layout;
    const char *dtype = bt_dtype_name(layout->dtype);
    const uint64_t fields[] = {
        fingerprint->layout_version,     fingerprint->model_hash, BT_PAGE_TOKENS,
        text_word(dtype, strlen(dtype)), layout->layer_count,     layout->kv_lora_rank,
        layout->qk_rope_head_dim,
    };
    struct state s = state_start((struct bt_prefix_hash){0});
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        state_take(&s, fields[i]);
    }
    size_t length = strnlen(fingerprint->arithmetic, BT_ARITHMETIC_SIZE);
    for (size_t i = 0; i < length; i += 8) {
        state_take(&s, text_word(&fingerprint->arithmetic[i], length - i));
    }
    return state_finish(&s, sizeof(fields) + (length + 7) / 8 * 8);
}

struct bt_prefix_hash bt_prefix_hash_block(struct bt_prefix_hash parent,
                                           const uint32_t tokens[BT_PAGE_TOKENS])
{
    struct state s = state_start(parent);
    for (uint32_t i = 0; i < BT_PAGE_TOKENS; i += 2) {
        state_take(&s, tokens[i] | (uint64_t)tokens[i + 1] << 32);
    }
    return state_finish(&s, BT_PAGE_TOKENS * sizeof(uint32_t));
}

uint32_t bt_prefix_hash_prompt(struct bt_prefix_hash start, const uint32_t *tokens,
                               uint32_t token_count, struct bt_prefix_hash *ret_hashes)
{
    uint32_t count = token_count / BT_PAGE_TOKENS;
    struct bt_prefix_hash hash = start;
    for (uint32_t i = 0; i < count; i++) {
        hash = bt_prefix_hash_block(hash, &tokens[(size_t)i * BT_PAGE_TOKENS]);
        ret_hashes[i] = hash;
    }
    return count;
}
