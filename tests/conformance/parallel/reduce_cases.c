#include <math.h>

#include "tests/conformance/parallel/cases.h"

/* x0 + x1 + … in this order, each sum rounded to f32. */
static float sum_of_all(uint32_t size, uint64_t stream, size_t index)
{
    volatile float sum = random_float(stream, index);
    for (uint32_t r = 1; r < size; r++)
        sum = sum + random_float(stream + r, index);
    return sum;
}

static float *fill(uint32_t rank, uint64_t stream, size_t count)
{
    float *x = buffer_alloc((count + 1) * sizeof(*x));
    for (size_t i = 0; i < count; i++)
        x[i] = random_float(stream + rank, i);
    x[count] = 12345;
    return x;
}

/* NCCL adds up in an order of its own. */
static bool is_sum(float x, float wanted)
{
    return strcmp(transport, "nccl") == 0 ? fabsf(x - wanted) <= 1e-4f : x == wanted;
}

static struct bt_group_traffic traffic_of(const struct bt_group *group)
{
    struct bt_group_traffic traffic;
    bt_group_traffic(group, &traffic);
    return traffic;
}

static void all_reduce_once(struct bt_group *group, uint64_t stream, size_t count)
{
    uint32_t size = bt_group_size(group);
    float *x = fill(bt_group_rank(group), stream, count),
          *wanted = malloc((count + 1) * sizeof(*x));
    struct bt_group_traffic before = traffic_of(group);

    CHECK(wanted);
    for (size_t i = 0; i < count; i++)
        wanted[i] = sum_of_all(size, stream, i);
    CHECK(bt_group_all_reduce(group, x, count) == BT_OK);
    CHECK(await_calls(group) == BT_OK);
    for (size_t i = 0; i < count; i++)
        CHECK(is_sum(x[i], wanted[i]));
    CHECK(x[count] == 12345);
    /* Formula 28: 2 (TP - 1) / TP of the bytes; parts are whole lines, so up to one line off in
     * each part. */
    double sent = (double)(traffic_of(group).reduce - before.reduce);
    double formula = 2.0 * (size - 1) / size * (double)count * sizeof(float);
    double slack = 2.0 * size * 64;
    CHECK(sent <= formula + slack && sent >= formula - slack);
    buffer_free(x);
    free(wanted);
}

void check_all_reduce(struct bt_group *group, const struct bt_group_limits *limits)
{
    const size_t counts[] = {0, 1, 15, 16, 17, 1000, 4099, limits->floats};
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        if (counts[i] <= limits->floats)
            all_reduce_once(group, 1000 + 100 * i, counts[i]);
}

static void scatter_once(struct bt_group *group, uint64_t stream, uint32_t rows, uint32_t width)
{
    uint32_t size = bt_group_size(group), rank = bt_group_rank(group);
    struct bt_share share = bt_group_share(group, rank, rows);
    size_t own = (size_t)share.count * width;
    float *x = fill(rank, stream, (size_t)rows * width),
          *out = buffer_alloc((own + 1) * sizeof(*out));

    out[own] = 777;
    CHECK(bt_group_reduce_scatter(group, x, rows, width, out) == BT_OK);
    CHECK(await_calls(group) == BT_OK);
    for (size_t i = 0; i < own; i++)
        CHECK(is_sum(out[i], sum_of_all(size, stream, (size_t)share.first * width + i)));
    CHECK(out[own] == 777);
    buffer_free(x);
    buffer_free(out);
}

static void gather_once(struct bt_group *group, uint64_t stream, uint32_t rows, uint32_t width,
                        bool in_place)
{
    struct bt_share share = bt_group_share(group, bt_group_rank(group), rows);
    size_t all = (size_t)rows * width, first = (size_t)share.first * width;
    float *wanted = fill(0, stream, all), *out = buffer_alloc((all + 1) * sizeof(*out));
    float *mine = buffer_alloc(((size_t)share.count * width + 1) * sizeof(*mine));

    memset(out, 0xee, all * sizeof(*out));
    memcpy(mine, wanted + first, (size_t)share.count * width * sizeof(*mine));
    if (in_place)
        memcpy(out + first, mine, (size_t)share.count * width * sizeof(*mine));
    CHECK(bt_group_all_gather(group, in_place ? out + first : mine, rows, width, out) == BT_OK);
    CHECK(await_calls(group) == BT_OK);
    CHECK(memcmp(out, wanted, all * sizeof(*out)) == 0);
    buffer_free(wanted);
    buffer_free(out);
    buffer_free(mine);
}

static void check_shares(struct bt_group *group, uint32_t rows)
{
    uint32_t next = 0, size = bt_group_size(group);
    for (uint32_t r = 0; r < size; r++) {
        struct bt_share share = bt_group_share(group, r, rows);
        CHECK(share.first == next && share.count == rows / size + (r < rows % size));
        next += share.count;
    }
    CHECK(next == rows);
}

void check_scatter_and_gather(struct bt_group *group, const struct bt_group_limits *limits)
{
    uint32_t size = bt_group_size(group);
    const uint32_t rows[] = {0, 1, size, size + 1, 5, 3 * size - 1, 40};
    const uint32_t widths[] = {16, 3, 64, 1, 33, 7, 129};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        CHECK((size_t)rows[i] * widths[i] <= limits->floats);
        check_shares(group, rows[i]);
        scatter_once(group, 5000 + 100 * i, rows[i], widths[i]);
        gather_once(group, 7000 + 100 * i, rows[i], widths[i], i % 2 == 1);
    }
    if (limits->floats >= 100000 * size) { /* more than one exchange */
        scatter_once(group, 8000, size * 2 + 1, (uint32_t)(limits->floats / (size * 2 + 1)));
        gather_once(group, 8100, size * 2 + 1, (uint32_t)(limits->floats / (size * 2 + 1)), true);
    }
}
