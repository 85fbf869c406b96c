/*
 * The choice of experts from their scores, and the picks in the order of experts.
 *
 * parts (moe_scores.cu) -> experts and weights [rows][per_row], order [picks], begin [experts + 1].
 * The comparisons are those of common/kernels/route.c: of the same scores come the same experts.
 *
 * moe_topk: 8 warps a block; a warp takes a row (of up to 256 rows) or four, one after the other:
 * adds up the parts, makes scores of them (softmax in a tree of the lanes that depends on the
 * number of experts alone), then groups, then experts best first by the largest key of the warp.
 * A block counts the picks of its rows, a segment; the last block to end sums the counts up over
 * segments and experts, and of few segments also puts the picks in order.
 * moe_order: puts the picks of many segments in order. A warp goes through the picks of a segment
 * 32 at a time; equals within them are ranked by ballots. No order hangs on an atomic.
 *
 * Shared memory: for each warp 12 bytes an expert, 8 a group, 4 a pick; 4 an expert for all; V3
 * 26 KB, V2-Lite 7 KB.
 * Registers: moe_topk: <= 64 (sm_80), <= 64 (sm_90a), <= 128 (sm_100)
 * Registers: moe_order: <= 48 (sm_80), <= 48 (sm_90a), <= 56 (sm_100)
 * Instructions: redux.sync.max.u32; vote.sync.ballot
 * Counted: moe_order: sectors <= 4.50 (by the routing), conflicts <= 1.00
 * Counted: moe_topk: sectors <= 1.40 (by the routing), conflicts <= 1.00
 * Bound: latency: 8 rounds of some 60 cycles for experts, about 3 us with the map at decode. Floor
 * (H100 SXM, computed, by bytes of scores alone): 64 rows of V3, 28 parts of 256: 1.8 MB, 0.6 us;
 * 2048 rows, one part: 0.6 us.
 */
#include "common/kernels/cuda/elements.cuh"
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/order.cuh"
#include "common/kernels/cuda/route.h"

#define WARPS   8
#define THREADS (WARPS * 32)
#define LOWEST  0xff800000u /* minus infinity */
#define TAIL    36          /* words of shared memory for all */

/* Of a warp. */
struct chooser {
    float *score;        /* [experts] */
    uint32_t *key;       /* [experts] what they are chosen by; 0: not now */
    uint32_t *later;     /* [experts] keys of those whose group was not chosen, else 0 */
    float *group;        /* [groups] */
    uint32_t *is_chosen; /* [groups] */
    uint32_t *chosen;    /* [per_row] */
};

BT_DEVICE uint32_t warp_words(const bt_cuda_route &route)
{
    return 3 * route.experts + 2 * route.groups + route.per_row;
}

static size_t shared_bytes(const struct bt_cuda_route *route)
{
    size_t words = 3 * (size_t)route->experts + 2 * (size_t)route->groups + route->per_row;
    return (WARPS * words + route->experts + 1 + TAIL) * sizeof(uint32_t) + 32 * sizeof(uint64_t);
}

BT_DEVICE chooser chooser_of(const bt_cuda_route &route, uint32_t *memory)
{
    chooser c;
    c.score = (float *)memory;
    c.key = memory + route.experts;
    c.later = c.key + route.experts;
    c.group = (float *)(c.later + route.experts);
    c.is_chosen = c.later + route.experts + route.groups;
    c.chosen = c.is_chosen + route.groups;
    return c;
}

BT_DEVICE uint32_t live_rows(const bt_cuda_route &route)
{
    return route.live && *route.live < route.rows ? *route.live : route.rows;
}

/* ---- scores ---- */

BT_DEVICE float logit_of(const bt_cuda_route &route, uint32_t row, uint32_t expert)
{
    size_t each = (size_t)route.rows * route.experts;
    const float *part = route.parts + (size_t)row * route.experts + expert;
    float sum = part[0];
    for (uint32_t i = 1; i < route.part_count; i++)
        sum = bt_add(sum, part[i * each]);
    return sum;
}

