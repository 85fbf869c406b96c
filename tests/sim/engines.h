/* The model, and the engines that compute nothing: tokens are a function of (request, index), KV
 * entries are tags. */
#ifndef BATON_TESTS_SIM_ENGINES_H
#define BATON_TESTS_SIM_ENGINES_H

#include "common/model/model.h"

#define SIM_VOCABULARY 1000
#define SIM_MAX_LENGTH 512

extern struct bt_model sim_model;

uint32_t token_of(uint64_t request, uint32_t index);

#endif
