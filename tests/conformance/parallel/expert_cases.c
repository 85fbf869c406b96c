/*
 * Dispatch and combine against a plain computation: every rank knows what all ranks have, as the
 * rows are a function of the seed, and works out from the contract what must come to it.
 */
#include <float.h>
#include <math.h>

#include "tests/conformance/parallel/cases.h"

enum choice { ANY_EXPERTS, EXPERTS_OF_ONE_RANK, FEW_EXPERTS };

struct scene {
    uint64_t stream;
    enum choice choice;
    uint32_t replicas; /* ranks that hold an expert */
    bool contiguous;
    uint32_t most_rows;
    bool some_idle; /* every third rank has no rows */
    enum bt_dtype payload, back;
    enum bt_dispatch_mode mode;
};

/* What the ranks have; the same on all. */
struct world {
    const struct scene *scene;
    uint32_t size, rank, machines, experts, k, hidden, limit;
    uint32_t rows[BT_GROUP_RANKS_MAX];
    uint32_t *routed[BT_GROUP_RANKS_MAX];  /* [rank][row][k] experts */
    uint32_t *goes_to[BT_GROUP_RANKS_MAX]; /* likewise, ranks */
    uint32_t *begin, *ranks;               /* the placement */
    uint32_t machine_of[BT_GROUP_RANKS_MAX];
};

/* ---- the world ---- */

static void place_experts(struct world *w)
{
    uint32_t copies = w->scene->replicas < w->size ? w->scene->replicas : w->size;
    w->begin = malloc((w->experts + 1) * sizeof(*w->begin));
    w->ranks = malloc((size_t)w->experts * copies * sizeof(*w->ranks));
    CHECK(w->begin && w->ranks);
    for (uint32_t e = 0, next = 0; e <= w->experts; e++) {
        bool held[BT_GROUP_RANKS_MAX] = {false};
        uint32_t home = w->scene->contiguous ? e * w->size / w->experts : e % w->size;
        uint32_t wanted = 1 + e % copies; /* not all have as many */
        w->begin[e] = next;
        for (uint32_t i = 0; i < wanted && e < w->experts; i++)
            held[(home + i * (1 + e % 2)) % w->size] = true;
        for (uint32_t r = 0; r < w->size; r++)
            if (held[r])
                w->ranks[next++] = r;
    }
}

static bool holds(const struct world *w, uint32_t expert, uint32_t rank)
{
    for (uint32_t i = w->begin[expert]; i < w->begin[expert + 1]; i++)
        if (w->ranks[i] == rank)
            return true;
    return false;
}

/* Distinct experts, in no order. */
static void route_row(const struct world *w, uint32_t rank, uint32_t row, uint32_t *ret_experts)
{
    uint64_t stream = w->scene->stream + 1000 + rank;
    for (uint32_t place = 0, draw = 0; place < w->k;) {
        uint32_t expert = random_below(stream, (uint64_t)row * 100000 + draw++, w->experts);
        bool again = false;
        if (w->scene->choice == FEW_EXPERTS && draw < 1000)
            expert = expert % (w->k + 1);
        if (w->scene->choice == EXPERTS_OF_ONE_RANK && draw < 1000 &&
            !holds(w, expert, w->size - 1))
            continue;
        for (uint32_t i = 0; i < place; i++)
            again = again || ret_experts[i] == expert;
        if (!again)
            ret_experts[place++] = expert;
    }
}

static float weight_of(const struct world *w, uint32_t rank, uint32_t row, uint32_t place)
{
    return random_float(w->scene->stream + 2000 + rank, (uint64_t)row * w->k + place);
}

static float input(const struct world *w, uint32_t rank, uint32_t row, uint32_t column)
{
    uint64_t index = (uint64_t)row * w->hidden + column;
    float value = random_float(w->scene->stream + 3000 + rank, index);
    if (row % 5 == 3)
        value *= 1e-3f * (float)(column + 1); /* not all of one size */
    return row % 7 == 6 ? 0.0f : value;
}

static void give_out(struct world *w, uint32_t source);

