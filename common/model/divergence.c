#include "common/model/divergence.h"

#include <math.h>

/* log(sum(e^logit)), and the best token: the lower of equals. */
static double log_sum(const float *logits, uint32_t vocab, uint32_t *ret_best)
{
    uint32_t best = 0;
    double sum = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - (double)logits[best]);
    *ret_best = best;
    return log(sum) + (double)logits[best];
}

void bt_divergence_add(struct bt_divergence *divergence, const float *exact, const float *other,
                       uint32_t vocab)
{
    uint32_t best, other_best;
    double whole = log_sum(exact, vocab, &best), other_whole = log_sum(other, vocab, &other_best);
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        double expected = (double)exact[i] - whole, found = (double)other[i] - other_whole;
        sum += exp(expected) * (expected - found);
    }
    divergence->sum += sum;
    divergence->rows++;
    divergence->agreed += best == other_best;
}

double bt_divergence_mean(const struct bt_divergence *divergence)
{
    return divergence->rows ? divergence->sum / (double)divergence->rows : 0;
}

double bt_divergence_agreement(const struct bt_divergence *divergence)
{
    return divergence->rows ? (double)divergence->agreed / (double)divergence->rows : 1;
}