BT_DEVICE void softmax(const bt_cuda_route &route, const chooser &c)
{
    uint32_t most = 0;
    float sum = 0;
    for (uint32_t e = bt_lane(); e < route.experts; e += 32) {
        uint32_t key = bt_key_of(c.score[e]);
        most = key > most ? key : most;
    }
    most = bt_warp_max(most);
    float max = most > 0 ? bt_number_of(most) : bt_float(LOWEST);
    for (uint32_t e = bt_lane(); e < route.experts; e += 32) {
        c.score[e] = bt_exp(bt_add(c.score[e], -max));
        sum = bt_add(sum, c.score[e]);
    }
    for (uint32_t mask = 16; mask > 0; mask /= 2)
        sum = bt_add(sum, bt_shuffle_xor(sum, mask));
    for (uint32_t e = bt_lane(); e < route.experts; e += 32)
        c.score[e] = bt_divide(c.score[e], sum);
}

BT_DEVICE float bias_of(const bt_cuda_route &route, uint32_t expert)
{
    if (!route.bias)
        return 0;
    if (route.bias_dtype == BT_F32)
        return bt_element_of<BT_F32>(route.bias, expert);
    return route.bias_dtype == BT_BF16 ? bt_element_of<BT_BF16>(route.bias, expert)
                                       : bt_element_of<BT_F16>(route.bias, expert);
}

/* Scores, and the keys of what experts are chosen by, in which a NaN is minus infinity. */
BT_DEVICE void fill_scores(const bt_cuda_route &route, uint32_t row, const chooser &c)
{
    for (uint32_t e = bt_lane(); e < route.experts; e += 32) {
        float x = logit_of(route, row, e);
        c.score[e] = route.is_sigmoid ? bt_divide(1, bt_add(1, bt_exp(-x))) : x;
    }
    if (!route.is_sigmoid)
        softmax(route, c);
    for (uint32_t e = bt_lane(); e < route.experts; e += 32) {
        uint32_t key = bt_key_of(bt_add(c.score[e], bias_of(route, e)));
        c.key[e] = key > 0 ? key : BT_KEY_LEAST;
        c.later[e] = 0;
    }
    bt_sync_warp();
}

/* ---- groups ---- */

BT_DEVICE float group_score(const bt_cuda_route &route, const uint32_t *keys, uint32_t count)
{
    uint32_t best = BT_KEY_LEAST, second = BT_KEY_LEAST;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t key = keys[i], less = key < best ? key : best;
        best = key > best ? key : best;
        second = less > second ? less : second;
    }
    float score = bt_number_of(best);
    return route.sums_two && count > 1 ? bt_add(score, bt_number_of(second)) : score;
}

/* One after the other, as no number has no rank: it is only chosen where it is the first left. */
BT_DEVICE void choose_groups_in_turn(const bt_cuda_route &route, const chooser &c)
{
    for (uint32_t i = 0; i < route.groups_per_row; i++) {
        uint32_t best = 0xffffffffu;
        for (uint32_t g = 0; g < route.groups; g++)
            if (!c.is_chosen[g] && (best == 0xffffffffu || c.group[g] > c.group[best]))
                best = g;
        c.is_chosen[best] = 1;
    }
}

/* Those of which few enough are better. */
BT_DEVICE void choose_groups(const bt_cuda_route &route, const chooser &c)
{
    for (uint32_t g = bt_lane(); g < route.groups; g += 32) {
        uint32_t better = 0;
        for (uint32_t other = 0; other < route.groups; other++)
            better += c.group[other] > c.group[g] || (c.group[other] == c.group[g] && other < g);
        c.is_chosen[g] = better < route.groups_per_row;
    }
}

/* Experts of other groups come later. */
BT_DEVICE void limit_groups(const bt_cuda_route &route, const chooser &c)
{
    uint32_t size = route.experts / route.groups;
    bool odd = false;
    for (uint32_t g = bt_lane(); g < route.groups; g += 32) {
        c.group[g] = group_score(route, c.key + g * size, size);
        c.is_chosen[g] = 0;
        odd = odd || bt_is_nan(c.group[g]);
    }
    odd = bt_ballot(odd) != 0;
    bt_sync_warp();
    if (!odd)
        choose_groups(route, c);
    else if (bt_lane() == 0)
        choose_groups_in_turn(route, c);
    bt_sync_warp();
    for (uint32_t e = bt_lane(); e < route.experts; e += 32) {
        if (c.is_chosen[e / size])
            continue;
        c.later[e] = c.key[e];
        c.key[e] = 0;
    }
    bt_sync_warp();
}

/* ---- experts ---- */