static void make_world(struct world *w, struct bt_group *group, const struct scene *scene,
                       const struct bt_group_limits *limits, uint32_t ranks_per_machine)
{
    *w = (struct world){.scene = scene,
                        .size = bt_group_size(group),
                        .rank = bt_group_rank(group),
                        .machines = bt_group_machines(group),
                        .experts = limits->experts,
                        .k = limits->experts_per_token,
                        .hidden = limits->hidden,
                        .limit = limits->rows};
    place_experts(w);
    for (uint32_t r = 0; r < w->size; r++) {
        w->machine_of[r] = r / ranks_per_machine;
        w->rows[r] = random_below(scene->stream + 10, r, scene->most_rows + 1);
        if (scene->some_idle && r % 3 == 1)
            w->rows[r] = 0;
        if (!scene->some_idle && r == 0)
            w->rows[r] = scene->most_rows;
        w->routed[r] = buffer_alloc(((size_t)w->rows[r] * w->k + 1) * sizeof(uint32_t));
        CHECK(w->routed[r]);
        for (uint32_t row = 0; row < w->rows[r]; row++)
            route_row(w, r, row, w->routed[r] + (size_t)row * w->k);
    }
    for (uint32_t r = 0; r < w->size; r++)
        give_out(w, r);
}

static void free_world(struct world *w)
{
    for (uint32_t r = 0; r < w->size; r++)
        buffer_free(w->routed[r]);
    for (uint32_t r = 0; r < w->size; r++)
        free(w->goes_to[r]);
    free(w->begin);
    free(w->ranks);
}

/* ---- what the contract says ---- */

/* The copy that a pick goes to: the least loaded by what the source has given out before. */
static uint32_t replica(const struct world *w, uint32_t source, uint32_t row, uint32_t expert)
{
    for (uint32_t place = 0; place < w->k; place++)
        if (w->routed[source][row * w->k + place] == expert)
            return w->goes_to[source][row * w->k + place];
    CHECK(false);
    return 0;
}

/* Copies that `source` may ask, in their order. */
static uint32_t allowed(const struct world *w, uint32_t source, uint32_t expert, uint32_t *ret)
{
    uint32_t first = w->begin[expert], end = w->begin[expert + 1], near = 0;
    for (uint32_t i = first; i < end; i++)
        near += w->machine_of[w->ranks[i]] == w->machine_of[source];
    uint32_t count = 0;
    for (uint32_t i = first; i < end; i++)
        if (!near || w->machine_of[w->ranks[i]] == w->machine_of[source])
            ret[count++] = w->ranks[i];
    return count;
}

static void give_out(struct world *w, uint32_t source)
{
    uint32_t given[BT_GROUP_RANKS_MAX] = {0}, copies[BT_GROUP_RANKS_MAX];
    size_t picks = (size_t)w->rows[source] * w->k;
    w->goes_to[source] = malloc((picks + 1) * sizeof(uint32_t));
    CHECK(w->goes_to[source]);
    for (uint32_t turn = 0; turn < 2; turn++) {
        for (size_t pick = 0; pick < picks; pick++) {
            uint32_t expert = w->routed[source][pick];
            bool single = w->begin[expert + 1] - w->begin[expert] == 1;
            if (single != (turn == 0))
                continue;
            uint32_t count = allowed(w, source, expert, copies), fewest = UINT32_MAX;
            uint32_t from = (uint32_t)(pick / w->k) + source, chosen = UINT32_MAX;
            for (uint32_t i = 0; i < count; i++)
                if (given[copies[i]] < fewest)
                    fewest = given[copies[i]];
            for (uint32_t i = 0; i < count; i++)
                if (copies[i] == source && given[source] == fewest)
                    chosen = source;
            for (uint32_t i = 0; i < count && chosen == UINT32_MAX; i++)
                if (given[copies[(from + i) % count]] == fewest)
                    chosen = copies[(from + i) % count];
            w->goes_to[source][pick] = chosen;
            given[chosen]++;
        }
    }
}

static void wanted_row(const struct world *w, uint32_t source, uint32_t row, float *out)
{
    for (uint32_t i = 0; i < w->hidden; i++)
        out[i] = input(w, source, row, i);
    for (uint32_t i = 0; i < w->hidden && w->scene->payload == BT_BF16; i++)
        out[i] = bt_bf16_to_f32(bt_f32_to_bf16(out[i]));
    for (uint32_t first = 0; first < w->hidden && w->scene->payload == BT_F8_E4M3; first += 128) {
        uint32_t end = w->hidden - first < 128 ? w->hidden : first + 128;
        float max = 0;
        for (uint32_t i = first; i < end; i++)
            max = fmaxf(max, fabsf(out[i]));
        float scale = max > 0 ? fmaxf(max / 448.0f, FLT_MIN) : 1.0f;
        for (uint32_t i = first; i < end; i++)
            out[i] = bt_f8_e4m3_to_f32(bt_f32_to_f8_e4m3(out[i] / scale)) * scale;
    }
}

