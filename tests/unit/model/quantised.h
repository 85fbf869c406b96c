/* Tiny with quantised weights, made on the fly. */
#ifndef BATON_TESTS_UNIT_MODEL_QUANTISED_H
#define BATON_TESTS_UNIT_MODEL_QUANTISED_H

#include "tests/unit/model/scratch.h"

enum quantised_kind {
    QUANTISED_FP8,  /* experts, shared ones, kv_b and o */
    QUANTISED_INT8, /* all products */
    QUANTISED_INT4, /* where inputs are a multiple of 128, else int8 */
};

void quantised_open(enum quantised_kind kind, struct scratch *ret_scratch);

#endif
