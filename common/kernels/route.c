#include "common/kernels/route.h"

#include <math.h>
#include <string.h>

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

/* The best group that is not allowed yet; ties: the lower one. */
static uint32_t next_group(const float *group_scores, const bool *allowed,
                           const struct bt_route_shape *shape, uint32_t group_size)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t g = 0; g < shape->groups; g++) {
        if (!allowed[g * group_size] &&
            (best == UINT32_MAX || group_scores[g] > group_scores[best]))
            best = g;
    }
    return best;
}

/* False: all are. */
static bool fill_allowed(const float *choice, const struct bt_route_shape *shape,
                         float *group_scores, bool *allowed)
{
    if (shape->method == BT_TOPK_GREEDY || shape->groups <= 1 ||
        shape->groups_per_token >= shape->groups)
        return false;

    uint32_t group_size = shape->experts / shape->groups;
    for (uint32_t g = 0; g < shape->groups; g++)
        group_scores[g] = group_score(choice + g * group_size, group_size, shape->method);
    memset(allowed, 0, shape->experts * sizeof(*allowed));
    for (uint32_t i = 0; i < shape->groups_per_token; i++) {
        uint32_t group = next_group(group_scores, allowed, shape, group_size);
        memset(allowed + group * group_size, 1, group_size * sizeof(*allowed));
    }
    return true;
}

/* The best so far, best first. Experts come in ascending order, so that of equals the lower one is
 * before. */
struct list {
    uint32_t *experts;
    uint32_t count, most;
};

static void list_offer(struct list *list, const float *choice, uint32_t expert)
{
    float value = choice[expert];
    if (list->count == list->most && !(value > choice[list->experts[list->count - 1]]))
        return;
    uint32_t at = list->count < list->most ? list->count++ : list->count - 1;
    for (; at > 0 && value > choice[list->experts[at - 1]]; at--)
        list->experts[at] = list->experts[at - 1];
    list->experts[at] = expert;
}

/* allowed NULL: all are. Others come after them, where there are not enough. */
static void choose(const float *choice, const bool *allowed, uint32_t experts, uint32_t count,
                   uint32_t *out_experts)
{
    struct list best = {out_experts, 0, count};
    for (uint32_t e = 0; e < experts; e++)
        if (!allowed || allowed[e])
            list_offer(&best, choice, e);
    struct list rest = {out_experts + best.count, 0, count - best.count};
    for (uint32_t e = 0; e < experts && rest.most > 0; e++)
        if (!allowed[e])
            list_offer(&rest, choice, e);
}

void bt_route_choose(const float *scores, const struct bt_matrix *bias,
                     const struct bt_route_shape *shape, float *work, bool *allowed,
                     uint32_t *out_experts, float *out_weights)
{
    uint32_t count = shape->experts_per_token;
    float *choice = work, *group_scores = work + shape->experts;
    BT_ASSERT(count <= shape->experts);
    BT_ASSERT(shape->groups <= 1 || shape->experts % shape->groups == 0);
    fill_choice(scores, bias, shape, choice);
    bool limited = fill_allowed(choice, shape, group_scores, allowed);
    choose(choice, limited ? allowed : NULL, shape->experts, count, out_experts);

    double sum = 0;
    for (uint32_t i = 0; i < count; i++) {
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