/* What the expert makes of a value, as it travels back. */
static float expert_value(const struct world *w, uint32_t expert, float x, uint32_t column)
{
    float y = x * (0.5f + (float)expert) - (float)(column % 11) * 0.125f;
    return w->scene->back == BT_BF16 ? bt_bf16_to_f32(bt_f32_to_bf16(y)) : y;
}

/* ---- checks ---- */

struct place {
    uint32_t source, row, place;
};

/* Picks of local experts by ascending expert, then source, then row. */
static void check_order(const struct world *w, const struct bt_arrivals *arrivals)
{
    uint32_t picks = 0;
    float *wanted = malloc(w->hidden * sizeof(*wanted));
    CHECK(wanted);
    for (uint32_t expert = 0; expert < w->experts; expert++) {
        CHECK(arrivals->routing.begin[expert] == picks);
        for (uint32_t source = 0; source < w->size; source++) {
            for (uint32_t row = 0; row < w->rows[source]; row++) {
                for (uint32_t place = 0; place < w->k; place++) {
                    if (w->routed[source][row * w->k + place] != expert ||
                        replica(w, source, row, expert) != w->rank)
                        continue;
                    uint32_t pick = arrivals->routing.order[picks++];
                    CHECK(pick % w->k == place && pick / w->k < arrivals->rows);
                    wanted_row(w, source, row, wanted);
                    CHECK(memcmp(arrivals->x + (size_t)(pick / w->k) * w->hidden, wanted,
                                 w->hidden * sizeof(*wanted)) == 0);
                }
            }
        }
    }
    CHECK(arrivals->routing.begin[w->experts] == picks);
    CHECK(arrivals->on_device ? arrivals->picks >= picks : arrivals->picks == picks);
    free(wanted);
}

/* Rows of `source` that go to `rank`, and of those that go to any rank of its machine. */
static uint32_t rows_between(const struct world *w, uint32_t source, uint32_t rank, bool machine)
{
    uint32_t rows = 0;
    for (uint32_t row = 0; row < w->rows[source]; row++) {
        bool goes = false;
        for (uint32_t place = 0; place < w->k; place++) {
            uint32_t to = replica(w, source, row, w->routed[source][row * w->k + place]);
            goes = goes || to == rank || (machine && w->machine_of[to] == w->machine_of[rank]);
        }
        rows += goes;
    }
    return rows;
}

static uint64_t picks_between(const struct world *w, uint32_t source, uint32_t rank)
{
    uint64_t picks = 0;
    for (uint32_t pick = 0; pick < w->rows[source] * w->k; pick++)
        picks += replica(w, source, pick / w->k, w->routed[source][pick]) == rank;
    return picks;
}

static uint32_t most_rows(const struct world *w)
{
    uint32_t most = 0;
    for (uint32_t r = 0; r < w->size; r++)
        most = w->rows[r] > most ? w->rows[r] : most;
    return most;
}

static size_t payload_bytes(const struct world *w, enum bt_dtype payload)
{
    if (payload == BT_F8_E4M3)
        return (w->hidden + 3) / 4 * 4 + (w->hidden + 127) / 128 * 4;
    return payload == BT_BF16 ? (w->hidden * 2 + 3) / 4 * 4 : w->hidden * 4;
}

static void check_rows(const struct world *w, const struct bt_arrivals *arrivals)
{
    uint32_t rows = 0;
    for (uint32_t source = 0; source < w->size; source++)
        rows += rows_between(w, source, w->rank, false);
    CHECK(arrivals->on_device ? arrivals->rows >= rows : arrivals->rows == rows);
}

/* What is queued is as much as the rank with most rows has, to every rank. */
static void check_queued_traffic(const struct world *w, const struct bt_group_traffic *before,
                                 const struct bt_group_traffic *after)
{
    uint64_t rows = (uint64_t)(most_rows(w) ? most_rows(w) : w->limit) * (w->size - 1);
    CHECK(after->dispatch - before->dispatch == rows * payload_bytes(w, w->scene->payload));
    CHECK(after->combine - before->combine ==
          rows * w->k * w->hidden * (w->scene->back == BT_BF16 ? 2 : 4));
}

