#include "router/token_bucket.h"

#include <math.h>

#include "common/base/clock.h"

#define MINUTE_NS 60e9
/* Parts of one are never missing for want of precision. */
#define ROUNDING 1e-6

static void fill(struct rt_token_bucket *bucket, int64_t now_ns)
{
    if (now_ns > bucket->at_ns) {
        bucket->level += (double)(now_ns - bucket->at_ns) * bucket->per_minute / MINUTE_NS;
        bucket->at_ns = now_ns;
    }
    if (bucket->level > bucket->per_minute) {
        bucket->level = bucket->per_minute;
    }
}

void rt_token_bucket_init(struct rt_token_bucket *bucket, uint32_t per_minute, int64_t now_ns)
{
    *bucket = (struct rt_token_bucket){per_minute, per_minute, now_ns};
}

void rt_token_bucket_set(struct rt_token_bucket *bucket, uint32_t per_minute, int64_t now_ns)
{
    fill(bucket, now_ns);
    double taken = bucket->per_minute - bucket->level;
    bucket->per_minute = per_minute;
    bucket->level = per_minute - taken;
}

int64_t rt_token_bucket_wait_ns(struct rt_token_bucket *bucket, double count, int64_t now_ns)
{
    if (bucket->per_minute == 0) {
        return 0;
    }
    fill(bucket, now_ns);
    if (count > bucket->per_minute) {
        return BT_NEVER_NS;
    }
    double missing = count - bucket->level - ROUNDING;
    return missing <= 0 ? 0 : (int64_t)ceil(missing / bucket->per_minute * MINUTE_NS);
}

void rt_token_bucket_take(struct rt_token_bucket *bucket, double count, int64_t now_ns)
{
    if (bucket->per_minute > 0) {
        fill(bucket, now_ns);
        bucket->level -= count;
    }
}
