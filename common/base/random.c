#include "common/base/random.h"

#include <errno.h>
#include <stddef.h>
#include <sys/random.h>

#include "common/base/status.h"

#define PHILOX_ROUNDS       10
#define PHILOX_MULTIPLIER_0 0xD2511F53u
#define PHILOX_MULTIPLIER_1 0xCD9E8D57u
#define PHILOX_WEYL_0       0x9E3779B9u
#define PHILOX_WEYL_1       0xBB67AE85u

void bt_random_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t ret_words[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t product0 = (uint64_t)PHILOX_MULTIPLIER_0 * c0;
        uint64_t product1 = (uint64_t)PHILOX_MULTIPLIER_1 * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += PHILOX_WEYL_0;
        k1 += PHILOX_WEYL_1;
    }
    ret_words[0] = c0;
    ret_words[1] = c1;
    ret_words[2] = c2;
    ret_words[3] = c3;
}

uint64_t bt_random_u64(uint64_t seed, uint64_t position, uint32_t draw)
{
    const uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), draw, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t words[4];
    bt_random_philox(counter, key, words);
    return (uint64_t)words[1] << 32 | words[0];
}

double bt_random_unit(uint64_t seed, uint64_t position, uint32_t draw)
{
    return (double)(bt_random_u64(seed, position, draw) >> 11) * 0x1p-53;
}

uint64_t bt_random_entropy(void)
{
    uint64_t value = 0;
    while (value == 0) {
        ssize_t got = getrandom(&value, sizeof value, 0);
        BT_ASSERT(got == (ssize_t)sizeof value || (got < 0 && errno == EINTR));
    }
    return value;
}
