#include "common/kernels/route.h"

#include <string.h>

#include <math.h>

#include "common/kernels/weight.h"

/* The score to choose by: with the correction bias where the method has one. */
static void fill_choice(const float *scores, const struct bt_matrix *bias,
                        const struct bt_route_shape *shape, float *choice)
{
    bool biased = shape->method == BT_TOPK_NOAUX_TC && bias && bias->data;
    for (uint32_t e = 0; e < shape->experts; e++) {
        float value = scores[e] + (biased ? bt_weight_at(bias, e) : 0.0f);
        choice[e] = isnan(value) ? -INFINITY : value;
    }
}

static float group_score(const float *choice, uint32_t count, enum bt_topk_method method)
{
    float best = -INFINITY, second = -INFINITY;
    for (uint32_t i = 0; i < count; i++) {
        if (choice[i] > best) {
            second = best;
            best = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    }
    return method == BT_TOPK_NOAUX_TC && count > 1 ? best + second : best;
}

/* The best group none of whose experts is allowed yet; ties: the lower one. */
static uint32_t next_group(const float *choice, const bool *allowed,
                           const struct bt_route_shape *shape, uint32_t group_size)
{
    uint32_t best = UINT32_MAX;
    float best_score = 0;
    for (uint32_t g = 0; g < shape->groups; g++) {
        if (allowed[g * group_size])
            continue;
        float score = group_score(choice + g * group_size, group_size, shape->method);
        if (best == UINT32_MAX || score > best_score) {
            best = g;
            best_score = score;
        }
    }
    return best;
}

static void fill_allowed(const float *choice, const struct bt_route_shape *shape, bool *allowed)
{
    bool limited = shape->method != BT_TOPK_GREEDY && shape->groups > 1 &&
                   shape->groups_per_token < shape->groups;
    for (uint32_t e = 0; e < shape->experts; e++)
        allowed[e] = !limited;
    if (!limited)
        return;

    uint32_t group_size = shape->experts / shape->groups;
    for (uint32_t i = 0; i < shape->groups_per_token; i++) {
        uint32_t group = next_group(choice, allowed, shape, group_size);
        for (uint32_t j = 0; j < group_size; j++)
            allowed[group * group_size + j] = true;
    }
}

/* The best expert that is not in `taken`: an allowed one as long as there are any. */
static uint32_t next_expert(const float *choice, const bool *allowed, uint32_t experts,
                            const uint32_t *taken, uint32_t taken_count)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t e = 0; e < experts; e++) {
        bool is_taken = false;
        for (uint32_t i = 0; i < taken_count; i++)
            is_taken |= taken[i] == e;
        if (is_taken)
            continue;
        if (best == UINT32_MAX || (allowed[e] && !allowed[best]) ||
            (allowed[e] == allowed[best] && choice[e] > choice[best]))
            best = e;
    }
    return best;
}

void bt_route_choose(const float *scores, const struct bt_matrix *bias,
                     const struct bt_route_shape *shape, float *choice, bool *allowed,
                     uint32_t *out_experts, float *out_weights)
{
    uint32_t count = shape->experts_per_token;
    BT_ASSERT(count <= shape->experts);
    BT_ASSERT(shape->groups <= 1 || shape->experts % shape->groups == 0);
    fill_choice(scores, bias, shape, choice);
    fill_allowed(choice, shape, allowed);

    double sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        out_experts[i] = next_expert(choice, allowed, shape->experts, out_experts, i);
        out_weights[i] = scores[out_experts[i]];
        sum += out_weights[i];
    }
    double divisor = shape->normalize ? sum + 1e-20 : 1.0;
    for (uint32_t i = 0; i < count; i++)
        out_weights[i] = (float)(out_weights[i] / divisor * shape->scale);
}

void bt_route_group(const struct bt_route_shape *shape, uint32_t rows,
                    const struct bt_routing *routing)
{
    size_t picks = (size_t)rows * shape->experts_per_token, experts = shape->experts;
    uint32_t *begin = routing->begin;

    memset(begin, 0, (experts + 1) * sizeof(*begin));
    for (size_t i = 0; i < picks; i++) {
        BT_ASSERT(routing->experts[i] < experts);
        begin[routing->experts[i] + 1]++;
    }
    for (size_t e = 0; e < experts; e++)
        begin[e + 1] += begin[e];
    for (size_t i = 0; i < picks; i++)
        routing->order[begin[routing->experts[i]]++] = (uint32_t)i;
    memmove(begin + 1, begin, experts * sizeof(*begin));
    begin[0] = 0;
}