static void check_traffic(const struct world *w, const struct bt_group_traffic *before,
                          const struct bt_group_traffic *after)
{
    uint64_t dispatch = 0, combine = 0, between = 0;
    uint64_t row = payload_bytes(w, w->scene->payload);
    uint64_t back = (uint64_t)w->hidden * (w->scene->back == BT_BF16 ? 2 : 4);
    for (uint32_t r = 0; r < w->size; r++) {
        bool far = w->machine_of[r] != w->machine_of[w->rank];
        if (r == w->rank)
            continue;
        dispatch += rows_between(w, w->rank, r, false) * row;
        combine += picks_between(w, r, w->rank) * back;
        between += far ? picks_between(w, r, w->rank) * back : 0;
        if (far && (r == 0 || w->machine_of[r - 1] != w->machine_of[r])) /* once a machine */
            between += rows_between(w, w->rank, r, true) * row;
    }
    CHECK(after->dispatch - before->dispatch == dispatch);
    CHECK(after->combine - before->combine == combine);
    CHECK(after->between_machines - before->between_machines == between);
}

static void *run_experts(const struct world *w, const struct bt_arrivals *arrivals)
{
    bool half = w->scene->back == BT_BF16;
    char *y = buffer_alloc(((size_t)arrivals->picks * w->hidden + 1) * (half ? 2 : 4));
    CHECK(y);
    for (uint32_t expert = 0; expert < w->experts; expert++) {
        for (uint32_t i = arrivals->routing.begin[expert]; i < arrivals->routing.begin[expert + 1];
             i++) {
            const float *x = arrivals->x + (size_t)(arrivals->routing.order[i] / w->k) * w->hidden;
            for (uint32_t c = 0; c < w->hidden; c++) {
                float value = expert_value(w, expert, x[c], c);
                size_t at = (size_t)i * w->hidden + c;
                if (half)
                    ((uint16_t *)y)[at] = bt_f32_to_bf16(value);
                else
                    ((float *)y)[at] = value;
            }
        }
    }
    return y;
}

static float initial(uint32_t row, uint32_t column)
{
    return (float)row * 0.01f - (float)column * 0.3f;
}

static void check_combined(const struct world *w, const float *out)
{
    float *x = malloc(w->hidden * sizeof(*x));
    CHECK(x);
    for (uint32_t row = 0; row < w->rows[w->rank]; row++) {
        wanted_row(w, w->rank, row, x);
        for (uint32_t c = 0; c < w->hidden; c++) {
            float sum = initial(row, c);
            for (uint32_t expert = 0; expert < w->experts; expert++)
                for (uint32_t place = 0; place < w->k; place++)
                    if (w->routed[w->rank][row * w->k + place] == expert)
                        sum = fmaf(weight_of(w, w->rank, row, place),
                                   expert_value(w, expert, x[c], c), sum);
            CHECK(memcmp(&sum, &out[(size_t)row * w->hidden + c], sizeof(sum)) == 0);
        }
    }
    free(x);
}

/* An agreement is open during every second scene. */
static void begin_agreement(struct bt_group *group, const struct scene *scene)
{
    uint64_t word = scene->stream + bt_group_rank(group);
    if (scene->stream % 2)
        CHECK(bt_group_agree_begin(group, &word, 1) == BT_OK);
}

static void finish_agreement(struct bt_group *group, const struct scene *scene)
{
    uint64_t words[BT_GROUP_RANKS_MAX];
    if (scene->stream % 2 == 0)
        return;
    CHECK(bt_group_agree_finish(group, words) == BT_OK);
    for (uint32_t r = 0; r < bt_group_size(group); r++)
        CHECK(words[r] == scene->stream + r);
}

