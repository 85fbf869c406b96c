#include "router/digest.h"

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>

#include "common/base/status.h"

/* The library's own handle, under our name. */
struct rt_digest_work *rt_digest_begin(void)
{
    gnutls_hash_hd_t hash;
    if (gnutls_hash_init(&hash, GNUTLS_DIG_SHA256) != 0) {
        return NULL;
    }
    return (struct rt_digest_work *)hash;
}

void rt_digest_add(struct rt_digest_work *work, const void *data, size_t size)
{
    BT_ASSERT(gnutls_hash((gnutls_hash_hd_t)work, data, size) == 0);
}

void rt_digest_end(struct rt_digest_work *work, struct rt_digest *ret_digest)
{
    gnutls_hash_deinit((gnutls_hash_hd_t)work, ret_digest->bytes);
}

bool rt_digest_of(const void *data, size_t size, struct rt_digest *ret_digest)
{
    return gnutls_hash_fast(GNUTLS_DIG_SHA256, data, size, ret_digest->bytes) == 0;
}

bool rt_digest_equal(const struct rt_digest *a, const struct rt_digest *b)
{
    return gnutls_memcmp(a->bytes, b->bytes, RT_DIGEST_BYTES) == 0;
}

static int hex_value(char digit)
{
    if (digit >= '0' && digit <= '9') {
        return digit - '0';
    }
    char lower = (char)(digit | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

bool rt_digest_from_hex(const char *hex, size_t size, struct rt_digest *ret_digest)
{
    if (size != RT_DIGEST_HEX_DIGITS) {
        return false;
    }
    struct rt_digest digest;
    for (size_t i = 0; i < RT_DIGEST_BYTES; i++) {
        int high = hex_value(hex[2 * i]);
        int low = hex_value(hex[2 * i + 1]);
        if (high < 0 || low < 0) {
            return false;
        }
        digest.bytes[i] = (unsigned char)(high << 4 | low);
    }
    *ret_digest = digest;
    return true;
}