/* The best of a lane's own experts, the lower of equals. */
struct offer {
    uint32_t key, expert;
};
BT_DEVICE offer best_own(const bt_cuda_route &route, const uint32_t *keys)
{
    offer best = {0, 0xffffffffu};
    for (uint32_t e = bt_lane(); e < route.experts; e += 32)
        if (keys[e] > best.key)
            best = {keys[e], e};
    return best;
}

BT_DEVICE void choose_experts(const bt_cuda_route &route, const chooser &c)
{
    uint32_t *keys = c.key;
    offer own = best_own(route, keys);
    for (uint32_t i = 0; i < route.per_row; i++) {
        uint32_t most = bt_warp_max(own.key);
        if (most == 0) { /* the chosen groups have no more */
            keys = c.later;
            own = best_own(route, keys);
            most = bt_warp_max(own.key);
        }
        uint32_t expert = bt_warp_min(own.key == most ? own.expert : 0xffffffffu);
        if (bt_lane() == 0)
            c.chosen[i] = expert;
        if (own.expert == expert) {
            keys[expert] = 0;
            own = best_own(route, keys);
        }
    }
    bt_sync_warp();
}

BT_DEVICE void put_choice(const bt_cuda_route &route, uint32_t row, const chooser &c,
                          uint32_t *counts)
{
    size_t at = (size_t)row * route.per_row;
    double sum = 0;
    for (uint32_t i = 0; i < route.per_row; i++)
        sum += (double)c.score[c.chosen[i]];
    double divisor = route.normalize ? sum + 1e-20 : 1.0;
    for (uint32_t i = bt_lane(); i < route.per_row; i += 32) {
        uint32_t expert = c.chosen[i];
        route.chosen[at + i] = expert;
        route.weights[at + i] = (float)((double)c.score[expert] / divisor * (double)route.scale);
        bt_atomic_add(&counts[expert], 1);
    }
    bt_sync_warp();
}

/* A row of padding has picks of no expert's; its list is of some. */
BT_DEVICE void put_nothing(const bt_cuda_route &route, uint32_t row)
{
    size_t at = (size_t)row * route.per_row;
    for (uint32_t i = bt_lane(); i < route.per_row; i += 32) {
        route.chosen[at + i] = i;
        route.weights[at + i] = 0;
    }
}

/* ---- the map ---- */

/* What other blocks wrote before they counted themselves. */
BT_DEVICE uint32_t theirs(const uint32_t *at)
{
    return *(const volatile uint32_t *)at;
}

/* Of an expert: makes of its picks in each segment those in segments before; all of them. */
BT_DEVICE uint32_t sum_segments(const bt_cuda_route &route, uint32_t expert)
{
    uint32_t total = 0, *counts = route.counts + expert;
    for (uint32_t s = 0; s < route.segments; s += 8) {
        uint32_t own[8]; /* loads that do not wait for each other */
        for (uint32_t i = 0; i < 8; i++)
            own[i] = s + i < route.segments ? theirs(counts + (size_t)(s + i) * route.experts) : 0;
        for (uint32_t i = 0; i < 8 && s + i < route.segments; i++) {
            counts[(size_t)(s + i) * route.experts] = total;
            total += own[i];
        }
    }
    return total;
}

/* The counts of all experts; where each one's picks begin. All threads. */
BT_DEVICE void sum_counts(const bt_cuda_route &route, uint32_t *totals, uint64_t *scratch)
{
    for (uint32_t e = threadIdx.x; e < route.experts; e += THREADS)
        totals[e] = sum_segments(route, e);
    bt_sync_block();
    uint32_t each = (route.experts + THREADS - 1) / THREADS, first = threadIdx.x * each;
    uint32_t end = first + each < route.experts ? first + each : route.experts;
    uint64_t sum = 0, all;
    for (uint32_t e = first; e < end; e++)
        sum += totals[e];
    uint64_t before = bt_block_prefix(sum, scratch, &all);
    for (uint32_t e = first; e < end; e++) {
        route.begin[e] = (uint32_t)before;
        before += totals[e];
    }
    if (threadIdx.x == 0)
        route.begin[route.experts] = (uint32_t)all;
    bt_sync_block();
}

/* Lanes that are in the set and have this lane's expert. */
BT_DEVICE uint32_t lanes_alike(uint32_t expert, uint32_t lanes, uint32_t experts)
{
    for (uint32_t bit = 1; bit < experts; bit *= 2) {
        uint32_t with = bt_ballot((expert & bit) != 0);
        lanes &= expert & bit ? with : ~with;
    }
    return lanes;
}

