#include "deploy/batonctl/bench_samples.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Values below 2^SUB_BITS have a bucket each; above, each power of two has 2^SUB_BITS of them. */
#define SUB_BITS     7
#define SUB_COUNT    (1u << SUB_BITS)
#define BUCKET_COUNT ((64 - SUB_BITS) * SUB_COUNT)

static unsigned bucket_of(int64_t value)
{
    uint64_t v = (uint64_t)value;
    if (v < SUB_COUNT)
        return (unsigned)v;
    unsigned shift = 63 - (unsigned)__builtin_clzll(v) - SUB_BITS;
    return (shift + 1) * SUB_COUNT + (unsigned)((v >> shift) - SUB_COUNT);
}

/* The middle of a bucket. */
static double value_of(unsigned bucket)
{
    if (bucket < 2 * SUB_COUNT)
        return bucket;
    unsigned shift = bucket / SUB_COUNT - 1;
    double low = ldexp(SUB_COUNT + bucket % SUB_COUNT, (int)shift);
    return low + (ldexp(1, (int)shift) - 1) / 2;
}

void ctl_bench_samples_finish(struct ctl_bench_samples *samples)
{
    free(samples->kept);
    free(samples->buckets);
    memset(samples, 0, sizeof *samples);
}

static bool reserve(struct ctl_bench_samples *samples, size_t count)
{
    if (count <= samples->capacity)
        return true;
    size_t capacity = samples->capacity ? samples->capacity : 64;
    while (capacity < count)
        capacity *= 2;
    int64_t *kept = realloc(samples->kept, capacity * sizeof *kept);
    if (!kept)
        return false;
    samples->kept = kept;
    samples->capacity = capacity;
    return true;
}

static void keep(struct ctl_bench_samples *samples, int64_t value, uint64_t times)
{
    if (samples->lossy)
        return;
    if (times > CTL_BENCH_EXACT - samples->count || !reserve(samples, samples->count + times)) {
        free(samples->kept);
        samples->kept = NULL;
        samples->lossy = true;
        return;
    }
    for (uint64_t i = 0; i < times; i++)
        samples->kept[samples->count + i] = value;
    samples->sorted = false;
}

void ctl_bench_samples_add(struct ctl_bench_samples *samples, int64_t value_ns, uint64_t times)
{
    int64_t value = value_ns > 0 ? value_ns : 0;
    if (!samples->buckets)
        samples->buckets = calloc(BUCKET_COUNT, sizeof *samples->buckets);
    if (!samples->buckets || times == 0)
        return;
    keep(samples, value, times);
    if (samples->count == 0 || value < samples->least)
        samples->least = value;
    if (value > samples->greatest)
        samples->greatest = value;
    samples->buckets[bucket_of(value)] += times;
    samples->count += times;
    samples->sum += (double)value * (double)times;
}

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

double ctl_bench_samples_about_s(const struct ctl_bench_samples *samples, double q)
{
    if (samples->count == 0)
        return 0;
    uint64_t rank = (uint64_t)(q * (double)(samples->count - 1)), before = 0;
    for (unsigned i = 0; i < BUCKET_COUNT; i++) {
        before += samples->buckets[i];
        if (before > rank) {
            double value = fmax(value_of(i), (double)samples->least);
            return fmin(value, (double)samples->greatest) / 1e9;
        }
    }
    return (double)samples->greatest / 1e9;
}

double ctl_bench_samples_quantile_s(struct ctl_bench_samples *samples, double q)
{
    if (samples->count == 0)
        return 0;
    if (samples->lossy)
        return ctl_bench_samples_about_s(samples, q);
    if (!samples->sorted)
        qsort(samples->kept, samples->count, sizeof *samples->kept, compare);
    samples->sorted = true;
    double place = q * (double)(samples->count - 1);
    size_t low = (size_t)place, high = low + 1 < samples->count ? low + 1 : low;
    double below = (double)samples->kept[low], above = (double)samples->kept[high];
    return (below + (above - below) * (place - (double)low)) / 1e9;
}

double ctl_bench_samples_mean_s(const struct ctl_bench_samples *samples)
{
    return samples->count ? samples->sum / (double)samples->count / 1e9 : 0;
}
