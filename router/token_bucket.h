/*
 * A limit of so many a minute, as a bucket: it holds a minute's worth at most, and fills evenly.
 * Pure; the clock is an argument. Caller-owned.
 */
#ifndef BATON_ROUTER_TOKEN_BUCKET_H
#define BATON_ROUTER_TOKEN_BUCKET_H

#include <stdbool.h>
#include <stdint.h>

struct rt_token_bucket {
    uint32_t per_minute; /* 0: no limit */
    double level;        /* below 0: more was taken than there was */
    int64_t at_ns;       /* as of then */
};

/* A full one. */
void rt_token_bucket_init(struct rt_token_bucket *bucket, uint32_t per_minute, int64_t now_ns);
/* Another limit; what was taken stays taken. */
void rt_token_bucket_set(struct rt_token_bucket *bucket, uint32_t per_minute, int64_t now_ns);
/* How long until `count` are there: 0: they are; BT_NEVER_NS: it never holds so many. Takes none.
 */
int64_t rt_token_bucket_wait_ns(struct rt_token_bucket *bucket, double count, int64_t now_ns);
/* Takes them, whether they are there or not; negative ones come back. */
void rt_token_bucket_take(struct rt_token_bucket *bucket, double count, int64_t now_ns);

#endif
