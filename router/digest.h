/*
 * SHA-256, of what comes piece by piece. Pure; one thread a digest.
 */
#ifndef BATON_ROUTER_DIGEST_H
#define BATON_ROUTER_DIGEST_H

#include <stdbool.h>
#include <stddef.h>

#define RT_DIGEST_BYTES      32
#define RT_DIGEST_HEX_DIGITS (2 * RT_DIGEST_BYTES)

struct rt_digest {
    unsigned char bytes[RT_DIGEST_BYTES];
};

/* Of one text at once. False: no memory. */
bool rt_digest_of(const void *data, size_t size, struct rt_digest *ret_digest);

/* Piece by piece: begin, any number of adds, end; the last frees it. NULL: no memory. */
struct rt_digest_work;
struct rt_digest_work *rt_digest_begin(void);
void rt_digest_add(struct rt_digest_work *work, const void *data, size_t size);
void rt_digest_end(struct rt_digest_work *work, struct rt_digest *ret_digest);

/* In a time that says nothing of the bytes. */
bool rt_digest_equal(const struct rt_digest *a, const struct rt_digest *b);
/* From hex digits of either case. False: they are none. */
bool rt_digest_from_hex(const char *hex, size_t size, struct rt_digest *ret_digest);

#endif
