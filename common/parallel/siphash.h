/* SipHash-2-4 (Aumasson and Bernstein, 2012): a keyed hash of short messages. */
#ifndef BATON_COMMON_PARALLEL_SIPHASH_H
#define BATON_COMMON_PARALLEL_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

struct bt_siphash_key {
    uint64_t words[2];
};

uint64_t bt_siphash(const struct bt_siphash_key *key, const void *data, size_t bytes);

#endif