static void play(struct bt_group *group, const struct scene *scene,
                 const struct bt_group_limits *limits, uint32_t ranks_per_machine)
{
    struct world w;
    struct bt_arrivals arrivals;
    struct bt_group_traffic before, after;

    make_world(&w, group, scene, limits, ranks_per_machine);
    uint32_t rows = w.rows[w.rank];
    size_t floats = (size_t)rows * w.hidden, picks = (size_t)rows * w.k;
    float *x = buffer_alloc((floats + 1) * sizeof(*x));
    float *out = buffer_alloc((floats + 1) * sizeof(*out));
    struct bt_routing routing = {.experts = w.routed[w.rank],
                                 .weights = buffer_alloc((picks + 1) * sizeof(float))};
    const struct bt_placement_layer placement = {.begin = w.begin, .ranks = w.ranks};
    CHECK(routing.weights);
    for (size_t i = 0; i < floats; i++) {
        x[i] = input(&w, w.rank, (uint32_t)(i / w.hidden), (uint32_t)(i % w.hidden));
        out[i] = initial((uint32_t)(i / w.hidden), (uint32_t)(i % w.hidden));
    }
    for (uint32_t i = 0; i < picks; i++)
        routing.weights[i] = weight_of(&w, w.rank, i / w.k, i % w.k);
    bt_group_expect_rows(group, most_rows(&w));
    bool queued = bt_group_queues(group, scene->mode);
    CHECK(!queued || (calls_are_queued() && scene->mode == BT_DISPATCH_LATENCY));
    CHECK(queued || !calls_are_queued() || scene->mode != BT_DISPATCH_LATENCY ||
          most_rows(&w) > 128 || (most_rows(&w) == 0 && w.limit > 128));
    bt_group_traffic(group, &before);
    begin_agreement(group, scene);
    CHECK(bt_group_dispatch_begin(group, scene->mode, x, rows, &routing, &placement,
                                  scene->payload) == BT_OK);
    CHECK(bt_group_dispatch_finish(group, &arrivals) == BT_OK);
    CHECK(arrivals.on_device == queued && await_calls(group) == BT_OK);
    struct bt_arrivals copy = arrivals;
    arrivals.x = buffer_copy(copy.x, (size_t)arrivals.rows * w.hidden * sizeof(float));
    arrivals.routing.order = buffer_copy(copy.routing.order, arrivals.picks * sizeof(uint32_t));
    arrivals.routing.begin = buffer_copy(copy.routing.begin, (w.experts + 1) * sizeof(uint32_t));
    CHECK(arrivals.on_device == !arrivals.begin);
    CHECK(!arrivals.begin ||
          memcmp(arrivals.begin, arrivals.routing.begin, (w.experts + 1) * sizeof(uint32_t)) == 0);
    check_rows(&w, &arrivals);
    check_order(&w, &arrivals);
    void *y = run_experts(&w, &arrivals);
    buffer_free((void *)arrivals.x);
    buffer_free(arrivals.routing.order);
    buffer_free(arrivals.routing.begin);
    CHECK(bt_group_combine(group, y, scene->back, &routing, out) == BT_OK);
    CHECK(await_calls(group) == BT_OK);
    bt_group_traffic(group, &after);
    finish_agreement(group, scene);
    check_combined(&w, out);
    if (scene->stream % 2)
        before.between_machines += sizeof(uint64_t) * (w.machines - 1);
    if (queued)
        check_queued_traffic(&w, &before, &after);
    else
        check_traffic(&w, &before, &after);
    buffer_free(x);
    buffer_free(out);
    buffer_free(y);
    buffer_free(routing.weights);
    free_world(&w);
}

void check_experts(struct bt_group *group, const struct bt_group_limits *limits,
                   uint32_t ranks_per_machine)
{
    const uint32_t all = limits->rows;
    const struct scene scenes[] = {
        {100, ANY_EXPERTS, 1, false, 5, false, BT_F32, BT_F32, BT_DISPATCH_LATENCY},
        {201, ANY_EXPERTS, 1, true, 1, false, BT_BF16, BT_BF16, BT_DISPATCH_LATENCY},
        {300, ANY_EXPERTS, 1, false, 6, true, BT_F8_E4M3, BT_BF16, BT_DISPATCH_LATENCY},
        {401, EXPERTS_OF_ONE_RANK, 1, true, 9, false, BT_BF16, BT_F32, BT_DISPATCH_THROUGHPUT},
        {500, ANY_EXPERTS, 3, false, 9, true, BT_F32, BT_BF16, BT_DISPATCH_LATENCY},
        {601, FEW_EXPERTS, 2, true, 8, false, BT_F8_E4M3, BT_F32, BT_DISPATCH_THROUGHPUT},
        {700, ANY_EXPERTS, 1, false, 0, true, BT_BF16, BT_BF16, BT_DISPATCH_LATENCY},
        {801, ANY_EXPERTS, 1, false, all, false, BT_BF16, BT_BF16, BT_DISPATCH_LATENCY},
        {900, ANY_EXPERTS, 2, false, all, true, BT_F32, BT_F32, BT_DISPATCH_THROUGHPUT},
        {1001, EXPERTS_OF_ONE_RANK, 1, false, all, false, BT_BF16, BT_BF16, BT_DISPATCH_THROUGHPUT},
    };
    for (size_t i = 0; i < sizeof(scenes) / sizeof(scenes[0]); i++)
        play(group, &scenes[i], limits, ranks_per_machine);
}
