/*
 * How far the next tokens that a model expects are from those that another, exact one expects:
 * over rows of logits, the mean Kullback-Leibler divergence of the softmaxes, KL(exact || other) in
 * nats, and how often the best token is the same.
 */
#ifndef BATON_COMMON_MODEL_DIVERGENCE_H
#define BATON_COMMON_MODEL_DIVERGENCE_H

#include <stdint.h>

/* Zeros at first. */
struct bt_divergence {
    double sum;
    uint64_t rows, agreed;
};

/* One row of each, [vocab]. */
void bt_divergence_add(struct bt_divergence *divergence, const float *exact, const float *other,
                       uint32_t vocab);

/* 0 and 1 where there was no row. */
double bt_divergence_mean(const struct bt_divergence *divergence);
double bt_divergence_agreement(const struct bt_divergence *divergence);

#endif