/* A warp: the picks of a segment to their places. next [experts] of shared memory. */
BT_DEVICE void order_segment(const bt_cuda_route &route, uint32_t segment, uint32_t *next)
{
    uint32_t rows = live_rows(route), row = segment * route.segment_rows;
    uint32_t end = row + route.segment_rows < rows ? row + route.segment_rows : rows;
    const uint32_t *before = route.counts + (size_t)segment * route.experts;
    bt_sync_warp();
    for (uint32_t e = bt_lane(); e < route.experts; e += 32)
        next[e] = theirs(route.begin + e) + theirs(before + e);
    bt_sync_warp();
    for (uint32_t first = row * route.per_row; first < end * route.per_row; first += 32) {
        uint32_t pick = first + bt_lane();
        bool is = pick < end * route.per_row;
        uint32_t expert = is ? theirs(route.chosen + pick) : 0;
        uint32_t alike = lanes_alike(expert, bt_ballot(is), route.experts);
        uint32_t lower = bt_bits_set(alike & ((1u << bt_lane()) - 1));
        uint32_t place = is ? next[expert] + lower : 0;
        bt_sync_warp();
        if (is) {
            route.order[place] = pick;
            if (lower == 0)
                next[expert] = place + bt_bits_set(alike);
        }
        bt_sync_warp();
    }
}

/* True in the block that ends last, which then sees what the others wrote. */
BT_DEVICE bool is_last_block(const bt_cuda_route &route, uint32_t *shared)
{
    bt_sync_block();
    if (threadIdx.x == 0) {
        bt_fence_device(); /* what the block wrote, as it has met */
        *shared = bt_atomic_add(route.done, 1);
        bt_fence_device();
    }
    bt_sync_block();
    return *shared == gridDim.x - 1;
}

BT_KERNEL(THREADS, 2) moe_topk(const __grid_constant__ bt_cuda_route route)
{
    uint64_t *scratch = (uint64_t *)bt_shared();
    uint32_t *is_last = (uint32_t *)(scratch + 32), *counts = is_last + TAIL;
    uint32_t warp = threadIdx.x / 32, live = live_rows(route);
    uint32_t *memory = counts + route.experts + 1 + warp * warp_words(route);
    chooser c = chooser_of(route, memory);
    for (uint32_t e = threadIdx.x; e < route.experts; e += THREADS)
        counts[e] = 0;
    bt_sync_block();
    for (uint32_t i = warp; i < route.segment_rows; i += WARPS) {
        uint32_t row = blockIdx.x * route.segment_rows + i;
        if (row < live) {
            fill_scores(route, row, c);
            if (route.is_limited)
                limit_groups(route, c);
            choose_experts(route, c);
            put_choice(route, row, c, counts);
        } else if (row < route.rows)
            put_nothing(route, row);
    }
    bt_sync_block();
    for (uint32_t e = threadIdx.x; e < route.experts; e += THREADS)
        route.counts[(size_t)blockIdx.x * route.experts + e] = counts[e];
    if (!is_last_block(route, is_last))
        return;
    sum_counts(route, counts, scratch);
    if (route.rows > BT_CUDA_ROUTE_FEW_ROWS)
        return;
    bt_fence_block();
    for (uint32_t s = warp; s < route.segments; s += WARPS)
        order_segment(route, s, memory);
}

BT_KERNEL(THREADS, 4) moe_order(const __grid_constant__ bt_cuda_route route)
{
    uint32_t warp = threadIdx.x / 32, segment = blockIdx.x * WARPS + warp;
    if (segment < route.segments)
        order_segment(route, segment, (uint32_t *)bt_shared() + warp * route.experts);
}

void bt_cuda_launch_moe_topk(const struct bt_cuda_route *route, cudaStream_t stream)
{
    bt_cuda_launch(moe_topk, dim3(route->segments, 1, 1), THREADS, shared_bytes(route), stream,
                   *route);
}

void bt_cuda_launch_moe_order(const struct bt_cuda_route *route, cudaStream_t stream)
{
    bt_cuda_launch(moe_order, dim3((route->segments + WARPS - 1) / WARPS, 1, 1), THREADS,
                   WARPS * (size_t)route->experts * sizeof(uint32_t), stream, *route);
}
