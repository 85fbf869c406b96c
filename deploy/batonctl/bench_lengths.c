#include "deploy/batonctl/bench_lengths.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/random.h"

#define LOGNORMAL "lognormal:"
#define SIGMA_MAX 5

static bool parse_count(const char *text, const char **ret_end, uint32_t *ret_count)
{
    char *end;
    if (!isdigit((unsigned char)*text))
        return false;
    unsigned long count = strtoul(text, &end, 10);
    *ret_end = end;
    *ret_count = (uint32_t)count;
    return count <= CTL_BENCH_LENGTH_MAX;
}

static bool parse_lognormal(const char *text, struct ctl_bench_lengths *lengths)
{
    char *end;
    if (!isdigit((unsigned char)*text))
        return false;
    lengths->mean = strtod(text, &end);
    if (*end != ':' || !isdigit((unsigned char)end[1]))
        return false;
    lengths->sigma = strtod(end + 1, &end);
    return !*end && lengths->mean >= 1 && lengths->mean <= CTL_BENCH_LENGTH_MAX &&
           lengths->sigma > 0 && lengths->sigma <= SIGMA_MAX;
}

static bool parse_range(const char *text, struct ctl_bench_lengths *lengths)
{
    const char *end;
    if (!parse_count(text, &end, &lengths->low))
        return false;
    lengths->high = lengths->low;
    if (*end == ':' && !parse_count(end + 1, &end, &lengths->high))
        return false;
    return !*end && lengths->low <= lengths->high;
}

enum bt_status ctl_bench_lengths_parse(const char *text, struct bt_error *error,
                                       struct ctl_bench_lengths *ret_lengths)
{
    struct ctl_bench_lengths lengths = {0};
    size_t size = strlen(LOGNORMAL);
    bool good = strncmp(text, LOGNORMAL, size) == 0 ? parse_lognormal(text + size, &lengths)
                                                    : parse_range(text, &lengths);
    if (!good)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "'%s' is not a length: N, MIN:MAX or lognormal:MEAN:SIGMA, up to %u "
                            "tokens and a sigma up to %d",
                            text, CTL_BENCH_LENGTH_MAX, SIGMA_MAX);
    *ret_lengths = lengths;
    return BT_OK;
}

uint32_t ctl_bench_lengths_draw(const struct ctl_bench_lengths *lengths, uint64_t seed,
                                uint64_t index)
{
    if (lengths->sigma > 0) {
        double radius = sqrt(-2 * log(1 - bt_random_unit(seed, index, 0)));
        double normal = radius * cos(2 * M_PI * bt_random_unit(seed, index, 1));
        double sigma = lengths->sigma, mu = log(lengths->mean) - sigma * sigma / 2;
        return (uint32_t)fmin(fmax(round(exp(mu + sigma * normal)), 1), CTL_BENCH_LENGTH_MAX);
    }
    uint32_t span = lengths->high - lengths->low;
    if (span == 0)
        return lengths->low;
    return lengths->low + (uint32_t)(bt_random_unit(seed, index, 0) * (span + 1.0));
}

static bool is_drawn(const struct ctl_bench_lengths *lengths)
{
    return lengths->sigma > 0 || lengths->low != lengths->high;
}

static void cut(const struct ctl_bench_lengths *lengths, uint32_t most, uint32_t *tokens)
{
    if (is_drawn(lengths) && *tokens > most)
        *tokens = most;
}

void ctl_bench_lengths_fit(const struct ctl_bench_lengths *input,
                           const struct ctl_bench_lengths *output, uint32_t room,
                           uint32_t *input_tokens, uint32_t *output_tokens)
{
    if (room < 2)
        return;
    cut(output, room - 1, output_tokens);
    if (*output_tokens < room)
        cut(input, room - *output_tokens, input_tokens);
    if (*input_tokens < room)
        cut(output, room - *input_tokens, output_tokens);
}
