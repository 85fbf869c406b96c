#include "common/parallel/siphash.h"

#include <string.h>

struct state {
    uint64_t v[4];
};

static inline uint64_t turn(uint64_t x, int bits)
{
    return x << bits | x >> (64 - bits);
}

static void rounds(struct state *s, int count)
{
    while (count-- > 0) {
        s->v[0] += s->v[1];
        s->v[2] += s->v[3];
        s->v[1] = turn(s->v[1], 13) ^ s->v[0];
        s->v[3] = turn(s->v[3], 16) ^ s->v[2];
        s->v[0] = turn(s->v[0], 32);
        s->v[2] += s->v[1];
        s->v[0] += s->v[3];
        s->v[1] = turn(s->v[1], 17) ^ s->v[2];
        s->v[3] = turn(s->v[3], 21) ^ s->v[0];
        s->v[2] = turn(s->v[2], 32);
    }
}

static void take(struct state *s, uint64_t word)
{
    s->v[3] ^= word;
    rounds(s, 2);
    s->v[0] ^= word;
}

static uint64_t little_endian(const unsigned char *bytes, size_t count)
{
    uint64_t word = 0;
    for (size_t i = 0; i < count; i++)
        word |= (uint64_t)bytes[i] << (8 * i);
    return word;
}

uint64_t bt_siphash(const struct bt_siphash_key *key, const void *data, size_t bytes)
{
    const unsigned char *at = data;
    uint64_t k0 = key->words[0], k1 = key->words[1];
    struct state s = {{k0 ^ UINT64_C(0x736f6d6570736575), k1 ^ UINT64_C(0x646f72616e646f6d),
                       k0 ^ UINT64_C(0x6c7967656e657261), k1 ^ UINT64_C(0x7465646279746573)}};

    for (size_t left = bytes / 8; left > 0; left--, at += 8)
        take(&s, little_endian(at, 8));
    take(&s, (uint64_t)bytes << 56 | little_endian(at, bytes % 8));
    s.v[2] ^= 0xff;
    rounds(&s, 4);
    return s.v[0] ^ s.v[1] ^ s.v[2] ^ s.v[3];
}
